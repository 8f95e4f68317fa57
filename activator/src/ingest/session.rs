//! Step 9: which key speaks for a pod, and whether this event may. The rules are a pure function of the session
//! held, the event and what vouches for it; the map around them decides and binds under one lock, so two events
//! of one pod never see the same state.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use metrics::counter;
use podlight_proto::{Boot, Event, FreshEvent, PodUid, PublicKey};

use super::authenticate::VerifiedToken;
use super::locked;
use super::ownership::{Owned, says_ready};

/// Shards of the map.
const SHARDS: usize = 64;

/// How long a session outlives its pod's absence from the watch: a pod known by a live GET alone must have had
/// the time to show up there.
const GRACE: Duration = Duration::from_secs(60);

/// Shortest time between searches for sessions to drop because the map is full: each costs its whole length.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);

/// Why an event may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No token, and the pod has no key here.
    #[error("this replica does not know the key; send the event with the pod's token")]
    UnknownKey,
    /// No token, and the pod's key is another.
    #[error("another key is bound to this pod; send the event with the pod's token and a newer boot")]
    OtherKey,
    /// `ready` without a token, after the last one expired.
    #[error("the token that bound this key has expired; send the event with the pod's token")]
    BindingExpired,
    /// The event and the proof of ownership are of different pods.
    #[error("the event is not of the pod whose ownership was checked")]
    OtherPod,
    /// As many sessions as may be.
    #[error("the activator has no room for another pod; wait as Retry-After says")]
    Full,
}

impl SessionError {
    /// The metric label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::OtherKey => "other_key",
            Self::BindingExpired => "binding_expired",
            Self::OtherPod => "session_of_other_pod",
            Self::Full => "sessions_full",
        }
    }
}

/// What stands behind an event besides its signature.
#[derive(Debug, Clone, Copy)]
pub(super) enum Voucher<'a> {
    /// The bound key alone.
    Key,
    /// A token that was accepted.
    Token(&'a VerifiedToken),
}

/// Moments that the rules need.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Seconds since the epoch, for the ends of tokens.
    pub wall_seconds: u64,
    /// Monotonic, for the grace.
    pub uptime: Duration,
}

/// Which key speaks for one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    key: PublicKey,
    /// The greatest boot heard of with this key.
    boot: Boot,
    /// When the last of the tokens that vouched for the key ends, in seconds since the epoch.
    binding_expires: u64,
    /// When an event was last admitted, on the monotonic clock.
    last_heard: Duration,
}

/// What the rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The event goes on; this is the session from now on.
    Admit(Session),
    /// The event is behind the boot that holds; nothing changes.
    Superseded(Boot),
}

impl Session {
    /// Whether `key` is the one that speaks for the pod of this session.
    ///
    /// # Errors
    /// [`SessionError::UnknownKey`] and [`SessionError::OtherKey`].
    pub fn recognise(held: Option<&Self>, key: &PublicKey) -> Result<(), SessionError> {
        match held {
            None => Err(SessionError::UnknownKey),
            Some(held) if held.key != *key => Err(SessionError::OtherKey),
            Some(_) => Ok(()),
        }
    }

    /// The rules of wire.md, "Keys, boots, order": what an event signed by `key` makes of the session held. `expires`
    /// is the end of the accepted token that came with it, in seconds since the epoch; none without one.
    ///
    /// # Errors
    /// [`SessionError`]: nothing changes.
    pub fn judge(
        held: Option<&Self>,
        key: PublicKey,
        event: &Event,
        expires: Option<u64>,
        now: Moment,
    ) -> Result<Judgement, SessionError> {
        let boot = event.order.boot;
        let bound = |binding_expires| Judgement::Admit(Self { key, boot, binding_expires, last_heard: now.uptime });
        match (held, expires) {
            (None, None) => Err(SessionError::UnknownKey),
            (None, Some(expires)) => Ok(bound(expires)),
            (Some(held), None) if held.key != key => Err(SessionError::OtherKey),
            (Some(held), Some(_)) if held.key != key && boot <= held.boot => Ok(Judgement::Superseded(held.boot)),
            (Some(held), Some(expires)) if held.key != key => Ok(bound(expires)),
            (Some(held), expires) => {
                let binding_expires = held.binding_expires.max(expires.unwrap_or(0));
                if says_ready(event) && binding_expires <= now.wall_seconds {
                    return Err(SessionError::BindingExpired);
                }
                let boot = boot.max(held.boot);
                Ok(Judgement::Admit(Self { key, boot, binding_expires, last_heard: now.uptime }))
            }
        }
    }
}

