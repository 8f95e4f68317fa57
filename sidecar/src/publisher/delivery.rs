//! What one replica is to be told, and when: a pure state machine. Time is an argument (monotonic, from any
//! origin). Invariants: at most one attempt at a time; a newer state replaces an undelivered older one; no
//! heartbeat overtakes a state; an open circuit asks for nothing but one wake-up. A drain is said again at the pace of
//! heartbeats, in their place: only so does a replica that has started since hear of it.

use std::time::Duration;

use podlight_proto::{Accepted, Boot, Kind, Outcome};

use crate::readiness::Statement;
use crate::retry::{self, Exponential, Pauses};

/// Least time between two attempts that a state change makes through an open circuit. A drain does not wait.
pub const EARLY_EVERY: Duration = Duration::from_secs(1);

/// A refused sender says nothing until its state changes, or until this has passed: what a heartbeat (or the drain
/// once more) costs then is nothing, and it heals a refusal whose cause has gone (a clock that was off, say).
pub const REFUSED_HEARTBEAT: Duration = Duration::from_secs(300);

/// The pace of heartbeats stays within these bounds, whatever a reply asks for.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send this now and report with [`Delivery::replied`] or [`Delivery::abandoned`].
    Send {
        /// The state to tell, for the first time or (a drain) again; `None` for a new heartbeat.
        state: Option<Statement>,
        /// Whether the token goes with it.
        with_token: bool,
    },
    /// Nothing before this time, unless a state or a token changes.
    WaitUntil(Duration),
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// 202.
    Accepted(Accepted),
    /// 401.
    TokenWanted,
    /// 400, 403, 413, 415: this event will never be taken.
    Refused,
    /// Everything else, failures of the network included: to be tried again.
    TryAgain {
        /// The server's `Retry-After`.
        retry_after: Option<Duration>,
    },
}

/// The delivery of one sidecar's statements to one replica.
#[derive(Debug)]
pub struct Delivery<P = Exponential> {
    newest: Statement,
    newest_since: Duration,
    /// Whether `newest` needs no further attempt, and what came of it.
    settled: Option<Settled>,
    /// Whether the replica holds our key under the token of today, as far as its replies tell.
    bound: bool,
    /// When the next heartbeat is due, or the drain once more. Counts once the newest state is settled.
    heartbeat_at: Duration,
    circuit: Circuit,
    last_early: Option<Duration>,
    pauses: P,
}

/// How a replica settled the newest state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It answered 202.
    Acknowledged,
    /// It will never take it.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circuit {
    Closed,
    OpenUntil(Duration),
}

impl<P: Pauses> Delivery<P> {
    /// A replica that has been told nothing yet.
    pub fn new(newest: Statement, pauses: P, now: Duration) -> Self {
        Self {
            newest,
            newest_since: now,
            settled: None,
            bound: false,
            heartbeat_at: now,
            circuit: Circuit::Closed,
            last_early: None,
            pauses,
        }
    }

    /// The newest statement of the state. It is tried at once even through an open circuit, but for
    /// [`EARLY_EVERY`]. Statements that are not newer change nothing.
    pub fn state(&mut self, statement: Statement, now: Duration) {
        if statement.order <= self.newest.order {
            return;
        }
        self.newest = statement;
        self.newest_since = now;
        self.settled = None;
        if let Circuit::OpenUntil(until) = self.circuit {
            let early = if statement.kind == Kind::Draining { now } else { self.next_early(now) };
            if early < until {
                self.circuit = Circuit::OpenUntil(early);
                self.last_early = Some(early);
            }
        }
    }

    /// The token has been rotated: the next event brings it, and a heartbeat is due for it.
    pub fn token_rotated(&mut self, now: Duration) {
        self.bound = false;
        self.heartbeat_at = now;
    }

