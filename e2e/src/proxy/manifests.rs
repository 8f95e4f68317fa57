//! A cluster of manifests that a test changes as it runs: every change writes all of them anew, in one step.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use k8s_openapi::Resource;
use k8s_openapi::api::core::v1::Pod;
use podlight_activator::cluster::standalone::pod_uid;
use podlight_activator::cluster::token::{DEFAULT_ISSUER, IssuerKey, MintRequest};
use podlight_proto::{AUDIENCE, PodUid};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::activator::ActivatorSpec;
use crate::control_plane::{PodSpec, lock};

/// Long enough for any test.
const TOKEN_SECONDS: u64 = 3600;

/// Kind, namespace and name.
type Key = (String, String, String);

/// A folder with manifests and the key that signs tokens.
#[derive(Debug)]
pub struct Manifests {
    folder: TempDir,
    key: IssuerKey,
    objects: Mutex<BTreeMap<Key, Value>>,
}

impl Manifests {
    /// None yet.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("podlight-stage.").tempdir()?;
        fs::create_dir(folder.path().join("manifests"))?;
        let key = IssuerKey::load_or_create(&folder.path().join("issuer.key"))?;
        let manifests = Self { folder, key, objects: Mutex::default() };
        manifests.write(&BTreeMap::new())?;
        Ok(manifests)
    }

    /// The folder that all of it is in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How an activator on them would run.
    pub fn activator(&self) -> ActivatorSpec {
        ActivatorSpec::standalone(&self.folder.path().join("manifests"), &self.folder.path().join("issuer.key"))
    }

    /// Puts objects there, in place of those of the same names.
    ///
    /// # Errors
    /// When one has no name, or they cannot be written.
    pub fn put(&self, values: Vec<Value>) -> Result<()> {
        let mut objects = lock(&self.objects);
        for value in values {
            objects.insert(key(&value)?, value);
        }
        self.write(&objects)
    }

    /// Changes an object by a merge patch (RFC 7386) and returns what it is then.
    ///
    /// # Errors
    /// When it is not there, or they cannot be written.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Result<Value> {
        let mut objects = lock(&self.objects);
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let object = objects.get_mut(&key).with_context(|| format!("no {kind} {namespace}/{name}"))?;
        merge(object, patch);
        let patched = object.clone();
        self.write(&objects)?;
        Ok(patched)
    }

    /// Takes an object away.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let mut objects = lock(&self.objects);
        objects.remove(&(kind.to_owned(), namespace.to_owned(), name.to_owned()));
        self.write(&objects)
    }

    /// A token of a pod.
    ///
    /// # Errors
    /// When it has no name.
    pub fn token(&self, pod: &Pod) -> Result<String> {
        let namespace = pod.metadata.namespace.clone().context("a pod without namespace")?;
        let pod_name = pod.metadata.name.clone().context("a pod without name")?;
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let uid = pod.metadata.uid.as_deref().and_then(PodUid::new);
        let request = MintRequest {
            service_account: account.unwrap_or_else(|| "default".to_owned()),
            pod_uid: uid.unwrap_or_else(|| pod_uid(&namespace, &pod_name)),
            namespace,
            pod_name,
            audience: AUDIENCE.to_owned(),
            seconds: TOKEN_SECONDS,
            issuer: DEFAULT_ISSUER.to_owned(),
        };
        Ok(self.key.mint(&request, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?)
    }

    /// A token that may read everything: of an account, bound to a pod that there is from the start.
    ///
    /// # Errors
    /// None in practice.
    pub fn reader_token(&self) -> Result<String> {
        self.token(&reader())
    }

    fn write(&self, objects: &BTreeMap<Key, Value>) -> Result<()> {
        let reader = manifest(&reader())?;
        let items: Vec<&Value> = objects.values().chain([&reader]).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        let folder = self.folder.path().join("manifests");
        // A hidden file is not read.
        fs::write(folder.join(".new"), list.to_string())?;
        Ok(fs::rename(folder.join(".new"), folder.join("cluster.json"))?)
    }
}

/// The pod that reads the query API.
fn reader() -> Pod {
    PodSpec::new("default", "reader").build()
}

/// An object as a manifest has it.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn manifest<T: Resource + Serialize>(object: &T) -> Result<Value> {
    let mut value = serde_json::to_value(object)?;
    value["apiVersion"] = json!(T::API_VERSION);
    value["kind"] = json!(T::KIND);
    Ok(value)
}

fn key(value: &Value) -> Result<Key> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let namespace = text(&value["metadata"]["namespace"]).unwrap_or_else(|| "default".to_owned());
    let named = text(&value["kind"]).zip(text(&value["metadata"]["name"]));
    named.map(|(kind, name)| (kind, namespace, name)).context("an object without kind or name")
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            if let Value::Object(target) = target {
                target.remove(name);
            }
        } else {
            merge(&mut target[name.as_str()], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_sets_replaces_and_removes() {
        let mut object = json!({ "a": { "b": 1, "c": 2 }, "d": [1] });
        merge(&mut object, &json!({ "a": { "b": null, "e": 3 }, "d": [2], "f": { "g": null } }));
        assert_eq!(object, json!({ "a": { "c": 2, "e": 3 }, "d": [2], "f": {} }));
    }
}
