//! Bodies: large ones, in pieces, both ways at once, with trailers, broken off.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Frame;
use podlight_e2e::backend::answers::sha256;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{Connection, ask, channel, full, get, post, request, with};
use tokio::time::timeout;

use super::{PATIENCE, h2c, plain};

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
