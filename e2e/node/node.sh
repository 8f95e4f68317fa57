#!/bin/bash
# A real Kubernetes node without Docker, control plane included, in mount, pid, uts and network namespaces of its own:
#   node.sh up             starts it and prints its kubeconfig's path, the only line on stdout
#   node.sh load TAR…      loads images from archives
#   node.sh enter CMD…     runs a command in its namespaces
#   node.sh status         whether it is up, and its pods
#   node.sh logs FOLDER    copies the logs of everything that runs on it outside pods
#   node.sh down           ends it, and nothing else
# Its rules, mounts, sysctls and ports stay in there; the machine gets one link and routes to Services and pods. One at a time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
state=/var/lib/podlight-e2e/node
name=node-1
link=podlight0
host_address=10.98.0.1
node_address=10.98.0.2
services=10.97.0.0/16
api_address=10.97.0.1
dns_address=10.97.0.10
pods=10.245.0.0/24
# How long each step of a start may take; they take seconds.
deadline=120

fail() {
    echo "node.sh: $*" >&2
    exit 1
}

# Waits until a command succeeds.
until_succeeds() { # what command…
    local what=$1 end=$((SECONDS + deadline))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what: not within $deadline s; logs are in $state/logs"
        sleep 0.1
    done
}

kubectl() {
    "$NODE/kubectl" --kubeconfig "$state/admin.kubeconfig" "$@"
}

build() {
    [ "$(id -u)" = 0 ] || fail "namespaces, mounts and links take root"
    "$here/../debian.sh" "the cluster without Docker" runc:runc iptables:iptables ip:iproute2 unshare:util-linux \
        openssl:openssl cc:gcc sysctl:procps
    CONTROL_PLANE=$("$here/../cluster/build.sh" control-plane)
    NODE=$("$here/../cluster/build.sh" node)
    RUNTIME=$("$here/../cluster/build.sh" runtime)
    DNS=$("$here/../cluster/build.sh" dns)
    export CONTROL_PLANE NODE RUNTIME DNS
}

certificate() { # name subject [alternative-names]
    local of=$state/pki/$1
    {
        printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n'
        [ -z "${3:-}" ] || echo "subjectAltName=$3"
    } >"$of.ext"
    openssl ecparam -name prime256v1 -genkey -noout -out "$of.key"
    openssl req -new -key "$of.key" -subj "$2" -out "$of.csr"
    openssl x509 -req -in "$of.csr" -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" -CAcreateserial -days 30 \
        -extfile "$of.ext" -out "$of.crt" 2>/dev/null
}

