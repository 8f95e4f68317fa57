//! Pods that refuse, hang, reset and die: who is asked instead, who is not asked twice, and what the client is told.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::Method;
use podlight_e2e::backend::Backend;
use podlight_e2e::control_plane::ServiceSpec;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{self, Connection, ask, full, get, post, request};
use podlight_e2e::proxy::counts::{QUARANTINES, RETRIES, wait_held};
use podlight_e2e::proxy::stage::{Stage, Web, nowhere};
use podlight_proto::Kind;
use serde_json::Value;

/// The Service `web` with ready pods of these names, all of them known.
async fn pods(stage: &Stage<'_>, names: &[&str]) -> Result<Vec<Web>> {
    pods_of(stage, stage.service("web"), names).await
}

/// The same with a Service that differs.
async fn pods_of(stage: &Stage<'_>, service: ServiceSpec, names: &[&str]) -> Result<Vec<Web>> {
    stage.create_service(service).await?;
    let mut webs = Vec::new();
    for name in names {
        webs.push(stage.ready_web("web", name).await?);
        stage.wait("web", name, "ready pushed").await?;
    }
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok(webs)
}

/// How long each pod of `web` that is in quarantine will still be, in seconds.
async fn quarantines(stage: &Stage<'_>) -> Result<Vec<(String, f64)>> {
    let status: Value = serde_json::from_str(&stage.activator().admin("/status").await?.body)?;
    let targets = status["state"]["targets"].as_array().context("no targets")?;
    let web = targets.iter().find(|target| target["service"] == "web").context("no target")?;
    let backends = web["backends"].as_array().into_iter().flatten();
    let shut = backends.filter_map(|backend| Some((&backend["pod"], backend["quarantine_seconds"].as_f64()?)));
    shut.map(|(pod, seconds)| Ok((pod.as_str().context("no pod")?.to_owned(), seconds))).collect()
}

/// Seconds. Five refusals in a row shut a pod for twice as long, and [`shut_two`] holds no request for a tenth of it.
const LONG: f64 = 8.0;

/// Two pods of these names that are dead and in quarantine for more than [`LONG`], the one tried longest ago first.
async fn shut_two(stage: &Stage<'_>, names: [&str; 2]) -> Result<(Vec<Web>, Vec<String>)> {
    let service = stage.service("web").annotation("podlight.dev/hold-timeout", "300ms");
    let webs = pods_of(stage, service, &names).await?;
    for web in &webs {
        web.app.die().await;
    }
    for n in 1..=5_u32 {
        let answer = stage.get("web", "/").await?;
        answer.refused(502)?;
        assert_eq!(answer.error(), "connect", "it was not even tried");
        let refused = stage.activator().metrics().await?.sum(QUARANTINES, &[("reason", "refused")]);
        ensure!(refused >= f64::from(2 * n), "of {n} requests not each was tried on both: {refused} were refused");
    }
    let mut shut = eventually("both are in quarantine for long", async || {
        let shut = quarantines(stage).await?;
        ensure!(shut.len() == 2 && shut.iter().all(|(_, seconds)| *seconds > LONG), "{shut:?}");
        Ok(Some(shut))
    })
    .await?;
    shut.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    Ok((webs, shut.into_iter().map(|(pod, _)| pod).collect()))
}

#[tokio::test]
async fn case_30_a_refused_connection_goes_to_another_endpoint_and_the_pod_is_quarantined() -> Result<()> {
    let stage = Stage::standalone().await?;
    let webs = pods(&stage, &["dead", "alive"]).await?;
    webs[0].app.die().await;
    for n in 0..50 {
        // Nothing was sent, so even what must not be repeated goes to the other.
        let answer = ask(stage.proxy()?, post(&stage.host("web"), "/", format!("{n}"))).await?;
        assert_eq!(answer.pod()?, "alive");
    }
    let metrics = stage.activator().metrics().await?;
    ensure!(metrics.sum(QUARANTINES, &[]) >= 1.0, "no quarantine");
    ensure!(metrics.sum(RETRIES, &[]) < 10.0, "it is asked again and again: {}", metrics.sum(RETRIES, &[]));
    Ok(())
}

#[tokio::test]
async fn a_quarantine_ends_by_a_new_ready_event() -> Result<()> {
    let stage = Stage::standalone().await?;
    let (webs, _) = shut_two(&stage, ["back", "away"]).await?;
    webs[0].pod.say(Kind::NotReady).await?;
    webs[0].app.listen()?;
    webs[0].pod.say(Kind::Ready).await?;
    // Both were shut at the same time, and nothing has been asked since.
    eventually("only the other one is in quarantine", async || {
        let shut = quarantines(&stage).await?;
        ensure!(matches!(&shut[..], [(pod, seconds)] if pod == "away" && *seconds > 0.0), "{shut:?}");
        Ok(Some(()))
    })
    .await?;
    let retries = stage.activator().metrics().await?.sum(RETRIES, &[]);
    for _ in 0..10 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "back");
    }
    assert_eq!(stage.activator().metrics().await?.sum(RETRIES, &[]), retries, "the other one was tried");
    Ok(())
}

