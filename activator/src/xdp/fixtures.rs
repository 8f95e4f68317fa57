//! A table with its readers and a clock of its own, for tests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podlight_proto::PodRef;

use super::place::Place;
use crate::table::entry::{Labels, Now, Observation, Phase, ReadyCondition};
use crate::table::group::{GroupKey, Service, Slice, SliceEndpoint, SliceKey};
use crate::table::snapshot::{Feed, Groups, Moment, Publisher};
use crate::table::{Change, Changes, Pacing, Table, Update};

/// A table that publishes when it is told to.
pub(super) struct World {
    pub(super) table: Table,
    publisher: Publisher,
    pub(super) groups: Groups,
    pub(super) feed: Feed,
    versions: u64,
    now: Moment,
}

impl World {
    pub(super) fn new() -> Self {
        let (publisher, groups, feed) = Publisher::new();
        let now = Moment { nanos: 1_000_000_000 };
        Self { table: Table::new(Pacing::default()), publisher, groups, feed, versions: 0, now }
    }

    pub(super) fn now(&self) -> Moment {
        self.now
    }

    pub(super) fn set(&mut self, now: Moment) {
        self.now = now;
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.nanos += u64::try_from(time.as_nanos()).expect("short");
    }

    /// Applies and publishes, as the owner does, and says that this is all.
    pub(super) fn update(&mut self, update: Update) {
        self.apply(update);
        self.complete();
    }

    pub(super) fn apply(&mut self, update: Update) {
        self.table.apply(update, Now { uptime: Duration::from_nanos(self.now.nanos), wall_ms: 0 });
        let changes: Changes = self.table.take_changes();
        self.publisher.publish(changes);
    }

    pub(super) fn complete(&self) {
        self.publisher.complete(self.now);
    }

    pub(super) fn service(&mut self, name: &str, selector: Option<&str>) {
        self.update(service(name, selector));
    }

    pub(super) fn pod(&mut self, pod: &Pod) {
        let update = self.observed(pod);
        self.update(update);
    }

    pub(super) fn observed(&mut self, pod: &Pod) -> Update {
        self.versions += 1;
        Update::Pod(Change::Present(Arc::new(pod.observation(self.versions))))
    }
}

pub(super) fn service(name: &str, selector: Option<&str>) -> Update {
    let selector = selector.map(|app| Labels::from([("app".into(), app.into())]));
    Update::Service(Change::Present(Arc::new(Service { selector, ..Service::new(GroupKey::new("shop", name)) })))
}

pub(super) fn slice(service: &str, name: &str, endpoints: &[(&str, bool)]) -> Update {
    let endpoint = |(address, ready): &(&str, bool)| SliceEndpoint {
        address: ip(address),
        pod: None,
        state: if *ready { crate::table::entry::State::Ready } else { crate::table::entry::State::NotReady },
        serving: *ready,
    };
    Update::Slice(Change::Present(Arc::new(Slice {
        key: SliceKey { namespace: "shop".into(), name: name.into() },
        group: GroupKey::new("shop", service),
        ports: Vec::new(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    })))
}

/// A pod as the API server has it.
#[derive(Debug, Clone)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) app: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ready: bool,
    pub(super) terminating: bool,
    pub(super) ended: bool,
}

impl Pod {
    pub(super) fn new(name: &str, app: &str, address: &str, ready: bool) -> Self {
        let addresses = vec![ip(address)];
        Self { name: name.into(), app: app.into(), addresses, ready, terminating: false, ended: false }
    }

    pub(super) fn reference(&self) -> PodRef {
        PodRef::new("shop", &self.name, &format!("uid-{}", self.name)).expect("valid")
    }

    fn observation(&self, resource_version: u64) -> Observation {
        Observation {
            pod: self.reference(),
            resource_version,
            service_account: "default".into(),
            phase: if self.ended { Phase::Ended } else { Phase::Alive },
            terminating_since_ms: self.terminating.then_some(1),
            addresses: self.addresses.clone(),
            labels: Labels::from([("app".into(), self.app.as_str().into())]),
            revision: "".into(),
            ready: Some(ReadyCondition { ready: self.ready, since_seconds: 1 }),
            gates_open: true,
            has_exec_probe: false,
            has_readiness_probe: true,
            ports: Vec::new(),
        }
    }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn place(path: &str) -> Place {
    Place { at: None, path: path.into() }
}
