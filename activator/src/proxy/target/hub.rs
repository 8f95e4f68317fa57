//! What all targets share: the clock, the bound on held requests in total, and the way to those who wake targets later
//! or ask for them to be scaled up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Target;
use super::meters::{Meters, OfMode};
use super::settings::Mode;
use super::state::Bounds;

/// Bounds of all targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldConfig {
    /// Most requests held for one target.
    pub max_held_per_target: usize,
    /// Most requests held in total. One target never holds more than is left of it for the others.
    pub max_held: usize,
    /// Most bytes of bodies that may have come ahead of held requests' being read, in total.
    pub max_held_body: u64,
    /// How long after the API server has called an endpoint ready its ClusterIP may still not lead there.
    pub cluster_ip_lag: Duration,
    /// Workers that send requests: each has its own connections to each backend.
    pub workers: usize,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self {
            max_held_per_target: 10_000,
            max_held: 20_000,
            max_held_body: 512 << 20,
            cluster_ip_lag: Duration::from_secs(10),
            workers: 1,
        }
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
    held_body: AtomicU64,
    max_held_body: u64,
    meters: Meters,
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
        let hub = Self {
            bounds,
            started: Instant::now(),
            held: AtomicUsize::new(0),
            max_held: config.max_held,
            held_body: AtomicU64::new(0),
            max_held_body: config.max_held_body,
            meters: Meters::new(),
            alarms,
            scale,
        };
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

    /// What is counted of targets in a mode.
    pub(super) fn meters(&self, mode: Mode) -> &OfMode {
        self.meters.of(mode)
    }

    /// Room for one more held request of a target that holds so many, until the permit is dropped. No target ever gets
    /// more room than is left for all others, so that one in a rush takes half of it at most, and two a third each
    /// (dynamic thresholds: Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
    /// `ahead` are the bytes of its body that may be in memory meanwhile. It counts as held in `mode` until then.
    pub(super) fn reserve(self: &Arc<Self>, holds: usize, ahead: u32, mode: Mode) -> Option<Permit> {
        let more = |held: usize| (holds < self.max_held.saturating_sub(held)).then_some(held + 1);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.meters(mode).held();
        // From here on dropping it gives back what it has.
        let mut permit = Permit { hub: Arc::clone(self), ahead: 0, mode };
        if ahead > 0 {
            let more = |body: u64| Some(body + u64::from(ahead)).filter(|body| *body <= self.max_held_body);
            self.held_body.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
            permit.ahead = ahead;
        }
        Some(permit)
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
pub(super) struct Permit {
    hub: Arc<Hub>,
    ahead: u32,
    mode: Mode,
}

impl Permit {
    /// What is counted of targets as this one was when the request came.
    pub(super) fn meters(&self) -> &OfMode {
        self.hub.meters(self.mode)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.hub.held_body.fetch_sub(u64::from(self.ahead), Ordering::Relaxed);
        self.hub.held.fetch_sub(1, Ordering::Relaxed);
        self.meters().left();
    }
}
