//! The CA for sidecars: a ConfigMap in each namespace that has injected pods, or is labelled to have them. It is applied,
//! not written: a ConfigMap of that name that somebody else made keeps its content, and that is told.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use metrics::counter;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::call::{CallError, call};
use crate::inject::{LABEL, SYSTEM_NAMESPACE};

/// Who applies.
const MANAGER: &str = "podlight-webhook";

/// Marks our ConfigMaps, so that they are found when the CA changes.
const MARK: &str = "podlight.dev/ca";
const MARKED: &str = "handed-out";

/// The key in the ConfigMap.
const KEY: &str = "ca.crt";

/// Namespaces that are known to have the present CA. Beyond, they are asked again.
const KNOWN_MAX: usize = 16_384;

/// ConfigMaps written at once when the CA changes.
const IN_FLIGHT: usize = 8;

/// Objects a page of a list.
const PAGE: u32 = 500;

/// Hands out the CA.
pub(super) struct Handout {
    client: kube::Client,
    config_map: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bundle: String,
    known: HashSet<String>,
    /// Where the last look found somebody else's ConfigMap, which has been told.
    theirs: HashSet<String>,
}

impl Handout {
    pub(super) fn new(client: kube::Client, config_map: &str) -> Self {
        Self { client, config_map: config_map.to_owned(), state: Mutex::default() }
    }

    /// Sees to it that a namespace has the CA.
    pub(super) async fn ensure(&self, namespace: &str) -> Result<(), CallError> {
        let bundle = {
            let state = self.state();
            if state.known.contains(namespace) {
                return Ok(());
            }
            state.bundle.clone()
        };
        let applied = self.apply(namespace, &bundle).await;
        let result = applied.as_ref().map_or("failed", |()| "written");
        counter!("podlight_ca_handouts_total", "result" => result).increment(1);
        if applied.is_ok() {
            let mut state = self.state();
            if state.known.len() >= KNOWN_MAX {
                state.known.clear();
            }
            if state.bundle == bundle {
                state.known.insert(namespace.to_owned());
            }
        }
        applied
    }

    /// Takes the bundle as it is now, and sees to it that every namespace has it that has one or is to have one.
    pub(super) async fn refresh(&self, bundle: &str) -> Result<(), CallError> {
        let namespaces: Vec<Namespace> = list(&Api::all(self.client.clone()), LABEL).await?;
        let marked = format!("{MARK}={MARKED}");
        let held: Vec<ConfigMap> = list(&Api::all(self.client.clone()), &marked).await?;
        let good = |map: &&ConfigMap| map.data.as_ref().and_then(|data| data.get(KEY)).is_some_and(|pem| pem == bundle);
        let ours = held.iter().filter(|map| map.name_any() == self.config_map);
        let known: HashSet<String> = ours.clone().filter(good).filter_map(|map| map.namespace()).collect();
        let wanted = ours.filter_map(|map| map.namespace()).chain(namespaces.iter().map(|n| n.name_any()));
        let missing: HashSet<String> = wanted.filter(|n| !known.contains(n) && n != SYSTEM_NAMESPACE).collect();
        let told = std::mem::take(&mut self.state().theirs);
        *self.state() = State { bundle: bundle.to_owned(), known, theirs: HashSet::new() };
        let writes = missing.into_iter().map(|namespace| async move {
            let written = self.ensure(&namespace).await;
            (namespace, written)
        });
        let mut writes = stream::iter(writes).buffer_unordered(IN_FLIGHT);
        while let Some((namespace, written)) = writes.next().await {
            match written {
                Ok(()) => {}
                Err(error) if error.is_gone() => {}
                Err(error) if error.is_conflict() => {
                    let config_map = self.config_map.as_str();
                    if !told.contains(&namespace) {
                        tracing::warn!(
                            namespace,
                            config_map,
                            "somebody else's ConfigMap is where sidecars look for the CA"
                        );
                    }
                    self.state().theirs.insert(namespace);
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(namespace, error, "cannot hand out the CA");
                }
            }
        }
        Ok(())
    }

    async fn apply(&self, namespace: &str, bundle: &str) -> Result<(), CallError> {
        let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": self.config_map, "labels": { MARK: MARKED } },
            "data": { KEY: bundle },
        });
        let patch = Patch::Apply(&object);
        call(config_maps.patch(&self.config_map, &PatchParams::apply(MANAGER), &patch)).await.map(drop)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn list<K>(api: &Api<K>, labels: &str) -> Result<Vec<K>, CallError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut parameters = ListParams::default().labels(labels).limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = call(api.list(&parameters)).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(all),
        }
    }
}
