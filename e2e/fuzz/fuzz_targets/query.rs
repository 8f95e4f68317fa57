//! What the query API reads of a request before it asks who is there: the query string, Last-Event-ID, the token.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (query, last_event_id, authorization) = input;
    podlight_activator::api::fuzz_query(query, last_event_id, authorization);
});
