#!/bin/bash
# A cluster that `kind create cluster` makes, from a node image that kind-image.sh builds, in a docker of its own:
#   kind.sh up             starts it and prints its kubeconfig's path, the only line on stdout
#   kind.sh load TAR…      loads images from archives
#   kind.sh enter CMD…     runs a command in docker's namespaces and the node's network: pods and Services can be reached
#   kind.sh status         whether it is up, and its pods
#   kind.sh logs FOLDER    copies the logs of the node
#   kind.sh down           ends it, docker with it, and nothing else
# Docker (Debian's package, where there is none) runs in mount, pid, uts and network namespaces, so that its rules, links
# and mounts stay in there. Its images are kept for the next time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
state=/var/lib/podlight-e2e/kind
cluster=podlight-e2e
socket=$state/docker.sock
# How long docker may take to start; it takes seconds.
deadline=60

fail() {
    echo "kind.sh: $*" >&2
    exit 1
}

build() {
    [ "$(id -u)" = 0 ] || fail "namespaces and docker take root"
    "$here/../debian.sh" "kind" dockerd:docker.io docker:docker.io runc:runc iptables:iptables jq:jq setpriv:util-linux \
        ip:iproute2
    export PATH=$PATH:/usr/sbin:/sbin DOCKER_HOST=unix://$socket KUBECONFIG=$state/kubeconfig
    kind=$("$here/../cluster/build.sh" kind)/kind
    node=$("$here/../cluster/build.sh" node)
}

running() {
    [ -f "$state/pid" ] && grep -qz __inside "/proc/$(cat "$state/pid")/cmdline" 2>/dev/null
}

# Runs a command where docker runs.
beside_docker() {
    nsenter -t "$(cat "$state/pid")" -m -n -u -p -- "$@"
}

# The first process of docker's namespaces; bash, because it buries orphans while it waits.
inside() {
    trap 'exit 0' TERM
    mount --make-rshared /
    mount -t tmpfs tmpfs /run
    ip link set lo up
    sysctl -qw net.ipv4.ip_forward=1
    dockerd --data-root "$state/data" --exec-root /run/docker --pidfile /run/docker.pid --host "$DOCKER_HOST" \
        --storage-driver overlay2 --add-runtime bounded="$here/runc-bounded.sh" --default-runtime bounded &
    while :; do
        wait || true
        sleep 1
    done
}

start_docker() {
    # kind gives them to the node.
    mkdir -p "$state/data" /lib/modules
    chmod 700 "$state"
    rm -f "$socket"
    setsid unshare --mount --pid --uts --net --fork --kill-child --mount-proc "$here/kind.sh" __inside \
        >"$state/docker.log" 2>&1 </dev/null &
    local parent=$! end=$((SECONDS + deadline))
    until pgrep -P $parent >"$state/pid"; do sleep 0.05; done
    until docker info >/dev/null 2>&1; do
        running || fail "docker ended: $(tail -n 5 "$state/docker.log")"
        [ $SECONDS -lt $end ] || fail "docker does not answer; its log is $state/docker.log"
        sleep 0.1
    done
}

up() {
    local archive image
    build
    ! running || fail "it is up already; \`kind.sh down\` ends it"
    archive=$("$here/kind-image.sh")
    image=podlight-e2e-node:$(basename "$archive" .tar)
    # Of one that was killed.
    end_docker
    start_docker
    if ! docker image inspect "$image" >/dev/null 2>&1; then
        docker images --quiet podlight-e2e-node | xargs -r docker rmi --force >/dev/null
        docker import --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' --change \
            'ENV container=docker PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
            "$archive" "$image" >/dev/null
    fi
    beside_docker "$kind" delete cluster --name $cluster >&2
    beside_docker "$kind" create cluster --image "$image" --config "$here/kind.yaml" --wait 120s >&2
    # The node's own address and port, for whoever is in its network.
    sed -i 's|server: .*|server: https://127.0.0.1:6443|' "$KUBECONFIG"
    enter "$node/kubectl" -n kube-system wait --for=condition=Available deployment/coredns --timeout=60s >&2
    echo "$KUBECONFIG"
}

enter() {
    local pid
    pid=$(docker inspect --format '{{.State.Pid}}' $cluster-control-plane)
    # Whoever enters a mount namespace is at its root.
    beside_docker nsenter --net="/proc/$pid/ns/net" -- env --chdir="$PWD" "$@"
}

load() {
    local archive
    for archive in "$@"; do
        beside_docker "$kind" load image-archive "$archive" --name $cluster >&2
    done
}

end_docker() {
    if running; then
        # The first process of a pid namespace takes all others with it.
        local pid
        pid=$(cat "$state/pid")
        kill -KILL "$pid"
        while [ -d "/proc/$pid" ]; do sleep 0.1; done
    fi
    # What is left of containers are empty cgroups; the kernel takes a moment to see that they are.
    local cgroups
    for _ in 1 2 3 4 5; do
        cgroups=$(find /sys/fs/cgroup/ -maxdepth 2 -type d -name docker)
        [ -n "$cgroups" ] || break
        # shellcheck disable=SC2086
        find $cgroups -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.2
    done
    rm -f "$state/pid"
}

down() {
    if running; then
        beside_docker "$kind" delete cluster --name $cluster >&2 || true
    fi
    end_docker
}

case ${1:-} in
up) up ;;
__inside) inside ;;
down)
    build
    down
    ;;
load | enter | status | logs)
    running || fail "it is not up"
    build
    action=$1
    shift
    case $action in
    load) load "$@" ;;
    enter) enter "$@" ;;
    status) enter "$node/kubectl" get pods -A -o wide ;;
    # It fails at last, for the want of crictl in the node, which it asks for the list of images.
    logs) beside_docker "$kind" export logs "$(realpath -m "$1")" --name $cluster >/dev/null 2>&1 || true ;;
    esac
    ;;
*)
    sed -n '2,10s/^# //p' "$0" >&2
    exit 64
    ;;
esac
