//! From a watch's events to the table's updates: pods first into [`Pods`], then to the table, in the stream's
//! order and no faster than the table takes them. An object that cannot be read is left out, alone; a watch that
//! fails is tried again for ever and forgets nothing meanwhile.

use std::collections::HashSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::ResourceExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use metrics::counter;
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;
use tokio::time::Instant;

use super::extract::{ExtractError, RevisionLabels};
use super::health::{Health, Kind};
use super::pods::Pods;
use super::{Shutdown, ended};
use crate::table::owner::TableHandle;
use crate::table::{Change, Update};

/// A watch that was opened again and has not failed for this long works: the stream itself tells nothing before the
/// next change, which in a quiet cluster may be far off. A refused connection fails within microseconds.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Most objects of which it is remembered that a warning was logged; beyond it, all of them may warn again.
const WARNED_MAX: usize = 1024;

/// A kind of object that is watched.
pub(super) trait Subject: ResourceExt + Sized {
    /// Which kind.
    const KIND: Kind;
    /// What the table wants of it.
    type Value;
    /// What goes when it is deleted.
    type Key;
    /// Reduces the object; none when it is of no concern here.
    fn extract(&self, revision_labels: &RevisionLabels) -> Result<Option<Self::Value>, ExtractError>;
    /// What the object goes by.
    fn key(&self) -> Result<Self::Key, ExtractError>;
    /// The update that brings a change of this kind to the table.
    fn update(change: ChangeOf<Self>) -> Update;
}

/// A change to objects of the kind `S`.
pub(super) type ChangeOf<S> = Change<Arc<<S as Subject>::Value>, <S as Subject>::Key>;

/// One event of a watch as a change, or none when it concerns nobody.
pub(super) fn translate<S: Subject>(
    event: &Event<S>,
    revision_labels: &RevisionLabels,
) -> Result<Option<ChangeOf<S>>, ExtractError> {
    Ok(match event {
        Event::Init => Some(Change::ListBegan),
        Event::InitApply(object) => object.extract(revision_labels)?.map(|value| Change::Present(Arc::new(value))),
        Event::InitDone => Some(Change::ListDone),
        // An object that is no longer of concern is gone from here.
        Event::Apply(object) => Some(match object.extract(revision_labels)? {
            Some(value) => Change::Present(Arc::new(value)),
            None => Change::Gone(object.key()?),
        }),
        Event::Delete(object) => Some(Change::Gone(object.key()?)),
    })
}

/// Brings events to [`Pods`] and to the table.
#[derive(Debug, Clone)]
pub(super) struct Deliverer {
    table: TableHandle,
    pods: Pods,
    health: Health,
    revision_labels: RevisionLabels,
    warned: HashSet<String>,
}

impl Deliverer {
    /// One that has delivered nothing.
    pub(super) fn new(table: TableHandle, pods: Pods, health: Health, revision_labels: RevisionLabels) -> Self {
        Self { table, pods, health, revision_labels, warned: HashSet::new() }
    }

    /// Delivers one event; waits while the table is behind.
    pub(super) async fn deliver<S: Subject>(&mut self, event: &Event<S>) {
        let change = match translate(event, &self.revision_labels) {
            Ok(Some(change)) => change,
            Ok(None) => return,
            Err(error) => return self.refuse(event, &error),
        };
        let complete = matches!(change, Change::ListDone);
        let update = S::update(change);
        if let Update::Pod(change) = &update {
            self.pods.apply(change);
        }
        self.table.update(update).await;
        if complete {
            self.health.listed(S::KIND);
        }
    }

    fn refuse<S: Subject>(&mut self, event: &Event<S>, error: &ExtractError) {
        let kind = S::KIND.label();
        counter!("podlight_watch_objects_refused_total", "kind" => kind).increment(1);
        let (Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) = event else { return };
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        if self.warned.len() >= WARNED_MAX {
            self.warned.clear();
        }
        if self.warned.insert(format!("{kind}/{namespace}/{name}")) {
            tracing::warn!(kind, namespace, name, error = error as &dyn std::error::Error, "object is left out");
        }
    }
}

/// Runs one watch until shutdown.
pub(super) async fn run<S>(objects: kube::Api<S>, config: watcher::Config, deliverer: Deliverer, shutdown: Shutdown)
where
    S: Subject + kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let events = kube::runtime::watcher(objects, config);
    tokio::select! {
        () = ended(shutdown) => {}
        () = follow(events, deliverer) => {}
    }
}

async fn follow<S: Subject>(events: impl futures::Stream<Item = watcher::Result<Event<S>>>, mut deliverer: Deliverer) {
    let mut events = pin!(events);
    let mut retry = Retry::new(deliverer.health.clone(), S::KIND);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = retry.settled() => continue,
        };
        match event {
            Some(Ok(event)) => {
                retry.heard(&event);
                deliverer.deliver(&event).await;
            }
            Some(Err(error)) => retry.pause_after(&error).await,
            None => return,
        }
    }
}

/// A watch's failures: when to go on after one, and when a streak of them is over.
struct Retry {
    kind: Kind,
    health: Health,
    backoff: DefaultBackoff,
    recoveries: signal::Receiver<u64>,
    settles_at: Option<Instant>,
}

impl Retry {
    fn new(health: Health, kind: Kind) -> Self {
        let recoveries = health.recoveries();
        Self { kind, health, backoff: DefaultBackoff::default(), recoveries, settles_at: None }
    }

    /// The stream brought something. Not so the beginning of a list, which comes before anything was asked; but then
    /// the list brings something in the end, and silence proves nothing.
    fn heard<S>(&mut self, event: &Event<S>) {
        if matches!(event, Event::Init) {
            self.settles_at = None;
            return;
        }
        self.backoff.reset();
        self.recoveries.mark_unchanged();
        self.works();
    }

    /// Returns when the stream has been silent for long enough after a failure. Pending while there was none.
    async fn settled(&mut self) {
        match self.settles_at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.works();
    }

    fn works(&mut self) {
        self.settles_at = None;
        if self.health.watch_failing(self.kind, false) {
            tracing::info!(kind = self.kind.label(), "the watch works again");
        }
    }

    /// Takes note of a failure, and waits: as long as client-go would, or until the API server is back.
    async fn pause_after(&mut self, error: &watcher::Error) {
        let kind = self.kind.label();
        counter!("podlight_watch_errors_total", "kind" => kind).increment(1);
        if is_expired(error) {
            tracing::info!(kind, "the watch fell behind what the API server remembers; listing again");
        } else if self.health.watch_failing(self.kind, true) {
            tracing::warn!(kind, error = error as &dyn std::error::Error, "the watch fails; what is known is kept");
        } else {
            tracing::debug!(kind, error = error as &dyn std::error::Error, "the watch still fails");
        }
        let pause = self.backoff.next().unwrap_or(SETTLED_AFTER);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = self.recoveries.changed() => self.backoff.reset(),
        }
        self.settles_at = Some(Instant::now() + SETTLED_AFTER);
    }
}

/// Whether the API server has compacted away where the watch was: an ordinary event, after which it lists again.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

#[cfg(test)]
mod tests;
