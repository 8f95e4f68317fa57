//! Podlight comes and goes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Resource};
use podlight_e2e::cluster::shop::{PATIENCE, Shop, app_container, is_injected, is_ready, pod_of};
use podlight_e2e::cluster::{Cluster, NAMESPACE, RELEASE, Replica, chart};
use podlight_e2e::eventually::{eventually, within};
use serde::de::DeserializeOwned;

/// Both replicas of the activator, as the chart has them.
const REPLICAS: usize = 2;

pub(crate) async fn the_chart_installs_and_everything_gets_ready(cluster: &'static Cluster) -> Result<()> {
    cluster.install().await?;
    eventually("both activators are ready", async || Ok((cluster.replicas().await?.len() == REPLICAS).then_some(())))
        .await?;
    for replica in cluster.replicas().await? {
        let targets = cluster.reader(&replica).await?.targets().await?;
        ensure!(targets.iter().any(|target| target.service == "kubernetes"), "{targets:?}");
    }
    cluster.helm(&["test", RELEASE, "--timeout", "120s"]).await?;
    Ok(())
}

pub(crate) async fn an_upgrade_and_its_rollback_keep_what_is_ready(cluster: &'static Cluster) -> Result<()> {
    let shop = cluster.shop("upgrade").await?;
    shop.deploy(2, pod_of(&[app_container(&[])])).await?;
    shop.wait_rolled_out().await?;
    let ready = shop.ready_in_slices().await?;
    ensure!(ready.len() == 2, "{ready:?}");
    let before = cluster.replicas().await?;
    let chart = chart();
    let values = ["--reuse-values", "--set", "log.level=debug"];
    cluster.helm(&[&["upgrade", RELEASE, &chart], &values[..], &["--wait", "--timeout", "180s"]].concat()).await?;
    same_tables(cluster, &shop, &before, &ready).await?;
    let upgraded = cluster.replicas().await?;
    cluster.helm(&["rollback", RELEASE, "--wait", "--timeout", "180s"]).await?;
    same_tables(cluster, &shop, &upgraded, &ready).await?;
    shop.close().await
}

/// Waits until all activators are others than `before`, and checks that each has what was ready.
async fn same_tables(cluster: &Cluster, shop: &Shop, before: &[Replica], ready: &BTreeSet<String>) -> Result<()> {
    within(PATIENCE, "all activators are new", async || {
        let now = cluster.replicas().await?;
        Ok((now.len() == REPLICAS && now.iter().all(|replica| !before.contains(replica))).then_some(()))
    })
    .await?;
    for table in shop.ready_in_tables().await? {
        ensure!(table == *ready, "{table:?} instead of {ready:?}");
    }
    Ok(())
}

pub(crate) async fn what_is_uninstalled_leaves_pods_running_and_nothing_behind(
    cluster: &'static Cluster,
) -> Result<()> {
    let shop = cluster.shop("uninstall").await?;
    shop.ready_pod("web-1", pod_of(&[app_container(&[])])).await?;
    shop.wait_verdict("web-1", "ready pushed").await?;

    cluster.helm(&["uninstall", RELEASE, "--wait", "--timeout", "120s"]).await?;
    let pods = Api::<Pod>::namespaced(cluster.client(), NAMESPACE);
    within(PATIENCE, "the activators are gone", async || {
        Ok(pods.list(&ListParams::default()).await?.items.is_empty().then_some(()))
    })
    .await?;
    ensure!(named_podlight::<MutatingWebhookConfiguration>(cluster).await?.is_empty(), "a webhook is left");
    for left in [named_podlight::<ClusterRole>(cluster).await?, named_podlight::<ClusterRoleBinding>(cluster).await?] {
        ensure!(left.is_empty(), "{left:?} are left");
    }
    let accounts = Api::<ServiceAccount>::namespaced(cluster.client(), NAMESPACE);
    let left = accounts.list(&ListParams::default()).await?.items;
    ensure!(left.len() <= 1, "accounts are left: {left:?}");

    // Whoever was injected goes on; nobody else is.
    let injected = shop.wait_pod("web-1", "is still ready", is_ready).await?;
    let restarts = injected.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    ensure!(restarts.into_iter().all(|status| status.restart_count == 0), "the app was restarted");
    shop.ready_pod("web-2", pod_of(&[app_container(&[])])).await?;
    ensure!(!is_injected(&shop.api::<Pod>().get("web-2").await?), "web-2 is injected");
    shop.close().await?;

    let made = Api::<Secret>::namespaced(cluster.client(), NAMESPACE).list(&ListParams::default()).await?;
    ensure!(made.items.is_empty(), "{} Secrets are left", made.items.len());
    Api::<Namespace>::all(cluster.client()).delete(NAMESPACE, &DeleteParams::default()).await?;
    within(Duration::from_secs(60), "the namespace is gone", async || {
        Ok(Api::<Namespace>::all(cluster.client()).get_opt(NAMESPACE).await?.is_none().then_some(()))
    })
    .await
}

async fn named_podlight<K>(cluster: &Cluster) -> Result<Vec<String>>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let objects = Api::<K>::all(cluster.client()).list(&ListParams::default()).await?;
    let names = objects.into_iter().filter_map(|object| object.meta().name.clone());
    Ok(names.filter(|name| name.starts_with("podlight")).collect())
}
