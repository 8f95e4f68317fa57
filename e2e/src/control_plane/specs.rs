//! Short builders for the objects that a cluster's users and its kubelets would make.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    self as core, Container, ContainerPort, ExecAction, HTTPGetAction, Pod, PodReadinessGate, Probe, Service,
    ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// A pod to create: on node `node-1`, as service account `default`, with one container `app` unless some are given.
#[derive(Clone, Debug)]
pub struct PodSpec(Pod);

impl PodSpec {
    /// A pod of this name.
    pub fn new(namespace: &str, name: &str) -> Self {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some(namespace.to_owned());
        pod.metadata.name = Some(name.to_owned());
        Self(pod).node("node-1").service_account("default")
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Runs as this account.
    pub fn service_account(self, name: &str) -> Self {
        self.with(|spec| spec.service_account_name = Some(name.to_owned()))
    }

    /// Is bound to this node. (A pod bound to none is deleted without a grace period.)
    pub fn node(self, name: &str) -> Self {
        self.with(|spec| spec.node_name = Some(name.to_owned()))
    }

    /// Shares its node's network.
    pub fn host_network(self) -> Self {
        self.with(|spec| spec.host_network = Some(true))
    }

    /// Adds a readiness gate, a condition type such as `example.com/checked`.
    pub fn readiness_gate(self, condition: &str) -> Self {
        let gate = PodReadinessGate { condition_type: condition.to_owned() };
        self.with(|spec| spec.readiness_gates.get_or_insert_default().push(gate))
    }

    /// Adds a container.
    pub fn container(self, container: ContainerSpec) -> Self {
        self.with(|spec| spec.containers.push(container.0))
    }

    /// Adds an init container; one that runs on beside the others if `restartable`.
    pub fn init_container(self, container: ContainerSpec, restartable: bool) -> Self {
        let mut container = container.0;
        container.restart_policy = restartable.then(|| "Always".to_owned());
        self.with(|spec| spec.init_containers.get_or_insert_default().push(container))
    }

    /// The pod as it is sent.
    pub fn build(self) -> Pod {
        self.with(|spec| {
            if spec.containers.is_empty() {
                spec.containers.push(ContainerSpec::new("app").0);
            }
        })
        .0
    }

    /// Changes anything else.
    pub fn with(mut self, change: impl FnOnce(&mut core::PodSpec)) -> Self {
        change(self.0.spec.get_or_insert_default());
        self
    }
}

/// A container of a [`PodSpec`].
#[derive(Clone, Debug)]
pub struct ContainerSpec(Container);

impl ContainerSpec {
    /// A container without ports and probes.
    pub fn new(name: &str) -> Self {
        let image = Some("example.invalid/app".to_owned());
        Self(Container { name: name.to_owned(), image, ..Default::default() })
    }

    /// Adds a TCP port that a Service can name.
    pub fn port(mut self, name: &str, number: u16) -> Self {
        let port = ContainerPort { name: Some(name.to_owned()), container_port: number.into(), ..Default::default() };
        self.0.ports.get_or_insert_default().push(port);
        self
    }

    /// Sets the readiness probe.
    pub fn readiness(mut self, probe: Probe) -> Self {
        self.0.readiness_probe = Some(probe);
        self
    }

    /// Sets the startup probe.
    pub fn startup(mut self, probe: Probe) -> Self {
        self.0.startup_probe = Some(probe);
        self
    }
}

/// A probe that asks for `path` on `port`.
pub fn http_probe(path: &str, port: u16) -> Probe {
    let http_get =
        HTTPGetAction { path: Some(path.to_owned()), port: IntOrString::Int(port.into()), ..Default::default() };
    Probe { http_get: Some(http_get), ..Default::default() }
}

/// A probe that runs `command` in the container, which only a kubelet can.
pub fn exec_probe(command: &[&str]) -> Probe {
    let command = Some(command.iter().map(|&word| word.to_owned()).collect());
    Probe { exec: Some(ExecAction { command }), ..Default::default() }
}

/// What a kubelet reports. Each part that is named replaces what was there, the conditions as a whole.
#[derive(Clone, Debug, Default)]
pub struct PodState {
    phase: Option<&'static str>,
    addresses: Vec<String>,
    conditions: Vec<Value>,
}

impl PodState {
    /// Nothing: add what changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub fn phase(mut self, phase: &'static str) -> Self {
        self.phase = Some(phase);
        self
    }

    /// Adds an address, at most one of each family. 127.0.0.0/8 is accepted.
    pub fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// The Ready condition, in this state since `transition` (whole seconds are kept).
    pub fn ready(self, ready: bool, transition: Timestamp) -> Self {
        self.condition("Ready", ready, transition)
    }

