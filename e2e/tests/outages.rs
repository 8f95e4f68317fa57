//! Servers that stop, hang, forget or are cut off. Each case has a control plane to itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlight_e2e::app::App;
use podlight_e2e::control_plane::{PodState, TokenSpec};
use podlight_e2e::eventually::eventually;
use podlight_e2e::scene::{Scene, seconds_ago};
use podlight_proto::{ErrorCode, Kind, Outcome};
use serde_json::json;

#[tokio::test]
async fn while_the_api_server_is_away_known_keys_go_on_and_the_table_is_kept() -> Result<()> {
    let scene = Scene::start(1).await?;
    let shop = scene.shop().await?;
    let [known, unknown, silent] = [shop.web("web-1").await?, shop.web("web-2").await?, shop.web("web-3").await?];
    let (activator, base) = (&scene.activators[0], scene.activators[0].url());
    known.sender.introduce(&base, &known.token).await?;
    shop.set("web-3", &PodState::new().ready(true, seconds_ago(0))).await?;
    shop.wait(0, "web-3", "ready observed").await?;
    let mut watch = scene.reader_of(activator)?.watch(None).await?;
    watch.find(|event| event.kind == "synced").await?;

    scene.control_plane.stop_api_server();
    assert_eq!(known.sender.tell(&base, Kind::Ready).await?.result, Outcome::Applied);
    let told = watch.find(|event| event.data["endpoint"]["pod"]["name"] == json!("web-1")).await?;
    assert_eq!(told.data["endpoint"]["state"], json!("ready"));
    let refused = unknown.sender.event(Kind::Ready).token(&unknown.token).sign().post(&base).await?;
    refused.refused(503, ErrorCode::Pending)?;
    eventually("the outage is measured", async || {
        Ok((activator.metrics().await?.sum("podlight_api_reachable", &[]) == 0.0).then_some(()))
    })
    .await?;
    let refused = unknown.sender.event(Kind::Ready).token(&unknown.token).sign().post(&base).await?;
    refused.refused(503, ErrorCode::Pending)?;
    // Those who serve the cluster's last state are still ready to do so, and say what is the matter.
    let ready = activator.admin("/readyz").await?;
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert!(ready.body.contains("unreachable"), "{}", ready.body);
    assert_eq!(activator.metrics().await?.sum("podlight_table_pods", &[]), 4.0, "three and the reader");
    known.sender.tell(&base, Kind::NotReady).await?;
    watch.find(|event| event.data["endpoint"]["state"] == json!("not-ready")).await?;
    known.sender.tell(&base, Kind::Draining).await?;

    scene.control_plane.start_api_server().await?;
    eventually("new keys are admitted again", async || {
        let reply = unknown.sender.event(Kind::Ready).token(&unknown.token).sign().post(&base).await?;
        if reply.status != 202 {
            reply.refused(503, ErrorCode::Pending)?;
        }
        Ok((reply.status == 202).then_some(()))
    })
    .await?;
    shop.wait(0, "web-1", "draining pushed").await?;
    shop.wait(0, "web-2", "ready pushed").await?;
    shop.wait(0, "web-3", "ready observed").await?;
    shop.set("web-3", &PodState::new().ready(false, seconds_ago(0))).await?;
    shop.wait(0, "web-3", "not-ready observed").await?;
    drop(silent);
    Ok(())
}

