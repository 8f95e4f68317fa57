//! The readiness table: every pod's entry, every Service's endpoints. A plain value that takes updates and time
//! and tells what changed; it knows no clock, lock or task. [`owner`] runs it, [`snapshot`] publishes it.
//!
//! Invariants: entries only move upwards (see [`entry`]), so all replicas end alike; a pod whose deletion was
//! applied never comes back by a push; one update costs what it touches, never the size of the table.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use podlight_proto::{Boot, Event, Outcome, PodUid};

pub mod entry;
pub mod group;
pub mod owner;
pub mod snapshot;

use entry::{Entry, Labels, Now, Observation, Source, State};
use group::{Endpoint, EndpointId, GroupKey, GroupSnapshot, Service, Slice, SliceKey};

/// How long the uid of a deleted pod is remembered, so that a push which was under way when the deletion was
/// applied cannot bring it back. Longer than any request lives.
const GONE_FOR: Duration = Duration::from_secs(120);

/// Most uids of deleted pods remembered; the oldest go first.
const GONE_MAX: usize = 65_536;

/// One object of a list or watch, in the stream's order.
#[derive(Debug, Clone)]
pub enum Change<T, K> {
    /// A list begins: what it does not name before [`Change::ListDone`] is gone.
    ListBegan,
    /// An object as it is now, listed or watched.
    Present(T),
    /// An object was deleted.
    Gone(K),
    /// The list is complete.
    ListDone,
}

/// Number of the last pod list that was complete when something was asked of the API server. 0 before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ListEpoch(pub u64);

/// Something the Kubernetes side has to say.
#[derive(Debug, Clone)]
pub enum Update {
    /// From the watch of pods.
    Pod(Change<Arc<Observation>, PodUid>),
    /// A pod that one GET returned, and the list that had been complete when it was sent.
    Fetched(Arc<Observation>, ListEpoch),
    /// From the watch of Services.
    Service(Change<Arc<Service>, GroupKey>),
    /// From the watch of EndpointSlices.
    Slice(Change<Arc<Slice>, SliceKey>),
}

/// How often sidecars report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pacing {
    /// Until the watch shows what the sidecar says, in seconds: a replica that missed an event learns it so.
    pub unconfirmed_seconds: u32,
    /// From then on, in seconds.
    pub confirmed_seconds: u32,
}

impl Pacing {
    /// A lease outlives two lost heartbeats.
    const LEASE_HEARTBEATS: u32 = 3;

    /// How long the word of a sidecar counts that is to be heard again after so many seconds.
    pub(crate) const fn lease_seconds(heartbeat_after_seconds: u32) -> u32 {
        heartbeat_after_seconds.saturating_mul(Self::LEASE_HEARTBEATS)
    }
}

impl Default for Pacing {
    fn default() -> Self {
        Self { unconfirmed_seconds: 5, confirmed_seconds: 120 }
    }
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Whether it was news.
    pub outcome: Outcome,
    /// The boot that holds now.
    pub boot: Boot,
    /// When to hear again, in seconds.
    pub heartbeat_after_seconds: u32,
    /// How long the sidecar's word counts, in seconds.
    pub lease_seconds: u32,
}

/// A push for a pod whose deletion has been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pod has been deleted")]
pub struct PodGone;

/// One endpoint that came, changed or went.
#[derive(Debug, Clone)]
pub struct EndpointChange {
    /// Which endpoint.
    pub id: EndpointId,
    /// What it is now; none when it is gone.
    pub endpoint: Option<Arc<Endpoint>>,
}

/// What changed in one Service.
#[derive(Debug, Clone)]
pub struct GroupChange {
    /// Which Service.
    pub key: GroupKey,
    /// Its endpoints now; none when the Service is gone.
    pub snapshot: Option<Arc<GroupSnapshot>>,
    /// Whether the Service itself came or changed.
    pub service: bool,
    /// The endpoints that changed, in order, each at most once per update.
    pub endpoints: Vec<EndpointChange>,
}

/// How late the table learned of a change, or how early.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Timing {
    /// From the change on the node to the table.
    Lag(Source, Duration),
    /// How long after the push the watch showed the same transition.
    Lead(Duration),
}

