//! What readers see of the table: immutable pictures behind one atomic load, and a bounded log of changes that wakes
//! those who follow it. Readers never lock the pictures; the log's lock is held only to copy a few items.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use tokio::sync::watch;

use super::group::{Endpoint, EndpointId, GroupKey, GroupName, GroupSnapshot};
use super::{Changes, EndpointChange, GroupChange, GroupIndex, GroupWhat};

/// Most changes kept for readers that fall behind or come back: at 10 000 changes a second, more than a second.
const FEED_ITEMS: usize = 16_384;

type ByKey = HashMap<GroupKey, Published>;

/// One Service as published.
type Published = Arc<ArcSwap<GroupSnapshot>>;

/// All Services, for readers.
#[derive(Debug, Clone)]
pub struct Groups {
    by_key: Arc<ArcSwap<ByKey>>,
}

impl Groups {
    /// The endpoints of a Service as they are now.
    pub fn get(&self, namespace: &str, service: &str) -> Option<Arc<GroupSnapshot>> {
        self.by_key.load().get(&GroupName { namespace, service }).map(|group| group.load_full())
    }

    /// Every Service, in no order.
    pub fn all(&self) -> Vec<Arc<GroupSnapshot>> {
        self.by_key.load().values().map(|group| group.load_full()).collect()
    }

    /// How many Services there are.
    pub fn count(&self) -> usize {
        self.by_key.load().len()
    }
}

/// One entry of the log.
#[derive(Debug, Clone)]
pub struct FeedItem {
    /// Its number, one more than the one before it.
    pub id: u64,
    /// When the table had it and began to make it visible.
    pub at: Moment,
    /// What happened.
    pub what: FeedWhat,
}

/// What happened to a Service.
#[derive(Debug, Clone)]
pub enum FeedWhat {
    /// It came or changed itself; with its endpoints as they were then.
    Service(Arc<GroupSnapshot>),
    /// It is gone, with all its endpoints.
    ServiceGone(GroupKey),
    /// An endpoint came or changed.
    Endpoint(Endpoint),
    /// An endpoint of this Service is gone.
    EndpointGone(GroupKey, EndpointId),
}

impl FeedItem {
    /// The Service it is about.
    pub fn group(&self) -> &GroupKey {
        match &self.what {
            FeedWhat::Service(snapshot) => snapshot.key(),
            FeedWhat::ServiceGone(key) | FeedWhat::EndpointGone(key, _) => key,
            FeedWhat::Endpoint(endpoint) => &endpoint.group,
        }
    }
}

/// A moment on the clock that counts since the machine was started, suspensions included (`CLOCK_BOOTTIME`): the one
/// that the kernel's readers of the table have too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment {
    /// Nanoseconds since the start.
    pub nanos: u64,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let [seconds, nanos] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or_default());
        Self { nanos: seconds.saturating_mul(1_000_000_000).saturating_add(nanos) }
    }

    /// How long from this moment to a later one; nothing when it is not later.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.nanos.saturating_sub(self.nanos))
    }
}

/// A reader asked for changes that the log no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the changes asked for are no longer held")]
pub struct Lagged;

/// The log of changes, for readers.
#[derive(Debug, Clone)]
pub struct Feed {
    items: Arc<Mutex<VecDeque<FeedItem>>>,
    newest: watch::Receiver<u64>,
    complete: watch::Receiver<Moment>,
}

