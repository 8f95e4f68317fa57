use super::*;

const EXPECTS: &str = "PUT / HTTP/1.1\r\nhost: web.test\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";

#[tokio::test]
async fn a_held_request_goes_to_the_first_pod_that_is_ready() {
    let pod = Echo::http1().await;
    let mut scene = Scene::of(settings(), &[]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    scene.held(1).await;
    scene.ready(pod.address);
    assert!(peer.answer().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_body_is_not_asked_for_while_its_request_is_held() {
    let pod = Pod::new().await;
    let mut scene = Scene::of(settings(), &[]);
    let mut peer = scene.connect().await;
    peer.send(EXPECTS).await;
    scene.held(1).await;
    let mut nothing = [0];
    assert!(peer.0.try_read(&mut nothing).is_err(), "the client was told to go on");
    scene.ready(pod.address);
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    peer.until("HTTP/1.1 100 Continue\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_goes_frees_its_place_even_with_a_body_unread() {
    let scene = Scene::of(settings(), &[]);
    let mut bodiless = scene.connect().await;
    bodiless.send(GET).await;
    let mut with_body = scene.connect().await;
    with_body.send("PUT / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 10\r\n\r\nabc").await;
    scene.held(2).await;
    drop(bodiless);
    scene.held(1).await;
    drop(with_body);
    scene.held(0).await;
}

#[tokio::test]
async fn a_client_that_ended_its_side_is_still_answered() {
    let pod = Echo::http1().await;
    let mut scene = Scene::of(settings(), &[]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    peer.0.shutdown().await.expect("ends its side");
    scene.held(1).await;
    // Asked whether it is still there, it is.
    peer.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    scene.ready(pod.address);
    let answer = peer.rest().await;
    assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn a_stream_that_is_reset_frees_its_place() {
    let scene = Scene::of(settings(), &[]);
    let mut client = scene.http2().await;
    let request = Request::get("http://web.test/").body(Full::default()).expect("a request");
    let answer = tokio::spawn(client.send_request(request));
    scene.held(1).await;
    answer.abort();
    scene.held(0).await;
}

#[tokio::test]
async fn nobody_ready_in_time_is_a_timeout() {
    let scene = Scene::of(Settings { hold_timeout: Duration::from_millis(20), ..settings() }, &[]);
    let answer = scene.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("podlight-error: hold-timeout\r\n"), "{answer}");
    // The connection is as good as before.
    assert!(!answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn the_end_of_an_answer_lets_the_next_one_in() {
    let pod = Pod::new().await;
    let scene = Scene::of(one_at_a_time(), &[pod.address]);
    let (mut first, mut second) = (scene.connect().await, scene.connect().await);
    first.send(GET).await;
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    second.send(GET).await;
    scene.held(1).await;
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n12").await;
    first.until("12").await;
    assert_eq!(scene.target.held(), 1);
    there.send("34").await;
    first.until("34").await;
    // On the connection that has just become free.
    there.until("\r\n\r\n").await;
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    second.answer().await;
}

#[tokio::test]
async fn what_is_held_is_answered_before_the_end() {
    let pod = Echo::http1().await;
    let mut scene = Scene::of(settings(), &[]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    scene.held(1).await;
    let address = scene.proxy.address();
    let idle = scene.connect().await;
    let Scene { proxy, target, endpoints } = scene;
    let ending = tokio::spawn(proxy.end());
    let mut idle = idle;
    assert_eq!(idle.rest().await, "");
    eventually(|| std::net::TcpStream::connect(address).is_err()).await;
    let proxy = Proxy::start(config(), Routes::default()).expect("starts");
    scene = Scene { proxy, target, endpoints };
    scene.ready(pod.address);
    let answer = peer.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(ending.await.expect("ends"), 0);
}

#[tokio::test]
async fn what_is_held_when_the_grace_ends_is_told() {
    let limits = Limits { grace: Duration::from_millis(50), ..config().limits };
    let scene = Scene::start(ProxyConfig { limits, ..config() }, settings(), &[]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    scene.held(1).await;
    assert_eq!(scene.proxy.end().await, 0);
    assert_eq!(scene.target.held(), 0);
    let answer = peer.rest().await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("podlight-error: shutting-down\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_had_just_connected_when_the_end_began_is_answered() {
    use std::io::{Read as _, Write as _};
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let address = scene.proxy.address();
    // The kernel completes the connections: the proxy has not looked yet.
    let connect = || {
        let mut stream = std::net::TcpStream::connect(address).expect("connects");
        stream.write_all(GET.as_bytes()).expect("writes");
        stream
    };
    let clients: Vec<_> = std::iter::repeat_with(connect).take(50).collect();
    assert_eq!(scene.proxy.end().await, 0);
    for mut client in clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("is not reset");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
}

#[tokio::test]
async fn a_request_held_while_its_target_changes_is_sent_as_the_target_is_then() {
    let pod = Echo::http2().await;
    let mut scene = Scene::of(settings(), &[]);
    let mut peer = scene.connect().await;
    peer.send(GET).await;
    scene.held(1).await;
    scene.target.configure(&Service::new(GroupKey::new("test", "web")), h2c());
    scene.ready(pod.address);
    let answer = peer.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/2.0\n"), "{answer}");
}
