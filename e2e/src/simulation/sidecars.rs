//! The sidecars and the network between them and the replicas. What to say and when to say it is decided by the
//! real [`Readiness`] and [`Delivery`]; here are their clocks, their probes and a network that cannot be trusted.

use std::num::NonZeroU32;
use std::time::Duration;

use podlight_activator::ingest::{Subject, TokenPod};
use podlight_proto::{Boot, Event, Kind, Order, PublicKey, Sequence};
use podlight_sidecar::publisher::{Delivery, Reply, Step};
use podlight_sidecar::readiness::{Readiness, State, Statement, Thresholds};

use super::pods::SERVICE_ACCOUNT;
use super::queue::Happening;
use super::random::{Jitter, Random};
use super::replica::{Message, Token};
use super::scenario::REPLICAS;
use super::world::{World, wall_ms};

/// The life of a token, and the age at which the kubelet rotates it: four fifths, in seconds.
const TOKEN_SECONDS: u64 = 600;
const ROTATED_AFTER_MS: u64 = 480_000;
/// The client's time-out.
const TIMEOUT_MS: u64 = 2_000;
/// How long a newer state waits for an attempt under way, as in the publisher.
const SUPERSEDED_GRACE_MS: u64 = 10;

/// A key that is told apart from others by its number alone: no signature is ever made with it.
pub(super) fn numbered_key(number: u64) -> PublicKey {
    let mut bytes = [0xaa; 32];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    PublicKey::new(bytes).expect("not of small order")
}

pub(super) struct Sidecar {
    pub(super) readiness: Readiness,
    /// The number of its key.
    key: u64,
    token_expires: u64,
    links: Vec<Link>,
}

struct Link {
    delivery: Delivery<Jitter>,
    under_way: Option<(u64, Statement, bool)>,
    attempts: u64,
    wake_at: Option<u64>,
}

impl World {
    /// Starts a pod's sidecar, or starts it again: a new key and a new boot.
    pub(super) fn start_sidecar(&mut self, pod: usize) {
        let (now, wall, seed) = (self.now, self.node_ms(self.pods[pod].spec.node), self.seed);
        let actor = &mut self.pods[pod];
        actor.generation += 1;
        let generation = actor.generation;
        let failure = NonZeroU32::new(actor.spec.failure_threshold).unwrap_or(NonZeroU32::MIN);
        let thresholds = Thresholds { success: NonZeroU32::MIN, failure };
        let readiness = Readiness::start(Boot::try_from(wall).expect("after 1970"), &[thresholds], wall);
        let key = (pod as u64 + 1) * 1_000 + generation;
        let link = |replica: usize| {
            let jitter = Jitter::new(Random::new(seed, 10_000 + key * 10 + replica as u64));
            let delivery = Delivery::new(readiness.statement(), jitter, Duration::from_millis(now));
            Link { delivery, under_way: None, attempts: 0, wake_at: None }
        };
        let links = (0..REPLICAS).map(link).collect();
        let token_expires = wall_ms(now) / 1_000 + TOKEN_SECONDS;
        actor.sidecar = Some(Sidecar { readiness, key, token_expires, links });
        let probe_in = actor.random.between(5, 50);
        self.schedule(probe_in, Happening::SidecarProbe { pod, generation });
        self.schedule(ROTATED_AFTER_MS, Happening::RotateToken { pod, generation });
        self.announce(pod);
    }

    /// The sidecar probes its app; again soon, while what it finds differs from what it holds.
    pub(super) fn sidecar_probe(&mut self, pod: usize) {
        let wall = self.node_ms(self.pods[pod].spec.node);
        let actor = &mut self.pods[pod];
        let Some(sidecar) = &mut actor.sidecar else { return };
        let said = sidecar.readiness.probed(0, actor.inside, wall);
        let again = sidecar.readiness.passing(0) != actor.inside;
        let (again_in, generation) = (actor.random.between(5, 100), actor.generation);
        if again {
            self.schedule(again_in, Happening::SidecarProbe { pod, generation });
        }
        if said.is_some() {
            self.announce(pod);
        }
    }

    pub(super) fn drain(&mut self, pod: usize) {
        let wall = self.node_ms(self.pods[pod].spec.node);
        let actor = &mut self.pods[pod];
        if actor.sidecar.as_mut().and_then(|sidecar| sidecar.readiness.drain(wall)).is_some() {
            actor.has_drained = true;
            self.announce(pod);
        }
    }

