//! From zero replicas to one, through the scale subresource that Deployments, StatefulSets and many custom resources
//! share. It never scales down and never fights whoever else scales: the change is made on the API server, only to a
//! scale that is still as it was seen, at zero. Of several replicas that try at once, one changes something.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::CONTENT_TYPE;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResource, APIResourceList};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::api::{Call, CallFailure, KubernetesApi, is_object_name};

/// Kinds remembered; there are not that many that can be scaled.
const KINDS_MAX: usize = 64;

/// Versions of a group in which a kind is looked for.
const VERSIONS_MAX: usize = 8;

/// Who changed the field, in the object's `managedFields`.
const FIELD_MANAGER: &str = "podlight";

/// What came of scaling up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaled {
    /// It has a replica or more: by somebody else, or since long.
    Already,
    /// It was at zero and is to have one.
    Raised,
}

impl Scaled {
    /// As in metric labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Already => "already",
            Self::Raised => "raised",
        }
    }
}

/// Why it was not scaled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    /// It stays so until somebody mends what is told.
    #[error("{0}")]
    Final(String),
    /// It may work when tried again.
    #[error("{0}")]
    Again(String),
}

impl ScaleError {
    /// As in metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Final(_) => "final",
            Self::Again(_) => "again",
        }
    }
}

/// A kind as the paths of the API have it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Resource {
    /// `apps/v1`.
    group_version: String,
    /// `deployments`.
    plural: String,
}

/// The kinds that were asked for and can be scaled.
#[derive(Debug, Default)]
pub(super) struct Scalables(Mutex<HashMap<String, Arc<Resource>>>);

impl Scalables {
    fn lookup(&self, kind: &str) -> Option<Arc<Resource>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(kind).cloned()
    }

    fn remember(&self, kind: &str, resource: Arc<Resource>) {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kinds.len() >= KINDS_MAX {
            kinds.clear();
        }
        kinds.insert(kind.to_owned(), resource);
    }

    /// A resource that is not found may have moved to another version.
    fn forget(&self, kind: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(kind);
    }
}

/// What is to be scaled.
struct Subject<'a> {
    namespace: &'a str,
    kind: &'a str,
    name: &'a str,
    resource: Arc<Resource>,
}

impl Subject<'_> {
    fn path(&self) -> String {
        let Resource { group_version, plural } = &*self.resource;
        format!("/apis/{group_version}/namespaces/{}/{plural}/{}/scale", self.namespace, self.name)
    }

    fn told(&self, verb: &str, failure: &CallFailure) -> ScaleError {
        let Self { namespace, kind, name, resource } = self;
        let Some(status) = failure.status() else { return undecided(failure) };
        let message = &status.message;
        match status.code {
            403 => {
                let group = resource.group_version.split('/').next().unwrap_or_default();
                let scale = format!("{}/scale", resource.plural);
                ScaleError::Final(format!(
                    "the activator may not {verb} {scale} in namespace {namespace}: its ServiceAccount needs get and patch on \
                     {scale} of the API group {group} ({message})"
                ))
            }
            404 => ScaleError::Final(format!(
                "there is no {kind} {name} with a scale in namespace {namespace} ({message})"
            )),
            _ => judged(status.code, message, failure),
        }
    }
}

impl KubernetesApi {
    /// Takes what is at zero replicas to one.
    pub(super) async fn scale_up(&self, namespace: &str, kind: &str, name: &str) -> Result<Scaled, ScaleError> {
        if !(is_object_name(namespace) && is_object_name(name)) {
            return Err(ScaleError::Final(format!("{name:?} in namespace {namespace:?} cannot be an object's name")));
        }
        let subject = Subject { namespace, kind, name, resource: self.resource(kind).await? };
        let Some(seen) = self.spec_at_zero(&subject).await? else { return Ok(Scaled::Already) };
        // A scale at zero shows no replicas at all in some versions: what was seen must still hold, whatever it was.
        let patch = json!([
            {"op": "test", "path": "/spec", "value": seen},
            {"op": "add", "path": "/spec/replicas", "value": 1},
        ]);
        let request = http::Request::patch(format!("{}?fieldManager={FIELD_MANAGER}", subject.path()))
            .header(CONTENT_TYPE, "application/json-patch+json")
            .body(patch.to_string().into_bytes())
            .expect("a path of checked names");
        match self.request(Call::Scale, request).await {
            Ok(_) => Ok(Scaled::Raised),
            // The test failed: somebody else came first. A look tells whether with the same intent.
            Err(failure) if failure.status().is_some_and(|status| status.code == 422) => {
                let still = self.spec_at_zero(&subject).await?;
                still.map_or(Ok(Scaled::Already), |_| Err(subject.told("patch", &failure)))
            }
            Err(failure) => Err(subject.told("patch", &failure)),
        }
    }

