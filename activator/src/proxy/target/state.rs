//! One target as a plain value: its endpoints, its ClusterIP, and the queue of held requests. It takes changes and time
//! and tells which held requests may go where; it knows no clock, lock or task.
//!
//! Invariants: nobody overtakes the queue, and whatever makes room lets the first in the queue go in the same step.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::Refusal;
use super::asking::Asking;
use super::cluster_ip::ClusterIp;
use super::grant::{Grant, Place};
use super::hold::{Avoid, Held, Queue, Ticket};
use super::quarantine::{Epoch, Quarantine, Reason};
use super::reach::{Reach, Tier};
use super::roster::Roster;
use super::settings::{Mode, Settings};
use super::view::Load;
use crate::proxy::wake::{ScaleError, Scaled};
use crate::table::group::{Endpoint, EndpointId, Service, ServiceKind};

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

/// What a request that comes gets.
#[derive(Debug)]
pub(super) enum Admission {
    /// A place.
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

/// One target. `W` is what a held request is told by.
#[derive(Debug)]
pub(super) struct TargetState<W> {
    bounds: Bounds,
    settings: Arc<Settings>,
    roster: Roster,
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
        let mut rng = Rng::with_seed(seed);
        let mut cluster_ip = ClusterIp::new();
        cluster_ip.seat(virtual_address(service, &settings), false, bounds.workers);
        let roster = Roster::new(reach(service, &settings, bounds.workers), rng.fork());
        let (queue, asking) = (Queue::new(), Asking::default());
        Self { bounds, settings, roster, cluster_ip, queue, asking, closed: None, armed: None, rng }
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
        let workers = self.bounds.workers;
        self.cluster_ip.seat(virtual_address(service, &settings), afresh, workers);
        self.roster.configure(reach(service, &settings, workers), afresh, now);
        self.settings = settings;
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
        if self.roster.update(id, endpoint, now) {
            self.asking.reset();
        }
        self.assign(now, out);
    }

    /// Forgets the endpoints that are not among `known`.
    pub(super) fn retain(&mut self, known: impl Fn(&EndpointId) -> bool, now: Duration, out: &mut Vec<Delivery<W>>) {
        let gone = self.roster.strangers(known);
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
        if self.queue.len() < self.bounds.held { Ok(Admission::Wait) } else { Err(Refusal::Full) }
    }

    /// Puts a request at the end of the queue, after [`TargetState::admit`] has said so.
    pub(super) fn hold(&mut self, waiter: W, avoid: Avoid, now: Duration) -> Ticket {
        self.queue.push(Held { waiter, since: now, avoid })
    }

    /// A held request leaves. None when it has been told something already.
    pub(super) fn cancel(&mut self, ticket: Ticket, now: Duration, out: &mut Vec<Delivery<W>>) -> Option<Held<W>> {
        let held = self.queue.cancel(ticket);
        // What the first one waited for may be more than what the next one takes.
        self.assign(now, out);
        held
    }

    /// A request has ended. `answered` under which epoch, if it was.
    pub(super) fn release(
        &mut self,
        place: Place,
        answered: Option<Epoch>,
        now: impl FnOnce() -> Duration,
        out: &mut Vec<Delivery<W>>,
    ) {
        if let Some(epoch) = answered {
            self.judge(place, Duration::ZERO, |record| record.answered(epoch));
        }
        match place {
            Place::Slot(at) => self.roster.release(at),
            Place::ClusterIp => self.cluster_ip.release(),
        }
        if !self.queue.is_empty() {
            self.assign(now(), out);
        }
    }

    /// A request's connection was refused, or no answer came. True when that put the backend in quarantine.
    pub(super) fn failed(&mut self, place: Place, epoch: Epoch, reason: Reason, now: Duration) -> bool {
        self.judge(place, now, |record| match reason {
            Reason::Refused => record.refused(epoch, now),
            Reason::TimedOut => record.timed_out(epoch, now),
        })
    }

    /// An answer came, and others may wait for that.
    pub(super) fn answered(&mut self, place: Place, epoch: Epoch, now: Duration, out: &mut Vec<Delivery<W>>) {
        self.judge(place, now, |record| record.answered(epoch));
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
        self.roster.retire();
        self.cluster_ip.retire();
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
        Load {
            held: self.queue.len(),
            held_seconds: self.queue.first().map_or(0.0, |held| now.saturating_sub(held.since).as_secs_f64()),
            in_flight: self.roster.in_flight() + u64::from(self.cluster_ip.in_flight()),
            backends: self.roster.views(now).take(most_backends).chain(self.cluster_ip.view(now)).collect(),
        }
    }

