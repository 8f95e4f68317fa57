//! How requests are spread over the pods of a target.

use anyhow::{Result, ensure};
use podlight_e2e::proxy::client::{self, get};
use podlight_e2e::proxy::stage::Stage;
use podlight_proto::Kind;

#[tokio::test]
async fn requests_are_spread_over_all_ready_pods() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let mut webs = Vec::new();
    for n in 0..4 {
        webs.push(stage.ready_web("web", &format!("web-{n}")).await?);
    }
    stage.wait("web", "web-3", "ready pushed").await?;
    for _ in 0..400 {
        stage.get("web", "/").await?.seen()?;
    }
    for web in &webs {
        ensure!((40..=200).contains(&web.app.requests()), "{} of 400", web.app.requests());
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_is_busy_gets_fewer_requests_than_one_that_is_not() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let (busy, idle) = (stage.ready_web("web", "busy").await?, stage.ready_web("web", "idle").await?);
    stage.wait("web", "idle", "ready pushed").await?;
    idle.app.open_gate(true);
    // Whatever waits at the gate of the busy one stays in flight.
    for n in 1..=40 {
        drop(client::start(stage.proxy()?, get(&stage.host("web"), "/gate")));
        podlight_e2e::eventually::eventually("it is asked", async || {
            Ok((busy.app.requests() + idle.app.requests() == n).then_some(()))
        })
        .await?;
    }
    let (busy, idle) = (busy.app.requests(), idle.app.requests());
    ensure!(busy < idle, "{busy} to the busy one, {idle} to the other");
    Ok(())
}

#[tokio::test]
async fn a_pod_that_gets_ready_is_not_overrun() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let mut webs = Vec::new();
    for n in 0..3 {
        webs.push(stage.ready_web("web", &format!("old-{n}")).await?);
    }
    stage.wait("web", "old-2", "ready pushed").await?;
    let ask = |count: usize| -> Result<()> {
        for _ in 0..count {
            drop(client::start(stage.proxy()?, get(&stage.host("web"), "/gate")));
        }
        Ok(())
    };
    ask(60)?;
    podlight_e2e::eventually::eventually("all are asked", async || {
        Ok((webs.iter().map(|web| web.app.requests()).sum::<usize>() == 60).then_some(()))
    })
    .await?;
    let new = stage.ready_web("web", "new").await?;
    stage.wait("web", "new", "ready pushed").await?;
    ask(40)?;
    podlight_e2e::eventually::eventually("the others are asked too", async || {
        let all = webs.iter().map(|web| web.app.requests()).sum::<usize>() + new.app.requests();
        Ok((all == 100).then_some(()))
    })
    .await?;
    // It catches up (some 20 each is even), and does not get all of them.
    ensure!((10..=32).contains(&new.app.requests()), "{} of 40", new.app.requests());
    Ok(())
}

#[tokio::test]
async fn a_pod_that_stops_being_ready_gets_no_more_and_comes_back() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let (one, two) = (stage.ready_web("web", "one").await?, stage.ready_web("web", "two").await?);
    stage.wait("web", "two", "ready pushed").await?;
    one.pod.say(Kind::NotReady).await?;
    stage.wait("web", "one", "not-ready pushed").await?;
    let before = one.app.requests();
    for _ in 0..30 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "two");
    }
    assert_eq!(one.app.requests(), before);
    one.pod.say(Kind::Ready).await?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "one")).await?;
    drop(two);
    Ok(())
}
