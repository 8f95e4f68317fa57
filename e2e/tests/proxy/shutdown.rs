//! How an activator that takes requests ends: not ready first, then no new connection, then whatever is held or under way, then GOAWAY
//! and `Connection: close`, then the process.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{self, Answer, Connection, get};
use podlight_e2e::proxy::counts::wait_held;
use podlight_e2e::proxy::stage::{Stage, Web};
use podlight_proto::Kind;
use tokio::net::TcpStream;

async fn stage(grace: &str) -> Result<(Stage<'static>, Web)> {
    let stage = Stage::standalone_with(|spec| spec.flag("shutdown-grace", grace)).await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok((stage, web))
}

#[tokio::test]
async fn requests_under_way_are_answered_and_their_connections_closed_behind_them() -> Result<()> {
    let (stage, web) = stage("20s").await?;
    let mut one = Connection::http1(stage.proxy()?).await?;
    let two = Connection::http2(stage.proxy()?).await?;
    let over_two = two.start(get(&stage.host("web"), "/gate"))?;
    let host = stage.host("web");
    let over_one = tokio::spawn(async move {
        let answer = one.ask(get(&host, "/gate")).await?;
        Ok::<_, anyhow::Error>((answer, one))
    });
    web.app.wait_at_gate(2).await?;
    stage.activator().terminate()?;
    let proxy = stage.proxy()?;
    eventually("no new connection is taken", async || Ok(TcpStream::connect(proxy).await.is_err().then_some(())))
        .await?;
    ensure!(stage.activator().is_running(), "it ended with requests under way");
    web.app.open_gate(true);
    let (answer, one) = over_one.await??;
    answer.seen()?;
    assert_eq!(answer.header("connection"), "close");
    over_two.await??.seen()?;
    eventually("both connections end", async || Ok((one.is_closed() && two.is_closed()).then_some(()))).await?;
    ensure!(stage.activator().ended().await?.success(), "{}", stage.activator().log_tail());
    Ok(())
}

#[tokio::test]
async fn it_is_not_ready_before_it_stops_accepting() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("shutdown-delay", "3s")).await?;
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.activator().terminate()?;
    eventually("it is not ready", async || Ok((stage.activator().admin("/readyz").await?.status != 200).then_some(())))
        .await?;
    stage.get("web", "/").await?.seen()?;
    ensure!(stage.activator().ended().await?.success(), "{}", stage.activator().log_tail());
    Ok(())
}

#[tokio::test]
async fn a_held_request_is_answered_when_its_pod_gets_ready_within_the_grace() -> Result<()> {
    let (stage, web) = stage("20s").await?;
    web.pod.say(Kind::NotReady).await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    stage.activator().terminate()?;
    let proxy = stage.proxy()?;
    eventually("no new connection is taken", async || Ok(TcpStream::connect(proxy).await.is_err().then_some(())))
        .await?;
    ensure!(!held.is_finished(), "it was told before the grace ended");
    // Events are taken until no request waits for one.
    web.pod.say(Kind::Ready).await?;
    assert_eq!(held.await??.pod()?, "web-1");
    ensure!(stage.activator().ended().await?.success(), "{}", stage.activator().log_tail());
    Ok(())
}

#[tokio::test]
async fn whatever_is_held_when_the_grace_ends_is_told_and_the_process_ends() -> Result<()> {
    let (stage, web) = stage("2s").await?;
    web.pod.say(Kind::NotReady).await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held: Vec<_> =
        (0..10).map(|_| Ok(client::start(stage.proxy()?, get(&stage.host("web"), "/")))).collect::<Result<_>>()?;
    wait_held(stage.activator(), 10).await?;
    let begun = Instant::now();
    stage.activator().terminate()?;
    for answer in held {
        let answer: Answer = answer.await??;
        answer.refused(503)?;
    }
    stage.activator().ended().await?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test]
async fn idle_connections_do_not_keep_it() -> Result<()> {
    let (stage, _web) = stage("20s").await?;
    let (mut one, mut two) = (Connection::http1(stage.proxy()?).await?, Connection::http2(stage.proxy()?).await?);
    for connection in [&mut one, &mut two] {
        connection.ask(get(&stage.host("web"), "/")).await?.seen()?;
    }
    let _silent = TcpStream::connect(stage.proxy()?).await?;
    let begun = Instant::now();
    stage.activator().terminate()?;
    ensure!(stage.activator().ended().await?.success(), "{}", stage.activator().log_tail());
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    Ok(())
}
