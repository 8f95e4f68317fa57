//! One Service that takes requests. Whoever has a request asks for a place on a backend and gets a [`Lease`]: at once
//! where there is room, else once there is, first come, first served. All decisions are those of `state`, under one short
//! lock; here are the clock, the waiting and the telling. A lease ends when it is dropped, wherever that happens, so no
//! place is lost: not even one that was given to a request whose client had just left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use metrics::counter;
use tokio::sync::oneshot;
use tokio::time::Instant;

mod asking;
pub mod backend;
mod balance;
mod cluster_ip;
mod grant;
mod hold;
pub mod hub;
mod lease;
mod meters;
mod quarantine;
mod reach;
mod roster;
pub mod settings;
mod state;
pub mod view;

pub use backend::{Backend, BackendId, Way};
pub use hub::{Alarm, Errands, HoldConfig, Hub};
pub use lease::Lease;
pub use settings::{AppProtocol, Mode, ScaleTarget, Settings, UpstreamTls};

use crate::proxy::wake::{ScaleError, Scaled};
use crate::table::group::{Endpoint, EndpointId, GroupKey, GroupSnapshot, Service};
use hold::Avoid;
use lease::Hold;
use state::{Admission, Delivery, TargetState};
use view::Load;

/// Why a request gets no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many are held as may be.
    #[error("too many requests are held already")]
    Full,
    /// It was held as long as it may be.
    #[error("no endpoint was ready in time")]
    Deadline,
    /// The target cannot be scaled up.
    #[error("the target cannot be scaled up: {0}")]
    ScaleFailed(Arc<str>),
    /// The Service takes no more requests, or is no more.
    #[error("the target is gone")]
    Gone,
    /// The process goes down.
    #[error("shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// As in metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Deadline => "deadline",
            Self::ScaleFailed(_) => "scale-failed",
            Self::Gone => "gone",
            Self::ShuttingDown => "shutting-down",
        }
    }
}

type Answer = Result<Lease, Refusal>;

/// What a held request is told by.
type Waiter = oneshot::Sender<Answer>;

/// One Service that takes requests.
#[derive(Debug)]
pub struct Target {
    key: GroupKey,
    uid: Arc<str>,
    settings: ArcSwap<Settings>,
    state: Mutex<TargetState<Waiter>>,
    hub: Arc<Hub>,
}

impl Target {
    /// A target without endpoints.
    pub fn new(service: &Service, settings: Settings, hub: &Arc<Hub>) -> Arc<Self> {
        let settings = Arc::new(settings);
        let state = TargetState::new(hub.bounds(), Arc::clone(&settings), service, fastrand::u64(..));
        Arc::new(Self {
            key: service.key.clone(),
            uid: Arc::clone(&service.uid),
            settings: ArcSwap::new(settings),
            state: Mutex::new(state),
            hub: Arc::clone(hub),
        })
    }

    /// Which Service it is.
    pub fn key(&self) -> &GroupKey {
        &self.key
    }

    /// The Service's uid: one made anew under the same name is another target.
    pub fn uid(&self) -> &Arc<str> {
        &self.uid
    }

    /// How requests reach it, now.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// A place on a backend: at once if there is one, else once there is. Dropping the future leaves the queue.
    /// `avoid` names the backends that this request has tried: another one is preferred, and one that is in
    /// quarantine is waited for. `ahead` are the bytes of its body that may be in memory while it is held.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn admit(self: &Arc<Self>, avoid: &[BackendId], deadline: Instant, ahead: u32) -> Result<Lease, Refusal> {
        let avoid = Avoid::new(avoid);
        let begun = {
            let mut state = self.lock();
            let now = self.hub.now();
            match state.admit(&avoid, now) {
                Ok(Admission::Granted(grant)) => Ok(Begun::Granted(Lease::new(self, grant, None))),
                Ok(Admission::Wait) => self.hold(state, avoid, now, ahead).map(Begun::Held),
                Err(refusal) => Err(refusal),
            }
        };
        let answer = match begun {
            Ok(Begun::Granted(lease)) => return Ok(lease),
            Ok(Begun::Held(hold)) => hold.wait(deadline).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &answer {
            refused(refusal.label());
        }
        answer
    }

