//! One admission review: from the API server's question to the answer and what is to happen besides. Pure. The answer
//! always allows: whoever cannot be injected goes without, and is told.

use json_patch::Patch;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionReview, Operation, SerializePatchError};
use serde_json::Value;

use crate::cluster::api::is_object_name;
use crate::inject::{Notice, Reason, Settings, Subject, decide};

/// Longest warning that every API server hands on as it is.
const WARNING_BYTES: usize = 256;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReviewError {
    #[error("the body is no AdmissionReview")]
    Json(#[from] serde_json::Error),
    #[error("the AdmissionReview has no request")]
    NoRequest,
    #[error("{0:?} cannot be a namespace")]
    Namespace(String),
    #[error("the answer cannot be written")]
    Patch(#[from] SerializePatchError),
}

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regarding {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// What is to happen besides the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// A pod of this namespace was injected: it needs the CA.
    Injected(String),
    /// A pod was left as it is, and those who look for the reason are to find it.
    Left(Regarding, Reason),
}

/// The answer.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) answer: AdmissionReview<DynamicObject>,
    pub(super) effect: Effect,
    /// As in metric labels.
    pub(super) label: &'static str,
}

/// Judges a review. `own` is the webhook's own namespace.
pub(super) fn review(body: &[u8], own: &str, settings: &Settings) -> Result<Outcome, ReviewError> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body)?;
    let request: AdmissionRequest<DynamicObject> = review.try_into().map_err(|_| ReviewError::NoRequest)?;
    let mut response = kube::core::admission::AdmissionResponse::from(&request);
    let Some(pod) = created_pod(&request) else {
        return Ok(Outcome { answer: response.into_review(), effect: Effect::None, label: "no-pod" });
    };
    let pod = serde_json::to_value(pod)?;
    let namespace = request.namespace.clone().unwrap_or_default();
    // It becomes a part of paths, and who asks may be anybody.
    if !is_object_name(&namespace) {
        return Err(ReviewError::Namespace(namespace));
    }
    match decide_in(&pod, &namespace, own, settings) {
        Ok(patch) => {
            response.audit_annotations.insert("sidecar".to_owned(), "injected".to_owned());
            let answer = response.with_patch(patch)?.into_review();
            let effect = if request.dry_run { Effect::None } else { Effect::Injected(namespace) };
            Ok(Outcome { answer, effect, label: "injected" })
        }
        Err(reason) => {
            response.audit_annotations.insert("sidecar".to_owned(), reason.label().to_owned());
            if reason.notice() != Notice::None {
                response.warnings = Some(vec![warning(&reason)]);
            }
            let label = reason.label();
            let effect = match (reason.notice(), regarding(&pod, namespace)) {
                (Notice::Everyone, Some(regarding)) if !request.dry_run => Effect::Left(regarding, reason),
                _ => Effect::None,
            };
            Ok(Outcome { answer: response.into_review(), effect, label })
        }
    }
}

fn decide_in(pod: &Value, namespace: &str, own: &str, settings: &Settings) -> Result<Patch, Reason> {
    if namespace == own {
        return Err(Reason::Namespace(namespace.to_owned()));
    }
    decide(Subject::pod(pod, Some(namespace)), settings)
}

/// The pod of a request that creates one.
fn created_pod(request: &AdmissionRequest<DynamicObject>) -> Option<&DynamicObject> {
    let resource = &request.resource;
    let pods = (resource.group.as_str(), resource.version.as_str(), resource.resource.as_str()) == ("", "v1", "pods");
    let whole = request.sub_resource.as_deref().is_none_or(str::is_empty);
    request.object.as_ref().filter(|_| pods && whole && request.operation == Operation::Create)
}

fn warning(reason: &Reason) -> String {
    let text = format!("podlight: the pod has no sidecar: {reason}");
    text[..text.floor_char_boundary(WARNING_BYTES)].to_owned()
}

/// The pod's controller, which is there before the pod and stays when it goes; the pod itself, which has no uid yet, when
/// it has a name and nobody controls it.
fn regarding(pod: &Value, namespace: String) -> Option<Regarding> {
    let metadata = pod.get("metadata")?;
    let owners = metadata.get("ownerReferences").and_then(Value::as_array);
    let text = |of: &Value, name: &str| of.get(name).and_then(Value::as_str).map(str::to_owned);
    let controller = owners.into_iter().flatten().find(|owner| owner.get("controller") == Some(&Value::Bool(true)));
    match controller {
        Some(owner) => Some(Regarding {
            api_version: text(owner, "apiVersion")?,
            kind: text(owner, "kind")?,
            namespace,
            name: text(owner, "name")?,
            uid: text(owner, "uid")?,
        }),
        None => Some(Regarding {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            namespace,
            name: text(metadata, "name")?,
            uid: String::new(),
        }),
    }
}

#[cfg(test)]
mod tests;
