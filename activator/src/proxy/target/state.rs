//! One target as a plain value: its endpoints, the requests that each of them has, whom to trust, and the queue of held
//! requests. It takes changes and time and tells which held requests may go where; it knows no clock, lock or task.
//!
//! Invariants: no pod has more requests than its limit, whatever becomes of the pod's address meanwhile; nobody overtakes
//! the queue; whatever makes room lets the first in the queue go in the same step.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use hashbrown::HashMap;

use super::Refusal;
use super::asking::Asking;
use super::backend::{Backend, Way};
use super::balance::Candidates;
use super::hold::{Avoid, Held, Queue, Ticket};
use super::quarantine::{Epoch, Quarantine, Reason, Trust};
use super::settings::{Mode, Settings};
use super::view::{BackendView, Load};
use crate::proxy::wake::{ScaleError, Scaled};
use crate::table::entry::{Source, State};
use crate::table::group::{Endpoint, EndpointId, Family, Service, ServiceKind};

/// Most of the endpoints shut longest that are looked at for one that a request may still try.
const SHUT_LOOKED_AT: usize = 16;

/// What a target is bounded by, the same for all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most requests held.
    pub(super) held: usize,
    /// How long after the API server has called an endpoint ready its ClusterIP may still lead elsewhere.
    pub(super) cluster_ip_lag: Duration,
    /// Pools of each backend.
    pub(super) workers: usize,
}

/// How good an endpoint is; the best there are take the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Ready,
    /// Not ready, but its Service publishes it nevertheless.
    Published,
    /// On its way out, and answering still (KEP-1669).
    Leaving,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Ready, Self::Published, Self::Leaving];
}

/// Where a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// An endpoint, by its slot.
    Slot(u32),
    /// The Service's virtual address.
    ClusterIp,
}

/// A place on a backend for one request. Whoever has it must give it back by [`TargetState::release`].
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) backend: Arc<Backend>,
    pub(super) place: Place,
    pub(super) epoch: Epoch,
    /// Whether others wait for what becomes of it.
    pub(super) probe: bool,
    /// Whose word the endpoint's readiness rests on.
    pub(super) source: Source,
}

/// What a request that comes gets.
#[derive(Debug)]
pub(super) enum Admission {
    Granted(Grant),
    /// Nothing yet: it is to be held.
    Wait,
}

/// What a held request gets.
#[derive(Debug)]
pub(super) struct Delivery<W> {
    pub(super) held: Held<W>,
    pub(super) outcome: Result<Grant, Refusal>,
}

/// What somebody outside has to do for the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Errands {
    /// Call [`TargetState::tick`] then; not told again.
    pub(super) wake_at: Option<Duration>,
    /// Ask for it to be scaled up, and tell by [`TargetState::scaled`] what came of it.
    pub(super) scale: bool,
}

/// An endpoint, and the requests it has. It outlives the endpoint until the last of them has ended.
#[derive(Debug)]
struct Slot {
    id: EndpointId,
    endpoint: Option<Endpoint>,
    backend: Option<Arc<Backend>>,
    tier: Option<Tier>,
    in_flight: u32,
    quarantine: Quarantine,
    /// When it was last tried although it was shut, or else shut.
    tried_at: Duration,
    filed: Filed,
}

/// Where a slot stands in the target's indexes.
#[derive(Debug, Default, Clone, Copy)]
struct Filed {
    tier: Option<Tier>,
    live: Option<Tier>,
    open: Option<(Tier, u32)>,
    shut: Option<(Tier, Duration)>,
    until: Option<Duration>,
    /// Since when the API server's word is that it is ready, as seen here.
    api_ready: Option<Duration>,
    known: bool,
    pushed: bool,
}

#[derive(Debug, Default)]
struct Indexes {
    /// Endpoints of each tier.
    seats: [usize; 3],
    /// Of these, the ones that are not shut.
    live: [usize; 3],
    /// Of these, the ones that may have another request.
    open: [Candidates; 3],
    /// The ones that are shut, the one tried longest ago first in its tier.
    shut: BTreeSet<(Tier, Duration, u32)>,
    /// By when time alone changes their trust.
    timed: BTreeSet<(Duration, u32)>,
    api_ready: BTreeSet<(Duration, u32)>,
    known: usize,
    pushed: usize,
}

