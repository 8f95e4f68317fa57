#!/bin/sh
# Builds etcd and kube-apiserver at the versions that go.mod pins and prints the folder that holds them, its only line on
# stdout. The folder is outside the checkout and named after everything that decides its content, so a second run costs
# nothing and a `git clean` loses nothing. KUBEBUILDER_ASSETS names such a folder instead; then nothing is built.
set -eu

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

# Whether folder $1 holds both binaries.
complete() {
    [ -x "$1/etcd" ] && [ -x "$1/kube-apiserver" ]
}

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
    for binary in etcd kube-apiserver; do
        [ -x "$KUBEBUILDER_ASSETS/$binary" ] ||
            fail "KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, which holds no executable $binary"
    done
    echo "$KUBEBUILDER_ASSETS"
    exit 0
fi

command -v go >/dev/null || fail "go is not on the PATH: install Go 1.26 or newer to build the control plane," \
    "or set KUBEBUILDER_ASSETS to a folder with etcd and kube-apiserver"

cd "$(dirname "$0")"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/podlight/control-plane
key=$({ cat go.mod go.sum build.sh && go version; } | sha256sum | cut -c 1-16)
folder=$cache/$key

if ! complete "$folder/bin"; then
    mkdir -p "$cache"
    # Whoever comes second waits here and finds the work done.
    exec 9>"$cache/$key.lock"
    flock 9
    if ! complete "$folder/bin"; then
        echo "build.sh: building etcd and kube-apiserver, once, for some minutes" >&2
        # Of builds that were killed: we hold the lock, so nobody is at work on them.
        rm -rf "$cache/$key".partial.*
        partial=$(mktemp -d "$cache/$key.partial.XXXXXX")
        trap 'rm -rf "$partial"' EXIT
        trap 'exit 1' HUP INT TERM
        export CGO_ENABLED=0 GOWORK=off
        version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes 9>&-)
        minor=${version#v1.}
        # Without these kube-apiserver's version does not parse and clients that look at it fail.
        stamp="-X k8s.io/component-base/version.gitVersion=$version"
        stamp="$stamp -X k8s.io/component-base/version.gitMajor=1"
        stamp="$stamp -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
        go build -trimpath -ldflags '-s -w' -o "$partial/bin/etcd" go.etcd.io/etcd/server/v3 9>&- >&2
        go build -trimpath -ldflags "-s -w $stamp" -o "$partial/bin/kube-apiserver" \
            k8s.io/kubernetes/cmd/kube-apiserver 9>&- >&2
        rm -rf "$folder"
        mv "$partial" "$folder"
    fi
fi
echo "$folder/bin"
