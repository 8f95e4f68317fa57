//! What a pod goes through, in every activator's table and in the EndpointSlices.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use podlight_e2e::bench::usage::{millis, percentile};
use podlight_e2e::cluster::Cluster;
use podlight_e2e::cluster::processes::{Signal, signal};
use podlight_e2e::cluster::shop::{self, PATIENCE, Shop, address, app_container, condition, named, pod_of, tell_app};
use podlight_e2e::cluster::timeline::{Teller, Timeline, Told, instant_of};
use podlight_e2e::eventually::within;
use serde_json::json;

/// The app's program in its image.
const APP: &str = "/podlight-testapp";

/// As many as a node of 110 pods has room for beside the cluster's own.
const CROWD: u32 = 90;

pub(crate) async fn a_pod_with_two_probed_containers_is_ready_when_both_are(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("two-probes").await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    let mut second = app_container(&["port=8081"]);
    second["name"] = json!("second");
    second["ports"] = json!([{ "name": "second", "containerPort": 8081 }]);
    second["readinessProbe"]["httpGet"]["port"] = json!("second");
    let begun = Instant::now();
    let address = shop.ready_pod("web-two", pod_of(&[app_container(&["delay=1500"]), second])).await?;
    shop.wait_verdict("web-two", "ready pushed").await?;
    // Both had to pass: the slower one had not begun to accept before.
    let accepting: u64 = tell_app(address, "/times").await?.parse()?;
    let ready = timeline.in_all_tables("web-two", begun, is_ready).await?;
    let accepting = instant_of(accepting)?;
    ensure!(ready >= accepting, "it was ready before its second container: {:#?}", timeline.all("web-two"));
    let before = Instant::now();
    tell_app(address, "/off").await?;
    timeline.in_all_tables("web-two", before, is_out).await?;
    shop.close().await
}

pub(crate) async fn a_pod_with_a_readiness_gate_is_ready_when_the_gate_opens(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("gate").await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    let begun = Instant::now();
    let mut pod = pod_of(&[app_container(&[])]);
    pod["spec"]["readinessGates"] = json!([{ "conditionType": "example.com/checked" }]);
    shop.create::<Pod>(named("web-gate", pod)).await?;
    shop.wait_pod("web-gate", "has ready containers", |pod| condition(pod, "ContainersReady") == Some("True")).await?;
    let told = timeline.all("web-gate");
    ensure!(!told.iter().any(is_ready), "it was ready behind a closed gate: {told:#?}");
    let open = json!({ "status": { "conditions": [{ "type": "example.com/checked", "status": "True" }] } });
    shop.api::<Pod>().patch_status("web-gate", &PatchParams::default(), &Patch::Strategic(open)).await?;
    timeline.in_all_tables("web-gate", begun, is_ready).await?;
    shop.wait_pod("web-gate", "is ready", shop::is_ready).await?;
    shop.close().await
}

pub(crate) async fn a_pod_without_probes_is_not_routed_before_it_accepts(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("no-probe").await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    let begun = Instant::now();
    let mut app = app_container(&["delay=2500"]);
    app["readinessProbe"] = json!(null);
    // The API server calls it ready because it runs.
    let address = shop.ready_pod("web-silent", pod_of(&[app])).await?;
    let observed = Instant::now();
    let answer = shop.ask(cluster.replica().await?.requests(), "/").await?;
    ensure!(answer.status == 200 && answer.text() == "web-silent", "{} {}", answer.status, answer.text());
    let ready = timeline.in_all_tables("web-silent", begun, is_ready).await?;
    let accepting = instant_of(tell_app(address, "/times").await?.parse()?)?;
    ensure!(ready >= accepting, "it was ready before it accepted: {:#?}", timeline.all("web-silent"));
    ensure!(accepting > observed, "the app was too fast to tell anything");
    let lead = accepting.duration_since(observed).as_secs_f64();
    cluster.note(format!(
        "the API server called it ready {lead:.2} s before it accepted; a request waited, and was answered"
    ));
    shop.close().await
}

