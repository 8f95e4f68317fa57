//! gRPC through the proxy: a real client and a real server, unary and streaming, held, and our own errors in its own words.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use podlight_e2e::backend::grpc::{EchoClient, Said};
use podlight_e2e::proxy::client::{Connection, post, with};
use podlight_e2e::proxy::counts::wait_held;
use podlight_e2e::proxy::stage::{Stage, Web};
use podlight_proto::Kind;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Code;

async fn stage() -> Result<(Stage<'static>, Web)> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").app_protocol("kubernetes.io/h2c")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok((stage, web))
}

#[tokio::test]
async fn a_unary_call_is_answered_and_its_status_passed_on() -> Result<()> {
    let (stage, _web) = stage().await?;
    let mut client = EchoClient::connect(stage.proxy()?, &stage.host("web")).await?;
    let said = client.say("hello").await?.into_inner();
    assert_eq!((said.text.as_str(), said.pod.as_str()), ("hello", "web-1"));
    for code in [Code::NotFound, Code::FailedPrecondition, Code::Unauthenticated] {
        let status = client.say(&format!("fail:{}", code as i32)).await.err().context("it did not fail")?;
        assert_eq!((status.code(), status.message()), (code, "as asked"));
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_from_the_server_ends_with_its_trailers() -> Result<()> {
    let (stage, _web) = stage().await?;
    let mut client = EchoClient::connect(stage.proxy()?, &stage.host("web")).await?;
    let mut answers = client.repeat("again", 1000).await?;
    let mut count = 0;
    while let Some(said) = answers.message().await? {
        assert_eq!(said.number, count);
        count += 1;
    }
    assert_eq!(count, 1000);
    ensure!(answers.trailers().await?.is_some(), "no trailers");
    Ok(())
}

#[tokio::test]
async fn both_sides_talk_at_once_each_message_as_it_is_said() -> Result<()> {
    let (stage, _web) = stage().await?;
    let mut client = EchoClient::connect(stage.proxy()?, &stage.host("web")).await?;
    let (sender, receiver) = mpsc::channel::<Said>(1);
    let said = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let say = |number: u32| Said { text: format!("message {number}"), number, ..Said::default() };
    sender.send(say(0)).await?;
    let mut answers = client.talk(said).await?;
    for number in 0..20 {
        if number > 0 {
            sender.send(say(number)).await?;
        }
        let answer = timeout(Duration::from_secs(20), answers.next()).await.context("it is buffered")?;
        assert_eq!(answer.context("ended")??.number, number);
    }
    drop(sender);
    ensure!(answers.next().await.is_none(), "more than was said");
    Ok(())
}

#[tokio::test]
async fn a_call_is_held_until_its_pod_is_ready() -> Result<()> {
    let (stage, web) = stage().await?;
    web.pod.say(Kind::NotReady).await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let mut client = EchoClient::connect(stage.proxy()?, &stage.host("web")).await?;
    let held = tokio::spawn(async move { client.say("held").await.map(tonic::Response::into_inner) });
    wait_held(stage.activator(), 1).await?;
    web.pod.say(Kind::Ready).await?;
    assert_eq!(held.await??.pod, "web-1");
    Ok(())
}

#[tokio::test]
async fn our_own_errors_are_grpc_statuses_with_http_200() -> Result<()> {
    let (stage, web) = stage().await?;
    let mut stranger = EchoClient::connect(stage.proxy()?, "nobody.example").await?;
    let status = stranger.say("x").await.err().context("somebody answered")?;
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    ensure!(status.message().contains("nobody.example"), "{status:?}");
    web.app.die().await;
    let mut client = EchoClient::connect(stage.proxy()?, &stage.host("web")).await?;
    let status = client.say("x").await.err().context("a dead pod answered")?;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    stage.annotate("web", "podlight.dev/hold-timeout", Some("1s")).await?;
    web.pod.say(Kind::NotReady).await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    podlight_e2e::eventually::eventually("the hold ends", async || {
        let status = client.say("x").await.err().context("nobody is ready")?;
        ensure!(status.code() == Code::DeadlineExceeded, "{status:?}");
        Ok(Some(()))
    })
    .await?;
    // By hand: trailers only, no body.
    let asked = with(post("nobody.example", "/a.B/C", ""), "content-type", "application/grpc");
    let answer = Connection::http2(stage.proxy()?).await?.ask(with(asked, "te", "trailers")).await?;
    assert_eq!((answer.status, answer.header("content-type"), answer.body.len()), (200, "application/grpc", 0));
    ensure!(!answer.header("grpc-status").is_empty() && !answer.error().is_empty(), "{answer:?}");
    Ok(())
}