kubeconfig() { # name server
    cat >"$state/$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
current-context: podlight-e2e
clusters:
- name: node
  cluster:
    server: https://$2:6443
    certificate-authority-data: $(base64 -w 0 "$state/pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w 0 "$state/pki/$1.crt")
    client-key-data: $(base64 -w 0 "$state/pki/$1.key")
contexts:
- name: podlight-e2e
  context:
    cluster: node
    user: $1
YAML
}

write_keys() {
    local pki=$state/pki
    mkdir -p "$pki"
    openssl ecparam -name prime256v1 -genkey -noout -out "$pki/ca.key"
    openssl req -x509 -new -key "$pki/ca.key" -subj /CN=podlight-e2e -days 30 \
        -addext keyUsage=critical,keyCertSign,cRLSign -out "$pki/ca.crt"
    openssl genrsa -out "$pki/accounts.key" 2048 2>/dev/null
    openssl rsa -in "$pki/accounts.key" -pubout -out "$pki/accounts.pub" 2>/dev/null
    local names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
    certificate api-server /CN=kube-apiserver "$names,IP:127.0.0.1,IP:$api_address,IP:$node_address"
    certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
    certificate admin /O=system:masters/CN=admin
    certificate controller-manager /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate kubelet "/O=system:nodes/CN=system:node:$name"
    certificate proxy /CN=system:kube-proxy
    for user in controller-manager scheduler kubelet proxy; do kubeconfig $user 127.0.0.1; done
    kubeconfig admin $node_address
}

write_configs() {
    mkdir -p "$state/cni"
    # restrict_oom_score_adj: root without CAP_SYS_RESOURCE may not lower it. The disabled plugin would make a folder in /opt.
    cat >"$state/containerd.toml" <<TOML
version = 3
root = "$state/containerd"
state = "$state/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "$state/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "$(PATH=$PATH:/usr/sbin command -v runc)"
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["$RUNTIME/cni"]
    conf_dir = "$state/cni"
TOML
    cat >"$state/cni/10-bridge.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$state/ipam", "ranges": [[{"subnet": "$pods"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
    : >"$state/resolv.conf"
    cat >"$state/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
containerRuntimeEndpoint: unix://$state/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
clusterDNS: [$dns_address]
clusterDomain: cluster.local
resolvConf: $state/resolv.conf
podLogsDir: $state/pod-logs
volumePluginDir: $state/volume-plugins
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
maxPods: 200
YAML
    # The zeroes leave alone what cannot be written in a network namespace.
    cat >"$state/proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: $pods
hostnameOverride: $name
clientConnection: {kubeconfig: $state/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
bindAddress: 0.0.0.0
YAML
}

# The first process of the namespaces; bash, because it buries orphans while it waits.
inside() {
    start() { # name command…
        local log=$state/logs/$1.log
        shift
        "$@" >"$log" 2>&1 &
    }
    trap 'exit 0' TERM
    hostname $name
    mount --make-rshared /
    mount -t tmpfs tmpfs /run
    mkdir -p /run/netns /run/lock
    ip link set lo up
    until ip link show dev eth0 >/dev/null 2>&1; do sleep 0.05; done
    ip address add $node_address/30 dev eth0
    ip link set eth0 up
    ip route add default via $host_address
    sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1 net.bridge.bridge-nf-call-iptables=1

    local pki=$state/pki
    start etcd "$CONTROL_PLANE/etcd" --data-dir "$state/etcd" --unsafe-no-fsync --listen-peer-urls http://127.0.0.1:2380 \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
    start containerd env PATH="$RUNTIME:$PATH:/usr/sbin" "$RUNTIME/containerd" --config "$state/containerd.toml"
    start kube-apiserver "$CONTROL_PLANE/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 \
        --advertise-address=$node_address --service-cluster-ip-range=$services --allow-privileged=true \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --client-ca-file="$pki/ca.crt" \
        --tls-cert-file="$pki/api-server.crt" --tls-private-key-file="$pki/api-server.key" \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$pki/accounts.pub" --service-account-signing-key-file="$pki/accounts.key" \
        --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
        --kubelet-preferred-address-types=InternalIP
    until kubectl get --raw /readyz >/dev/null 2>&1; do sleep 0.1; done
    start kube-controller-manager "$NODE/kube-controller-manager" --kubeconfig="$state/controller-manager.kubeconfig" \
        --service-account-private-key-file="$pki/accounts.key" --root-ca-file="$pki/ca.crt" \
        --use-service-account-credentials=true --leader-elect=false --allocate-node-cidrs=false
    start kube-scheduler "$NODE/kube-scheduler" --kubeconfig="$state/scheduler.kubeconfig" --leader-elect=false
    start kubelet "$NODE/kubelet" --config="$state/kubelet.yaml" --kubeconfig="$state/kubelet.kubeconfig" \
        --root-dir="$state/kubelet" --cert-dir="$state/kubelet-pki" --hostname-override=$name --node-ip=$node_address
    start kube-proxy "$NODE/kube-proxy" --config="$state/proxy.yaml"
    while :; do
        wait || true
        sleep 1
    done
}

running() {
    [ -f "$state/pid" ] && grep -qz __inside "/proc/$(cat "$state/pid")/cmdline" 2>/dev/null
}

up() {
    build
    ! running || fail "it is up already; \`node.sh down\` ends it"
    # Of one that was killed.
    down
    mkdir -p "$state/logs" "$state/images"
    chmod 700 "$state"
    write_keys
    write_configs
    # The kubelet sets these for the whole machine.
    for setting in vm.overcommit_memory kernel.panic kernel.panic_on_oops; do
        echo "$setting=$(sysctl -n $setting)"
    done >"$state/sysctl"

    setsid unshare --mount --pid --uts --net --fork --kill-child --mount-proc "$here/node.sh" __inside \
        >"$state/logs/node.log" 2>&1 </dev/null &
    local parent=$!
    until_succeeds "the namespaces" pgrep -P $parent
    pgrep -P $parent >"$state/pid"
    ip link add $link type veth peer name eth0 netns "$(cat "$state/pid")"
    ip address add $host_address/30 dev $link
    ip link set $link up
    ip route add $services via $node_address
    ip route add $pods via $node_address

    cc -Os -static -o "$state/images/pause" "$here/pause.c"
    "$here/archive.sh" "$state/images/pause.tar" localhost/pause:1 0:0 /pause "$state/images/pause=/pause"
    "$here/archive.sh" "$state/images/coredns.tar" localhost/coredns:1 0:0 /coredns "$DNS/coredns=/coredns"
    until_succeeds "containerd" "$RUNTIME/ctr" -a "$state/containerd.sock" version
    load "$state/images/pause.tar" "$state/images/coredns.tar"
    until_succeeds "the default service account" kubectl -n default get serviceaccount default
    sed "s|@IMAGE@|localhost/coredns:1|; s|@ADDRESS@|$dns_address|" "$here/dns.yaml" | kubectl apply -f - >&2
    until_succeeds "the node is ready" kubectl wait --for=condition=Ready "node/$name" --timeout=1s
    until_succeeds "DNS" kubectl -n kube-system wait --for=condition=Available deployment/coredns --timeout=1s
    echo "$state/admin.kubeconfig"
}

load() {
    local archive
    for archive in "$@"; do
        "$RUNTIME/ctr" -a "$state/containerd.sock" -n k8s.io images import "$archive" >/dev/null 2>&1 ||
            fail "cannot load $archive"
    done
}

down() {
    if running; then
        # The first process of a pid namespace takes all others with it, and the mounts and links in its other namespaces.
        local pid
        pid=$(cat "$state/pid")
        kill -KILL "$pid"
        until_succeeds "the node ends" test ! -d "/proc/$pid"
    fi
    ip link delete $link 2>/dev/null || true
    # What is left of pods are empty cgroups; the kernel takes a moment to see that they are.
    local cgroups
    for _ in 1 2 3 4 5; do
        cgroups=$(find /sys/fs/cgroup/ -maxdepth 2 -type d \( -name kubepods -o -name k8s.io \))
        [ -n "$cgroups" ] || break
        # shellcheck disable=SC2086
        find $cgroups -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.2
    done
    [ ! -f "$state/sysctl" ] || sysctl -qp "$state/sysctl"
    rm -rf "$state"
}

case ${1:-} in
up) up ;;
down) down ;;
__inside) inside ;;
load | enter | status | logs)
    running || fail "it is not up"
    build
    action=$1
    shift
    case $action in
    load) load "$@" ;;
    # Whoever enters a mount namespace is at its root.
    enter) exec nsenter -t "$(cat "$state/pid")" -m -n -u -p -- env --chdir="$PWD" "$@" ;;
    status) kubectl get pods -A -o wide ;;
    logs) mkdir -p "$1" && cp -R "$state/logs/." "$1/" ;;
    esac
    ;;
*)
    sed -n '2,10s/^# //p' "$0" >&2
    exit 64
    ;;
esac
