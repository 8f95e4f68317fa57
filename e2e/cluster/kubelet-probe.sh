#!/bin/sh
# Builds kubelet-probe, which asks as the kubelet does, from the Kubernetes version that go.mod pins, and prints the folder that
# holds it, its only line on stdout. As build.sh: once, into a folder outside the checkout named after what decides its content.
set -eu

command -v go >/dev/null || {
    echo "kubelet-probe.sh: go is not on the PATH: install Go 1.26 or newer" >&2
    exit 1
}
cd "$(dirname "$0")"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/podlight/kubelet-probe
key=$({ cat go.mod go.sum kubelet-probe.sh kubelet-probe/main.go && go version; } | sha256sum | cut -c 1-16)
folder=$cache/$key

if ! [ -x "$folder/kubelet-probe" ]; then
    mkdir -p "$folder"
    # Whoever comes second waits here and finds the work done.
    exec 9>"$cache/$key.lock"
    flock 9
    if ! [ -x "$folder/kubelet-probe" ]; then
        echo "kubelet-probe.sh: building kubelet-probe, once" >&2
        export CGO_ENABLED=0 GOWORK=off
        version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes 9>&-)
        minor=${version#v1.}
        # The User-Agent says them.
        stamp="-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=${minor%%.*}"
        go build -trimpath -ldflags "-s -w $stamp" -o "$folder/.partial" ./kubelet-probe 9>&- >&2
        mv "$folder/.partial" "$folder/kubelet-probe"
    fi
fi
echo "$folder"
