//! Step 1: how much may come in at all. Two token buckets, one for everybody and one for each source address,
//! and a bound on requests under way. Pure but for the atomics and locks that share it; time is an argument.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::locked;

/// Shards of the map of sources: two threads rarely meet on one.
const SHARDS: usize = 16;

/// Sustained rate and burst of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Events a second, sustained.
    pub per_second: u32,
    /// Events at once after a pause.
    pub burst: u32,
}

/// A bucket as the one number that the generic cell rate algorithm needs (ITU-T I.371): when, in nanoseconds of
/// uptime, the bucket will be full again.
#[derive(Debug, Clone, Copy)]
struct Spacing {
    /// Nanoseconds that one event costs.
    cost: u64,
    /// Nanoseconds that a full bucket is worth.
    capacity: u64,
}

impl Spacing {
    fn new(rate: Rate) -> Self {
        let cost = 1_000_000_000 / u64::from(rate.per_second.max(1));
        Self { cost, capacity: cost.saturating_mul(u64::from(rate.burst.max(1))) }
    }

    /// The bucket after one more event, or how long until there is room for one.
    fn take(self, full_at: u64, now: u64) -> Result<u64, Duration> {
        let after = full_at.max(now).saturating_add(self.cost);
        let over = (after - now).saturating_sub(self.capacity);
        if over == 0 { Ok(after) } else { Err(Duration::from_nanos(over)) }
    }
}

/// Which bound turned a request away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Shed {
    /// Everybody together sends too fast.
    #[error("the activator takes no more events at this rate; wait as Retry-After says")]
    Rate(Duration),
    /// This address sends too fast.
    #[error("too many events from this address; wait as Retry-After says")]
    SourceRate(Duration),
    /// Too many requests are under way.
    #[error("too many requests are under way; wait as Retry-After says")]
    InFlight,
    /// Too many requests wait for the Kubernetes API.
    #[error("too many requests wait for the Kubernetes API; wait as Retry-After says")]
    Waiting,
}

impl Shed {
    /// The metric label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Rate(_) => "rate",
            Self::SourceRate(_) => "source_rate",
            Self::InFlight => "in_flight",
            Self::Waiting => "waiting",
        }
    }
}

/// The buckets.
#[derive(Debug)]
pub(super) struct Limits {
    all: Spacing,
    each: Spacing,
    all_full_at: AtomicU64,
    sources: [Mutex<HashMap<IpAddr, u64>>; SHARDS],
    most_sources_a_shard: usize,
    hasher: RandomState,
}

impl Limits {
    pub(super) fn new(all: Rate, each: Rate, most_sources: usize) -> Self {
        Self {
            all: Spacing::new(all),
            each: Spacing::new(each),
            all_full_at: AtomicU64::new(0),
            sources: std::array::from_fn(|_| Mutex::default()),
            most_sources_a_shard: most_sources.div_ceil(SHARDS).max(1),
            hasher: RandomState::new(),
        }
    }

    /// Takes one event from `source` out of both buckets. The source's goes first: what it refuses costs the
    /// others nothing.
    ///
    /// # Errors
    /// [`Shed::SourceRate`] and [`Shed::Rate`].
    pub(super) fn take(&self, source: IpAddr, now: Duration) -> Result<(), Shed> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.take_from_source(source, now).map_err(Shed::SourceRate)?;
        let mut full_at = self.all_full_at.load(Ordering::Relaxed);
        loop {
            let after = self.all.take(full_at, now).map_err(Shed::Rate)?;
            match self.all_full_at.compare_exchange_weak(full_at, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(actual) => full_at = actual,
            }
        }
    }

    fn take_from_source(&self, source: IpAddr, now: u64) -> Result<(), Duration> {
        let source = source.to_canonical();
        let shard = usize::try_from(self.hasher.hash_one(source) % SHARDS as u64).unwrap_or(0);
        let mut sources = locked(&self.sources[shard]);
        if let Some(full_at) = sources.get_mut(&source) {
            *full_at = self.each.take(*full_at, now)?;
            return Ok(());
        }
        if sources.len() >= self.most_sources_a_shard {
            // The one nearest to full loses least by being forgotten.
            let fullest = sources.iter().min_by_key(|(_, full_at)| **full_at).map(|(source, _)| *source);
            fullest.map(|source| sources.remove(&source));
        }
        let full_at = self.each.take(0, now)?;
        sources.insert(source, full_at);
        Ok(())
    }

    #[cfg(test)]
    fn sources(&self) -> usize {
        self.sources.iter().map(|shard| locked(shard).len()).sum()
    }
}

/// A count with a bound.
#[derive(Debug, Clone)]
pub(super) struct Room {
    taken: Arc<AtomicUsize>,
    most: usize,
}

impl Room {
    pub(super) fn new(most: usize) -> Self {
        Self { taken: Arc::default(), most }
    }

    /// One place, given back when the guard goes; none when all are taken.
    pub(super) fn enter(&self) -> Option<Place> {
        let place = Place { taken: Arc::clone(&self.taken) };
        // On failure the guard takes the count back.
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.most).then_some(place)
    }
}

/// A place in a [`Room`].
#[derive(Debug)]
pub(super) struct Place {
    taken: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
    const WIDE: Rate = Rate { per_second: 1_000_000, burst: 1_000_000 };

    #[test]
    fn a_source_spends_its_burst_then_its_rate() {
        let limits = Limits::new(WIDE, Rate { per_second: 10, burst: 3 }, 1024);
        let start = Duration::from_secs(5);
        for _ in 0..3 {
            assert_eq!(limits.take(A, start), Ok(()));
        }
        assert_eq!(limits.take(A, start), Err(Shed::SourceRate(Duration::from_millis(100))));
        assert_eq!(limits.take(B, start), Ok(()), "another source has its own bucket");
        assert_eq!(limits.take(A, start + Duration::from_millis(100)), Ok(()));
        assert!(limits.take(A, start + Duration::from_millis(100)).is_err());
    }

    #[test]
    fn a_mapped_address_is_the_same_source() {
        let limits = Limits::new(WIDE, Rate { per_second: 1, burst: 1 }, 16);
        assert_eq!(limits.take(A, Duration::ZERO), Ok(()));
        let mapped = "::ffff:10.0.0.1".parse().expect("an address");
        assert!(limits.take(mapped, Duration::ZERO).is_err());
    }

    #[test]
    fn all_sources_share_one_bucket() {
        let limits = Limits::new(Rate { per_second: 2, burst: 1 }, WIDE, 16);
        assert_eq!(limits.take(A, Duration::ZERO), Ok(()));
        assert_eq!(limits.take(B, Duration::ZERO), Err(Shed::Rate(Duration::from_millis(500))));
    }

    #[test]
    fn sources_beyond_the_bound_push_out_the_fullest_bucket() {
        let limits = Limits::new(WIDE, Rate { per_second: 1, burst: 4 }, SHARDS);
        for n in 0..=255 {
            let source = IpAddr::V4(Ipv4Addr::new(10, 1, 0, n));
            assert_eq!(limits.take(source, Duration::from_millis(n.into())), Ok(()));
        }
        assert!(limits.sources() <= SHARDS, "{}", limits.sources());
    }

    #[test]
    fn a_place_is_given_back() {
        let room = Room::new(1);
        let place = room.enter();
        assert!(place.is_some());
        assert!(room.enter().is_none());
        drop(place);
        assert!(room.enter().is_some());
    }
}