/// All that changed since the last [`Table::take_changes`].
#[derive(Debug, Default)]
pub struct Changes {
    /// By Service.
    pub groups: Vec<GroupChange>,
    /// For the metrics.
    pub timings: Vec<Timing>,
}

/// Sizes, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Pods with an entry.
    pub pods: usize,
    /// Pods whose sidecar's word counts now.
    pub leased: usize,
    /// Services.
    pub services: usize,
    /// Deleted pods still remembered.
    pub gone: usize,
    /// Deleted pods forgotten early because of the bound, ever.
    pub gone_evicted: u64,
}

#[derive(Debug)]
struct Row {
    entry: Entry,
    namespace: Arc<str>,
    /// The Services that choose this pod.
    groups: Vec<GroupKey>,
    /// The list that last named it, or that was running or complete when the watch did.
    seen_in: ListEpoch,
    /// When a pushed state that the watch has not shown yet was applied.
    ahead_since: Option<Duration>,
    /// Where it stands in [`Table::lease_checks`].
    lease_check: Option<Duration>,
}

#[derive(Debug)]
struct Group {
    /// None while only slices know of the Service.
    service: Option<Arc<Service>>,
    snapshot: Arc<GroupSnapshot>,
    service_changed: bool,
    changed: Vec<EndpointChange>,
    /// Whether it is among the dirty ones.
    queued: bool,
    /// The list that last named it.
    seen_in: ListEpoch,
}

/// One label and its value.
type Label = (Arc<str>, Arc<str>);

/// What is in a namespace, so that neither a pod nor a Service has to look at those of others.
#[derive(Debug, Default)]
struct Namespace {
    /// Services by one label of their selector: a pod looks only at those that its own labels lead to.
    services: HashMap<Label, BTreeSet<GroupKey>>,
    pods: HashSet<PodUid>,
}

impl Namespace {
    fn insert_service(&mut self, service: &Service) {
        if let Some(label) = indexed_label(service) {
            self.services.entry(label).or_default().insert(service.key.clone());
        }
    }

