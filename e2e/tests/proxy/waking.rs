//! From zero: held requests have their target scaled up, on a real API server with a real Deployment and its scale subresource. The
//! Deployment controller is played by the test, which creates the pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use podlight_e2e::activator::ActivatorSpec;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{self, get};
use podlight_e2e::proxy::counts::wait_held;
use podlight_e2e::proxy::stage::Stage;
use podlight_e2e::scene::Scene;
use serde_json::json;

use crate::scene;

const SCALE_TARGET: &str = "podlight.dev/scale-target";

/// A stage whose activators may scale, with a Deployment `web` of so many replicas and its Service.
async fn asleep(replicas: i32, differ: impl FnOnce(ActivatorSpec) -> ActivatorSpec) -> Result<Stage<'static>> {
    let stage = Stage::on(scene().await, differ).await?;
    allow(scene().await, &stage).await?;
    deployments(&stage)?.create(&PostParams::default(), &deployment(&stage, replicas)?).await?;
    stage.create_service(stage.service("web").annotation(SCALE_TARGET, "Deployment/web")).await?;
    known(&stage).await?;
    Ok(stage)
}

/// Waits until the activator has the Service: an empty one is there without endpoints.
async fn known(stage: &Stage<'_>) -> Result<()> {
    let reader = stage.reader()?;
    let path = format!("/v1/targets/{}/web", stage.namespace);
    eventually("the Service is known", async || Ok((reader.get(&path).await?.status == 200).then_some(()))).await
}

async fn allow(scene: &Scene, stage: &Stage<'_>) -> Result<()> {
    scene.control_plane.allow_scaling(&stage.namespace, "default", "activator").await
}

fn deployments(stage: &Stage<'_>) -> Result<Api<Deployment>> {
    let scene = stage.scene().context("no API server")?;
    Ok(Api::namespaced(scene.control_plane.client()?, &stage.namespace))
}

fn deployment(stage: &Stage<'_>, replicas: i32) -> Result<Deployment> {
    let labels = json!({ "app": "web" });
    let containers = json!([{ "name": "app", "image": "example.invalid/app" }]);
    Ok(serde_json::from_value(json!({
        "metadata": { "namespace": stage.namespace, "name": "web" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": containers } },
        },
    }))?)
}

async fn replicas(stage: &Stage<'_>) -> Result<(i32, i64)> {
    let deployment = deployments(stage)?.get("web").await?;
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).context("no replicas")?;
    Ok((replicas, deployment.metadata.generation.context("no generation")?))
}

async fn wait_replicas(stage: &Stage<'_>, count: i32) -> Result<i64> {
    eventually(&format!("it has {count} replicas"), async || {
        let (now, generation) = replicas(stage).await?;
        ensure!(now == count, "it has {now}");
        Ok(Some(generation))
    })
    .await
}

#[tokio::test]
async fn a_held_request_scales_its_target_from_zero_to_one_and_is_answered_by_the_pod_that_comes() -> Result<()> {
    let stage = asleep(0, |spec| spec).await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_replicas(&stage, 1).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    assert_eq!(held.await??.pod()?, "web-1");
    Ok(())
}

#[tokio::test]
async fn many_held_requests_and_two_replicas_scale_once() -> Result<()> {
    let mut stage = asleep(0, |spec| spec).await?;
    let second = stage.spec()?.flag("replica", "second").start().await?;
    stage.activators.push(second);
    let (_, before) = replicas(&stage).await?;
    let mut held = Vec::new();
    for activator in &stage.activators {
        for _ in 0..20 {
            held.push(client::start(activator.proxy_address()?, get(&stage.host("web"), "/")));
        }
    }
    let generation = wait_replicas(&stage, 1).await?;
    assert_eq!(generation, before + 1, "one write of the spec");
    let _web = stage.ready_web("web", "web-1").await?;
    for answer in held {
        assert_eq!(answer.await??.pod()?, "web-1");
    }
    assert_eq!(replicas(&stage).await?, (1, generation), "and none later");
    Ok(())
}

#[tokio::test]
async fn a_target_that_has_replicas_already_is_left_as_it_is() -> Result<()> {
    let stage = asleep(3, |spec| spec).await?;
    let before = replicas(&stage).await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    eventually("it has been looked at", async || {
        let metrics = stage.activator().metrics().await?;
        Ok((metrics.sum("podlight_proxy_scale_total", &[("outcome", "already")]) >= 1.0).then_some(()))
    })
    .await?;
    let _web = stage.ready_web("web", "web-1").await?;
    assert_eq!(held.await??.pod()?, "web-1");
    assert_eq!(replicas(&stage).await?, before);
    Ok(())
}

#[tokio::test]
async fn nothing_is_ever_scaled_down_and_whoever_scales_to_zero_is_not_fought_without_requests() -> Result<()> {
    let stage = asleep(0, |spec| spec).await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_replicas(&stage, 1).await?;
    let web = stage.ready_web("web", "web-1").await?;
    held.await??.seen()?;
    let (_, up) = replicas(&stage).await?;
    // An autoscaler takes it to five, and to zero when nobody asks.
    for count in [5, 0] {
        let patch = json!({ "spec": { "replicas": count } });
        deployments(&stage)?.patch_scale("web", &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    drop(web);
    stage.delete_pod("web-1", 0).await?;
    stage.wait_endpoints("web", 0).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (count, generation) = replicas(&stage).await?;
    assert_eq!((count, generation), (0, up + 2), "only the autoscaler wrote");
    // The next request wakes it again.
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_replicas(&stage, 1).await?;
    let _web = stage.ready_web("web", "web-2").await?;
    assert_eq!(held.await??.pod()?, "web-2");
    Ok(())
}

#[tokio::test]
async fn a_warm_request_scales_nothing() -> Result<()> {
    let stage = asleep(0, |spec| spec).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let before = replicas(&stage).await?;
    for _ in 0..20 {
        stage.get("web", "/").await?.seen()?;
    }
    assert_eq!(replicas(&stage).await?.1, before.1);
    Ok(())
}

#[tokio::test]
async fn an_activator_that_may_not_scale_tells_held_requests_at_once() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("hold-timeout", "60s")).await?;
    deployments(&stage)?.create(&PostParams::default(), &deployment(&stage, 0)?).await?;
    stage.create_service(stage.service("web").annotation(SCALE_TARGET, "Deployment/web")).await?;
    known(&stage).await?;
    let begun = std::time::Instant::now();
    let answer = stage.get("web", "/").await?;
    answer.refused(503)?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let text = answer.text().to_lowercase();
    ensure!(text.contains("scale") || text.contains("forbidden"), "{text}");
    assert_eq!(replicas(&stage).await?.0, 0);
    Ok(())
}

#[tokio::test]
async fn a_scale_target_that_does_not_exist_is_told() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("hold-timeout", "60s")).await?;
    allow(scene().await, &stage).await?;
    stage.create_service(stage.service("web").annotation(SCALE_TARGET, "Deployment/nothing")).await?;
    known(&stage).await?;
    let answer = stage.get("web", "/").await?;
    answer.refused(503)?;
    ensure!(answer.text().contains("nothing"), "{}", answer.text());
    Ok(())
}

#[tokio::test]
async fn manifests_cannot_be_scaled_and_say_so() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").annotation(SCALE_TARGET, "Deployment/web")).await?;
    let answer = stage.until(&stage.host("web"), |answer| answer.status != 404).await?;
    answer.refused(503)?;
    Ok(())
}
