use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;

use super::*;

fn get(uri: &str) -> Request<Full<Bytes>> {
    Request::get(uri).body(Full::default()).expect("a request")
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8_lossy(&response.into_body().collect().await.expect("a body").to_bytes()).into_owned()
}

#[tokio::test]
async fn http2_goes_to_a_pod_of_http1() {
    let mut pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut client = scene.http2().await;
    let mut request = get("http://web.test/a?b");
    request.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    request.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
    let said = text(client.send_request(request).await.expect("an answer")).await;
    assert!(said.starts_with("GET /a?b HTTP/1.1\n") && said.contains("host: web.test\n"), "{said}");
    assert!(said.contains("cookie: a=1; b=2\n"), "{said}");
    text(client.send_request(get("http://web.test/")).await.expect("an answer")).await;
    assert_eq!(pod.connections(), 1);
}

#[tokio::test]
async fn http1_goes_to_a_pod_of_http2() {
    let mut pod = Echo::http2().await;
    let scene = Scene::of(h2c(), &[pod.address]);
    let answer = scene.ask("POST /x HTTP/1.1\r\nhost: web.test\r\ncontent-length: 3\r\n\r\nabc").await;
    assert!(answer.contains("POST http://web.test/x HTTP/2.0\n") && answer.ends_with("\n\nabc"), "{answer}");
    for _ in 0..3 {
        scene.ask(GET).await;
    }
    assert_eq!(pod.connections(), 1);
}

#[tokio::test]
async fn many_requests_at_once_share_few_connections_to_a_pod_of_http2() {
    let mut pod = Echo::http2().await;
    let mut scene = Scene::of(h2c(), &[]);
    let client = scene.http2().await;
    let asking: Vec<_> = (0..150)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.send_request(get("http://web.test/")).await.expect("an answer").status() })
        })
        .collect();
    scene.held(150).await;
    scene.ready(pod.address);
    for answer in asking {
        assert_eq!(answer.await.expect("no panic"), StatusCode::OK);
    }
    assert!(pod.connections() <= 2);
}

#[tokio::test]
async fn trailers_and_both_directions_stream_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("is bound");
    // Answers each piece as it comes, then with trailers.
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        let service = service_fn(async |request: Request<Incoming>| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let te = request.headers().get("te").cloned();
            let pieces =
                futures::stream::unfold((request.into_body(), Some(trailers)), |(mut body, trailers)| async move {
                    match body.frame().await {
                        Some(frame) => Some((frame, (body, trailers))),
                        None => Some((Ok(Frame::trailers(trailers?)), (body, None))),
                    }
                });
            let mut response = Response::new(StreamBody::new(pieces));
            response.headers_mut().insert("te-was", te.unwrap_or(HeaderValue::from_static("none")));
            Ok::<_, hyper::Error>(response)
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    });
    let scene = Scene::of(h2c(), &[address]);
    let stream = TcpStream::connect(scene.proxy.address()).await.expect("connects");
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut client, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let (pieces, body) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let body = futures::stream::unfold(body, |mut pieces| async move {
        pieces.recv().await.map(|piece| (Ok::<_, hyper::Error>(Frame::data(Bytes::from(piece))), pieces))
    });
    let request =
        Request::post("http://web.test/a.B/C").header("content-type", "application/grpc").header("te", "trailers");
    let request = request.body(StreamBody::new(Box::pin(body))).expect("a request");
    let asking = client.send_request(request);
    let response = tokio::time::timeout(LONG, asking).await.expect("in time").expect("an answer");
    assert_eq!(response.headers()["te-was"], "trailers");
    let mut body = response.into_body();
    for piece in ["one", "two"] {
        pieces.send(piece).expect("the request goes on");
        let frame = tokio::time::timeout(LONG, body.frame()).await.expect("in time").expect("a frame").expect("fine");
        assert_eq!(frame.into_data().expect("data"), piece);
    }
    drop(pieces);
    let frame = body.frame().await.expect("a frame").expect("fine");
    assert_eq!(frame.into_trailers().expect("trailers")["grpc-status"], "0");
}

#[tokio::test]
async fn grpc_is_told_of_failures_in_its_own_words() {
    let scene = Scene::of(Settings { hold_timeout: Duration::from_millis(20), ..h2c() }, &[]);
    let mut client = scene.http2().await;
    for (host, status) in [("web.test", "4"), ("other.test", "12")] {
        let mut request = get(&format!("http://{host}/a.B/C"));
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc+proto"));
        let response = client.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], status);
        assert_eq!(text(response).await, "");
    }
}

#[tokio::test]
async fn another_host_than_the_authority_is_refused() {
    let scene = Scene::of(settings(), &[]);
    let mut client = scene.http2().await;
    let mut request = get("http://web.test/");
    request.headers_mut().insert("host", HeaderValue::from_static("other.test"));
    let response = client.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_end_lets_streams_finish() {
    let pod = Pod::new().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let mut client = scene.http2().await;
    let answer = tokio::spawn(client.send_request(get("http://web.test/")));
    let mut there = pod.accept().await;
    there.until("\r\n\r\n").await;
    let ending = tokio::spawn(scene.proxy.end());
    // GOAWAY has come: nothing new goes on this connection.
    let refused = async {
        while client.ready().await.is_ok() && !client.is_closed() {
            if client.send_request(get("http://other.test/")).await.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(LONG, refused).await.expect("the end is told");
    there.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await;
    assert_eq!(text(answer.await.expect("no panic").expect("an answer")).await, "fine");
    assert_eq!(ending.await.expect("ends"), 0);
}

#[tokio::test]
async fn a_flood_of_resets_or_continuations_ends_the_connection_and_nothing_else() {
    let pod = Echo::http1().await;
    let scene = Scene::of(settings(), &[pod.address]);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    // HPACK: GET, http, /, and an authority.
    let block = [&[0x82, 0x86, 0x84, 0x41, 8][..], b"web.test"].concat();
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let resets =
        (0..2000u32).flat_map(|i| [frame(1, 5, 2 * i + 1, &block), frame(3, 0, 2 * i + 1, &[0, 0, 0, 8])].concat());
    let continuations = frame(1, 1, 1, &block).into_iter().chain((0..2000).flat_map(|_| frame(9, 0, 1, &[0; 16])));
    for flood in [resets.collect::<Vec<u8>>(), continuations.collect()] {
        let mut peer = scene.connect().await;
        let _ = peer.0.write_all(preface).await;
        let _ = peer.0.write_all(&flood).await;
        peer.rest().await;
    }
    assert!(scene.ask(GET).await.starts_with("HTTP/1.1 200 "));
}
