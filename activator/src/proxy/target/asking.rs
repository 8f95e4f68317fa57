//! When to ask for a target to be scaled up. Pure: time is an argument, and somebody else asks.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use crate::proxy::wake::{ScaleError, Scaled};

/// First pause after a failure; each further failure doubles it.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

/// Longest pause after a failure.
const BACKOFF_MOST: Duration = Duration::from_secs(10);

/// How soon after a success it is asked again, should requests still be held: whoever scales down may have been quicker.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// How long a final failure stands before it is asked again.
const FINAL_FOR: Duration = Duration::from_secs(5);

/// One target's progress.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// Whether somebody is asking now.
    running: bool,
    /// When to ask next at the earliest.
    next: Duration,
    failures: u32,
    refused: Option<(Duration, Arc<str>)>,
}

impl Asking {
    /// When to ask next; none while somebody is asking.
    pub(super) fn next(&self) -> Option<Duration> {
        (!self.running).then_some(self.next)
    }

    /// Whether the caller is to ask now. Only one is at a time.
    pub(super) fn begin(&mut self, now: Duration) -> bool {
        let begins = !self.running && self.next <= now;
        self.running |= begins;
        begins
    }

    /// What came of it. Returns why requests need not wait any longer.
    pub(super) fn end(
        &mut self,
        outcome: Result<Scaled, ScaleError>,
        now: Duration,
        rng: &mut Rng,
    ) -> Option<Arc<str>> {
        self.running = false;
        self.refused = None;
        match outcome {
            Ok(Scaled::Raised | Scaled::Already) => {
                self.failures = 0;
                self.next = now + AGAIN_AFTER;
                None
            }
            Err(ScaleError::Again(_)) => {
                let doubled = BACKOFF_FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
                self.failures = self.failures.saturating_add(1);
                // From half to the whole of it: replicas that failed together do not ask together again.
                self.next = now + doubled.min(BACKOFF_MOST).mul_f64(0.5 + rng.f64() / 2.0);
                None
            }
            Err(ScaleError::Final(why)) => {
                let why: Arc<str> = why.into();
                self.next = now + FINAL_FOR;
                self.refused = Some((self.next, Arc::clone(&why)));
                Some(why)
            }
        }
    }

    /// Why nobody need wait, while a final failure stands.
    pub(super) fn refused(&self, now: Duration) -> Option<&Arc<str>> {
        self.refused.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why)
    }

    /// What is to be scaled has changed, or is up: nothing that was said counts any longer.
    pub(super) fn reset(&mut self) {
        *self = Self { running: self.running, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn only_one_asks_at_a_time_and_not_again_at_once() {
        let (mut asking, mut rng) = (Asking::default(), Rng::with_seed(1));
        assert!(asking.begin(seconds(1)));
        assert!(!asking.begin(seconds(100)));
        assert_eq!(asking.end(Ok(Scaled::Raised), seconds(100), &mut rng), None);
        assert!(!asking.begin(seconds(101)));
        assert!(asking.begin(seconds(102)));
    }

    #[test]
    fn a_final_failure_stands_for_a_while_and_a_reset_takes_it_back() {
        let (mut asking, mut rng) = (Asking::default(), Rng::with_seed(1));
        assert!(asking.begin(seconds(1)));
        let why = asking.end(Err(ScaleError::Final("forbidden".into())), seconds(1), &mut rng);
        assert_eq!(why.as_deref(), Some("forbidden"));
        assert_eq!(asking.refused(seconds(5)).map(|why| &**why), Some("forbidden"));
        assert!(!asking.begin(seconds(5)));
        assert_eq!(asking.refused(seconds(6)), None);
        asking.reset();
        assert!(asking.refused(seconds(5)).is_none() && asking.begin(seconds(5)));
    }
}