#[tokio::test]
async fn a_quarantine_ends_by_itself_for_a_pod_that_came_back_without_a_word() -> Result<()> {
    let stage = Stage::standalone().await?;
    let webs = pods(&stage, &["flaky", "steady"]).await?;
    webs[0].app.die().await;
    for _ in 0..20 {
        stage.get("web", "/").await?.seen()?;
    }
    webs[0].app.listen()?;
    stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "flaky")).await?;
    Ok(())
}

#[tokio::test]
async fn when_all_are_quarantined_the_oldest_is_tried_rather_than_failing() -> Result<()> {
    let stage = Stage::standalone().await?;
    let (webs, oldest_first) = shut_two(&stage, ["one", "two"]).await?;
    for web in &webs {
        web.app.listen()?;
    }
    // Nobody has said that they are back, and a request that waited for the end of a quarantine would not live to see it.
    assert_eq!(stage.get("web", "/").await?.pod()?, oldest_first[0]);
    Ok(())
}

#[tokio::test]
async fn the_only_pod_that_goes_on_refusing_is_502_that_says_so() -> Result<()> {
    let stage = Stage::standalone().await?;
    let webs = pods(&stage, &["only"]).await?;
    webs[0].app.die().await;
    let answer = stage.get("web", "/").await?;
    answer.refused(502)?;
    assert_eq!(answer.error(), "connect");
    Ok(())
}

#[tokio::test]
async fn case_30_a_node_that_is_gone_costs_three_connect_timeouts_and_then_nothing() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("connect-timeout", "300ms")).await?;
    let webs = pods(&stage, &["lost", "alive"]).await?;
    webs[0].app.close_connections();
    webs[0].app.blackhole().await?;
    let mut slow = 0;
    for _ in 0..60 {
        let begun = Instant::now();
        assert_eq!(stage.get("web", "/").await?.pod()?, "alive");
        slow += usize::from(begun.elapsed() > Duration::from_millis(250));
    }
    // Three strikes.
    ensure!(slow <= 4, "{slow} of 60 waited for the lost one");
    Ok(())
}

#[tokio::test]
async fn the_only_pod_on_a_node_that_is_gone_is_504_that_says_so() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("connect-timeout", "300ms")).await?;
    let webs = pods(&stage, &["lost"]).await?;
    webs[0].app.close_connections();
    webs[0].app.blackhole().await?;
    let answer = stage.get("web", "/").await?;
    answer.refused(504)?;
    assert_eq!(answer.error(), "connect-timeout");
    Ok(())
}

#[tokio::test]
async fn a_get_whose_connection_ends_before_an_answer_is_asked_of_another() -> Result<()> {
    for path in ["/close", "/reset"] {
        let stage = Stage::standalone().await?;
        let webs = pods(&stage, &["one"]).await?;
        // Every pod ends it: it is asked of each, and then told.
        let _two = stage.ready_web("web", "two").await?;
        stage.wait("web", "two", "ready pushed").await?;
        let answer = stage.get("web", path).await?;
        answer.refused(502)?;
        let asked = webs[0].app.seen().iter().chain(&_two.app.seen()).filter(|seen| seen.target == path).count();
        // Three tries, and one more where a kept connection might merely have been closed.
        ensure!((2..=4).contains(&asked), "{path}: asked {asked} times");
    }
    Ok(())
}

#[tokio::test]
async fn a_get_survives_a_pod_that_resets_in_the_middle_of_others() -> Result<()> {
    let stage = Stage::standalone().await?;
    let webs = pods(&stage, &["dying", "alive"]).await?;
    let held: Vec<_> =
        (0..20).map(|_| Ok(client::start(stage.proxy()?, get(&stage.host("web"), "/gate")))).collect::<Result<_>>()?;
    eventually("all are asked", async || {
        Ok((webs.iter().map(|web| web.app.seen().iter().filter(|seen| seen.target == "/gate").count()).sum::<usize>()
            == 20)
            .then_some(()))
    })
    .await?;
    webs[1].app.open_gate(true);
    webs[0].app.die().await;
    for answer in held {
        assert_eq!(answer.await??.pod()?, "alive");
    }
    Ok(())
}

