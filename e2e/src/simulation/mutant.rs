//! Rules left out one by one, those of DESIGN §5 and those of who may speak for a pod, to show that the simulation
//! would notice. The product's code is not touched: a rule that looks at a field is taken away by bending that field on
//! its way into the table or into ingest's rules, while the oracle sees it as it was.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use podlight_activator::table::entry::{Labels, Observation, Phase};
use podlight_activator::table::{Change, ListEpoch, Update};
use podlight_proto::{Boot, Event, Kind, Order, PodRef, PodUid, PublicKey, Sequence};

use super::sidecars::numbered_key;

/// A rule that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// All rules hold.
    None,
    /// Line 1: a deletionTimestamp is not looked at.
    DeletionTimestampIgnored,
    /// Line 1: a pod that succeeded or failed counts as alive.
    EndIgnored,
    /// Line 1: a deleted pod stays.
    DeletionIgnored,
    /// Line 1: a drain is an ordinary not-ready.
    DrainIgnored,
    /// Line 1: a drain that comes late is superseded and lost.
    LateDrainLost,
    /// Line 1: a drain holds against newer boots too.
    DrainForEver,
    /// Line 2: gates are not looked at.
    GatesIgnored,
    /// Line 3: a lease never ends.
    LeaseEndless,
    /// Line 3: no lease lives for long.
    LeaseTooShort,
    /// Line 3: a drain ends with its lease.
    DrainEndsWithLease,
    /// Line 3: exec probes are not looked at.
    ExecIgnored,
    /// Lines 4 and 5: the push always holds.
    PushAlwaysHolds,
    /// Lines 4 and 5: the API always holds.
    ApiAlwaysHolds,
    /// Line 5: in the same second the API holds.
    TieToApi,
    /// Line 5: the push holds one second too long.
    TieTooWide,
    /// Line 5: a pod without readinessProbe is as any other.
    NoProbeRuleIgnored,
    /// Heartbeats count as transitions.
    HeartbeatIsTransition,
    /// Heartbeats do not renew the lease.
    HeartbeatIgnored,
    /// Pushes merge in order of arrival.
    PushesByArrival,
    /// Observations merge in order of arrival.
    ObservationsByArrival,
    /// A re-list removes nothing.
    RelistRemovesNothing,
    /// A pod that one GET returned enters whatever was applied since it was asked for.
    FetchUnguarded,
    /// A pod's membership does not follow its labels.
    LabelsFrozen,
    /// Pods go by name, not by uid.
    UidIgnored,
    /// Whether a pod owns what its event claims is not looked at.
    OwnershipIgnored,
    /// Every key is the bound one.
    KeyIgnored,
    /// Which pod a token is bound to is not looked at.
    SubjectIgnored,
    /// Whether the addresses are the pod's is not looked at.
    AddressesIgnored,
}

/// A mutant at one replica, with what it has to remember.
pub(super) struct Bend {
    pub(super) mutant: Mutant,
    arrivals: u64,
    labels: HashMap<PodUid, Labels>,
    newest: HashMap<PodUid, Order>,
    drained: HashSet<PodUid>,
    named: HashMap<Arc<str>, PodRef>,
}

impl Bend {
    pub(super) fn new(mutant: Mutant) -> Self {
        Self {
            mutant,
            arrivals: 0,
            labels: HashMap::new(),
            newest: HashMap::new(),
            drained: HashSet::new(),
            named: HashMap::new(),
        }
    }

    /// What becomes of an update on its way into the table.
    pub(super) fn update(&mut self, update: Update) -> Option<Update> {
        match (self.mutant, update) {
            (Mutant::None, update) => Some(update),
            (Mutant::DeletionIgnored, Update::Pod(Change::Gone(_)))
            | (Mutant::RelistRemovesNothing, Update::Pod(Change::ListDone)) => None,
            (Mutant::FetchUnguarded, Update::Fetched(pod, _)) => Some(Update::Pod(Change::Present(pod))),
            (_, Update::Pod(Change::Present(pod))) => Some(Update::Pod(Change::Present(self.observation(&pod)))),
            (_, Update::Fetched(pod, ListEpoch(asked))) => {
                Some(Update::Fetched(self.observation(&pod), ListEpoch(asked)))
            }
            (_, update) => Some(update),
        }
    }