    pub(super) fn rotate_token(&mut self, pod: usize) {
        // The kubelet stops rotating the tokens of a terminating pod.
        if self.cluster.objects[pod].as_ref().is_none_or(|object| object.terminating_since_ms.is_some()) {
            return;
        }
        let now = self.now;
        let actor = &mut self.pods[pod];
        let generation = actor.generation;
        let Some(sidecar) = &mut actor.sidecar else { return };
        sidecar.token_expires = wall_ms(now) / 1_000 + TOKEN_SECONDS;
        sidecar.links.iter_mut().for_each(|link| link.delivery.token_rotated(Duration::from_millis(now)));
        self.schedule(ROTATED_AFTER_MS, Happening::RotateToken { pod, generation });
        (0..REPLICAS).for_each(|replica| self.drive(pod, replica));
    }

    /// A new statement is there.
    fn announce(&mut self, pod: usize) {
        let generation = self.pods[pod].generation;
        for replica in 0..REPLICAS {
            let Some(sidecar) = &self.pods[pod].sidecar else { return };
            if let Some((attempt, ..)) = sidecar.links[replica].under_way {
                self.schedule(SUPERSEDED_GRACE_MS, Happening::Supersede { pod, generation, replica, attempt });
            }
            self.drive(pod, replica);
        }
    }

    /// Does what a delivery wants done.
    pub(super) fn drive(&mut self, pod: usize, replica: usize) {
        let now = self.now;
        let actor = &mut self.pods[pod];
        let generation = actor.generation;
        let Some(sidecar) = &mut actor.sidecar else { return };
        let link = &mut sidecar.links[replica];
        link.delivery.state(sidecar.readiness.statement(), Duration::from_millis(now));
        if link.under_way.is_some() {
            return;
        }
        match link.delivery.next(Duration::from_millis(now)) {
            Step::WaitUntil(at) => {
                let at = u64::try_from(at.as_millis()).expect("short").max(now + 1);
                if link.wake_at != Some(at) {
                    link.wake_at = Some(at);
                    self.schedule(at - now, Happening::Wake { pod, generation, replica });
                }
            }
            Step::Send { state, with_token } => {
                let statement = state.unwrap_or_else(|| sidecar.readiness.heartbeat());
                link.attempts += 1;
                let attempt = link.attempts;
                link.under_way = Some((attempt, statement, with_token));
                let mut message = self.message(pod, statement, with_token);
                message.reply_to = Some((pod, generation, attempt));
                self.schedule(TIMEOUT_MS, Happening::Timeout { pod, generation, replica, attempt });
                self.transmit(replica, message);
            }
        }
    }

    fn message(&self, pod: usize, statement: Statement, with_token: bool) -> Message {
        let actor = &self.pods[pod];
        let Statement { order, kind, ready, observed_at_ms } = statement;
        let issued_at = self.node_ms(actor.spec.node) / 1_000;
        // As in proto: a state cannot have begun after it was told.
        let observed_at_ms = if observed_at_ms / 1_000 > issued_at { issued_at * 1_000 } else { observed_at_ms };
        let addresses = vec![actor.address];
        let event = Event {
            pod: actor.identity.clone(),
            order,
            kind,
            revision: String::new(),
            addresses,
            ports: Vec::new(),
            ready,
            observed_at_ms,
        };
        let sidecar = actor.sidecar.as_ref();
        let bound = TokenPod { name: event.pod.name().to_string(), uid: *event.pod.uid() };
        let subject = Subject {
            namespace: event.pod.namespace().to_string(),
            service_account: SERVICE_ACCOUNT.to_owned(),
            pod: Some(bound),
        };
        let token = Token { subject, expires: sidecar.map_or(0, |s| s.token_expires) };
        Message {
            from: pod,
            genuine: true,
            event,
            issued_at,
            key: numbered_key(sidecar.map_or(0, |s| s.key)),
            token: with_token.then_some(token),
            peer: actor.address,
            reply_to: None,
        }
    }

