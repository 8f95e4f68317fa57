//! How the endpoints of one target are reached: on which address and port, and how good each is.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::table::entry::State;
use crate::table::group::{Endpoint, Family};

/// How good an endpoint is; the best there are take the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// It is ready.
    Ready,
    /// Not ready, but its Service publishes it nevertheless.
    Published,
    /// On its way out, and answering still (KEP-1669).
    Leaving,
}

impl Tier {
    pub(super) const ALL: [Self; 3] = [Self::Ready, Self::Published, Self::Leaving];
}

/// How endpoints are reached, the same for all of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reach {
    /// Families of addresses, the preferred first.
    pub(super) families: Vec<Family>,
    /// Name of the Service port.
    pub(super) port_name: Arc<str>,
    /// Number on the pods, where the Service has no ports to go by.
    pub(super) pod_port: Option<u16>,
    /// Whether endpoints that are not ready are to be reached too.
    pub(super) publish_not_ready: bool,
    /// Most requests of one endpoint.
    pub(super) concurrency: Option<NonZeroU32>,
    /// Pools of each backend.
    pub(super) workers: usize,
}

impl Reach {
    pub(super) fn most(&self) -> u32 {
        self.concurrency.map_or(u32::MAX, NonZeroU32::get)
    }

    /// By the Service's families in their order, else by whatever address the endpoint has; and the first of the other
    /// family.
    pub(super) fn addresses(&self, endpoint: &Endpoint) -> Option<(SocketAddr, Option<SocketAddr>)> {
        let port = self.pod_port.or_else(|| endpoint.tcp_port(&self.port_name))?;
        let of = |family: &Family| endpoint.addresses.iter().find(|ip| Family::of(ip) == *family);
        let ip: &IpAddr = self.families.iter().find_map(of).or_else(|| endpoint.addresses.first())?;
        let other = endpoint.addresses.iter().find(|other| Family::of(other) != Family::of(ip));
        Some((SocketAddr::new(*ip, port), other.map(|other| SocketAddr::new(*other, port))))
    }

    /// None when nothing may be sent to it.
    pub(super) fn tier(&self, endpoint: &Endpoint) -> Option<Tier> {
        match endpoint.verdict.state {
            State::Ready => Some(Tier::Ready),
            State::NotReady => self.publish_not_ready.then_some(Tier::Published),
            State::Draining | State::Terminating => endpoint.verdict.serving.then_some(Tier::Leaving),
        }
    }
}
