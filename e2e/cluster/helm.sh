#!/bin/sh
# Builds helm at the version that helm/go.mod pins and prints its path, its only line on stdout. As build.sh: once, into a
# folder outside the checkout named after what decides its content. HELM names a helm instead; then nothing is built.
set -eu

if [ -n "${HELM:-}" ]; then
    command -v "$HELM" || {
        echo "helm.sh: HELM is $HELM, which cannot be run" >&2
        exit 1
    }
    exit 0
fi
command -v go >/dev/null || {
    echo "helm.sh: go is not on the PATH: install Go 1.26 or newer to build helm, or set HELM to one" >&2
    exit 1
}
cd "$(dirname "$0")/helm"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/podlight/helm
key=$({ cat go.mod go.sum tools.go ../helm.sh && go version; } | sha256sum | cut -c 1-16)
folder=$cache/$key

if ! [ -x "$folder/helm" ]; then
    mkdir -p "$folder"
    # Whoever comes second waits here and finds the work done.
    exec 9>"$cache/$key.lock"
    flock 9
    if ! [ -x "$folder/helm" ]; then
        echo "helm.sh: building helm, once, for some minutes" >&2
        export CGO_ENABLED=0 GOWORK=off
        go build -trimpath -ldflags '-s -w' -o "$folder/.partial" helm.sh/helm/v4/cmd/helm 9>&- >&2
        mv "$folder/.partial" "$folder/helm"
    fi
fi
echo "$folder/helm"