    /// When time alone may let held requests go, or have something asked.
    fn next_change(&self, now: Duration) -> Option<Duration> {
        let leads = (self.settings.mode == Mode::ColdStartOnly).then(|| self.cluster_ip_leads_from()).flatten();
        let asking = self.wants_scaling().then(|| self.asking.next()).flatten();
        let trust = self.roster.next_lapse().into_iter().chain(self.cluster_ip.until());
        trust.chain(leads.filter(|at| *at > now)).chain(asking).min()
    }

    /// Whether more replicas are what held requests wait for.
    fn wants_scaling(&self) -> bool {
        self.settings.scale_target.is_some() && self.roster.seats(Tier::Ready) == 0
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
        self.roster.lapse(now);
        self.cluster_ip.quarantine().lapse(now);
        match self.settings.mode {
            // While it refuses, straight to the pod rather than hold; when it has all that it may, hold.
            Mode::ColdStartOnly if self.cluster_ip_leads(now) && self.cluster_ip.is_live() => self.pick_cluster_ip(now),
            Mode::Disabled if self.cluster_ip.id().is_some() => {
                let leads_somewhere = self.roster.all_seats() > 0;
                if leads_somewhere { self.pick_cluster_ip(now) } else { None }
            }
            Mode::Always | Mode::ColdStartOnly | Mode::Disabled => self.pick_direct(avoid, now),
        }
    }

    fn pick_direct(&mut self, avoid: &Avoid, now: Duration) -> Option<Grant> {
        // Any pod may be the one that has what went through the ClusterIP.
        if self.cluster_ip.in_flight() > 0 && self.is_full() {
            return None;
        }
        if let Some(tier) = self.roster.best() {
            return self.roster.pick(tier, avoid, now);
        }
        // Whom it has refused may try it again: where it leads may have changed, and a refusal shuts it for a while.
        let through = if self.roster.is_silent() { self.pick_cluster_ip(now) } else { None };
        through.map(|grant| Grant { guess: true, ..grant }).or_else(|| self.roster.pick_shut(avoid, now))
    }

    fn pick_cluster_ip(&mut self, now: Duration) -> Option<Grant> {
        if self.is_full() { None } else { self.cluster_ip.pick(now) }
    }

    /// Whether the pods have as many requests as they may have together, whichever way these went: all that can be
    /// bounded of what goes through the ClusterIP, since which pod it leads to is not ours to say. Leaving pods count,
    /// as they may have some of it: a long request there is not to keep others from the pods that are ready.
    fn is_full(&self) -> bool {
        let (pods, direct) = (self.roster.all_seats(), self.roster.all_in_flight());
        let requests = direct + u64::from(self.cluster_ip.in_flight());
        self.settings.concurrency.is_some_and(|limit| requests >= u64::from(limit.get()) * pods.max(1) as u64)
    }

    fn cluster_ip_leads(&self, now: Duration) -> bool {
        self.cluster_ip_leads_from().is_some_and(|from| from <= now)
    }

    /// From when on the ClusterIP leads to an endpoint, as far as one can tell.
    fn cluster_ip_leads_from(&self) -> Option<Duration> {
        self.cluster_ip.id()?;
        self.roster.api_ready_since().map(|since| since + self.bounds.cluster_ip_lag)
    }

    fn judge<T>(&mut self, place: Place, now: Duration, judge: impl FnOnce(&mut Quarantine) -> T) -> T {
        match place {
            Place::Slot(at) => self.roster.judge(at, now, judge),
            Place::ClusterIp => judge(self.cluster_ip.quarantine()),
        }
    }
}

fn virtual_address(service: &Service, settings: &Settings) -> Option<SocketAddr> {
    let ip = service.cluster_ips.first().filter(|_| service.kind == ServiceKind::Cluster)?;
    Some(SocketAddr::new(*ip, settings.service_port))
}

fn reach(service: &Service, settings: &Settings, workers: usize) -> Reach {
    Reach {
        families: service.families.clone(),
        port_name: Arc::clone(&settings.port_name),
        pod_port: settings.pod_port,
        publish_not_ready: service.publish_not_ready,
        concurrency: settings.concurrency,
        workers,
    }
}

#[cfg(test)]
mod tests;
