//! Services and their endpoints: which pods belong to which Service, on which ports, and the immutable picture
//! of one Service that readers hold. A picture is a persistent map: a change to one endpoint of 100 000 copies
//! a few nodes, not the Service.

use std::net::IpAddr;
use std::sync::Arc;

use podlight_proto::{PodRef, PodUid};

use super::entry::{Labels, Observation, Protocol, State, Verdict};

/// A Service by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub service: Arc<str>,
}

impl GroupKey {
    /// The key of a Service.
    pub fn new(namespace: &str, service: &str) -> Self {
        Self { namespace: namespace.into(), service: service.into() }
    }
}

/// A [`GroupKey`] that borrows, so that a look-up allocates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupName<'a> {
    /// The Service's namespace.
    pub namespace: &'a str,
    /// The Service's name.
    pub service: &'a str,
}

impl hashbrown::Equivalent<GroupKey> for GroupName<'_> {
    fn equivalent(&self, key: &GroupKey) -> bool {
        *self.namespace == *key.namespace && *self.service == *key.service
    }
}

/// Where a Service port leads on the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// The same number on every pod.
    Number(u16),
    /// Looked up per pod among its declared ports, by name and protocol.
    Name(Arc<str>),
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for the only port of a Service.
    pub name: Arc<str>,
    /// Its number on the Service.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
    /// Its protocol.
    pub protocol: Protocol,
    /// `appProtocol`: what the pods speak on it, as `kubernetes.io/h2c` or `https`.
    pub app_protocol: Option<Arc<str>>,
}

/// What kind of Service it is to a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceKind {
    /// It has virtual addresses of its own; NodePort and LoadBalancer are this too.
    #[default]
    Cluster,
    /// `clusterIP: None`: its pods are all there is.
    Headless,
    /// An alias in DNS: it has neither pods nor addresses.
    ExternalName,
}

/// An IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A Service, reduced to what decides its endpoints and how requests reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Which Service.
    pub key: GroupKey,
    /// `metadata.uid`: a Service made anew under the same name is another one.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since the epoch; 0 when there is none.
    pub created_seconds: u64,
    /// What kind it is.
    pub kind: ServiceKind,
    /// Its virtual addresses, in the order of its families; empty when it has none.
    pub cluster_ips: Vec<IpAddr>,
    /// `ipFamilies`: which addresses of a pod are to be preferred; empty when it does not say.
    pub families: Vec<Family>,
    /// `publishNotReadyAddresses`: its pods are to be reached although they are not ready.
    pub publish_not_ready: bool,
    /// Its annotations that begin with `podlight.dev/`, by the rest of their name.
    pub annotations: Labels,
    /// Which pods it chooses; none when its EndpointSlices are made by somebody else. An empty selector in the
    /// API is none here.
    pub selector: Option<Labels>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// A Service that chooses nobody and has nothing.
    pub fn new(key: GroupKey) -> Self {
        Self {
            key,
            uid: "".into(),
            created_seconds: 0,
            kind: ServiceKind::Cluster,
            cluster_ips: Vec::new(),
            families: Vec::new(),
            publish_not_ready: false,
            annotations: Labels::new(),
            selector: None,
            ports: Vec::new(),
        }
    }

    /// Whether the Service chooses a pod with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.iter().all(|(k, v)| labels.get(k) == Some(v)))
    }

    /// The Service's ports on one pod. A port that the pod does not declare under the name asked for is left out.
    pub fn resolve(&self, pod: &Observation) -> Vec<EndpointPort> {
        let resolve = |port: &ServicePort| {
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => {
                    let named = |p: &&super::entry::ContainerPort| p.name == *name && p.protocol == port.protocol;
                    pod.ports.iter().find(named).map(|p| p.port)
                }
            };
            number.map(|number| EndpointPort { name: Arc::clone(&port.name), port: number, protocol: port.protocol })
        };
        self.ports.iter().filter_map(resolve).collect()
    }
}

/// An EndpointSlice of a Service without selector, by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// An EndpointSlice. Pairs of address and port hold within one slice only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Which slice.
    pub key: SliceKey,
    /// The Service it serves, from its `kubernetes.io/service-name` label.
    pub group: GroupKey,
    /// Its ports; those without a number are left out.
    pub ports: Vec<EndpointPort>,
    /// Its endpoints; those without an IP address are left out.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its first address: the only one with a meaning.
    pub address: IpAddr,
    /// The pod behind it, where `targetRef` names one.
    pub pod: Option<PodRef>,
    /// `conditions.ready`, true when absent, and not terminating.
    pub state: State,
    /// `conditions.serving`, as `ready` when absent.
    pub serving: bool,
}

