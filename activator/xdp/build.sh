#!/bin/sh
# Builds the XDP program, and the one that measures it. Without arguments it replaces the committed objects, with `--check` it
# compares and fails if they differ. Needs a second compiler: Debian's rustc-web with its prebuilt `core` for BPF, and bpf-linker on the LLVM of the
# same version. What is missing is installed (as root, Debian 12's security archive); bpf-linker is built once into the
# user's cache. The objects depend on the versions below, so others are refused rather than used.
set -eu

RUSTC_VERSION=1.96.0
LLVM_VERSION=22.1.8
LINKER_VERSION=0.13.0
PACKAGES="rustc-web libstd-rust-web-dev-bpf llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev"
RUSTC=${BPF_RUSTC:-/usr/bin/rustc}

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

# Whether the compiler is there, and is the one.
compiler() {
    "$RUSTC" -vV 2>/dev/null | grep -qx "release: $RUSTC_VERSION" &&
        "$RUSTC" -vV | grep -qx "LLVM version: $LLVM_VERSION" &&
        [ -d "$("$RUSTC" --print sysroot)/lib/rustlib/bpfel-unknown-none" ] &&
        [ -x "$LLVM_PREFIX/bin/llvm-config" ]
}

export LLVM_PREFIX="${LLVM_PREFIX:-/usr/lib/llvm-22}"
if ! compiler; then
    command -v apt-get >/dev/null || fail "no apt-get: install $PACKAGES with this system's own packages"
    [ "$(id -u)" = 0 ] || fail "not root: run this script once as root, or install $PACKAGES"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list
    install() { apt-get install -y --no-install-recommends $PACKAGES >/dev/null; }
    install 2>/dev/null || { apt-get update >/dev/null && install; } || fail "cannot install $PACKAGES"
    compiler || fail "$RUSTC is not Rust $RUSTC_VERSION on LLVM $LLVM_VERSION with a core for bpfel-unknown-none:" \
        "$("$RUSTC" -vV 2>&1 | tr '\n' ' ')"
fi

tools=${XDG_CACHE_HOME:-$HOME/.cache}/podlight/bpf-linker-$LINKER_VERSION
if [ ! -x "$tools/bin/bpf-linker" ]; then
    mkdir -p "$tools"
    exec 9>"$tools.lock"
    flock 9
    if [ ! -x "$tools/bin/bpf-linker" ]; then
        echo "build.sh: building bpf-linker, once, for a minute or two" >&2
        cargo install --quiet --locked --root "$tools" "bpf-linker@$LINKER_VERSION" --no-default-features \
            --features llvm-22 2>&1 | grep -v '^warning: be sure to add' >&2 || true
        [ -x "$tools/bin/bpf-linker" ] || fail "cannot build bpf-linker $LINKER_VERSION"
    fi
fi
export PATH="$tools/bin:$PATH"

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../../target}/xdp
# The prebuilt `core` wants a stable compiler to accept unstable features; paths must not reach the objects.
export RUSTC RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$target"
export RUSTFLAGS="-C target-cpu=v3 --remap-path-prefix=$here=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
unset CARGO_INCREMENTAL
cd "$here/program"
cargo build --quiet --release --locked --target bpfel-unknown-none || fail "the programs do not build"
for name in podlight replay; do
    built=$target/bpfel-unknown-none/release/$name
    object=$here/$name.o
    if [ "${1:-}" = --check ]; then
        cmp "$built" "$object" || fail "activator/xdp/$name.o is not what its source gives: run make xdp and commit it"
        echo "activator/xdp/$name.o is what its source gives ($(wc -c <"$object") bytes)"
    else
        cp "$built" "$object"
        chmod 644 "$object"
        echo "activator/xdp/$name.o: $(wc -c <"$object") bytes"
    fi
done