    /// What to do now.
    pub fn next(&self, now: Duration) -> Step {
        let due = if self.settled.is_some() { self.heartbeat_at } else { Duration::ZERO };
        let due = match self.circuit {
            Circuit::Closed => due,
            Circuit::OpenUntil(until) => due.max(until),
        };
        if due > now {
            return Step::WaitUntil(due);
        }
        let drains = self.newest.kind == Kind::Draining;
        let state = (self.settled.is_none() || drains).then_some(self.newest);
        Step::Send { state, with_token: !self.bound }
    }

    /// Takes the reply to `sent`, which went out with or without the token. Returns the boot to adopt when the
    /// sidecar finds itself behind.
    pub fn replied(&mut self, sent: Statement, with_token: bool, reply: &Reply, now: Duration) -> Option<Boot> {
        match reply {
            Reply::Accepted(accepted) => return self.accepted(sent, with_token, accepted, now),
            Reply::TokenWanted if !with_token => {
                // Not a failure: asked for the token, it is brought at once.
                self.bound = false;
            }
            Reply::TokenWanted => {
                self.bound = false;
                self.failed(None, now);
            }
            Reply::Refused => {
                self.bound = false;
                self.close_circuit();
                self.settle(sent, Settled::Refused);
                self.schedule_heartbeat(REFUSED_HEARTBEAT, now);
            }
            Reply::TryAgain { retry_after } => self.failed(*retry_after, now),
        }
        None
    }

    /// The attempt was given up for a newer state, which goes out at once, but at most every [`EARLY_EVERY`]
    /// when the replica keeps on not answering.
    pub fn abandoned(&mut self, now: Duration) {
        let early = self.next_early(now);
        self.circuit = Circuit::OpenUntil(early);
        self.last_early = Some(early);
    }

    /// What came of the newest state; `None` while it is undelivered.
    pub fn settled(&self) -> Option<(Kind, Settled)> {
        self.settled.map(|settled| (self.newest.kind, settled))
    }

    /// Since when the newest state has been undelivered.
    pub fn undelivered_since(&self) -> Option<Duration> {
        self.settled.is_none().then_some(self.newest_since)
    }

    /// Until when the circuit is open, if it is.
    pub fn open_until(&self) -> Option<Duration> {
        match self.circuit {
            Circuit::Closed => None,
            Circuit::OpenUntil(until) => Some(until),
        }
    }

    fn accepted(&mut self, sent: Statement, with_token: bool, accepted: &Accepted, now: Duration) -> Option<Boot> {
        self.close_circuit();
        self.settle(sent, Settled::Acknowledged);
        self.schedule_heartbeat(Duration::from_secs(accepted.heartbeat_after_seconds.into()), now);
        match accepted.result {
            Outcome::Applied | Outcome::Duplicate => {
                self.bound |= with_token;
                None
            }
            // All that this replica has had from this delivery is not newer than `sent`, so somebody else's
            // statement holds, and our key need not be the one that is bound.
            Outcome::Superseded => {
                self.bound = false;
                (accepted.boot >= sent.order.boot).then_some(accepted.boot)
            }
        }
    }

    fn settle(&mut self, sent: Statement, settled: Settled) {
        // A heartbeat settles nothing that was not settled before it.
        if sent.order >= self.newest.order && (sent.kind != Kind::Heartbeat || self.settled.is_some()) {
            self.settled = Some(settled);
        }
    }

    fn schedule_heartbeat(&mut self, after: Duration, now: Duration) {
        let (least, most) = HEARTBEAT_BOUNDS;
        self.heartbeat_at = now + after.clamp(least, most);
    }

    fn next_early(&self, now: Duration) -> Duration {
        self.last_early.map_or(now, |last| now.max(last + EARLY_EVERY))
    }

    fn close_circuit(&mut self) {
        self.circuit = Circuit::Closed;
        self.last_early = None;
        self.pauses.reset();
    }

    fn failed(&mut self, retry_after: Option<Duration>, now: Duration) {
        self.circuit = Circuit::OpenUntil(now + retry::pause(self.pauses.next_pause(), retry_after));
    }
}

#[cfg(test)]
mod tests;
