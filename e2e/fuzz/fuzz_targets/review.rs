//! What an API server, or whoever else reaches the webhook, may ask it. No pod is refused, and none is injected twice.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| assert!(!podlight_activator::webhook::fuzz_review(body)));
