#!/bin/sh
# Prints the path of a Chromium, its only line on stdout, and installs Debian's package first where there is none. CHROMIUM
# names another one instead; then nothing is installed.
set -eu

fail() {
    echo "chromium.sh: $*" >&2
    exit 1
}

if [ -n "${CHROMIUM:-}" ]; then
    command -v "$CHROMIUM" || fail "CHROMIUM is $CHROMIUM, which cannot be run"
    exit 0
fi

if ! command -v chromium >/dev/null; then
    hint="install Debian's package chromium, or set CHROMIUM to a Chromium's path"
    command -v apt-get >/dev/null || fail "there is no chromium and no apt-get: $hint"
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || fail "there is no chromium, and only root can install it: $hint"
        as_root=sudo
    fi
    echo "chromium.sh: installing chromium, once" >&2
    install="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -qq -y"
    install="$install --no-install-recommends chromium"
    # The lists at hand may be good; where they are not, they are brought up to date.
    $install >&2 || {
        $as_root apt-get update -qq >&2 && $install >&2
    } || fail "chromium cannot be installed: $hint"
fi
command -v chromium || fail "chromium was installed and is not on the PATH"