#[tokio::test]
async fn a_frozen_api_server_is_an_outage_and_not_a_refusal() -> Result<()> {
    let scene = Scene::start(1).await?;
    let shop = scene.shop().await?;
    let [known, unknown] = [shop.web("web-1").await?, shop.web("web-2").await?];
    let base = scene.activators[0].url();
    known.sender.introduce(&base, &known.token).await?;
    shop.wait(0, "web-1", "not-ready pushed").await?;
    scene.control_plane.pause_api_server()?;
    let begun = std::time::Instant::now();
    let reply = unknown.sender.event(Kind::Ready).token(&unknown.token).sign().post(&base).await?;
    reply.refused(503, ErrorCode::Pending)?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    known.sender.tell(&base, Kind::Ready).await?;
    // A known key that brings a token nobody can review goes on as its key alone.
    let rotated = scene.control_plane.reissue(&known.token, |claims| claims["jti"] = json!("another"))?;
    let reply = known.sender.event(Kind::Heartbeat).ready(true).token(&rotated).sign().post(&base).await?;
    assert_eq!(reply.outcome()?, Outcome::Applied);
    scene.control_plane.resume_api_server()?;
    eventually("new keys are admitted again", async || {
        let reply = unknown.sender.event(Kind::Ready).token(&unknown.token).sign().post(&base).await?;
        Ok((reply.status == 202).then_some(()))
    })
    .await?;
    shop.wait(0, "web-1", "ready pushed").await?;
    shop.wait(0, "web-2", "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_replica_is_ready_once_it_has_listed_the_cluster() -> Result<()> {
    let scene = Scene::start(0).await?;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    scene.control_plane.pause_api_server()?;
    let activator = scene.activator().flag("replica", "late").spawn()?;
    let ready = eventually("its admin port answers", async || Ok(Some(activator.admin("/readyz").await?))).await?;
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert_eq!(activator.admin("/healthz").await?.status, 200);
    let early = web.sender.event(Kind::Ready).token(&web.token).sign().post(&activator.url()).await?;
    early.refused(503, ErrorCode::Pending)?;
    assert_eq!(activator.admin("/readyz").await?.status, 503);
    scene.control_plane.resume_api_server()?;
    activator.wait_ready().await?;
    web.sender.introduce(&activator.url(), &web.token).await?;
    let reader = scene.reader_of(&activator)?;
    reader.wait_verdict(&shop.namespace, "web", "web-1", "not-ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn after_an_etcd_compaction_a_re_list_removes_what_is_gone_and_keeps_what_was_pushed() -> Result<()> {
    let scene = Scene::start(1).await?;
    let shop = scene.shop().await?;
    let [gone, kept, reused] = [shop.web("web-1").await?, shop.web("web-2").await?, shop.web("web-3").await?];
    let (activator, base) = (&scene.activators[0], scene.activators[0].url());
    for web in [&gone, &kept, &reused] {
        web.sender.introduce(&base, &web.token).await?;
        web.sender.tell(&base, Kind::Ready).await?;
    }
    let mut watch = scene.reader_of(activator)?.watch(None).await?;
    watch.find(|event| event.kind == "synced").await?;
    let lists = scene.control_plane.requests("list", "pods")?;

    // Nobody tells of these deletions, now or later: only a list can show them.
    scene.control_plane.stop_api_server();
    for pod in ["web-1", "web-3"] {
        scene.control_plane.erase_pod(&shop.namespace, pod).await?;
    }
    scene.control_plane.compact_etcd().await?;
    scene.control_plane.start_api_server().await?;
    let successor = shop.web("web-3").await?;
    shop.web("web-4").await?;

    shop.wait_gone(0, "web-1").await?;
    shop.wait(0, "web-4", "not-ready observed").await?;
    shop.wait(0, "web-3", "not-ready observed").await?;
    shop.wait(0, "web-2", "ready pushed").await?;
    ensure!(scene.control_plane.requests("list", "pods")? > lists, "no re-list: the case proves nothing");
    watch.find(|event| event.kind == "endpoint-gone").await?;
    // The keys of those that are gone are gone with them; the others' are not.
    for web in [&gone, &reused] {
        eventually("a pod that is gone is heard no more", async || {
            let late = web.sender.event(Kind::Ready).sign().post(&base).await?;
            ensure!(matches!(late.status, 401 | 403 | 503), "{late:?}");
            Ok((late.status != 503).then_some(()))
        })
        .await?;
    }
    assert_eq!(kept.sender.tell(&base, Kind::NotReady).await?.result, Outcome::Applied);
    successor.sender.introduce(&base, &successor.token).await?;
    shop.wait(0, "web-3", "not-ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_new_signing_key_of_the_cluster_is_fetched_once() -> Result<()> {
    let scene = Scene::start(1).await?;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    let old = shop.web("web-1").await?;
    old.sender.introduce(&base, &old.token).await?;
    scene.control_plane.rotate_token_key()?;
    scene.control_plane.stop_api_server();
    scene.control_plane.start_api_server().await?;
    let fetches = scene.control_plane.jwks_requests()?;
    for n in 2..6 {
        let web = shop.web(&format!("web-{n}")).await?;
        eventually("the new key is known", async || {
            let reply = web.sender.event(Kind::NotReady).token(&web.token).sign().post(&base).await?;
            Ok((reply.status == 202).then_some(()))
        })
        .await?;
    }
    assert_eq!(scene.control_plane.jwks_requests()? - fetches, 1);
    let rotated = scene.control_plane.token(&TokenSpec::for_pod(&old.pod)).await?;
    let heartbeat = old.sender.event(Kind::Heartbeat).token(&rotated).sign();
    assert_eq!(heartbeat.post(&base).await?.outcome()?, Outcome::Applied);
    Ok(())
}

#[tokio::test]
async fn of_two_replicas_one_that_was_cut_off_agrees_again_once_it_is_back() -> Result<()> {
    let scene = Scene::start(2).await?;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let mut app = App::new()?;
    app.listen().await?;
    app.set_ready(true);
    let spec = scene.activators.iter().fold(web.sidecar(), |spec, activator| spec.activator(&activator.url()));
    let sidecar = spec.probe(&app.probe()).start().await?;
    for replica in [0, 1] {
        shop.wait(replica, "web-1", "ready pushed").await?;
    }
    // Partitioned: the other replica hears at once all the same.
    scene.activators[1].pause()?;
    app.set_ready(false);
    shop.wait(0, "web-1", "not-ready pushed").await?;
    app.set_ready(true);
    shop.wait(0, "web-1", "ready pushed").await?;
    app.set_ready(false);
    shop.wait(0, "web-1", "not-ready pushed").await?;
    scene.activators[1].resume()?;
    shop.wait(1, "web-1", "not-ready pushed").await?;
    let [first, second] = [shop.endpoint(0, "web-1").await?, shop.endpoint(1, "web-1").await?];
    assert_eq!(first, second);

    // Lost and started again: it knows no key, and is told with the token.
    scene.activators[1].kill();
    app.set_ready(true);
    shop.wait(0, "web-1", "ready pushed").await?;
    scene.activators[1].start().await?;
    shop.wait(1, "web-1", "ready pushed").await?;

    // Away while the pod leaves: the hook does not wait for it for ever, and it hears when it is back.
    scene.activators[1].pause()?;
    let (status, said) = sidecar.drain("0s").await?;
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(shop.endpoint(0, "web-1").await?.context("gone")?.verdict(), "draining pushed");
    scene.activators[1].resume()?;
    shop.wait(1, "web-1", "draining pushed").await?;
    Ok(())
}
