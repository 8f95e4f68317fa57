//go:build tools

// Package cluster pins the control plane that the tests run against: importing the commands keeps them in go.mod and
// go.sum, so build.sh builds the same binaries everywhere.
package cluster

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
