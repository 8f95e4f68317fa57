//! The endpoints of one target and the requests that each of them has. Every question that a request asks is answered
//! from an index, so that it takes the same time with one endpoint and with 100 000; a change of an endpoint or of its
//! requests moves it in the indexes ([`Roster::file`]) and touches no other.
//!
//! Invariant: no endpoint has more requests than the limit, not even one that went and came back meanwhile: a slot
//! outlives its endpoint until the last of its requests has ended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use hashbrown::HashMap;

use super::backend::{Backend, Way};
use super::balance::Candidates;
use super::grant::{Grant, Place};
use super::hold::Avoid;
use super::quarantine::{Quarantine, Trust};
use super::reach::{Reach, Tier};
use super::view::BackendView;
use crate::table::entry::{Source, State};
use crate::table::group::{Endpoint, EndpointId};

/// Most of the endpoints shut longest that are looked at for one that a request may still try.
const SHUT_LOOKED_AT: usize = 16;

/// An endpoint, and the requests it has.
#[derive(Debug)]
struct Slot {
    id: EndpointId,
    endpoint: Option<Endpoint>,
    backend: Option<Arc<Backend>>,
    tier: Option<Tier>,
    in_flight: u32,
    quarantine: Quarantine,
    /// When it was last shut, or tried although it was.
    tried_at: Duration,
    filed: Filed,
}

impl Slot {
    fn is(&self, state: State) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.verdict.state == state)
    }

    fn is_avoided(&self, avoid: &Avoid) -> bool {
        self.backend.as_ref().is_some_and(|backend| avoid.contains(backend.id()))
    }
}

/// Where a slot stands in the indexes.
#[derive(Debug, Default, Clone, Copy)]
struct Filed {
    tier: Option<Tier>,
    live: Option<Tier>,
    open: Option<(Tier, u32)>,
    shut: Option<(Tier, Duration)>,
    until: Option<Duration>,
    in_flight: u32,
    api_ready: Option<Duration>,
    known: bool,
    pushed: bool,
}

#[derive(Debug, Default)]
struct Indexes {
    /// Endpoints of each tier.
    seats: [usize; 3],
    /// Of these, the ones that are neither shut nor being tried after that.
    live: [usize; 3],
    /// Of these, the ones that may have another request.
    open: [Candidates; 3],
    /// Requests that all of them have.
    in_flight: u64,
    /// The ones that are shut, in each tier the one tried longest ago first.
    shut: BTreeSet<(Tier, Duration, u32)>,
    /// When time alone changes whom to trust.
    timed: BTreeSet<(Duration, u32)>,
    /// Since when the API server's word is that they are ready, as seen here.
    api_ready: BTreeSet<(Duration, u32)>,
    known: usize,
    /// Endpoints that a sidecar speaks for.
    pushed: usize,
}

/// The endpoints of one target.
#[derive(Debug)]
pub(super) struct Roster {
    reach: Reach,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_id: HashMap<EndpointId, u32, foldhash::fast::RandomState>,
    indexes: Indexes,
    rng: Rng,
}

impl Roster {
    /// No endpoints.
    pub(super) fn new(reach: Reach, rng: Rng) -> Self {
        let (slots, free) = (Vec::new(), Vec::new());
        Self { reach, slots, free, by_id: HashMap::default(), indexes: Indexes::default(), rng }
    }

    /// Reaches all endpoints in another way; `afresh` makes all connections anew even where the way is the same.
    pub(super) fn configure(&mut self, reach: Reach, afresh: bool, now: Duration) {
        if reach == self.reach && !afresh {
            return;
        }
        self.reach = reach;
        for at in 0..self.slots.len() {
            self.seat(number(at), afresh, now);
        }
    }

