//! Replies: what an activator, or whoever answers in its place, sends to a sidecar.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podlight_proto::{Accepted, Problem};

fuzz_target!(|body: &[u8]| {
    let _ = serde_json::from_slice::<Problem>(body);
    let Ok(accepted) = serde_json::from_slice::<Accepted>(body) else { return };
    let json = serde_json::to_vec(&accepted).expect("plain data");
    assert_eq!(serde_json::from_slice::<Accepted>(&json).expect("written here"), accepted);
});
