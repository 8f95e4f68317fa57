use proptest::prelude::*;

use super::*;

const MOST: usize = 1024;

/// What passes, and whether the end is refused.
fn pass(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
    let mut guard = Guard::new(MOST, Arc::default());
    (guard.pass(pieces), guard.refusal().is_some())
}

fn is_refused(request: &str) -> bool {
    let whole = pass(&[request.as_bytes()]);
    for cut in 0..request.len() {
        let (first, second) = request.as_bytes().split_at(cut);
        assert_eq!(pass(&[first, second]).1, whole.1, "{request:?} cut at {cut}");
    }
    whole.1
}

fn get(header: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n")
}

#[test]
fn ordinary_requests_pass_whole() {
    let requests = [
        get("x: y"),
        get("x:"),
        get("x: a\tb: c"),
        "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\r\n".to_owned(),
        "POST / HTTP/1.1\r\nCONTENT-LENGTH:0\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;x=y\r\na\n\r\nb\r\nA\r\n0123456789\r\n0\r\nt: u\r\n\r\n".to_owned(),
    ];
    let all = requests.concat();
    for request in requests.iter().chain([&all]) {
        assert_eq!(pass(&[request.as_bytes()]), (request.clone().into_bytes(), false), "{request:?}");
        assert!(!is_refused(request), "{request:?}");
    }
}

#[test]
fn ambiguous_heads_are_refused_however_they_are_cut() {
    for header in [
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 1",
        "Content-Length: 1\r\ncontent-length: 1",
        "Content-Length: 1,1",
        "Content-Length: -1",
        "Content-Length: ",
        "Content-Length: 18446744073709551616",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding :chunked",
        "x: y\r\n z: folded",
        "x: y\r\n\tfolded",
        "x: y\nz: bare line feed",
        "x: y\rz: bare carriage return",
        "x: y\r\r",
        "no colon",
        ": no name",
    ] {
        assert!(is_refused(&get(header)), "{header:?}");
    }
    assert!(is_refused("GET / HTTP/1.1\nHost: a\n\n"));
}

#[test]
fn ambiguous_chunks_are_refused() {
    for body in [
        "x\r\n",
        "\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "0\r\nt: u\n\r\n",
        "0\r\n folded\r\n\r\n",
    ] {
        assert!(is_refused(&format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}")), "{body:?}");
    }
}

#[test]
fn what_came_before_a_bad_head_passes_and_none_of_it_does() {
    let good = format!("{}POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", get("x: y"));
    let both = format!("{good}{}", get("x : y"));
    assert_eq!(pass(&[both.as_bytes()]), (good.into_bytes(), true));
}

#[test]
fn a_head_beyond_its_bound_is_refused_before_its_end() {
    assert!(is_refused(&get(&format!("x: {}", "y".repeat(MOST)))));
    assert!(pass(&["a".repeat(MOST + 1).as_bytes()]).1);
    assert!(pass(&["\r\n".repeat(MOST).as_bytes()]).1);
    let trailers = "t: u\r\n".repeat(MOST);
    assert!(pass(&[format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{trailers}").as_bytes()]).1);
}

#[test]
fn bytes_behind_an_upgrade_are_http_or_not_as_the_answer_says() {
    let tunnelled = Arc::new(AtomicBool::new(false));
    let (head, behind) = (get("Upgrade: x"), get("x : y"));
    for tunnel in [true, false] {
        tunnelled.store(false, Ordering::Release);
        let mut guard = Guard::new(MOST, Arc::clone(&tunnelled));
        let bytes = format!("{head}{behind}").into_bytes();
        assert_eq!(guard.take(&bytes), head.len());
        tunnelled.store(tunnel, Ordering::Release);
        assert_eq!(guard.take(&bytes[head.len()..]), if tunnel { behind.len() } else { 0 });
        assert_eq!(guard.refusal().is_none(), tunnel);
    }
}

#[test]
fn a_head_is_under_way_from_its_first_byte_to_its_empty_line() {
    let mid = |bytes: &str| {
        let mut guard = Guard::new(MOST, Arc::default());
        guard.take(bytes.as_bytes());
        guard.mid_head()
    };
    assert!(!mid("") && !mid("\r\n") && mid("G") && mid("GET / HTTP/1.1\r\n") && mid("GET / HTTP/1.1\r\nHost: a\r\n"));
    assert!(
        !mid(&get("x: y"))
            && !mid("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
            && mid(&format!("{}G", get("x: y")))
    );
}

proptest! {
    #[test]
    fn cuts_change_nothing(pieces in prop::collection::vec("(GET / HTTP/1.1\r\n|x: y\r\n|content-length: 3\r\n|transfer-encoding: chunked\r\n|\r\n|abc|3\r\n|0\r\n|[ -~\r\n]{1,3})", 0..12), cut in 0usize..64) {
        let bytes = pieces.concat().into_bytes();
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let (whole, cut) = (pass(&[&bytes]), pass(&[first, second]));
        prop_assert_eq!(whole.1, cut.1);
        // Cut, a bad head may have begun to pass; never to its end.
        prop_assert!(cut.0.starts_with(&whole.0));
    }
}
