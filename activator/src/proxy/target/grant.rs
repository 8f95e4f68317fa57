//! A place for one request, as the pure parts of a target hand it out.

use std::sync::Arc;

use super::backend::Backend;
use super::quarantine::Epoch;
use crate::table::entry::Source;

/// Where a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// An endpoint, by its slot.
    Slot(u32),
    /// The Service's virtual address.
    ClusterIp,
}

/// A place on a backend for one request. Whoever has it must give it back.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) backend: Arc<Backend>,
    pub(super) place: Place,
    pub(super) epoch: Epoch,
    /// Whether others wait for what becomes of it.
    pub(super) probe: bool,
    /// Nobody says that anything listens there.
    pub(super) guess: bool,
    /// Whose word the endpoint's readiness rests on.
    pub(super) source: Source,
}
