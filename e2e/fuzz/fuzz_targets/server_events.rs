//! Server-sent events, as the command-line client reads them from whoever answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| podlight_activator::status::fuzz_events(bytes));
