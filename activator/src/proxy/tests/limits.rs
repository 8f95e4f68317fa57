use super::*;

async fn refused(scene: &Scene, request: &str, status: u16, label: &str) {
    let mut peer = scene.connect().await;
    peer.send(request).await;
    let answer = peer.rest().await;
    let shown: String = request.chars().take(200).collect();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer:?}");
    assert!(answer.contains(&format!("podlight-error: {label}\r\n")), "{shown:?}: {answer:?}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{shown:?}: {answer:?}");
}

#[tokio::test]
async fn what_two_parsers_may_read_in_two_ways_never_reaches_a_pod() {
    let mut pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    for headers in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 3",
        "content-length: 3\r\ncontent-length: 3",
        "content-length: 3\r\ncontent-length: 4",
        "content-length: 3, 3",
        "content-length: +3",
        "content-length: 0x3",
        "content-length: 99999999999999999999",
        "content-length:",
        "content-length : 3",
        "transfer-encoding : chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding:\u{b}chunked",
        "x: y\r\n transfer-encoding: chunked",
        "x: y\n",
        "x: y\rz",
        "x y",
        ": y",
    ] {
        let request = format!("POST / HTTP/1.1\r\nhost: web.test\r\n{headers}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        refused(&scene, &request, 400, "malformed").await;
    }
    assert_eq!(pod.connections(), 0);
}

#[tokio::test]
async fn a_request_before_a_bad_one_is_answered() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    // One byte more than it says.
    peer.send("POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 3\r\n\r\nabcd\r\n\r\n").await;
    let first = peer.answer().await;
    assert!(first.ends_with("\n\nabc"), "{first}");
    let second = peer.rest().await;
    assert!(second.starts_with("HTTP/1.1 400 "), "{second}");
}

#[tokio::test]
async fn large_headers_are_refused_while_they_are_sent() {
    let scene = Scene::of(settings(), &[]);
    let large = format!("GET / HTTP/1.1\r\nhost: web.test\r\nx: {}\r\n\r\n", "y".repeat(100 * 1024));
    refused(&scene, &large, 431, "headers-too-large").await;
    let many = "x: y\r\n".repeat(20_000);
    refused(&scene, &format!("GET / HTTP/1.1\r\nhost: web.test\r\n{many}\r\n"), 431, "headers-too-large").await;
}

#[tokio::test]
async fn headers_that_do_not_come_are_not_waited_for() {
    let timeouts = Timeouts { head: Duration::from_millis(50), ..config().limits.timeouts };
    let limits = Limits { timeouts, ..config().limits };
    let scene = Scene::start(ProxyConfig { limits, ..config() }, settings(), &[]);
    refused(&scene, "GET / HTTP/1.1\r\nhost: web", 408, "headers-timeout").await;
}

#[tokio::test]
async fn silent_connections_are_closed() {
    let timeouts = Timeouts { idle: Duration::from_millis(50), ..config().limits.timeouts };
    let limits = Limits { timeouts, ..config().limits };
    let pod = Echo::http1().await;
    let scene = Scene::start(ProxyConfig { limits, ..config() }, settings(), &[pod.address]);
    let mut new = scene.connect().await;
    assert_eq!(new.rest().await, "");
    let mut used = scene.connect().await;
    used.send(GET).await;
    used.answer().await;
    assert_eq!(used.rest().await, "");
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room() {
    let limits = Limits { connections: 1, ..config().limits };
    let pod = Echo::http1().await;
    let scene = Scene::start(ProxyConfig { limits, ..config() }, settings(), &[pod.address]);
    let mut first = scene.connect().await;
    first.send(GET).await;
    first.answer().await;
    let mut second = scene.connect().await;
    second.send(GET).await;
    assert!(second.answer().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(first.rest().await, "");
}

#[tokio::test]
async fn what_a_trusted_proxy_says_is_added_to() {
    let pod = Echo::http1().await;
    let trusted = vec!["127.0.0.0/8".parse().expect("a network")];
    let scene = Scene::start(ProxyConfig { trusted, ..config() }, settings(), &[pod.address]);
    let said = "x-forwarded-for: 10.1.1.1\r\nx-forwarded-proto: https\r\n";
    let answer = scene.ask(&format!("GET / HTTP/1.1\r\nhost: web.test\r\n{said}\r\n")).await;
    assert!(answer.contains("x-forwarded-for: 10.1.1.1, 127.0.0.1\n"), "{answer}");
    assert!(answer.contains("x-forwarded-proto: https\n"), "{answer}");
}

#[tokio::test]
async fn several_workers_share_one_address() {
    let pod = Echo::http1().await;
    let scene = Scene::start(ProxyConfig { workers: 3, ..config() }, settings(), &[pod.address]);
    for _ in 0..20 {
        assert!(scene.ask(GET).await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(scene.proxy.end().await, 0);
}

#[tokio::test]
async fn a_request_beyond_the_most_connections_to_pods_is_told_so() {
    let pod = Pod::new().await;
    let few = ProxyConfig { upstream_connections: 1, connect_timeout: Duration::from_millis(100), ..config() };
    let scene = Scene::start(few, settings(), &[pod.address]);
    let mut first = scene.connect().await;
    first.send(GET).await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    let second = scene.ask(GET).await;
    assert!(second.starts_with("HTTP/1.1 503 ") && second.contains("podlight-error: connections\r\n"), "{second}");
    assert!(second.contains("retry-after: "), "{second}");
    // Nothing is held against the pod for that, and the one connection serves whoever comes next.
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert!(first.answer().await.starts_with("HTTP/1.1 200 "));
    first.send(GET).await;
    there.until("\r\n\r\n").await;
}

#[tokio::test]
async fn idle_connections_to_pods_make_room_for_others() {
    let (mut one, mut other) = (Echo::http1().await, Echo::http1().await);
    let scene =
        Scene::start(ProxyConfig { upstream_connections: 1, ..config() }, settings(), &[one.address, other.address]);
    for _ in 0..20 {
        let answer = scene.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(one.connections() > 0 && other.connections() > 0);
}
