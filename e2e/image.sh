#!/bin/sh
# Builds localhost/podlight-{sidecar,activator}:<version> from the given binaries, with the first of docker, podman
# and buildah that works here. BUILDER names one of them instead.
set -eu
activator=$(realpath "${1:?the activator's binary}")
sidecar=$(realpath "${2:?the sidecar's binary}")
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

works() {
    command -v "$1" >/dev/null && "$1" info >/dev/null 2>&1
}

if [ -z "${BUILDER:-}" ]; then
    for candidate in docker podman buildah; do
        if works "$candidate"; then
            BUILDER=$candidate
            break
        fi
    done
fi
if [ -z "${BUILDER:-}" ]; then
    echo "image.sh: none of docker, podman and buildah works here: install one, or start docker's engine" >&2
    exit 1
fi

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$activator" "$sidecar" "$context/"
for name in sidecar activator; do
    strip "$context/podlight-$name"
    "$BUILDER" build --tag "localhost/podlight-$name:$version" --file "$name/Dockerfile" "$context"
    # From nothing but the one file, as its own user: a binary that needs more does not get past this.
    [ "$BUILDER" = buildah ] || "$BUILDER" run --rm --network none "localhost/podlight-$name:$version" --version
done
echo "built localhost/podlight-sidecar:$version and localhost/podlight-activator:$version with $BUILDER"
