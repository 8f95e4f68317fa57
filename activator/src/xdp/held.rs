//! What is answered just now, shared by the one writer and all readers: the server of the readiness port, the status. The
//! same that the kernel's map holds, with names in place of hashes.
//!
//! Invariant: an answer is given only while the writer's last sign of life is younger than the time to live. It is the
//! table's: everything that the table was told before it is in here.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::answers::Answer;
use super::place::Place;
use crate::table::snapshot::Moment;

/// All answers by place. Cheap to clone.
pub(super) type Picture = imbl::OrdMap<Arc<Place>, Answer>;

/// What is answered to somebody who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// This.
    Answer(Answer),
    /// There is no such place: 404.
    Unknown,
    /// Nobody knows any more, or not yet: 503.
    Stale,
}

/// The answers. Readers wait for the writer for as long as one answer takes to be put in.
#[derive(Debug)]
pub struct Held {
    ttl: Duration,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    answers: Picture,
    alive: Option<Moment>,
    left_out: usize,
}

impl State {
    fn is_alive(&self, now: Moment, ttl: Duration) -> bool {
        self.alive.is_some_and(|alive| alive.until(now) < ttl)
    }
}

impl Held {
    /// No answers, and no sign of life yet.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, state: RwLock::default() }
    }

    /// What is answered at a place.
    pub fn ask(&self, place: &Place, now: Moment) -> Found {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if !state.is_alive(now, self.ttl) {
            return Found::Stale;
        }
        state.answers.get(place).map_or(Found::Unknown, |answer| Found::Answer(*answer))
    }

    /// How long answers are given after a sign of life.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether answers are given.
    pub fn is_alive(&self, now: Moment) -> bool {
        self.read(|state| state.is_alive(now, self.ttl))
    }

    /// The last sign of life.
    pub fn alive(&self) -> Option<Moment> {
        self.read(|state| state.alive)
    }

    /// How many answers there are, and how many have no room.
    pub fn sizes(&self) -> (usize, usize) {
        self.read(|state| (state.answers.len(), state.left_out))
    }

    /// All answers as they are now. Costs nothing until the next one is written.
    pub(super) fn picture(&self) -> Picture {
        self.read(|state| state.answers.clone())
    }

    pub(super) fn get(&self, place: &Place) -> Option<Answer> {
        self.read(|state| state.answers.get(place).copied())
    }

    pub(super) fn put(&self, place: Arc<Place>, answer: Answer) {
        self.write(|state| _ = state.answers.insert(place, answer));
    }

    pub(super) fn remove(&self, place: &Place) {
        self.write(|state| _ = state.answers.remove(place));
    }

    pub(super) fn leave_out(&self, places: usize) {
        self.write(|state| state.left_out = places);
    }

    /// A sign of life; none takes all of them back.
    pub(super) fn beat(&self, alive: Option<Moment>) {
        self.write(|state| state.alive = alive);
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, write: impl FnOnce(&mut State)) {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }
}
