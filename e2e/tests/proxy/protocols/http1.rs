//! HTTP/1.1 as it is written: kept and closed connections, pipelining, interim and early answers, answers without a body, targets.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use hyper::body::Frame;
use podlight_e2e::proxy::client::{Answer, Connection, ask, channel, empty, get, post, request};
use podlight_e2e::proxy::clients::curl;
use podlight_e2e::raw::{RawConnection, exchange};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{PATIENCE, h2c, plain, read_head, scripted};

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
