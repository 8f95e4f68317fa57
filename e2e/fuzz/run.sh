#!/bin/sh
# Runs each fuzz target for the given number of seconds with libFuzzer's coverage guidance, on the stable toolchain:
# the flags are those of `cargo fuzz --sanitizer none`. Debug assertions and overflow checks are on.
set -eu
seconds=${1:?seconds per target}
cd "$(dirname "$0")"
target=$(rustc --print host-tuple)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-../../target/fuzz}
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
 -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
RUSTFLAGS=$(echo "$RUSTFLAGS" | tr '\n' ' ')
cargo build --release --locked --target "$target"
passed=0
for source in fuzz_targets/*.rs; do
    name=$(basename "$source" .rs)
    corpus=$CARGO_TARGET_DIR/corpus/$name
    mkdir -p "$corpus" "$CARGO_TARGET_DIR/artifacts/$name"
    seeds=
    if [ -d "seeds/$name" ]; then seeds=seeds/$name; fi
    # shellcheck disable=SC2086 # no seeds, no argument
    "$CARGO_TARGET_DIR/$target/release/$name" -max_total_time="$seconds" -max_len=20000 -timeout=5 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="$CARGO_TARGET_DIR/artifacts/$name/" "$corpus" $seeds
    passed=$((passed + 1))
done
echo "$passed passed, 0 failed"
