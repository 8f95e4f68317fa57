//go:build tools

// Package kind pins kind, the files of its base image included.
package kind

import _ "sigs.k8s.io/kind"