    /// The scale's spec; none when it wants a replica or more.
    async fn spec_at_zero(&self, subject: &Subject<'_>) -> Result<Option<Value>, ScaleError> {
        let request = http::Request::get(subject.path()).body(Vec::new()).expect("a path of checked names");
        let answer = self.request(Call::Scale, request).await;
        if let Err(failure) = &answer
            && failure.status().is_some_and(|status| status.code == 404)
        {
            self.scalables.forget(subject.kind);
        }
        let answer = answer.map_err(|failure| subject.told("get", &failure))?;
        let scale: Value = parsed(&answer, "a Scale")?;
        match scale.get("spec").filter(|spec| spec.is_object()) {
            Some(spec) if spec.get("replicas").and_then(Value::as_i64).unwrap_or(0) > 0 => Ok(None),
            Some(spec) => Ok(Some(spec.clone())),
            None => Err(undecided(&CallFailure::Malformed("a Scale"))),
        }
    }

    async fn resource(&self, kind: &str) -> Result<Arc<Resource>, ScaleError> {
        let plural = match kind {
            "Deployment" => "deployments",
            "StatefulSet" => "statefulsets",
            "ReplicaSet" => "replicasets",
            _ => return self.discovered(kind).await,
        };
        Ok(Arc::new(Resource { group_version: "apps/v1".to_owned(), plural: plural.to_owned() }))
    }

    async fn discovered(&self, kind: &str) -> Result<Arc<Resource>, ScaleError> {
        if let Some(resource) = self.scalables.lookup(kind) {
            return Ok(resource);
        }
        let resource = Arc::new(self.discover(kind).await?);
        self.scalables.remember(kind, Arc::clone(&resource));
        Ok(resource)
    }

    /// Asks the API server which resource a kind is, the preferred version first.
    async fn discover(&self, written: &str) -> Result<Resource, ScaleError> {
        let split = written.split_once('.').filter(|(kind, group)| is_kind(kind) && is_object_name(group));
        let Some((kind, group)) = split else {
            return Err(ScaleError::Final(format!(
                "{written:?} is neither Deployment, StatefulSet or ReplicaSet nor <Kind>.<API group>"
            )));
        };
        let answer: Option<APIGroup> = self.kinds(&format!("/apis/{group}"), "an API group").await?;
        let answer = answer.ok_or_else(|| ScaleError::Final(format!("there is no API group {group}")))?;
        let preferred = answer.preferred_version.map(|v| v.group_version);
        let mut versions: Vec<String> = answer.versions.into_iter().map(|v| v.group_version).collect();
        versions.sort_by_key(|version| Some(version) != preferred.as_ref());
        let mut found = false;
        // What comes from the API server is part of a path, too.
        let versions = versions.into_iter().filter(|v| v.split('/').all(is_object_name)).take(VERSIONS_MAX);
        for group_version in versions {
            let list: Option<APIResourceList> =
                self.kinds(&format!("/apis/{group_version}"), "a list of kinds").await?;
            let resources = list.map(|list| list.resources).unwrap_or_default();
            let of_kind = |r: &&APIResource| r.kind == kind && r.namespaced && is_object_name(&r.name);
            let Some(resource) = resources.iter().find(of_kind) else { continue };
            found = true;
            let scale = format!("{}/scale", resource.name);
            if resources.iter().any(|r| r.name == scale) {
                return Ok(Resource { group_version, plural: resource.name.clone() });
            }
        }
        let what = if found { "has no scale subresource" } else { "is not a namespaced kind of this cluster" };
        Err(ScaleError::Final(format!("{written} {what}")))
    }

    /// A document about kinds; none when there is no such group or version.
    async fn kinds<T: DeserializeOwned>(&self, path: &str, what: &'static str) -> Result<Option<T>, ScaleError> {
        let request = http::Request::get(path).body(Vec::new()).expect("a path of checked names");
        match self.request(Call::Kinds, request).await {
            Ok(answer) => parsed(&answer, what).map(Some),
            Err(failure) => match failure.status() {
                Some(status) if status.code == 404 => Ok(None),
                Some(status) if status.code == 403 => {
                    Err(ScaleError::Final(format!("the activator may not get {path}: {}", status.message)))
                }
                Some(status) => Err(judged(status.code, &status.message, &failure)),
                None => Err(undecided(&failure)),
            },
        }
    }
}

/// The verdict on an answer that is the same whatever was asked.
fn judged(code: u16, message: &str, failure: &CallFailure) -> ScaleError {
    match code {
        // Ours to mend, and it may be by a token that is about to be read again; the caller can do nothing.
        401 => ScaleError::Again(format!("the API server refuses the activator's own credential: {message}")),
        // A conflict, a limit, or a scale that was neither as it was seen nor above zero.
        408 | 409 | 422 | 429 => ScaleError::Again(format!("the API server cannot do it now: {message}")),
        400..500 => ScaleError::Final(format!("the API server refuses it: {message}")),
        _ => undecided(failure),
    }
}

fn undecided(failure: &CallFailure) -> ScaleError {
    let mut text = format!("the API server cannot tell: {failure}");
    let mut source = failure.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    ScaleError::Again(text)
}

fn parsed<T: DeserializeOwned>(answer: &str, what: &'static str) -> Result<T, ScaleError> {
    serde_json::from_str(answer).map_err(|_| undecided(&CallFailure::Malformed(what)))
}

/// Whether a kind can be called this.
fn is_kind(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests;
