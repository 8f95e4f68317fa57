//! Services and their endpoints: which pods belong to which Service, on which ports, and the immutable picture
//! of one Service that readers hold. A picture is made of persistent collections: a change to one endpoint of
//! 100 000 copies a few nodes, not the Service.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use podlight_proto::{PodRef, PodUid};

use super::entry::{Labels, Observation, Protocol, State, Verdict};
use super::verdicts::Verdicts;

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

/// What seldom changes about one endpoint of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointFacts {
    /// Its Service.
    pub group: GroupKey,
    /// What it goes by.
    pub id: EndpointId,
    /// The pod, if there is one.
    pub pod: Option<PodRef>,
    /// Its addresses in the pod's order.
    pub addresses: Vec<IpAddr>,
    /// Its ports in the Service's order.
    pub ports: Vec<EndpointPort>,
    /// The pod's revision, or empty.
    pub revision: Arc<str>,
}

/// One endpoint of one Service: its facts, and the verdict on it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its state, whose word that is, and since when.
    pub verdict: Verdict,
    facts: Arc<EndpointFacts>,
}

impl Deref for Endpoint {
    type Target = EndpointFacts;

    fn deref(&self) -> &EndpointFacts {
        &self.facts
    }
}

impl Endpoint {
    /// An endpoint in a state.
    pub fn new(facts: Arc<EndpointFacts>, verdict: Verdict) -> Self {
        Self { verdict, facts }
    }

    /// Whether it takes traffic now.
    pub fn is_ready(&self) -> bool {
        self.verdict.state == State::Ready
    }

    /// The number of the TCP port that goes by `name` on this endpoint.
    pub fn tcp_port(&self, name: &str) -> Option<u16> {
        let wanted = |p: &&EndpointPort| *p.name == *name && p.protocol == Protocol::Tcp;
        self.ports.iter().find(wanted).map(|p| p.port)
    }
}

/// Where an endpoint's verdict stands among those of its Service. Given out again once the endpoint has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u32);

impl Slot {
    fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone)]
struct Member {
    facts: Arc<EndpointFacts>,
    slot: Slot,
}

/// What seldom changes about a Service.
#[derive(Debug, Clone)]
struct Composition {
    key: GroupKey,
    service: Option<Arc<Service>>,
    members: imbl::GenericHashMap<EndpointId, Member, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>,
}

/// All endpoints of one Service at one moment. Cheap to clone; never changes under a reader. Verdicts, which come and
/// go with every event, lie apart from everything else: to publish one copies neighbours that are numbers, and
/// touches nothing of the neighbours themselves.
#[derive(Debug, Clone)]
pub struct GroupSnapshot {
    composition: Arc<Composition>,
    verdicts: Verdicts,
}

impl GroupSnapshot {
    /// A Service without endpoints.
    pub fn empty(key: GroupKey) -> Self {
        let composition = Composition { key, service: None, members: imbl::GenericHashMap::default() };
        Self { composition: Arc::new(composition), verdicts: Verdicts::default() }
    }

    /// Which Service this is.
    pub fn key(&self) -> &GroupKey {
        &self.composition.key
    }

    /// The Service itself; none while only slices know of it.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.composition.service.as_ref()
    }

    /// All endpoints, ready or not, in no order.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.composition.members.values().map(|member| self.endpoint_of(member))
    }

    /// How many endpoints there are.
    pub fn endpoint_count(&self) -> usize {
        self.composition.members.len()
    }

    /// The endpoint that goes by `id`.
    pub fn endpoint(&self, id: &EndpointId) -> Option<Endpoint> {
        self.composition.members.get(id).map(|member| self.endpoint_of(member))
    }

    fn endpoint_of(&self, member: &Member) -> Endpoint {
        let verdict = self.verdicts.at(member.slot.index());
        Endpoint::new(Arc::clone(&member.facts), verdict.expect("every member has a slot of its own"))
    }

    pub(super) fn set_service(&mut self, service: Arc<Service>) {
        Arc::make_mut(&mut self.composition).service = Some(service);
    }

    /// Puts an endpoint in or replaces it; `free` are the slots that nobody stands in. Tells its slot, and whether it
    /// was not there just so.
    pub(super) fn put(&mut self, endpoint: &Endpoint, free: &mut Vec<Slot>) -> (Slot, bool) {
        let held = self.composition.members.get(&endpoint.id);
        let held = held.map(|member| (member.slot, *member.facts == *endpoint.facts));
        if let Some((slot, true)) = held {
            return (slot, self.set_verdict(slot, endpoint.verdict));
        }
        let slot = match held.map(|(slot, _)| slot).or_else(|| free.pop()) {
            Some(slot) => {
                self.set_verdict(slot, endpoint.verdict);
                slot
            }
            None => {
                self.verdicts.push(endpoint.verdict);
                Slot(u32::try_from(self.verdicts.len() - 1).expect("fewer endpoints than IPv4 has addresses"))
            }
        };
        let member = Member { facts: Arc::clone(&endpoint.facts), slot };
        Arc::make_mut(&mut self.composition).members.insert(endpoint.id.clone(), member);
        (slot, true)
    }

    /// Reads what a new verdict will copy and count.
    pub(super) fn warm(&self, slot: Slot) -> usize {
        let verdict = self.verdicts.at(slot.index()).map_or(0, |verdict| usize::from(verdict.serving));
        verdict + Arc::strong_count(&self.composition)
    }

    /// Replaces a verdict. False when it was just so.
    pub(super) fn set_verdict(&mut self, slot: Slot, verdict: Verdict) -> bool {
        let news = self.verdicts.at(slot.index()) != Some(verdict);
        if news {
            self.verdicts.set(slot.index(), verdict);
        }
        news
    }

    /// Takes an endpoint out and frees its slot. False when it was not there.
    pub(super) fn remove(&mut self, id: &EndpointId, free: &mut Vec<Slot>) -> bool {
        if !self.composition.members.contains_key(id) {
            return false;
        }
        if let Some(member) = Arc::make_mut(&mut self.composition).members.remove(id) {
            free.push(member.slot);
        }
        true
    }
}