    fn observation(&mut self, pod: &Observation) -> Arc<Observation> {
        let mut pod = pod.clone();
        self.arrivals += 1;
        #[expect(clippy::wildcard_enum_match_arm, reason = "the other mutants bend other things")]
        match self.mutant {
            Mutant::DeletionTimestampIgnored => pod.terminating_since_ms = None,
            Mutant::EndIgnored => pod.phase = Phase::Alive,
            Mutant::GatesIgnored => pod.gates_open = true,
            Mutant::ExecIgnored => pod.has_exec_probe = false,
            Mutant::NoProbeRuleIgnored => pod.has_readiness_probe = true,
            Mutant::PushAlwaysHolds => shift(&mut pod, |_| 0),
            Mutant::ApiAlwaysHolds => shift(&mut pod, |_| u64::MAX / 1_000),
            Mutant::TieToApi => shift(&mut pod, |second| second + 1),
            Mutant::TieTooWide => shift(&mut pod, |second| second - 1),
            Mutant::ObservationsByArrival => pod.resource_version = self.arrivals,
            Mutant::LabelsFrozen => {
                let first = self.labels.entry(*pod.pod.uid()).or_insert_with(|| pod.labels.clone());
                pod.labels.clone_from(first);
            }
            Mutant::UidIgnored => drop(self.named.insert(Arc::clone(pod.pod.name()), pod.pod.clone())),
            _ => {}
        }
        Arc::new(pod)
    }

    /// What becomes of the key that signed.
    pub(super) fn key(&self, key: PublicKey) -> PublicKey {
        if self.mutant == Mutant::KeyIgnored { numbered_key(0) } else { key }
    }

    /// What becomes of a claim.
    pub(super) fn claimed<'a>(&self, event: &'a Event, pod: &Observation) -> Cow<'a, Event> {
        if self.mutant == Mutant::AddressesIgnored {
            return Cow::Owned(Event { addresses: pod.addresses.clone(), ..event.clone() });
        }
        Cow::Borrowed(event)
    }

    /// What becomes of an event on its way into the table.
    pub(super) fn event(&mut self, mut event: Event) -> Option<Event> {
        let uid = *event.pod.uid();
        let newest = self.newest.get(&uid).copied();
        self.newest.insert(uid, newest.map_or(event.order, |newest| newest.max(event.order)));
        self.arrivals += 1;
        #[expect(clippy::wildcard_enum_match_arm, reason = "the other mutants bend other things")]
        match self.mutant {
            Mutant::DrainIgnored | Mutant::DrainEndsWithLease if event.kind == Kind::Draining => {
                // As for DrainEndsWithLease: a not-ready that nothing on the node can outdate, while it lives.
                event.kind = Kind::NotReady;
                if self.mutant == Mutant::DrainEndsWithLease {
                    event.observed_at_ms = u64::MAX / 2;
                }
            }
            Mutant::LateDrainLost if event.kind == Kind::Draining && newest > Some(event.order) => return None,
            Mutant::DrainForEver => {
                if event.kind == Kind::Draining {
                    self.drained.insert(uid);
                } else if self.drained.contains(&uid) {
                    return None;
                }
            }
            Mutant::HeartbeatIsTransition if event.kind == Kind::Heartbeat => event.observed_at_ms += 1_000,
            Mutant::HeartbeatIgnored if event.kind == Kind::Heartbeat => return None,
            Mutant::PushesByArrival => {
                event.order.boot = Boot::try_from(1).expect("1 is a boot");
                event.order.seq = Sequence::try_from(self.arrivals).expect("counted from 1");
            }
            Mutant::UidIgnored => {
                if let Some(pod) = self.named.get(event.pod.name()) {
                    event.pod = pod.clone();
                }
            }
            _ => {}
        }
        Some(event)
    }
}

fn shift(pod: &mut Observation, by: impl Fn(u64) -> u64) {
    if let Some(condition) = &mut pod.ready {
        condition.since_seconds = by(condition.since_seconds);
    }
}
