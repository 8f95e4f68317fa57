#!/bin/sh
# Writes an image of one layer as an archive that docker, ctr and kind load, without any of them:
# archive.sh ARCHIVE IMAGE USER ENTRYPOINT FILE=PATH… The same files give the same bytes.
set -eu
archive=$1 image=$2 user=$3 entrypoint=$4
shift 4

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pack() { # folder archive
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=ustar -C "$1" -cf "$2" .
}
digest() {
    sha256sum "$1" | cut -d ' ' -f 1
}

mkdir -p "$work/root" "$work/image"
install -d -m 1777 "$work/root/tmp"
for pair in "$@"; do
    install -D -m 755 "${pair%%=*}" "$work/root/${pair#*=}"
done
pack "$work/root" "$work/image/layer.tar"

# The commands of a control plane's static pods are bare names.
cat >"$work/image/config.json" <<JSON
{"architecture": "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')", "os": "linux",
 "config": {"Entrypoint": ["$entrypoint"], "User": "$user", "WorkingDir": "/",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(digest "$work/image/layer.tar")"]}}
JSON
config=$(digest "$work/image/config.json").json
mv "$work/image/config.json" "$work/image/$config"
echo "[{\"Config\": \"$config\", \"RepoTags\": [\"$image\"], \"Layers\": [\"layer.tar\"]}]" >"$work/image/manifest.json"
pack "$work/image" "$archive"