    /// An endpoint came or changed; gone when none. True when it has become ready, or has once more.
    pub(super) fn update(&mut self, id: &EndpointId, endpoint: Option<Endpoint>, now: Duration) -> bool {
        let at = match self.by_id.get(id) {
            Some(at) => *at,
            None if endpoint.is_none() => return false,
            None => self.open_slot(id),
        };
        let slot = &mut self.slots[at as usize];
        let before = std::mem::replace(&mut slot.endpoint, endpoint);
        let since = |endpoint: &Option<Endpoint>| endpoint.as_ref().map(|endpoint| endpoint.verdict.since_ms);
        let was_ready = before.as_ref().is_some_and(|endpoint| endpoint.is_ready());
        let news = slot.is(State::Ready) && (!was_ready || since(&before) != since(&slot.endpoint));
        if news {
            slot.quarantine.lift();
        }
        self.seat(at, false, now);
        self.free_if_done(at);
        news
    }

    /// The endpoints that are here and not among `known`.
    pub(super) fn strangers(&self, known: impl Fn(&EndpointId) -> bool) -> Vec<EndpointId> {
        let here = self.slots.iter().filter(|slot| slot.endpoint.is_some());
        here.map(|slot| &slot.id).filter(|id| !known(id)).cloned().collect()
    }