    /// A sidecar that says `ready` once more after it has drained.
    pub(super) fn late_ready(&mut self, pod: usize, replica: usize) {
        let Some(sidecar) = &self.pods[pod].sidecar else { return };
        let Statement { order, observed_at_ms, .. } = sidecar.readiness.statement();
        if sidecar.readiness.state() != State::Draining {
            return;
        }
        let seq = Sequence::try_from(u64::from(order.seq) + 100).expect("small");
        let order = Order { seq, ..order };
        let late = Statement { order, kind: Kind::Ready, ready: true, observed_at_ms: observed_at_ms + 1 };
        let message = self.message(pod, late, true);
        self.transmit(replica, message);
    }

    /// A pod that says it is another, from its own address or the other's, or that it is where another is.
    pub(super) fn forge(&mut self, by: usize, victim: usize, token: bool) {
        if by == victim || self.pods[by].sidecar.is_none() {
            return;
        }
        let boot = Boot::try_from(self.node_ms(self.pods[by].spec.node) + 1_000).expect("after 1970");
        let order = Order { boot, seq: Sequence::FIRST };
        let statement = Statement { order, kind: Kind::Ready, ready: true, observed_at_ms: u64::from(boot) };
        let mut message = self.message(by, statement, token);
        message.key = numbered_key(self.pods[by].sidecar.as_ref().map_or(0, |s| s.key) + 500);
        message.genuine = false;
        let mut borrowed = message.clone();
        borrowed.event.addresses = vec![self.pods[victim].address];
        message.event.pod = self.pods[victim].identity.clone();
        let mut whole = message.clone();
        whole.event.addresses.clone_from(&borrowed.event.addresses);
        for replica in 0..REPLICAS {
            self.transmit(replica, message.clone());
            if self.pods[by].address != self.pods[victim].address {
                self.transmit(replica, borrowed.clone());
                self.transmit(replica, whole.clone());
            }
        }
    }

    /// The reply to an attempt, or that there was none.
    pub(super) fn replied(&mut self, pod: usize, replica: usize, attempt: u64, reply: &Reply) {
        let (now, wall) = (self.now, self.node_ms(self.pods[pod].spec.node));
        let Some(sidecar) = &mut self.pods[pod].sidecar else { return };
        let link = &mut sidecar.links[replica];
        let Some((_, statement, with_token)) = link.under_way.take_if(|(under_way, ..)| *under_way == attempt) else {
            return;
        };
        let behind = link.delivery.replied(statement, with_token, reply, Duration::from_millis(now));
        if behind.is_some_and(|held| sidecar.readiness.adopt(held, wall).is_ok()) {
            self.announce(pod);
        } else {
            self.drive(pod, replica);
        }
    }

    /// A newer state has waited long enough for an attempt.
    pub(super) fn supersede(&mut self, pod: usize, replica: usize, attempt: u64) {
        let now = self.now;
        let Some(sidecar) = &mut self.pods[pod].sidecar else { return };
        let link = &mut sidecar.links[replica];
        if link.under_way.take_if(|(under_way, ..)| *under_way == attempt).is_some() {
            link.delivery.abandoned(Duration::from_millis(now));
            self.drive(pod, replica);
        }
    }

    fn transmit(&mut self, replica: usize, message: Message) {
        for delay in self.copies(replica, message.from) {
            self.schedule(delay, Happening::Arrive { replica, message: Box::new(message.clone()) });
        }
    }

    pub(super) fn send_reply(&mut self, replica: usize, message: &Message, reply: Reply) {
        let Some((pod, generation, attempt)) = message.reply_to else { return };
        if let Some(&delay) = self.copies(replica, message.from).first() {
            self.schedule(delay, Happening::Replied { pod, generation, replica, attempt, reply: Box::new(reply) });
        }
    }

    /// After how long each copy of a message arrives: none when it is lost.
    fn copies(&mut self, replica: usize, pod: usize) -> Vec<u64> {
        if self.partitioned_until[replica] > self.now {
            return Vec::new();
        }
        let noise = self.noise;
        let noisy = noise.until > self.now;
        let random = &mut self.pods[pod].random;
        let mut delays = vec![random.between(1, 8)];
        if noisy {
            delays[0] = random.between(1, noise.delay_ms);
            if random.chance(noise.repeated_percent) {
                delays.push(random.between(1, noise.delay_ms * 4));
            }
            if random.chance(noise.lost_percent) {
                delays.swap_remove(0);
            }
        }
        delays
    }
}
