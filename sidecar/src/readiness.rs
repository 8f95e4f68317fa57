//! Probe results and the drain request become statements: a pure state machine without clock, lock or runtime.
//! It owns the order (boot, seq) of everything this sidecar says. Invariants: orders only grow; a drain is final
//! for the life of this machine; `ready` is said only while every probe passes.

use std::num::NonZeroU32;

use podlight_proto::{BOOT_AHEAD_MS, Boot, Kind, Order, Sequence};

/// How many results in a row change what is held of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Passes in a row before a failing probe counts as passing.
    pub success: NonZeroU32,
    /// Failures in a row before a passing probe counts as failing.
    pub failure: NonZeroU32,
}

/// What the pod is, as its sidecar holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A probe fails, or has not passed yet.
    NotReady,
    /// Every probe passes.
    Ready,
    /// The pod is leaving.
    Draining,
}

impl State {
    /// The kind of event that tells this state.
    pub const fn kind(self) -> Kind {
        match self {
            Self::NotReady => Kind::NotReady,
            Self::Ready => Kind::Ready,
            Self::Draining => Kind::Draining,
        }
    }
}

/// An event without the identity of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// Where it stands among this pod's statements.
    pub order: Order,
    /// What it says.
    pub kind: Kind,
    /// The state that holds with it; what a heartbeat repeats.
    pub ready: bool,
    /// When that state began, in wall milliseconds.
    pub observed_at_ms: u64,
}

/// Why a boot was not adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// The boot of this sidecar is newer already.
    #[error("the boot that was named is older than this sidecar's")]
    Older,
    /// Every other replica would refuse it ([`BOOT_AHEAD_MS`]).
    #[error("the boot that was named is more than 24 h ahead of this node's clock")]
    Ahead,
}

/// The readiness of one pod, from the sidecar's start to its end.
#[derive(Debug, Clone)]
pub struct Readiness {
    boot: Boot,
    last_seq: Sequence,
    state: State,
    since_ms: u64,
    stated: Order,
    probes: Vec<Probe>,
}

impl Readiness {
    /// A sidecar that starts: not ready, which is its first statement. Without probes it never becomes ready.
    pub fn start(boot: Boot, probes: &[Thresholds], now_ms: u64) -> Self {
        let stated = Order { boot, seq: Sequence::FIRST };
        let probes = probes.iter().map(|&thresholds| Probe { thresholds, passing: false, streak: 0 }).collect();
        Self { boot, last_seq: Sequence::FIRST, state: State::NotReady, since_ms: now_ms, stated, probes }
    }

    /// Takes one probe's result. Returns the new statement when it changes the pod's state. A probe that does
    /// not exist changes nothing.
    pub fn probed(&mut self, probe: usize, passed: bool, now_ms: u64) -> Option<Statement> {
        self.probes.get_mut(probe)?.record(passed);
        let state = if self.probes.iter().all(|probe| probe.passing) { State::Ready } else { State::NotReady };
        self.enter(state, now_ms)
    }

    /// Takes the request to drain. Returns the statement of the first such request.
    pub fn drain(&mut self, now_ms: u64) -> Option<Statement> {
        self.enter(State::Draining, now_ms)
    }

    /// A replica superseded an event because `held`, not younger than this boot, holds: takes `held` + 1 and
    /// states the same state anew.
    ///
    /// # Errors
    /// [`AdoptError`], and then nothing has changed.
    pub fn adopt(&mut self, held: Boot, now_ms: u64) -> Result<Statement, AdoptError> {
        if held < self.boot {
            return Err(AdoptError::Older);
        }
        let next = held.next();
        if next == held || u64::from(next) > now_ms.saturating_add(BOOT_AHEAD_MS) {
            return Err(AdoptError::Ahead);
        }
        self.boot = next;
        self.last_seq = Sequence::FIRST;
        self.stated = Order { boot: next, seq: Sequence::FIRST };
        Ok(self.statement())
    }

    /// The newest statement of the state.
    pub fn statement(&self) -> Statement {
        let ready = self.state == State::Ready;
        Statement { order: self.stated, kind: self.state.kind(), ready, observed_at_ms: self.since_ms }
    }

    /// A new heartbeat. It must go to no replica that has not answered [`Readiness::statement`]: its order is
    /// greater, so the state would come too late there.
    pub fn heartbeat(&mut self) -> Statement {
        let order = self.next_order();
        Statement { order, kind: Kind::Heartbeat, ..self.statement() }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// When it began, in wall milliseconds.
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Whether a probe passes, its thresholds considered.
    pub fn passing(&self, probe: usize) -> bool {
        self.probes.get(probe).is_some_and(|probe| probe.passing)
    }

    fn enter(&mut self, state: State, now_ms: u64) -> Option<Statement> {
        if self.state == state || self.state == State::Draining {
            return None;
        }
        self.state = state;
        self.since_ms = now_ms;
        self.stated = self.next_order();
        Some(self.statement())
    }

    fn next_order(&mut self) -> Order {
        self.last_seq = self.last_seq.next();
        Order { boot: self.boot, seq: self.last_seq }
    }
}

#[derive(Debug, Clone)]
struct Probe {
    thresholds: Thresholds,
    passing: bool,
    /// Results in a row that contradict `passing`.
    streak: u32,
}

impl Probe {
    fn record(&mut self, passed: bool) {
        if passed == self.passing {
            self.streak = 0;
            return;
        }
        self.streak += 1;
        let needed = if passed { self.thresholds.success } else { self.thresholds.failure };
        if self.streak >= needed.get() {
            self.passing = passed;
            self.streak = 0;
        }
    }
}

#[cfg(test)]
mod tests;
