//! Whether an endpoint is to be trusted with requests. One that refuses is shut for a while; the first request
//! afterwards is a probe, and only when that comes through do others follow. Pure: time is an argument, and only
//! requests that began under the present state change it, so that a hundred refusals of one moment count once.

use std::time::Duration;

/// How long an endpoint that refused is shut at first, and at most.
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long an endpoint that did not answer is shut at first, and at most.
const TIMED_OUT: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(300));

/// Time-outs within [`STRIKE_WINDOW`] that shut an endpoint.
const STRIKES: u32 = 3;

/// How long a first time-out is remembered.
const STRIKE_WINDOW: Duration = Duration::from_secs(30);

/// After this long without a refusal a probe has come through, whether or not it has been answered: a long poll must
/// not keep others waiting. More than a connection usually may take to be opened, since what is not is a refusal.
const PROBE: Duration = Duration::from_millis(1500);

/// What may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Anything.
    Open,
    /// Nothing until then.
    Shut {
        /// When a probe may be sent.
        until: Duration,
    },
    /// One request: the probe.
    Half,
    /// Nothing more until the probe has come through.
    Probing {
        /// When it is taken to have.
        until: Duration,
    },
}

/// Marks requests that began under one state of a [`Quarantine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Epoch(u32);

/// What shut an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Refused,
    TimedOut,
}

impl Reason {
    /// As in metric labels.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed-out",
        }
    }
}

/// One endpoint's record.
#[derive(Debug, Clone)]
pub(super) struct Quarantine {
    trust: Trust,
    epoch: Epoch,
    /// Times shut in a row, by reason.
    refused: u32,
    timed_out: u32,
    strikes: u32,
    first_strike: Duration,
    /// Whether it never takes longer than the first time: a ClusterIP's failure says nothing of the next endpoint.
    flat: bool,
}

impl Quarantine {
    /// Of an endpoint nothing is known against.
    pub(super) fn new() -> Self {
        Self {
            trust: Trust::Open,
            epoch: Epoch::default(),
            refused: 0,
            timed_out: 0,
            strikes: 0,
            first_strike: Duration::ZERO,
            flat: false,
        }
    }

    /// One that is always shut for the first, short time.
    pub(super) fn flat() -> Self {
        Self { flat: true, ..Self::new() }
    }

    /// What may be sent.
    pub(super) fn trust(&self) -> Trust {
        self.trust
    }

    /// When time alone changes it.
    pub(super) fn until(&self) -> Option<Duration> {
        match self.trust {
            Trust::Shut { until } | Trust::Probing { until } => Some(until),
            Trust::Open | Trust::Half => None,
        }
    }

    /// How long nothing will be sent, in seconds; none when it is not shut.
    pub(super) fn seconds(&self, now: Duration) -> Option<f64> {
        match self.trust {
            Trust::Shut { until } => Some(until.saturating_sub(now).as_secs_f64()),
            Trust::Open | Trust::Half | Trust::Probing { .. } => None,
        }
    }

    /// Lets time pass.
    pub(super) fn lapse(&mut self, now: Duration) {
        match self.trust {
            Trust::Shut { until } if until <= now => self.trust = Trust::Half,
            Trust::Probing { until } if until <= now => self.trust = Trust::Open,
            Trust::Shut { .. } | Trust::Probing { .. } | Trust::Open | Trust::Half => {}
        }
    }

    /// A request is sent. What it comes to counts only under the epoch returned.
    pub(super) fn sent(&mut self, now: Duration) -> Epoch {
        if matches!(self.trust, Trust::Half | Trust::Shut { .. }) {
            self.trust = Trust::Probing { until: now + PROBE };
            self.epoch.0 = self.epoch.0.wrapping_add(1);
        }
        self.epoch
    }

    /// The connection was refused. True when that shut the endpoint.
    pub(super) fn refused(&mut self, epoch: Epoch, now: Duration) -> bool {
        if epoch != self.epoch {
            return false;
        }
        self.shut(REFUSED, self.refused, now);
        self.refused = self.refused.saturating_add(1);
        true
    }

