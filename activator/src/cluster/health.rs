//! Whether the cluster is known and whether its API server answers now: latches and flags, set by the watches, the
//! calls and the probe, read by readiness and by ingest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metrics::gauge;
use tokio::sync::watch as signal;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pods.
    Pods,
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
}

impl Kind {
    /// As in metric labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Services => "services",
            Self::Slices => "endpointslices",
        }
    }
}

#[derive(Debug, Default)]
struct Watch {
    listed: AtomicBool,
    failing: AtomicBool,
}

#[derive(Debug)]
struct State {
    watches: [Watch; 3],
    answering: AtomicBool,
    synced: signal::Sender<bool>,
    recoveries: signal::Sender<u64>,
}

/// What is known of the API server's health. Clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<State>);

impl Health {
    /// Nothing listed, and no answer yet.
    pub fn unknown() -> Self {
        Self::with_answer(false)
    }

    /// Nothing listed, but nothing that could fail to answer either.
    pub fn local() -> Self {
        Self::with_answer(true)
    }

    fn with_answer(answering: bool) -> Self {
        let health = Self(Arc::new(State {
            watches: Default::default(),
            answering: AtomicBool::new(answering),
            synced: signal::Sender::new(false),
            recoveries: signal::Sender::new(0),
        }));
        health.publish();
        health
    }

    /// Whether pods, Services and EndpointSlices have each completed a list once.
    pub fn synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Returns when [`Health::synced`] holds.
    pub async fn wait_synced(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Whether the API server answers now: no watch is failing, and the last call or probe was answered.
    pub fn reachable(&self) -> bool {
        self.0.answering.load(Ordering::Relaxed) && self.0.watches.iter().all(|w| !w.failing.load(Ordering::Relaxed))
    }

    /// A list of this kind is complete.
    pub fn listed(&self, kind: Kind) {
        self.watch(kind).listed.store(true, Ordering::Relaxed);
        if self.0.watches.iter().all(|w| w.listed.load(Ordering::Relaxed)) {
            self.0.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
    }

    /// A watch fails or works. True when that is a change.
    pub(super) fn watch_failing(&self, kind: Kind, failing: bool) -> bool {
        gauge!("podlight_watch_up", "kind" => kind.label()).set(if failing { 0.0 } else { 1.0 });
        let changed = self.watch(kind).failing.swap(failing, Ordering::Relaxed) != failing;
        self.publish();
        changed
    }

    /// A call or probe was answered, or was not.
    pub(super) fn answered(&self, answering: bool) {
        if self.0.answering.swap(answering, Ordering::Relaxed) == answering {
            return;
        }
        self.publish();
        if answering {
            tracing::info!("the API server answers");
        } else {
            tracing::warn!("the API server does not answer; what is known of the cluster is kept");
        }
    }

    /// The API server says again that it is ready: failing watches need not sit out their pauses.
    pub(super) fn recovered(&self) {
        self.0.recoveries.send_modify(|n| *n += 1);
    }

    /// Tells of each [`Health::recovered`].
    pub(super) fn recoveries(&self) -> signal::Receiver<u64> {
        self.0.recoveries.subscribe()
    }

    fn watch(&self, kind: Kind) -> &Watch {
        let [pods, services, slices] = &self.0.watches;
        match kind {
            Kind::Pods => pods,
            Kind::Services => services,
            Kind::Slices => slices,
        }
    }

    fn publish(&self) {
        gauge!("podlight_api_reachable").set(if self.reachable() { 1.0 } else { 0.0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_synced_when_all_three_have_listed() {
        let health = Health::unknown();
        health.listed(Kind::Pods);
        health.listed(Kind::Services);
        health.listed(Kind::Services);
        assert!(!health.synced());
        health.listed(Kind::Slices);
        assert!(health.synced());
        health.wait_synced().await;
    }

    #[test]
    fn one_failing_watch_or_unanswered_call_makes_it_unreachable() {
        let health = Health::unknown();
        assert!(!health.reachable());
        health.answered(true);
        assert!(health.reachable());
        assert!(health.watch_failing(Kind::Slices, true));
        assert!(!health.watch_failing(Kind::Slices, true));
        assert!(!health.reachable());
        health.watch_failing(Kind::Slices, false);
        assert!(health.reachable());
        health.answered(false);
        assert!(!health.reachable());
    }
}
