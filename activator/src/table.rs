//! The readiness table: every pod's entry, every Service's endpoints. A plain value that takes updates and time
//! and tells what changed; it knows no clock, lock or task. [`owner`] runs it, [`snapshot`] publishes it.
//!
//! Invariants: entries only move upwards (see [`entry`]), so all replicas end alike; a pod whose deletion was
//! applied never comes back by a push; one update costs what it touches, never the size of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podlight_proto::{Boot, Event, Outcome, PodUid};
use slab::Slab;
use smallvec::SmallVec;

pub mod entry;
pub mod group;
pub mod owner;
pub mod snapshot;
mod verdicts;

use entry::{Entry, Labels, Now, Observation, Source, Verdict};
use group::{Endpoint, EndpointFacts, EndpointId, GroupKey, GroupSnapshot, Service, Slice, SliceKey, Slot};

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

/// What became of one endpoint.
#[derive(Debug, Clone)]
pub enum EndpointChange {
    /// It came or changed: this is what it is now.
    Now(Endpoint),
    /// It is gone.
    Gone(EndpointId),
}

impl EndpointChange {
    /// Which endpoint.
    pub fn id(&self) -> &EndpointId {
        match self {
            Self::Now(endpoint) => &endpoint.id,
            Self::Gone(id) => id,
        }
    }
}

/// What changed in one Service.
#[derive(Debug, Clone)]
pub struct GroupChange {
    /// Its place in the table: its own while it exists, another's afterwards.
    pub index: GroupIndex,
    /// What became of it.
    pub what: GroupWhat,
}

/// What became of one Service.
#[derive(Debug, Clone)]
pub enum GroupWhat {
    /// It is gone.
    Gone(GroupKey),
    /// It came or changed.
    Now {
        /// All its endpoints.
        snapshot: Arc<GroupSnapshot>,
        /// Whether the Service itself came or changed.
        service: bool,
        /// The endpoints that changed, in order, each at most once per update.
        endpoints: Vec<EndpointChange>,
    },
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

/// The place of a Service in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupIndex(usize);

impl GroupIndex {
    pub(crate) fn get(self) -> usize {
        self.0
    }
}

/// A pod's place in a Service that chooses it.
#[derive(Debug)]
struct Membership {
    group: GroupIndex,
    slot: Slot,
    facts: Arc<EndpointFacts>,
}

#[derive(Debug)]
struct Row {
    entry: Entry,
    namespace: Arc<str>,
    /// The verdict as last published.
    verdict: Option<Verdict>,
    /// The Services that choose this pod: hardly ever more than one.
    memberships: SmallVec<[Membership; 1]>,
    /// The list that last named it, or that was running or complete when the watch did.
    seen_in: ListEpoch,
    /// When a pushed state that the watch has not shown yet was applied.
    ahead_since: Option<Duration>,
    /// Where it stands in [`Table::lease_checks`].
    lease_check: Option<Duration>,
}

impl Row {
    fn groups(&self) -> SmallVec<[GroupIndex; 4]> {
        self.memberships.iter().map(|membership| membership.group).collect()
    }

