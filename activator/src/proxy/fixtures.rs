//! Services, endpoints and settings for tests.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use podlight_proto::PodRef;

use super::annotations::{Defaults, parse, settle};
use super::target::{Mode, ScaleTarget, Settings};
use crate::table::entry::{Protocol, Source, State, Verdict};
use crate::table::group::{
    Endpoint, EndpointFacts, EndpointId, EndpointPort, GroupKey, Service, ServicePort, TargetPort,
};

pub(super) const DEFAULTS: Defaults = Defaults { mode: Mode::Always, hold_timeout: Duration::from_secs(60) };

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn service_port(name: &str, port: u16, protocol: Protocol) -> ServicePort {
    ServicePort { name: name.into(), port, target: TargetPort::Number(8080), protocol, app_protocol: None }
}

/// A Service that opted in, with one port `http` and a ClusterIP.
pub(super) fn service(name: &str) -> Service {
    Service {
        uid: format!("uid-of-{name}").into(),
        cluster_ips: vec![ip("10.96.0.1")],
        annotations: [("route".into(), "default".into())].into(),
        selector: Some([("app".into(), name.into())].into()),
        ports: vec![service_port("http", 80, Protocol::Tcp)],
        ..Service::new(GroupKey::new("default", name))
    }
}

pub(super) fn headless(name: &str) -> Service {
    Service { cluster_ips: Vec::new(), kind: crate::table::group::ServiceKind::Headless, ..service(name) }
}

pub(super) fn annotated(mut service: Service, annotations: &[(&str, &str)]) -> Service {
    service.annotations.extend(annotations.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    service
}

pub(super) fn settings(service: &Service) -> Settings {
    settle(service, &parse(service, None).0, &DEFAULTS).expect("usable")
}

pub(super) fn limited(settings: Settings, limit: u32) -> Settings {
    Settings { concurrency: NonZeroU32::new(limit), ..settings }
}

pub(super) fn scaled(settings: Settings) -> Settings {
    Settings { scale_target: Some(ScaleTarget { kind: "Deployment".into(), name: "web".into() }), ..settings }
}

/// A pod's endpoint on port 8080, as its sidecar or the API server has it.
pub(super) fn pod(uid: &str, address: &str, state: State, source: Source) -> Endpoint {
    let pod = PodRef::new("default", &format!("pod-{uid}"), uid).expect("valid");
    let facts = EndpointFacts {
        group: GroupKey::new("default", "web"),
        id: EndpointId::Pod(*pod.uid()),
        pod: Some(pod),
        addresses: vec![ip(address)],
        ports: vec![EndpointPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }],
        revision: "".into(),
    };
    Endpoint::new(Arc::new(facts), Verdict { state, source, since_ms: 1000, serving: false })
}

pub(super) fn pushed(uid: &str, address: &str) -> Endpoint {
    pod(uid, address, State::Ready, Source::Pushed)
}

/// Ready by the API server's word.
pub(super) fn watched(uid: &str, address: &str) -> Endpoint {
    serving(pod(uid, address, State::Ready, Source::Observed))
}

pub(super) fn serving(mut endpoint: Endpoint) -> Endpoint {
    endpoint.verdict.serving = true;
    endpoint
}

pub(super) fn in_state(endpoint: &Endpoint, state: State) -> Endpoint {
    let mut endpoint = endpoint.clone();
    endpoint.verdict.state = state;
    endpoint
}

pub(super) fn since(endpoint: &Endpoint, since_ms: u64) -> Endpoint {
    let mut endpoint = endpoint.clone();
    endpoint.verdict.since_ms = since_ms;
    endpoint
}

pub(super) fn on_port(endpoint: Endpoint, name: &str, port: u16, protocol: Protocol) -> Endpoint {
    with(&endpoint, |facts| facts.ports = vec![EndpointPort { name: name.into(), port, protocol }])
}

pub(super) fn at(endpoint: Endpoint, addresses: &[&str]) -> Endpoint {
    with(&endpoint, |facts| facts.addresses = addresses.iter().map(|address| ip(address)).collect())
}

pub(super) fn with(endpoint: &Endpoint, change: impl FnOnce(&mut EndpointFacts)) -> Endpoint {
    let mut facts = EndpointFacts::clone(endpoint);
    change(&mut facts);
    Endpoint::new(Arc::new(facts), endpoint.verdict)
}
