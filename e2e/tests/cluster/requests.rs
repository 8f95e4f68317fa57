//! Requests through the activators.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use podlight_e2e::cluster::Cluster;
use podlight_e2e::cluster::shop::{PATIENCE, Shop, app_container, pod_of};
use podlight_e2e::cluster::timeline::instant_of;
use podlight_e2e::eventually::{eventually, within};
use podlight_e2e::proxy::client::{Connection, get};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// Clients of each activator during an update, each with a connection that it keeps.
const CLIENTS: usize = 4;

/// From one request of a client to its next.
const PACE: Duration = Duration::from_millis(10);

pub(crate) async fn a_request_to_a_deployment_at_zero_scales_it_and_is_answered(
    cluster: &'static Cluster,
) -> Result<()> {
    for mode in ["always", "cold-start-only"] {
        let shop = cluster.shop("cold").await?;
        shop.deploy(0, pod_of(&[app_container(&["delay=500"])])).await?;
        let annotations = json!({ "podlight.dev/route": mode, "podlight.dev/scale-target": "Deployment/web" });
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        shop.api::<Service>().patch("web", &PatchParams::default(), &patch).await?;
        let replica = cluster.replica().await?;
        wait_route(&shop, cluster).await?;

        let begun = Instant::now();
        let answer = shop.ask(replica.requests(), "/times").await?;
        let total = begun.elapsed();
        ensure!(answer.status == 200, "{mode}: {} {} {}", answer.status, answer.error(), answer.text());
        let accepting = instant_of(answer.text().parse().context(answer.text())?)?;
        let after = (begun + total).saturating_duration_since(accepting);
        cluster.note(format!(
            "{mode}: answered {:.2} s after the request came, {:.1} ms after the app began to accept",
            total.as_secs_f64(),
            after.as_secs_f64() * 1e3
        ));
        let deployment = shop.api::<Deployment>().get("web").await?;
        ensure!(deployment.spec.and_then(|spec| spec.replicas) == Some(1), "{mode}: not scaled to one");
        shop.close().await?;
    }
    Ok(())
}

pub(crate) async fn a_rolling_update_under_load_fails_no_request(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("rollout").await?;
    shop.deploy(3, pod_of(&[app_container(&["delay=300"])])).await?;
    shop.wait_rolled_out().await?;
    wait_route(&shop, cluster).await?;
    let load = Load::start(cluster, &shop).await?;
    load.wait_for(50).await?;
    // The port of the last revision is called the same and has another number.
    let mut moved = revised("third");
    let mut app = app_container(&["delay=300", "port=9090"]);
    app["ports"] = json!([{ "name": "http", "containerPort": 9090 }]);
    moved["spec"]["template"]["spec"] = json!({ "containers": [app] });
    for revision in [revised("second"), moved] {
        shop.patch_deployment(revision).await?;
        shop.wait_rolled_out().await?;
        within(PATIENCE, "the old pods are gone from every table", async || {
            Ok(shop.ready_in_tables().await?.iter().all(|ready| ready.len() == 3).then_some(()))
        })
        .await?;
    }
    let answered = load.end().await?;
    cluster.note(format!("{answered} requests through {} connections, none failed", 2 * CLIENTS));
    shop.close().await
}

pub(crate) async fn a_rollout_that_never_gets_ready_fails_no_request(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("stuck").await?;
    shop.deploy(2, pod_of(&[app_container(&[])])).await?;
    shop.wait_rolled_out().await?;
    wait_route(&shop, cluster).await?;
    let old = shop.ready_in_slices().await?;
    let load = Load::start(cluster, &shop).await?;
    load.wait_for(50).await?;
    let mut patch = revised("stuck");
    // It accepts, and its probe asks where nobody listens.
    let mut app = app_container(&[]);
    app["ports"] = json!([{ "name": "http", "containerPort": 8080 }, { "name": "nobody", "containerPort": 8099 }]);
    app["readinessProbe"]["httpGet"]["port"] = json!("nobody");
    patch["spec"]["template"]["spec"] = json!({ "containers": [app] });
    shop.patch_deployment(patch).await?;
    let pods = within(PATIENCE, "the new pod runs", async || {
        let pods = shop.pods().await?;
        let running = |pod: &&k8s_openapi::api::core::v1::Pod| {
            let mut statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            statuses.any(|status| status.started == Some(true))
        };
        Ok((pods.len() == 3 && pods.iter().filter(running).count() == 3).then_some(pods))
    })
    .await?;
    ensure!(pods.len() == 3, "{} pods", pods.len());
    load.wait_for(200).await?;
    for ready in shop.ready_in_tables().await? {
        ensure!(ready == old, "{ready:?} instead of {old:?}");
    }
    let answered = load.end().await?;
    cluster.note(format!("{answered} requests, none failed, none came to the new pod"));
    shop.close().await
}

fn revised(revision: &str) -> serde_json::Value {
    json!({ "spec": { "template": { "metadata": { "annotations": { "example.com/revision": revision } } } } })
}

/// Waits until every activator knows the Service's host: a request that it does not know is answered 404.
pub(crate) async fn wait_route(shop: &Shop, cluster: &Cluster) -> Result<()> {
    for replica in cluster.replicas().await? {
        eventually("the activator knows the route", async || {
            let page = podlight_e2e::http_client()?.get(format!("{}/status", replica.admin_url())).send().await?;
            Ok(page.text().await?.contains(&shop.host()).then_some(()))
        })
        .await?;
    }
    Ok(())
}

/// Clients that ask through every activator until they are told to end.
pub(crate) struct Load {
    clients: JoinSet<Result<()>>,
    ending: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    pub(crate) async fn start(cluster: &Cluster, shop: &Shop) -> Result<Self> {
        let (ending, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for replica in cluster.replicas().await? {
            for _ in 0..CLIENTS {
                let (host, ending, answered) = (shop.host(), Arc::clone(&ending), Arc::clone(&answered));
                let mut connection = Connection::http1(replica.requests()).await?;
                clients.spawn(async move {
                    let mut paces = interval(PACE);
                    paces.set_missed_tick_behavior(MissedTickBehavior::Delay);
                    while !ending.load(Ordering::SeqCst) {
                        paces.tick().await;
                        let answer = connection.ask(get(&host, "/slow/5")).await?;
                        let (status, error) = (answer.status, answer.error());
                        ensure!(status == 200, "{status} {error} {}", answer.text());
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                });
            }
        }
        Ok(Self { clients, ending, answered })
    }

    /// Waits for so many answers more.
    pub(crate) async fn wait_for(&self, more: usize) -> Result<()> {
        let before = self.answered.load(Ordering::SeqCst);
        eventually("requests are answered", async || {
            Ok((self.answered.load(Ordering::SeqCst) >= before + more).then_some(()))
        })
        .await
    }

    /// Ends it; fails when one request did. Returns how many were answered.
    pub(crate) async fn end(mut self) -> Result<usize> {
        self.ending.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            let answered = self.answered.load(Ordering::SeqCst);
            ended?.with_context(|| format!("a request failed; {answered} were answered"))?;
        }
        Ok(self.answered.load(Ordering::SeqCst))
    }
}
