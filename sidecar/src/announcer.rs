//! The one [`Readiness`] of the process, joined with the wall clock: probes and the drain request write to it,
//! delivery tasks follow it. Invariant: every statement is made and published in one step, so all see one order.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge};
use podlight_proto::Boot;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::readiness::{AdoptError, Readiness, State, Statement, Thresholds};

/// A handle on the pod's readiness.
#[derive(Debug, Clone)]
pub struct Announcer(watch::Sender<Readiness>);

impl Announcer {
    /// Starts not ready, in a boot that is the wall clock's time.
    pub fn start(probes: &[Thresholds]) -> Self {
        let now = wall_ms();
        let boot = Boot::try_from(now).or(Boot::try_from(1)).expect("1 is a boot");
        gauge!("podlight_sidecar_ready").set(0.0);
        Self(watch::Sender::new(Readiness::start(boot, probes, now)))
    }

    /// Follows the readiness as it changes.
    pub fn follow(&self) -> watch::Receiver<Readiness> {
        self.0.subscribe()
    }

    /// The readiness now.
    pub fn current(&self) -> Readiness {
        self.0.borrow().clone()
    }

    /// Takes a probe's result. Returns whether the probe passes, its thresholds considered.
    pub fn probed(&self, probe: usize, passed: bool) -> bool {
        let mut passing = false;
        let said = self.change(|readiness| {
            let said = readiness.probed(probe, passed, wall_ms());
            passing = readiness.passing(probe);
            said
        });
        if let Some(said) = said {
            info!(state = said.kind.as_str(), order = %said.order, "state changed");
        }
        passing
    }

    /// Takes the request to drain.
    pub fn drain(&self) {
        if let Some(said) = self.change(|readiness| readiness.drain(wall_ms())) {
            info!(order = %said.order, "draining");
        }
    }

    /// Takes the boot after one that holds against ours.
    ///
    /// # Errors
    /// [`AdoptError::Ahead`]; an older boot is none.
    pub fn adopt(&self, held: Boot) -> Result<(), AdoptError> {
        let mut result = Ok(());
        let said = self.change(|readiness| {
            let adopted = readiness.adopt(held, wall_ms());
            result = adopted.map(drop);
            adopted.ok()
        });
        if let Some(said) = said {
            counter!("podlight_sidecar_boots_adopted_total").increment(1);
            warn!(%held, order = %said.order, "another boot of this pod holds: took the next; was the clock set back?");
        }
        result.or_else(|e| if e == AdoptError::Older { Ok(()) } else { Err(e) })
    }

    /// Makes a heartbeat.
    pub fn heartbeat(&self) -> Statement {
        let mut heartbeat = None;
        self.0.send_if_modified(|readiness| {
            heartbeat = Some(readiness.heartbeat());
            false
        });
        heartbeat.expect("the closure has run")
    }

    fn change(&self, change: impl FnOnce(&mut Readiness) -> Option<Statement>) -> Option<Statement> {
        let mut said = None;
        self.0.send_if_modified(|readiness| {
            said = change(readiness);
            gauge!("podlight_sidecar_ready").set(f64::from(u8::from(readiness.state() == State::Ready)));
            said.is_some()
        });
        said
    }
}

/// Milliseconds since the epoch on the node's clock.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
