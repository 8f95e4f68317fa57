//! Parts of Podlight die.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use podlight_e2e::cluster::processes::{Signal, signal, signal_api_server};
use podlight_e2e::cluster::shop::{PATIENCE, SIDECAR, address, app_container, pod_of, tell_app};
use podlight_e2e::cluster::timeline::Timeline;
use podlight_e2e::cluster::{Cluster, NAMESPACE};
use podlight_e2e::eventually::within;

use crate::requests::{Load, wait_route};

pub(crate) async fn an_activator_that_is_killed_comes_back_to_the_same_table(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("kill").await?;
    shop.deploy(3, pod_of(&[app_container(&[])])).await?;
    shop.wait_rolled_out().await?;
    let ready = shop.ready_in_slices().await?;
    ensure!(ready.len() == 3, "{ready:?}");
    let replicas = cluster.replicas().await?;
    let [killed, other] = replicas.as_slice() else { anyhow::bail!("{} activators are ready", replicas.len()) };
    signal(&killed.pod, "/podlight-activator", Signal::KILL)?;
    // The other one goes on meanwhile.
    let answer = shop.ask(other.requests(), "/").await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let activators = Api::<Pod>::namespaced(cluster.client(), NAMESPACE);
    within(PATIENCE, "the activator was started again", async || {
        let pod = activators.get(&killed.pod).await?;
        let mut statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        Ok(statuses.any(|status| status.restart_count > 0 && status.ready).then_some(()))
    })
    .await?;
    within(PATIENCE, "both tables are as before", async || {
        let tables: Vec<BTreeSet<String>> = shop.ready_in_tables().await?;
        Ok((tables.len() == 2 && tables.iter().all(|table| *table == ready)).then_some(()))
    })
    .await?;
    let answer = shop.ask(killed.requests(), "/").await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    shop.close().await
}

pub(crate) async fn while_the_api_server_hangs_requests_go_on(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("outage").await?;
    shop.deploy(2, pod_of(&[app_container(&[])])).await?;
    shop.wait_rolled_out().await?;
    wait_route(&shop, cluster).await?;
    let replicas = cluster.replicas().await?;
    let timeline = Timeline::of(cluster, &shop).await?;
    let pods = shop.pods().await?;
    let pod = pods.first().context("no pods")?;
    let (name, address) = (pod.metadata.name.as_deref().unwrap_or_default(), address(pod)?);
    let load = Load::start(cluster, &shop).await?;
    load.wait_for(50).await?;
    signal_api_server(Signal::STOP)?;
    let outage = async {
        for replica in &replicas {
            within(PATIENCE, "the outage is measured", async || {
                Ok((replica.metrics().await?.sum("podlight_api_reachable", &[]) == 0.0).then_some(()))
            })
            .await?;
        }
        load.wait_for(500).await?;
        // Sidecars are still believed: their keys are known.
        for (path, state) in [("/off", "not-ready"), ("/on", "ready")] {
            let told = Instant::now();
            tell_app(address, path).await?;
            timeline.in_all_tables(name, told, |told| told.state == state).await?;
        }
        load.wait_for(100).await
    };
    let went = outage.await;
    // Whatever happened: the next case needs it.
    signal_api_server(Signal::CONT)?;
    went?;
    for replica in &replicas {
        within(PATIENCE, "the API server is back", async || {
            Ok((replica.metrics().await?.sum("podlight_api_reachable", &[]) > 0.0).then_some(()))
        })
        .await?;
    }
    let answered = load.end().await?;
    cluster.note(format!("{answered} requests, none failed"));
    shop.close().await
}

pub(crate) async fn a_sidecar_that_is_killed_comes_back_and_its_pod_stays_in(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("sidecar").await?;
    shop.ready_pod("web-sidecar", pod_of(&[app_container(&[])])).await?;
    shop.wait_verdict("web-sidecar", "ready pushed").await?;
    signal("web-sidecar", "/podlight-sidecar", Signal::KILL)?;
    shop.wait_pod("web-sidecar", "has a new sidecar", |pod| {
        let mut statuses = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
        statuses.any(|status| status.name == SIDECAR && status.restart_count == 1 && status.ready)
    })
    .await
    .context("the sidecar does not come back")?;
    shop.wait_verdict("web-sidecar", "ready pushed").await?;
    shop.close().await
}
