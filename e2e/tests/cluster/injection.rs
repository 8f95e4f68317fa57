//! Pods get the sidecar, and only those that can.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::api::PostParams;
use podlight_e2e::bench::usage::{median, millis};
use podlight_e2e::cluster::shop::{
    PATIENCE, SIDECAR, Shop, address, app_container, is_injected, is_ready, named, pod_of, tell_app,
};
use podlight_e2e::cluster::timeline::{Teller, Timeline, instant_of};
use podlight_e2e::cluster::{Cluster, RELEASE, chart};
use podlight_e2e::eventually::{eventually, within};
use serde_json::{Value, json};

/// Runs of a comparison: a kubelet asks once a second, at a phase that nobody chooses.
const ROUNDS: usize = 5;

pub(crate) async fn a_pod_of_a_labelled_namespace_gets_the_sidecar_and_is_ready_in_every_table_first(
    cluster: &'static Cluster,
) -> Result<()> {
    let shop = cluster.shop("ready").await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    let (mut in_tables, mut in_slices) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let name = format!("web-ready-{round}");
        let before = Instant::now();
        // A different phase each time.
        let delay = format!("delay={}", 300 + 170 * round);
        let created: Pod = shop.create(named(&name, pod_of(&[app_container(&[&delay])]))).await?;
        ensure!(is_injected(&created), "{name} has no sidecar");
        let tables = timeline.in_all_tables(&name, before, |told| told.state == "ready").await?;
        let slices = timeline.first(Teller::Slices, &name, before, |told| told.state == "ready").await?;
        let pod = shop.wait_pod(&name, "is ready", is_ready).await?;
        let accepting = instant_of(tell_app(address(&pod)?, "/times").await?.parse()?)?;
        in_tables.push(millis(tables.saturating_duration_since(accepting)));
        in_slices.push(millis(slices.saturating_duration_since(accepting)));
    }
    let (table, slice) = (median(&in_tables), median(&in_slices));
    cluster.note(format!(
        "app accepts → ready in every table {table:.1} ms, in the EndpointSlice {slice:.0} ms (medians of {ROUNDS})"
    ));
    ensure!(table < slice, "the slices were first");
    shop.close().await
}

pub(crate) async fn the_policy_injects_as_the_webhook_does(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("doors").await?;
    let mut pod = named("web-door", pod_of(&[app_container(&[])]));
    // Each pod would have a volume of another name, and the sidecar its mount.
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    let by_webhook = would_be(&shop, &pod).await?;
    ensure!(is_injected(&by_webhook), "the webhook does not inject");
    let chart = chart();
    let policy = ["upgrade", RELEASE, &chart, "--reuse-values", "--set", "injection.mode=policy"];
    cluster.helm(&[&policy[..], &["--wait", "--timeout", "180s"]].concat()).await?;
    let by_policy = eventually("the policy injects", async || {
        let pod = would_be(&shop, &pod).await?;
        Ok(is_injected(&pod).then_some(pod))
    })
    .await?;
    let [webhook, policy] = [by_webhook, by_policy].map(|pod| pod.spec.unwrap_or_default());
    ensure!(sidecar(&webhook) == sidecar(&policy), "{:#?}\nand\n{:#?}", sidecar(&webhook), sidecar(&policy));
    shop.ready_pod("web-door", pod).await?;
    shop.wait_verdict("web-door", "ready pushed").await?;
    cluster.helm(&["rollback", RELEASE, "--wait", "--timeout", "180s"]).await?;
    shop.close().await
}

/// What the API server would make of a pod.
async fn would_be(shop: &Shop, pod: &Value) -> Result<Pod> {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    Ok(shop.api::<Pod>().create(&dry, &serde_json::from_value(pod.clone())?).await?)
}

fn sidecar(spec: &PodSpec) -> Option<&Container> {
    spec.init_containers.iter().flatten().find(|container| container.name == SIDECAR)
}

pub(crate) async fn a_namespace_of_the_restricted_level_accepts_injected_pods(cluster: &'static Cluster) -> Result<()> {
    let level = [("pod-security.kubernetes.io/enforce", "restricted")];
    let shop = cluster.shop_labelled("restricted", &level).await?;
    let mut app = app_container(&[]);
    app["securityContext"] = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    let mut pod = pod_of(&[app]);
    pod["spec"]["securityContext"] = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    shop.ready_pod("web-restricted", pod).await?;
    ensure!(is_injected(&shop.api::<Pod>().get("web-restricted").await?), "it has no sidecar");
    shop.wait_verdict("web-restricted", "ready pushed").await?;
    shop.close().await
}

pub(crate) async fn a_pod_with_an_exec_probe_is_left_to_the_api_servers_word(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("exec").await?;
    let mut app = app_container(&[]);
    let command = json!({ "command": ["/podlight-testapp", "check", "port=8080"] });
    app["readinessProbe"] = json!({ "exec": command, "periodSeconds": 1 });
    let address = shop.ready_pod("web-exec", pod_of(&[app])).await?;
    ensure!(!is_injected(&shop.api::<Pod>().get("web-exec").await?), "it has a sidecar");
    shop.wait_verdict("web-exec", "ready observed").await?;
    tell_app(address, "/off").await?;
    shop.wait_verdict("web-exec", "not-ready observed").await?;
    shop.close().await
}

pub(crate) async fn a_job_completes_with_the_sidecar_in_it(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("job").await?;
    let mut worker = app_container(&["work", "for=500"]);
    worker.as_object_mut().context("no object")?.remove("readinessProbe");
    let mut pod = pod_of(&[worker]);
    pod["spec"]["restartPolicy"] = json!("Never");
    let job = json!({ "metadata": { "name": "work" }, "spec": { "backoffLimit": 0, "template": pod } });
    shop.create::<Job>(job).await?;
    let jobs = shop.api::<Job>();
    within(PATIENCE, "the Job is complete", async || {
        let status = jobs.get("work").await?.status.unwrap_or_default();
        ensure!(status.failed.is_none(), "it failed: {status:?}");
        Ok((status.succeeded == Some(1)).then_some(()))
    })
    .await?;
    let pods = shop.pods().await?;
    ensure!(pods.len() == 1 && pods.iter().all(is_injected), "{} pods, or one without sidecar", pods.len());
    shop.close().await
}
