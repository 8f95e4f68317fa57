//! The figures of a whole cluster, the one that KUBECONFIG names: real kubelets, the same pods, both paths at once. What a kubelet
//! and the EndpointSlices need is the reference of what the sidecar and the tables need.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::sleep;

use super::report::Row;
use super::usage::{CpuMeter, median, memory_mib, millis};
use crate::cluster::Cluster;
use crate::cluster::processes::process;
use crate::cluster::shop::{PATIENCE, Shop, address, app_container, is_ready, named, pod_of, tell_app};
use crate::cluster::timeline::{Teller, Timeline, Told, instant_of};
use crate::eventually::{eventually, within};
use crate::http_client;

/// A kubelet asks once a second, at a phase that nobody chooses: so many rounds, each at another one.
const ROUNDS: u32 = 10;

/// Over which a sidecar at rest is looked at.
const REST: Duration = Duration::from_secs(60);

/// The sidecar's program in its image.
const SIDECAR: &str = "/podlight-sidecar";

/// Measures all figures.
///
/// # Errors
/// When the cluster cannot be reached, or Podlight does not get ready on it.
pub async fn measure() -> Result<Vec<Row>> {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::reach().await?));
    cluster.install().await?;
    let mut rows = measure_transitions(cluster).await?;
    rows.push(measure_cold_start(cluster).await?);
    rows.push(measure_creation(cluster).await?);
    rows.extend(measure_rest(cluster).await?);
    Ok(rows)
}

/// What both paths took for the same transitions, in milliseconds.
#[derive(Default)]
struct Lags {
    tables: Vec<f64>,
    slices: Vec<f64>,
}

impl Lags {
    async fn note(&mut self, timeline: &Timeline, pod: &str, since: Instant, wanted: fn(&Told) -> bool) -> Result<()> {
        let tables = timeline.in_all_tables(pod, since, wanted).await?;
        let slices = timeline.first(Teller::Slices, pod, since, wanted).await?;
        self.push(since, tables, slices);
        Ok(())
    }

    fn push(&mut self, since: Instant, tables: Instant, slices: Instant) {
        self.tables.push(millis(tables.saturating_duration_since(since)));
        self.slices.push(millis(slices.saturating_duration_since(since)));
    }

    fn row(&self, figure: &str) -> Row {
        let ratios: Vec<f64> = self.tables.iter().zip(&self.slices).map(|(ours, slice)| ours / slice).collect();
        Row::new(figure, "ms", median(&self.tables)).beside("EndpointSlice", median(&self.slices), median(&ratios))
    }
}

async fn measure_transitions(cluster: &'static Cluster) -> Result<Vec<Row>> {
    let shop = cluster.shop("bench").await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    let [mut ready, mut out, mut deleted] = [Lags::default(), Lags::default(), Lags::default()];
    for round in 0..ROUNDS {
        let name = format!("web-bench-{round}");
        let begun = Instant::now();
        let delay = format!("delay={}", 300 + 97 * round);
        shop.create::<Pod>(named(&name, pod_of(&[app_container(&[&delay])]))).await?;
        let tables = timeline.in_all_tables(&name, begun, is_ready_told).await?;
        let slices = timeline.first(Teller::Slices, &name, begun, is_ready_told).await?;
        let address = address(&shop.wait_pod(&name, "is ready", is_ready).await?)?;
        ready.push(instant_of(tell_app(address, "/times").await?.parse()?)?, tables, slices);

        // Not at the phase that the steps before left the kubelet in.
        sleep(Duration::from_millis(u64::from(137 * round % 1000))).await;
        let since = Instant::now();
        tell_app(address, "/off").await?;
        out.note(&timeline, &name, since, is_out_told).await?;
        let since = Instant::now();
        tell_app(address, "/on").await?;
        timeline.in_all_tables(&name, since, is_ready_told).await?;
        timeline.first(Teller::Slices, &name, since, is_ready_told).await?;

        let since = Instant::now();
        shop.api::<Pod>().delete(&name, &DeleteParams::default()).await?;
        deleted.note(&timeline, &name, since, is_out_told).await?;
    }
    shop.close().await?;
    Ok(vec![
        ready.row("app accepts → ready in every table").bounds(0.033, 0.01),
        out.row("app turns not-ready → out of every table").bounds(0.02, 0.005),
        deleted.row("pod is deleted → out of every table").bounds(1.0, 1.0),
    ])
}

