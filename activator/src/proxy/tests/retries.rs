use super::*;

const POST: &str = "POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 3\r\n\r\nabc";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_refused_connection_goes_to_another_pod() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[nobody().await, pod.address]);
    for _ in 0..10 {
        assert!(scene.ask(POST).await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_nobody_a_request() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    for _ in 0..3 {
        peer.send(GET).await;
        let mut there = pod.accept().await;
        there.until("\r\n\r\n").await;
        there.send(OK).await;
        peer.answer().await;
        // Closes without a word.
    }
}

#[tokio::test]
async fn a_request_that_may_be_repeated_survives_a_connection_that_dies_under_it() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send(OK).await;
    peer.answer().await;
    peer.send(GET).await;
    there.until("\r\n\r\n").await;
    drop(there);
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send(OK).await;
    assert!(peer.answer().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_request_that_may_not_be_repeated_is_sent_once() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let bodiless = "POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 0\r\n\r\n";
    for post in [POST, bodiless] {
        let mut peer = scene.connect().await;
        peer.send(post).await;
        let mut there = pod.accept().await;
        there.until("\r\n\r\n").await;
        drop(there);
        let answer = peer.answer().await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("podlight-error: reset\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn three_tries_are_all() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    for _ in 0..3 {
        pod.accept().await.until("\r\n\r\n").await;
    }
    assert!(peer.answer().await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn nonsense_from_a_pod_is_a_bad_gateway() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(POST).await;
    let mut there = pod.accept().await;
    there.until("abc").await;
    there.send("SSH-2.0-x\r\n\r\n").await;
    let answer = peer.answer().await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("podlight-error: protocol\r\n"), "{answer}");
}

#[tokio::test]
async fn a_pod_that_does_not_answer_in_time_is_told_apart() {
    let pod = Pod::new().await;
    let config = ProxyConfig { response_timeout: Some(Duration::from_millis(20)), ..config() };
    let scene = Scene::start(config, settings(), &[pod.address]);
    let answer = scene.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("podlight-error: response-timeout\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_whole() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    peer.until("abc\r\n").await;
    drop(there);
    assert_eq!(peer.rest().await, "");
}

#[tokio::test]
async fn connections_to_a_draining_pod_are_closed_when_their_requests_are_over() {
    let (old, new) = (Pod::new().await, Echo::http1().await);
    let mut scene = Scene::of(settings(), &[old.address]);
    let (mut kept, mut busy) = (scene.connect().await, scene.connect().await);
    busy.send(GET).await;
    let mut there = old.accept().await;
    there.until("\r\n\r\n").await;
    kept.send(GET).await;
    let mut idle = old.accept().await;
    idle.until("\r\n\r\n").await;
    idle.send(OK).await;
    kept.answer().await;

    scene.drain(old.address);
    scene.ready(new.address);
    assert_eq!(idle.rest().await, "");
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
    assert!(busy.answer().await.ends_with("fine"));
    assert_eq!(there.rest().await, "");
    kept.send(GET).await;
    assert!(kept.answer().await.contains("GET /a?b"));
}

#[tokio::test]
async fn what_a_pod_of_http2_goes_away_without_having_begun_is_sent_again_whatever_its_method() {
    let pod = Pod::new().await;
    let scene = Scene::of(h2c(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send("POST /once HTTP/1.1\r\nhost: web.test\r\ncontent-length: 0\r\n\r\n").await;
    let mut there = pod.accept().await.0;
    there.write_all(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00").await.expect("settings");
    // The preface, settings and window updates; then the request's head, with its last byte on stream 1.
    let (mut read, headers) = (Vec::new(), b"\x01\x05\x00\x00\x00\x01");
    while !read.windows(headers.len()).any(|window| window == headers) {
        assert!(there.read_buf(&mut read).await.expect("reads") > 0, "no request");
    }
    // GOAWAY: the last stream looked at is 0, NO_ERROR.
    there.write_all(b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\0\0\0\0\0\0\0\0").await.expect("goes away");
    drop(there);
    pod.serve_http2().await;
    let answer = peer.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("POST http://web.test/once"), "{answer}");
}

#[tokio::test]
async fn a_pod_that_does_not_answer_in_time_is_asked_three_times_and_no_more() {
    let pod = Pod::new().await;
    let config = ProxyConfig { response_timeout: Some(Duration::from_millis(100)), ..config() };
    let scene = Scene::start(config, settings(), &[pod.address]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    let mut kept = pod.accept().await;
    kept.until("\r\n\r\n").await;
    kept.send(OK).await;
    peer.answer().await;
    peer.send(GET).await;
    kept.until("\r\n\r\n").await;
    let mut asked = Vec::new();
    for _ in 0..2 {
        let mut there = pod.accept().await;
        there.until("\r\n\r\n").await;
        asked.push(there);
    }
    let answer = peer.answer().await;
    assert!(answer.contains("podlight-error: response-timeout\r\n"), "{answer}");
    assert!(futures::FutureExt::now_or_never(pod.accept()).is_none(), "it was asked once more");
}

#[tokio::test]
async fn a_pod_that_takes_three_requests_and_answers_none_in_time_is_quarantined() {
    let pod = Pod::new().await;
    let config = ProxyConfig { response_timeout: Some(Duration::from_millis(50)), ..config() };
    let scene = Scene::start(config, settings(), &[pod.address]);
    let quarantine = || scene.target.load(1).backends.first().and_then(|backend| backend.quarantine_seconds);
    let (mut peer, mut silent) = (scene.connect().await, Vec::new());
    peer.send(GET).await;
    for _ in 0..3 {
        let mut there = pod.accept().await;
        there.until("\r\n\r\n").await;
        silent.push(there);
    }
    assert!(peer.answer().await.contains("podlight-error: response-timeout\r\n"));
    assert!(quarantine().is_some_and(|seconds| seconds > 20.0), "{:?}", quarantine());
}

#[tokio::test]
async fn a_client_that_is_slow_to_send_its_body_is_no_fault_of_the_pods() {
    let pod = Pod::new().await;
    let config = ProxyConfig { response_timeout: Some(Duration::from_millis(50)), ..config() };
    let scene = Scene::start(config, settings(), &[pod.address]);
    for _ in 0..3 {
        let mut peer = scene.connect().await;
        peer.send("POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 9\r\n\r\nslow").await;
        let mut there = pod.accept().await;
        there.until("slow").await;
        assert!(peer.answer().await.contains("podlight-error: response-timeout\r\n"));
    }
    assert!(scene.target.load(1).backends.iter().all(|backend| backend.quarantine_seconds.is_none()));
}

#[tokio::test]
async fn a_pod_that_cannot_be_reached_at_its_first_address_is_at_its_other_one() {
    let pod = Echo::http1().await;
    let mut scene = Scene::of(settings(), &[]);
    scene.dual_stack([IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), pod.address.ip()], pod.address.port());
    for _ in 0..3 {
        // What was sent is not known to have been, so nothing but the connection may be tried twice.
        assert!(scene.ask(POST).await.starts_with("HTTP/1.1 200 "));
    }
}
