#!/bin/sh
# Builds a part of a cluster at the versions that its go.mod pins and prints the folder that holds it, its only line on stdout:
#   control-plane  etcd and kube-apiserver (the default); KUBEBUILDER_ASSETS names a folder with them instead
#   node           the rest of Kubernetes: kubelet, kube-controller-manager, kube-scheduler, kube-proxy, kubeadm, kubectl
#   runtime        containerd, its shim, ctr, and CNI plugins in cni/
#   dns            CoreDNS
#   kind           kind, and in base/ the files of its base image
# The folder is outside the checkout and named after everything that decides its content, so a second run costs nothing and
# a `git clean` loses nothing.
set -eu

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

# What Kubernetes' binaries say of themselves. Without it their version does not parse and clients that look at it fail.
kubernetes_stamp() {
    version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
    minor=${version#v1.}
    set -- "gitVersion=$version" gitMajor=1 "gitMinor=${minor%%.*}"
    printf -- '-X k8s.io/component-base/version.%s ' "$@"
}

# Each writes into the folder $1.
build_control_plane() {
    go build -trimpath -ldflags '-s -w' -o "$1/etcd" go.etcd.io/etcd/server/v3
    go build -trimpath -ldflags "-s -w $(kubernetes_stamp)" -o "$1/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
}

build_node() {
    stamp=$(kubernetes_stamp)
    for command in kube-controller-manager kube-scheduler kubelet kube-proxy kubeadm kubectl; do
        go build -trimpath -ldflags "-s -w $stamp" -o "$1/$command" "k8s.io/kubernetes/cmd/$command"
    done
}

build_runtime() {
    containerd=github.com/containerd/containerd/v2
    stamp="-X $containerd/version.Version=$(go list -m -f '{{.Version}}' "$containerd")"
    # Snapshotters that need a file system or libraries of their own, tracing, and systemd's notifications.
    tags=no_btrfs,no_devmapper,no_zfs,no_tracing,no_rdt,no_systemd
    for command in containerd containerd-shim-runc-v2 ctr; do
        go build -trimpath -tags "$tags" -ldflags "-s -w $stamp" -o "$1/$command" "$containerd/cmd/$command"
    done
    for plugin in main/bridge main/loopback ipam/host-local meta/portmap; do
        go build -trimpath -ldflags '-s -w' -o "$1/cni/${plugin#*/}" "github.com/containernetworking/plugins/plugins/$plugin"
    done
}

build_dns() {
    go build -trimpath -ldflags '-s -w' -o "$1/coredns" .
}

build_kind() {
    go build -trimpath -ldflags '-s -w' -o "$1/kind" sigs.k8s.io/kind
    cp -R "$(go list -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files" "$1/base"
    chmod -R u+w "$1/base"
}

part=${1:-control-plane}
case $part in
control-plane | node) module=. ;;
runtime | dns | kind) module=$part ;;
*) fail "there is no part $part" ;;
esac

if [ "$part" = control-plane ] && [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    for binary in etcd kube-apiserver; do
        [ -x "$KUBEBUILDER_ASSETS/$binary" ] ||
            fail "KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, which holds no executable $binary"
    done
    echo "$KUBEBUILDER_ASSETS"
    exit 0
fi

command -v go >/dev/null || fail "go is not on the PATH: install Go 1.26 or newer to build a cluster's $part," \
    "or, for the control plane alone, set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver"

cd "$(dirname "$0")"
script=$PWD/build.sh
cd "$module"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/podlight/$part
key=$({ cat go.mod go.sum ./*.go "$script" && go version; } | sha256sum | cut -c 1-16)
folder=$cache/$key

if ! [ -d "$folder/bin" ]; then
    mkdir -p "$cache"
    # Whoever comes second waits here and finds the work done.
    exec 9>"$cache/$key.lock"
    flock 9
    if ! [ -d "$folder/bin" ]; then
        echo "build.sh: building a cluster's $part, once, for some minutes" >&2
        # Of builds that were killed: we hold the lock, so nobody is at work on them.
        rm -rf "$cache/$key".partial.*
        partial=$(mktemp -d "$cache/$key.partial.XXXXXX")
        trap 'rm -rf "$partial"' EXIT
        trap 'exit 1' HUP INT TERM
        export CGO_ENABLED=0 GOWORK=off
        mkdir "$partial/bin"
        "build_$(echo "$part" | tr - _)" "$partial/bin" 9>&- >&2
        mv "$partial" "$folder"
    fi
fi
echo "$folder/bin"
