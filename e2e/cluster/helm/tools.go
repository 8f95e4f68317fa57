//go:build tools

// Package helm pins Helm, which renders the chart: importing the command keeps it in go.mod and go.sum.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
