//! Straight to the pod, or by the ClusterIP: for each target, live, on a real API server whose ClusterIPs can be dialled.

use anyhow::{Result, ensure};
use podlight_e2e::proxy::client::{self, get};
use podlight_e2e::proxy::counts::wait_held;
use podlight_e2e::proxy::stage::{ROUTE, Stage, running_ready};
use podlight_proto::Kind;

use crate::{gateway, scene};

const CLUSTER_IP: &str = "cluster-ip";

#[tokio::test]
async fn always_goes_straight_to_the_pod() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "always")).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.set_state("web-1", &running_ready(web.pod.address)).await?;
    for _ in 0..20 {
        stage.until(&stage.host("web"), |answer| answer.pod().is_ok_and(|pod| pod == "web-1")).await?;
    }
    assert_eq!(gateway.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn disabled_goes_by_the_cluster_ip_once_a_pod_is_ready_and_is_held_until_then() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "disabled")).await?;
    let _gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    web.pod.say(Kind::Ready).await?;
    assert_eq!(held.await??.pod()?, CLUSTER_IP);
    assert_eq!(stage.get("web", "/").await?.pod()?, CLUSTER_IP);
    assert_eq!(web.app.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn cold_start_only_goes_to_the_pod_while_the_cluster_ip_may_lag_and_by_the_cluster_ip_then() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("cluster-ip-lag", "2s")).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "cold-start-only")).await?;
    let _gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.ready_web("web", "web-1").await?;
    // The API server has not said so yet: kube-proxy cannot know it.
    let host = stage.host("web");
    for _ in 0..5 {
        stage.until(&host, |answer| answer.pod().is_ok_and(|pod| pod == "web-1")).await?;
    }
    stage.set_state("web-1", &running_ready(web.pod.address)).await?;
    stage.until(&host, |answer| answer.pod().is_ok_and(|pod| pod == CLUSTER_IP)).await?;
    let asked = web.app.requests();
    for _ in 0..5 {
        assert_eq!(stage.get("web", "/").await?.pod()?, CLUSTER_IP);
    }
    assert_eq!(web.app.requests(), asked);
    Ok(())
}

#[tokio::test]
async fn the_mode_of_the_process_holds_where_a_target_has_none_of_its_own() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec.flag("route", "disabled")).await?;
    let mut kept = Vec::new();
    for (name, mode, expected) in [("own", "always", "own-1"), ("global", "default", CLUSTER_IP)] {
        stage.create_service(stage.service(name).annotation(ROUTE, mode)).await?;
        let gateway = gateway::listen(scene().await, &stage.namespace, name).await?;
        kept.push((gateway, stage.ready_web(name, &format!("{name}-1")).await?));
        stage.until(&stage.host(name), |answer| answer.pod().is_ok_and(|pod| pod == expected)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn switching_a_mode_is_live_and_loses_no_request() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(ROUTE, "always")).await?;
    let _gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let _web = stage.ready_web("web", "web-1").await?;
    let host = stage.host("web");
    for (mode, expected) in
        [("always", "web-1"), ("disabled", CLUSTER_IP), ("always", "web-1"), ("disabled", CLUSTER_IP)]
    {
        stage.annotate("web", ROUTE, Some(mode)).await?;
        stage
            .until(&host, |answer| {
                assert!(answer.status == 200 || mode == "always", "lost: {answer:?}");
                answer.pod().is_ok_and(|pod| pod == expected)
            })
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_a_push_and_a_ready_pod_the_cluster_ip_is_asked_and_held_for_when_it_refuses() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    stage.wait("web", "web-1", "not-ready observed").await?;
    // Nobody pushes, so kube-proxy may know better; it refuses, so the request is held.
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    // From now on it leads somewhere: for whoever waits as well as for whoever comes.
    assert_eq!(stage.get("web", "/new").await?.pod()?, CLUSTER_IP);
    assert_eq!(held.await??.pod()?, CLUSTER_IP);
    assert_eq!((gateway.requests(), web.app.requests()), (2, 0));
    Ok(())
}

#[tokio::test]
async fn where_a_push_says_not_ready_the_cluster_ip_is_not_asked() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    stage.create_service(stage.service("web")).await?;
    let gateway = gateway::listen(scene().await, &stage.namespace, "web").await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    ensure!(gateway.connections() == 0, "the ClusterIP was dialled");
    held.abort();
    Ok(())
}
