//! Connections to backends. Each worker has a [`Pool`] for each backend, so that a request neither waits for another
//! thread nor wakes one. A connection belongs to one life of one pod, one address and one verified name; once the pool
//! is retired, whatever comes back to it is closed.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};

mod connect;
pub mod trust;

use super::forward::Outgoing;
pub(super) use connect::{ConnectError, Dialer, Protocol};
pub(super) use trust::Name;

/// Most idle connections that one worker keeps to one backend.
const MOST_IDLE: usize = 256;

/// How long a connection is kept without a request. Node.js closes after 5 s, most others after a minute or more; a
/// closed one is noticed, so what counts is the descriptors of a backend that is asked no more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

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

/// One worker's connections to one backend.
#[derive(Debug, Default)]
pub struct Pool {
    held: Mutex<Held>,
    /// Held by whoever opens an HTTP/2 connection that the others wait for.
    opening: tokio::sync::Mutex<()>,
    /// Connections that could not be opened.
    failures: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    retired: bool,
    /// By when they came, the latest last.
    idle: VecDeque<(Instant, Http1)>,
    shared: Vec<Http2>,
    /// Whether the worker sweeps this pool.
    swept: bool,
}

impl Pool {
    /// Closes idle connections and keeps none from now on; those with requests end after them.
    pub fn retire(&self) {
        let mut held = self.lock();
        held.retired = true;
        let closed = (std::mem::take(&mut held.idle), std::mem::take(&mut held.shared));
        drop(held);
        drop(closed);
    }

    /// A connection that is there, has room and was used no longer ago than `within`.
    pub(super) fn reuse(&self, key: &Key, within: Duration) -> Option<Link> {
        let mut held = self.lock();
        held.take_idle(key, within).map(Link::Http1).or_else(|| held.share(key).map(Link::Http2))
    }

    /// Keeps a connection for others. True when the pool has begun to hold something that wants to be swept.
    pub(super) fn put(&self, connection: Http1) -> bool {
        if connection.sender.is_closed() {
            return false;
        }
        let mut held = self.lock();
        if held.retired {
            return false;
        }
        let crowded = held.idle.len() >= MOST_IDLE;
        let closed = crowded.then(|| held.idle.pop_front());
        held.idle.push_back((Instant::now(), connection));
        let begun = !std::mem::replace(&mut held.swept, true);
        drop(held);
        drop(closed);
        begun
    }

    /// Offers an HTTP/2 connection to others. True as [`Pool::put`].
    pub(super) fn offer(&self, connection: &Http2) -> bool {
        let mut held = self.lock();
        if held.retired {
            return false;
        }
        held.shared.push(connection.clone());
        !std::mem::replace(&mut held.swept, true)
    }

    /// Closes what has been idle for too long or is closed. False once nothing is left to sweep.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut held = self.lock();
        let lasts = |(since, connection): &(Instant, Http1)| {
            !connection.sender.is_closed() && now.saturating_duration_since(*since) < IDLE_TIMEOUT
        };
        held.idle.retain(lasts);
        held.shared.retain(|connection| !connection.sender.is_closed());
        held.swept = !(held.idle.is_empty() && held.shared.is_empty());
        held.swept
    }

    /// Waits until nobody else opens an HTTP/2 connection here.
    pub(super) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.opening.lock().await
    }

    /// How often opening has failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Opening has failed, for whoever waited for it as well.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn take_idle(&mut self, key: &Key, within: Duration) -> Option<Http1> {
        let mut at = self.idle.len();
        while at > 0 {
            at -= 1;
            let (since, connection) = &self.idle[at];
            if connection.sender.is_closed() {
                self.idle.remove(at);
            } else if connection.sender.is_ready() && connection.key == *key {
                if since.elapsed() > within {
                    return None;
                }
                return self.idle.remove(at).map(|(_, connection)| connection);
            }
        }
        None
    }

    fn share(&mut self, key: &Key) -> Option<Http2> {
        if self.shared.is_empty() {
            return None;
        }
        self.shared.retain(|connection| !connection.sender.is_closed());
        self.shared.iter().find(|connection| connection.key == *key && connection.has_room()).cloned()
    }
}
