//! The API server's token keys, and the header that carries a token.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podlight_activator::ingest::{fuzz_authorization, fuzz_keys};

fuzz_target!(|bytes: &[u8]| {
    fuzz_keys(bytes);
    fuzz_authorization(bytes);
});
