//! What is kept of a failed case, in one folder: objects, events, logs of all pods, and each activator's table, status and
//! metrics. Whatever cannot be had leaves the reason in its place.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{ListParams, LogParams};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cluster, folder};
use crate::http_client;

impl Cluster {
    /// Keeps what a case left, and returns the folder.
    ///
    /// # Errors
    /// When nothing can be written.
    pub async fn keep_evidence(&self, case: &str, failure: &str) -> Result<PathBuf> {
        let folder = folder().join(case);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("failure.txt"), failure)?;
        self.keep_objects::<Pod>(&folder, "pods").await?;
        self.keep_objects::<Deployment>(&folder, "deployments").await?;
        self.keep_objects::<EndpointSlice>(&folder, "endpointslices").await?;
        self.keep_objects::<Event>(&folder, "events").await?;
        self.keep_logs(&folder).await?;
        self.keep_activators(&folder).await?;
        Ok(folder)
    }

    async fn keep_objects<K>(&self, folder: &Path, kind: &str) -> Result<()>
    where
        K: kube::Resource + Clone + Debug + Serialize + DeserializeOwned,
        K::DynamicType: Default,
    {
        let listed = Api::<K>::all(self.client()).list(&ListParams::default()).await;
        let text = match listed {
            Ok(mut objects) => {
                objects.items.iter_mut().for_each(|object| object.meta_mut().managed_fields = None);
                serde_json::to_string_pretty(&objects.items)?
            }
            Err(error) => error.to_string(),
        };
        Ok(fs::write(folder.join(format!("{kind}.json")), text)?)
    }

    async fn keep_logs(&self, folder: &Path) -> Result<()> {
        let Ok(pods) = Api::<Pod>::all(self.client()).list(&ListParams::default()).await else { return Ok(()) };
        let logs = folder.join("logs");
        fs::create_dir_all(&logs)?;
        for pod in pods {
            let (Some(namespace), Some(name), Some(spec)) = (pod.metadata.namespace, pod.metadata.name, pod.spec)
            else {
                continue;
            };
            let pods = Api::<Pod>::namespaced(self.client(), &namespace);
            for container in spec.init_containers.into_iter().flatten().chain(spec.containers) {
                for previous in [false, true] {
                    let wanted = LogParams { container: Some(container.name.clone()), previous, ..Default::default() };
                    let log = match pods.logs(&name, &wanted).await {
                        Ok(log) => log,
                        Err(_) if previous => continue,
                        Err(error) => error.to_string(),
                    };
                    let suffix = if previous { ".previous" } else { "" };
                    fs::write(logs.join(format!("{namespace}.{name}.{}{suffix}.log", container.name)), log)?;
                }
            }
        }
        Ok(())
    }

    async fn keep_activators(&self, folder: &Path) -> Result<()> {
        for replica in self.replicas().await.unwrap_or_default() {
            for page in ["metrics", "status", "readyz"] {
                let url = format!("{}/{page}", replica.admin_url());
                let text = match http_client()?.get(&url).send().await {
                    Ok(response) => response.text().await.unwrap_or_else(|error| error.to_string()),
                    Err(error) => error.to_string(),
                };
                fs::write(folder.join(format!("{}.{page}.txt", replica.pod)), text)?;
            }
            let table = async { self.reader(&replica).await?.get("/v1/targets").await };
            let table = table.await.map_or_else(|error| format!("{error:#}"), |reply| reply.body);
            fs::write(folder.join(format!("{}.table.json", replica.pod)), table)?;
        }
        Ok(())
    }
}
