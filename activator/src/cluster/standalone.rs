//! Kubernetes manifests in the API server's place, for development, the demo and tests: the same objects, delivered
//! as lists through the same code, each time a file changes. A development mode: whoever holds the issuer key may
//! speak for any pod, and every good token may read everything.
//!
//! What manifests leave out is made up so that it is the same at every start: the namespace is `default`, a uid
//! follows from namespace and name (see [`pod_uid`]), and a resourceVersion counts the pod's changes. A pod without
//! status is alive, with no addresses and no Ready condition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use metrics::counter;
use podlight_proto::PodUid;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::api::{Api, ApiError, Reviewed};
use super::extract::RevisionLabels;
use super::health::Health;
use super::pods::Pods;
use super::token::{IssuerKey, derived_uuid};
use super::watch::{Deliverer, Subject};
use super::{Shutdown, ended};
use crate::table::entry::Observation;
use crate::table::owner::TableHandle;

mod manifests;

use manifests::{Fingerprint, Manifests, Name, Scan, Secrets};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The ServiceAccount that every namespace has.
const DEFAULT_ACCOUNT: &str = "default";

/// What stands in for the cluster.
#[derive(Debug, Clone)]
pub struct StandaloneConfig {
    /// A manifest, or a directory of them (`*.yaml`, `*.yml`, `*.json`, hidden ones left out).
    pub path: PathBuf,
    /// Signs and verifies tokens.
    pub issuer_key: Arc<IssuerKey>,
    /// What tokens say who issued them.
    pub issuer: String,
    /// Which labels tell a pod's revision.
    pub revision_labels: RevisionLabels,
    /// Ends the task.
    pub shutdown: Shutdown,
}

/// The uid of a pod whose manifest has none: a UUID that follows from namespace and name alone.
pub fn pod_uid(namespace: &str, name: &str) -> PodUid {
    PodUid::new(&derived_uuid(&["Pod", namespace, name])).expect("a UUID is letters, digits and dashes")
}

/// Starts following the files. The task ends at shutdown.
pub fn spawn_standalone(config: StandaloneConfig, table: TableHandle) -> (Api, Pods, Health, Vec<JoinHandle<()>>) {
    let shutdown = config.shutdown.clone();
    let (follower, pods, health) = Follower::new(config, table);
    let api = Api::Standalone(Arc::clone(&follower.api));
    let task = tokio::spawn(async move {
        tokio::select! {
            () = ended(shutdown) => {}
            () = follower.follow() => {}
        }
    });
    (api, pods, health, vec![task])
}

/// Answers from the files and the local key what an API server would.
#[derive(Debug)]
pub struct StandaloneApi {
    key: Arc<IssuerKey>,
    issuer: String,
    pods: Pods,
    accounts: RwLock<BTreeSet<Name>>,
    secrets: RwLock<Secrets>,
}

impl StandaloneApi {
    /// Like a TokenReview: the token is this key's, its ServiceAccount exists, and its pod lives under that uid.
    pub(super) fn review_token(&self, token: &str) -> Result<Reviewed, ApiError> {
        let reviewed = self.key.verify(token, &self.issuer).map_err(ApiError::Rejected)?;
        let account = (reviewed.namespace.clone(), reviewed.service_account.clone());
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        if account.1 != DEFAULT_ACCOUNT && !accounts.contains(&account) {
            return Err(ApiError::Rejected("the token's ServiceAccount is not there".to_owned()));
        }
        if reviewed.pod_uid.as_ref().is_some_and(|uid| self.pods.get(uid).is_none()) {
            return Err(ApiError::Rejected("the token's pod is not there".to_owned()));
        }
        Ok(reviewed)
    }

    pub(super) fn fetch_pod(&self, namespace: &str, name: &str) -> Option<Arc<Observation>> {
        self.pods.find(namespace, name)
    }