    fn membership(&self, group: GroupIndex) -> Option<usize> {
        self.memberships.iter().position(|membership| membership.group == group)
    }
}

#[derive(Debug)]
struct Group {
    key: GroupKey,
    /// None while only slices know of the Service.
    service: Option<Arc<Service>>,
    snapshot: GroupSnapshot,
    free_slots: Vec<Slot>,
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
    rows: hashbrown::HashMap<PodUid, Row>,
    groups: Slab<Group>,
    group_indices: HashMap<GroupKey, GroupIndex>,
    slices: HashMap<SliceKey, (Arc<Slice>, ListEpoch)>,
    slices_of: HashMap<GroupKey, BTreeSet<SliceKey>>,
    /// Services whose slices have changed since their endpoints were made of them.
    resliced: HashSet<GroupKey>,
    namespaces: HashMap<Arc<str>, Namespace>,
    /// When to look at pods' leases: at or before their ends, which are whole seconds. A lease that was renewed since
    /// is looked at again at its new end, so that a heartbeat moves nothing here. A row knows which of its places
    /// counts.
    lease_checks: BTreeMap<Duration, Vec<PodUid>>,
    leased: usize,
    gone: HashMap<PodUid, Duration>,
    gone_order: VecDeque<(Duration, PodUid)>,
    gone_evicted: u64,
    pod_lists: Lists,
    service_lists: Lists,
    slice_lists: Lists,
    dirty: Vec<GroupIndex>,
    removed: Vec<(GroupKey, GroupIndex)>,
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
        let row = match self.rows.entry(*uid) {
            hashbrown::hash_map::Entry::Occupied(row) => row.into_mut(),
            hashbrown::hash_map::Entry::Vacant(place) => {
                enter_namespace(&mut self.namespaces, event.pod.namespace(), *uid);
                place.insert(Row::new(event.pod.namespace()))
            }
        };
        warm(&self.groups, row);
        let before = row.entry.pushed.as_ref().map(|p| (p.ready, p.observed_at_ms));
        // Whether the watch confirms the event shows once it is merged; the lease follows from that.
        let outcome = row.entry.merge_event(event, Duration::ZERO);
        let heartbeat_after_seconds =
            if row.entry.confirmed() { self.pacing.confirmed_seconds } else { self.pacing.unconfirmed_seconds };
        let lease_seconds = Pacing::lease_seconds(heartbeat_after_seconds);
        let pushed = row.entry.pushed.as_mut().expect("an event was merged");
        let boot = pushed.order.boot;
        if pushed.order == event.order && outcome == Outcome::Applied {
            pushed.lease_until = lease_end(now.uptime, lease_seconds);
            if row.lease_check.is_none_or(|check| pushed.lease_until < check) {
                self.leased += usize::from(row.lease_check.is_none());
                row.lease_check = Some(pushed.lease_until);
                self.lease_checks.entry(pushed.lease_until).or_default().push(*uid);
            }
            if before != Some((pushed.ready, pushed.observed_at_ms)) {
                let lag = Duration::from_millis(now.wall_ms.saturating_sub(pushed.observed_at_ms));
                self.timings.push(Timing::Lag(Source::Pushed, lag));
                row.ahead_since = (!row.entry.confirmed()).then_some(now.uptime);
            }
        }
        if row.entry.has_published_addresses() {
            // Nothing but the verdict can have changed.
            judge(&mut self.groups, &mut self.dirty, row, now.uptime);
        } else {
            self.refresh(uid, now.uptime);
        }
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
        while let Some(due) = self.lease_checks.first_entry().filter(|due| *due.key() <= uptime) {
            let (check, uids) = due.remove_entry();
            uids.iter().for_each(|uid| self.check_lease(uid, check, uptime));
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

    fn check_lease(&mut self, uid: &PodUid, check: Duration, uptime: Duration) {
        let Some(row) = self.rows.get_mut(uid).filter(|row| row.lease_check == Some(check)) else { return };
        let end = row.entry.pushed.as_ref().map(|pushed| pushed.lease_until).filter(|end| *end > uptime);
        row.lease_check = end;
        match end {
            Some(end) => self.lease_checks.entry(end).or_default().push(*uid),
            None => {
                self.leased -= 1;
                if row.entry.observed.is_none() {
                    self.remove_row(uid);
                } else {
                    self.refresh(uid, uptime);
                }
            }
        }
    }

    /// When [`Table::expire`] next has something to do.
    pub fn next_expiry(&self) -> Option<Duration> {
        let lease = self.lease_checks.first_key_value().map(|(until, _)| *until);
        let gone = self.gone_order.front().map(|(since, _)| *since + GONE_FOR);
        lease.into_iter().chain(gone).min()
    }

    /// Takes what has changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        self.settle();
        let mut groups = Vec::with_capacity(self.dirty.len() + self.removed.len());
        // A Service that went and came back is told as both.
        for (key, index) in std::mem::take(&mut self.removed) {
            groups.push(GroupChange { index, what: GroupWhat::Gone(key) });
        }
        for index in self.dirty.drain(..) {
            // One that went, or whose place was given out again since, may be here for nothing.
            let Some(group) = self.groups.get_mut(index.0).filter(|group| group.queued) else { continue };
            group.queued = false;
            let endpoints = std::mem::take(&mut group.changed);
            let service = std::mem::take(&mut group.service_changed);
            let snapshot = Arc::new(group.snapshot.clone());
            groups.push(GroupChange { index, what: GroupWhat::Now { snapshot, service, endpoints } });
        }
        Changes { groups, timings: std::mem::take(&mut self.timings) }
    }

    /// The entry of a pod.
    pub fn entry(&self, uid: &PodUid) -> Option<&Entry> {
        self.rows.get(uid).map(|row| &row.entry)
    }

    /// The endpoints of a Service; those that slices name as they were when changes were taken last.
    pub fn group(&self, key: &GroupKey) -> Option<&GroupSnapshot> {
        self.group_indices.get(key).map(|index| &self.groups[index.0].snapshot)
    }

