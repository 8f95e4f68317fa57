//! What a request has of a target: its place in the queue while it is held, then its place on a backend. Both end when
//! they are dropped, wherever that happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::backend::{Backend, Way};
use super::grant::{Grant, Place};
use super::hold::Ticket;
use super::hub::Permit;
use super::quarantine::{Epoch, Reason};
use super::state::Errands;
use super::{Answer, Refusal, Target};
use crate::table::entry::Source;

/// A place on a backend. The request's share of it ends when this is dropped; then the next held one gets it.
#[derive(Debug)]
pub struct Lease {
    target: Arc<Target>,
    backend: Arc<Backend>,
    /// None once it has been given back.
    place: Option<Place>,
    epoch: Epoch,
    probe: bool,
    guess: bool,
    answered: AtomicBool,
    source: Source,
    held: Option<Duration>,
}

impl Lease {
    pub(super) fn new(target: &Arc<Target>, grant: Grant, held: Option<Duration>) -> Self {
        let Grant { backend, place, epoch, probe, guess, source } = grant;
        let answered = AtomicBool::new(false);
        Self { target: Arc::clone(target), backend, place: Some(place), epoch, probe, guess, answered, source, held }
    }

    /// Takes the place back from a lease that nobody took.
    pub(super) fn disarm(&mut self) -> Option<Place> {
        self.place.take()
    }

    /// Where to connect: the pod, or the ClusterIP.
    pub fn address(&self) -> SocketAddr {
        self.backend.address()
    }

    /// What it is a place on; the connections are there.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Which way it leads.
    pub fn way(&self) -> Way {
        self.backend.way()
    }

    /// Whether it is only worth a try: nobody says that anything listens there.
    pub fn is_guess(&self) -> bool {
        self.guess
    }

    /// How long the request was held, if it was.
    pub fn held(&self) -> Option<Duration> {
        self.held
    }

    /// The connection was refused or reset before anything was sent: the backend gets no more requests for a while.
    pub fn refused(&self) {
        self.failed(Reason::Refused);
    }

    /// The backend did not answer in time: the third time within a while it gets no more requests.
    pub fn timed_out(&self) {
        self.failed(Reason::TimedOut);
    }

    /// An answer came: whatever was held against the backend is forgotten.
    pub fn answered(&self) {
        if self.answered.swap(true, Ordering::Relaxed) || !self.probe {
            // Nobody waits for it: it can be told when the lease ends.
            return;
        }
        if let Some(place) = self.place {
            self.target.change(|state, now, out| state.answered(place, self.epoch, now, out));
        }
    }

    fn failed(&self, reason: Reason) {
        self.answered.store(false, Ordering::Relaxed);
        if let Some(place) = self.place
            && self.target.change(|state, now, _| state.failed(place, self.epoch, reason, now))
        {
            self.target.hub.meters(self.target.settings.load().mode).quarantined(reason);
            if reason == Reason::TimedOut {
                // Each connection to it that is there would cost a request as long again.
                self.backend.disconnect();
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let answered = self.answered.load(Ordering::Relaxed).then_some(self.epoch);
        let mut out = Vec::new();
        let mut state = self.target.lock();
        state.release(place, answered, || self.target.hub.now(), &mut out);
        let errands = if state.held() > 0 { state.errands(self.target.hub.now()) } else { Errands::default() };
        drop(state);
        self.target.run(errands);
        self.target.deliver(out);
    }
}

/// A request in the queue. Leaves it when dropped.
pub(super) struct Hold {
    target: Arc<Target>,
    ticket: Ticket,
    answer: oneshot::Receiver<Answer>,
    /// Whether it has been told something: then it is in the queue no more.
    told: bool,
    permit: Permit,
}

impl Hold {
    pub(super) fn new(target: &Arc<Target>, ticket: Ticket, answer: oneshot::Receiver<Answer>, permit: Permit) -> Self {
        Self { target: Arc::clone(target), ticket, answer, told: false, permit }
    }

    /// Waits to be told.
    pub(super) async fn wait(mut self, deadline: Instant) -> Answer {
        let answer = match tokio::time::timeout_at(deadline, &mut self.answer).await {
            Ok(answer) => answer.unwrap_or(Err(Refusal::Gone)),
            Err(_) => {
                // It may have been told in this very moment.
                self.answer.close();
                match self.answer.try_recv() {
                    Ok(answer) => answer,
                    Err(_) => return Err(Refusal::Deadline),
                }
            }
        };
        self.told = true;
        if let Ok(lease) = &answer {
            self.permit.meters().released(lease.source, lease.held.unwrap_or_default());
        }
        answer
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.told {
            // Whatever was sent and not received is dropped with the channel, after this.
            self.target.change(|state, now, out| drop(state.cancel(self.ticket, now, out)));
        }
    }
}
