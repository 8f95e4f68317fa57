//! The delivery task of one replica: the clock, the network and the log of its [`Delivery`].

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, histogram};
use podlight_proto::{Accepted, Kind};
use reqwest::Url;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use super::attempt::{Failure, Sender};
use super::board::{Board, Newest, Status};
use super::delivery::{Delivery, Reply, Settled, Step};
use super::replicas::{Activator, MAX_REPLICAS};
use crate::announcer::Announcer;
use crate::readiness::{Readiness, Statement};
use crate::retry::Exponential;

/// How long an attempt under way may keep a newer state waiting: the round trip of a healthy replica. From one
/// that hangs the newer state then goes out on a connection of its own.
const SUPERSEDED_GRACE: Duration = Duration::from_millis(10);

/// The delivery task of one replica.
pub(super) struct Replica {
    url: Url,
    activator: Activator,
    announcer: Announcer,
    sender: Arc<Sender>,
    board: watch::Sender<Board>,
    started: Instant,
    /// Labels of the failures that were logged since the last success.
    troubles: Vec<&'static str>,
    status: Status,
}

impl Replica {
    /// A replica that stands on the board and has been told nothing.
    pub(super) fn new(
        url: Url,
        activator: Activator,
        announcer: Announcer,
        sender: Arc<Sender>,
        board: watch::Sender<Board>,
    ) -> Self {
        let (started, troubles, status) = (Instant::now(), Vec::new(), Status::default());
        Self { url, activator, announcer, sender, board, started, troubles, status }
    }

    /// Tells it everything, until it is ended from outside.
    pub(super) async fn run(mut self) {
        let mut states = self.announcer.follow();
        let mut tokens = self.sender.tokens.follow();
        let mut delivery = Delivery::new(states.borrow_and_update().statement(), Exponential::default(), self.now());
        loop {
            delivery.state(states.borrow_and_update().statement(), self.now());
            if tokens.has_changed().unwrap_or(false) {
                tokens.borrow_and_update();
                delivery.token_rotated(self.now());
            }
            self.publish(&delivery);
            let wake = match delivery.next(self.now()) {
                Step::Send { state, with_token } => {
                    let statement = state.unwrap_or_else(|| self.announcer.heartbeat());
                    let begun = Instant::now();
                    let outcome = tokio::select! {
                        outcome = self.sender.attempt(&self.url, statement, with_token) => Some(outcome),
                        () = superseded(states.clone()) => None,
                    };
                    histogram!("podlight_sidecar_attempt_duration_seconds").record(begun.elapsed());
                    match outcome {
                        Some(Ok(accepted)) => self.accepted(&mut delivery, statement, with_token, accepted),
                        Some(Err(failure)) => self.failed(&mut delivery, statement, with_token, &failure),
                        None => {
                            count_attempt("abandoned");
                            delivery.abandoned(self.now());
                        }
                    }
                    continue;
                }
                Step::WaitUntil(at) => self.started + at,
            };
            tokio::select! {
                () = sleep_until(wake) => {}
                changed = states.changed() => if changed.is_err() { return },
                _ = tokens.changed() => delivery.token_rotated(self.now()),
            }
        }
    }

    fn accepted(&mut self, delivery: &mut Delivery, sent: Statement, with_token: bool, accepted: Accepted) {
        count_attempt("accepted");
        count_event(sent.kind, accepted.result.as_str());
        debug!(replica = %self.url, order = %sent.order, kind = %sent.kind, result = accepted.result.as_str(), "accepted");
        self.status.peers = self.peers(&accepted.peers);
        self.status.replica = Some(accepted.replica.clone());
        let behind = delivery.replied(sent, with_token, &Reply::Accepted(accepted), self.now());
        match behind.map(|held| self.announcer.adopt(held)) {
            Some(Err(error)) => self.troubled("adopt", &error, true),
            Some(Ok(())) | None => self.recovered(),
        }
    }

    fn failed(&mut self, delivery: &mut Delivery, sent: Statement, with_token: bool, failure: &Failure) {
        count_attempt(failure.label());
        let reply = failure.reply();
        if reply == Reply::Refused {
            count_event(sent.kind, "refused");
        }
        if reply == Reply::TokenWanted && !with_token {
            debug!(replica = %self.url, "the token is asked for");
        } else {
            self.troubled(failure.label(), failure, !failure.is_warning());
        }
        delivery.replied(sent, with_token, &reply, self.now());
    }

    /// Logs the first failure of its kind since the last success.
    fn troubled(&mut self, label: &'static str, failure: &dyn std::error::Error, is_error: bool) {
        let (replica, reason) = (self.url.as_str(), crate::chain(failure));
        let known = self.troubles.contains(&label);
        if known {
            debug!(replica, reason, "the replica still does not take events");
        } else if is_error {
            error!(replica, reason, "the replica does not take events");
        } else {
            warn!(replica, reason, "the replica does not take events");
        }
        if !known {
            self.troubles.push(label);
        }
        self.status.trouble = Some(reason);
    }

    fn recovered(&mut self) {
        if !self.troubles.is_empty() {
            self.troubles.clear();
            self.status.trouble = None;
            info!(replica = %self.url, "the replica takes events again");
        }
    }

    fn peers(&self, named: &[String]) -> Vec<Url> {
        let peers: Vec<Url> = named.iter().take(MAX_REPLICAS).filter_map(|peer| self.activator.peer(peer)).collect();
        counter!("podlight_sidecar_peers_refused_total").increment((named.len() - peers.len()) as u64);
        peers
    }

    fn publish(&mut self, delivery: &Delivery) {
        self.status.undelivered_since = delivery.undelivered_since().map(|since| self.started + since);
        self.status.retry_at = delivery.open_until().map(|until| self.started + until);
        self.status.newest = match delivery.settled() {
            None => Newest::Undelivered,
            Some((Kind::Draining, Settled::Acknowledged)) => Newest::Drained,
            Some((Kind::Draining, Settled::Refused)) => Newest::DrainRefused,
            Some((_, Settled::Acknowledged)) => Newest::Acknowledged,
            Some((_, Settled::Refused)) => Newest::Refused,
        };
        self.board.send_if_modified(|board| match board.get_mut(&self.url) {
            Some(status) if *status != self.status => {
                status.clone_from(&self.status);
                true
            }
            Some(_) | None => false,
        });
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Ends a little after a newer state is there.
async fn superseded(mut states: watch::Receiver<Readiness>) {
    // A closed channel is noticed by the task itself.
    let _ = states.changed().await;
    sleep(SUPERSEDED_GRACE).await;
}

fn count_attempt(result: &'static str) {
    counter!("podlight_sidecar_attempts_total", "result" => result).increment(1);
}

fn count_event(kind: Kind, result: &'static str) {
    counter!("podlight_sidecar_events_total", "kind" => kind.as_str(), "result" => result).increment(1);
}
