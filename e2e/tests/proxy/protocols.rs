//! What travels through the proxy, and how: HTTP/1.1 and HTTP/2 on both sides, upgrades, streams, trailers, and the headers of a hop.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Method, Version};
use http_body_util::BodyExt;
use hyper::body::Frame;
use podlight_e2e::backend::Backend;
use podlight_e2e::backend::answers::sha256;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{Answer, Connection, ask, channel, empty, full, get, post, request, with};
use podlight_e2e::proxy::clients::{curl, h2load};
use podlight_e2e::proxy::stage::{Stage, Web};
use podlight_e2e::raw::{RawConnection, exchange};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(20);

/// A stage with the Service `web` (HTTP/1.1) and one ready pod, known.
async fn plain() -> Result<(Stage<'static>, Web)> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok((stage, web))
}

/// The same over h2c to the pod.
async fn h2c() -> Result<(Stage<'static>, Web)> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").app_protocol("kubernetes.io/h2c")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok((stage, web))
}

/// A stage whose one pod speaks as `script` says.
async fn scripted<F, T>(script: F) -> Result<(Stage<'static>, Web)>
where
    F: Fn(TcpStream) -> T + Send + Sync + 'static,
    T: Future<Output = Result<()>> + Send + 'static,
{
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_with("web", "web-1", Backend::scripted("web-1", script)?).await?;
    stage.wait("web", "web-1", "ready pushed").await?;
    Ok((stage, web))
}

/// Reads a request's head.
async fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut head).await? > 0, "closed in its head");
    }
    Ok(head)
}

