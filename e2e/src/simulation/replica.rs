//! One replica: the real table behind ingest's own rules of which key speaks ([`Session`]) and who owns what
//! ([`Claim`]), in the order in which ingest asks them. Left out: signatures, limits, caches of tokens, and sessions
//! dropped because their pods are gone.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podlight_activator::ingest::{Claim, Judgement, Moment, Session, Subject};
use podlight_activator::table::entry::{Now, Observation};
use podlight_activator::table::group::{Endpoint, EndpointId, GroupKey, GroupSnapshot};
use podlight_activator::table::{Change, EndpointChange, GroupWhat, ListEpoch, Pacing, Table, Transition, Update};
use podlight_proto::{Accepted, BOOT_AHEAD_MS, Boot, Event, FRESHNESS_SECONDS, Outcome, PodUid, PublicKey};
use podlight_sidecar::publisher::Reply;

use super::mutant::{Bend, Mutant};
use super::oracle::Knowledge;
use super::world::wall_ms;

/// A ServiceAccount token: whom it speaks for, and its end in seconds.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) subject: Subject,
    pub(super) expires: u64,
}

/// What goes over the network: an event, its signature's key and time, and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) event: Event,
    pub(super) issued_at: u64,
    pub(super) key: PublicKey,
    pub(super) token: Option<Token>,
    pub(super) peer: IpAddr,
    pub(super) from: usize,
    /// Whether it says of its own pod what its own sidecar may say. Only the simulation knows.
    pub(super) genuine: bool,
    /// Pod, generation and attempt that wait for the reply.
    pub(super) reply_to: Option<(usize, u64, u64)>,
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
        let key = self.bend.key(message.key);
        if message.token.is_none() && Session::recognise(held.as_ref(), &key).is_err() {
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
            (Some(Got::Missing), None) => {
                self.sessions.remove(uid);
                return Answer::Reply(Reply::Refused);
            }
            (Some(Got::Unavailable), None) => return Answer::Reply(AGAIN),
            (None, None) => return Answer::AskForPod(self.lists_done),
        };
        let unchecked =
            self.bend.mutant == Mutant::OwnershipIgnored || self.bend.mutant == Mutant::UidIgnored && message.genuine;
        let claimed = self.bend.claimed(event, &pod);
        let subject = message.token.as_ref().map(|token| &token.subject);
        let subject = subject.filter(|_| self.bend.mutant != Mutant::SubjectIgnored);
        let claim = Claim { event: &claimed, subject, peer: message.peer };
        if let Err(error) = claim.check(&pod)
            && !unchecked
        {
            return Answer::Reply(if error.is_undecided() { AGAIN } else { Reply::Refused });
        }
        let moment = Moment { wall_seconds: seconds, uptime: Duration::from_millis(now) };
        match Session::judge(held.as_ref(), key, event, expires, moment) {
            Ok(Judgement::Admit(session)) => self.sessions.insert(*uid, session),
            Ok(Judgement::Superseded(boot)) => {
                return Answer::Reply(accepted(Outcome::Superseded, boot, 5, 15));
            }
            Err(_) => return Answer::Reply(Reply::TokenWanted),
        };
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

fn accepted(result: Outcome, boot: Boot, heartbeat_after_seconds: u32, lease_seconds: u32) -> Reply {
    let (replica, peers) = (String::new(), Vec::new());
    Reply::Accepted(Accepted { result, boot, replica, heartbeat_after_seconds, lease_seconds, peers })
}

fn both_clocks(now: u64) -> Now {
    Now { uptime: Duration::from_millis(now), wall_ms: wall_ms(now) }
}
