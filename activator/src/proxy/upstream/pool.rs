//! One worker's connections to one backend. A burst to a backend without connections opens a few at once, and as many
//! as it needs where each carries one request; the rest of it waits, and takes what comes first: a connection that was
//! given back, a share of one that was opened, or the turn to open another.
//!
//! Invariants: whoever waits has somebody before it who opens a connection, and learns how that ends; once the pool is
//! retired, whatever comes back to it is closed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{ConnectError, Expected, Http1, Http2, Key, Link, STREAMS};

/// Most idle connections that one worker keeps to one backend.
const MOST_IDLE: usize = 256;

/// How long a connection is kept without a request. Node.js closes after 5 s, most others after a minute or more; a
/// closed one is noticed, so what counts is the descriptors of a backend that is asked no more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Most connections that all workers together open to one backend at a time, those included that it has hardly had the
/// time to accept: half of a backlog that is common among servers (128). Beyond it the kernel drops a SYN, and the next
/// one comes a second later.
const MOST_OPENING: usize = 64;

/// How long a server may take to accept what the kernel has established.
pub(in crate::proxy) const ACCEPTED_AFTER: Duration = Duration::from_millis(5);

/// What a request without a connection does next.
#[derive(Debug)]
pub(in crate::proxy) enum Turn<'a> {
    /// It takes this one.
    Take(Link),
    /// It opens one.
    Open(Opening<'a>),
    /// Nothing: the connection that it waited for could not be opened.
    Failed(ConnectError),
}

/// One worker's connections to one backend.
#[derive(Debug)]
pub struct Pool {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    retired: bool,
    /// By when they came, the latest last.
    idle: VecDeque<(Instant, Http1)>,
    shared: Vec<Http2>,
    /// Whether the worker sweeps this pool.
    swept: bool,
    /// Connections that are being opened, or have been just now.
    opening: usize,
    /// Most of them.
    most_opening: usize,
    /// Whether many requests shared the connection that was opened last.
    shares: Option<bool>,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    told: oneshot::Sender<Told>,
}

#[derive(Debug)]
enum Told {
    Take(Link),
    Open,
    Failed(ConnectError),
}

impl Pool {
    /// One of a backend's pools, of which each worker has one.
    pub fn new(workers: usize) -> Self {
        let most_opening = (MOST_OPENING / workers.max(1)).max(1);
        Self { held: Mutex::new(Held { most_opening, ..Held::default() }) }
    }

    /// Closes idle connections and keeps none from now on; those with requests end after them.
    pub fn retire(&self) {
        self.lock().retired = true;
        self.clear();
    }

    /// Closes idle connections: their other end may be there no more. Shared ones end after their requests.
    pub(in crate::proxy) fn clear(&self) {
        let mut held = self.lock();
        let closed = (std::mem::take(&mut held.idle), std::mem::take(&mut held.shared));
        drop(held);
        drop(closed);
    }

    /// A connection that is there, has room and was used no longer ago than `within`.
    pub(in crate::proxy) fn reuse(&self, key: &Key, within: Duration) -> Option<Link> {
        let mut held = self.lock();
        held.take_idle(key, within).map(Link::Http1).or_else(|| held.share(key).map(Link::Http2))
    }

