//! The real sidecar in front of the real activators: from an app's socket to every replica's table.

use anyhow::{Context, Result};
use podlight_e2e::app::App;
use podlight_e2e::control_plane::{PodState, TokenSpec};
use podlight_e2e::eventually::eventually;
use podlight_e2e::scene::{Scene, Shop, Web, fresh_address, running, seconds_ago};
use podlight_e2e::sender::now_ms;
use podlight_e2e::sidecar::{Sidecar, SidecarSpec};
use serde_json::json;

use crate::scene;

#[tokio::test]
async fn an_app_that_turns_ready_is_so_at_every_replica_and_back() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let mut app = App::new()?;
    let sidecar = start(scene, &web, &app).await?;
    // It speaks before the app is there.
    both(&shop, "not-ready pushed").await?;
    app.listen().await?;
    app.set_ready(true);
    both(&shop, "ready pushed").await?;
    app.set_ready(false);
    both(&shop, "not-ready pushed").await?;
    app.set_ready(true);
    both(&shop, "ready pushed").await?;
    app.stop();
    both(&shop, "not-ready pushed").await?;
    assert!(sidecar.is_running());
    assert!(sidecar.metrics().await?.text().contains("podlight_sidecar_ready 0"));
    Ok(())
}

#[tokio::test]
async fn a_tcp_probe_sees_the_socket_alone() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let mut app = App::new()?;
    let probe = format!("tcp://127.0.0.1:{}?period=100ms&failure=1", app.port());
    let _sidecar = spec(scene, &web).probe(&probe).start().await?;
    both(&shop, "not-ready pushed").await?;
    app.listen().await?;
    both(&shop, "ready pushed").await?;
    app.stop();
    both(&shop, "not-ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn pre_stop_drains_at_every_replica_and_succeeds() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let app = ready_app().await?;
    let sidecar = start(scene, &web, &app).await?;
    both(&shop, "ready pushed").await?;
    let (status, said) = sidecar.drain("0s").await?;
    assert_eq!(status.code(), Some(0), "{said}");
    // No waiting: it returned because every replica had answered.
    for replica in [0, 1] {
        assert_eq!(shop.endpoint(replica, "web-1").await?.context("gone")?.verdict(), "draining pushed", "{said}");
    }
    // A probe that still passes does not lift it, nor does SIGTERM afterwards hang.
    sidecar.terminate()?;
    assert_eq!(sidecar.ended().await?.code(), Some(0));
    both(&shop, "draining pushed").await?;
    Ok(())
}

#[tokio::test]
async fn sigterm_drains_when_no_pre_stop_ran() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let app = ready_app().await?;
    let sidecar = start(scene, &web, &app).await?;
    both(&shop, "ready pushed").await?;
    sidecar.terminate()?;
    assert_eq!(sidecar.ended().await?.code(), Some(0), "{}", sidecar.log_tail());
    for replica in [0, 1] {
        assert_eq!(shop.endpoint(replica, "web-1").await?.context("gone")?.verdict(), "draining pushed");
    }
    Ok(())
}

#[tokio::test]
async fn pre_stop_succeeds_without_a_sidecar_to_ask() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let sidecar = start(scene, &web, &App::new()?).await?;
    sidecar.kill();
    let (status, said) = sidecar.drain("0s").await?;
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!said.is_empty(), "it says what it could not do");
    Ok(())
}

#[tokio::test]
async fn a_killed_sidecar_comes_back_with_a_new_key_and_a_newer_boot() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let app = ready_app().await?;
    let sidecar = start(scene, &web, &app).await?;
    both(&shop, "ready pushed").await?;
    let first = shop.endpoint(0, "web-1").await?.context("gone")?.since_ms;
    sidecar.kill();
    app.set_ready(false);
    sidecar.start().await?;
    both(&shop, "not-ready pushed").await?;
    app.set_ready(true);
    both(&shop, "ready pushed").await?;
    assert!(shop.endpoint(0, "web-1").await?.context("gone")?.since_ms > first);
    Ok(())
}

#[tokio::test]
async fn a_container_restarted_after_pre_stop_is_ready_again() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let app = ready_app().await?;
    let sidecar = start(scene, &web, &app).await?;
    both(&shop, "ready pushed").await?;
    sidecar.drain("0s").await?;
    both(&shop, "draining pushed").await?;
    sidecar.kill();
    sidecar.start().await?;
    both(&shop, "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_clock_set_back_between_two_starts_is_adopted() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let app = ready_app().await?;
    // An earlier start whose clock was two minutes ahead.
    let ahead = podlight_proto::Boot::try_from(now_ms() + 120_000)?;
    for activator in &scene.activators {
        let event = web.sender.event(podlight_proto::Kind::NotReady).order(ahead, podlight_proto::Sequence::FIRST);
        event.token(&web.token).sign().post(&activator.url()).await?.accepted()?;
    }
    let sidecar = start(scene, &web, &app).await?;
    both(&shop, "ready pushed").await?;
    assert!(sidecar.metrics().await?.sum("podlight_sidecar_boots_adopted_total", &[]) >= 1.0);
    Ok(())
}

