//! The connections that are open, within their bounds: in total and by source. When a bound is hit, the
//! connection that has been idle longest makes room; when none is idle, the newcomer goes. Choosing costs a scan of
//! the pool once per [`CANDIDATES`] evictions, so that a flood does not buy a scan each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::Notify;

/// Most idle connections that one scan remembers.
const CANDIDATES: usize = 64;

/// How long a scan that found nothing idle is believed.
const BARREN_FOR: Duration = Duration::from_millis(50);

/// What the server knows of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    id: u64,
    source: IpAddr,
    opened: Instant,
    in_flight: AtomicU32,
    /// When it last became idle, in milliseconds after `opened` of the registry.
    idle_since_ms: AtomicU64,
    /// A request head had both kinds of length.
    pub(crate) conflicting: AtomicBool,
    /// The peer takes nothing of what is written to it just now.
    pub(crate) stalled: AtomicBool,
    /// HTTP asks for the next request, and there is none.
    pub(crate) resting: AtomicBool,
    /// Asks the connection to finish what it has begun and close.
    pub(crate) close: Notify,
}

impl Connection {
    /// Whether no request is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0
    }

    /// Whether everything asked has been answered, the answers have been taken, and nothing more is asked.
    pub(crate) fn rests(&self) -> bool {
        self.is_idle() && self.resting.load(Ordering::Acquire) && !self.stalled.load(Ordering::Acquire)
    }

    /// A request has begun; it ends when the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    fn idle_since(&self) -> u64 {
        self.idle_since_ms.load(Ordering::Relaxed)
    }
}

/// One request under way.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Connection>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let now_ms = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since_ms.store(now_ms, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Which bound a newcomer hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    Total,
    Source,
}

impl Bound {
    /// As in metric labels.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Source => "source",
        }
    }
}

/// The open connections of one listener.
#[derive(Debug)]
pub(crate) struct Connections {
    opened: Instant,
    most: usize,
    most_per_source: usize,
    pools: Mutex<Pools>,
    open: Gauge,
    evicted: Counter,
}

#[derive(Debug, Default)]
struct Pools {
    next_id: u64,
    all: Pool,
    by_source: HashMap<IpAddr, Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    members: HashMap<u64, Arc<Connection>>,
    /// Idle ones found by the last scan, longest idle last, with since when they were.
    candidates: Vec<(u64, Arc<Connection>)>,
    barren_until: Option<Instant>,
}

impl Pool {
    /// The connection that has been idle longest, as of the last scan, and still is.
    fn longest_idle(&mut self) -> Option<Arc<Connection>> {
        if let Some(found) = self.next_candidate() {
            return Some(found);
        }
        if self.barren_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        self.candidates =
            self.members.values().filter(|c| c.is_idle()).map(|c| (c.idle_since(), Arc::clone(c))).collect();
        if self.candidates.len() > CANDIDATES {
            self.candidates.select_nth_unstable_by_key(CANDIDATES, |(since, _)| *since);
            self.candidates.truncate(CANDIDATES);
        }
        self.candidates.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        let found = self.next_candidate();
        self.barren_until = found.is_none().then(|| Instant::now() + BARREN_FOR);
        found
    }

    fn next_candidate(&mut self) -> Option<Arc<Connection>> {
        while let Some((since, connection)) = self.candidates.pop() {
            let unchanged = connection.is_idle() && connection.idle_since() == since;
            if unchanged && self.members.contains_key(&connection.id) {
                return Some(connection);
            }
        }
        None
    }
}

impl Connections {
    /// A registry with its bounds, counted under the listener's name.
    pub(crate) fn new(listener: &'static str, most: usize, most_per_source: usize) -> Self {
        Self {
            opened: Instant::now(),
            most,
            most_per_source,
            pools: Mutex::default(),
            open: gauge!("podlight_connections", "listener" => listener),
            evicted: counter!("podlight_connections_evicted_total", "listener" => listener),
        }
    }