    /// How much there is of everything.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            pods: self.rows.len(),
            leased: self.leased,
            services: self.groups.len(),
            gone: self.gone.len(),
            gone_evicted: self.gone_evicted,
        }
    }

    fn observe(&mut self, observation: Arc<Observation>, seen_in: ListEpoch, now: Now) {
        let uid = *observation.pod.uid();
        let row = match self.rows.entry(uid) {
            hashbrown::hash_map::Entry::Occupied(row) => row.into_mut(),
            hashbrown::hash_map::Entry::Vacant(place) => {
                enter_namespace(&mut self.namespaces, observation.pod.namespace(), uid);
                place.insert(Row::new(observation.pod.namespace()))
            }
        };
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
        let mut chosen = Vec::new();
        if let Some(namespace) = self.namespaces.get(&row.namespace) {
            for (key, value) in labels {
                let services = namespace.services.get(&(Arc::clone(key), Arc::clone(value)));
                let indices = services.into_iter().flatten().filter_map(|key| self.group_indices.get(key));
                chosen.extend(indices.copied().filter(|index| {
                    self.groups[index.0].service.as_ref().is_some_and(|service| service.selects(labels))
                }));
            }
        }
        for group in row.groups().into_iter().filter(|group| !chosen.contains(group)) {
            self.leave(uid, group);
        }
        self.refresh_in(uid, &chosen, uptime);
    }

    /// Brings a pod's endpoints up to date with its entry, in the Services that it belongs to.
    fn refresh(&mut self, uid: &PodUid, uptime: Duration) {
        let Some(row) = self.rows.get(uid) else { return };
        let groups = row.groups();
        self.refresh_in(uid, &groups, uptime);
    }

    /// Brings a pod's endpoints up to date with its entry; `groups` are all the Services that choose it.
    fn refresh_in(&mut self, uid: &PodUid, groups: &[GroupIndex], uptime: Duration) {
        let Some(row) = self.rows.get_mut(uid) else { return };
        let Some(observed) = &row.entry.observed else { return };
        let verdict = row.entry.verdict(uptime);
        row.verdict = Some(verdict);
        for &index in groups {
            let group = &mut self.groups[index.0];
            let Some(service) = &group.service else { continue };
            let facts = EndpointFacts {
                group: group.key.clone(),
                id: EndpointId::Pod(*uid),
                pod: Some(observed.pod.clone()),
                addresses: row.entry.addresses().to_vec(),
                ports: service.resolve(observed),
                revision: Arc::clone(&observed.revision),
            };
            let held = row.memberships.iter_mut().find(|membership| membership.group == index);
            let facts = match &held {
                Some(held) if *held.facts == facts => Arc::clone(&held.facts),
                Some(_) | None => Arc::new(facts),
            };
            let endpoint = Endpoint::new(Arc::clone(&facts), verdict);
            let membership =
                Membership { group: index, slot: put_endpoint(&mut self.dirty, group, index, endpoint), facts };
            match held {
                Some(held) => *held = membership,
                None => row.memberships.push(membership),
            }
        }
    }

    /// Takes a pod out of a Service.
    fn leave(&mut self, uid: &PodUid, group: GroupIndex) {
        if let Some(row) = self.rows.get_mut(uid)
            && let Some(at) = row.membership(group)
        {
            row.memberships.swap_remove(at);
        }
        self.remove_endpoint(group, &EndpointId::Pod(*uid));
    }

    fn remove_endpoint(&mut self, index: GroupIndex, id: &EndpointId) {
        let Some(group) = self.groups.get_mut(index.0) else { return };
        if group.snapshot.remove(id, &mut group.free_slots) {
            mark(&mut self.dirty, group, index, EndpointChange::Gone(id.clone()));
        }
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
        self.leased -= usize::from(row.lease_check.is_some());
        for membership in &row.memberships {
            self.remove_endpoint(membership.group, &EndpointId::Pod(*uid));
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
                let index = self.open_group(&key);
                let group = &mut self.groups[index.0];
                group.seen_in = self.service_lists.begun;
                let before = group.service.replace(Arc::clone(&service));
                if before.as_ref() == Some(&service) {
                    return;
                }
                group.snapshot.set_service(Arc::clone(&service));
                group.service_changed = true;
                queue(&mut self.dirty, group, index);
                let namespace = self.namespaces.entry(Arc::clone(&key.namespace)).or_default();
                if let Some(before) = before {
                    namespace.remove_service(&before);
                }
                namespace.insert_service(&service);
                self.choose_again(&service, index, uptime);
                self.rebuild_slices(index);
            }
            Change::Gone(key) => self.remove_service(&key, uptime),
            Change::ListDone => {
                let listed = self.service_lists.begun;
                let unlisted = |g: &Group| g.service.is_some() && g.seen_in < listed;
                let gone: Vec<GroupKey> =
                    self.groups.iter().filter(|(_, g)| unlisted(g)).map(|(_, g)| g.key.clone()).collect();
                gone.iter().for_each(|key| self.remove_service(key, uptime));
            }
        }
    }

    /// The place of a Service, new or not.
    fn open_group(&mut self, key: &GroupKey) -> GroupIndex {
        if let Some(index) = self.group_indices.get(key) {
            return *index;
        }
        let index = GroupIndex(self.groups.insert(Group {
            key: key.clone(),
            service: None,
            snapshot: GroupSnapshot::empty(key.clone()),
            free_slots: Vec::new(),
            service_changed: false,
            changed: Vec::new(),
            queued: true,
            seen_in: ListEpoch::default(),
        }));
        self.dirty.push(index);
        self.group_indices.insert(key.clone(), index);
        index
    }

    fn remove_service(&mut self, key: &GroupKey, uptime: Duration) {
        let Some(&index) = self.group_indices.get(key) else { return };
        let Some(service) = self.groups[index.0].service.clone() else { return };
        // A Service without selector chooses nobody: its members leave it first, then it goes.
        self.choose_again(&Service::new(key.clone()), index, uptime);
        self.groups.remove(index.0);
        self.group_indices.remove(key);
        self.removed.push((key.clone(), index));
        if let Some(namespace) = self.namespaces.get_mut(&key.namespace) {
            namespace.remove_service(&service);
        }
        self.drop_empty_namespace(&key.namespace);
    }

    /// Goes through a namespace's pods for a Service whose selector or ports are new.
    fn choose_again(&mut self, service: &Service, index: GroupIndex, uptime: Duration) {
        let pods: Vec<PodUid> = match self.namespaces.get(&service.key.namespace) {
            Some(namespace) => namespace.pods.iter().cloned().collect(),
            None => return,
        };
        for uid in pods {
            let Some(row) = self.rows.get(&uid) else { continue };
            let chosen = row.entry.observed.as_ref().is_some_and(|o| service.selects(&o.labels));
            match (row.membership(index).is_some(), chosen) {
                (true, false) => self.leave(&uid, index),
                (_, true) => {
                    let mut groups = row.groups();
                    if !groups.contains(&index) {
                        groups.push(index);
                    }
                    self.refresh_in(&uid, &groups, uptime);
                }
                (false, false) => {}
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
        let Some(&index) = self.group_indices.get(key) else { return };
        if self.groups[index.0].service.as_ref().is_some_and(|service| service.selector.is_none()) {
            self.resliced.insert(key.clone());
        }
    }

    /// Makes endpoints of the slices that have changed. Not with each slice: all of a Service's are gone through, and the list of
    /// a large one has a thousand of them.
    fn settle(&mut self) {
        for key in std::mem::take(&mut self.resliced) {
            if let Some(&index) = self.group_indices.get(&key) {
                self.rebuild_slices(index);
            }
        }
    }

    /// Brings the endpoints that slices name up to date, for a Service that chooses no pods itself.
    fn rebuild_slices(&mut self, index: GroupIndex) {
        let group = &self.groups[index.0];
        if group.service.as_ref().is_none_or(|service| service.selector.is_some()) {
            // What was there by slices goes; what the selector chose stays.
            return self.retain_endpoints(index, &HashMap::new());
        }
        let mut wanted: HashMap<EndpointId, Endpoint> = HashMap::new();
        let mut addresses: HashMap<IpAddr, Vec<EndpointId>> = HashMap::new();
        let slices = self.slices_of.get(&group.key).into_iter().flatten().filter_map(|key| self.slices.get(key));
        for (slice, _) in slices {
            for endpoint in &slice.endpoints {
                let known = addresses.entry(endpoint.address).or_default();
                // An address that is in two slices with the same ports is one endpoint.
                let twin =
                    known.iter().find(|id| wanted.get(id).is_some_and(|held| held.ports == slice.ports)).cloned();
                let endpoint = slice_endpoint(slice, endpoint, twin);
                known.push(endpoint.id.clone());
                // While an endpoint moves between slices it may be in both: the ready one counts.
                let held = wanted.get(&endpoint.id);
                if held.is_none_or(|held| held.verdict.state > endpoint.verdict.state) {
                    wanted.insert(endpoint.id.clone(), endpoint);
                }
            }
        }
        self.retain_endpoints(index, &wanted);
        let group = &mut self.groups[index.0];
        for endpoint in wanted.into_values() {
            put_endpoint(&mut self.dirty, group, index, endpoint);
        }
    }

    /// Takes out the endpoints that neither `wanted` nor the Service's selector names.
    fn retain_endpoints(&mut self, index: GroupIndex, wanted: &HashMap<EndpointId, Endpoint>) {
        let chosen = |id: &EndpointId| match id {
            EndpointId::Pod(uid) => self.rows.get(uid).is_some_and(|row| row.membership(index).is_some()),
            EndpointId::Address(..) => false,
        };
        let endpoints = self.groups[index.0].snapshot.endpoints();
        let stale = endpoints.map(|e| e.id.clone()).filter(|id| !wanted.contains_key(id) && !chosen(id));
        let stale: Vec<EndpointId> = stale.collect();
        stale.iter().for_each(|id| self.remove_endpoint(index, id));
    }
}

impl Row {
    fn new(namespace: &Arc<str>) -> Self {
        Self {
            entry: Entry::default(),
            namespace: Arc::clone(namespace),
            verdict: None,
            memberships: SmallVec::new(),
            seen_in: ListEpoch::default(),
            ahead_since: None,
            lease_check: None,
        }
    }
}

/// A lease lasts for so many seconds at least, and ends with a whole second: leases that end together are looked at
/// together.
fn lease_end(uptime: Duration, lease_seconds: u32) -> Duration {
    let end = uptime + Duration::from_secs(lease_seconds.into());
    Duration::from_secs(end.as_secs() + u64::from(end.subsec_nanos() > 0))
}

fn enter_namespace(namespaces: &mut HashMap<Arc<str>, Namespace>, name: &Arc<str>, uid: PodUid) {
    namespaces.entry(Arc::clone(name)).or_default().pods.insert(uid);
}

/// Reads what an event is about to change or count. In a large table none of it is in a cache, and plain reads wait for
/// memory side by side, where the reference counts behind them would wait one after the other.
fn warm(groups: &Slab<Group>, row: &Row) {
    let places = row.memberships.iter().map(|membership| {
        let group = &groups[membership.group.0];
        Arc::strong_count(&membership.facts) + usize::from(group.queued) + group.snapshot.warm(membership.slot)
    });
    std::hint::black_box(places.sum::<usize>());
}

/// Publishes a pod's verdict, where nothing else about it has changed.
fn judge(groups: &mut Slab<Group>, dirty: &mut Vec<GroupIndex>, row: &mut Row, uptime: Duration) {
    let verdict = row.entry.verdict(uptime);
    if row.verdict.replace(verdict) == Some(verdict) {
        return;
    }
    for Membership { group: index, slot, facts } in &row.memberships {
        let group = &mut groups[index.0];
        group.snapshot.set_verdict(*slot, verdict);
        mark(dirty, group, *index, EndpointChange::Now(Endpoint::new(Arc::clone(facts), verdict)));
    }
}

fn put_endpoint(dirty: &mut Vec<GroupIndex>, group: &mut Group, index: GroupIndex, endpoint: Endpoint) -> Slot {
    let (slot, news) = group.snapshot.put(&endpoint, &mut group.free_slots);
    if news {
        mark(dirty, group, index, EndpointChange::Now(endpoint));
    }
    slot
}

fn mark(dirty: &mut Vec<GroupIndex>, group: &mut Group, index: GroupIndex, change: EndpointChange) {
    queue(dirty, group, index);
    group.changed.push(change);
}

fn queue(dirty: &mut Vec<GroupIndex>, group: &mut Group, index: GroupIndex) {
    if !std::mem::replace(&mut group.queued, true) {
        dirty.push(index);
    }
}

fn slice_endpoint(slice: &Slice, endpoint: &group::SliceEndpoint, twin: Option<EndpointId>) -> Endpoint {
    let id = match &endpoint.pod {
        Some(pod) => EndpointId::Pod(*pod.uid()),
        None => twin.unwrap_or_else(|| EndpointId::Address(slice.key.clone(), endpoint.address)),
    };
    let verdict = Verdict { state: endpoint.state, source: Source::Observed, since_ms: 0, serving: endpoint.serving };
    let facts = EndpointFacts {
        group: slice.group.clone(),
        id,
        pod: endpoint.pod.clone(),
        addresses: vec![endpoint.address],
        ports: slice.ports.clone(),
        revision: "".into(),
    };
    Endpoint::new(Arc::new(facts), verdict)
}

#[cfg(test)]
mod tests;