#[tokio::test]
async fn a_rotated_token_reaches_the_replicas_by_itself() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let app = ready_app().await?;
    // Two seconds are enough for the first contact; after that `ready` needs the rotated one.
    let short = scene.control_plane.reissue(&web.token, |claims| claims["exp"] = json!(now_ms() / 1000 + 4))?;
    let spec = SidecarSpec::new(&web.pod, &short).probe(&app.probe());
    let sidecar = on_all(scene, spec).start().await?;
    both(&shop, "ready pushed").await?;
    sidecar.rotate_token(&scene.control_plane.token(&TokenSpec::for_pod(&web.pod)).await?)?;
    let expiry = now_ms() + 5_000;
    eventually("the first token has expired", async || Ok((now_ms() > expiry).then_some(()))).await?;
    app.set_ready(false);
    both(&shop, "not-ready pushed").await?;
    app.set_ready(true);
    both(&shop, "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_sidecar_without_push_is_inert() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let app = ready_app().await?;
    let sidecar = spec(scene, &web).probe(&app.probe()).flag("push", "off").start().await?;
    shop.set("web-1", &PodState::new().ready(true, seconds_ago(0))).await?;
    both(&shop, "ready observed").await?;
    let (status, said) = sidecar.drain("0s").await?;
    assert_eq!(status.code(), Some(0), "{said}");
    both(&shop, "ready observed").await?;
    sidecar.terminate()?;
    assert_eq!(sidecar.ended().await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn tls_with_the_activators_own_authority_works_and_with_another_does_not() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let [web, other] = [shop.web("web-1").await?, shop.web("web-2").await?];
    let [trusted, stranger] =
        [scene.activator().self_signed().start().await?, scene.activator().self_signed().start().await?];
    let app = ready_app().await?;
    let sidecar = |web: &Web, ca: &std::path::Path| {
        let spec = web.sidecar().activator(&trusted.url()).probe(&app.probe());
        spec.flag("activator-ca", &ca.display().to_string())
    };
    let _good = sidecar(&web, &trusted.ca_file()).start().await?;
    let _bad = sidecar(&other, &stranger.ca_file()).start().await?;
    let ca = std::fs::read_to_string(trusted.ca_file())?;
    let reader = podlight_e2e::api::Reader::over_tls(&trusted.url(), scene.reader_token(), &ca)?;
    reader.wait_verdict(&shop.namespace, "web", "web-1", "ready pushed").await?;
    let failures = eventually("the other is not trusted", async || {
        let metrics = _bad.metrics().await?;
        Ok(metrics.text().contains("network").then_some(metrics))
    });
    failures.await?;
    reader.wait_verdict(&shop.namespace, "web", "web-2", "not-ready observed").await?;
    Ok(())
}

#[tokio::test]
async fn a_replica_that_another_names_is_told_too() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let named = scene.activator().start().await?;
    let root = scene.activator().flag("peer", &named.url()).start().await?;
    let app = ready_app().await?;
    let sidecar = web.sidecar().activator(&root.url()).probe(&app.probe()).start().await?;
    for activator in [&root, &named] {
        let reader = scene.reader_of(activator)?;
        reader.wait_verdict(&shop.namespace, "web", "web-1", "ready pushed").await?;
    }
    let replicas = sidecar.status().await?;
    assert!(replicas.to_string().contains(&named.url()), "{replicas}");
    Ok(())
}

#[tokio::test]
async fn a_pod_whose_address_is_not_published_yet_is_told_from_its_connection() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.pod(shop.spec("web-1"), Some(PodState::new().phase("Running"))).await?;
    let app = ready_app().await?;
    let _sidecar = start(scene, &web, &app).await?;
    both(&shop, "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_deleted_pod_is_terminating_whatever_its_sidecar_says() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.pod(shop.spec("web-1"), Some(running(&fresh_address()))).await?;
    let app = ready_app().await?;
    let sidecar = start(scene, &web, &app).await?;
    both(&shop, "ready pushed").await?;
    shop.delete("web-1", 30).await?;
    both(&shop, "terminating observed").await?;
    app.set_ready(false);
    app.set_ready(true);
    let (status, said) = sidecar.drain("0s").await?;
    assert_eq!(status.code(), Some(0), "{said}");
    both(&shop, "terminating observed").await?;
    Ok(())
}

async fn ready_app() -> Result<App> {
    let mut app = App::new()?;
    app.listen().await?;
    app.set_ready(true);
    Ok(app)
}

fn on_all(scene: &Scene, spec: SidecarSpec) -> SidecarSpec {
    scene.activators.iter().fold(spec, |spec, activator| spec.activator(&activator.url()))
}

fn spec(scene: &Scene, web: &Web) -> SidecarSpec {
    on_all(scene, web.sidecar())
}

async fn start(scene: &Scene, web: &Web, app: &App) -> Result<Sidecar> {
    spec(scene, web).probe(&app.probe()).start().await
}

/// Waits until both replicas have this verdict on `web-1`.
async fn both(shop: &Shop<'_>, verdict: &str) -> Result<()> {
    for replica in [0, 1] {
        shop.wait(replica, "web-1", verdict).await?;
    }
    Ok(())
}