    pub(super) fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, ApiError> {
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let missing = || ApiError::Rejected(format!("no manifest has the Secret {name} in namespace {namespace}"));
        secrets.0.get(&(namespace.to_owned(), name.to_owned())).cloned().ok_or_else(missing)
    }

    pub(super) fn jwks(&self) -> Vec<u8> {
        self.key.jwks()
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }
}

/// Looks at the files and delivers what they say when that has changed.
struct Follower {
    path: PathBuf,
    deliverer: Deliverer,
    api: Arc<StandaloneApi>,
    versions: BTreeMap<Name, (Pod, u64)>,
    fingerprint: Option<Fingerprint>,
    failing: bool,
}

impl Follower {
    fn new(config: StandaloneConfig, table: TableHandle) -> (Self, Pods, Health) {
        let (pods, health) = (Pods::default(), Health::local());
        let (key, issuer) = (config.issuer_key, config.issuer);
        let (accounts, secrets) = (RwLock::default(), RwLock::default());
        let follower = Self {
            path: config.path,
            deliverer: Deliverer::new(table, pods.clone(), health.clone(), config.revision_labels),
            api: Arc::new(StandaloneApi { key, issuer, pods: pods.clone(), accounts, secrets }),
            versions: BTreeMap::new(),
            fingerprint: None,
            failing: false,
        };
        (follower, pods, health)
    }

    async fn follow(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let (path, before) = (self.path.clone(), self.fingerprint.take());
        let scan = tokio::task::spawn_blocking(move || manifests::scan(&path, before)).await;
        // A look that was cut off by the end of the runtime has nothing to tell.
        if let Ok(scan) = scan {
            self.take(scan).await;
        }
    }

    async fn take(&mut self, scan: Scan) {
        self.fingerprint = Some(scan.fingerprint);
        match scan.manifests {
            None => {}
            Some(Ok(manifests)) => {
                counter!("podlight_standalone_loads_total", "result" => "ok").increment(1);
                self.failing = false;
                tracing::info!(
                    pods = manifests.pods.len(),
                    services = manifests.services.len(),
                    slices = manifests.slices.len(),
                    "manifests loaded"
                );
                self.deliver(manifests).await;
            }
            Some(Err(error)) => {
                counter!("podlight_standalone_loads_total", "result" => "failed").increment(1);
                if !std::mem::replace(&mut self.failing, true) {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the manifests cannot be used; the last good ones stay");
                }
            }
        }
    }

    async fn deliver(&mut self, manifests: Manifests) {
        *self.api.accounts.write().unwrap_or_else(PoisonError::into_inner) = manifests.accounts;
        *self.api.secrets.write().unwrap_or_else(PoisonError::into_inner) = manifests.secrets;
        let pods = number(manifests.pods, &mut self.versions);
        self.list(manifests.services.into_values()).await;
        self.list(manifests.slices.into_values()).await;
        self.list(pods.into_iter()).await;
    }

    /// Delivers a complete list.
    async fn list<S: Subject>(&mut self, objects: impl Iterator<Item = S>) {
        self.deliverer.deliver(&Event::<S>::Init).await;
        for object in objects {
            self.deliverer.deliver(&Event::InitApply(object)).await;
        }
        self.deliverer.deliver(&Event::<S>::InitDone).await;
    }
}

/// Gives each pod a resourceVersion that grows when the pod changes, and only then.
fn number(pods: BTreeMap<Name, Pod>, versions: &mut BTreeMap<Name, (Pod, u64)>) -> Vec<Pod> {
    let mut held = std::mem::take(versions);
    let numbered = pods.into_iter().map(|(name, pod)| {
        let declared = pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(1);
        let version = match held.remove(&name) {
            Some((before, version)) if before == pod => version,
            Some((_, version)) => declared.max(version + 1),
            None => declared,
        };
        versions.insert(name, (pod.clone(), version));
        let mut pod = pod;
        pod.metadata.resource_version = Some(version.to_string());
        pod
    });
    numbered.collect()
}

#[cfg(test)]
mod tests;