pub(crate) async fn a_pod_on_the_nodes_network_is_ready_in_every_table(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("node-network").await?;
    let mut app = app_container(&["port=18080"]);
    app["ports"] = json!([{ "name": "http", "containerPort": 18080 }]);
    let mut pod = pod_of(&[app]);
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["dnsPolicy"] = json!("ClusterFirstWithHostNet");
    shop.ready_pod("web-node", pod).await?;
    shop.wait_verdict("web-node", "ready pushed").await?;
    shop.close().await
}

pub(crate) async fn pods_of_a_stateful_set_are_ready_in_every_table(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("stateful").await?;
    let template = pod_of(&[app_container(&["delay=200"])]);
    let spec = json!({
        "serviceName": "web", "replicas": 2, "selector": { "matchLabels": { "app": "web" } }, "template": template,
    });
    shop.create::<StatefulSet>(json!({ "metadata": { "name": "web" }, "spec": spec })).await?;
    for pod in ["web-0", "web-1"] {
        shop.wait_verdict(pod, "ready pushed").await?;
    }
    shop.close().await
}

pub(crate) async fn an_app_that_turns_not_ready_is_out_of_every_table_first(cluster: &'static Cluster) -> Result<()> {
    let (shop, timeline, address) = ready_shop(cluster, "not-ready", "web-off", &[]).await?;
    let before = Instant::now();
    tell_app(address, "/off").await?;
    let tables = timeline.in_all_tables("web-off", before, is_out).await?;
    let slices = timeline.first(Teller::Slices, "web-off", before, is_out).await?;
    note(cluster, "answers 503", before, tables, slices);
    ensure!(tables < slices, "the slices were first: {:#?}", timeline.all("web-off"));
    let before = Instant::now();
    tell_app(address, "/on").await?;
    let tables = timeline.in_all_tables("web-off", before, is_ready).await?;
    let slices = timeline.first(Teller::Slices, "web-off", before, is_ready).await?;
    note(cluster, "answers 200 again", before, tables, slices);
    shop.close().await
}

pub(crate) async fn an_app_that_crashes_is_out_of_every_table_until_it_is_back(
    cluster: &'static Cluster,
) -> Result<()> {
    // Away for longer than from one probe to the next.
    let (shop, timeline, _) = ready_shop(cluster, "crash", "web-crash", &["delay=2000"]).await?;
    let before = Instant::now();
    signal("web-crash", APP, Signal::KILL)?;
    let tables = timeline.in_all_tables("web-crash", before, is_out).await?;
    let slices = timeline.first(Teller::Slices, "web-crash", before, is_out).await?;
    note(cluster, "is killed", before, tables, slices);
    timeline.in_all_tables("web-crash", tables, is_ready).await?;
    timeline.first(Teller::Slices, "web-crash", slices, is_ready).await?;
    shop.close().await
}

pub(crate) async fn an_app_that_is_stopped_is_out_of_every_table_until_it_goes_on(
    cluster: &'static Cluster,
) -> Result<()> {
    let (shop, timeline, _) = ready_shop(cluster, "stop", "web-stop", &[]).await?;
    let before = Instant::now();
    signal("web-stop", APP, Signal::STOP)?;
    // A probe that nobody answers takes its time-out, the sidecar's as the kubelet's: either may be first.
    let tables = timeline.in_all_tables("web-stop", before, is_out).await?;
    let slices = timeline.first(Teller::Slices, "web-stop", before, is_out).await?;
    note(cluster, "is stopped", before, tables, slices);
    let before = Instant::now();
    signal("web-stop", APP, Signal::CONT)?;
    timeline.in_all_tables("web-stop", before, is_ready).await?;
    shop.close().await
}

pub(crate) async fn a_deleted_pod_is_out_of_every_table_when_the_slices_tell_it(
    cluster: &'static Cluster,
) -> Result<()> {
    let (shop, timeline, _) = ready_shop(cluster, "delete", "web-gone", &[]).await?;
    let before = Instant::now();
    shop.api::<Pod>().delete("web-gone", &DeleteParams::default()).await?;
    let tables = timeline.in_all_tables("web-gone", before, is_out).await?;
    let slices = timeline.first(Teller::Slices, "web-gone", before, is_out).await?;
    note(cluster, "pod is deleted", before, tables, slices);
    timeline.first(Teller::Slices, "web-gone", before, |told| told.state == "gone").await?;
    let back = timeline.all("web-gone").into_iter().filter(|told| told.at > tables && is_ready(told)).count();
    ensure!(back == 0, "it was ready again: {:#?}", timeline.all("web-gone"));
    shop.close().await
}