/// What becomes of an event.
#[derive(Debug)]
pub(super) enum Admission {
    /// It goes to the table.
    Admitted(AdmittedEvent),
    /// It is answered with the boot that holds.
    Superseded(Boot),
}

/// An event that has passed every step.
#[derive(Debug)]
pub(super) struct AdmittedEvent(Event);

impl AdmittedEvent {
    /// The event, for the table.
    pub(super) fn into_event(self) -> Event {
        self.0
    }
}

/// The sessions of all pods.
#[derive(Debug)]
pub(super) struct Sessions {
    shards: [Mutex<HashMap<PodUid, Session>>; SHARDS],
    hasher: RandomState,
    count: AtomicUsize,
    most: usize,
    /// Milliseconds of uptime from which the next search for room is due.
    prune_due: AtomicU64,
}

impl Sessions {
    pub(super) fn new(most: usize) -> Self {
        let (count, prune_due) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new(), count, most, prune_due }
    }

    /// Whether `key` is bound to the pod.
    ///
    /// # Errors
    /// [`SessionError::UnknownKey`] and [`SessionError::OtherKey`].
    pub(super) fn recognise(&self, pod: &PodUid, key: &PublicKey) -> Result<(), SessionError> {
        Session::recognise(locked(self.shard(pod)).get(pod), key)
    }

    /// Decides on an event and binds its key, in one step. `is_alive` tells which pods the watch shows, for when
    /// room has to be made.
    ///
    /// # Errors
    /// [`SessionError`]: nothing changed.
    pub(super) fn admit(
        &self,
        event: FreshEvent,
        owned: &Owned,
        voucher: Voucher<'_>,
        now: Moment,
        is_alive: impl Fn(&PodUid) -> bool,
    ) -> Result<Admission, SessionError> {
        let uid = event.event().pod.uid();
        if uid != owned.pod() {
            return Err(SessionError::OtherPod);
        }
        let expires = match voucher {
            Voucher::Key => None,
            Voucher::Token(token) => {
                if token.subject().pod.as_ref().is_none_or(|pod| pod.uid != *uid) {
                    return Err(SessionError::OtherPod);
                }
                Some(token.expires_seconds())
            }
        };
        if self.count.load(Ordering::Relaxed) >= self.most && self.prune_is_due(now.uptime) {
            self.prune(now.uptime, is_alive);
        }
        let mut shard = locked(self.shard(uid));
        let held = shard.get_mut(uid);
        match Session::judge(held.as_deref(), *event.key(), event.event(), expires, now)? {
            Judgement::Superseded(boot) => return Ok(Admission::Superseded(boot)),
            Judgement::Admit(session) => match held {
                Some(held) => {
                    if held.key != session.key {
                        counter!("podlight_keys_replaced_total").increment(1);
                        tracing::info!(pod = %uid, from = %held.boot, to = %session.boot, "a newer boot binds another key");
                    }
                    *held = session;
                }
                None => {
                    let taken = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                        (count < self.most).then_some(count + 1)
                    });
                    taken.map_err(|_| SessionError::Full)?;
                    shard.insert(*uid, session);
                }
            },
        }
        drop(shard);
        Ok(Admission::Admitted(AdmittedEvent(event.into_event())))
    }

    /// Forgets a pod that is gone.
    pub(super) fn forget(&self, pod: &PodUid) {
        if locked(self.shard(pod)).remove(pod).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Drops the sessions of pods that are not alive and have been silent for the grace.
    pub(super) fn prune(&self, uptime: Duration, is_alive: impl Fn(&PodUid) -> bool) {
        for shard in &self.shards {
            let mut shard = locked(shard);
            let before = shard.len();
            shard.retain(|pod, session| uptime.saturating_sub(session.last_heard) < GRACE || is_alive(pod));
            self.count.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn prune_is_due(&self, uptime: Duration) -> bool {
        let millis = |t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
        let (now, due) = (millis(uptime), self.prune_due.load(Ordering::Relaxed));
        let next = now.saturating_add(millis(PRUNE_INTERVAL));
        now >= due && self.prune_due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn shard(&self, pod: &PodUid) -> &Mutex<HashMap<PodUid, Session>> {
        let shard = usize::try_from(self.hasher.hash_one(pod) % SHARDS as u64).unwrap_or(0);
        &self.shards[shard]
    }
}

#[cfg(test)]
mod tests;
