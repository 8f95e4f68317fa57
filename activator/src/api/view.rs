//! Endpoints as JSON. The only place that knows the form of answers and events.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::table::entry::{Source, State};
use crate::table::group::{Endpoint, EndpointId, GroupKey, GroupSnapshot};

/// A pod in an answer.
#[derive(Debug, Serialize)]
struct PodView<'a> {
    name: &'a str,
    uid: &'a str,
}

/// A port in an answer.
#[derive(Debug, Serialize)]
struct PortView<'a> {
    name: &'a str,
    port: u16,
}

/// One endpoint in an answer.
#[derive(Debug, Serialize)]
pub(super) struct EndpointView<'a> {
    /// None for an address that an EndpointSlice names without a pod.
    pod: Option<PodView<'a>>,
    /// What such an address goes by within its target; a pod goes by its uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<EndpointName<'a>>,
    state: State,
    source: Source,
    /// When the state began; 0 when nobody said.
    since_ms: u64,
    /// How long it has lasted by this replica's clock; absent when nobody said.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    addresses: &'a [IpAddr],
    ports: Vec<PortView<'a>>,
    revision: &'a str,
}

impl<'a> EndpointView<'a> {
    pub(super) fn of(endpoint: &'a Endpoint, now_ms: u64) -> Self {
        let since_ms = endpoint.verdict.since_ms;
        Self {
            pod: endpoint.pod.as_ref().map(|pod| PodView { name: pod.name(), uid: pod.uid().as_str() }),
            id: endpoint.pod.is_none().then_some(EndpointName(&endpoint.id)),
            state: endpoint.verdict.state,
            source: endpoint.verdict.source,
            since_ms,
            age_ms: (since_ms > 0).then(|| now_ms.saturating_sub(since_ms)),
            addresses: &endpoint.addresses,
            ports: endpoint.ports.iter().map(|port| PortView { name: &port.name, port: port.port }).collect(),
            revision: &endpoint.revision,
        }
    }
}

/// What a change of one endpoint is told as.
#[derive(Debug, Serialize)]
pub(super) struct EndpointEvent<'a> {
    #[serde(flatten)]
    pub(super) target: TargetName<'a>,
    /// What the endpoint goes by within its target, also once it is gone.
    pub(super) id: EndpointName<'a>,
    /// What it is now; absent when it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<EndpointView<'a>>,
}

/// A Service in an answer.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct TargetName<'a> {
    namespace: &'a str,
    service: &'a str,
}

impl<'a> TargetName<'a> {
    pub(super) fn of(key: &'a GroupKey) -> Self {
        Self { namespace: &key.namespace, service: &key.service }
    }
}

/// Some or all endpoints of a Service.
#[derive(Debug, Serialize)]
pub(super) struct TargetView<'a> {
    #[serde(flatten)]
    pub(super) target: TargetName<'a>,
    pub(super) endpoints: Vec<EndpointView<'a>>,
}

impl<'a> TargetView<'a> {
    pub(super) fn of(key: &'a GroupKey, endpoints: &'a [Endpoint], now_ms: u64) -> Self {
        let endpoints = endpoints.iter().map(|endpoint| EndpointView::of(endpoint, now_ms)).collect();
        Self { target: TargetName::of(key), endpoints }
    }
}

/// A pod's uid, or `<slice>/<address>`.
#[derive(Debug)]
pub(super) struct EndpointName<'a>(pub(super) &'a EndpointId);

impl Serialize for EndpointName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            EndpointId::Pod(uid) => serializer.serialize_str(uid.as_str()),
            EndpointId::Address(slice, address) => serializer.collect_str(&format_args!("{}/{address}", slice.name)),
        }
    }
}

/// The endpoints of a Service by pod name and uid, those without a pod last.
pub(super) fn sorted_endpoints(snapshot: &GroupSnapshot) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = snapshot.endpoints().collect();
    endpoints.sort_unstable_by(|a, b| {
        let by_pod = |e: &Endpoint| (e.pod.is_none(), e.pod.as_ref().map(|pod| Arc::clone(pod.name())));
        by_pod(a).cmp(&by_pod(b)).then_with(|| a.id.cmp(&b.id))
    });
    endpoints
}

/// A place in the log of changes of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position<'a> {
    /// Which process.
    pub(super) instance: &'a str,
    /// Number of the change.
    pub(super) change: u64,
}

impl fmt::Display for Position<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.instance, self.change)
    }
}

impl<'a> Position<'a> {
    /// The inverse of writing it; none when it is no position.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (instance, change) = text.rsplit_once('-')?;
        Some(Self { instance, change: change.parse().ok()? })
    }
}
