//! One replica: the real table behind a small copy of ingest's decisions (which key speaks, who owns what; see
//! `activator/src/ingest/session.rs` and `ownership.rs`). Left out: signatures, limits, caches of tokens.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podlight_activator::table::entry::{Now, Observation, Phase};
use podlight_activator::table::group::{Endpoint, EndpointId, GroupKey, GroupSnapshot};
use podlight_activator::table::{Change, EndpointChange, GroupWhat, ListEpoch, Pacing, Table, Transition, Update};
use podlight_proto::{Accepted, BOOT_AHEAD_MS, Boot, Event, FRESHNESS_SECONDS, Kind, Outcome, PodUid};
use podlight_sidecar::publisher::Reply;

use super::mutant::{Bend, Mutant};
use super::oracle::Knowledge;
use super::world::wall_ms;

/// A ServiceAccount token: the pod that it is bound to, and its end in seconds.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) pod: PodUid,
    pub(super) expires: u64,
}

/// What goes over the network: an event, its signature's key and time, and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) event: Event,
    pub(super) issued_at: u64,
    pub(super) key: u64,
    pub(super) token: Option<Token>,
    pub(super) peer: IpAddr,
    pub(super) from: usize,
    /// Whether it says of its own pod what its own sidecar may say. Only the simulation knows.
    pub(super) genuine: bool,
    /// Pod, generation and attempt that wait for the reply.
    pub(super) reply_to: Option<(usize, u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    key: u64,
    boot: Boot,
    binding_expires: u64,
}

/// What a replica makes of a message.
pub(super) enum Answer {
    Reply(Reply),
    /// The pod has to be asked for first; so many lists were complete by then.
    AskForPod(ListEpoch),
}

/// What one live GET brought.
pub(super) enum Got {
    Unavailable,
    Missing,
    Pod(Arc<Observation>, ListEpoch),
}

pub(super) struct Replica {
    pub(super) table: Table,
    pub(super) knowledge: Knowledge,
    /// What readers have been given.
    pub(super) published: BTreeMap<GroupKey, Arc<GroupSnapshot>>,
    /// The same, as readers hold it who only follow the changes.
    pub(super) followed: BTreeMap<GroupKey, BTreeMap<EndpointId, Endpoint>>,
    pub(super) generation: u64,
    pub(super) pushes: u64,
    pub(super) updates: u64,
    /// Whether it took an event that was not the pod's own.
    pub(super) deceived: bool,
    bend: Bend,
    sessions: HashMap<PodUid, Session>,
    pods: HashMap<PodUid, Arc<Observation>>,
    listing: Option<HashMap<PodUid, Arc<Observation>>>,
    lists_done: ListEpoch,
}

const AGAIN: Reply = Reply::TryAgain { retry_after: Some(Duration::from_secs(1)) };

impl Replica {
    pub(super) fn new(mutant: Mutant, generation: u64) -> Self {
        Self {
            table: Table::new(Pacing::default()),
            knowledge: Knowledge::default(),
            published: BTreeMap::new(),
            followed: BTreeMap::new(),
            generation,
            pushes: 0,
            updates: 0,
            deceived: false,
            bend: Bend::new(mutant),
            sessions: HashMap::new(),
            pods: HashMap::new(),
            listing: None,
            lists_done: ListEpoch::default(),
        }
    }

    /// Takes one word of the API server.
    pub(super) fn apply(&mut self, update: Update, now: u64) {
        self.reflect(&update);
        self.knowledge.told(&update, now);
        self.updates += 1;
        if let Some(update) = self.bend.update(update) {
            self.table.apply(update, both_clocks(now));
        }
        self.publish(now);
    }

    /// Lets time pass.
    pub(super) fn expire(&mut self, now: u64) {
        self.publish(now);
    }

