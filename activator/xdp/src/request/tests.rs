use proptest::prelude::*;

use super::*;
use crate::{ANY_ADDRESS, Key};

fn parse(request: &[u8]) -> Request {
    Head::new(request).parse(request.len())
}

/// The same rules in the plainest way.
fn oracle(request: &[u8]) -> Request {
    let head = &request[..request.len().min(4)];
    if head != b"GET ".get(..head.len()).expect("at most four bytes") || head.len() < 4 {
        for (place, byte) in head.iter().enumerate() {
            if !(byte.is_ascii_uppercase() || (*byte == b' ' && place > 0)) {
                return Request::Malformed;
            }
        }
        return if head.len() < 4 { Request::Incomplete } else { Request::Method };
    }
    let rest = &request[4..];
    let end = rest.iter().position(|byte| *byte < 0x21).unwrap_or(rest.len());
    if end > MAX_PATH || rest.first().is_some_and(|first| *first != b'/') {
        return Request::Malformed;
    }
    let version = &rest[end..];
    for place in 0..11 {
        let Some(byte) = version.get(place) else { return Request::Incomplete };
        let fits = if place == 8 { byte.is_ascii_digit() } else { *byte == b" HTTP/1.x\r\n"[place] };
        if !fits {
            return Request::Malformed;
        }
    }
    Request::Get(end)
}

#[test]
fn whole_requests_are_understood() {
    for (request, length) in [
        ("GET / HTTP/1.0\r\n\r\n".to_owned(), 1),
        ("GET /ready/default/web HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 18),
        ("GET /ready/default/web?now HTTP/1.1\r\n".to_owned(), 22),
        (format!("GET /{} HTTP/1.1\r\n", "x".repeat(MAX_PATH - 1)), MAX_PATH),
    ] {
        assert_eq!(parse(request.as_bytes()), Request::Get(length), "{request}");
    }
}

#[test]
fn a_request_cut_anywhere_in_its_first_line_is_incomplete() {
    let request = b"GET /ready/default/web HTTP/1.1\r\n";
    for length in 0..request.len() {
        assert_eq!(parse(&request[..length]), Request::Incomplete, "{length}");
    }
}

#[test]
fn other_methods_are_told_apart_from_other_protocols() {
    for request in
        ["HEAD / HTTP/1.1\r\n", "POST / HTTP/1.1\r\n", "PUT / HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n", "GETS / H"]
    {
        assert_eq!(parse(request.as_bytes()), Request::Method, "{request}");
    }
    let others: [&[u8]; 12] = [
        b"\x16\x03\x01\x02\x00\x01",
        b"\0",
        b" GET / HTTP/1.1\r\n",
        b"get / HTTP/1.1\r\n",
        b"GET\t/ HTTP/1.1\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET http://a/ HTTP/1.1\r\n",
        b"GET /\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET / HTTP/1.x\r\n",
        b"GET /a\0b HTTP/1.1\r\n",
        b"GET / HTTP/1.1\n\n",
    ];
    for request in others {
        assert_eq!(parse(request), Request::Malformed, "{request:?}");
    }
}

#[test]
fn a_path_longer_than_any_answers_is_malformed_as_soon_as_that_is_seen() {
    let request = format!("GET /{}", "x".repeat(8_192));
    assert_eq!(parse(&request.as_bytes()[..4 + MAX_PATH]), Request::Incomplete);
    for length in 5 + MAX_PATH..request.len() {
        assert_eq!(parse(&request.as_bytes()[..length]), Request::Malformed, "{length}");
    }
}

/// Requests that are nearly right, cut and damaged.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let path = prop::collection::vec(prop_oneof![8 => 0x21_u8..0x7f, 1 => any::<u8>()], 0..200);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (path, damage, 0_usize..400).prop_map(|(path, damage, cut)| {
        let mut request = [b"GET /".as_slice(), &path, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        for (place, byte) in damage {
            let place = place.index(request.len());
            request[place] = byte;
        }
        request.truncate(cut);
        request
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn the_parser_agrees_with_the_plainest_one(request in prop_oneof![nearly(), prop::collection::vec(any::<u8>(), 0..300)]) {
        prop_assert_eq!(parse(&request), oracle(&request));
    }

    #[test]
    fn what_lies_behind_the_bytes_that_have_come_changes_nothing(request in nearly(), come in any::<prop::sample::Index>()) {
        let come = come.index(request.len() + 1);
        prop_assert_eq!(Head::new(&request).parse(come), oracle(&request[..come]));
    }

    #[test]
    fn the_paths_words_are_those_of_its_key(path in prop::collection::vec(0x21_u8..0x7f, 1..MAX_PATH)) {
        let request = [b"GET ".as_slice(), &path, b" HTTP/1.1\r\n"].concat();
        let (head, key) = (Head::new(&request), Key::new(ANY_ADDRESS, 1, &path).expect("it fits"));
        let words: Vec<u64> = (0..PATH_WORDS).map(|place| head.path_word(place, path.len())).collect();
        prop_assert_eq!(words, key.path);
    }
}
