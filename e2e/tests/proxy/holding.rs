//! Requests that wait for a ready pod: how many, how long, in which order, and what becomes of those whose client goes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podlight_e2e::proxy::client::{self, Connection, ask, get, post};
use podlight_e2e::proxy::counts::{HELD, open_files, wait_for, wait_held};
use podlight_e2e::proxy::stage::{Stage, Web};
use podlight_e2e::raw::RawConnection;
use podlight_proto::Kind;
use tokio::task::JoinHandle;

const CONCURRENCY: &str = "podlight.dev/concurrency";

/// A Service whose one pod listens and is not ready by its own word.
async fn waiting(stage: &Stage<'_>, service: &str) -> Result<Web> {
    stage.create_service(stage.service(service)).await?;
    let web = stage.web(service, &format!("{service}-1")).await?;
    web.pod.introduce().await?;
    stage.wait(service, &web.pod.name, "not-ready pushed").await?;
    Ok(web)
}

#[tokio::test]
async fn case_29_a_held_request_is_answered_when_its_pod_says_that_it_is_ready() -> Result<()> {
    let stage = Stage::standalone().await?;
    let web = waiting(&stage, "web").await?;
    let held = client::start(stage.proxy()?, post(&stage.host("web"), "/a?b", "some body"));
    wait_held(stage.activator(), 1).await?;
    assert_eq!(web.app.connections(), 0, "nothing is asked of a pod that is not ready");
    web.pod.say(Kind::Ready).await?;
    let seen = held.await??.seen()?;
    assert_eq!((seen.pod.as_str(), seen.body_bytes), ("web-1", 9));
    wait_held(stage.activator(), 0).await?;
    let metrics = stage.activator().metrics().await?;
    assert_eq!(metrics.sum("podlight_proxy_released_total", &[("source", "push")]), 1.0);
    Ok(())
}