    /// What to do without one: at once where another connection may be opened, else once that is known.
    pub(in crate::proxy) async fn turn(&self, key: &Key) -> Turn<'_> {
        let wait = {
            let mut held = self.lock();
            if held.may_open(key.expected, held.waiting.len() + 1) {
                held.opening += 1;
                return Turn::Open(Opening::new(self, key.expected));
            }
            let (told, answer) = oneshot::channel();
            held.waiting.push_back(Waiting { key: key.clone(), told });
            Wait { pool: self, expected: key.expected, answer }
        };
        wait.answer().await
    }

    /// Keeps a connection for others. True when the pool has begun to hold something that wants to be swept.
    pub(in crate::proxy) fn put(&self, connection: Http1) -> bool {
        if connection.sender.is_closed() {
            return false;
        }
        let mut held = self.lock();
        if held.retired {
            return false;
        }
        let Some(connection) = held.hand_on(connection) else { return false };
        let crowded = held.idle.len() >= MOST_IDLE;
        let closed = crowded.then(|| held.idle.pop_front());
        held.idle.push_back((Instant::now(), connection));
        let begun = !std::mem::replace(&mut held.swept, true);
        drop(held);
        drop(closed);
        begun
    }

    /// Closes what has been idle for too long or is closed. False once nothing is left to sweep.
    pub(in crate::proxy) fn sweep(&self, now: Instant) -> bool {
        let mut held = self.lock();
        let lasts = |(since, connection): &(Instant, Http1)| {
            !connection.sender.is_closed() && now.saturating_duration_since(*since) < IDLE_TIMEOUT
        };
        held.idle.retain(lasts);
        held.shared.retain(|connection| !connection.sender.is_closed());
        held.swept = !(held.idle.is_empty() && held.shared.is_empty());
        held.swept
    }

    /// Closes half of the idle connections, those idle longest, to make room for others.
    pub(in crate::proxy) fn shed(&self) {
        let mut held = self.lock();
        let closing = held.idle.len().div_ceil(2);
        let closed: Vec<_> = held.idle.drain(..closing).collect();
        drop(held);
        drop(closed);
    }

    /// What had been opened when [`Opening::linger`] was called will have been accepted.
    pub(in crate::proxy) fn accepted(&self) {
        let mut held = self.lock();
        held.opening -= 1;
        held.serve_waiting();
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
        self.shared_now(key)
    }

    fn shared_now(&self, key: &Key) -> Option<Http2> {
        let takes = |connection: &&Http2| connection.key == *key && connection.has_room();
        self.shared.iter().find(takes).filter(|connection| !connection.sender.is_closed()).cloned()
    }

    /// Whether one of `wanting` requests may open another connection. One always may when nobody does.
    fn may_open(&self, expected: Expected, wanting: usize) -> bool {
        let shares = match expected {
            Expected::Http1 => false,
            Expected::Http2 => true,
            // The first one finds out.
            Expected::Either => match self.shares {
                None => return self.opening == 0,
                Some(shares) => shares,
            },
        };
        self.opening < self.most_opening && (!shares || self.opening * STREAMS < wanting)
    }

    /// Gives a connection to whoever waits for one. Back when nobody does.
    fn hand_on(&mut self, mut connection: Http1) -> Option<Http1> {
        while let Some(at) = self.waiting.iter().position(|waiting| waiting.key == connection.key) {
            let waiting = self.waiting.remove(at)?;
            let told = waiting.told.send(Told::Take(Link::Http1(connection)));
            let Err(Told::Take(Link::Http1(back))) = told else { return None };
            connection = back;
        }
        Some(connection)
    }

    /// Gives shares of connections and turns to open others to those who wait, as far as there are any.
    fn serve_waiting(&mut self) {
        while let Some(Waiting { key, .. }) = self.waiting.front() {
            let told = match self.shared_now(key) {
                Some(link) => Told::Take(Link::Http2(link)),
                None if self.may_open(key.expected, self.waiting.len()) => Told::Open,
                None => return,
            };
            let opens = matches!(told, Told::Open);
            let taken = self.waiting.pop_front().is_some_and(|waiting| waiting.told.send(told).is_ok());
            self.opening += usize::from(opens && taken);
        }
    }
}

/// Somebody opens a connection, as long as this is there.
#[derive(Debug)]
pub(in crate::proxy) struct Opening<'a> {
    pool: &'a Pool,
    expected: Expected,
    lingers: bool,
}

impl<'a> Opening<'a> {
    fn new(pool: &'a Pool, expected: Expected) -> Self {
        Self { pool, expected, lingers: false }
    }

    /// It is open. True as [`Pool::put`].
    pub(in crate::proxy) fn done(self, link: &Link) -> bool {
        let mut held = self.pool.lock();
        if self.expected == Expected::Either {
            held.shares = Some(matches!(link, Link::Http2(_)));
        }
        match link {
            Link::Http2(connection) if !held.retired => {
                held.shared.push(connection.clone());
                !std::mem::replace(&mut held.swept, true)
            }
            Link::Http2(_) | Link::Http1(_) => false,
        }
    }

    /// It is open as far as the kernel goes, and takes its place until [`Pool::accepted`] is called.
    pub(in crate::proxy) fn linger(mut self) {
        self.lingers = true;
    }

    /// It could not be opened: those who wait for it learn that.
    pub(in crate::proxy) fn failed(self, error: &ConnectError) {
        let waiting = std::mem::take(&mut self.pool.lock().waiting);
        for waiting in waiting {
            let _ = waiting.told.send(Told::Failed(ConnectError::Others(Box::new(error.clone()))));
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.lingers {
            self.pool.accepted();
        }
    }
}

/// A request that waits. Whatever it was given and did not take goes to the next.
struct Wait<'a> {
    pool: &'a Pool,
    expected: Expected,
    answer: oneshot::Receiver<Told>,
}

impl<'a> Wait<'a> {
    async fn answer(mut self) -> Turn<'a> {
        match (&mut self.answer).await {
            Ok(Told::Take(link)) => Turn::Take(link),
            Ok(Told::Open) => Turn::Open(Opening::new(self.pool, self.expected)),
            Ok(Told::Failed(error)) => Turn::Failed(error),
            Err(_) => unreachable!("whoever waits is told"),
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.answer.close();
        match self.answer.try_recv() {
            Ok(Told::Open) => drop(Opening::new(self.pool, self.expected)),
            // It has not begun to be swept by this: it was in use just now.
            Ok(Told::Take(Link::Http1(connection))) => drop(self.pool.put(connection)),
            Ok(Told::Take(Link::Http2(_)) | Told::Failed(_)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
