//! Requests as the XDP program parses them, against the plainest parser; once a request is understood, more bytes change
//! nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podlight_xdp::{ANY_ADDRESS, Head, Key, MAX_PATH, Request};

fn parse(request: &[u8]) -> Request {
    Head::new(request).parse(request.len())
}

/// The path, if the request begins with `GET <path> HTTP/1.<digit>` and a line break.
fn plainest(request: &[u8]) -> Option<&[u8]> {
    let line = request.split(|byte| *byte == b'\n').next()?.strip_suffix(b"\r")?;
    let rest = line.strip_prefix(b"GET ")?;
    let (minor, rest) = rest.split_last()?;
    let path = rest.strip_suffix(b" HTTP/1.")?;
    let is_path = path.first() == Some(&b'/') && path.len() <= MAX_PATH && path.iter().all(|byte| *byte > b' ');
    (is_path && minor.is_ascii_digit() && request.len() > line.len() + 1).then_some(path)
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, request) = input;
    let whole = parse(request);
    match (whole, plainest(request)) {
        (Request::Get(length), Some(path)) => {
            assert_eq!(path, &request[4..4 + length]);
            assert!(Key::new(ANY_ADDRESS, 80, path).is_some());
        }
        (Request::Incomplete | Request::Method | Request::Malformed, None) => {}
        (request, path) => panic!("{request:?} where the path is {path:?}"),
    }
    let part = parse(&request[..usize::from(cut).min(request.len())]);
    assert!(part == Request::Incomplete || part == whole, "{part:?} and then {whole:?}");
});
