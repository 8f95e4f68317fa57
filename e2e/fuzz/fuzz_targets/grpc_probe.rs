//! The grpc probe's side of a connection to an app that sends whatever it likes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| {
    podlight_sidecar::probe::fuzz_grpc(answer);
});