    fn remove_service(&mut self, service: &Service) {
        let Some(label) = indexed_label(service) else { return };
        if let Some(services) = self.services.get_mut(&label) {
            services.remove(&service.key);
            if services.is_empty() {
                self.services.remove(&label);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.pods.is_empty()
    }
}

/// The label that a Service is found by. Any one of its selector would do.
fn indexed_label(service: &Service) -> Option<Label> {
    service.selector.as_ref()?.last_key_value().map(|(k, v)| (Arc::clone(k), Arc::clone(v)))
}

/// Progress of one watch's lists.
#[derive(Debug, Default, Clone, Copy)]
struct Lists {
    begun: ListEpoch,
}

impl Lists {
    fn begin(&mut self) {
        self.begun.0 += 1;
    }
}

/// Every pod's entry and every Service's endpoints.
#[derive(Debug, Default)]
pub struct Table {
    pacing: Pacing,
    rows: HashMap<PodUid, Row>,
    groups: HashMap<GroupKey, Group>,
    slices: HashMap<SliceKey, (Arc<Slice>, ListEpoch)>,
    slices_of: HashMap<GroupKey, BTreeSet<SliceKey>>,
    namespaces: HashMap<Arc<str>, Namespace>,
    /// When to look at a pod's lease: one moment a leased pod, at or before the lease's end. A lease that was renewed
    /// since is looked at again at its new end, so that a heartbeat moves nothing here.
    lease_checks: BTreeSet<(Duration, PodUid)>,
    gone: HashMap<PodUid, Duration>,
    gone_order: VecDeque<(Duration, PodUid)>,
    gone_evicted: u64,
    pod_lists: Lists,
    service_lists: Lists,
    slice_lists: Lists,
    dirty: Vec<GroupKey>,
    removed: Vec<GroupKey>,
    timings: Vec<Timing>,
}

impl Table {
    /// An empty table.
    pub fn new(pacing: Pacing) -> Self {
        Self { pacing, ..Self::default() }
    }

    /// Applies one event of a pod that owns it.
    ///
    /// # Errors
    /// [`PodGone`] when the pod's deletion has been applied.
    pub fn push(&mut self, event: &Event, now: Now) -> Result<Transition, PodGone> {
        let uid = event.pod.uid();
        if self.gone.contains_key(uid) {
            return Err(PodGone);
        }
        if !self.rows.contains_key(uid) {
            self.insert_row(*uid, event.pod.namespace());
        }
        let row = self.rows.get_mut(uid).expect("just inserted");
        let before = row.entry.pushed.as_ref().map(|p| (p.ready, p.observed_at_ms));
        // Whether the watch confirms the event shows once it is merged; the lease follows from that.
        let outcome = row.entry.merge_event(event, Duration::ZERO);
        let heartbeat_after_seconds =
            if row.entry.confirmed() { self.pacing.confirmed_seconds } else { self.pacing.unconfirmed_seconds };
        let lease_seconds = Pacing::lease_seconds(heartbeat_after_seconds);
        let pushed = row.entry.pushed.as_mut().expect("an event was merged");
        let boot = pushed.order.boot;
        if pushed.order == event.order && outcome == Outcome::Applied {
            pushed.lease_until = now.uptime + Duration::from_secs(lease_seconds.into());
            if row.lease_check.is_none_or(|check| pushed.lease_until < check) {
                if let Some(check) = row.lease_check.replace(pushed.lease_until) {
                    self.lease_checks.remove(&(check, *uid));
                }
                self.lease_checks.insert((pushed.lease_until, *uid));
            }
            if before != Some((pushed.ready, pushed.observed_at_ms)) {
                let lag = Duration::from_millis(now.wall_ms.saturating_sub(pushed.observed_at_ms));
                self.timings.push(Timing::Lag(Source::Pushed, lag));
                row.ahead_since = (!row.entry.confirmed()).then_some(now.uptime);
            }
        }
        self.refresh(uid, now.uptime);
        Ok(Transition { outcome, boot, heartbeat_after_seconds, lease_seconds })
    }

    /// Applies one word of the Kubernetes side.
    pub fn apply(&mut self, update: Update, now: Now) {
        match update {
            Update::Pod(Change::ListBegan) => self.pod_lists.begin(),
            Update::Pod(Change::Present(observation)) => {
                self.gone.remove(observation.pod.uid());
                self.observe(observation, self.pod_lists.begun, now);
            }
            Update::Pod(Change::Gone(uid)) => self.remove_pod(&uid, now.uptime),
            Update::Pod(Change::ListDone) => {
                let listed = self.pod_lists.begun;
                let unlisted = |row: &Row| row.entry.observed.is_some() && row.seen_in < listed;
                let gone: Vec<PodUid> =
                    self.rows.iter().filter(|(_, row)| unlisted(row)).map(|(uid, _)| *uid).collect();
                gone.iter().for_each(|uid| self.remove_pod(uid, now.uptime));
            }
            Update::Fetched(observation, asked_in) => {
                // Asked before the running list began: if the pod still exists, the list or the watch names it.
                let uid = observation.pod.uid();
                if asked_in == self.pod_lists.begun && !self.gone.contains_key(uid) {
                    self.observe(observation, asked_in, now);
                }
            }
            Update::Service(change) => self.apply_service(change, now.uptime),
            Update::Slice(change) => self.apply_slice(change),
        }
    }

    /// Lets leases run out that end at or before `uptime`, and forgets pods deleted long ago.
    pub fn expire(&mut self, uptime: Duration) {
        while let Some((check, uid)) = self.lease_checks.first().copied() {
            if check > uptime {
                break;
            }
            self.lease_checks.remove(&(check, uid));
            let Some(row) = self.rows.get_mut(&uid) else { continue };
            let end = row.entry.pushed.as_ref().map(|pushed| pushed.lease_until).filter(|end| *end > uptime);
            row.lease_check = end;
            match end {
                Some(end) => drop(self.lease_checks.insert((end, uid))),
                None if row.entry.observed.is_none() => self.remove_row(&uid),
                None => self.refresh(&uid, uptime),
            }
        }
        while let Some((since, uid)) = self.gone_order.front() {
            if *since + GONE_FOR > uptime && self.gone_order.len() <= GONE_MAX {
                break;
            }
            self.gone_evicted += u64::from(*since + GONE_FOR > uptime);
            if self.gone.get(uid) == Some(since) {
                self.gone.remove(uid);
            }
            self.gone_order.pop_front();
        }
    }

    /// When [`Table::expire`] next has something to do.
    pub fn next_expiry(&self) -> Option<Duration> {
        let lease = self.lease_checks.first().map(|(until, _)| *until);
        let gone = self.gone_order.front().map(|(since, _)| *since + GONE_FOR);
        lease.into_iter().chain(gone).min()
    }

    /// Takes what has changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        let mut groups = Vec::with_capacity(self.dirty.len() + self.removed.len());
        // A Service that went and came back is told as both.
        for key in std::mem::take(&mut self.removed) {
            groups.push(GroupChange { key, snapshot: None, service: false, endpoints: Vec::new() });
        }
        for key in std::mem::take(&mut self.dirty) {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            group.queued = false;
            let endpoints = std::mem::take(&mut group.changed);
            let service = std::mem::take(&mut group.service_changed);
            groups.push(GroupChange { key, snapshot: Some(Arc::clone(&group.snapshot)), service, endpoints });
        }
        Changes { groups, timings: std::mem::take(&mut self.timings) }
    }

    /// The entry of a pod.
    pub fn entry(&self, uid: &PodUid) -> Option<&Entry> {
        self.rows.get(uid).map(|row| &row.entry)
    }

    /// The endpoints of a Service.
    pub fn group(&self, key: &GroupKey) -> Option<&Arc<GroupSnapshot>> {
        self.groups.get(key).map(|group| &group.snapshot)
    }

    /// How much there is of everything.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            pods: self.rows.len(),
            leased: self.lease_checks.len(),
            services: self.groups.len(),
            gone: self.gone.len(),
            gone_evicted: self.gone_evicted,
        }
    }

    fn observe(&mut self, observation: Arc<Observation>, seen_in: ListEpoch, now: Now) {
        let uid = *observation.pod.uid();
        if !self.rows.contains_key(&uid) {
            self.insert_row(uid, observation.pod.namespace());
        }
        let row = self.rows.get_mut(&uid).expect("just inserted");
        row.seen_in = row.seen_in.max(seen_in);
        let before = row.entry.observed.clone();
        if !row.entry.merge_observation(Arc::clone(&observation)) {
            return;
        }
        if let Some(condition) = observation.ready
            && before.as_ref().and_then(|o| o.ready) != Some(condition)
            && before.is_some()
        {
            let lag = Duration::from_millis(now.wall_ms.saturating_sub(condition.since_seconds.saturating_mul(1000)));
            self.timings.push(Timing::Lag(Source::Observed, lag));
        }
        if row.entry.confirmed()
            && let Some(since) = row.ahead_since.take()
        {
            self.timings.push(Timing::Lead(now.uptime.saturating_sub(since)));
        }
        let moved = before.is_none_or(|o| o.labels != observation.labels);
        if moved {
            self.regroup(&uid, &observation.labels, now.uptime);
        } else {
            self.refresh(&uid, now.uptime);
        }
    }

    /// Finds the Services that choose a pod, and moves it between them.
    fn regroup(&mut self, uid: &PodUid, labels: &Labels, uptime: Duration) {
        let Some(row) = self.rows.get_mut(uid) else { return };
        let mut groups = Vec::new();
        if let Some(namespace) = self.namespaces.get(&row.namespace) {
            for (key, value) in labels {
                let services = namespace.services.get(&(Arc::clone(key), Arc::clone(value)));
                let chosen = |key: &&GroupKey| {
                    self.groups.get(*key).and_then(|g| g.service.as_ref()).is_some_and(|s| s.selects(labels))
                };
                groups.extend(services.into_iter().flatten().filter(chosen).cloned());
            }
        }
        let left = std::mem::replace(&mut row.groups, groups);
        let left: Vec<GroupKey> = left.into_iter().filter(|key| !row.groups.contains(key)).collect();
        for key in left {
            self.remove_endpoint(&key, &EndpointId::Pod(*uid));
        }
        self.refresh(uid, uptime);
    }

    /// Brings a pod's endpoints up to date with its entry.
    fn refresh(&mut self, uid: &PodUid, uptime: Duration) {
        let Some(row) = self.rows.get(uid) else { return };
        let Some(observed) = &row.entry.observed else { return };
        if row.groups.is_empty() {
            return;
        }
        let verdict = row.entry.verdict(uptime);
        let addresses = row.entry.addresses();
        let id = EndpointId::Pod(*uid);
        for key in &row.groups {
            let Some(group) = self.groups.get_mut(key) else { continue };
            let Some(service) = &group.service else { continue };
            let ports = service.resolve(observed);
            let held = group.snapshot.endpoint(&id);
            if held.is_some_and(|held| {
                held.verdict == verdict
                    && *held.addresses == *addresses
                    && *held.ports == *ports
                    && held.revision == observed.revision
            }) {
                continue;
            }
            let endpoint = Arc::new(Endpoint {
                id: id.clone(),
                pod: Some(observed.pod.clone()),
                verdict,
                addresses: addresses.into(),
                ports: ports.into(),
                revision: Arc::clone(&observed.revision),
            });
            put_endpoint(&mut self.dirty, group, key, endpoint);
        }
    }

    fn remove_endpoint(&mut self, key: &GroupKey, id: &EndpointId) {
        let Some(group) = self.groups.get_mut(key) else { return };
        if Arc::make_mut(&mut group.snapshot).remove(id) {
            mark(&mut self.dirty, group, key, EndpointChange { id: id.clone(), endpoint: None });
        }
    }

    fn insert_row(&mut self, uid: PodUid, namespace: &Arc<str>) {
        self.namespaces.entry(Arc::clone(namespace)).or_default().pods.insert(uid);
        let row = Row {
            entry: Entry::default(),
            namespace: Arc::clone(namespace),
            groups: Vec::new(),
            seen_in: ListEpoch::default(),
            ahead_since: None,
            lease_check: None,
        };
        self.rows.insert(uid, row);
    }

    fn remove_pod(&mut self, uid: &PodUid, uptime: Duration) {
        self.remove_row(uid);
        self.gone.insert(*uid, uptime);
        self.gone_order.push_back((uptime, *uid));
        if self.gone_order.len() > GONE_MAX {
            self.expire(uptime);
        }
    }

    fn remove_row(&mut self, uid: &PodUid) {
        let Some(row) = self.rows.remove(uid) else { return };
        if let Some(check) = row.lease_check {
            self.lease_checks.remove(&(check, *uid));
        }
        for key in &row.groups {
            self.remove_endpoint(key, &EndpointId::Pod(*uid));
        }
        if let Some(namespace) = self.namespaces.get_mut(&row.namespace) {
            namespace.pods.remove(uid);
        }
        self.drop_empty_namespace(&row.namespace);
    }

    fn drop_empty_namespace(&mut self, name: &Arc<str>) {
        if self.namespaces.get(name).is_some_and(Namespace::is_empty) {
            self.namespaces.remove(name);
        }
    }

    fn apply_service(&mut self, change: Change<Arc<Service>, GroupKey>, uptime: Duration) {
        match change {
            Change::ListBegan => self.service_lists.begin(),
            Change::Present(service) => {
                let key = service.key.clone();
                let group = open_group(&mut self.groups, &mut self.dirty, &key);
                group.seen_in = self.service_lists.begun;
                let before = group.service.replace(Arc::clone(&service));
                if before.as_ref() == Some(&service) {
                    return;
                }
                Arc::make_mut(&mut group.snapshot).set_service(Arc::clone(&service));
                group.service_changed = true;
                queue(&mut self.dirty, group, &key);
                let namespace = self.namespaces.entry(Arc::clone(&key.namespace)).or_default();
                if let Some(before) = before {
                    namespace.remove_service(&before);
                }
                namespace.insert_service(&service);
                self.choose_again(&service, uptime);
                self.rebuild_slices(&key);
            }
            Change::Gone(key) => self.remove_service(&key, uptime),
            Change::ListDone => {
                let listed = self.service_lists.begun;
                let unlisted = |g: &Group| g.service.is_some() && g.seen_in < listed;
                let gone: Vec<GroupKey> =
                    self.groups.iter().filter(|(_, g)| unlisted(g)).map(|(key, _)| key.clone()).collect();
                gone.iter().for_each(|key| self.remove_service(key, uptime));
            }
        }
    }

    fn remove_service(&mut self, key: &GroupKey, uptime: Duration) {
        let Some(service) = self.groups.get(key).and_then(|group| group.service.clone()) else { return };
        // A Service without selector chooses nobody: its members leave it first, then it goes.
        let nobody = Service::new(service.key.clone());
        self.choose_again(&nobody, uptime);
        self.groups.remove(key);
        self.removed.push(key.clone());
        if let Some(namespace) = self.namespaces.get_mut(&key.namespace) {
            namespace.remove_service(&service);
        }
        self.drop_empty_namespace(&key.namespace);
    }

    /// Goes through a namespace's pods for a Service whose selector or ports are new.
    fn choose_again(&mut self, service: &Service, uptime: Duration) {
        let pods: Vec<PodUid> = match self.namespaces.get(&service.key.namespace) {
            Some(namespace) => namespace.pods.iter().cloned().collect(),
            None => return,
        };
        for uid in pods {
            let Some(row) = self.rows.get_mut(&uid) else { continue };
            let chosen = row.entry.observed.as_ref().is_some_and(|o| service.selects(&o.labels));
            let member = row.groups.iter().position(|key| *key == service.key);
            match (member, chosen) {
                (Some(at), false) => {
                    row.groups.swap_remove(at);
                    self.remove_endpoint(&service.key, &EndpointId::Pod(uid));
                }
                (None, true) => {
                    row.groups.push(service.key.clone());
                    self.refresh(&uid, uptime);
                }
                (Some(_), true) => self.refresh(&uid, uptime),
                (None, false) => {}
            }
        }
    }

    fn apply_slice(&mut self, change: Change<Arc<Slice>, SliceKey>) {
        match change {
            Change::ListBegan => self.slice_lists.begin(),
            Change::Present(slice) => {
                let group = slice.group.clone();
                self.slices_of.entry(group.clone()).or_default().insert(slice.key.clone());
                let held = self.slices.insert(slice.key.clone(), (Arc::clone(&slice), self.slice_lists.begun));
                match held {
                    Some((old, _)) if old.group != group => self.forget_slice(&old),
                    Some((old, _)) if old == slice => return,
                    Some(_) | None => {}
                }
                self.slices_changed(&group);
            }
            Change::Gone(key) => self.remove_slice(&key),
            Change::ListDone => {
                let listed = self.slice_lists.begun;
                let unlisted = self.slices.iter().filter(|(_, (_, seen_in))| *seen_in < listed);
                let gone: Vec<SliceKey> = unlisted.map(|(key, _)| key.clone()).collect();
                gone.iter().for_each(|key| self.remove_slice(key));
            }
        }
    }

    fn remove_slice(&mut self, key: &SliceKey) {
        if let Some((slice, _)) = self.slices.remove(key) {
            self.forget_slice(&slice);
        }
    }

    fn forget_slice(&mut self, slice: &Slice) {
        if let Some(slices) = self.slices_of.get_mut(&slice.group) {
            slices.remove(&slice.key);
            if slices.is_empty() {
                self.slices_of.remove(&slice.group);
            }
        }
        self.slices_changed(&slice.group);
    }

    /// What a slice says changes something only where no selector chooses the pods.
    fn slices_changed(&mut self, key: &GroupKey) {
        if self.groups.get(key).and_then(|g| g.service.as_ref()).is_some_and(|service| service.selector.is_none()) {
            self.rebuild_slices(key);
        }
    }

    /// Brings the endpoints that slices name up to date, for a Service that chooses no pods itself.
    fn rebuild_slices(&mut self, key: &GroupKey) {
        let Some(group) = self.groups.get(key) else { return };
        if group.service.as_ref().is_none_or(|service| service.selector.is_some()) {
            // What was there by slices goes; what the selector chose stays.
            return self.retain_endpoints(key, &HashMap::new());
        }
        let mut wanted: HashMap<EndpointId, Arc<Endpoint>> = HashMap::new();
        let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|key| self.slices.get(key));
        for (slice, _) in slices {
            for endpoint in &slice.endpoints {
                let endpoint = Arc::new(slice_endpoint(slice, endpoint));
                // While an endpoint moves between slices it may be in both: the ready one counts.
                let held = wanted.get(&endpoint.id);
                if held.is_none_or(|held| held.verdict.state > endpoint.verdict.state) {
                    wanted.insert(endpoint.id.clone(), endpoint);
                }
            }
        }
        self.retain_endpoints(key, &wanted);
        let Some(group) = self.groups.get_mut(key) else { return };
        wanted.into_values().for_each(|endpoint| put_endpoint(&mut self.dirty, group, key, endpoint));
    }

    /// Takes out the endpoints that neither `wanted` nor the Service's selector names.
    fn retain_endpoints(&mut self, key: &GroupKey, wanted: &HashMap<EndpointId, Arc<Endpoint>>) {
        let Some(group) = self.groups.get(key) else { return };
        let chosen = |id: &EndpointId| match id {
            EndpointId::Pod(uid) => self.rows.get(uid).is_some_and(|row| row.groups.contains(key)),
            EndpointId::Address(..) => false,
        };
        let stale = group.snapshot.endpoints().map(|e| &e.id).filter(|id| !wanted.contains_key(id) && !chosen(id));
        let stale: Vec<EndpointId> = stale.cloned().collect();
        stale.iter().for_each(|id| self.remove_endpoint(key, id));
    }
}