#[tokio::test]
async fn curl_gets_what_it_asks_for_over_http1_and_http2() -> Result<()> {
    let (stage, _web) = plain().await?;
    let (proxy, host) = (stage.proxy()?, stage.host("web"));
    for arguments in [&["--http1.1"] as &[&str], &["--http2-prior-knowledge"]] {
        let curled = curl(proxy, &host, "/a?b=c", arguments).await?;
        ensure!(curled.status == 200 && curled.output.contains("\"/a?b=c\""), "{curled:?}");
        let posted = [arguments, &["--data", "hello"]].concat();
        let curled = curl(proxy, &host, "/", &posted).await?;
        ensure!(curled.status == 200 && curled.output.contains(&sha256(b"hello")), "{curled:?}");
        let curled = curl(proxy, "nobody.example", "/", &[arguments, &["--include"]].concat()).await?;
        ensure!(curled.status == 404 && curled.output.to_lowercase().contains("podlight-error:"), "{curled:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_keeps_its_connection_is_answered_on_it_and_so_is_the_pod() -> Result<()> {
    let (stage, web) = plain().await?;
    let before = web.app.connections();
    let mut connection = Connection::http1(stage.proxy()?).await?;
    for n in 0..50 {
        assert_eq!(connection.ask(get(&stage.host("web"), &format!("/{n}"))).await?.seen()?.target, format!("/{n}"));
    }
    ensure!(!connection.is_closed(), "it was closed");
    ensure!(web.app.connections() <= before + 1, "{} connections for 50 requests", web.app.connections() - before);
    Ok(())
}

#[tokio::test]
async fn a_connection_ends_when_its_client_says_so_and_http10_is_answered() -> Result<()> {
    let (stage, _web) = plain().await?;
    let (port, host) = (stage.proxy()?.port(), stage.host("web"));
    for head in [
        format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"),
        format!("GET / HTTP/1.0\r\nhost: {host}\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(head.as_bytes()).await?;
        let mut all = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut all)).await.context("it stays open")??;
        let text = String::from_utf8_lossy(&all);
        ensure!(text.contains(" 200 OK") && text.contains("web-1"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn pipelined_requests_are_answered_each_once_and_in_order() -> Result<()> {
    let (stage, _web) = plain().await?;
    let host = stage.host("web");
    let mut stream = TcpStream::connect(stage.proxy()?).await?;
    let slow_first = ["/slow/300", "/1", "/2", "/3", "/4"];
    let mut text = String::new();
    for path in slow_first {
        text.push_str(&format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 3\r\n\r\nabc"));
    }
    text.push_str(&format!("GET /last HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"));
    stream.write_all(text.as_bytes()).await?;
    let mut all = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.context("not all answered")??;
    let all = String::from_utf8_lossy(&all);
    let places: Vec<usize> = slow_first
        .iter()
        .chain(&["/last"])
        .map(|path| all.find(&format!("\"target\":\"{path}\"")).with_context(|| format!("no {path}: {all}")))
        .collect::<Result<_>>()?;
    ensure!(places.is_sorted(), "{places:?}");
    assert_eq!(all.matches("HTTP/1.1 200").count(), 6);
    Ok(())
}

#[tokio::test]
async fn http2_carries_many_requests_at_once_to_a_pod_that_speaks_http1() -> Result<()> {
    let (stage, web) = plain().await?;
    let connection = Connection::http2(stage.proxy()?).await?;
    let asked: Vec<_> = (0..50).map(|_| connection.start(get(&stage.host("web"), "/gate"))).collect::<Result<_>>()?;
    web.app.wait_at_gate(50).await?;
    web.app.open_gate(true);
    for answer in asked {
        let answer = answer.await??;
        assert_eq!((answer.version, answer.seen()?.version.as_str()), (Version::HTTP_2, "HTTP/1.1"));
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_speaks_h2c_gets_requests_of_both_kinds_over_one_connection() -> Result<()> {
    let (stage, web) = h2c().await?;
    let before = web.app.connections();
    let connection = Connection::http2(stage.proxy()?).await?;
    let asked: Vec<_> = (0..20).map(|_| connection.start(get(&stage.host("web"), "/gate"))).collect::<Result<_>>()?;
    let one = podlight_e2e::proxy::client::start(stage.proxy()?, get(&stage.host("web"), "/gate"));
    web.app.wait_at_gate(21).await?;
    web.app.open_gate(true);
    for answer in asked.into_iter().chain([one]) {
        let seen = answer.await??.seen()?;
        assert_eq!((seen.version.as_str(), seen.authority.as_str()), ("HTTP/2.0", stage.host("web").as_str()));
    }
    // One a worker at most, and what was there before.
    ensure!(web.app.connections() <= before + 2, "{} connections", web.app.connections());
    Ok(())
}

#[tokio::test]
async fn h2load_loses_nothing() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let said = h2load(stage.proxy()?, &stage.host("web"), 2000, 4, 16).await?;
        ensure!(said.contains("2000 succeeded, 0 failed, 0 errored"), "{said}");
        ensure!(said.contains("status codes: 2000 2xx"), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn large_bodies_pass_both_ways_unchanged_with_and_without_a_length() -> Result<()> {
    const BYTES: usize = 8 << 20;
    let body: Vec<u8> = (0..BYTES).map(|n| (n * 31 % 251) as u8).collect();
    for (stage, _web) in [plain().await?, h2c().await?] {
        let host = stage.host("web");
        for mut connection in [Connection::http1(stage.proxy()?).await?, Connection::http2(stage.proxy()?).await?] {
            let seen = connection.ask(post(&host, "/", body.clone())).await?.seen()?;
            assert_eq!((seen.body_bytes, seen.body_sha256), (BYTES, sha256(&body)));
            let (sender, streamed) = channel();
            let chunks = body.clone();
            tokio::spawn(async move {
                for chunk in chunks.chunks(100_000) {
                    sender.send(Ok(Frame::data(Bytes::copy_from_slice(chunk)))).await?;
                }
                Ok::<_, anyhow::Error>(())
            });
            let seen = connection.ask(request(Method::POST, &host, "/", streamed)).await?.seen()?;
            assert_eq!((seen.body_bytes, seen.body_sha256), (BYTES, sha256(&body)));
            let answer = connection.ask(get(&host, &format!("/bytes/{BYTES}"))).await?;
            assert_eq!(answer.body.len(), BYTES);
            let answer = connection.ask(get(&host, "/chunks/1000")).await?;
            assert_eq!((answer.body.len(), answer.header("content-length")), (16_000, ""));
        }
    }
    Ok(())
}

#[tokio::test]
async fn trailers_pass_both_ways() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let (sender, body) = channel();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sent", "yes".parse()?);
        tokio::spawn(async move {
            sender.send(Ok(Frame::data(Bytes::from_static(b"body")))).await?;
            sender.send(Ok(Frame::trailers(trailers))).await?;
            Ok::<_, anyhow::Error>(())
        });
        // Over HTTP/1.1 only those go on that were announced.
        let asked = with(request(Method::POST, &stage.host("web"), "/trailers", body), "te", "trailers");
        let asked = with(asked, "trailer", "x-sent");
        let answer = Connection::http2(stage.proxy()?).await?.ask(asked).await?;
        let trailers = answer.trailers.clone().with_context(|| format!("no trailers: {answer:?}"))?;
        assert_eq!(trailers["x-checksum"], sha256(b"body"));
        assert_eq!(trailers.get("x-sent").map(|value| value.as_bytes()), Some(b"yes".as_slice()));
    }
    Ok(())
}

#[tokio::test]
async fn a_websocket_echoes_text_and_binary_and_closes() -> Result<()> {
    let (stage, _web) = plain().await?;
    let stream = TcpStream::connect(stage.proxy()?).await?;
    let url = format!("ws://{}/ws", stage.host("web"));
    let (mut socket, response) = tokio_tungstenite::client_async(url, stream).await?;
    assert_eq!(response.status(), 101);
    for message in [Message::text("hello"), Message::binary(vec![7; 100_000]), Message::text("again")] {
        socket.send(message.clone()).await?;
        let echoed = timeout(PATIENCE, socket.next()).await?.context("closed")??;
        assert_eq!(echoed, message);
    }
    socket.close(None).await?;
    timeout(PATIENCE, async { while socket.next().await.is_some_and(|message| message.is_ok()) {} }).await?;
    Ok(())
}

#[tokio::test]
async fn a_websocket_that_is_held_opens_when_its_pod_is_ready() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let stream = TcpStream::connect(stage.proxy()?).await?;
    let url = format!("ws://{}/ws", stage.host("web"));
    let open = tokio::spawn(tokio_tungstenite::client_async(url, stream));
    podlight_e2e::proxy::counts::wait_held(stage.activator(), 1).await?;
    web.pod.say(podlight_proto::Kind::Ready).await?;
    let (mut socket, _) = timeout(PATIENCE, open).await???;
    socket.send(Message::text("hello")).await?;
    assert_eq!(socket.next().await.context("closed")??, Message::text("hello"));
    Ok(())
}

#[tokio::test]
async fn any_other_upgrade_is_a_tunnel_that_each_side_may_close_by_half() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut stream = TcpStream::connect(stage.proxy()?).await?;
    let host = stage.host("web");
    let head = format!("GET /upgrade HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: echo/1\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let head = String::from_utf8(read_head(&mut stream).await?)?.to_lowercase();
    ensure!(head.starts_with("http/1.1 101") && head.contains("upgrade: echo/1"), "{head}");
    stream.write_all(b"ping").await?;
    let mut echo = [0; 4];
    timeout(PATIENCE, stream.read_exact(&mut echo)).await??;
    assert_eq!(&echo, b"ping");
    // The client has said all; what the pod says then still arrives.
    stream.shutdown().await?;
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await??;
    assert_eq!(rest, b"bye");
    eventually("the tunnel is gone", async || {
        let open = stage.activator().metrics().await?.sum(podlight_e2e::proxy::counts::TUNNELS, &[]);
        Ok((open == 0.0).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn an_upgrade_that_the_pod_does_not_take_is_an_answer_like_any_other() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut connection = Connection::http1(stage.proxy()?).await?;
    let asked = with(with(get(&stage.host("web"), "/"), "connection", "upgrade"), "upgrade", "nobody/1");
    connection.ask(asked).await?.seen()?;
    connection.ask(get(&stage.host("web"), "/")).await?.seen()?;
    Ok(())
}

#[tokio::test]
async fn connect_is_refused() -> Result<()> {
    let (stage, web) = plain().await?;
    let before = web.app.requests();
    let (port, host) = (stage.proxy()?.port(), stage.host("web"));
    for target in [format!("{host}:80"), "127.0.0.1:22".to_owned()] {
        let answer = exchange(port, format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n")).await?;
        ensure!(answer.status == Some(405), "{answer:?}");
    }
    let connection = request(Method::CONNECT, &host, &host, empty());
    let answer = Connection::http2(stage.proxy()?).await?.ask(connection).await;
    ensure!(answer.as_ref().map_or(true, |answer| answer.status == 405), "{answer:?}");
    assert_eq!(web.app.requests(), before);
    Ok(())
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() -> Result<()> {
    for (stage, web) in [plain().await?, h2c().await?] {
        for mut connection in [Connection::http1(stage.proxy()?).await?, Connection::http2(stage.proxy()?).await?] {
            web.app.open_gate(false);
            let mut response = connection.send(get(&stage.host("web"), "/events")).await?;
            let frame = timeout(PATIENCE, response.body_mut().frame()).await.context("it is buffered")?;
            let first = frame.context("ended")??.into_data().ok().context("no data")?;
            assert_eq!(first, "data: 0\n\n");
            web.app.wait_at_gate(1).await?;
            web.app.open_gate(true);
            let rest = response.into_body().collect().await?.to_bytes();
            assert_eq!(rest, "data: 1\n\n");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_comes_in_pieces_reaches_the_pod_piece_by_piece_and_its_answer_the_client() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let (sender, body) = channel();
        let mut connection = Connection::http2(stage.proxy()?).await?;
        sender.send(Ok(Frame::data(Bytes::from_static(b"first")))).await?;
        let mut response = connection.send(request(Method::POST, &stage.host("web"), "/duplex", body)).await?;
        for piece in ["first", "second", "third"] {
            if piece != "first" {
                sender.send(Ok(Frame::data(Bytes::from(piece)))).await?;
            }
            let frame = timeout(PATIENCE, response.body_mut().frame()).await.context("it is buffered")?;
            assert_eq!(frame.context("ended")??.into_data().ok().context("no data")?, piece);
        }
        drop(sender);
        ensure!(response.into_body().collect().await?.to_bytes().is_empty(), "more than was sent");
    }
    Ok(())
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body_is_sent() -> Result<()> {
    let (stage, _web) = plain().await?;
    let host = stage.host("web");
    let mut stream = TcpStream::connect(stage.proxy()?).await?;
    let head = format!("POST / HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let interim = timeout(PATIENCE, read_head(&mut stream)).await.context("no 100: the body is awaited")??;
    ensure!(interim.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&interim));
    stream.write_all(b"hello").await?;
    let answer = timeout(PATIENCE, read_head(&mut stream)).await??;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    // curl does so by itself, and waits a second only when nothing comes.
    let curled =
        curl(stage.proxy()?, &host, "/", &["--http1.1", "--header", "expect: 100-continue", "--data", "x"]).await?;
    ensure!(curled.status == 200, "{curled:?}");
    Ok(())
}

#[tokio::test]
async fn an_error_instead_of_100_continue_comes_without_the_body() -> Result<()> {
    let (stage, _web) = plain().await?;
    let head = "POST / HTTP/1.1\r\nhost: nobody.example\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let answer = exchange(stage.proxy()?.port(), head).await?;
    assert_eq!(answer.status, Some(404));
    Ok(())
}

#[tokio::test]
async fn interim_answers_of_the_pod_do_not_stand_in_for_the_final_one() -> Result<()> {
    let (stage, _web) = scripted(async |mut stream| {
        loop {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n").await?;
            stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfinal").await?;
        }
    })
    .await?;
    let mut connection = Connection::http1(stage.proxy()?).await?;
    for _ in 0..3 {
        let answer = connection.ask(get(&stage.host("web"), "/")).await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "final"));
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_is_read_is_passed_on_at_once() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let (sender, body) = channel();
        sender.send(Ok(Frame::data(Bytes::from_static(b"a part")))).await?;
        let mut connection = Connection::http2(stage.proxy()?).await?;
        let asked = request(Method::POST, &stage.host("web"), "/early", body);
        let response = timeout(PATIENCE, connection.send(asked)).await.context("the body is awaited")??;
        let answer = Answer::read(response).await?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "early"));
        drop(sender);
        // A large body that nobody reads, over HTTP/1.1.
        let answer = ask(stage.proxy()?, post(&stage.host("web"), "/early", vec![b'x'; 4 << 20])).await;
        // The pod closes with bytes unread, and its reset may overtake its answer.
        ensure!(answer.is_err() || answer.is_ok_and(|answer| [200, 502].contains(&answer.status)), "another answer");
        stage.get("web", "/").await?.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_closes_its_half_after_the_request_is_still_answered() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut stream = TcpStream::connect(stage.proxy()?).await?;
    let host = stage.host("web");
    stream.write_all(format!("GET /slow/300 HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await?;
    stream.shutdown().await?;
    let mut all = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.context("it stays open")??;
    ensure!(all.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&all));
    Ok(())
}

#[tokio::test]
async fn head_204_and_304_have_no_body_and_the_connection_goes_on() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let host = stage.host("web");
        for mut connection in [Connection::http1(stage.proxy()?).await?, Connection::http2(stage.proxy()?).await?] {
            let head = connection.ask(request(Method::HEAD, &host, "/bytes/1024", empty())).await?;
            assert_eq!((head.status, head.body.len(), head.header("content-length")), (200, 0, "1024"));
            for status in [204, 304] {
                let answer = connection.ask(get(&host, &format!("/status/{status}"))).await?;
                assert_eq!((answer.status, answer.body.len()), (status, 0));
            }
            connection.ask(get(&host, "/")).await?.seen()?;
        }
    }
    // A pod that says how long the body would be.
    let (stage, _web) = scripted(async |mut stream| {
        loop {
            read_head(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 1234\r\netag: \"a\"\r\n\r\n").await?;
        }
    })
    .await?;
    let mut connection = Connection::http1(stage.proxy()?).await?;
    for _ in 0..3 {
        let answer = connection.ask(get(&stage.host("web"), "/")).await?;
        assert_eq!((answer.status, answer.body.len()), (304, 0));
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_the_pods_connection() -> Result<()> {
    let (stage, _web) = scripted(async |mut stream| {
        read_head(&mut stream).await?;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await?;
        Ok(())
    })
    .await?;
    for _ in 0..3 {
        assert_eq!(stage.get("web", "/").await?.text(), "until the end");
    }
    Ok(())
}

#[tokio::test]
async fn headers_of_one_hop_end_at_the_proxy_in_both_directions() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut asked = get(&stage.host("web"), "/");
    for (name, value) in [
        ("connection", "x-secret, keep-alive"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers, deflate"),
        ("x-kept", "yes"),
        ("cookie", "a=b"),
        ("authorization", "Bearer x"),
    ] {
        asked = with(asked, name, value);
    }
    let seen = ask(stage.proxy()?, asked).await?.seen()?;
    for gone in ["x-secret", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    ensure!(seen.header("te").is_none_or(|te| te == "trailers"), "{:?}", seen.header("te"));
    for (kept, value) in [("x-kept", "yes"), ("cookie", "a=b"), ("authorization", "Bearer x")] {
        assert_eq!(seen.header(kept).as_deref(), Some(value));
    }
    let answer = stage.get("web", "/hops").await?;
    assert_eq!(answer.header("x-kept"), "1");
    for gone in ["x-hop", "keep-alive", "proxy-connection"] {
        assert_eq!(answer.header(gone), "", "{gone}");
    }
    // `Connection` cannot take away what says whom a message is for.
    let seen =
        ask(stage.proxy()?, with(get(&stage.host("web"), "/"), "connection", "host, x-forwarded-for")).await?.seen()?;
    assert_eq!(seen.authority, stage.host("web"));
    Ok(())
}

#[tokio::test]
async fn a_pod_learns_who_asks_and_a_stranger_cannot_pretend() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut asked = get(&stage.host("web"), "/");
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "bank.example"),
        ("forwarded", "for=203.0.113.7;proto=https"),
    ] {
        asked = with(asked, name, value);
    }
    let seen = ask(stage.proxy()?, asked).await?.seen()?;
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("http"));
    let forwarded = seen.header("forwarded").unwrap_or_default();
    ensure!(!forwarded.contains("203.0.113.7") && !forwarded.contains("https"), "{forwarded}");
    Ok(())
}

#[tokio::test]
async fn what_a_trusted_proxy_says_of_its_client_is_kept_and_added_to() -> Result<()> {
    let trusting =
        Stage::standalone_with(|spec| spec.also("trust-forwarded", "127.0.0.0/8").also("trust-forwarded", "::1/128"));
    let stage = trusting.await?;
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let asked = with(get(&stage.host("web"), "/"), "x-forwarded-for", "203.0.113.7");
    let seen = ask(stage.proxy()?, with(asked, "x-forwarded-proto", "https")).await?.seen()?;
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("203.0.113.7, 127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("https"));
    Ok(())
}

#[tokio::test]
async fn a_traceparent_is_passed_on_as_it_came_with_its_state() -> Result<()> {
    for (stage, _web) in [plain().await?, h2c().await?] {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let asked = with(with(get(&stage.host("web"), "/"), "traceparent", trace), "tracestate", "vendor=1");
        let seen = ask(stage.proxy()?, asked).await?.seen()?;
        assert_eq!(seen.header("traceparent").as_deref(), Some(trace));
        assert_eq!(seen.header("tracestate").as_deref(), Some("vendor=1"));
        // None is made up.
        assert_eq!(stage.get("web", "/").await?.seen()?.header("traceparent"), None);
    }
    Ok(())
}

#[tokio::test]
async fn a_target_in_every_form_reaches_the_pod_unchanged() -> Result<()> {
    let (stage, _web) = plain().await?;
    let (port, host) = (stage.proxy()?.port(), stage.host("web"));
    for path in ["/a/../b/%2e%2e/c", "/a//b?x=%20&y=a+b", "/?", "/%C3%A4"] {
        let answer = exchange(port, format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await?;
        ensure!(answer.body.contains(&format!("\"target\":\"{path}\"")), "{path}: {answer:?}");
    }
    // The absolute form of the same host becomes the origin form.
    let answer = exchange(port, format!("GET http://{host}/x HTTP/1.1\r\nhost: {host}\r\n\r\n")).await?;
    ensure!(answer.body.contains("\"target\":\"/x\""), "{answer:?}");
    let mut asterisk = RawConnection::open(port).await?;
    asterisk.send(format!("OPTIONS * HTTP/1.1\r\nhost: {host}\r\n\r\n")).await?;
    let answer = asterisk.answer().await?;
    ensure!(matches!(answer.status, Some(200 | 400)), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn many_headers_cookies_and_repeated_ones_pass_in_order() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut connection = Connection::http2(stage.proxy()?).await?;
    let mut asked = get(&stage.host("web"), "/");
    for n in 0..40 {
        asked = with(asked, "x-list", &n.to_string());
    }
    asked = with(with(asked, "cookie", "a=1"), "cookie", "b=2");
    let seen = connection.ask(asked).await?.seen()?;
    let list: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    assert_eq!(seen.header("x-list"), Some(list.join(", ")));
    assert_eq!(seen.header("cookie").as_deref(), Some("a=1; b=2"), "one Cookie over HTTP/1.1 (RFC 9113 §8.2.3)");
    Ok(())
}

#[tokio::test]
async fn a_body_that_its_client_breaks_off_breaks_off_at_the_pod() -> Result<()> {
    let (stage, web) = plain().await?;
    let (sender, body) = channel();
    sender.send(Ok(Frame::data(Bytes::from_static(b"a part")))).await?;
    let asked =
        podlight_e2e::proxy::client::start(stage.proxy()?, request(Method::POST, &stage.host("web"), "/broken", body));
    eventually("it is asked", async || Ok(web.app.seen().iter().any(|seen| seen.target == "/broken").then_some(())))
        .await?;
    asked.abort();
    drop(sender);
    eventually("its connection is gone", async || Ok((web.app.open_connections() <= 1).then_some(()))).await?;
    let broken = web.app.seen().into_iter().find(|seen| seen.target == "/broken").context("not asked")?;
    ensure!(broken.body_sha256.is_empty(), "the part was passed off as the whole");
    Ok(())
}

#[tokio::test]
async fn a_put_with_a_full_body_arrives_once() -> Result<()> {
    let (stage, web) = plain().await?;
    let answer = ask(stage.proxy()?, request(Method::PUT, &stage.host("web"), "/thing", full("content"))).await?;
    assert_eq!(answer.seen()?.method, "PUT");
    assert_eq!(web.app.seen().iter().filter(|seen| seen.target == "/thing").count(), 1);
    Ok(())
}
