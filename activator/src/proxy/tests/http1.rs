use super::*;

#[tokio::test]
async fn a_request_reaches_the_pod_and_its_answer_comes_back() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let answer = scene.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    assert!(body.starts_with("GET /a?b HTTP/1.1\nhost: web.test\n"), "{body}");
    for header in ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: web.test"] {
        assert!(body.contains(header), "{body}");
    }
    assert!(body.contains("forwarded: for=127.0.0.1;host=web.test;proto=http"), "{body}");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let mut pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    for _ in 0..5 {
        peer.send(GET).await;
        assert!(peer.answer().await.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(pod.connections(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    let post = "POST /2 HTTP/1.1\r\nhost: web.test\r\ncontent-length: 3\r\n\r\nabc";
    peer.send(&format!("{GET}{post}{GET}")).await;
    assert!(peer.answer().await.contains("GET /a?b"));
    assert!(peer.answer().await.ends_with("abc"));
    assert!(peer.answer().await.contains("GET /a?b"));
}

#[tokio::test]
async fn a_chunked_body_is_passed_on_and_the_connection_kept() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    let chunked = "POST / HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n";
    for _ in 0..2 {
        peer.send(chunked).await;
        peer.send("3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n").await;
        let answer = peer.answer().await;
        assert!(answer.ends_with("\n\nabcdefg") && !answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn an_answer_streams_as_it_comes() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    peer.until("text/event-stream").await;
    for event in ["data: 1", "data: 2"] {
        there.send(&format!("{:x}\r\n{event}\r\n", event.len())).await;
        peer.until(event).await;
    }
    assert_eq!(there.rest_after(peer).await, "");
}

#[tokio::test]
async fn answers_without_a_body_keep_the_connections() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send("HEAD / HTTP/1.1\r\nhost: web.test\r\n\r\n").await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n").await;
    let head = peer.until("\r\n\r\n").await;
    assert!(head.contains("content-length: 99\r\n"), "{head}");
    for status in ["204 No Content", "304 Not Modified"] {
        peer.send(GET).await;
        there.until("\r\n\r\n").await;
        there.send(&format!("HTTP/1.1 {status}\r\netag: x\r\n\r\n")).await;
        assert!(peer.until("\r\n\r\n").await.starts_with(&format!("HTTP/1.1 {status}\r\n")));
    }
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send("POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 10\r\n\r\nabc").await;
    let mut there = pod.accept().await;
    there.until("abc").await;
    there.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno").await;
    assert!(peer.answer().await.ends_with("no"));
}

#[tokio::test]
async fn a_client_may_end_its_side_behind_a_request() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    peer.0.shutdown().await.expect("ends its side");
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
    assert!(peer.rest().await.ends_with("\r\n\r\nfine"));
}

#[tokio::test]
async fn a_client_that_went_takes_its_request_with_it() {
    let pod = Pod::new().await;
    let scene = Scene::of(one_at_a_time(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    drop(peer);
    assert_eq!(there.rest().await, "");
}

#[tokio::test]
async fn a_body_is_asked_for_when_the_pod_asks_for_it() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send("PUT / HTTP/1.1\r\nhost: web.test\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    let mut there = pod.accept().await;
    assert!(there.until("\r\n\r\n").await.contains("expect: 100-continue"));
    there.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(peer.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    peer.send("abc").await;
    there.until("abc").await;
    there.send("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n").await;
    assert!(peer.answer().await.starts_with("HTTP/1.1 201 "));
    // The connection to the pod is as good as any.
    peer.send(GET).await;
    there.until("\r\n\r\n").await;
}

#[tokio::test]
async fn a_body_that_the_pod_refuses_is_never_asked_for() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send("PUT / HTTP/1.1\r\nhost: web.test\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno").await;
    let answer = peer.answer().await;
    assert!(answer.starts_with("HTTP/1.1 417 ") && answer.ends_with("no"), "{answer}");
    assert_eq!(there.rest().await, "");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let pod = Pod::new().await;
    let mut scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    let ask = "GET / HTTP/1.1\r\nhost: web.test\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n";
    // What follows at once is of the new protocol, though it looks like nothing HTTP would take.
    peer.send(&format!("{ask} \n\n")).await;
    let mut there = pod.accept().await;
    let asked = there.until("\r\n\r\n").await;
    assert!(asked.contains("connection: upgrade\r\n") && asked.contains("upgrade: websocket\r\n"), "{asked}");
    there.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello").await;
    let answer = peer.until("hello").await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("upgrade: websocket\r\n"), "{answer}");
    there.until(" \n\n").await;
    // The pod may drain; what is under way goes on.
    scene.drain(pod.address);
    peer.send("\r\n : \r\nX Y\r\n").await;
    there.until("X Y\r\n").await;
    there.send("bye").await;
    peer.until("bye").await;
    peer.0.shutdown().await.expect("ends its side");
    assert_eq!(there.rest().await, "");
    drop(there);
    assert_eq!(peer.rest().await, "");
}

#[tokio::test]
async fn a_refused_upgrade_leaves_http_as_it_was() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    let ask = "GET / HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    peer.send(&format!("{ask}{GET}")).await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 426 Upgrade Required\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: 0\r\n\r\n").await;
    let answer = peer.answer().await;
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.contains("upgrade: x\r\n"), "{answer}");
    there.until("GET /a?b").await;
    // The guard looks again.
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    peer.answer().await;
    peer.send("GET / HTTP/1.1\r\nhost : web.test\r\n\r\n").await;
    assert!(peer.rest().await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn an_offer_of_http2_is_not_passed_on() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let offer = "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n";
    let answer = scene.ask(&format!("GET / HTTP/1.1\r\nhost: web.test\r\n{offer}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("h2c") && !answer.contains("http2-settings"));
}

#[tokio::test]
async fn what_cannot_be_routed_is_told_so() {
    let scene = Scene::of(settings(), &[]);
    for (request, status, label) in [
        ("GET / HTTP/1.1\r\nhost: other.test\r\n\r\n", 404, "unknown-host"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "host"),
        ("GET / HTTP/1.1\r\nhost: web.test\r\nhost: web.test\r\n\r\n", 400, "host"),
        ("GET / HTTP/1.1\r\nhost: web test\r\n\r\n", 400, "host"),
        ("GET http://web.test/ HTTP/1.1\r\nhost: other.test\r\n\r\n", 400, "host"),
        ("CONNECT web.test:80 HTTP/1.1\r\nhost: web.test:80\r\n\r\n", 405, "connect-method"),
    ] {
        let answer = scene.ask(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains(&format!("podlight-error: {label}\r\n")), "{request}: {answer}");
    }
    let answer = scene.ask("GET / HTTP/1.1\r\nhost: other.test:80\r\n\r\n").await;
    assert!(answer.ends_with("no Service takes requests for other.test\n"), "{answer}");
}

#[tokio::test]
async fn an_absolute_form_is_passed_on_without_its_host() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let answer = scene.ask("GET http://WEB.test/x?y HTTP/1.1\r\nhost: web.test\r\n\r\n").await;
    assert!(answer.contains("GET /x?y HTTP/1.1\nhost: web.test\n"), "{answer}");
}

#[tokio::test]
async fn a_client_of_http1_0_gets_an_answer_that_it_can_read() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send("GET / HTTP/1.0\r\nhost: web.test\r\n\r\n").await;
    let mut there = pod.accept().await;
    assert!(there.until("\r\n\r\n").await.starts_with("GET / HTTP/1.1\r\n"));
    there.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let answer = peer.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nabc"), "{answer}");
    assert!(!answer.contains("transfer-encoding"), "{answer}");
}

impl Peer {
    /// Reads until it is closed, once the other one has been.
    async fn rest_after(&mut self, other: Peer) -> String {
        drop(other);
        // Whoever writes to a client that has gone learns of it.
        while self.0.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::task::yield_now().await;
        }
        String::new()
    }
}
