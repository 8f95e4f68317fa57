//! One place that requests go to, and the connections to it. A backend is one life of one endpoint at one address:
//! another uid, another address or other TLS settings make another backend, so that a connection never carries a
//! request that it was not made for.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;

use crate::proxy::upstream::Pool;
use crate::table::group::EndpointId;

/// What a backend goes by: never used again in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(NonZeroU64);

impl BackendId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(NonZeroU64::new(number).expect("nobody counts so far"))
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which way a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Straight to the endpoint.
    Direct,
    /// Through the Service's virtual address.
    ClusterIp,
}

impl Way {
    /// As in JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::ClusterIp => "cluster-ip",
        }
    }
}

/// One place that requests go to.
#[derive(Debug)]
pub struct Backend {
    id: BackendId,
    address: SocketAddr,
    other: Option<SocketAddr>,
    endpoint: Option<EndpointId>,
    retired: AtomicBool,
    gone: AtomicBool,
    pools: Box<[Pool]>,
}

impl Backend {
    /// A backend with one pool for each of `workers`. Without an endpoint it is a ClusterIP.
    pub(super) fn new(
        (address, other): (SocketAddr, Option<SocketAddr>),
        endpoint: Option<EndpointId>,
        workers: usize,
    ) -> Arc<Self> {
        let pools = std::iter::repeat_with(|| Pool::new(workers)).take(workers.max(1)).collect();
        let (id, retired, gone) = (BackendId::next(), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { id, address, other, endpoint, retired, gone, pools })
    }

    /// What it goes by.
    pub fn id(&self) -> &BackendId {
        &self.id
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same, and the pod's address of the other family, to try where that cannot be reached.
    pub fn addresses(&self) -> (SocketAddr, Option<SocketAddr>) {
        (self.address, self.other)
    }

    /// The endpoint it is a life of; none for a ClusterIP.
    pub fn endpoint(&self) -> Option<&EndpointId> {
        self.endpoint.as_ref()
    }

    /// Which way leads to it.
    pub fn way(&self) -> Way {
        if self.endpoint.is_some() { Way::Direct } else { Way::ClusterIp }
    }

    /// A worker's connections to it. A worker beyond those there are shares another's.
    pub fn pool(&self, worker: usize) -> &Pool {
        &self.pools[worker % self.pools.len()]
    }

    /// False once it drains, is gone or was replaced: its connections carry no other request.
    pub fn usable(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
    }

    /// Once it was replaced or its endpoint removed: what has not been sent to it must not be, since its address may be
    /// another pod's.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It is no more: nothing is begun on it.
    pub(super) fn abandon(&self) {
        self.gone.store(true, Ordering::Release);
        self.retire();
    }

    /// It does not answer: what is kept open to it is closed.
    pub(super) fn disconnect(&self) {
        self.pools.iter().for_each(Pool::clear);
    }

    /// Ends the use of its connections, but for the requests that are on them.
    pub(super) fn retire(&self) {
        if !self.retired.swap(true, Ordering::AcqRel) {
            self.pools.iter().for_each(Pool::retire);
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.retire();
    }
}
