use super::*;

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

fn request(version: Version, uri: &str, hosts: &[&'static str]) -> Request<()> {
    let mut request = Request::get(uri).version(version).body(()).expect("a request");
    for host in hosts {
        request.headers_mut().append(HOST, HeaderValue::from_static(host));
    }
    request
}

#[test]
fn the_host_is_that_of_the_header_or_the_target() {
    let host = |version, uri, hosts: &[&'static str]| host(&request(version, uri, hosts)).map(str::to_owned).ok();
    assert_eq!(host(Version::HTTP_11, "/", &["a.test:80"]).as_deref(), Some("a.test:80"));
    assert_eq!(host(Version::HTTP_11, "http://A.test/", &["a.test"]).as_deref(), Some("A.test"));
    assert_eq!(host(Version::HTTP_2, "http://a.test/", &[]).as_deref(), Some("a.test"));
    for (version, uri, hosts) in [
        (Version::HTTP_11, "/", &[][..]),
        (Version::HTTP_11, "/", &[""]),
        (Version::HTTP_11, "/", &["a", "a"]),
        (Version::HTTP_11, "/", &["u@a"]),
        (Version::HTTP_11, "http://a/", &["b"]),
        (Version::HTTP_11, "http://a/", &[]),
        (Version::HTTP_2, "http://a/", &["b"]),
        (Version::HTTP_2, "/", &[]),
    ] {
        assert_eq!(host(version, uri, hosts), None, "{version:?} {uri} {hosts:?}");
    }
}

#[test]
fn headers_of_one_connection_end_here() {
    let mut there = headers(&[
        ("connection", "close, X-Mine"),
        ("connection", "x-other,host , content-length"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("x-mine", "1"),
        ("x-other", "1"),
        ("x-kept", "1"),
        ("host", "a"),
        ("content-length", "3"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ]);
    strip_hop_by_hop(&mut there);
    assert_eq!(names(&there), ["content-length", "host", "traceparent", "x-kept"]);
}

#[test]
fn te_keeps_trailers_only() {
    let mut there = headers(&[("te", "gzip;q=0.5, Trailers"), ("connection", "TE")]);
    strip_hop_by_hop(&mut there);
    assert_eq!(there[TE], "trailers");
}

#[test]
fn an_upgrade_needs_both_headers_and_is_not_http2() {
    let asks = |connection: &'static str, protocol: &'static str| {
        upgrade(&headers(&[("connection", connection), ("upgrade", protocol)])).is_some()
    };
    assert!(asks("keep-alive, Upgrade", "websocket"));
    assert!(!asks("keep-alive", "websocket"));
    assert!(!asks("upgrade, http2-settings", "h2c"));
    assert!(!asks("upgrade", "websocket, h2c"));
    assert_eq!(upgrade(&headers(&[("connection", "upgrade")])), None);
}

#[test]
fn grpc_is_not_grpc_web() {
    let is = |content_type| is_grpc(&headers(&[("content-type", content_type)]));
    assert!(is("application/grpc") && is("application/grpc+proto"));
    assert!(!is("application/grpc-web+proto") && !is("text/plain") && !is_grpc(&HeaderMap::new()));
}

#[test]
fn a_request_changes_its_version_and_back() {
    let mut there = request(Version::HTTP_2, "https://a.test:8443/x?y", &[]);
    into_http1(&mut there);
    assert_eq!((there.uri().to_string(), there.version()), ("/x?y".to_owned(), Version::HTTP_11));
    assert_eq!(there.headers()[HOST], "a.test:8443");
    into_http2(&mut there, Scheme::HTTP);
    assert_eq!((there.uri().to_string(), there.version()), ("http://a.test:8443/x?y".to_owned(), Version::HTTP_2));
    assert!(!there.headers().contains_key(HOST));
    let mut all = request(Version::HTTP_11, "*", &["a.test"]);
    into_http1(&mut all);
    assert_eq!(all.uri(), "*");
}

mod forwarded {
    use super::*;

    fn told(address: &str, tls: bool, trusted: &[&str], there: &mut HeaderMap, host: &'static str) {
        let trusted: Vec<_> = trusted.iter().map(|net| net.parse().expect("a network")).collect();
        let forwarding = Forwarding::new(address.parse().expect("an address"), tls, &trusted);
        forwarding.apply(there, HeaderValue::from_static(host));
    }

    #[test]
    fn what_an_untrusted_client_says_is_replaced() {
        let mut there = headers(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "b.test"),
            ("forwarded", "for=1.1.1.1"),
        ]);
        told("10.0.0.9", false, &["10.1.0.0/16"], &mut there, "a.test");
        assert_eq!(there.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["10.0.0.9"]);
        assert_eq!(there["x-forwarded-proto"], "http");
        assert_eq!(there["x-forwarded-host"], "a.test");
        assert_eq!(there["forwarded"], "for=10.0.0.9;host=a.test;proto=http");
    }

    #[test]
    fn what_a_trusted_client_says_is_added_to() {
        let mut there =
            headers(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2"), ("forwarded", "for=x")]);
        told("10.1.0.9", true, &["10.1.0.0/16"], &mut there, "a.test");
        assert_eq!(there["x-forwarded-for"], "1.1.1.1, 2.2.2.2, 10.1.0.9");
        assert_eq!(there["x-forwarded-proto"], "https");
        assert_eq!(there["forwarded"], "for=x, for=10.1.0.9;host=a.test;proto=https");
    }

    #[test]
    fn colons_are_quoted() {
        let mut there = HeaderMap::new();
        told("2001:db8::1", false, &[], &mut there, "[::1]:80");
        assert_eq!(there["x-forwarded-for"], "2001:db8::1");
        assert_eq!(there["forwarded"], "for=\"[2001:db8::1]\";host=\"[::1]:80\";proto=http");
    }
}

#[test]
fn te_is_named_as_one_of_the_connection_it_goes_on_and_of_no_other() {
    let mut there = request(Version::HTTP_2, "http://a.test/", &[]);
    there.headers_mut().insert(TE, TRAILERS);
    into_http1(&mut there);
    assert_eq!(there.headers()[CONNECTION], "te");
    // It is tried on a connection of HTTP/2 next.
    into_http2(&mut there, Scheme::HTTP);
    assert!(!there.headers().contains_key(CONNECTION) && there.headers().contains_key(TE));
    set_upgrade(there.headers_mut(), HeaderValue::from_static("echo"));
    into_http1(&mut there);
    into_http1(&mut there);
    assert_eq!(there.headers()[CONNECTION], "upgrade, te");
}