    /// Any condition, such as a readiness gate's.
    pub fn condition(mut self, kind: &str, status: bool, transition: Timestamp) -> Self {
        let status = if status { "True" } else { "False" };
        let seconds = Timestamp::from_second(transition.as_second()).unwrap_or(transition);
        self.conditions.push(json!({ "type": kind, "status": status, "lastTransitionTime": seconds.to_string() }));
        self
    }

    /// As a merge patch of the pod.
    pub fn merge_patch(&self) -> Value {
        let mut status = json!({});
        if let Some(phase) = self.phase {
            status["phase"] = json!(phase);
        }
        if let Some(first) = self.addresses.first() {
            status["podIP"] = json!(first);
            status["podIPs"] = self.addresses.iter().map(|address| json!({ "ip": address })).collect();
        }
        if !self.conditions.is_empty() {
            status["conditions"] = json!(self.conditions);
        }
        json!({ "status": status })
    }
}

/// A Service to create.
#[derive(Clone, Debug)]
pub struct ServiceSpec(pub(super) Service);

impl ServiceSpec {
    /// A Service without selector and ports; it needs at least one port.
    pub fn new(namespace: &str, name: &str) -> Self {
        let mut service = Service::default();
        service.metadata.namespace = Some(namespace.to_owned());
        service.metadata.name = Some(name.to_owned());
        Self(service)
    }

    /// Adds a label to the selector.
    pub fn selector(self, key: &str, value: &str) -> Self {
        self.with(|spec| {
            spec.selector.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        })
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a TCP port; `target` is a number or a container port's name.
    pub fn port(self, name: &str, port: u16, target: &str) -> Self {
        let target = target.parse().map_or_else(|_| IntOrString::String(target.to_owned()), IntOrString::Int);
        let name = Some(name.to_owned());
        let port = ServicePort { name, port: port.into(), target_port: Some(target), ..Default::default() };
        self.with(|spec| spec.ports.get_or_insert_default().push(port))
    }

    /// Sets the application protocol of the port that was added last.
    pub fn app_protocol(self, protocol: &str) -> Self {
        self.with(|spec| {
            if let Some(port) = spec.ports.iter_mut().flatten().last() {
                port.app_protocol = Some(protocol.to_owned());
            }
        })
    }

    /// Sets the transport protocol of the port that was added last.
    pub fn transport(self, protocol: &str) -> Self {
        self.with(|spec| {
            if let Some(port) = spec.ports.iter_mut().flatten().last() {
                port.protocol = Some(protocol.to_owned());
            }
        })
    }

    /// Gives it this cluster address.
    pub fn cluster_ip(self, address: &str) -> Self {
        self.with(|spec| {
            spec.cluster_ip = Some(address.to_owned());
            spec.cluster_ips = Some(vec![address.to_owned()]);
        })
    }

    /// The Service as it is sent.
    pub fn build(self) -> Service {
        self.0
    }

    /// Gives it no cluster address.
    pub fn headless(self) -> Self {
        self.with(|spec| spec.cluster_ip = Some("None".to_owned()))
    }

    /// Changes anything else.
    pub fn with(mut self, change: impl FnOnce(&mut core::ServiceSpec)) -> Self {
        change(self.0.spec.get_or_insert_default());
        self
    }
}

/// An EndpointSlice to create. The API server refuses loopback addresses in it.
#[derive(Clone, Debug)]
pub struct SliceSpec(pub(super) EndpointSlice);

impl SliceSpec {
    /// A slice of `service`, for IPv4 until an IPv6 address is added.
    pub fn new(namespace: &str, name: &str, service: &str) -> Self {
        let mut slice = EndpointSlice { address_type: "IPv4".to_owned(), ..Default::default() };
        slice.metadata.namespace = Some(namespace.to_owned());
        slice.metadata.name = Some(name.to_owned());
        slice.metadata.labels = Some(BTreeMap::from([("kubernetes.io/service-name".to_owned(), service.to_owned())]));
        Self(slice)
    }

    /// Adds a TCP port.
    pub fn port(mut self, name: &str, number: u16) -> Self {
        let port = EndpointPort { name: Some(name.to_owned()), port: Some(number.into()), ..Default::default() };
        self.0.ports.get_or_insert_default().push(port);
        self
    }

    /// The slice as it is sent.
    pub fn build(self) -> EndpointSlice {
        self.0
    }

    /// Changes anything else.
    pub fn with(mut self, change: impl FnOnce(&mut EndpointSlice)) -> Self {
        change(&mut self.0);
        self
    }

    /// Adds an endpoint.
    pub fn endpoint(mut self, address: &str, ready: bool, serving: bool, terminating: bool) -> Self {
        if address.contains(':') {
            self.0.address_type = "IPv6".to_owned();
        }
        let conditions =
            EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) };
        let addresses = vec![address.to_owned()];
        self.0.endpoints.get_or_insert_default().push(Endpoint {
            addresses,
            conditions: Some(conditions),
            ..Default::default()
        });
        self
    }
}
