//! A bounded map whose entries end. Pure: time is an argument. When it is full the oldest entry goes, so that a
//! flood costs hits, never memory.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

#[derive(Debug)]
struct Held<V> {
    value: V,
    until: Duration,
    /// Tells this entry from an older one with the same key in `order`.
    stamp: u64,
}

/// At most `most` entries, each with its own end on the monotonic clock.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    most: usize,
    entries: HashMap<K, Held<V>>,
    order: VecDeque<(K, u64)>,
    stamps: u64,
}

impl<K: Clone + Eq + Hash, V> Cache<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new(), order: VecDeque::new(), stamps: 0 }
    }

    /// The value held for `key`, unless it has ended.
    pub(super) fn lookup(&self, key: &K, now: Duration) -> Option<&V> {
        self.entries.get(key).filter(|held| now < held.until).map(|held| &held.value)
    }

    /// Holds `value` until `until`, in place of any other for `key`. Drops ended entries at the old end, and the
    /// oldest one when full.
    pub(super) fn insert(&mut self, key: K, value: V, until: Duration, now: Duration) {
        if self.most == 0 || until <= now {
            return;
        }
        self.stamps += 1;
        let stamp = self.stamps;
        self.entries.insert(key.clone(), Held { value, until, stamp });
        self.order.push_back((key, stamp));
        self.drop_ended(now);
        while self.entries.len() > self.most {
            let Some((key, stamp)) = self.order.pop_front() else { break };
            self.drop_held(&key, stamp);
        }
        // Entries replaced again and again leave old stamps behind live ones.
        if self.order.len() > self.most.saturating_mul(2) {
            let entries = &self.entries;
            self.order.retain(|(key, stamp)| entries.get(key).is_some_and(|held| held.stamp == *stamp));
        }
    }

    /// Drops what has ended, as far as nothing older still lives.
    pub(super) fn drop_ended(&mut self, now: Duration) {
        while let Some((key, stamp)) = self.order.front() {
            let lives = self.entries.get(key).is_some_and(|held| held.stamp == *stamp && now < held.until);
            if lives {
                return;
            }
            if let Some((key, stamp)) = self.order.pop_front() {
                self.drop_held(&key, stamp);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn drop_held(&mut self, key: &K, stamp: u64) {
        if self.entries.get(key).is_some_and(|held| held.stamp == stamp) {
            self.entries.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_entry_ends_at_its_time_and_not_before() {
        let mut cache = Cache::new(4);
        cache.insert("a", 1, at(10), at(0));
        assert_eq!(cache.lookup(&"a", at(9)), Some(&1));
        assert_eq!(cache.lookup(&"a", at(10)), None);
        cache.insert("b", 2, at(5), at(5));
        assert_eq!(cache.lookup(&"b", at(5)), None, "already ended");
    }

    #[test]
    fn a_full_cache_drops_the_oldest() {
        let mut cache = Cache::new(2);
        for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
            cache.insert(key, n, at(100), at(0));
        }
        assert_eq!(cache.len(), 2);
        assert_eq!(
            [cache.lookup(&"a", at(1)), cache.lookup(&"b", at(1)), cache.lookup(&"c", at(1))],
            [None, Some(&1), Some(&2)]
        );
    }

    #[test]
    fn an_entry_replaced_counts_as_new_and_bounds_hold_under_replacement() {
        let mut cache = Cache::new(2);
        cache.insert("a", 0, at(100), at(0));
        cache.insert("b", 0, at(100), at(0));
        for n in 0..1000 {
            cache.insert("a", n, at(100), at(0));
        }
        assert!(cache.order.len() <= 4, "{}", cache.order.len());
        cache.insert("c", 0, at(100), at(0));
        assert_eq!(cache.lookup(&"a", at(1)), Some(&999));
        assert_eq!(cache.lookup(&"b", at(1)), None);
    }

    #[test]
    fn ended_entries_give_their_room_back() {
        let mut cache = Cache::new(8);
        cache.insert("a", 1, at(1), at(0));
        cache.insert("b", 2, at(2), at(0));
        cache.drop_ended(at(2));
        assert_eq!((cache.len(), cache.order.len()), (0, 0));
    }
}