/// The Service's virtual address.
#[derive(Debug)]
struct ClusterIp {
    backend: Option<Arc<Backend>>,
    in_flight: u32,
    quarantine: Quarantine,
}

/// One target. `W` is what a held request is told by.
#[derive(Debug)]
pub(super) struct TargetState<W> {
    bounds: Bounds,
    settings: Arc<Settings>,
    families: Vec<Family>,
    publish_not_ready: bool,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_id: HashMap<EndpointId, u32, foldhash::fast::RandomState>,
    indexes: Indexes,
    cluster_ip: ClusterIp,
    queue: Queue<W>,
    asking: Asking,
    closed: Option<Refusal>,
    /// The earliest wake-up that somebody has been told of and that has not come.
    armed: Option<Duration>,
    rng: Rng,
}

impl<W> TargetState<W> {
    /// A target without endpoints. `seed` decides what is drawn.
    pub(super) fn new(bounds: Bounds, settings: Arc<Settings>, service: &Service, seed: u64) -> Self {
        let cluster_ip = ClusterIp { backend: None, in_flight: 0, quarantine: Quarantine::flat() };
        let mut state = Self {
            bounds,
            settings,
            families: service.families.clone(),
            publish_not_ready: service.publish_not_ready,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::default(),
            indexes: Indexes::default(),
            cluster_ip,
            queue: Queue::new(),
            asking: Asking::default(),
            closed: None,
            armed: None,
            rng: Rng::with_seed(seed),
        };
        state.seat_cluster_ip(service, false);
        state
    }

    /// Takes new settings, or the same for a Service that changed otherwise.
    pub(super) fn configure(
        &mut self,
        settings: Arc<Settings>,
        service: &Service,
        now: Duration,
        out: &mut Vec<Delivery<W>>,
    ) {
        let afresh = !settings.same_connections(&self.settings);
        if settings.scale_target != self.settings.scale_target {
            self.asking.reset();
        }
        self.settings = settings;
        self.families.clone_from(&service.families);
        self.publish_not_ready = service.publish_not_ready;
        self.seat_cluster_ip(service, afresh);
        for slot in 0..self.slots.len() {
            self.seat(slot as u32, afresh, now);
        }
        self.assign(now, out);
    }

    /// An endpoint came or changed; gone when none.
    pub(super) fn update(
        &mut self,
        id: &EndpointId,
        endpoint: Option<Endpoint>,
        now: Duration,
        out: &mut Vec<Delivery<W>>,
    ) {
        let slot = match self.by_id.get(id) {
            Some(slot) => *slot,
            None if endpoint.is_none() => return,
            None => self.open_slot(id),
        };
        let before = std::mem::replace(&mut self.slots[slot as usize].endpoint, endpoint);
        let held = &mut self.slots[slot as usize];
        let ready_since =
            |e: &Option<Endpoint>| e.as_ref().filter(|e| e.verdict.state == State::Ready).map(|e| e.verdict.since_ms);
        let since = ready_since(&held.endpoint);
        if since.is_some() && since != ready_since(&before) {
            held.quarantine.lift();
            self.asking.reset();
        }
        self.seat(slot, false, now);
        self.free_if_done(slot);
        self.assign(now, out);
    }

    /// Forgets the endpoints that are not among `known`.
    pub(super) fn retain(&mut self, known: impl Fn(&EndpointId) -> bool, now: Duration, out: &mut Vec<Delivery<W>>) {
        let gone = self.slots.iter().filter(|slot| slot.endpoint.is_some() && !known(&slot.id));
        let gone: Vec<EndpointId> = gone.map(|slot| slot.id.clone()).collect();
        gone.iter().for_each(|id| self.update(id, None, now, out));
    }

    /// A request comes.
    ///
    /// # Errors
    /// When it will not be served whatever it waits for.
    pub(super) fn admit(&mut self, avoid: &Avoid, now: Duration) -> Result<Admission, Refusal> {
        if let Some(refusal) = &self.closed {
            return Err(refusal.clone());
        }
        if self.queue.is_empty()
            && let Some(grant) = self.pick(avoid, now)
        {
            return Ok(Admission::Granted(grant));
        }
        if self.wants_scaling()
            && let Some(why) = self.asking.refused(now)
        {
            return Err(Refusal::ScaleFailed(Arc::clone(why)));
        }
        if self.queue.len() >= self.bounds.held { Err(Refusal::Full) } else { Ok(Admission::Wait) }
    }

