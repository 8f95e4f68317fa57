//! The queue of held requests of one target: first come, first served, whoever leaves costs nothing. It keeps what
//! each waits with, and numbers, but knows neither clock nor task.

use std::collections::VecDeque;
use std::time::Duration;

use super::backend::BackendId;

/// Places of those who left are kept up to this many, or as many as those who stay: then the queue closes up.
const GAPS: usize = 32;

/// Room for so many is kept when the queue runs empty.
const KEPT: usize = 32;

/// The backends that a request has tried already: the latest, should they be more than it may try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Avoid([Option<BackendId>; 3]);

impl Avoid {
    pub(super) fn new(tried: &[BackendId]) -> Self {
        let mut ids = [None; 3];
        for (place, id) in ids.iter_mut().zip(tried.iter().rev()) {
            *place = Some(*id);
        }
        Self(ids)
    }

    pub(super) fn contains(&self, id: &BackendId) -> bool {
        self.0.iter().flatten().any(|tried| tried == id)
    }
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// One held request.
#[derive(Debug)]
pub(super) struct Held<W> {
    /// Whoever waits.
    pub(super) waiter: W,
    /// Since when.
    pub(super) since: Duration,
    /// What it has tried.
    pub(super) avoid: Avoid,
}

/// Held requests in the order in which they came.
#[derive(Debug)]
pub(super) struct Queue<W> {
    /// By ticket, rising. A place is empty once its request has left.
    places: VecDeque<(Ticket, Option<Held<W>>)>,
    held: usize,
    next: u64,
}

impl<W> Queue<W> {
    pub(super) fn new() -> Self {
        Self { places: VecDeque::new(), held: 0, next: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.held
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Puts a request at the end.
    pub(super) fn push(&mut self, held: Held<W>) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.places.push_back((ticket, Some(held)));
        self.held += 1;
        ticket
    }

    /// The one that has waited longest.
    pub(super) fn first(&self) -> Option<&Held<W>> {
        // The first place is never empty.
        self.places.front().and_then(|(_, held)| held.as_ref())
    }

    /// Takes the one that has waited longest.
    pub(super) fn pop(&mut self) -> Option<Held<W>> {
        let (_, held) = self.places.pop_front()?;
        self.held -= usize::from(held.is_some());
        self.close_up();
        held
    }

    /// A request leaves. None when it is no longer here.
    pub(super) fn cancel(&mut self, ticket: Ticket) -> Option<Held<W>> {
        let at = self.places.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        let held = self.places.get_mut(at)?.1.take()?;
        self.held -= 1;
        self.close_up();
        Some(held)
    }

    fn close_up(&mut self) {
        while self.places.front().is_some_and(|(_, held)| held.is_none()) {
            self.places.pop_front();
        }
        if self.places.len() - self.held > GAPS.max(self.held) {
            self.places.retain(|(_, held)| held.is_some());
        }
        if self.held == 0 && self.places.capacity() > KEPT {
            self.places = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests;
