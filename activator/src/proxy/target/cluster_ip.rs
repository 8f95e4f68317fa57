//! The Service's virtual address as a way to its pods. Which pod it leads to is not ours to say, and whether it leads
//! anywhere yet shows only when it is tried.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, BackendId, Way};
use super::grant::{Grant, Place};
use super::quarantine::{Quarantine, Trust};
use super::view::BackendView;
use crate::table::entry::Source;

/// The virtual address, if the Service has one.
#[derive(Debug)]
pub(super) struct ClusterIp {
    backend: Option<Arc<Backend>>,
    in_flight: u32,
    quarantine: Quarantine,
}

impl ClusterIp {
    pub(super) fn new() -> Self {
        Self { backend: None, in_flight: 0, quarantine: Quarantine::flat() }
    }

    /// Moves it to another address, or makes its connections anew.
    pub(super) fn seat(&mut self, address: Option<SocketAddr>, afresh: bool, workers: usize) {
        let held = self.backend.take();
        self.backend = match (held, address) {
            (Some(held), Some(address)) if held.address() == address && !afresh => Some(held),
            (held, address) => {
                held.iter().for_each(|held| held.abandon());
                self.quarantine.lift();
                address.map(|address| Backend::new((address, None), None, workers))
            }
        };
    }

    pub(super) fn id(&self) -> Option<&BackendId> {
        self.backend.as_ref().map(|backend| backend.id())
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Its record.
    pub(super) fn quarantine(&mut self) -> &mut Quarantine {
        &mut self.quarantine
    }

    /// When time alone changes whether it takes requests.
    pub(super) fn until(&self) -> Option<Duration> {
        self.quarantine.until()
    }

    /// Whether it is neither shut nor being tried after that.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.quarantine.trust(), Trust::Open | Trust::Half)
    }

    /// A place on it, if it is live. How many requests it may have is for others to say.
    pub(super) fn pick(&mut self, now: Duration) -> Option<Grant> {
        let backend = Arc::clone(self.backend.as_ref().filter(|_| self.is_live())?);
        self.in_flight += 1;
        let epoch = self.quarantine.sent(now);
        let probe = self.quarantine.trust() != Trust::Open;
        Some(Grant { backend, place: Place::ClusterIp, epoch, probe, guess: false, source: Source::Observed })
    }

    pub(super) fn release(&mut self) {
        self.in_flight -= 1;
    }

    pub(super) fn retire(&self) {
        self.backend.iter().for_each(|backend| backend.retire());
    }

    pub(super) fn view(&self, now: Duration) -> Option<BackendView> {
        self.backend.as_ref().map(|backend| BackendView {
            pod: None,
            uid: None,
            address: Some(backend.address().to_string()),
            way: Way::ClusterIp,
            state: None,
            source: None,
            since_ms: 0,
            in_flight: self.in_flight,
            quarantine_seconds: self.quarantine.seconds(now),
        })
    }
}