#[tokio::test]
async fn case_29_a_held_request_is_answered_when_the_api_server_says_that_a_pod_is_ready() -> Result<()> {
    let stage = Stage::on(crate::scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").headless()).await?;
    let web = stage.web("web", "web-1").await?;
    stage.wait("web", "web-1", "not-ready observed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    stage.set_state("web-1", &podlight_e2e::proxy::stage::running_ready(web.pod.address)).await?;
    assert_eq!(held.await??.pod()?, "web-1");
    let metrics = stage.activator().metrics().await?;
    for (source, released) in [("watch", 1.0), ("push", 0.0)] {
        assert_eq!(metrics.sum("podlight_proxy_released_total", &[("source", source)]), released, "{source}");
        assert_eq!(metrics.sum("podlight_proxy_held_seconds_count", &[("source", source)]), released, "{source}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_for_a_service_without_any_pod_are_held_until_one_comes() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let held = async {
        loop {
            let answer = stage.get("web", "/").await?;
            // The Service itself is read from its manifest first.
            if answer.status != 404 {
                return answer.pod();
            }
        }
    };
    let come = async {
        wait_held(stage.activator(), 1).await?;
        stage.ready_web("web", "web-1").await
    };
    let (answered, web) = tokio::join!(held, come);
    drop(web?);
    assert_eq!(answered?, "web-1");
    Ok(())
}

#[tokio::test]
async fn case_31_more_than_a_target_may_hold_are_503_with_retry_after_and_no_other_target_minds() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("max-held-per-target", "3").flag("max-held", "100")).await?;
    let (web, other) = (waiting(&stage, "web").await?, waiting(&stage, "other").await?);
    let held = start_many(&stage, "web", 3)?;
    wait_held(stage.activator(), 3).await?;
    let answer = stage.get("web", "/").await?;
    answer.refused(503)?;
    assert_eq!(answer.header("retry-after"), "1");
    let others = start_many(&stage, "other", 3)?;
    wait_held(stage.activator(), 6).await?;
    for web in [&web, &other] {
        web.pod.say(Kind::Ready).await?;
    }
    for answer in held.into_iter().chain(others) {
        answer.await??.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn case_31_more_than_may_be_held_in_total_are_503_and_room_comes_back() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("max-held", "2")).await?;
    let (web, other) = (waiting(&stage, "web").await?, waiting(&stage, "other").await?);
    let third = waiting(&stage, "third").await?;
    let mut held = start_many(&stage, "web", 1)?;
    held.extend(start_many(&stage, "other", 1)?);
    wait_held(stage.activator(), 2).await?;
    let answer = stage.get("third", "/").await?;
    answer.refused(503)?;
    assert_eq!((answer.error(), answer.header("retry-after")), ("queue-full", "1"));
    for web in [&web, &other] {
        web.pod.say(Kind::Ready).await?;
    }
    for answer in held {
        answer.await??.seen()?;
    }
    let later = start_many(&stage, "third", 1)?;
    wait_held(stage.activator(), 1).await?;
    third.pod.say(Kind::Ready).await?;
    for answer in later {
        answer.await??.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_target_in_a_rush_leaves_room_for_held_requests_of_the_others() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("max-held", "16")).await?;
    let (rush, quiet) = (waiting(&stage, "rush").await?, waiting(&stage, "quiet").await?);
    let rushed = start_many(&stage, "rush", 40)?;
    // Of sixteen places it gets no more than it leaves.
    wait_for(stage.activator(), "podlight_proxy_hold_refused_total", 32.0).await?;
    wait_held(stage.activator(), 8).await?;
    let calm = start_many(&stage, "quiet", 4)?;
    wait_held(stage.activator(), 12).await?;
    for web in [&quiet, &rush] {
        web.pod.say(Kind::Ready).await?;
    }
    for answer in calm {
        assert_eq!(answer.await??.pod()?, "quiet-1");
    }
    let mut answered = 0;
    for answer in rushed {
        answered += usize::from(answer.await??.status == 200);
    }
    assert_eq!(answered, 8);
    Ok(())
}

#[tokio::test]
async fn a_request_is_held_until_its_deadline_and_told_504() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("hold-timeout", "1s")).await?;
    let _web = waiting(&stage, "web").await?;
    let begun = Instant::now();
    stage.get("web", "/").await?.refused(504)?;
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(1) && took < Duration::from_secs(4), "{took:?}");
    wait_held(stage.activator(), 0).await?;
    // A target's own deadline goes before: it is held while whoever came later is told.
    stage.create_service(stage.service("own").annotation("podlight.dev/hold-timeout", "60s")).await?;
    let own = stage.web("own", "own-1").await?;
    own.pod.introduce().await?;
    stage.wait("own", "own-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("own"), "/"));
    wait_held(stage.activator(), 1).await?;
    stage.get("web", "/").await?.refused(504)?;
    wait_held(stage.activator(), 1).await?;
    own.pod.say(Kind::Ready).await?;
    assert_eq!(held.await??.pod()?, "own-1");
    Ok(())
}

#[tokio::test]
async fn case_31_a_client_that_goes_frees_its_slot_its_descriptor_and_its_place_in_the_queue() -> Result<()> {
    let stage = Stage::standalone_with(|spec| spec.flag("max-held-per-target", "20")).await?;
    let web = waiting(&stage, "web").await?;
    let process = stage.activator().id().context("ended")?;
    let files = open_files(process)?;
    for _ in 0..3 {
        let held = start_many(&stage, "web", 10)?;
        let mut two = Connection::http2(stage.proxy()?).await?;
        let mut streams = Vec::new();
        for _ in 0..10 {
            streams.push(two.start(get(&stage.host("web"), "/"))?);
        }
        wait_held(stage.activator(), 20).await?;
        // HTTP/1.1 clients close, HTTP/2 ones reset their streams first.
        streams.iter().for_each(JoinHandle::abort);
        held.iter().for_each(JoinHandle::abort);
        wait_held(stage.activator(), 0).await?;
        let _ = two.ask(get("nobody.example", "/")).await?.refused(404)?;
    }
    podlight_e2e::eventually::eventually("descriptors are given back", async || {
        let now = open_files(process)?;
        ensure!(now <= files + 3, "{files} before, {now} now");
        Ok(Some(()))
    })
    .await?;
    web.pod.say(Kind::Ready).await?;
    stage.get("web", "/").await?.seen()?;
    assert_eq!(web.app.requests(), 1, "requests without client are not sent");
    Ok(())
}

