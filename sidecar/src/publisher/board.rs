//! How the replicas stand, for whoever waits or asks: the drain, the admin port, the publisher itself.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::gauge;
use reqwest::Url;
use serde::{Serialize, Serializer};
use tokio::time::Instant;

/// How one replica stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    /// The name that it gives itself.
    pub replica: Option<String>,
    /// What became of the newest state there.
    pub newest: Newest,
    /// When the newest state was to be told first, if it is undelivered. Serialized as an age.
    #[serde(rename = "undelivered_ms", serialize_with = "age_ms")]
    pub undelivered_since: Option<Instant>,
    /// When the open circuit is tried again, if it is open. Serialized as the time until then.
    #[serde(rename = "retry_in_ms", serialize_with = "left_ms")]
    pub retry_at: Option<Instant>,
    /// Why the last attempt failed, until one succeeds.
    pub trouble: Option<String>,
    /// The replicas that it names.
    #[serde(skip)]
    pub(super) peers: Vec<Url>,
}

/// What became of the newest state at a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Newest {
    /// Not told yet.
    #[default]
    Undelivered,
    /// Told and acknowledged.
    Acknowledged,
    /// Acknowledged, and it was the drain.
    Drained,
    /// The replica will not take it.
    Refused,
    /// The replica will not take it, and it was the drain.
    DrainRefused,
}

/// The replicas and how they stand.
pub type Board = BTreeMap<Url, Status>;

/// Publishes the gauges that change by themselves as time goes by.
pub fn measure(board: &Board) {
    let open = board.values().filter(|status| status.retry_at.is_some()).count();
    let oldest = board.values().filter_map(|status| status.undelivered_since).min();
    let age = oldest.map_or(Duration::ZERO, |since| since.elapsed());
    gauge!("podlight_sidecar_replicas").set(board.len() as f64);
    gauge!("podlight_sidecar_circuit_open").set(open as f64);
    gauge!("podlight_sidecar_undelivered_age_seconds").set(age.as_secs_f64());
}

fn age_ms<S: Serializer>(since: &Option<Instant>, serializer: S) -> Result<S::Ok, S::Error> {
    since.map(|since| since.elapsed().as_millis()).serialize(serializer)
}

fn left_ms<S: Serializer>(until: &Option<Instant>, serializer: S) -> Result<S::Ok, S::Error> {
    until.map(|until| until.duration_since(Instant::now()).as_millis()).serialize(serializer)
}
