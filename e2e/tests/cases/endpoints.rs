//! What the API server and the sidecar together make of a pod, for every Service that it belongs to.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::DeleteParams;
use podlight_e2e::api::Endpoint;
use podlight_e2e::control_plane::{ContainerSpec, PodState, ServiceSpec, SliceSpec, exec_probe, http_probe};
use podlight_e2e::eventually::eventually;
use podlight_e2e::scene::{fresh_address, running, seconds_ago};
use podlight_e2e::sender::now_ms;
use podlight_proto::{ErrorCode, Kind};

use crate::scene;

#[tokio::test]
async fn without_a_sidecar_the_api_server_alone_tells() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    shop.pod(shop.spec("web-1"), None).await?;
    // No address, nowhere to send anything; not ready all the same.
    shop.wait(0, "web-1", "not-ready observed").await?;
    shop.set("web-1", &running(&fresh_address()).ready(false, seconds_ago(9))).await?;
    let since = seconds_ago(3);
    shop.set("web-1", &PodState::new().ready(true, since)).await?;
    let endpoint = shop.wait(0, "web-1", "ready observed").await?;
    assert_eq!(endpoint.since_ms, u64::try_from(since.as_millisecond())?);
    shop.set("web-1", &PodState::new().ready(false, seconds_ago(1))).await?;
    shop.wait(0, "web-1", "not-ready observed").await?;
    shop.delete("web-1", 0).await?;
    shop.wait_gone(0, "web-1").await?;
    Ok(())
}