    /// Brings settings up to date with the Service.
    pub fn configure(self: &Arc<Self>, service: &Service, settings: Settings) {
        let settings = Arc::new(settings);
        self.settings.store(Arc::clone(&settings));
        self.change(|state, now, out| state.configure(settings, service, now, out));
    }

    /// An endpoint came or changed; gone when none.
    pub fn endpoint(self: &Arc<Self>, id: &EndpointId, endpoint: Option<Endpoint>) {
        self.change(|state, now, out| state.update(id, endpoint, now, out));
    }

    /// Brings all endpoints up to date.
    pub fn endpoints(self: &Arc<Self>, snapshot: &GroupSnapshot) {
        self.change(|state, now, out| {
            state.retain(|id| snapshot.endpoint(id).is_some(), now, out);
            for endpoint in snapshot.endpoints() {
                state.update(&endpoint.id.clone(), Some(endpoint), now, out);
            }
        });
    }

    /// Takes no more requests; held ones are refused, those under way finish.
    pub fn close(self: &Arc<Self>, refusal: Refusal) {
        self.change(|state, _, out| state.close(refusal, out));
    }

    /// Requests held now.
    pub fn held(&self) -> usize {
        self.lock().held()
    }

    /// What it does now, with at most so many endpoints.
    pub fn load(&self, most_backends: usize) -> Load {
        let mut load = self.lock().load(self.hub.now(), most_backends);
        load.backends.sort_by(|a, b| (a.way, &a.pod, &a.address).cmp(&(b.way, &b.pod, &b.address)));
        load
    }

    /// Lets time pass.
    pub(crate) fn tick(self: &Arc<Self>) {
        self.change(|state, now, out| state.tick(now, out));
    }

    /// What came of asking for it to be scaled up.
    pub(crate) fn scaled(self: &Arc<Self>, outcome: Result<Scaled, ScaleError>) {
        self.change(|state, now, out| state.scaled(outcome, now, out));
    }

    fn lock(&self) -> MutexGuard<'_, TargetState<Waiter>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request into the queue.
    fn hold(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, TargetState<Waiter>>,
        avoid: Avoid,
        now: Duration,
        ahead: u32,
    ) -> Result<Hold, Refusal> {
        let permit = self.hub.reserve(state.held(), ahead, self.settings.load().mode).ok_or(Refusal::Full)?;
        let (waiter, answer) = oneshot::channel();
        let ticket = state.hold(waiter, avoid, now);
        let errands = state.errands(now);
        drop(state);
        self.run(errands);
        Ok(Hold::new(self, ticket, answer, permit))
    }

    /// Changes something, and tells whom it concerns.
    fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut TargetState<Waiter>, Duration, &mut Vec<Delivery<Waiter>>) -> T,
    ) -> T {
        let mut out = Vec::new();
        let mut state = self.lock();
        let now = self.hub.now();
        let result = change(&mut state, now, &mut out);
        let errands = state.errands(now);
        drop(state);
        self.run(errands);
        self.deliver(out);
        result
    }

    fn run(self: &Arc<Self>, errands: state::Errands) {
        if let Some(at) = errands.wake_at {
            self.hub.alarm(at, self);
        }
        if errands.scale {
            self.hub.scale(self);
        }
    }

    /// Tells held requests what they get, outside the lock. What those get who have left meanwhile goes to the next.
    fn deliver(self: &Arc<Self>, mut out: Vec<Delivery<Waiter>>) {
        while !out.is_empty() {
            let now = self.hub.now();
            let mut returned = Vec::new();
            for Delivery { held, outcome } in out.drain(..) {
                let answer = outcome.map(|grant| Lease::new(self, grant, Some(now.saturating_sub(held.since))));
                if let Err(Ok(mut lease)) = held.waiter.send(answer) {
                    returned.extend(lease.disarm());
                }
            }
            if returned.is_empty() {
                return;
            }
            let mut state = self.lock();
            returned.into_iter().for_each(|place| state.release(place, None, || now, &mut out));
        }
    }
}

/// How an admission begins.
enum Begun {
    Granted(Lease),
    Held(Hold),
}

fn refused(reason: &'static str) {
    counter!("podlight_proxy_hold_refused_total", "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests;