#[tokio::test]
async fn a_post_that_was_sent_is_never_sent_twice() -> Result<()> {
    for path in ["/close", "/reset"] {
        let stage = Stage::standalone().await?;
        let webs = pods(&stage, &["one", "two"]).await?;
        for n in 0..5 {
            let answer = ask(stage.proxy()?, post(&stage.host("web"), path, format!("order {n}"))).await?;
            answer.refused(502)?;
        }
        let asked = webs.iter().flat_map(|web| web.app.seen()).filter(|seen| seen.target == path).count();
        assert_eq!(asked, 5, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn a_post_on_a_kept_connection_that_was_closed_meanwhile_is_sent_once_and_not_lost() -> Result<()> {
    let stage = Stage::standalone().await?;
    let webs = pods(&stage, &["only"]).await?;
    for n in 0..20 {
        ask(stage.proxy()?, post(&stage.host("web"), "/order", format!("{n}"))).await?.seen()?;
        // Its keep-alive runs out.
        webs[0].app.close_connections();
        eventually("it is closed", async || Ok((webs[0].app.open_connections() == 0).then_some(()))).await?;
    }
    let orders = webs[0].app.seen().iter().filter(|seen| seen.target == "/order").count();
    assert_eq!(orders, 20);
    Ok(())
}

#[tokio::test]
async fn a_put_with_a_body_that_was_read_is_not_sent_again() -> Result<()> {
    let stage = Stage::standalone().await?;
    let webs = pods(&stage, &["one", "two"]).await?;
    let put = request(Method::PUT, &stage.host("web"), "/close", full(vec![b'x'; 1 << 20]));
    let answer = ask(stage.proxy()?, put).await?;
    ensure!(answer.status == 502, "{answer:?}");
    let asked = webs.iter().flat_map(|web| web.app.seen()).filter(|seen| seen.target == "/close").count();
    assert_eq!(asked, 1);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client_too() -> Result<()> {
    let stage = Stage::standalone().await?;
    let _webs = pods(&stage, &["one", "two"]).await?;
    for path in ["/close-midway", "/reset-midway"] {
        let mut one = Connection::http1(stage.proxy()?).await?;
        let response = one.send(get(&stage.host("web"), path)).await?;
        assert_eq!(response.status(), 200, "{path}");
        let read = client::Answer::read(response).await;
        ensure!(read.is_err(), "{path}: a part was passed off as the whole: {read:?}");
        let two = Connection::http2(stage.proxy()?).await?.ask(get(&stage.host("web"), path)).await;
        ensure!(two.is_err(), "{path} over HTTP/2: {two:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_never_answers_is_504_when_a_response_timeout_is_set() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("response-timeout", "500ms")).await?;
    let webs = pods(&stage, &["only"]).await?;
    ask(stage.proxy()?, post(&stage.host("web"), "/never", "x")).await?.refused(504)?;
    assert_eq!(webs[0].app.seen().iter().filter(|seen| seen.target == "/never").count(), 1);
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_502() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let garbage = Backend::scripted("garbage", async |mut stream| {
        use tokio::io::AsyncWriteExt;
        stream.write_all(b"220 mail.example.com ESMTP\r\n").await?;
        Ok(())
    })?;
    let _web = stage.ready_with("web", "garbage", garbage).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 502).await?.refused(502)?;
    Ok(())
}

#[tokio::test]
async fn a_drained_pods_connections_are_not_used_again_and_those_in_flight_finish() -> Result<()> {
    let stage = Stage::standalone().await?;
    let webs = pods(&stage, &["leaving", "staying"]).await?;
    let leaving = &webs[0];
    let held: Vec<_> =
        (0..20).map(|_| Ok(client::start(stage.proxy()?, get(&stage.host("web"), "/gate")))).collect::<Result<_>>()?;
    eventually("all are asked", async || {
        let asked: usize =
            webs.iter().map(|web| web.app.seen().iter().filter(|seen| seen.target == "/gate").count()).sum();
        Ok((asked == 20).then_some(()))
    })
    .await?;
    ensure!(leaving.app.open_connections() > 0, "it has none: the case proves nothing");
    leaving.pod.say(Kind::Draining).await?;
    stage.wait("web", "leaving", "draining pushed").await?;
    let before = leaving.app.requests();
    for _ in 0..20 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "staying");
    }
    assert_eq!(leaving.app.requests(), before);
    webs.iter().for_each(|web| web.app.open_gate(true));
    for answer in held {
        answer.await??.seen()?;
    }
    eventually("its connections are closed", async || Ok((leaving.app.open_connections() == 0).then_some(()))).await?;
    Ok(())
}

#[tokio::test]
async fn case_30_a_request_held_for_a_pod_that_says_ready_too_early_is_answered_when_it_listens() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let app = Backend::at("early", nowhere());
    let pod = stage.pod_at("web", "early", app.address().ip()).await?;
    pod.introduce().await?;
    stage.wait("web", "early", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    pod.say(Kind::Ready).await?;
    eventually("it has refused", async || {
        let metrics = stage.activator().metrics().await?;
        Ok((metrics.sum(QUARANTINES, &[("reason", "refused")]) >= 1.0).then_some(()))
    })
    .await?;
    ensure!(!held.is_finished(), "it was told before the pod listened");
    app.listen()?;
    assert_eq!(held.await??.pod()?, "early");
    assert_eq!(app.requests(), 1);
    Ok(())
}
