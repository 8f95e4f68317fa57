//! Events in any order, and pods whose word does not prove that they can be reached: cases 29 and 32 of the endpoint notes.

use anyhow::{Result, ensure};
use podlight_e2e::backend::Backend;
use podlight_e2e::control_plane::PodState;
use podlight_e2e::proxy::client::{self, ask, get, post};
use podlight_e2e::proxy::counts::wait_held;
use podlight_e2e::proxy::stage::{ROUTE, Stage};
use podlight_e2e::scene::seconds_ago;
use podlight_proto::{Kind, Outcome};

use crate::{gateway, scene};

const HOLD: &str = "podlight.dev/hold-timeout";

#[tokio::test]
async fn case_29_repeated_late_and_reordered_events_send_no_request_where_the_last_word_is_no() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").annotation(HOLD, "300ms")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let (base, sender) = (stage.activator().url(), web.pod.sender());
    let (early, late) = (sender.event(Kind::Ready).sign(), sender.event(Kind::NotReady).sign());
    assert_eq!(early.post(&base).await?.outcome()?, Outcome::Applied);
    assert_eq!(stage.get("web", "/").await?.pod()?, "web-1");
    assert_eq!(early.post(&base).await?.outcome()?, Outcome::Duplicate, "it came twice");
    assert_eq!(late.post(&base).await?.outcome()?, Outcome::Applied);
    assert_eq!(early.post(&base).await?.outcome()?, Outcome::Superseded, "it was replayed");
    let asked = web.app.requests();
    stage.get("web", "/").await?.refused(504)?;
    // The sequence goes on from here in the other order.
    let (early, late) = (sender.event(Kind::NotReady).sign(), sender.event(Kind::Ready).sign());
    assert_eq!(late.post(&base).await?.outcome()?, Outcome::Applied);
    assert_eq!(early.post(&base).await?.outcome()?, Outcome::Superseded, "it was overtaken");
    assert_eq!(stage.get("web", "/").await?.pod()?, "web-1");
    assert_eq!(web.app.requests(), asked + 1);
    Ok(())
}

#[tokio::test]
async fn case_29_a_drain_is_final_for_its_boot_and_a_newer_one_is_asked_again() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    let base = stage.activator().url();
    // Before it was ever ready, and ready all the same says the same boot.
    for kind in [Kind::Draining, Kind::Ready] {
        web.pod.say(kind).await?;
    }
    stage.wait("web", "web-1", "draining pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    assert_eq!(web.app.requests(), 0);
    let restarted = web.pod.sender().restarted()?;
    restarted.introduce(&base, &web.pod.token).await?;
    restarted.tell(&base, Kind::Ready).await?;
    assert_eq!(held.await??.pod()?, "web-1");
    // What the boot before had on its way counts no longer.
    drop(web.pod.say(Kind::Draining).await);
    assert_eq!(stage.get("web", "/").await?.pod()?, "web-1");
    Ok(())
}

#[tokio::test]
async fn case_29_a_slice_that_is_ready_before_any_push_and_a_push_that_is_lost_cost_nothing_but_time() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    // Its "ready" never arrives; the kubelet finds out by itself, in a second after that of the "not-ready".
    let found_out = PodState::new().phase("Running").address(&web.pod.address.to_string());
    stage.set_state("web-1", &found_out.ready(true, seconds_ago(-2))).await?;
    stage.wait("web", "web-1", "ready observed").await?;
    assert_eq!(held.await??.pod()?, "web-1");
    Ok(())
}

/// What a mesh's proxy does to whoever does not speak its mutual TLS: it accepts, and closes.
fn strict(name: &str) -> Result<Backend> {
    Backend::scripted(name, async |mut stream| {
        let mut head = [0; 1024];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await?;
        Ok(())
    })
}

#[tokio::test]
async fn case_32_a_pod_that_is_ready_and_takes_nobody_from_outside_its_mesh_is_told_apart_and_others_are_asked()
-> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let _meshed = stage.ready_with("web", "meshed", strict("meshed")?).await?;
    stage.wait("web", "meshed", "ready pushed").await?;
    for request in [get(&stage.host("web"), "/"), post(&stage.host("web"), "/", "once")] {
        let answer = ask(stage.proxy()?, request).await?;
        answer.refused(502)?;
        assert_eq!(answer.error(), "reset");
    }
    let _open = stage.ready_web("web", "open").await?;
    stage.wait("web", "open", "ready pushed").await?;
    for _ in 0..20 {
        assert_eq!(stage.get("web", "/").await?.pod()?, "open");
    }
    Ok(())
}

#[tokio::test]
async fn case_32_a_service_whose_pods_only_its_mesh_reaches_is_reached_through_its_cluster_ip() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let _meshed = stage.ready_with("web", "meshed", strict("meshed")?).await?;
    stage.until(&stage.host("web"), |answer| answer.error() == "reset").await?;
    stage.annotate("web", ROUTE, Some("disabled")).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    ensure!(gateway.requests() > 0, "not by the ClusterIP");
    Ok(())
}