pub(crate) async fn a_pod_deleted_by_force_is_out_of_every_table(cluster: &'static Cluster) -> Result<()> {
    let (shop, timeline, _) = ready_shop(cluster, "force", "web-force", &[]).await?;
    let before = Instant::now();
    shop.api::<Pod>().delete("web-force", &DeleteParams::default().grace_period(0)).await?;
    let slices = timeline.first(Teller::Slices, "web-force", before, is_out).await?;
    within(PATIENCE, "it is out of every table", async || {
        Ok(shop.ready_in_tables().await?.iter().all(BTreeSet::is_empty).then_some(()))
    })
    .await?;
    let back = timeline.all("web-force").into_iter().filter(|told| told.at > slices && is_ready(told)).count();
    ensure!(back == 0, "it was ready again: {:#?}", timeline.all("web-force"));
    shop.close().await
}

pub(crate) async fn ninety_pods_at_once_are_ready_in_every_table(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("crowd").await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    let begun = Instant::now();
    let mut pod = pod_of(&[app_container(&["linger=0"])]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(5);
    shop.deploy(CROWD, pod).await?;
    shop.wait_rolled_out().await?;
    let deployed = begun.elapsed();
    let (mut in_tables, mut in_slices) = (Vec::new(), Vec::new());
    for pod in shop.pods().await? {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let tables = timeline.in_all_tables(&name, begun, is_ready).await?;
        let slices = timeline.first(Teller::Slices, &name, begun, is_ready).await?;
        let accepting = instant_of(tell_app(address(&pod)?, "/times").await?.parse()?)?;
        in_tables.push(millis(tables.saturating_duration_since(accepting)));
        in_slices.push(millis(slices.saturating_duration_since(accepting)));
    }
    ensure!(in_tables.len() == CROWD as usize, "{} pods", in_tables.len());
    let [tables, slices] = [in_tables, in_slices].map(|lags| [50, 99].map(|rank| percentile(&lags, rank)));
    cluster.note(format!(
        "{CROWD} pods available after {:.1} s; app accepts → ready in every table p50 {:.0} ms, p99 {:.0} ms; \
         in the EndpointSlice p50 {:.0} ms, p99 {:.0} ms",
        deployed.as_secs_f64(),
        tables[0],
        tables[1],
        slices[0],
        slices[1]
    ));
    ensure!(tables[0] < slices[0], "the slices were first");
    // Gone before the next case, which has use for the node.
    let pods = shop.api::<Pod>();
    shop.patch_deployment(json!({ "spec": { "replicas": 0 } })).await?;
    within(PATIENCE, "the crowd is gone", async || {
        Ok(pods.list(&ListParams::default()).await?.items.is_empty().then_some(()))
    })
    .await?;
    shop.close().await
}

/// A shop with a ready pod, and what is told of it from then on.
async fn ready_shop(
    cluster: &'static Cluster,
    purpose: &str,
    pod: &str,
    app: &[&str],
) -> Result<(Shop, Timeline, IpAddr)> {
    let shop = cluster.shop(purpose).await?;
    let address = shop.ready_pod(pod, pod_of(&[app_container(app)])).await?;
    shop.wait_verdict(pod, "ready pushed").await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    within(PATIENCE, "the slices have the pod", async || Ok(shop.ready_in_slices().await?.contains(pod).then_some(())))
        .await?;
    Ok((shop, timeline, address))
}

fn note(cluster: &Cluster, what: &str, before: Instant, tables: Instant, slices: Instant) {
    let [tables, slices] = [tables, slices].map(|at| millis(at.duration_since(before)));
    cluster.note(format!("app {what} → in every table {tables:.1} ms, in the EndpointSlice {slices:.1} ms"));
}

fn is_ready(told: &Told) -> bool {
    told.state == "ready"
}

fn is_out(told: &Told) -> bool {
    !is_ready(told)
}
