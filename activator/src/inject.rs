//! Injection: from a pod (or a workload's template of one) and [`Settings`] to the patch that adds the sidecar, or to the
//! [`Reason`] why there is none. Pure: no I/O, no clock. Every door (the webhook, `podlight-activator inject`) applies what
//! is decided here; the admission policy says the same in CEL.
//!
//! Invariants: a patch only adds; an injected pod is never injected again; a pod that cannot be injected is left as it is,
//! never refused.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

mod annotations;
pub mod command;
mod manifests;
mod probe;
mod reason;
pub mod settings;
mod sidecar;

pub use reason::{Notice, Reason};
pub use settings::{InjectionArgs, Position, Settings};

use annotations::Wishes;

/// The label of namespaces and pods that asks for the sidecar, or not. The pod's wins.
pub const LABEL: &str = "podlight.dev/inject";

/// Its value that asks for it.
pub const ENABLED: &str = "enabled";

/// Its value that asks for none.
pub const DISABLED: &str = "disabled";

/// Begins the annotations that say what is asked in place of a container's own probes; the container's name follows.
pub const PROBE_ANNOTATION: &str = "podlight.dev/probe-";

/// Says where in the list of init containers the sidecar goes: `first` or `last`.
pub const POSITION_ANNOTATION: &str = "podlight.dev/sidecar-position";

/// Name of the sidecar's container.
pub const CONTAINER: &str = "podlight-sidecar";

/// Name of the volume with token and CA.
pub const IDENTITY_VOLUME: &str = "podlight-identity";

/// Name of the volume with the admin socket, of pods that share their node's network.
pub const RUN_VOLUME: &str = "podlight-run";

/// The namespace of the cluster's own pods, which is never injected.
pub const SYSTEM_NAMESPACE: &str = "kube-system";

/// What is to be injected.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// A pod, or a template with the same `metadata` and `spec`.
    pub pod: &'a Value,
    /// Its namespace, when that is known.
    pub namespace: Option<&'a str>,
    /// The label that the controller of this kind of workload gives its pods to tell their revision.
    pub revision_label: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// A pod that is being created, by a controller or by hand: its labels are all there.
    pub fn pod(pod: &'a Value, namespace: Option<&'a str>) -> Self {
        Self { pod, namespace, revision_label: None }
    }

    fn label(&self, key: &str) -> Option<&'a str> {
        self.pod.get("metadata")?.get("labels")?.get(key)?.as_str()
    }
}

/// The patch that injects a pod.
///
/// # Errors
/// The reason why the pod is to be left as it is.
pub fn decide(subject: Subject<'_>, settings: &Settings) -> Result<Patch, Reason> {
    if let Some(namespace) = subject.namespace
        && (namespace == SYSTEM_NAMESPACE || namespace == settings.activator_namespace)
    {
        return Err(Reason::Namespace(namespace.to_owned()));
    }
    match subject.label(LABEL) {
        None | Some(ENABLED) => {}
        Some(DISABLED) => return Err(Reason::Disabled),
        Some(_) => return Err(Reason::setting(LABEL, "must be enabled or disabled")),
    }
    let spec = subject.pod.get("spec").cloned().unwrap_or_default();
    let spec: PodSpec = serde_json::from_value(spec).map_err(|e| Reason::Malformed(e.to_string()))?;
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    if all().any(|container| container.name == CONTAINER) {
        return Err(Reason::AlreadyInjected);
    }
    if is_windows(&spec) {
        return Err(Reason::Windows);
    }
    let taken = |name: &str| spec.volumes.iter().flatten().any(|volume| volume.name == name);
    if let Some(name) = [IDENTITY_VOLUME, RUN_VOLUME].into_iter().find(|name| taken(name)) {
        return Err(Reason::Volume(name));
    }
    let wishes = Wishes::of(subject.pod, &spec)?;
    let probes = probe::of_pod(&spec, &wishes)?;
    let revision = settings.revision_labels.iter().map(String::as_str);
    let revision = revision
        .into_iter()
        .find(|label| subject.label(label).is_some() || subject.revision_label.is_some_and(|given| given == *label));
    let sidecar = sidecar::Sidecar { settings, spec: &spec, probes: &probes, revision };
    Ok(patch(subject.pod, wishes.position.unwrap_or(settings.position), sidecar.container(), sidecar.volumes()))
}

fn patch(pod: &Value, position: Position, container: Value, volumes: Vec<Value>) -> Patch {
    let is_list = |name: &str| pod.get("spec").and_then(|spec| spec.get(name)).is_some_and(Value::is_array);
    let mut operations = vec![match position {
        _ if !is_list("initContainers") => add(&["spec", "initContainers"], json!([container])),
        Position::First => add(&["spec", "initContainers", "0"], container),
        Position::Last => add(&["spec", "initContainers", "-"], container),
    }];
    if is_list("volumes") {
        operations.extend(volumes.into_iter().map(|volume| add(&["spec", "volumes", "-"], volume)));
    } else {
        operations.push(add(&["spec", "volumes"], json!(volumes)));
    }
    Patch(operations)
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path.iter().copied()), value })
}

fn is_windows(spec: &PodSpec) -> bool {
    let selected = spec.node_selector.as_ref().and_then(|selector| selector.get("kubernetes.io/os"));
    spec.os.as_ref().is_some_and(|os| os.name == "windows") || selected.is_some_and(|os| os == "windows")
}

#[cfg(test)]
mod tests;
