//! Keeps routes and targets up to date with the table: one task, which also keeps the time for targets with held
//! requests. Entries of the table's log only say where to look; what is applied is the picture as it is then, so that
//! nothing ever goes backwards, and a log that was outrun costs one look at everything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use hashbrown::HashMap;
use metrics::gauge;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::annotations::{self, Defaults, Reporter, TargetFault, TargetSpec};
use super::route::{RouteTable, Routes, Taker};
use super::target::{Alarm, Errands, HoldConfig, Hub, Refusal, Target};
use super::wake::{self, Scaler};
use crate::table::group::{EndpointId, GroupKey, GroupSnapshot, Service};
use crate::table::snapshot::{Feed, FeedItem, FeedWhat, Groups};

/// Most entries of the log taken before readers see what they came to.
const BATCH: usize = 1024;

/// What all routes and targets have in common.
#[derive(Debug, Clone)]
pub struct FollowConfig {
    /// What holds where annotations say nothing.
    pub defaults: Defaults,
    /// Bounds of holding.
    pub hold: HoldConfig,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
}

/// Starts following, from the table as it is now: routes are there when this returns. Both tasks run until they are
/// aborted.
pub fn spawn(
    config: &FollowConfig,
    groups: Groups,
    feed: Feed,
    scaler: Arc<dyn Scaler>,
    reporter: Arc<dyn Reporter>,
) -> Following {
    let (follower, scale) = Follower::new(config, groups, feed, reporter);
    let (routes, hub) = (follower.table.routes().clone(), Arc::clone(&follower.hub));
    let follower = tokio::spawn(follower.run());
    let waker = tokio::spawn(wake::run(scaler, scale));
    Following { routes, hub, follower, waker }
}

/// What following comes to.
#[derive(Debug)]
pub struct Following {
    /// The routes.
    pub routes: Routes,
    /// What all targets share.
    pub hub: Arc<Hub>,
    /// The task that follows the table.
    pub follower: JoinHandle<()>,
    /// The task that has targets scaled up.
    pub waker: JoinHandle<()>,
}

/// One Service that opted in.
#[derive(Debug)]
struct Watched {
    service: Arc<Service>,
    spec: TargetSpec,
    target: Option<Arc<Target>>,
    /// The faults that its owner has been told of.
    told: Vec<TargetFault>,
}

/// The one writer of routes and targets.
pub struct Follower {
    defaults: Defaults,
    groups: Groups,
    feed: Feed,
    /// Number of the last entry of the log that was applied.
    applied: u64,
    table: RouteTable,
    watched: HashMap<GroupKey, Watched>,
    hub: Arc<Hub>,
    alarms: mpsc::UnboundedReceiver<Alarm>,
    clock: BinaryHeap<Reverse<Due>>,
    reporter: Arc<dyn Reporter>,
}

impl Follower {
    /// A follower that has applied the table as it is now, and the targets that want to be scaled up from now on.
    pub fn new(
        config: &FollowConfig,
        groups: Groups,
        feed: Feed,
        reporter: Arc<dyn Reporter>,
    ) -> (Self, mpsc::UnboundedReceiver<Arc<Target>>) {
        let (hub, Errands { alarms, scale }) = Hub::new(&config.hold);
        let mut follower = Self {
            defaults: config.defaults.clone(),
            groups,
            feed,
            applied: 0,
            table: RouteTable::new(&config.cluster_domain),
            watched: HashMap::new(),
            hub,
            alarms,
            clock: BinaryHeap::new(),
            reporter,
        };
        follower.resync();
        (follower, scale)
    }

    /// What readers have.
    pub fn routes(&self) -> &Routes {
        self.table.routes()
    }