    /// The best tier that has an endpoint to be trusted.
    pub(super) fn best(&self) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| self.indexes.live[*tier as usize] > 0)
    }

    /// A place on an endpoint of a tier, by the power of two choices.
    pub(super) fn pick(&mut self, tier: Tier, avoid: &Avoid, now: Duration) -> Option<Grant> {
        let slots = &self.slots;
        let load = |at: u32| slots[at as usize].in_flight;
        let avoided = |at: u32| slots[at as usize].is_avoided(avoid);
        let at = self.indexes.open[tier as usize].pick(&mut self.rng, load, avoided)?;
        self.grant(at, now)
    }

    /// A place on the shut endpoint that was tried longest ago, for a request that has not tried it yet.
    pub(super) fn pick_shut(&mut self, avoid: &Avoid, now: Duration) -> Option<Grant> {
        let mut oldest = self.indexes.shut.iter().take(SHUT_LOOKED_AT).map(|(_, _, at)| *at);
        let at = oldest.find(|at| {
            let slot = &self.slots[*at as usize];
            slot.in_flight < self.reach.most() && !slot.is_avoided(avoid)
        });
        self.grant(at?, now)
    }

    /// A request has ended.
    pub(super) fn release(&mut self, at: u32) {
        self.slots[at as usize].in_flight -= 1;
        self.file(at);
        self.free_if_done(at);
    }

    /// Changes an endpoint's record.
    pub(super) fn judge<T>(&mut self, at: u32, now: Duration, judge: impl FnOnce(&mut Quarantine) -> T) -> T {
        let slot = &mut self.slots[at as usize];
        let before = slot.quarantine.trust();
        let result = judge(&mut slot.quarantine);
        if slot.quarantine.trust() != before {
            slot.tried_at = now;
        }
        self.file(at);
        result
    }

    /// Lets time pass.
    pub(super) fn lapse(&mut self, now: Duration) {
        while let Some((until, at)) = self.indexes.timed.first().copied() {
            if until > now {
                break;
            }
            self.slots[at as usize].quarantine.lapse(now);
            self.file(at);
        }
    }

    /// When [`Roster::lapse`] next has something to do.
    pub(super) fn next_lapse(&self) -> Option<Duration> {
        self.indexes.timed.first().map(|(until, _)| *until)
    }

    /// Endpoints of a tier, shut or not.
    pub(super) fn seats(&self, tier: Tier) -> usize {
        self.indexes.seats[tier as usize]
    }

    /// Endpoints that may have requests, shut or not.
    pub(super) fn all_seats(&self) -> usize {
        self.indexes.seats.iter().sum()
    }

    /// Requests that they have.
    pub(super) fn all_in_flight(&self) -> u64 {
        self.indexes.in_flight
    }

    /// Since when the API server's word is that some endpoint is ready.
    pub(super) fn api_ready_since(&self) -> Option<Duration> {
        self.indexes.api_ready.first().map(|(since, _)| *since)
    }

    /// Whether there are endpoints and no sidecar speaks for any of them.
    pub(super) fn is_silent(&self) -> bool {
        self.indexes.known > 0 && self.indexes.pushed == 0
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.slots.iter().map(|slot| u64::from(slot.in_flight)).sum()
    }

    /// Ends the use of all connections.
    pub(super) fn retire(&self) {
        self.slots.iter().filter_map(|slot| slot.backend.as_ref()).for_each(|backend| backend.retire());
    }

    pub(super) fn views(&self, now: Duration) -> impl Iterator<Item = BackendView> {
        let in_use = self.slots.iter().filter(|slot| slot.endpoint.is_some() || slot.in_flight > 0);
        in_use.map(move |slot| {
            let endpoint = slot.endpoint.as_ref();
            let pod = endpoint.and_then(|endpoint| endpoint.pod.as_ref());
            BackendView {
                pod: pod.map(|pod| pod.name().as_ref().to_owned()),
                uid: pod.map(|pod| pod.uid().to_string()),
                address: slot.backend.as_ref().map(|backend| backend.address().to_string()),
                way: Way::Direct,
                state: endpoint.map(|endpoint| endpoint.verdict.state),
                source: endpoint.map(|endpoint| endpoint.verdict.source),
                since_ms: endpoint.map_or(0, |endpoint| endpoint.verdict.since_ms),
                in_flight: slot.in_flight,
                quarantine_seconds: slot.quarantine.seconds(now),
            }
        })
    }

    fn grant(&mut self, at: u32, now: Duration) -> Option<Grant> {
        let slot = &mut self.slots[at as usize];
        let backend = Arc::clone(slot.backend.as_ref()?);
        slot.in_flight += 1;
        let epoch = slot.quarantine.sent(now);
        let probe = slot.quarantine.trust() != Trust::Open;
        if probe {
            slot.tried_at = now;
        }
        let source = slot.endpoint.as_ref().map_or(Source::Observed, |endpoint| endpoint.verdict.source);
        self.file(at);
        Some(Grant { backend, place: Place::Slot(at), epoch, probe, guess: false, source })
    }

    fn open_slot(&mut self, id: &EndpointId) -> u32 {
        let slot = Slot {
            id: id.clone(),
            endpoint: None,
            backend: None,
            tier: None,
            in_flight: 0,
            quarantine: Quarantine::new(),
            tried_at: Duration::ZERO,
            filed: Filed::default(),
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                number(self.slots.len() - 1)
            }
        };
        self.by_id.insert(id.clone(), at);
        at
    }

    /// Lets go of an endpoint that is gone, once its last request has ended.
    fn free_if_done(&mut self, at: u32) {
        let slot = &self.slots[at as usize];
        if slot.endpoint.is_none() && slot.in_flight == 0 {
            self.by_id.remove(&slot.id);
            self.free.push(at);
        }
    }

    /// Decides where an endpoint is reached and how good it is.
    fn seat(&mut self, at: u32, afresh: bool, now: Duration) {
        let slot = &mut self.slots[at as usize];
        let endpoint = slot.endpoint.as_ref();
        let address = endpoint.and_then(|endpoint| self.reach.addresses(endpoint));
        let leaving = endpoint.is_none() || slot.is(State::Draining) || slot.is(State::Terminating);
        slot.tier = endpoint.filter(|_| address.is_some()).and_then(|endpoint| self.reach.tier(endpoint));
        let held = slot.backend.take();
        let stays = |held: &Backend| Some(held.addresses()) == address && !afresh && (held.usable() || leaving);
        slot.backend = match held {
            Some(held) if stays(&held) => Some(held),
            held => {
                if let Some(held) = held {
                    held.abandon();
                    slot.quarantine.lift();
                }
                address.map(|addresses| Backend::new(addresses, Some(slot.id.clone()), self.reach.workers))
            }
        };
        if leaving {
            slot.backend.iter().for_each(|backend| backend.retire());
        }
        self.file_word(at, now);
        self.file(at);
    }

    /// Brings the indexes up to date that only a change of the endpoint moves.
    fn file_word(&mut self, at: u32, now: Duration) {
        let Self { slots, indexes, .. } = self;
        let slot = &mut slots[at as usize];
        let filed = slot.filed;
        let verdict = slot.endpoint.as_ref().map(|endpoint| endpoint.verdict);
        let known = verdict.is_some();
        let pushed = verdict.is_some_and(|verdict| verdict.source == Source::Pushed);
        let api_ready = verdict.is_some_and(|verdict| verdict.state == State::Ready && verdict.serving);
        let api_ready = api_ready.then(|| filed.api_ready.unwrap_or(now));
        count(&mut indexes.known, filed.known, known);
        count(&mut indexes.pushed, filed.pushed, pushed);
        move_in(&mut indexes.api_ready, filed.api_ready.map(|since| (since, at)), api_ready.map(|since| (since, at)));
        slot.filed = Filed { known, pushed, api_ready, ..filed };
    }

    /// Brings the indexes up to date with an endpoint's tier, requests and trust.
    fn file(&mut self, at: u32) {
        let Self { slots, indexes, reach, .. } = self;
        let slot = &slots[at as usize];
        let filed = slot.filed;
        let trust = slot.quarantine.trust();
        let is_shut = matches!(trust, Trust::Shut { .. });
        let takes_more = slot.in_flight < reach.most();
        let (tier, in_flight) = (slot.tier, slot.in_flight);
        let live = tier.filter(|_| matches!(trust, Trust::Open | Trust::Half));
        let shut = tier.filter(|_| is_shut).map(|tier| (tier, slot.tried_at));
        let until = slot.quarantine.until().filter(|_| slot.endpoint.is_some());
        let open = live.filter(|_| takes_more);
        if (filed.tier, filed.live) != (tier, live) {
            for each in Tier::ALL {
                count(&mut indexes.seats[each as usize], filed.tier == Some(each), tier == Some(each));
                count(&mut indexes.live[each as usize], filed.live == Some(each), live == Some(each));
            }
        }
        indexes.in_flight -= filed.tier.map_or(0, |_| u64::from(filed.in_flight));
        indexes.in_flight += tier.map_or(0, |_| u64::from(in_flight));
        let in_shut = |(tier, tried_at)| (tier, tried_at, at);
        move_in(&mut indexes.shut, filed.shut.map(in_shut), shut.map(in_shut));
        move_in(&mut indexes.timed, filed.until.map(|until| (until, at)), until.map(|until| (until, at)));
        let mut stands = filed.open;
        if filed.open.map(|(tier, _)| tier) != open {
            if let Some((tier, place)) = filed.open
                && let Some(moved) = indexes.open[tier as usize].remove(place)
            {
                slots[moved as usize].filed.open = Some((tier, place));
            }
            stands = open.map(|tier| (tier, indexes.open[tier as usize].insert(at)));
        }
        let filed = &mut slots[at as usize].filed;
        *filed = Filed { tier, live, open: stands, shut, until, in_flight, ..*filed };
    }
}

fn number(at: usize) -> u32 {
    u32::try_from(at).expect("there are fewer endpoints than addresses")
}

fn count(counter: &mut usize, before: bool, after: bool) {
    *counter += usize::from(after);
    *counter -= usize::from(before);
}

fn move_in<T: Ord>(index: &mut BTreeSet<T>, before: Option<T>, after: Option<T>) {
    if before != after {
        before.map(|before| index.remove(&before));
        after.map(|after| index.insert(after));
    }
}
