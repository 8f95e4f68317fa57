#!/bin/bash
# Builds a node image for kind, without any registry: a Debian tree from the mirror that this machine's apt uses, the files of
# kind's own base image, and Kubernetes and its runtime as e2e/cluster/build.sh builds them. Prints the path of the image's
# file system, an archive for `docker import`, its only line on stdout. As build.sh: once, into the user's cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# systemd 252, the last Debian release whose systemd starts on cgroup v1 as on v2.
suite=bookworm
packages=systemd,systemd-sysv,dbus,iproute2,iptables,nftables,conntrack,ethtool,socat,kmod,procps,ca-certificates,hostname
packages=$packages,curl,jq,rsync,udev,runc
pod_network=10.244.0.0/24

fail() {
    echo "kind-image.sh: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "a tree of files with owners takes root"
control_plane=$("$here/../cluster/build.sh" control-plane)
node=$("$here/../cluster/build.sh" node)
runtime=$("$here/../cluster/build.sh" runtime)
dns=$("$here/../cluster/build.sh" dns)
kind=$("$here/../cluster/build.sh" kind)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/podlight/node-image
key=$({
    echo "$control_plane" "$node" "$runtime" "$dns" "$kind"
    cat "$here/kind-image.sh" "$here/archive.sh" "$here/pause.c"
} | sha256sum | cut -c 1-16)
image=$cache/$key.tar

if ! [ -f "$image" ]; then
    mkdir -p "$cache"
    # Whoever comes second waits here and finds the work done.
    exec 9>"$cache/lock"
    flock 9
fi
if [ -f "$image" ]; then
    echo "$image"
    exit 0
fi

echo "kind-image.sh: building a node image, once, for a minute or two" >&2
"$here/../debian.sh" "kind's node image" debootstrap:debootstrap cc:gcc
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep '/debian/*$' | head -n 1)
[ -n "$mirror" ] || fail "apt has no source of Debian's packages"

rm -rf "$cache"/work.*
work=$(mktemp -d "$cache/work.XXXXXX")
containerd=
clean_up() {
    [ -z "$containerd" ] || kill "$containerd" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
tree=$work/tree
debootstrap --variant=minbase --include="$packages" "$suite" "$tree" "$mirror" >"$work/debootstrap.log" 2>&1 9>&- ||
    fail "debootstrap failed: $(tail -n 5 "$work/debootstrap.log")"
rm -rf "$tree"/var/cache/apt/archives/*.deb

# As the Dockerfile of kind's base image does.
cp -R "$kind/base/kind" "$kind/base/etc" "$kind/base/usr" "$tree/"
chmod 755 "$tree"/usr/local/bin/* "$tree"/kind/bin/*
mkdir -p "$tree/etc/kubernetes/manifests" "$tree/kind/manifests" "$tree/opt/cni/bin" "$tree/etc/cni/net.d"
# Built without systemd's notifications.
sed -i 's/^Type=notify/Type=exec/' "$tree/etc/systemd/system/containerd.service"
rm -f "$tree"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service \
    "$tree"/lib/systemd/system/multi-user.target.wants/* "$tree"/etc/systemd/system/*.wants/* \
    "$tree"/lib/systemd/system/local-fs.target.wants/* "$tree"/lib/systemd/system/sockets.target.wants/*udev* \
    "$tree"/lib/systemd/system/sockets.target.wants/*initctl* "$tree"/lib/systemd/system/basic.target.wants/*
echo ReadKMsg=no >>"$tree/etc/systemd/journald.conf"
chroot "$tree" systemctl enable kubelet.service containerd.service undo-mount-hacks.service 2>/dev/null
chroot "$tree" systemctl mask systemd-binfmt.service 2>/dev/null

install -m 755 "$runtime/containerd" "$runtime/containerd-shim-runc-v2" "$runtime/ctr" "$tree/usr/local/bin/"
install -m 755 "$runtime/cni"/* "$tree/opt/cni/bin/"
install -m 755 "$node/kubelet" "$node/kubeadm" "$node/kubectl" "$tree/usr/bin/"
version=$(chroot "$tree" kubeadm version -o short)
printf %s "$version" >"$tree/kind/version"

chroot "$tree" kubeadm config images list --kubernetes-version "$version" >"$work/images"
named() { # component
    grep "/$1:" "$work/images"
}
# restrict_oom_score_adj: root without CAP_SYS_RESOURCE may not lower it.
cat >"$tree/etc/containerd/config.toml" <<TOML
version = 3
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "$(named pause)"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = true
TOML
# One node needs a bridge and no routes; the manifest that kind applies in its stead does nothing.
cat >"$tree/etc/cni/net.d/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pod_network"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
cat >"$tree/kind/manifests/default-cni.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata:
  name: network-is-in-the-image
  namespace: kube-system
YAML
cat >"$tree/kind/manifests/default-storage.yaml" <<'YAML'
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
provisioner: kubernetes.io/no-provisioner
YAML

# The control plane's images, under the names that kubeadm asks for.
mkdir "$work/archives"
pack() { # component entrypoint files…
    "$here/archive.sh" "$work/archives/$1.tar" "$(named "$1")" 0:0 "${@:2}"
}
cc -Os -static -o "$work/pause" "$here/pause.c"
pack pause /pause "$work/pause=/pause"
pack etcd /usr/local/bin/etcd "$control_plane/etcd=/usr/local/bin/etcd"
pack coredns /coredns "$dns/coredns=/coredns"
pack kube-apiserver /usr/local/bin/kube-apiserver "$control_plane/kube-apiserver=/usr/local/bin/kube-apiserver"
for component in kube-controller-manager kube-scheduler; do
    pack $component /usr/local/bin/$component "$node/$component=/usr/local/bin/$component"
done
# kube-proxy runs nft, which comes with the libraries that it links.
libraries=()
for library in $(chroot "$tree" ldd /usr/sbin/nft | grep -oE '/[^ ]+'); do
    libraries+=("$(readlink -f "$tree$library")=$library")
done
pack kube-proxy /usr/local/bin/kube-proxy "$node/kube-proxy=/usr/local/bin/kube-proxy" "$tree/usr/sbin/nft=/usr/sbin/nft" \
    "${libraries[@]}"

# A containerd whose root is the tree's; kind keeps /var as a volume that is filled from the image.
cat >"$work/containerd.toml" <<TOML
version = 3
root = "$tree/var/lib/containerd"
state = "$work/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$work/sock"
TOML
PATH=$runtime:$PATH "$runtime/containerd" --config "$work/containerd.toml" >"$work/containerd.log" 2>&1 9>&- &
containerd=$!
until "$runtime/ctr" -a "$work/sock" version >/dev/null 2>&1; do
    kill -0 $containerd || fail "containerd ended: $(tail -n 5 "$work/containerd.log")"
    sleep 0.1
done
for archive in "$work/archives"/*.tar; do
    "$runtime/ctr" -a "$work/sock" -n k8s.io images import "$archive" >/dev/null 2>&1 || fail "cannot import $archive"
done
kill $containerd
wait $containerd || true
containerd=

tar -C "$tree" --numeric-owner -cf "$work/image.tar" .
rm -f "$cache"/*.tar
mv "$work/image.tar" "$image"
echo "$image"
