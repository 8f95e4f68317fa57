//! Bodies: large ones, in pieces, both ways at once, with trailers, broken off.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Frame;
use podlight_e2e::backend::answers::sha256;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{self, Connection, ask, channel, full, get, post, request, with};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{PATIENCE, h2c, plain, read_head, scripted};

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
async fn a_long_poll_waits_for_its_answer_and_keeps_nobody_else_waiting() -> Result<()> {
    for (stage, web) in [plain().await?, h2c().await?] {
        let (proxy, host) = (stage.proxy()?, stage.host("web"));
        let over_one = client::start(proxy, get(&host, "/gate?over=one"));
        let mut two = Connection::http2(proxy).await?;
        let over_two = two.start(get(&host, "/gate?over=two"))?;
        web.app.wait_at_gate(2).await?;
        for n in 0..20 {
            // Of a client of its own, and beside one of them on the same connection.
            stage.get("web", &format!("/{n}")).await?.seen()?;
            two.ask(get(&host, &format!("/{n}"))).await?.seen()?;
        }
        ensure!(!over_one.is_finished() && !over_two.is_finished(), "it was told before there was anything to tell");
        web.app.open_gate(true);
        assert_eq!(over_one.await??.seen()?.target, "/gate?over=one");
        assert_eq!(over_two.await??.seen()?.target, "/gate?over=two");
        let asked = web.app.seen().iter().filter(|seen| seen.target.starts_with("/gate")).count();
        assert_eq!(asked, 2, "each was asked once");
    }
    Ok(())
}

/// Answers in two parts of a known whole, each when it is told to; counts what it was asked.
async fn in_parts(mut stream: TcpStream, asked: watch::Sender<usize>, mut told: watch::Receiver<usize>) -> Result<()> {
    loop {
        read_head(&mut stream).await?;
        asked.send_modify(|count| *count += 1);
        told.wait_for(|parts| *parts > 0).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfirst").await?;
        told.wait_for(|parts| *parts > 1).await?;
        stream.write_all(b"last").await?;
    }
}

#[tokio::test]
async fn what_a_long_poll_has_to_tell_passes_as_it_comes_and_not_when_it_is_whole() -> Result<()> {
    let (asked, told) = (watch::Sender::new(0), watch::Sender::new(0));
    let pods = (asked.clone(), told.clone());
    let (stage, _web) = scripted(move |stream| in_parts(stream, pods.0.clone(), pods.1.subscribe())).await?;
    let host = stage.host("web");
    for mut connection in [Connection::http1(stage.proxy()?).await?, Connection::http2(stage.proxy()?).await?] {
        told.send_replace(0);
        let (before, mut arrived) = (*asked.borrow(), asked.subscribe());
        let waiting = connection.send(get(&host, "/"));
        tokio::pin!(waiting);
        tokio::select! {
            answer = &mut waiting => bail!("{} before there was anything to tell", answer?.status()),
            arrived = timeout(PATIENCE, arrived.wait_for(|count| *count > before)) => drop(arrived.context("not asked")??),
        }
        told.send_replace(1);
        let mut response = timeout(PATIENCE, waiting).await.context("its head is held back")??;
        for (parts, part) in [(1, "first"), (2, "last")] {
            told.send_replace(parts);
            let frame = timeout(PATIENCE, response.body_mut().frame()).await.context("it is buffered")?;
            assert_eq!(frame.context("ended")??.into_data().ok().context("no data")?, part);
        }
        ensure!(response.into_body().collect().await?.to_bytes().is_empty(), "more than was sent");
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