    /// Follows for ever.
    pub async fn run(mut self) {
        loop {
            // However busy the table is, time goes on.
            while let Ok(alarm) = self.alarms.try_recv() {
                self.set(alarm);
            }
            self.ring();
            let next = self.clock.peek().map(|Reverse(due)| due.at);
            let time = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.feed.wait_beyond(self.applied) => self.catch_up(),
                Some(alarm) = self.alarms.recv() => self.set(alarm),
                () = time => {}
            }
        }
    }

    fn set(&mut self, Alarm { at, target }: Alarm) {
        self.clock.push(Reverse(Due { at, target }));
    }

    fn ring(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(due)) = self.clock.peek() {
            if due.at > now {
                return;
            }
            if let Some(Reverse(due)) = self.clock.pop() {
                due.target.tick();
            }
        }
    }

    /// Applies what the log has beyond what is applied.
    fn catch_up(&mut self) {
        match self.feed.since(self.applied, BATCH) {
            Ok(items) => {
                for item in &items {
                    self.apply(item);
                    self.applied = item.id;
                }
                self.table.publish();
            }
            Err(lagged) => {
                tracing::debug!(%lagged, "following the table from a picture of all of it");
                self.resync();
            }
        }
    }

    /// Applies all there is. Whatever comes meanwhile is in the log, beyond the number that is read first.
    fn resync(&mut self) {
        self.applied = self.feed.newest();
        let all = self.groups.all();
        let there: std::collections::HashSet<&GroupKey> = all.iter().map(|snapshot| snapshot.key()).collect();
        let gone: Vec<GroupKey> = self.watched.keys().filter(|key| !there.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.forget(key));
        for snapshot in &all {
            self.refresh(snapshot.key(), Some(snapshot));
        }
        self.table.publish();
    }

    fn apply(&mut self, item: &FeedItem) {
        let GroupKey { namespace, service } = item.group();
        let snapshot = self.groups.get(namespace, service);
        match &item.what {
            FeedWhat::Service(_) | FeedWhat::ServiceGone(_) => self.refresh(item.group(), snapshot.as_ref()),
            FeedWhat::Endpoint(endpoint) => self.refresh_endpoint(item.group(), &endpoint.id, snapshot),
            FeedWhat::EndpointGone(key, id) => self.refresh_endpoint(key, id, snapshot),
        }
    }

    fn refresh_endpoint(&self, key: &GroupKey, id: &EndpointId, snapshot: Option<Arc<GroupSnapshot>>) {
        let Some(watched) = self.watched.get(key) else { return };
        // Of another Service under the same name: its own entry follows.
        let same = snapshot.filter(|s| s.service().is_some_and(|service| service.uid == watched.service.uid));
        if let (Some(snapshot), Some(target)) = (same, &watched.target) {
            target.endpoint(id, snapshot.endpoint(id));
        }
    }

    /// Brings one Service up to date.
    fn refresh(&mut self, key: &GroupKey, snapshot: Option<&Arc<GroupSnapshot>>) {
        let service = snapshot.and_then(|snapshot| snapshot.service());
        let service = service.filter(|service| annotations::opts_in(service));
        let (Some(snapshot), Some(service)) = (snapshot, service) else { return self.forget(key) };
        if self.watched.get(key).is_some_and(|watched| watched.service.uid != service.uid) {
            self.forget(key);
        }
        let held = self.watched.get(key);
        if held.is_none_or(|held| held.service != *service) {
            self.configure(service, snapshot);
        } else if let Some(target) = held.and_then(|held| held.target.as_ref()) {
            target.endpoints(snapshot);
        }
    }

    /// A Service that opted in came or changed itself.
    fn configure(&mut self, service: &Arc<Service>, snapshot: &GroupSnapshot) {
        let held = self.watched.remove(&service.key);
        let (spec, faults) = annotations::parse(service, held.as_ref().map(|held| &held.spec));
        let (held, told) = held.map_or((None, Vec::new()), |held| (held.target, held.told));
        let (target, taker) = match annotations::settle(service, &spec, &self.defaults) {
            Ok(settings) => {
                let target = match held {
                    Some(target) => {
                        target.configure(service, settings);
                        target
                    }
                    None => Target::new(service, settings, &self.hub),
                };
                target.endpoints(snapshot);
                (Some(Arc::clone(&target)), Taker::Target(target))
            }
            Err(why) => {
                held.iter().for_each(|target| target.close(Refusal::Gone));
                (None, Taker::Nobody(why))
            }
        };
        let hosts = spec.hosts.clone().unwrap_or_default();
        let watched = Watched { service: Arc::clone(service), spec, target, told };
        self.watched.insert(service.key.clone(), watched);
        let concerned = self.table.put(service, taker, &hosts, faults);
        concerned.iter().for_each(|key| self.tell(key));
    }

    /// A Service went, or opts in no longer.
    fn forget(&mut self, key: &GroupKey) {
        let Some(watched) = self.watched.remove(key) else { return };
        watched.target.iter().for_each(|target| target.close(Refusal::Gone));
        count(&watched.told, -1.0);
        let concerned = self.table.remove(key);
        concerned.iter().for_each(|key| self.tell(key));
    }

    /// Tells a Service's owner of its faults when they are others than before: of all of them, since only what is told
    /// last may be read.
    fn tell(&mut self, key: &GroupKey) {
        let (Some(watched), Some(listed)) = (self.watched.get_mut(key), self.table.get(key)) else { return };
        if watched.told == listed.faults {
            return;
        }
        // The new ones first: there may not be room for all.
        let (mut telling, known): (Vec<_>, Vec<_>) =
            listed.faults.iter().cloned().partition(|fault| !watched.told.contains(fault));
        for fault in &telling {
            let (namespace, service) = (&*key.namespace, &*key.service);
            tracing::warn!(namespace, service, %fault, "a Service cannot be routed as it asks");
        }
        count(&watched.told, -1.0);
        count(&listed.faults, 1.0);
        watched.told.clone_from(&listed.faults);
        telling.extend(known);
        if !telling.is_empty() {
            self.reporter.report(&watched.service, &telling);
        }
    }
}

fn count(faults: &[TargetFault], by: f64) {
    for fault in faults {
        gauge!("podlight_proxy_route_faults", "kind" => fault.label()).increment(by);
    }
}

/// A target to tick at a certain time.
#[derive(Debug)]
struct Due {
    at: Instant,
    target: Arc<Target>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

#[cfg(test)]
mod tests;
