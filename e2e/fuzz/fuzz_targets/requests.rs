//! The raw bytes of requests as the proxy's guard sees them: where they are cut changes nothing, and of what it lets pass, hyper's parser
//! and a plain reading of RFC 9112 find as many requests as it does, each with one kind of length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podlight_activator::proxy::fuzz_guard;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let whole = fuzz_guard(&[bytes]);
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let pieces = fuzz_guard(&[first, second]);
    assert_eq!((whole.heads, &whole.refusal), (pieces.heads, &pieces.refusal), "a cut changes what is refused");
    if whole.refusal.is_none() {
        assert_eq!(whole, pieces, "a cut changes what passes");
        assert_eq!(whole.passed, bytes, "what is not refused passes, every byte of it");
    } else {
        assert!(bytes.starts_with(&whole.passed) && bytes.starts_with(&pieces.passed), "bytes are changed");
    }
    read(&whole.passed, whole.heads, whole.between);
});

/// Reads requests as hyper does, and compares how many there are.
fn read(mut bytes: &[u8], heads: u64, between: bool) {
    let mut found = 0;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 101];
        let mut request = httparse::Request::new(&mut headers);
        let end = match request.parse(bytes) {
            Ok(httparse::Status::Complete(end)) => end,
            // hyper refuses it, and whatever follows is never looked at.
            Err(_) => return assert!(found <= heads, "{found} requests, and {heads} heads"),
            Ok(httparse::Status::Partial) => {
                assert_eq!(found, heads, "a head that has not ended counts, or one that has does not");
                return;
            }
        };
        found += 1;
        let values = |name: &str| {
            let of = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            of.map(|header| header.value.trim_ascii()).collect::<Vec<_>>()
        };
        let (codings, lengths) = (values("transfer-encoding"), values("content-length"));
        let rest = &bytes[end..];
        let body = match (&codings[..], &lengths[..]) {
            ([], []) => Some(0),
            ([], [length]) => {
                assert!(length.iter().all(u8::is_ascii_digit) && !length.is_empty(), "{length:?} is no length");
                let length = std::str::from_utf8(length).ok().and_then(|text| text.parse::<u64>().ok());
                let length = length.expect("a length that nobody could have is refused");
                usize::try_from(length).ok().filter(|length| *length <= rest.len())
            }
            ([coding], []) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked"), "{coding:?} is not chunked");
                chunked(rest)
            }
            _ => panic!("{} lengths and {} codings in one request", lengths.len(), codings.len()),
        };
        let Some(body) = body else {
            assert!(!between, "a body that has not ended counts as one that has");
            return assert_eq!(found, heads, "a body is read as requests");
        };
        bytes = &rest[body..];
    }
}

/// The length of a chunked body with its trailers; none when it has not ended.
fn chunked(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match httparse::parse_chunk_size(&bytes[at..]).expect("a size that cannot be read is refused") {
            httparse::Status::Partial => return None,
            httparse::Status::Complete((line, 0)) => {
                at += line;
                break;
            }
            httparse::Status::Complete((line, size)) => {
                at = usize::try_from(size).ok()?.checked_add(at + line)?;
                let end = bytes.get(at..at.checked_add(2)?)?;
                assert_eq!(end, b"\r\n", "a chunk is longer than it says");
                at += 2;
            }
        }
    }
    loop {
        let line = bytes[at..].iter().position(|byte| *byte == b'\n')? + 1;
        at += line;
        if line == 2 {
            return Some(at);
        }
    }
}