#[tokio::test]
async fn held_requests_are_released_in_the_order_in_which_they_came() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").annotation(CONCURRENCY, "1")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let mut held = Vec::new();
    for n in 0..20 {
        held.push(client::start(stage.proxy()?, get(&stage.host("web"), &format!("/{n}"))));
        wait_held(stage.activator(), n + 1).await?;
    }
    web.pod.say(Kind::Ready).await?;
    for answer in held {
        answer.await??.seen()?;
    }
    let order: Vec<String> = web.app.seen().into_iter().map(|seen| seen.target).collect();
    let expected: Vec<String> = (0..20).map(|n| format!("/{n}")).collect();
    assert_eq!(order, expected);
    Ok(())
}

#[tokio::test]
async fn case_31_a_pod_never_has_more_than_its_concurrency_also_when_a_full_queue_is_released() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").annotation(CONCURRENCY, "3")).await?;
    let webs = [stage.web("web", "web-1").await?, stage.web("web", "web-2").await?];
    for web in &webs {
        web.pod.introduce().await?;
    }
    stage.wait("web", "web-2", "not-ready pushed").await?;
    let held = start_many_at(&stage, "web", "/gate", 50)?;
    wait_held(stage.activator(), 50).await?;
    for web in &webs {
        web.pod.say(Kind::Ready).await?;
        web.app.wait_at_gate(3).await?;
    }
    wait_held(stage.activator(), 44).await?;
    for web in &webs {
        web.app.open_gate(true);
    }
    for answer in held {
        answer.await??.seen()?;
    }
    for web in &webs {
        ensure!(web.app.most_at_gate() <= 3, "{} at once", web.app.most_at_gate());
        ensure!(web.app.requests() > 3, "{} only", web.app.requests());
    }
    Ok(())
}

#[tokio::test]
async fn requests_beyond_a_pods_concurrency_wait_for_a_slot_and_a_client_that_goes_gives_its_own_back() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").annotation(CONCURRENCY, "1")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let first = client::start(stage.proxy()?, get(&stage.host("web"), "/gate"));
    web.app.wait_at_gate(1).await?;
    let second = client::start(stage.proxy()?, get(&stage.host("web"), "/second"));
    wait_held(stage.activator(), 1).await?;
    first.abort();
    assert_eq!(second.await??.seen()?.target, "/second");
    Ok(())
}

#[tokio::test]
async fn case_31_waking_one_target_touches_no_other() -> Result<()> {
    let stage = Stage::standalone().await?;
    let (web, other) = (waiting(&stage, "web").await?, waiting(&stage, "other").await?);
    let (held, others) = (start_many(&stage, "web", 5)?, start_many(&stage, "other", 5)?);
    wait_held(stage.activator(), 10).await?;
    web.pod.say(Kind::Ready).await?;
    for answer in held {
        assert_eq!(answer.await??.pod()?, "web-1");
    }
    wait_held(stage.activator(), 5).await?;
    assert_eq!(other.app.connections(), 0);
    other.pod.say(Kind::Ready).await?;
    for answer in others {
        assert_eq!(answer.await??.pod()?, "other-1");
    }
    Ok(())
}

#[tokio::test]
async fn a_body_is_not_read_while_its_request_is_held() -> Result<()> {
    const BODY: usize = 64 << 20;
    let stage = Stage::standalone().await?;
    let web = waiting(&stage, "web").await?;
    let process = stage.activator().id().context("ended")?;
    let before = podlight_e2e::bench::usage::memory_mib(process, "VmRSS")?;
    let held = client::start(stage.proxy()?, post(&stage.host("web"), "/", vec![b'x'; BODY]));
    wait_held(stage.activator(), 1).await?;
    let after = podlight_e2e::bench::usage::memory_mib(process, "VmRSS")?;
    ensure!(after - before < 8.0, "{before} MiB before, {after} while a body of 64 MiB waits");
    web.pod.say(Kind::Ready).await?;
    assert_eq!(held.await??.seen()?.body_bytes, BODY);
    Ok(())
}

