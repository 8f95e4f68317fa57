#!/bin/sh
# Writes the images that the suite loads into a cluster, as archives in FOLDER: Podlight's own and the app of its tests.
# images.sh FOLDER ACTIVATOR SIDECAR TESTAPP, the last three binaries that need no library.
set -eu
folder=$1 activator=$2 sidecar=$3 testapp=$4
here=$(dirname "$0")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../Cargo.toml" | head -n 1)

mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for pair in "activator=$activator" "sidecar=$sidecar" "testapp=$testapp"; do
    name=podlight-${pair%%=*}
    strip -o "$work/$name" "${pair#*=}"
    "$here/archive.sh" "$folder/$name.tar" "localhost/$name:$version" 65532:65532 "/$name" "$work/$name=/$name"
done
