//! How long to wait before a failed delivery is tried again: exponential with full jitter, the only user of the
//! `backoff` crate.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Upper end of the first pause: several of them fit into the probe period that the push is to beat.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Upper end of every pause (DESIGN §3).
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Longest `Retry-After` that is honoured; what asks for more is taken for a fault of the sender.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A source of pauses. The simulation brings its own, seeded.
pub trait Pauses {
    /// The pause after one more failure.
    fn next_pause(&mut self) -> Duration;

    /// A success: the next failure is the first again.
    fn reset(&mut self);
}

/// Pauses drawn evenly from 0 to an end that doubles from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`].
#[derive(Debug)]
pub struct Exponential(ExponentialBackoff);

impl Default for Exponential {
    fn default() -> Self {
        // The crate draws from interval ± factor · interval: factor 1 around half the end is 0 to the end.
        Self(ExponentialBackoff {
            current_interval: FIRST_PAUSE / 2,
            initial_interval: FIRST_PAUSE / 2,
            randomization_factor: 1.0,
            multiplier: 2.0,
            max_interval: LONGEST_PAUSE / 2,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        })
    }
}

impl Pauses for Exponential {
    fn next_pause(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(LONGEST_PAUSE)
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}

/// The pause that the policy and the server's `Retry-After` make together: the longer, the latter bounded.
pub fn pause(own: Duration, retry_after: Option<Duration>) -> Duration {
    own.max(retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_over_an_end_that_doubles_up_to_the_cap() {
        let mut longest = [Duration::ZERO; 14];
        for _ in 0..400 {
            let mut pauses = Exponential::default();
            for slot in &mut longest {
                *slot = pauses.next_pause().max(*slot);
            }
        }
        let tolerance = Duration::from_millis(1);
        for (n, &seen) in longest.iter().enumerate() {
            let end = (FIRST_PAUSE * 2u32.pow(n as u32)).min(LONGEST_PAUSE);
            assert!(seen <= end + tolerance && seen > end / 2, "pause {n} reached {seen:?} of {end:?}");
        }
    }

    #[test]
    fn a_success_starts_over() {
        let mut pauses = Exponential::default();
        for _ in 0..20 {
            pauses.next_pause();
        }
        pauses.reset();
        assert!(pauses.next_pause() <= FIRST_PAUSE + Duration::from_millis(1));
    }

    #[test]
    fn retry_after_is_a_floor_with_a_bound() {
        let s = Duration::from_secs;
        assert_eq!(pause(s(2), None), s(2));
        assert_eq!(pause(s(2), Some(s(1))), s(2));
        assert_eq!(pause(s(2), Some(s(30))), s(30));
        assert_eq!(pause(s(2), Some(s(86_400))), LONGEST_RETRY_AFTER);
    }
}