    /// When time next matters, in milliseconds.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        let at = self.table.next_expiry()?;
        (self.bend.mutant != Mutant::LeaseEndless).then(|| u64::try_from(at.as_millis()).expect("short"))
    }

    /// Whether the changes told lead to what is published.
    pub(super) fn feed_is_whole(&self) -> bool {
        self.published.len() == self.followed.len()
            && self.followed.iter().all(|(key, followed)| {
                self.published.get(key).is_some_and(|group| {
                    group.endpoints().count() == followed.len()
                        && group.endpoints().all(|endpoint| followed.get(&endpoint.id) == Some(&endpoint))
                })
            })
    }

    /// Decides on a message, with the pod that a GET brought if one was needed.
    pub(super) fn judge(&mut self, message: &Message, got: Option<Got>, now: u64) -> Answer {
        let (event, wall) = (&message.event, wall_ms(now));
        if self.lists_done == ListEpoch::default() {
            return Answer::Reply(AGAIN);
        }
        let seconds = wall / 1_000;
        if message.issued_at.abs_diff(seconds) > FRESHNESS_SECONDS || u64::from(event.order.boot) > wall + BOOT_AHEAD_MS
        {
            return Answer::Reply(Reply::Refused);
        }
        let uid = event.pod.uid();
        let expires = message.token.as_ref().map(|token| token.expires);
        if expires.is_some_and(|expires| expires <= seconds) {
            return Answer::Reply(Reply::TokenWanted);
        }
        let held = self.sessions.get(uid).copied();
        if message.token.is_none() && held.is_none_or(|held| held.key != message.key) {
            return Answer::Reply(Reply::TokenWanted);
        }
        let pod = match (got, self.pods.get(uid)) {
            (Some(Got::Pod(pod, asked_in)), _) => {
                self.apply(Update::Fetched(Arc::clone(&pod), asked_in), now);
                pod
            }
            (_, Some(pod)) => Arc::clone(pod),
            _ if self.bend.mutant == Mutant::UidIgnored => match self.named(event) {
                Some(pod) => pod,
                None => return Answer::Reply(Reply::Refused),
            },
            (Some(Got::Missing), None) => return Answer::Reply(Reply::Refused),
            (Some(Got::Unavailable), None) => return Answer::Reply(AGAIN),
            (None, None) => return Answer::AskForPod(self.lists_done),
        };
        let unchecked =
            self.bend.mutant == Mutant::OwnershipIgnored || self.bend.mutant == Mutant::UidIgnored && message.genuine;
        if let Some(refusal) = owns(message, &pod).filter(|_| !unchecked) {
            return Answer::Reply(refusal);
        }
        let boot = event.order.boot;
        let session = match (held, expires) {
            (Some(held), _) if held.key != message.key && boot <= held.boot => {
                return Answer::Reply(accepted(Outcome::Superseded, held.boot, 5, 15));
            }
            (Some(held), _) if held.key == message.key => {
                let binding_expires = held.binding_expires.max(expires.unwrap_or(0));
                if says_ready(event) && binding_expires <= seconds {
                    return Answer::Reply(Reply::TokenWanted);
                }
                Session { boot: boot.max(held.boot), binding_expires, ..held }
            }
            (_, Some(binding_expires)) => Session { key: message.key, boot, binding_expires },
            (_, None) => return Answer::Reply(Reply::TokenWanted),
        };
        self.sessions.insert(*uid, session);
        self.deceived |= !message.genuine;
        Answer::Reply(self.push(event, now))
    }

    fn named(&self, event: &Event) -> Option<Arc<Observation>> {
        self.pods.values().find(|pod| pod.pod.name() == event.pod.name()).cloned()
    }

    fn push(&mut self, event: &Event, now: u64) -> Reply {
        self.pushes += 1;
        let unknown = Transition {
            outcome: Outcome::Applied,
            boot: event.order.boot,
            heartbeat_after_seconds: 5,
            lease_seconds: 15,
        };
        let pushed = self.bend.event(event.clone()).map(|event| self.table.push(&event, both_clocks(now)));
        let Ok(transition) = pushed.unwrap_or(Ok(unknown)) else {
            self.sessions.remove(event.pod.uid());
            self.knowledge.heard(event, 0, now);
            return Reply::Refused;
        };
        self.knowledge.heard(event, transition.lease_seconds, now);
        if self.bend.mutant == Mutant::LeaseTooShort {
            self.table.expire(Duration::from_millis(now + 3_600_000));
        }
        self.publish(now);
        let Transition { outcome, boot, heartbeat_after_seconds, lease_seconds } = transition;
        accepted(outcome, boot, heartbeat_after_seconds, lease_seconds)
    }

    /// As the table's owner does: leases first, then what changed goes to the readers.
    fn publish(&mut self, now: u64) {
        if self.bend.mutant != Mutant::LeaseEndless {
            self.table.expire(Duration::from_millis(now));
        }
        for change in self.table.take_changes().groups {
            let (snapshot, endpoints) = match change.what {
                GroupWhat::Gone(key) => {
                    self.published.remove(&key);
                    self.followed.remove(&key);
                    continue;
                }
                GroupWhat::Now { snapshot, endpoints, .. } => (snapshot, endpoints),
            };
            let followed = self.followed.entry(snapshot.key().clone()).or_default();
            for change in endpoints {
                match change {
                    EndpointChange::Now(endpoint) => drop(followed.insert(endpoint.id.clone(), endpoint)),
                    EndpointChange::Gone(id) => drop(followed.remove(&id)),
                }
            }
            self.published.insert(snapshot.key().clone(), snapshot);
        }
    }

    /// Keeps the pods that ingest looks up, as a watch's store does.
    fn reflect(&mut self, update: &Update) {
        let Update::Pod(change) = update else { return };
        match change {
            Change::ListBegan => self.listing = Some(HashMap::new()),
            Change::Present(pod) => {
                let pods = self.listing.as_mut().unwrap_or(&mut self.pods);
                pods.insert(*pod.pod.uid(), Arc::clone(pod));
            }
            Change::Gone(uid) => drop(self.pods.remove(uid)),
            Change::ListDone => {
                self.pods = self.listing.take().unwrap_or_default();
                self.lists_done.0 += 1;
            }
        }
    }
}

fn owns(message: &Message, pod: &Observation) -> Option<Reply> {
    let event = &message.event;
    let token_is_its_own = message.token.as_ref().is_none_or(|token| token.pod == *pod.pod.uid());
    let ended = pod.phase == Phase::Ended || pod.terminating_since_ms.is_some() && says_ready(event);
    if pod.pod != event.pod || !token_is_its_own || ended {
        return Some(Reply::Refused);
    }
    if pod.addresses.is_empty() {
        return (event.addresses != [message.peer]).then_some(AGAIN);
    }
    event.addresses.iter().any(|address| !pod.addresses.contains(address)).then_some(Reply::Refused)
}

fn says_ready(event: &Event) -> bool {
    event.kind == Kind::Ready || event.kind == Kind::Heartbeat && event.ready
}

fn accepted(result: Outcome, boot: Boot, heartbeat_after_seconds: u32, lease_seconds: u32) -> Reply {
    let (replica, peers) = (String::new(), Vec::new());
    Reply::Accepted(Accepted { result, boot, replica, heartbeat_after_seconds, lease_seconds, peers })
}

fn both_clocks(now: u64) -> Now {
    Now { uptime: Duration::from_millis(now), wall_ms: wall_ms(now) }
}
