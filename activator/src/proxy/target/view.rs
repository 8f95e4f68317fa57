//! What one target does now, for people to look at.

use serde::Serialize;

use super::backend::Way;
use crate::table::entry::{Source, State};

/// Held requests and those under way.
#[derive(Debug, Default, Serialize)]
pub struct Load {
    /// Requests held.
    pub held: usize,
    /// How long the first of them has been, in seconds.
    pub held_seconds: f64,
    /// Requests under way.
    pub in_flight: u64,
    /// Where they are.
    pub backends: Vec<BackendView>,
}

/// One endpoint, or the ClusterIP.
#[derive(Debug, Serialize)]
pub struct BackendView {
    /// The pod's name; none for an endpoint that is no pod, and for the ClusterIP.
    pub pod: Option<String>,
    /// The pod's uid.
    pub uid: Option<String>,
    /// Where it is reached; none while the endpoint has no address or not the port.
    pub address: Option<String>,
    /// Which way leads to it.
    pub way: Way,
    /// What it is to a router; none for the ClusterIP, and for an endpoint that is gone but for its last requests.
    pub state: Option<State>,
    /// Whose word that is.
    pub source: Option<Source>,
    /// Since when, in milliseconds since the epoch; 0 when nobody said.
    pub since_ms: u64,
    /// Requests under way.
    pub in_flight: u32,
    /// How long it will get no requests, in seconds; none when it is not in quarantine.
    pub quarantine_seconds: Option<f64>,
}
