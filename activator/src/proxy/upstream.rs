//! Connections to backends. Each worker has a [`Pool`] for each backend, so that a request neither waits for another
//! thread nor wakes one. A connection belongs to one life of one pod, one address and one verified name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::client::conn::{http1, http2};

mod connect;
mod pool;
mod slots;
pub mod trust;

use super::forward::Outgoing;
pub(super) use connect::{ConnectError, Dialer, Protocol};
pub use pool::Pool;
pub(super) use pool::{ACCEPTED_AFTER, Turn};
pub(super) use slots::Slots;
pub(super) use trust::Name;

/// A request that cannot be sent again only goes on a connection that was used this recently: the shortest time-out
/// that is common among servers is 5 s, and a request must not meet the close on its way.
pub(super) const SURELY_OPEN: Duration = Duration::from_secs(4);

/// Most requests at once on one HTTP/2 connection, however many the backend would take: beyond, a second one spreads
/// them over the backend's threads.
const STREAMS: usize = 100;

/// What a connection may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// Where it leads.
    pub(super) address: SocketAddr,
    /// Where it leads when that cannot be reached: the same pod's address of the other family.
    pub(super) other: Option<SocketAddr>,
    /// The name that was verified, and with which roots; none in the clear.
    pub(super) name: Option<Name>,
    /// Which version of HTTP was asked for: a Service may come to speak another.
    pub(super) expected: Expected,
}

/// Which version of HTTP a connection will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Http1,
    Http2,
    /// What is agreed on with TLS.
    Either,
}

/// An HTTP/1.1 connection that carries one request at a time.
#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) key: Key,
    pub(super) sender: http1::SendRequest<Outgoing>,
}

/// A share of an HTTP/2 connection; counts until it is dropped.
#[derive(Debug, Clone)]
pub(super) struct Http2 {
    key: Key,
    pub(super) sender: http2::SendRequest<Outgoing>,
    /// How many streams the backend takes; its holders are counted.
    streams: Arc<AtomicUsize>,
}

impl Http2 {
    pub(super) fn is_tls(&self) -> bool {
        self.key.name.is_some()
    }

    /// Whether it takes another request. Two holders are none: the pool, and the task that moves the bytes.
    fn has_room(&self) -> bool {
        Arc::strong_count(&self.streams) - 2 < STREAMS.min(self.streams.load(Ordering::Relaxed))
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(super) enum Link {
    Http1(Http1),
    Http2(Http2),
}
