//! How long from one probe to the next: pure.

use std::time::Duration;

/// First interval while the app starts.
const FASTEST: Duration = Duration::from_millis(5);

/// The interval that it relaxes to, and that of an app that was ready once.
const RELAXED: Duration = Duration::from_millis(100);

/// Intervals of one probe. While the app starts each is a little longer than the one before, so that
/// asking adds about half a hundredth to the time that the start took; while it is well they are the period; while there is doubt they are short, so that the thresholds decide soon.
#[derive(Debug)]
pub(crate) struct Pace {
    period: Duration,
    starting: Duration,
}

impl Pace {
    pub(crate) fn new(period: Duration) -> Self {
        Self { period, starting: FASTEST }
    }

    /// The interval after a result, with which the probe as a whole counts as passing or not.
    pub(crate) fn after(&mut self, passed: bool, passing: bool) -> Duration {
        if passing {
            self.starting = RELAXED;
        }
        let interval = match (passing, passed) {
            (true, true) => self.period,
            (true, false) => RELAXED,
            (false, _) => {
                let longer = (self.starting * 201 / 200).min(RELAXED);
                std::mem::replace(&mut self.starting, longer)
            }
        };
        interval.min(self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_starting_app_is_asked_fast_and_then_less_so() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let intervals: Vec<Duration> = (0..800).map(|_| pace.after(false, false)).collect();
        assert_eq!(intervals[0], FASTEST);
        assert!(intervals.is_sorted());
        let mut elapsed = Duration::ZERO;
        for interval in intervals.iter().take_while(|interval| **interval < RELAXED) {
            assert!(*interval <= FASTEST + elapsed / 200);
            elapsed += *interval;
        }
        assert_eq!(intervals[799], RELAXED);
    }

    #[test]
    fn a_ready_app_is_asked_at_its_period_and_in_doubt_faster() {
        let mut pace = Pace::new(Duration::from_secs(2));
        assert_eq!(pace.after(true, true), Duration::from_secs(2));
        assert_eq!(pace.after(false, true), RELAXED);
        assert_eq!(pace.after(false, false), RELAXED);
        assert_eq!(pace.after(true, true), Duration::from_secs(2));
    }

    #[test]
    fn a_short_period_is_never_exceeded() {
        let mut pace = Pace::new(Duration::from_millis(2));
        for (passed, passing) in [(false, false), (true, true), (false, true)] {
            assert_eq!(pace.after(passed, passing), Duration::from_millis(2));
        }
    }
}