fn is_ready_told(told: &Told) -> bool {
    told.state == "ready"
}

fn is_out_told(told: &Told) -> bool {
    told.state != "ready"
}

/// How much of a held request's time is after its pod accepts: the push, and the answer.
async fn measure_cold_start(cluster: &'static Cluster) -> Result<Row> {
    let shop = cluster.shop("bench-cold").await?;
    shop.deploy(0, pod_of(&[app_container(&["linger=0"])])).await?;
    let patch =
        Patch::Merge(json!({ "metadata": { "annotations": { "podlight.dev/scale-target": "Deployment/web" } } }));
    shop.api::<Service>().patch("web", &PatchParams::default(), &patch).await?;
    let replica = cluster.replica().await?;
    eventually("the activator knows the route", async || {
        let page = http_client()?.get(format!("{}/status", replica.admin_url())).send().await?;
        Ok(page.text().await?.contains(&shop.host()).then_some(()))
    })
    .await?;
    let reader = cluster.reader(&replica).await?;
    let (mut shares, mut totals) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS / 2 {
        let begun = Instant::now();
        let answer = shop.ask(replica.requests(), "/times").await?;
        let answered = Instant::now();
        ensure!(answer.status == 200, "{} {} {}", answer.status, answer.error(), answer.text());
        let accepting = instant_of(answer.text().parse()?)?;
        let total = answered.duration_since(begun);
        shares.push(millis(answered.saturating_duration_since(accepting)) / millis(total) * 100.0);
        totals.push(total.as_secs_f64());
        shop.patch_deployment(json!({ "spec": { "replicas": 0 } })).await?;
        // While it ends it would still be asked: there is nobody else.
        within(PATIENCE, "the pod is gone", async || {
            let pods = shop.api::<Pod>().list(&ListParams::default()).await?.items;
            let endpoints = reader.endpoints(&shop.namespace, "web").await?;
            Ok((pods.is_empty() && endpoints.is_empty()).then_some(()))
        })
        .await?;
    }
    shop.close().await?;
    let figure = format!("held request at scale-from-zero ({:.2} s): app accepts → answered", median(&totals));
    Ok(Row::new(figure, "% of it", median(&shares)).bounds(3.0, 1.0))
}

/// How much later an app begins for the sidecar's sake.
async fn measure_creation(cluster: &'static Cluster) -> Result<Row> {
    let shop = cluster.shop("bench-create").await?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        with.push(creation(&shop, &format!("web-with-{round}"), "enabled").await?);
        without.push(creation(&shop, &format!("web-without-{round}"), "disabled").await?);
    }
    shop.close().await?;
    let figure = format!(
        "pod is created → app accepts, {:.0} ms with the sidecar, {:.0} ms without: difference",
        median(&with),
        median(&without)
    );
    Ok(Row::new(figure, "ms", median(&with) - median(&without)).bounds(400.0, 150.0))
}

/// Milliseconds from a pod's creation until its app accepts.
async fn creation(shop: &Shop, name: &str, inject: &str) -> Result<f64> {
    let mut pod = named(name, pod_of(&[app_container(&["linger=0"])]));
    pod["metadata"]["labels"]["podlight.dev/inject"] = json!(inject);
    let created = Instant::now();
    let address = shop.ready_pod(name, pod).await?;
    let accepting = instant_of(tell_app(address, "/times").await?.parse()?)?;
    shop.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(millis(accepting.saturating_duration_since(created)))
}

/// What an injected sidecar takes while nothing happens.
async fn measure_rest(cluster: &'static Cluster) -> Result<[Row; 2]> {
    let shop = cluster.shop("bench-rest").await?;
    shop.ready_pod("web-rest", pod_of(&[app_container(&[])])).await?;
    shop.wait_verdict("web-rest", "ready pushed").await?;
    let id = u32::try_from(process("web-rest", SIDECAR)?.as_raw_pid())?;
    let mut meter = CpuMeter::new(id);
    let (begun, before) = (Instant::now(), meter.total()?);
    sleep(REST).await;
    let used = meter.total()?.checked_sub(before).context("the processor's time went back")?;
    let share = used.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
    let resident = memory_mib(id, "VmRSS")?;
    shop.close().await?;
    Ok([
        Row::new("injected sidecar at rest: resident", "MiB", resident).bounds(8.0, 6.0),
        Row::new("injected sidecar at rest over 60 s", "% of a core", share).bounds(0.2, 0.05),
    ])
}
