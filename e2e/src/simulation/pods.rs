//! The pods of a scenario: their fixed facts, and what the node knows of each.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use podlight_activator::table::entry::{ContainerPort, Labels, Observation, Phase, Protocol, ReadyCondition};
use podlight_activator::table::group::{GroupKey, Service, ServicePort, TargetPort};
use podlight_proto::PodRef;

use super::random::Random;
use super::scenario::{APPS, PodSpec};
use super::sidecars::Sidecar;

const NAMESPACE: &str = "default";

/// What every pod runs as.
pub(super) const SERVICE_ACCOUNT: &str = "web";

/// Of each pod, everything that is outside the API server.
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) identity: PodRef,
    pub(super) address: IpAddr,
    pub(super) random: Random,
    /// What the app answers to the sidecar and to the kubelet.
    pub(super) inside: bool,
    pub(super) outside: bool,
    pub(super) running: bool,
    /// What the kubelet's last probe found, and the condition that it makes of it.
    pub(super) probed: bool,
    pub(super) condition: Option<ReadyCondition>,
    pub(super) sidecar: Option<Sidecar>,
    /// Counts sidecars, so that what was meant for one does not reach the next.
    pub(super) generation: u64,
    /// Whether a sidecar of its ever drained.
    pub(super) has_drained: bool,
}

impl Pod {
    pub(super) fn new(index: usize, spec: PodSpec, seed: u64) -> Self {
        let (name, uid) = (format!("web-{}", spec.slot), format!("uid-{index}"));
        Self {
            identity: PodRef::new(NAMESPACE, &name, &uid).expect("valid by construction"),
            address: address(spec.slot),
            random: Random::new(seed, 1_000 + index as u64),
            spec,
            inside: false,
            outside: false,
            running: false,
            probed: false,
            condition: None,
            sidecar: None,
            generation: 0,
            has_drained: false,
        }
    }

    /// The pod as the API server first has it.
    pub(super) fn created(&self) -> Observation {
        Observation {
            pod: self.identity.clone(),
            resource_version: 0,
            service_account: SERVICE_ACCOUNT.into(),
            phase: Phase::Alive,
            terminating_since_ms: None,
            addresses: Vec::new(),
            labels: app_label(self.spec.app),
            revision: "".into(),
            ready: None,
            gates_open: !self.spec.gate,
            has_exec_probe: self.spec.exec_probe,
            has_readiness_probe: self.spec.readiness_probe,
            ports: vec![ContainerPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }],
        }
    }
}

/// The address of a slot: used again by its next pod.
pub(super) fn address(slot: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(slot + 1).expect("few slots")).into()
}

pub(super) fn app_label(app: usize) -> Labels {
    Labels::from([("app".into(), APPS[app].into())])
}

pub(super) fn service(index: usize, app: usize) -> Arc<Service> {
    let target = TargetPort::Name("http".into());
    let port = ServicePort { name: "".into(), port: 80, target, protocol: Protocol::Tcp, app_protocol: None };
    Arc::new(Service { selector: Some(app_label(app)), ports: vec![port], ..Service::new(service_key(index)) })
}

pub(super) fn service_key(index: usize) -> GroupKey {
    GroupKey::new(NAMESPACE, APPS[index])
}
