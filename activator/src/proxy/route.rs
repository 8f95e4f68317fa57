//! From the host of a request to the target that takes it. Readers see an immutable table behind one atomic load; the
//! table is made of persistent maps, so that a change of one Service among 10 000 copies a few nodes. Of Services that
//! claim one host the oldest has it, the others are told, and the next oldest gets it when that one goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

mod claims;
mod host;

pub use claims::RouteTable;
pub use host::HostPattern;

use super::annotations::TargetFault;
use super::target::{Refusal, Target};
use crate::table::group::{GroupKey, Service};

type Map<K, V> = imbl::GenericHashMap<K, V, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// Why no target takes a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// What was sent is no host.
    #[error("the host is malformed")]
    Malformed,
    /// The cluster has not been listed yet: there may be a Service that has that host.
    #[error("the cluster has not been listed yet")]
    NotListed,
    /// No Service has that host; the host in its normal form.
    #[error("no Service takes requests for {0}")]
    Unknown(String),
    /// The Service that has it can take no requests, and why.
    #[error("Service {namespace}/{name} takes no requests: {why}", namespace = .0.namespace, name = .0.service, why = .1)]
    Unusable(GroupKey, Arc<str>),
}

impl RouteError {
    /// As in metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed-host",
            Self::NotListed => "not-listed",
            Self::Unknown(_) => "unknown-host",
            Self::Unusable(..) => "unusable-service",
        }
    }
}

/// What takes a Service's requests.
#[derive(Debug, Clone)]
pub enum Taker {
    /// A target.
    Target(Arc<Target>),
    /// Nothing, and why.
    Nobody(Arc<str>),
}

/// One Service that opted in.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The Service.
    pub service: Arc<Service>,
    /// What takes its requests.
    pub taker: Taker,
    /// The hosts that it has.
    pub hosts: Vec<HostPattern>,
    /// What its owner should know.
    pub faults: Vec<TargetFault>,
}

#[derive(Debug, Clone, Default)]
struct Table {
    exact: Map<Arc<str>, GroupTaker>,
    below: Map<Arc<str>, GroupTaker>,
    listed: Map<GroupKey, Arc<Listed>>,
}

#[derive(Debug, Clone)]
struct GroupTaker {
    key: GroupKey,
    taker: Taker,
}

/// Every host, for readers.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    table: Arc<ArcSwap<Table>>,
    complete: Arc<AtomicBool>,
}

impl Routes {
    /// The target that takes requests for a host, as sent: with or without a port, in any case.
    ///
    /// # Errors
    /// [`RouteError`]; no request goes to any other target instead.
    pub fn find(&self, host: &str) -> Result<Arc<Target>, RouteError> {
        let host = host::normal(host).ok_or(RouteError::Malformed)?;
        let table = self.table.load();
        match table.exact.get(&*host).or_else(|| table.find_below(&host)) {
            Some(GroupTaker { taker: Taker::Target(target), .. }) => Ok(Arc::clone(target)),
            Some(GroupTaker { taker: Taker::Nobody(why), key }) => {
                Err(RouteError::Unusable(key.clone(), Arc::clone(why)))
            }
            None if !self.complete.load(Ordering::Acquire) => Err(RouteError::NotListed),
            None => Err(RouteError::Unknown(host.into_owned())),
        }
    }

    /// Every Service is known from now on: a host that nobody has is nobody's.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// Every Service that opted in, in no order.
    pub fn listed(&self) -> Vec<Arc<Listed>> {
        self.table.load().listed.values().cloned().collect()
    }

    /// A Service that opted in.
    pub fn get(&self, key: &GroupKey) -> Option<Arc<Listed>> {
        self.table.load().listed.get(key).cloned()
    }

    /// Refuses all held requests, and all that come.
    pub fn shut_down(&self) {
        for listed in self.listed() {
            if let Taker::Target(target) = &listed.taker {
                target.close(Refusal::ShuttingDown);
            }
        }
    }
}

impl Table {
    /// The longest suffix wins.
    fn find_below(&self, host: &str) -> Option<&GroupTaker> {
        if self.below.is_empty() {
            return None;
        }
        host.match_indices('.').find_map(|(dot, _)| self.below.get(&host[dot + 1..]))
    }
}

#[cfg(test)]
mod tests;
