//! What readers see of the table: immutable pictures behind one atomic load, a wake-up per Service, and a
//! bounded log of changes. Readers never lock the pictures; the log's lock is held only to copy a few items.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::group::{Endpoint, EndpointId, GroupKey, GroupName, GroupSnapshot};
use super::{Changes, GroupChange};

/// Most changes kept for readers that fall behind or come back: at 10 000 changes a second, more than a second.
const FEED_ITEMS: usize = 16_384;

type ByKey = HashMap<GroupKey, Arc<Published>>;

/// One Service as published.
#[derive(Debug)]
struct Published {
    current: ArcSwap<GroupSnapshot>,
    /// Wakes those who wait for this Service, and no others. Closed when the Service goes.
    changed: watch::Sender<()>,
}

/// All Services, for readers.
#[derive(Debug, Clone)]
pub struct Groups {
    by_key: Arc<ArcSwap<ByKey>>,
    /// Wakes those who wait for a Service that does not exist yet.
    added: watch::Receiver<()>,
}

impl Groups {
    /// The endpoints of a Service as they are now.
    pub fn get(&self, namespace: &str, service: &str) -> Option<Arc<GroupSnapshot>> {
        self.by_key.load().get(&GroupName { namespace, service }).map(|group| group.current.load_full())
    }

    /// Every Service, in no order.
    pub fn all(&self) -> Vec<Arc<GroupSnapshot>> {
        self.by_key.load().values().map(|group| group.current.load_full()).collect()
    }

    /// Waits for a ready endpoint of a Service with the TCP port `port`, and returns that endpoint itself, so
    /// that no second look-up can come out otherwise. None at the deadline.
    pub async fn wait_ready(&self, key: &GroupKey, port: &str, deadline: Instant) -> Option<Arc<Endpoint>> {
        tokio::time::timeout_at(deadline, self.ready(key, port)).await.ok()
    }

    async fn ready(&self, key: &GroupKey, port: &str) -> Arc<Endpoint> {
        let mut added = self.added.clone();
        loop {
            added.mark_unchanged();
            let group = self.by_key.load().get(key).cloned();
            let Some(group) = group else {
                if added.changed().await.is_err() {
                    // The owner has ended: nothing will ever be ready again.
                    std::future::pending::<()>().await;
                }
                continue;
            };
            let mut changed = group.changed.subscribe();
            // The sender lives in `Published`: let go of it, so that its end is seen.
            let weak = Arc::downgrade(&group);
            drop(group);
            while let Some(group) = weak.upgrade() {
                changed.mark_unchanged();
                if let Some(endpoint) = group.current.load().ready_with_port(port) {
                    return Arc::clone(endpoint);
                }
                drop(group);
                if changed.changed().await.is_err() {
                    break;
                }
            }
        }
    }
}

/// One entry of the log.
#[derive(Debug)]
pub struct FeedItem {
    /// Its number, one more than the one before it.
    pub id: u64,
    /// The Service it is about.
    pub group: GroupKey,
    /// What happened.
    pub what: FeedWhat,
}

/// What happened to a Service.
#[derive(Debug, Clone)]
pub enum FeedWhat {
    /// It came or changed itself; with its endpoints as they were then.
    Service(Arc<GroupSnapshot>),
    /// It is gone, with all its endpoints.
    ServiceRemoved,
    /// An endpoint came or changed; gone when none.
    Endpoint(EndpointId, Option<Arc<Endpoint>>),
}

/// A reader asked for changes that the log no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the changes asked for are no longer held")]
pub struct Lagged;

/// The log of changes, for readers.
#[derive(Debug, Clone)]
pub struct Feed {
    items: Arc<Mutex<VecDeque<Arc<FeedItem>>>>,
    newest: watch::Receiver<u64>,
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
    pub fn since(&self, id: u64, most: usize) -> Result<Vec<Arc<FeedItem>>, Lagged> {
        let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = items.back().map_or(0, |item| item.id);
        let oldest = items.front().map_or(1, |item| item.id);
        if id + 1 < oldest || id > newest {
            return Err(Lagged);
        }
        let from = usize::try_from(id + 1 - oldest).map_err(|_| Lagged)?;
        Ok(items.iter().skip(from).take(most).cloned().collect())
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
pub(super) struct Publisher {
    by_key: Arc<ArcSwap<ByKey>>,
    added: watch::Sender<()>,
    items: Arc<Mutex<VecDeque<Arc<FeedItem>>>>,
    newest: watch::Sender<u64>,
    next_id: u64,
}

impl Publisher {
    pub(super) fn new() -> (Self, Groups, Feed) {
        let by_key = Arc::new(ArcSwap::from_pointee(HashMap::new()));
        let items = Arc::new(Mutex::new(VecDeque::new()));
        let (newest, newest_reader) = watch::channel(0);
        let (added, added_reader) = watch::channel(());
        let groups = Groups { by_key: Arc::clone(&by_key), added: added_reader };
        let feed = Feed { items: Arc::clone(&items), newest: newest_reader };
        (Self { by_key, added, items, newest, next_id: 1 }, groups, feed)
    }

    /// Makes changes visible: pictures first, then the log, then the wake-ups.
    pub(super) fn publish(&mut self, changes: Changes) {
        if changes.groups.is_empty() {
            return;
        }
        let added = self.publish_membership(&changes.groups);
        let mut fresh: Vec<FeedItem> = Vec::new();
        for change in changes.groups {
            let GroupChange { key, snapshot, service, endpoints } = change;
            let mut log = |what| {
                fresh.push(FeedItem { id: self.next_id, group: key.clone(), what });
                self.next_id += 1;
            };
            let Some(snapshot) = snapshot else {
                log(FeedWhat::ServiceRemoved);
                continue;
            };
            if service || added.contains(&key) {
                log(FeedWhat::Service(Arc::clone(&snapshot)));
            }
            endpoints.into_iter().for_each(|change| log(FeedWhat::Endpoint(change.id, change.endpoint)));
            if let Some(published) = self.by_key.load().get(&key) {
                published.current.store(snapshot);
                published.changed.send_replace(());
            }
        }
        let newest = self.next_id - 1;
        {
            let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
            items.extend(fresh.into_iter().map(Arc::new));
            let excess = items.len().saturating_sub(FEED_ITEMS);
            items.drain(..excess);
        }
        self.newest.send_replace(newest);
        if !added.is_empty() {
            self.added.send_replace(());
        }
    }

    /// Brings the map of Services up to date; copies it only when Services come or go. Returns those that came.
    fn publish_membership(&self, changes: &[GroupChange]) -> Vec<GroupKey> {
        let held = self.by_key.load();
        if changes.iter().all(|change| change.snapshot.is_some() && held.contains_key(&change.key)) {
            return Vec::new();
        }
        let mut by_key = ByKey::clone(&held);
        let mut added = Vec::new();
        for GroupChange { key, snapshot, .. } in changes {
            let Some(snapshot) = snapshot else {
                by_key.remove(key);
                continue;
            };
            if !by_key.contains_key(key) {
                let current = ArcSwap::new(Arc::clone(snapshot));
                by_key.insert(key.clone(), Arc::new(Published { current, changed: watch::Sender::new(()) }));
                added.push(key.clone());
            }
        }
        self.by_key.store(Arc::new(by_key));
        added
    }
}

#[cfg(test)]
mod tests;
