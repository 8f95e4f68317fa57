//! What all targets share: the clock, the bound on held requests in total, and the way to those who wake targets later
//! or ask for them to be scaled up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::gauge;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Target;
use super::state::Bounds;

/// Bounds of all targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldConfig {
    /// Most requests held for one target.
    pub max_held_per_target: usize,
    /// Most requests held in total.
    pub max_held: usize,
    /// How long after the API server has called an endpoint ready its ClusterIP may still not lead there.
    pub cluster_ip_lag: Duration,
    /// Workers that send requests: each has its own connections to each backend.
    pub workers: usize,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self { max_held_per_target: 10_000, max_held: 20_000, cluster_ip_lag: Duration::from_secs(10), workers: 1 }
    }
}

/// A target that wants to be woken at a certain time.
#[derive(Debug)]
pub struct Alarm {
    /// When.
    pub(crate) at: Instant,
    /// Which.
    pub(crate) target: Arc<Target>,
}

/// What targets want done by others. Each target has few alarms and at most one wish to be scaled under way.
#[derive(Debug)]
pub struct Errands {
    /// For whoever keeps the time.
    pub alarms: mpsc::UnboundedReceiver<Alarm>,
    /// For whoever asks.
    pub scale: mpsc::UnboundedReceiver<Arc<Target>>,
}

/// What all targets share.
#[derive(Debug)]
pub struct Hub {
    bounds: Bounds,
    started: Instant,
    held: AtomicUsize,
    max_held: usize,
    alarms: mpsc::UnboundedSender<Alarm>,
    scale: mpsc::UnboundedSender<Arc<Target>>,
}

impl Hub {
    /// Nothing is held yet.
    pub fn new(config: &HoldConfig) -> (Arc<Self>, Errands) {
        let (alarms, alarms_for_others) = mpsc::unbounded_channel();
        let (scale, scale_for_others) = mpsc::unbounded_channel();
        let bounds =
            Bounds { held: config.max_held_per_target, cluster_ip_lag: config.cluster_ip_lag, workers: config.workers };
        let max_held = config.max_held;
        let hub = Self { bounds, started: Instant::now(), held: AtomicUsize::new(0), max_held, alarms, scale };
        (Arc::new(hub), Errands { alarms: alarms_for_others, scale: scale_for_others })
    }

    /// Requests held now, of all targets.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Room for one more held request, until the permit is dropped.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Permit> {
        let more = |held: usize| (held < self.max_held).then_some(held + 1);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        gauge!("podlight_proxy_held").increment(1.0);
        Some(Permit(Arc::clone(self)))
    }

    /// Has a target ticked later. Nobody keeps the time any longer only when all goes down.
    pub(super) fn alarm(&self, at: Duration, target: &Arc<Target>) {
        let _ = self.alarms.send(Alarm { at: self.started + at, target: Arc::clone(target) });
    }

    /// Has a target scaled up.
    pub(super) fn scale(&self, target: &Arc<Target>) {
        let _ = self.scale.send(Arc::clone(target));
    }
}

/// Room for one held request.
#[derive(Debug)]
pub(super) struct Permit(Arc<Hub>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
        gauge!("podlight_proxy_held").decrement(1.0);
    }
}