#[tokio::test]
async fn the_later_transition_holds() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    let ready = web.sender.event(Kind::Ready).observed_at_ms(now_ms() - 20_000).sign();
    ready.post(&base).await?.accepted()?;
    shop.wait(0, "web-1", "ready pushed").await?;
    // The kubelet found fault after that.
    shop.set("web-1", &PodState::new().ready(false, seconds_ago(10))).await?;
    shop.wait(0, "web-1", "not-ready observed").await?;
    // A heartbeat is no transition.
    let heartbeat = web.sender.event(Kind::Heartbeat).ready(true).observed_at_ms(now_ms() - 20_000).sign();
    heartbeat.post(&base).await?.accepted()?;
    shop.wait(0, "web-1", "not-ready observed").await?;
    web.sender.tell(&base, Kind::Ready).await?;
    shop.wait(0, "web-1", "ready pushed").await?;
    // A stale Ready does not outlive a pushed not-ready.
    shop.set("web-1", &PodState::new().ready(true, seconds_ago(5))).await?;
    web.sender.tell(&base, Kind::NotReady).await?;
    shop.wait(0, "web-1", "not-ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_gate_that_is_not_true_holds_against_a_push() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let gate = "example.com/checked";
    let web = shop.pod(shop.spec("web-1").readiness_gate(gate), Some(running(&fresh_address()))).await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    web.sender.tell(&base, Kind::Ready).await?;
    // A missing condition is False.
    assert_eq!(shop.wait(0, "web-1", "not-ready observed").await?.state, "not-ready");
    let set = |open| PodState::new().ready(false, seconds_ago(60)).condition(gate, open, seconds_ago(0));
    shop.set("web-1", &set(true)).await?;
    shop.wait(0, "web-1", "ready pushed").await?;
    shop.set("web-1", &set(false)).await?;
    shop.wait(0, "web-1", "not-ready observed").await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_whose_probe_only_a_kubelet_can_run_follows_the_api_server() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    let exec = || exec_probe(&["true"]);
    let worker = ContainerSpec::new("worker");
    let pods = [
        ("exec-readiness", shop.spec("exec-readiness").container(worker.clone().readiness(exec()))),
        ("exec-startup", shop.spec("exec-startup").container(worker.clone().startup(exec()))),
        ("exec-sidecar", shop.spec("exec-sidecar").init_container(worker.clone().readiness(exec()), true)),
    ];
    for (name, spec) in pods {
        let web = shop.pod(spec, Some(running(&fresh_address()))).await?;
        web.sender.introduce(&base, &web.token).await?;
        web.sender.tell(&base, Kind::Ready).await?;
        shop.wait(0, name, "not-ready observed").await?;
        shop.set(name, &PodState::new().ready(true, seconds_ago(0))).await?;
        shop.wait(0, name, "ready observed").await?;
        // Leaving is for the sidecar to say all the same.
        web.sender.tell(&base, Kind::Draining).await?;
        shop.wait(0, name, "draining pushed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_without_readiness_probe_is_ready_when_its_sidecar_says_so() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    let spec = shop.spec_without_container("web-1").container(ContainerSpec::new("app").port("http", 8080));
    let web = shop.pod(spec, Some(running(&fresh_address()))).await?;
    web.sender.introduce(&base, &web.token).await?;
    // "Ready" because it runs, later than anything pushed.
    shop.set("web-1", &PodState::new().ready(true, seconds_ago(0))).await?;
    shop.wait(0, "web-1", "not-ready pushed").await?;
    web.sender.tell(&base, Kind::Ready).await?;
    shop.wait(0, "web-1", "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_named_target_port_is_looked_up_on_each_pod() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let container = |number| ContainerSpec::new("app").port("http", number).readiness(http_probe("/ready", number));
    shop.pod(shop.spec_without_container("old").container(container(8080)), Some(running(&fresh_address()))).await?;
    shop.pod(shop.spec_without_container("new").container(container(9090)), Some(running(&fresh_address()))).await?;
    let bare = ContainerSpec::new("app").readiness(http_probe("/ready", 8080));
    shop.pod(shop.spec_without_container("bare").container(bare), Some(running(&fresh_address()))).await?;
    let native = ContainerSpec::new("proxy").port("http", 7070);
    let spec = shop.spec_without_container("native").container(ContainerSpec::new("app")).init_container(native, true);
    shop.pod(spec, Some(running(&fresh_address()))).await?;
    for (pod, port) in [("old", Some(8080)), ("new", Some(9090)), ("bare", None), ("native", Some(7070))] {
        let endpoint = shop.wait(0, pod, "not-ready observed").await?;
        assert_eq!(endpoint.ports.first().map(|port| port.port), port, "{pod}");
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_belongs_to_every_service_that_selects_it_and_a_push_makes_it_a_member_of_none() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    let numbered = ServiceSpec::new(&shop.namespace, "numbered").selector("tier", "front").port("a", 81, "8081");
    scene.control_plane.create_service(numbered.port("b", 82, "http")).await?;
    let web = shop.pod(shop.spec("web-1").label("tier", "front"), Some(running(&fresh_address()))).await?;
    let other = shop.pod(shop.spec("web-2").label("app", "other"), Some(running(&fresh_address()))).await?;
    for web in [&web, &other] {
        web.sender.introduce(&base, &web.token).await?;
        web.sender.tell(&base, Kind::Ready).await?;
    }
    let reader = scene.reader_of(&scene.activators[0])?;
    for service in ["web", "numbered"] {
        reader.wait_verdict(&shop.namespace, service, "web-1", "ready pushed").await?;
        assert_eq!(reader.endpoints(&shop.namespace, service).await?.len(), 1, "{service}");
    }
    let endpoint = reader.endpoint(&shop.namespace, "numbered", "web-1").await?.context("gone")?;
    let mut ports: Vec<_> = endpoint.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    ports.sort_unstable();
    assert_eq!(ports, [("a", 8081), ("b", 8080)]);
    // A label is what makes it one.
    scene.control_plane.set_pod_label(&shop.namespace, "web-2", "app", Some("web")).await?;
    shop.wait(0, "web-2", "ready pushed").await?;
    scene.control_plane.set_pod_label(&shop.namespace, "web-1", "app", None).await?;
    shop.wait_gone(0, "web-1").await?;
    reader.wait_verdict(&shop.namespace, "numbered", "web-1", "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_dual_stack_pod_has_both_addresses() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let address = fresh_address();
    let web = shop.pod(shop.spec("web-1"), Some(running(&address).address("fd00:10::1"))).await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    web.sender.tell(&base, Kind::Ready).await?;
    let endpoint = shop.wait(0, "web-1", "ready pushed").await?;
    assert_eq!(endpoint.addresses, [address.as_str(), "fd00:10::1"]);
    Ok(())
}

#[tokio::test]
async fn pods_that_share_their_nodes_address_are_told_apart() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    let address = fresh_address();
    let pod = |name: &'static str| shop.pod(shop.spec(name).host_network(), Some(running(&address)));
    let (first, second) = (pod("web-1").await?, pod("web-2").await?);
    for web in [&first, &second] {
        web.sender.introduce(&base, &web.token).await?;
    }
    second.sender.tell(&base, Kind::Ready).await?;
    shop.wait(0, "web-2", "ready pushed").await?;
    shop.wait(0, "web-1", "not-ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_service_without_selector_has_the_endpoints_of_its_slices() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let namespace = &shop.namespace;
    let service = ServiceSpec::new(namespace, "bare").port("http", 80, "8080");
    scene.control_plane.create_service(service).await?;
    let slice = SliceSpec::new(namespace, "bare-1", "bare").port("http", 8080);
    let slice = slice.endpoint("10.254.0.1", true, true, false).endpoint("10.254.0.2", false, false, false);
    scene.control_plane.create_endpoint_slice(slice.endpoint("10.254.0.3", false, true, true)).await?;
    let slice = SliceSpec::new(namespace, "bare-2", "bare").port("http", 8080);
    scene.control_plane.create_endpoint_slice(slice.endpoint("fd00:254::1", true, true, false)).await?;
    // A slice tells nothing about a Service whose pods are known by themselves.
    let slice = SliceSpec::new(namespace, "web-1", "web").port("http", 8080);
    scene.control_plane.create_endpoint_slice(slice.endpoint("10.254.0.9", true, true, false)).await?;

    let reader = scene.reader_of(&scene.activators[0])?;
    let endpoints = eventually("the slices' endpoints are there", async || {
        let endpoints = reader.endpoints(namespace, "bare").await?;
        Ok((endpoints.len() == 4).then_some(endpoints))
    })
    .await?;
    let verdict = |address: &str| {
        let found = endpoints.iter().find(|endpoint| endpoint.addresses == [address]);
        found.map(Endpoint::verdict).unwrap_or_default()
    };
    assert_eq!(verdict("10.254.0.1"), "ready observed");
    assert_eq!(verdict("10.254.0.2"), "not-ready observed");
    assert_eq!(verdict("10.254.0.3"), "terminating observed");
    assert_eq!(verdict("fd00:254::1"), "ready observed");
    assert!(endpoints.iter().all(|endpoint| endpoint.pod.is_none() && endpoint.ports[0].port == 8080));
    assert!(reader.endpoints(namespace, "web").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn endpoints_go_with_their_service_and_come_back_with_it() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    web.sender.tell(&base, Kind::Ready).await?;
    shop.wait(0, "web-1", "ready pushed").await?;
    let services = Api::<Service>::namespaced(scene.control_plane.client()?, &shop.namespace);
    services.delete("web", &DeleteParams::default()).await?;
    shop.wait_gone(0, "web-1").await?;
    let reader = scene.reader_of(&scene.activators[0])?;
    let path = format!("/v1/targets/{}/web", shop.namespace);
    reader.get(&path).await?.refused(404, ErrorCode::NotFound)?;
    let service = ServiceSpec::new(&shop.namespace, "web").selector("app", "web").port("http", 80, "http");
    scene.control_plane.create_service(service).await?;
    shop.wait(0, "web-1", "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn a_lease_that_runs_out_leaves_what_the_api_server_says_and_a_drain_outlives_it() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let activator = scene.activator().flag("heartbeat-unconfirmed", "1s").flag("replica", "short").start().await?;
    let [silent, drained] = [shop.web("web-1").await?, shop.web("web-2").await?];
    let reader = scene.reader_of(&activator)?;
    for web in [&silent, &drained] {
        web.sender.introduce(&activator.url(), &web.token).await?;
    }
    drained.sender.tell(&activator.url(), Kind::Draining).await?;
    let begun = Instant::now();
    let accepted = silent.sender.tell(&activator.url(), Kind::Ready).await?;
    assert_eq!((accepted.heartbeat_after_seconds, accepted.lease_seconds), (1, 3));
    reader.wait_verdict(&shop.namespace, "web", "web-1", "ready pushed").await?;
    // Nobody speaks any more, and the kubelet has never found it ready.
    reader.wait_verdict(&shop.namespace, "web", "web-1", "not-ready observed").await?;
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    reader.wait_verdict(&shop.namespace, "web", "web-2", "draining pushed").await?;
    Ok(())
}
