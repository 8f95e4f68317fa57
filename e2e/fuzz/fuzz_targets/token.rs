//! ServiceAccount tokens, before anybody has vouched for them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    podlight_activator::ingest::fuzz_token(text, 1_760_000_000_000);
});