#[tokio::test]
async fn a_thousand_held_requests_are_all_answered_by_one_ready_event() -> Result<()> {
    let stage = Stage::standalone().await?;
    let web = waiting(&stage, "web").await?;
    let held = start_many(&stage, "web", 1000)?;
    wait_held(stage.activator(), 1000).await?;
    web.pod.say(Kind::Ready).await?;
    for answer in held {
        answer.await??.seen()?;
    }
    assert_eq!(web.app.requests(), 1000, "each once");
    wait_for(stage.activator(), HELD, 0.0).await?;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_was_held_is_kept_and_its_pipelined_requests_are_answered_in_order() -> Result<()> {
    let stage = Stage::standalone().await?;
    let web = waiting(&stage, "web").await?;
    let mut connection = RawConnection::open(stage.proxy()?.port()).await?;
    let host = stage.host("web");
    connection.send(format!("GET /1 HTTP/1.1\r\nhost: {host}\r\n\r\nGET /2 HTTP/1.1\r\nhost: {host}\r\n\r\n")).await?;
    wait_held(stage.activator(), 1).await?;
    web.pod.say(Kind::Ready).await?;
    let first = connection.answer().await?;
    ensure!(first.status == Some(200) && first.body.contains("\"/1\""), "{first:?}");
    podlight_e2e::eventually::eventually("both are asked", async || Ok((web.app.requests() == 2).then_some(())))
        .await?;
    let order: Vec<String> = web.app.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(order, ["/1", "/2"]);
    Ok(())
}

#[tokio::test]
async fn case_31_an_activator_that_starts_anew_holds_until_it_knows() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.activator().kill();
    stage.activator().start().await?;
    // Its sidecar has not told the new one yet, and the kubelet never found it ready.
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    web.pod.ready().await?;
    assert_eq!(held.await??.pod()?, "web-1");
    ask(stage.proxy()?, get(&stage.host("web"), "/")).await?.seen()?;
    Ok(())
}

fn start_many(stage: &Stage<'_>, service: &str, count: usize) -> Result<Vec<JoinHandle<Result<client::Answer>>>> {
    start_many_at(stage, service, "/", count)
}

fn start_many_at(
    stage: &Stage<'_>,
    service: &str,
    path: &str,
    count: usize,
) -> Result<Vec<JoinHandle<Result<client::Answer>>>> {
    (0..count).map(|_| Ok(client::start(stage.proxy()?, get(&stage.host(service), path)))).collect()
}

#[tokio::test]
async fn bodies_of_held_requests_are_bounded_in_bytes_and_more_are_503() -> Result<()> {
    const LARGE: usize = 1 << 20;
    let stage = Stage::standalone_with(|spec| spec.flag("max-held-body-mib", "1")).await?;
    let web = waiting(&stage, "web").await?;
    let connection = Connection::http2(stage.proxy()?).await?;
    let started = |body: usize| connection.start(post(&stage.host("web"), "/", vec![b'x'; body]));
    // Of each, HTTP/2 lets the client send 64 KiB before anybody reads: sixteen and a bit of them are a MiB.
    let held: Vec<_> = (0..16).map(|_| started(LARGE)).collect::<Result<_>>()?;
    wait_held(stage.activator(), 16).await?;
    let refused = started(LARGE)?.await??;
    refused.refused(503)?;
    assert_eq!(refused.error(), "queue-full");
    let bodiless = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 17).await?;
    web.pod.say(Kind::Ready).await?;
    for answer in held {
        assert_eq!(answer.await??.seen()?.body_bytes, LARGE);
    }
    assert_eq!(bodiless.await??.seen()?.body_bytes, 0);
    Ok(())
}