    /// Puts a request at the end of the queue, after [`TargetState::admit`] has said so.
    pub(super) fn hold(&mut self, waiter: W, avoid: Avoid, now: Duration) -> Ticket {
        self.queue.push(Held { waiter, since: now, avoid })
    }

    /// A held request leaves. None when it has been told something already.
    pub(super) fn cancel(&mut self, ticket: Ticket, now: Duration, out: &mut Vec<Delivery<W>>) -> Option<Held<W>> {
        let held = self.queue.cancel(ticket);
        // What the first one waited for may be less than what the next one takes.
        self.assign(now, out);
        held
    }

    /// A request has ended.
    pub(super) fn release(
        &mut self,
        place: Place,
        answered: Option<Epoch>,
        now: impl FnOnce() -> Duration,
        out: &mut Vec<Delivery<W>>,
    ) {
        if let Some(epoch) = answered {
            self.quarantine(place).answered(epoch);
        }
        match place {
            Place::Slot(slot) => {
                self.slots[slot as usize].in_flight -= 1;
                self.file(slot);
                self.free_if_done(slot);
            }
            Place::ClusterIp => self.cluster_ip.in_flight -= 1,
        }
        if !self.queue.is_empty() {
            self.assign(now(), out);
        }
    }

    /// A request's connection was refused, or no answer came. True when that put the backend in quarantine.
    pub(super) fn failed(&mut self, place: Place, epoch: Epoch, reason: Reason, now: Duration) -> bool {
        let quarantine = self.quarantine(place);
        let shut = match reason {
            Reason::Refused => quarantine.refused(epoch, now),
            Reason::TimedOut => quarantine.timed_out(epoch, now),
        };
        if let Place::Slot(slot) = place {
            if shut {
                self.slots[slot as usize].tried_at = now;
            }
            self.file(slot);
        }
        shut
    }

    /// An answer came, and others may wait for that.
    pub(super) fn answered(&mut self, place: Place, epoch: Epoch, now: Duration, out: &mut Vec<Delivery<W>>) {
        self.quarantine(place).answered(epoch);
        if let Place::Slot(slot) = place {
            self.file(slot);
        }
        self.assign(now, out);
    }

    /// What came of asking for it to be scaled up.
    pub(super) fn scaled(&mut self, outcome: Result<Scaled, ScaleError>, now: Duration, out: &mut Vec<Delivery<W>>) {
        let failed = self.asking.end(outcome, now, &mut self.rng);
        if let Some(why) = failed
            && self.wants_scaling()
        {
            self.refuse_all(&Refusal::ScaleFailed(why), out);
        }
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now: Duration, out: &mut Vec<Delivery<W>>) {
        if self.armed.is_some_and(|at| at <= now) {
            self.armed = None;
        }
        self.assign(now, out);
    }

    /// Takes no more requests; those held are told so.
    pub(super) fn close(&mut self, refusal: Refusal, out: &mut Vec<Delivery<W>>) {
        self.refuse_all(&refusal, out);
        self.closed = Some(refusal);
        self.slots.iter().filter_map(|slot| slot.backend.as_ref()).for_each(|backend| backend.retire());
        self.cluster_ip.backend.iter().for_each(|backend| backend.retire());
    }

    /// What is to be done outside, after any change.
    pub(super) fn errands(&mut self, now: Duration) -> Errands {
        if self.queue.is_empty() {
            return Errands::default();
        }
        let scale = self.wants_scaling() && self.asking.begin(now);
        let wake_at = self.next_change(now).filter(|at| self.armed.is_none_or(|armed| *at < armed));
        self.armed = wake_at.or(self.armed);
        Errands { wake_at, scale }
    }

    /// How many requests are held.
    pub(super) fn held(&self) -> usize {
        self.queue.len()
    }