    /// Takes a newcomer in, at the cost of an idle connection if need be.
    ///
    /// # Errors
    /// The bound that is hit when nobody is idle.
    pub(crate) fn admit(self: &Arc<Self>, source: IpAddr) -> Result<Admitted, Bound> {
        let source = source.to_canonical();
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if pools.by_source.get(&source).is_some_and(|pool| pool.members.len() >= self.most_per_source) {
            let idle = pools.by_source.get_mut(&source).and_then(Pool::longest_idle).ok_or(Bound::Source)?;
            self.evict(&mut pools, &idle);
        }
        if pools.all.members.len() >= self.most {
            let idle = pools.all.longest_idle().ok_or(Bound::Total)?;
            self.evict(&mut pools, &idle);
        }
        pools.next_id += 1;
        let connection = Arc::new(Connection {
            id: pools.next_id,
            source,
            opened: self.opened,
            in_flight: AtomicU32::new(0),
            idle_since_ms: AtomicU64::new(u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)),
            conflicting: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            resting: AtomicBool::new(false),
            close: Notify::new(),
        });
        pools.all.members.insert(connection.id, Arc::clone(&connection));
        pools.by_source.entry(source).or_default().members.insert(connection.id, Arc::clone(&connection));
        self.open.increment(1);
        Ok(Admitted { connection, registry: Arc::clone(self) })
    }

    fn evict(&self, pools: &mut Pools, idle: &Connection) {
        // `notify_one` keeps its permit for a task that does not wait just now.
        idle.close.notify_one();
        self.evicted.increment(1);
        self.remove(pools, idle);
    }

    fn remove(&self, pools: &mut Pools, gone: &Connection) {
        if pools.all.members.remove(&gone.id).is_none() {
            return;
        }
        self.open.decrement(1);
        if let Some(pool) = pools.by_source.get_mut(&gone.source) {
            pool.members.remove(&gone.id);
            if pool.members.is_empty() {
                pools.by_source.remove(&gone.source);
            }
        }
    }
}

/// A place among the open connections, given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// The connection it is for.
    pub(crate) connection: Arc<Connection>,
    registry: Arc<Connections>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut pools = self.registry.pools.lock().unwrap_or_else(PoisonError::into_inner);
        self.registry.remove(&mut pools, &self.connection);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    fn registry(most: usize, most_per_source: usize) -> Arc<Connections> {
        Arc::new(Connections::new("test", most, most_per_source))
    }

    fn asked_to_close(admitted: &Admitted) -> bool {
        use futures::FutureExt;
        admitted.connection.close.notified().now_or_never().is_some()
    }

    #[test]
    fn the_longest_idle_makes_room() {
        let registry = registry(3, 3);
        let held: Vec<_> = (0..3).map(|_| registry.admit(A).expect("room")).collect();
        held[0].connection.idle_since_ms.store(30, Ordering::Relaxed);
        held[1].connection.idle_since_ms.store(10, Ordering::Relaxed);
        held[2].connection.idle_since_ms.store(20, Ordering::Relaxed);
        let _newcomer = registry.admit(B).expect("an idle one goes");
        assert!(!asked_to_close(&held[0]) && asked_to_close(&held[1]) && !asked_to_close(&held[2]));
    }

    #[test]
    fn a_newcomer_goes_when_all_are_busy() {
        let registry = registry(2, 2);
        let held = [registry.admit(A).expect("room"), registry.admit(B).expect("room")];
        let _busy = held.each_ref().map(|admitted| admitted.connection.begin());
        assert_eq!(registry.admit(A).expect_err("full"), Bound::Total);
    }

    #[test]
    fn a_source_makes_room_among_its_own() {
        let registry = registry(10, 1);
        let other = registry.admit(B).expect("room");
        let first = registry.admit(A).expect("room");
        let second = registry.admit(A).expect("the first goes");
        assert!(asked_to_close(&first) && !asked_to_close(&other));
        let _busy = second.connection.begin();
        assert_eq!(registry.admit(A).expect_err("full"), Bound::Source);
    }

    #[test]
    fn a_closed_connection_gives_its_place_back() {
        let registry = registry(1, 1);
        let first = registry.admit(A).expect("room");
        let _busy = first.connection.begin();
        drop(first);
        registry.admit(A).expect("room again");
        assert!(registry.pools.lock().expect("no panic").by_source.is_empty());
    }

    #[test]
    fn one_that_became_busy_is_no_candidate_any_more() {
        let registry = registry(3, 3);
        let held: Vec<_> = (0..3).map(|_| registry.admit(A).expect("room")).collect();
        let _fourth = registry.admit(B).expect("one goes, the others are candidates");
        let _busy: Vec<_> = held.iter().map(|admitted| admitted.connection.begin()).collect();
        let _fifth = registry.admit(B).expect("the fourth goes");
        assert!(held.iter().filter(|admitted| asked_to_close(admitted)).count() <= 1);
    }
}
