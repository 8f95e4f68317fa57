//! A namespace of one test with a Service `web`, and what a test puts behind it. Removed on request, not on drop: what is left
//! after a failure is evidence.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Cluster, testapp_image};
use crate::eventually::within;
use crate::http_client;
use crate::proxy::client::{self, Answer};

/// How long pods may take: ninety of them at once take twenty seconds on two idle cores.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where the tests' app listens.
const APP_PORT: u16 = 8080;

/// The sidecar's container.
pub const SIDECAR: &str = "podlight-sidecar";

/// A namespace whose pods get the sidecar.
pub struct Shop {
    cluster: &'static Cluster,
    /// Its name.
    pub namespace: String,
}

impl Cluster {
    /// A namespace whose pods get the sidecar, and in it the Service `web`, whose requests always go straight to a pod.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn shop(&'static self, purpose: &str) -> Result<Shop> {
        self.shop_labelled(purpose, &[]).await
    }

    /// The same with labels more.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn shop_labelled(&'static self, purpose: &str, labels: &[(&str, &str)]) -> Result<Shop> {
        let namespace = format!("e2e-{purpose}-{}-{}", std::process::id(), self.next_shop());
        let mut object = json!({ "metadata": { "name": namespace, "labels": { "podlight.dev/inject": "enabled" } } });
        for (key, value) in labels {
            object["metadata"]["labels"][key] = json!(value);
        }
        let namespaces = Api::<Namespace>::all(self.client());
        namespaces.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        let shop = Shop { cluster: self, namespace };
        let service = json!({
            "metadata": { "name": "web", "annotations": { "podlight.dev/route": "always" } },
            "spec": {
                "selector": { "app": "web" },
                "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
            },
        });
        shop.create::<Service>(service).await?;
        Ok(shop)
    }
}

/// A container of the tests' app with an HTTP readiness probe each second. `arguments` as the app takes them.
pub fn app_container(arguments: &[&str]) -> Value {
    json!({
        "name": "app",
        "image": testapp_image(),
        "imagePullPolicy": "Never",
        "args": arguments,
        "ports": [{ "name": "http", "containerPort": APP_PORT }],
        "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" }, "periodSeconds": 1 },
    })
}

/// A pod behind `web` with these containers, without name.
pub fn pod_of(containers: &[Value]) -> Value {
    json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": { "containers": containers, "terminationGracePeriodSeconds": 20 },
    })
}

/// The same with a name.
pub fn named(name: &str, mut pod: Value) -> Value {
    pod["metadata"]["name"] = json!(name);
    pod
}

/// Whether its condition Ready is True.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready") == Some("True")
}

/// The status of one of its conditions.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a str> {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}

/// Whether it has the sidecar.
pub fn is_injected(pod: &Pod) -> bool {
    let mut containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    containers.any(|container| container.name == SIDECAR)
}

impl Shop {
    /// The Service's host.
    pub fn host(&self) -> String {
        format!("web.{}", self.namespace)
    }

    /// Its objects of a kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    /// Creates an object.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
        K::DynamicType: Default,
    {
        Ok(self.api().create(&PostParams::default(), &serde_json::from_value(object)?).await?)
    }

    /// Creates the Deployment `web`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn deploy(&self, replicas: u32, pod: Value) -> Result<()> {
        let deployment = json!({
            "metadata": { "name": "web" },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": "web" } },
                "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
                "template": pod,
            },
        });
        self.create::<Deployment>(deployment).await.map(drop)
    }

    /// Merges `patch` into the Deployment `web`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn patch_deployment(&self, patch: Value) -> Result<()> {
        self.api::<Deployment>().patch("web", &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Waits until the Deployment `web` is what it was told to be, and nothing of what it was.
    ///
    /// # Errors
    /// When it does not get there.
    pub async fn wait_rolled_out(&self) -> Result<()> {
        let deployments = self.api::<Deployment>();
        within(PATIENCE, "the Deployment is rolled out", async || {
            let deployment = deployments.get("web").await?;
            let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
            let Some(status) = deployment.status else { return Ok(None) };
            let counts = [status.replicas, status.updated_replicas, status.available_replicas];
            let current = status.observed_generation == deployment.metadata.generation;
            let all = counts.into_iter().all(|count| count.unwrap_or(0) == wanted);
            Ok((current && all).then_some(()))
        })
        .await
    }

    /// Its pods, those that are being deleted left out.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods = self.api::<Pod>().list(&ListParams::default()).await?;
        Ok(pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Waits for a condition of a pod.
    ///
    /// # Errors
    /// When it does not come true.
    pub async fn wait_pod(&self, name: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> Result<Pod> {
        let pods = self.api::<Pod>();
        within(PATIENCE, &format!("pod {name} {what}"), async || Ok(Some(pods.get(name).await?).filter(&holds))).await
    }

    /// Creates a pod, waits until the API server calls it ready, and returns its address.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn ready_pod(&self, name: &str, pod: Value) -> Result<IpAddr> {
        self.create::<Pod>(named(name, pod)).await?;
        address(&self.wait_pod(name, "is ready", is_ready).await?)
    }

    /// The names of the pods that its EndpointSlices call ready.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn ready_in_slices(&self) -> Result<BTreeSet<String>> {
        let slices = self.api::<EndpointSlice>().list(&ListParams::default()).await?;
        let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.into_iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or_default()
        });
        Ok(ready.filter_map(|endpoint| endpoint.target_ref?.name).collect())
    }

    /// The names of the pods that every activator's table calls ready.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub async fn ready_in_tables(&self) -> Result<Vec<BTreeSet<String>>> {
        let mut tables = Vec::new();
        for replica in self.cluster.replicas().await? {
            let endpoints = self.cluster.reader(&replica).await?.endpoints(&self.namespace, "web").await?;
            let ready = endpoints.into_iter().filter(|endpoint| endpoint.state == "ready");
            tables.push(ready.filter_map(|endpoint| Some(endpoint.pod?.name)).collect());
        }
        Ok(tables)
    }

    /// Waits until every activator's verdict on a pod is this one, as in `ready pushed`.
    ///
    /// # Errors
    /// When it is not.
    pub async fn wait_verdict(&self, pod: &str, verdict: &str) -> Result<()> {
        for replica in self.cluster.replicas().await? {
            let reader = self.cluster.reader(&replica).await?;
            reader.wait_verdict(&self.namespace, "web", pod, verdict).await?;
        }
        Ok(())
    }

    /// Asks the Service through an activator.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn ask(&self, activator: SocketAddr, path: &str) -> Result<Answer> {
        client::ask(activator, client::get(&self.host(), path)).await
    }

    /// Removes it, and does not wait until it is gone.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn close(self) -> Result<()> {
        Api::<Namespace>::all(self.cluster.client()).delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A pod's address.
///
/// # Errors
/// When it has none.
pub fn address(pod: &Pod) -> Result<IpAddr> {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).context("the pod has no address")?;
    Ok(address.parse()?)
}

/// Tells the app of a pod something, as `/off`, and returns what it answers.
///
/// # Errors
/// When it does not answer 200.
pub async fn tell_app(address: IpAddr, path: &str) -> Result<String> {
    let url = format!("http://{}{path}", SocketAddr::new(address, APP_PORT));
    let response = http_client()?.get(&url).send().await.with_context(|| url.clone())?;
    ensure!(response.status() == 200, "{url}: {}", response.status());
    Ok(response.text().await?)
}