/// A port of an endpoint: where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the Service port it belongs to.
    pub name: Arc<str>,
    /// The number on the pod.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What identifies an endpoint within its Service: the pod's uid, since addresses are used again; only an
/// endpoint of a slice that names no pod goes by its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointId {
    /// A pod.
    Pod(PodUid),
    /// An address that some slice names.
    Address(SliceKey, IpAddr),
}

/// One endpoint of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What it goes by.
    pub id: EndpointId,
    /// The pod, if there is one.
    pub pod: Option<PodRef>,
    /// Its state, whose word that is, and since when.
    pub verdict: Verdict,
    /// Its addresses in the pod's order.
    pub addresses: Arc<[IpAddr]>,
    /// Its ports in the Service's order.
    pub ports: Arc<[EndpointPort]>,
    /// The pod's revision, or empty.
    pub revision: Arc<str>,
}

impl Endpoint {
    /// The number of the TCP port that goes by `name` on this endpoint.
    pub fn tcp_port(&self, name: &str) -> Option<u16> {
        let wanted = |p: &&EndpointPort| *p.name == *name && p.protocol == Protocol::Tcp;
        self.ports.iter().find(wanted).map(|p| p.port)
    }
}

/// An endpoint and its place among the ready ones.
#[derive(Debug, Clone)]
struct Member {
    endpoint: Arc<Endpoint>,
    ready_at: Option<usize>,
}

/// All endpoints of one Service at one moment. Cheap to clone; never changes under a reader.
#[derive(Debug, Clone)]
pub struct GroupSnapshot {
    key: GroupKey,
    service: Option<Arc<Service>>,
    members: imbl::GenericHashMap<EndpointId, Member, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>,
    ready: imbl::Vector<Arc<Endpoint>>,
}

impl GroupSnapshot {
    /// A Service without endpoints.
    pub fn empty(key: GroupKey) -> Self {
        Self { key, service: None, members: imbl::GenericHashMap::default(), ready: imbl::Vector::new() }
    }

    /// Which Service this is.
    pub fn key(&self) -> &GroupKey {
        &self.key
    }

    /// The Service itself; none while only slices know of it.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    pub(super) fn set_service(&mut self, service: Arc<Service>) {
        self.service = Some(service);
    }

    /// All endpoints, ready or not, in no order.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.members.values().map(|member| &member.endpoint)
    }

    /// The endpoints that are ready, in no order but by index.
    pub fn ready(&self) -> &imbl::Vector<Arc<Endpoint>> {
        &self.ready
    }

    /// The endpoint that goes by `id`.
    pub fn endpoint(&self, id: &EndpointId) -> Option<&Arc<Endpoint>> {
        self.members.get(id).map(|member| &member.endpoint)
    }

    /// A ready endpoint that has the TCP port `name`.
    pub fn ready_with_port(&self, name: &str) -> Option<&Arc<Endpoint>> {
        self.ready.iter().find(|endpoint| endpoint.tcp_port(name).is_some())
    }

    /// Puts an endpoint in or replaces it. False when it was there just so.
    pub(super) fn put(&mut self, endpoint: Arc<Endpoint>) -> bool {
        let held = self.members.get(&endpoint.id);
        if held.is_some_and(|held| held.endpoint == endpoint) {
            return false;
        }
        let was_at = held.and_then(|held| held.ready_at);
        let ready = endpoint.verdict.state == State::Ready;
        let ready_at = match (was_at, ready) {
            (Some(at), true) => {
                self.ready.set(at, Arc::clone(&endpoint));
                Some(at)
            }
            (Some(at), false) => {
                self.swap_remove_ready(at);
                None
            }
            (None, true) => {
                self.ready.push_back(Arc::clone(&endpoint));
                Some(self.ready.len() - 1)
            }
            (None, false) => None,
        };
        self.members.insert(endpoint.id.clone(), Member { endpoint, ready_at });
        true
    }

    /// Takes an endpoint out. False when it was not there.
    pub(super) fn remove(&mut self, id: &EndpointId) -> bool {
        let Some(member) = self.members.remove(id) else { return false };
        if let Some(at) = member.ready_at {
            self.swap_remove_ready(at);
        }
        true
    }

    fn swap_remove_ready(&mut self, at: usize) {
        let last = self.ready.pop_back().expect("whoever has a place among the ready is there");
        if at < self.ready.len() {
            if let Some(moved) = self.members.get_mut(&last.id) {
                moved.ready_at = Some(at);
            }
            self.ready.set(at, last);
        }
    }
}