    /// What it does now, with at most so many endpoints.
    pub(super) fn load(&self, now: Duration, most_backends: usize) -> Load {
        let in_use = self.slots.iter().filter(|slot| slot.endpoint.is_some() || slot.in_flight > 0);
        let in_flight = self.slots.iter().map(|slot| u64::from(slot.in_flight)).sum::<u64>();
        let quarantine_seconds = |quarantine: &Quarantine| match quarantine.trust() {
            Trust::Shut { until } => Some(until.saturating_sub(now).as_secs_f64()),
            Trust::Open | Trust::Half | Trust::Probing { .. } => None,
        };
        let direct = in_use.take(most_backends).map(|slot| {
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
                quarantine_seconds: quarantine_seconds(&slot.quarantine),
            }
        });
        let ClusterIp { backend, in_flight: through, quarantine } = &self.cluster_ip;
        let cluster_ip = backend.as_ref().map(|backend| BackendView {
            pod: None,
            uid: None,
            address: Some(backend.address().to_string()),
            way: Way::ClusterIp,
            state: None,
            source: None,
            since_ms: 0,
            in_flight: *through,
            quarantine_seconds: quarantine_seconds(quarantine),
        });
        Load {
            held: self.queue.len(),
            held_seconds: self.queue.first().map_or(0.0, |held| now.saturating_sub(held.since).as_secs_f64()),
            in_flight: in_flight + u64::from(*through),
            backends: direct.chain(cluster_ip).collect(),
        }
    }

    /// When time alone may let held requests go, or have something asked.
    fn next_change(&self, now: Duration) -> Option<Duration> {
        let trust = self.indexes.timed.first().map(|(until, _)| *until);
        let cluster_ip = self.cluster_ip.quarantine.until();
        let through = (self.settings.mode == Mode::ColdStartOnly).then(|| self.cluster_ip_leads_from()).flatten();
        let asking = self.wants_scaling().then(|| self.asking.next()).flatten();
        trust.into_iter().chain(cluster_ip).chain(through.filter(|at| *at > now)).chain(asking).min()
    }

    /// Whether more replicas are what held requests wait for.
    fn wants_scaling(&self) -> bool {
        self.settings.scale_target.is_some() && self.indexes.seats[Tier::Ready as usize] == 0
    }

    /// Lets held requests go, the first first, while there is a place.
    fn assign(&mut self, now: Duration, out: &mut Vec<Delivery<W>>) {
        while let Some(first) = self.queue.first() {
            let avoid = first.avoid;
            let Some(grant) = self.pick(&avoid, now) else { return };
            let held = self.queue.pop().expect("it was just looked at");
            out.push(Delivery { held, outcome: Ok(grant) });
        }
    }

    fn refuse_all(&mut self, refusal: &Refusal, out: &mut Vec<Delivery<W>>) {
        while let Some(held) = self.queue.pop() {
            out.push(Delivery { held, outcome: Err(refusal.clone()) });
        }
    }

    /// A place for one request, by the mode's rules.
    fn pick(&mut self, avoid: &Avoid, now: Duration) -> Option<Grant> {
        self.lapse(now);
        match self.settings.mode {
            Mode::Always => self.pick_direct(avoid, now),
            Mode::ColdStartOnly => {
                let leads = self.cluster_ip_leads_from().is_some_and(|from| from <= now);
                let through = if leads { self.pick_cluster_ip(now) } else { None };
                through.or_else(|| self.pick_direct(avoid, now))
            }
            Mode::Disabled if self.cluster_ip.backend.is_none() => self.pick_direct(avoid, now),
            Mode::Disabled => {
                let leads_somewhere = self.indexes.seats.iter().any(|seats| *seats > 0);
                if leads_somewhere { self.pick_cluster_ip(now) } else { None }
            }
        }
    }

    fn pick_direct(&mut self, avoid: &Avoid, now: Duration) -> Option<Grant> {
        if let Some(tier) = Tier::ALL.into_iter().find(|tier| self.indexes.live[*tier as usize] > 0) {
            let slots = &self.slots;
            let load = |slot: u32| slots[slot as usize].in_flight;
            let avoided = |slot: u32| slots[slot as usize].backend.as_ref().is_some_and(|b| avoid.contains(b.id()));
            let slot = self.indexes.open[tier as usize].pick(&mut self.rng, load, avoided)?;
            return self.grant(slot, now);
        }
        let silent = self.indexes.known > 0 && self.indexes.pushed == 0;
        let untried = self.cluster_ip.backend.as_ref().is_some_and(|backend| !avoid.contains(backend.id()));
        let through = if silent && untried { self.pick_cluster_ip(now) } else { None };
        through.or_else(|| {
            let oldest = self.indexes.shut.iter().take(SHUT_LOOKED_AT).map(|(_, _, slot)| *slot);
            let oldest = oldest.into_iter().find(|slot| {
                let slot = &self.slots[*slot as usize];
                self.has_room(slot) && slot.backend.as_ref().is_some_and(|backend| !avoid.contains(backend.id()))
            });
            oldest.and_then(|slot| self.grant(slot, now))
        })
    }

    fn pick_cluster_ip(&mut self, now: Duration) -> Option<Grant> {
        let ClusterIp { backend, in_flight, quarantine } = &mut self.cluster_ip;
        let backend = backend.as_ref()?;
        // Which pod it leads to is not ours to say: what all of them may have together is the bound.
        let pods = u32::try_from(self.indexes.seats.iter().sum::<usize>().max(1)).unwrap_or(u32::MAX);
        let limit = self.settings.concurrency.map_or(u32::MAX, |limit| limit.get().saturating_mul(pods));
        if *in_flight >= limit || !matches!(quarantine.trust(), Trust::Open | Trust::Half) {
            return None;
        }
        *in_flight += 1;
        let epoch = quarantine.sent(now);
        let probe = quarantine.trust() != Trust::Open;
        let backend = Arc::clone(backend);
        Some(Grant { backend, place: Place::ClusterIp, epoch, probe, source: Source::Observed })
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
        Some(Grant { backend, place: Place::Slot(at), epoch, probe, source })
    }

    /// From when on the ClusterIP leads to an endpoint, as far as one can tell.
    fn cluster_ip_leads_from(&self) -> Option<Duration> {
        let (since, _) = self.indexes.api_ready.first()?;
        self.cluster_ip.backend.is_some().then(|| *since + self.bounds.cluster_ip_lag)
    }

    fn lapse(&mut self, now: Duration) {
        self.cluster_ip.quarantine.lapse(now);
        while let Some((until, slot)) = self.indexes.timed.first().copied() {
            if until > now {
                break;
            }
            self.slots[slot as usize].quarantine.lapse(now);
            self.file(slot);
        }
    }

    fn quarantine(&mut self, place: Place) -> &mut Quarantine {
        match place {
            Place::Slot(slot) => &mut self.slots[slot as usize].quarantine,
            Place::ClusterIp => &mut self.cluster_ip.quarantine,
        }
    }

    fn has_room(&self, slot: &Slot) -> bool {
        slot.in_flight < self.settings.concurrency.map_or(u32::MAX, NonZeroU32::get)
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
                u32::try_from(self.slots.len() - 1).expect("fewer endpoints than addresses")
            }
        };
        self.by_id.insert(id.clone(), at);
        at
    }

    /// Lets go of an endpoint that is gone, once its last request has ended.
    fn free_if_done(&mut self, at: u32) {
        let slot = &self.slots[at as usize];
        if slot.endpoint.is_some() || slot.in_flight > 0 {
            return;
        }
        self.by_id.remove(&slot.id);
        self.free.push(at);
    }

    fn seat_cluster_ip(&mut self, service: &Service, afresh: bool) {
        let address = service.cluster_ips.first().filter(|_| service.kind == ServiceKind::Cluster);
        let address = address.map(|ip| SocketAddr::new(*ip, self.settings.service_port));
        let held = self.cluster_ip.backend.take();
        self.cluster_ip.backend = match (held, address) {
            (Some(held), Some(address)) if held.address() == address && !afresh => Some(held),
            (held, address) => {
                held.iter().for_each(|held| held.retire());
                self.cluster_ip.quarantine.lift();
                address.map(|address| Backend::new(address, None, self.bounds.workers))
            }
        };
    }

    /// Decides where an endpoint is reached and how good it is.
    fn seat(&mut self, at: u32, afresh: bool, now: Duration) {
        let workers = self.bounds.workers;
        let slot = &mut self.slots[at as usize];
        let endpoint = slot.endpoint.as_ref();
        let address = endpoint.and_then(|e| address(e, &self.families, &self.settings.port_name));
        let tier = endpoint.filter(|_| address.is_some()).and_then(|e| tier(e, self.publish_not_ready));
        let leaving = endpoint.is_none_or(|e| matches!(e.verdict.state, State::Draining | State::Terminating));
        let held = slot.backend.take();
        slot.backend = match (held, address) {
            (Some(held), Some(address)) if held.address() == address && !afresh && (held.usable() || leaving) => {
                Some(held)
            }
            (held, address) => {
                if let Some(held) = held {
                    held.retire();
                    slot.quarantine.lift();
                }
                address.map(|address| Backend::new(address, Some(slot.id.clone()), workers))
            }
        };
        if leaving {
            slot.backend.iter().for_each(|backend| backend.retire());
        }
        slot.tier = tier;
        let api_ready = slot.endpoint.as_ref().is_some_and(|e| e.verdict.state == State::Ready && e.verdict.serving);
        self.file_word(at, api_ready, now);
        self.file(at);
    }

    /// Brings the indexes up to date that only a change of the endpoint moves.
    fn file_word(&mut self, at: u32, api_ready: bool, now: Duration) {
        let Self { slots, indexes, .. } = self;
        let slot = &mut slots[at as usize];
        let known = slot.endpoint.is_some();
        let pushed = slot.endpoint.as_ref().is_some_and(|e| e.verdict.source == Source::Pushed);
        count(&mut indexes.known, slot.filed.known, known);
        count(&mut indexes.pushed, slot.filed.pushed, pushed);
        match (slot.filed.api_ready, api_ready) {
            (None, true) => {
                indexes.api_ready.insert((now, at));
                slot.filed.api_ready = Some(now);
            }
            (Some(since), false) => {
                indexes.api_ready.remove(&(since, at));
                slot.filed.api_ready = None;
            }
            (None, false) | (Some(_), true) => {}
        }
        slot.filed.known = known;
        slot.filed.pushed = pushed;
    }

    /// Brings the indexes up to date with a slot's tier, requests and trust.
    fn file(&mut self, at: u32) {
        let Self { slots, indexes, settings, .. } = self;
        let slot = &slots[at as usize];
        let trust = slot.quarantine.trust();
        let shut = matches!(trust, Trust::Shut { .. });
        let room = slot.in_flight < settings.concurrency.map_or(u32::MAX, NonZeroU32::get);
        let tier = slot.tier;
        let live = tier.filter(|_| !shut);
        let open = live.filter(|_| room && matches!(trust, Trust::Open | Trust::Half));
        let (shut, until) = (tier.filter(|_| shut).map(|tier| (tier, slot.tried_at)), slot.quarantine.until());
        let until = until.filter(|_| slot.endpoint.is_some());
        let filed = slot.filed;
        if (filed.tier, filed.live) != (tier, live) {
            Tier::ALL.into_iter().for_each(|each| {
                count(&mut indexes.seats[each as usize], filed.tier == Some(each), tier == Some(each));
                count(&mut indexes.live[each as usize], filed.live == Some(each), live == Some(each));
            });
        }
        if filed.shut != shut {
            filed.shut.map(|(tier, since)| indexes.shut.remove(&(tier, since, at)));
            shut.map(|(tier, since)| indexes.shut.insert((tier, since, at)));
        }
        if filed.until != until {
            filed.until.map(|until| indexes.timed.remove(&(until, at)));
            until.map(|until| indexes.timed.insert((until, at)));
        }
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
        *filed = Filed { tier, live, open: stands, shut, until, ..*filed };
    }
}

fn count(counter: &mut usize, before: bool, after: bool) {
    *counter += usize::from(after);
    *counter -= usize::from(before);
}

/// How good an endpoint is; none when nothing may be sent to it.
fn tier(endpoint: &Endpoint, publish_not_ready: bool) -> Option<Tier> {
    match endpoint.verdict.state {
        State::Ready => Some(Tier::Ready),
        State::NotReady => publish_not_ready.then_some(Tier::Published),
        State::Draining | State::Terminating => endpoint.verdict.serving.then_some(Tier::Leaving),
    }
}

/// Where an endpoint is reached: by the Service's families in their order, else by whatever address it has.
fn address(endpoint: &Endpoint, families: &[Family], port_name: &str) -> Option<SocketAddr> {
    let port = endpoint.tcp_port(port_name)?;
    let of = |family: &Family| endpoint.addresses.iter().find(|ip| Family::of(ip) == *family);
    let ip: &IpAddr = families.iter().find_map(of).or_else(|| endpoint.addresses.first())?;
    Some(SocketAddr::new(*ip, port))
}

#[cfg(test)]
mod tests;