    /// No answer came in time. True when that shut the endpoint.
    pub(super) fn timed_out(&mut self, epoch: Epoch, now: Duration) -> bool {
        if epoch != self.epoch {
            return false;
        }
        if self.strikes == 0 || now.saturating_sub(self.first_strike) > STRIKE_WINDOW {
            self.strikes = 0;
            self.first_strike = now;
        }
        self.strikes += 1;
        // A probe that is not answered is one strike too many already.
        if self.strikes < STRIKES && !matches!(self.trust, Trust::Probing { .. }) {
            return false;
        }
        self.shut(if self.flat { REFUSED } else { TIMED_OUT }, self.timed_out, now);
        self.timed_out = self.timed_out.saturating_add(1);
        true
    }

    /// An answer came: all is forgotten.
    pub(super) fn answered(&mut self, epoch: Epoch) {
        if epoch == self.epoch {
            *self = Self { epoch, flat: self.flat, ..Self::new() };
        }
    }

    /// The endpoint itself says that it is well. What was sent before is no evidence against it.
    pub(super) fn lift(&mut self) {
        *self = Self { epoch: Epoch(self.epoch.0.wrapping_add(1)), flat: self.flat, ..Self::new() };
    }

    fn shut(&mut self, (first, most): (Duration, Duration), times: u32, now: Duration) {
        let times = if self.flat { 0 } else { times };
        let span = first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(most);
        self.trust = Trust::Shut { until: now + span };
        self.epoch.0 = self.epoch.0.wrapping_add(1);
        self.strikes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn shut_for(record: &Quarantine, now: Duration) -> Duration {
        let Trust::Shut { until } = record.trust() else { panic!("{:?}", record.trust()) };
        until - now
    }

    #[test]
    fn refusals_shut_for_twice_as_long_each_time_up_to_a_cap() {
        let (mut record, mut now) = (Quarantine::new(), ms(0));
        let mut spans = Vec::new();
        for _ in 0..8 {
            let epoch = record.sent(now);
            assert!(record.refused(epoch, now));
            spans.push(shut_for(&record, now).as_secs());
            now += shut_for(&record, now);
            record.lapse(now);
            assert_eq!(record.trust(), Trust::Half);
        }
        assert_eq!(spans, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn time_outs_shut_at_the_third_within_the_window_and_a_later_probe_at_the_first() {
        let mut record = Quarantine::new();
        let epoch = record.sent(ms(0));
        assert!(!record.timed_out(epoch, ms(0)) && !record.timed_out(epoch, ms(20_000)));
        assert!(!record.timed_out(epoch, ms(31_000)), "the first is forgotten");
        assert!(!record.timed_out(epoch, ms(32_000)) && record.timed_out(epoch, ms(33_000)));
        assert_eq!(shut_for(&record, ms(33_000)).as_secs(), 30);
        record.lapse(ms(63_000));
        let probe = record.sent(ms(63_000));
        assert!(record.timed_out(probe, ms(63_500)));
        assert_eq!(shut_for(&record, ms(63_500)).as_secs(), 60);
    }

    #[test]
    fn an_answer_forgets_strikes() {
        let mut record = Quarantine::new();
        let epoch = record.sent(ms(0));
        assert!(!record.timed_out(epoch, ms(1)) && !record.timed_out(epoch, ms(2)));
        record.answered(epoch);
        assert!(!record.timed_out(epoch, ms(3)));
    }

    #[test]
    fn what_was_sent_before_it_was_lifted_or_shut_says_nothing() {
        let mut record = Quarantine::new();
        let before = record.sent(ms(0));
        assert!(record.refused(before, ms(1)));
        assert!(!record.refused(before, ms(2)) && !record.timed_out(before, ms(2)));
        record.answered(before);
        assert!(matches!(record.trust(), Trust::Shut { .. }));
        record.lift();
        assert!(!record.refused(before, ms(3)));
        assert_eq!(record.trust(), Trust::Open);
    }

    #[test]
    fn a_cluster_ip_is_never_shut_for_longer_than_the_first_time() {
        let mut record = Quarantine::flat();
        for n in 0..5 {
            let now = ms(n * 1000);
            record.lapse(now);
            let epoch = record.sent(now);
            assert!(record.refused(epoch, now));
            assert_eq!(shut_for(&record, now).as_secs(), 1);
        }
    }
}
