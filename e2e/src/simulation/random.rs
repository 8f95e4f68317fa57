//! The only source of chance: SplitMix64 (Steele, Lea, Flood 2014). Every actor has a stream of its own, so that
//! leaving one command out of a history does not reshuffle the rest of it.

use std::time::Duration;

use podlight_sidecar::retry::Pauses;

/// A seeded stream of numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of an actor.
    #[must_use]
    pub fn new(seed: u64, actor: u64) -> Self {
        let mut random = Self(seed ^ actor.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.draw();
        random
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.draw() % (high - low + 1)
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.between(0, len as u64 - 1)).expect("below a usize")
    }

    /// True in so many cases of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.draw() % 100 < percent
    }
}

/// The product's backoff with seeded jitter.
#[derive(Debug)]
pub(super) struct Jitter {
    pub(super) random: Random,
    pub(super) end_ms: u64,
}

const FIRST_PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 60_000;

impl Jitter {
    pub(super) fn new(random: Random) -> Self {
        Self { random, end_ms: FIRST_PAUSE_MS }
    }
}

impl Pauses for Jitter {
    fn next_pause(&mut self) -> Duration {
        let pause = self.random.between(0, self.end_ms);
        self.end_ms = (self.end_ms * 2).min(LONGEST_PAUSE_MS);
        Duration::from_millis(pause)
    }

    fn reset(&mut self) {
        self.end_ms = FIRST_PAUSE_MS;
    }
}