impl Feed {
    /// Number of the newest change; 0 before the first.
    pub fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Up to `most` changes with numbers greater than `id`, oldest first.
    ///
    /// # Errors
    /// [`Lagged`] when some of them have been dropped, or when `id` is beyond the newest.
    pub fn since(&self, id: u64, most: usize) -> Result<Vec<FeedItem>, Lagged> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = items.back().map_or(0, |item| item.id);
        let oldest = items.front().map_or(1, |item| item.id);
        if id + 1 < oldest || id > newest {
            return Err(Lagged);
        }
        let from = usize::try_from(id + 1 - oldest).map_err(|_| Lagged)?;
        Ok(items.iter().skip(from).take(most).cloned().collect())
    }

    /// A moment before which everything that the table was told is in the log by now: some half of a second ago
    /// ([`PULSE`](super::owner::PULSE)) unless the table's owner hangs or is behind.
    pub fn complete(&self) -> Moment {
        *self.complete.borrow()
    }

    /// Waits for a [`Feed::complete`] later than one that is known. Forever when the table's owner has ended.
    pub async fn wait_complete(&self, known: Moment) {
        let mut complete = self.complete.clone();
        if complete.wait_for(|complete| *complete > known).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until there is a change with a number greater than `id`. Forever when the table's owner has ended.
    pub async fn wait_beyond(&self, id: u64) {
        let mut newest = self.newest.clone();
        if newest.wait_for(|newest| *newest > id).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The writing side: one, with the table's owner.
#[derive(Debug)]
pub(crate) struct Publisher {
    by_key: Arc<ArcSwap<ByKey>>,
    /// The same by the table's index, so that a change finds its Service without a look-up.
    by_index: Vec<Option<Published>>,
    items: Arc<Mutex<VecDeque<FeedItem>>>,
    newest: watch::Sender<u64>,
    complete: watch::Sender<Moment>,
    next_id: u64,
}

impl Publisher {
    pub(crate) fn new() -> (Self, Groups, Feed) {
        let by_key = Arc::new(ArcSwap::from_pointee(HashMap::new()));
        let items = Arc::new(Mutex::new(VecDeque::new()));
        let (newest, newest_reader) = watch::channel(0);
        let (complete, complete_reader) = watch::channel(Moment::default());
        let groups = Groups { by_key: Arc::clone(&by_key) };
        let feed = Feed { items: Arc::clone(&items), newest: newest_reader, complete: complete_reader };
        (Self { by_key, by_index: Vec::new(), items, newest, complete, next_id: 1 }, groups, feed)
    }

    /// Says that all that was told before a moment has been published.
    pub(crate) fn complete(&self, moment: Moment) {
        self.complete.send_replace(moment);
    }

    /// Makes changes visible: pictures first, then the log, then the wake-up.
    pub(crate) fn publish(&mut self, changes: Changes) {
        if changes.groups.is_empty() {
            return;
        }
        let at = Moment::now();
        let added = self.publish_membership(&changes.groups);
        let mut fresh: Vec<FeedItem> = Vec::with_capacity(changes.groups.len());
        for GroupChange { index, what } in changes.groups {
            let mut log = |what| {
                fresh.push(FeedItem { id: self.next_id, at, what });
                self.next_id += 1;
            };
            let (snapshot, service, endpoints) = match what {
                GroupWhat::Gone(key) => {
                    log(FeedWhat::ServiceGone(key));
                    continue;
                }
                GroupWhat::Now { snapshot, service, endpoints } => (snapshot, service, endpoints),
            };
            if service || added.contains(&index) {
                log(FeedWhat::Service(Arc::clone(&snapshot)));
            }
            for change in endpoints {
                log(match change {
                    EndpointChange::Now(endpoint) => FeedWhat::Endpoint(endpoint),
                    EndpointChange::Gone(id) => FeedWhat::EndpointGone(snapshot.key().clone(), id),
                });
            }
            if let Some(Some(published)) = self.by_index.get(index.get()) {
                published.store(snapshot);
            }
        }
        let newest = self.next_id - 1;
        {
            let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
            items.extend(fresh);
            let excess = items.len().saturating_sub(FEED_ITEMS);
            items.drain(..excess);
        }
        self.newest.send_replace(newest);
    }

    /// Brings the map of Services up to date; copies it only when Services come or go. Returns those that came.
    fn publish_membership(&mut self, changes: &[GroupChange]) -> Vec<GroupIndex> {
        let known = |index: GroupIndex| self.by_index.get(index.get()).is_some_and(Option::is_some);
        if changes.iter().all(|change| matches!(change.what, GroupWhat::Now { .. }) && known(change.index)) {
            return Vec::new();
        }
        let mut by_key = ByKey::clone(&self.by_key.load());
        let mut added = Vec::new();
        for GroupChange { index, what } in changes {
            if self.by_index.len() <= index.get() {
                self.by_index.resize(index.get() + 1, None);
            }
            let place = &mut self.by_index[index.get()];
            match what {
                GroupWhat::Gone(key) => {
                    by_key.remove(key);
                    *place = None;
                }
                GroupWhat::Now { .. } if place.is_some() => {}
                GroupWhat::Now { snapshot, .. } => {
                    let published = Arc::new(ArcSwap::new(Arc::clone(snapshot)));
                    by_key.insert(snapshot.key().clone(), Arc::clone(&published));
                    *place = Some(published);
                    added.push(*index);
                }
            }
        }
        self.by_key.store(Arc::new(by_key));
        added
    }
}

#[cfg(test)]
mod tests;