fn open_group<'a>(
    groups: &'a mut HashMap<GroupKey, Group>,
    dirty: &mut Vec<GroupKey>,
    key: &GroupKey,
) -> &'a mut Group {
    groups.entry(key.clone()).or_insert_with(|| {
        dirty.push(key.clone());
        let snapshot = Arc::new(GroupSnapshot::empty(key.clone()));
        Group {
            service: None,
            snapshot,
            service_changed: false,
            changed: Vec::new(),
            queued: true,
            seen_in: ListEpoch::default(),
        }
    })
}

fn put_endpoint(dirty: &mut Vec<GroupKey>, group: &mut Group, key: &GroupKey, endpoint: Arc<Endpoint>) {
    let change = EndpointChange { id: endpoint.id.clone(), endpoint: Some(Arc::clone(&endpoint)) };
    if Arc::make_mut(&mut group.snapshot).put(endpoint) {
        mark(dirty, group, key, change);
    }
}

fn mark(dirty: &mut Vec<GroupKey>, group: &mut Group, key: &GroupKey, change: EndpointChange) {
    queue(dirty, group, key);
    group.changed.push(change);
}

fn queue(dirty: &mut Vec<GroupKey>, group: &mut Group, key: &GroupKey) {
    if !std::mem::replace(&mut group.queued, true) {
        dirty.push(key.clone());
    }
}

fn slice_endpoint(slice: &Slice, endpoint: &group::SliceEndpoint) -> Endpoint {
    let id = match &endpoint.pod {
        Some(pod) => EndpointId::Pod(*pod.uid()),
        None => EndpointId::Address(slice.key.clone(), endpoint.address),
    };
    let verdict =
        entry::Verdict { state: endpoint.state, source: Source::Observed, since_ms: 0, serving: endpoint.serving };
    Endpoint {
        id,
        pod: endpoint.pod.clone(),
        verdict,
        addresses: [endpoint.address].into(),
        ports: slice.ports.as_slice().into(),
        revision: "".into(),
    }
}

impl Endpoint {
    /// Whether it takes traffic now.
    pub fn is_ready(&self) -> bool {
        self.verdict.state == State::Ready
    }
}

#[cfg(test)]
mod tests;
