#!/bin/sh
# Installs, from Debian's packages, the programs that are missing: debian.sh WHAT-FOR PROGRAM:PACKAGE… Only what is missing,
# and no service of theirs is started. Fails loudly, telling what will fail for lack of them.
set -eu
purpose=$1
shift

missing=
for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -z "$missing" ] && exit 0

fail() {
    echo "debian.sh: cannot install:$missing ($1): $purpose will fail" >&2
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
install() { apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing >/dev/null; }
install 2>/dev/null || { apt-get update >/dev/null && install; } || fail "apt-get failed"
