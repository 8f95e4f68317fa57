//! Events: the body of a request, from bytes to a verified event. What verifies must say so again when it is
//! signed anew.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podlight_proto::{SigningKey, UnverifiedEvent};

fuzz_target!(|body: &[u8]| {
    let Ok(unverified) = UnverifiedEvent::parse(body) else { return };
    let event = unverified.unverified_event().clone();
    let _ = unverified.verify();
    let jws = SigningKey::from_seed(&[7; 32]).sign(&event, 1_760_000_000, None);
    let again = UnverifiedEvent::parse(jws.as_bytes()).expect("what was read can be written and read again");
    assert_eq!(again.unverified_event(), &event);
    again.verify().expect("what was just signed verifies");
});
