#!/bin/sh
# Installs what we are measured beside and spoken to with: nginx, HAProxy, h2load, wrk, curl, iperf3, nmap, tcpdump, and ip and
# ethtool for namespaces of the network's tests, from Debian's packages.
# Only what is missing, and no service of theirs is started. Fails loudly when that cannot be done.
set -eu

missing=
for pair in nginx:nginx-light haproxy:haproxy h2load:nghttp2-client curl:curl wrk:wrk iperf3:iperf3 nmap:nmap \
    tcpdump:tcpdump ip:iproute2 ethtool:ethtool; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -z "$missing" ] && exit 0

fail() {
    echo "peers.sh: cannot install:$missing ($1): figures beside them and tests with them will fail" >&2
    exit 1
}
command -v apt-get >/dev/null 2>&1 || fail "no apt-get: install them with this system's own packages"
[ "$(id -u)" = 0 ] || fail "not root: run this script once as root"

# Debian starts a service that it installs unless this file forbids it. One that is there already stays as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
install() { apt-get install -y --no-install-recommends $missing >/dev/null; }
install 2>/dev/null || { apt-get update >/dev/null && install; } || fail "apt-get failed"
