//! What a status page shows of the request path: each Service that opted in, with its hosts, settings and faults, and
//! what its endpoints do now.

use serde::Serialize;

use super::annotations::TargetFault;
use super::route::{Listed, Taker};
use super::target::settings::Settings;
use super::target::view::{BackendView, Load};

/// One Service that opted in.
#[derive(Debug, Serialize)]
pub struct TargetView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// The hosts that it has.
    pub hosts: Vec<String>,
    /// How requests reach it; none when it takes none.
    pub settings: Option<Settings>,
    /// What its owner should know.
    pub faults: Vec<TargetFault>,
    /// Requests held.
    pub held: usize,
    /// How long the first of them has been, in seconds.
    pub held_seconds: f64,
    /// Requests under way.
    pub in_flight: u64,
    /// Its endpoints by pod name, then the ClusterIP where it has one; when there are too many, some of them.
    pub backends: Vec<BackendView>,
}

impl TargetView {
    /// A Service as it is now, with at most so many endpoints.
    pub fn of(listed: &Listed, most_backends: usize) -> Self {
        let (settings, load) = match &listed.taker {
            Taker::Target(target) => (Some((*target.settings()).clone()), target.load(most_backends)),
            Taker::Nobody(_) => (None, Load::default()),
        };
        let Load { held, held_seconds, in_flight, backends } = load;
        Self {
            namespace: listed.service.key.namespace.as_ref().to_owned(),
            service: listed.service.key.service.as_ref().to_owned(),
            hosts: listed.hosts.iter().map(ToString::to_string).collect(),
            settings,
            faults: listed.faults.clone(),
            held,
            held_seconds,
            in_flight,
            backends,
        }
    }
}

#[cfg(test)]
mod tests;
