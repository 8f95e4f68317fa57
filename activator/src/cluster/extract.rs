//! From a pod as the API server shows it to an [`Observation`]: keeps the few fields that decide readiness,
//! ownership and routing, so that the rest of the object is freed at once. Nothing here panics on an object.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use podlight_proto::{PodRef, PodUid, ShapeError};

use super::health::Kind;
use super::watch::Subject;
use crate::inject;
use crate::table::entry::{ContainerPort, Labels, Observation, Phase, Protocol, ReadyCondition};
use crate::table::{Change, Update};

/// The labels that may tell a pod's revision, in the order in which they are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionLabels(Arc<[String]>);

impl Default for RevisionLabels {
    /// Ours, then what Deployments and what StatefulSets and DaemonSets set.
    fn default() -> Self {
        ["podlight.dev/revision", "pod-template-hash", "controller-revision-hash"]
            .map(str::to_owned)
            .into_iter()
            .collect()
    }
}

impl FromIterator<String> for RevisionLabels {
    fn from_iter<I: IntoIterator<Item = String>>(labels: I) -> Self {
        Self(labels.into_iter().collect())
    }
}

impl RevisionLabels {
    /// In the order in which they are looked for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The value of the first of them that is there; empty when none is.
    pub(super) fn revision(&self, labels: &Labels) -> Arc<str> {
        self.0.iter().find_map(|label| labels.get(label.as_str())).cloned().unwrap_or_default()
    }
}

/// Why an object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ExtractError {
    #[error("namespace, name or uid is missing or malformed")]
    Identity(#[from] ShapeError),
    #[error("namespace or name is missing")]
    Unnamed,
    #[error("resourceVersion {0:?} is not a number")]
    ResourceVersion(String),
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0} is not a port number")]
    Port(i32),
    #[error("{0:?} is not a protocol")]
    Protocol(String),
}

impl Subject for Pod {
    const KIND: Kind = Kind::Pods;
    type Value = Observation;
    type Key = PodUid;

    fn extract(&self, revision_labels: &RevisionLabels) -> Result<Option<Observation>, ExtractError> {
        observation(self, revision_labels).map(Some)
    }

    fn key(&self) -> Result<PodUid, ExtractError> {
        let uid = self.metadata.uid.as_deref().and_then(PodUid::new);
        uid.ok_or(ExtractError::Identity(ShapeError::Issuer))
    }

    fn update(change: Change<Arc<Observation>, PodUid>) -> Update {
        Update::Pod(change)
    }
}

/// Reduces a pod.
pub(super) fn observation(pod: &Pod, revision_labels: &RevisionLabels) -> Result<Observation, ExtractError> {
    let meta = &pod.metadata;
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let (spec, status) = (pod.spec.as_ref().unwrap_or(&no_spec), pod.status.as_ref().unwrap_or(&no_status));
    let labels = labels(meta);
    // The sidecar's own probes say nothing of the app; an annotation may have it ask something else than a command.
    let app = || lasting_containers(spec).filter(|c| c.name != inject::CONTAINER);
    let replaced = |c: &Container| {
        let mut keys = meta.annotations.iter().flatten().map(|(key, _)| key);
        keys.any(|key| key.strip_prefix(inject::PROBE_ANNOTATION) == Some(&c.name))
    };
    let exec = |c: &Container| [&c.readiness_probe, &c.startup_probe].into_iter().flatten().any(|p| p.exec.is_some());
    Ok(Observation {
        pod: PodRef::new(text(&meta.namespace), text(&meta.name), text(&meta.uid))?,
        resource_version: resource_version(meta)?,
        service_account: spec.service_account_name.as_deref().filter(|n| !n.is_empty()).unwrap_or("default").into(),
        phase: match status.phase.as_deref() {
            Some("Succeeded" | "Failed") => Phase::Ended,
            _ => Phase::Alive,
        },
        terminating_since_ms: terminating_since_ms(meta),
        addresses: addresses(status)?,
        revision: revision_labels.revision(&labels),
        labels,
        ready: ready_condition(status),
        gates_open: gates_open(spec, status),
        has_exec_probe: app().any(|c| exec(c) && !replaced(c)),
        has_readiness_probe: app().any(|c| c.readiness_probe.is_some()),
        ports: declared_ports(spec)?,
    })
}

/// The containers that run as long as the pod does: the main ones, and init containers that are restarted.
fn lasting_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let init = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(init)
}

fn resource_version(meta: &ObjectMeta) -> Result<u64, ExtractError> {
    let version = text(&meta.resource_version);
    version.parse().map_err(|_| ExtractError::ResourceVersion(version.to_owned()))
}

/// `deletionTimestamp` is when the grace ends; the asking came a grace earlier.
fn terminating_since_ms(meta: &ObjectMeta) -> Option<u64> {
    let deadline = meta.deletion_timestamp.as_ref()?.0.as_millisecond();
    let grace = meta.deletion_grace_period_seconds.unwrap_or(0).saturating_mul(1000);
    Some(u64::try_from(deadline.saturating_sub(grace)).unwrap_or(0))
}

fn addresses(status: &PodStatus) -> Result<Vec<IpAddr>, ExtractError> {
    let all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    let one = status.pod_ip.as_deref().filter(|ip| all.is_empty() && !ip.is_empty());
    all.into_iter().chain(one).map(address).collect()
}

fn ready_condition(status: &PodStatus) -> Option<ReadyCondition> {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Ready")?;
    let seconds = |Time(at): &Time| u64::try_from(at.as_second()).unwrap_or(0);
    let since_seconds = condition.last_transition_time.as_ref().map_or(0, seconds);
    Some(ReadyCondition { ready: condition.status == "True", since_seconds })
}

fn gates_open(spec: &PodSpec, status: &PodStatus) -> bool {
    let holds = |wanted: &str| status.conditions.iter().flatten().any(|c| c.type_ == wanted && c.status == "True");
    spec.readiness_gates.iter().flatten().all(|gate| holds(&gate.condition_type))
}

fn declared_ports(spec: &PodSpec) -> Result<Vec<ContainerPort>, ExtractError> {
    let declared = lasting_containers(spec).flat_map(|c| c.ports.iter().flatten());
    declared
        .map(|p| {
            Ok(ContainerPort {
                name: text(&p.name).into(),
                port: port(p.container_port)?,
                protocol: protocol(p.protocol.as_deref())?,
            })
        })
        .collect()
}

/// The object's labels.
pub(super) fn labels(meta: &ObjectMeta) -> Labels {
    meta.labels.iter().flatten().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect()
}

/// The object's namespace and name.
pub(super) fn namespaced_name(meta: &ObjectMeta) -> Result<(&str, &str), ExtractError> {
    match (text(&meta.namespace), text(&meta.name)) {
        ("", _) | (_, "") => Err(ExtractError::Unnamed),
        named => Ok(named),
    }
}

/// An IP address; one that maps IPv4 into IPv6 is the IPv4 address.
pub(super) fn address(text: &str) -> Result<IpAddr, ExtractError> {
    text.parse().map(|ip: IpAddr| ip.to_canonical()).map_err(|_| ExtractError::Address(text.to_owned()))
}

/// A port number from 1 to 65535.
pub(super) fn port(number: i32) -> Result<u16, ExtractError> {
    u16::try_from(number).ok().filter(|&n| n != 0).ok_or(ExtractError::Port(number))
}

/// A protocol, TCP when absent.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, ExtractError> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(ExtractError::Protocol(other.to_owned())),
    }
}

/// The text, or none of it.
pub(super) fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
