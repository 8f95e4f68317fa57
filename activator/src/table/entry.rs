//! What is known of one pod: what its sidecar pushed and what the API server shows, side by side, and the
//! verdict on both. Both halves only ever move upwards (by order of events, by resourceVersion), so updates may
//! come in any order, any number of times, and every replica ends with the same entry.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podlight_proto::{Boot, Event, Kind, Order, Outcome, PodRef};
use serde::Serialize;
use smallvec::SmallVec;

/// Labels or a selector.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// Both clocks at one moment. Leases run on the monotonic one; the wall clock only measures lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since some fixed moment of this process.
    pub uptime: Duration,
    /// Milliseconds since the epoch.
    pub wall_ms: u64,
}

/// A pod's phase, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Pending, Running or Unknown: its containers run or may yet.
    Alive,
    /// Succeeded or Failed: its containers will not run again.
    Ended,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// The default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A port that a container declares: what a Service's named targetPort resolves to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name, possibly empty.
    pub name: Arc<str>,
    /// Its number.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// The pod's Ready condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyCondition {
    /// Whether it is True (False and Unknown are not).
    pub ready: bool,
    /// `lastTransitionTime` in seconds since the epoch, on the kubelet's clock.
    pub since_seconds: u64,
}

/// A pod as the API server shows it, reduced to what readiness, ownership and routing need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Which pod, which life of it.
    pub pod: PodRef,
    /// `metadata.resourceVersion`: the greater is the later.
    pub resource_version: u64,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
    /// `status.phase`.
    pub phase: Phase,
    /// When deletion was asked for, in milliseconds since the epoch; none while it has not been.
    pub terminating_since_ms: Option<u64>,
    /// `status.podIPs` in their order; empty until the kubelet has published them.
    pub addresses: Vec<IpAddr>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// Value of the first label present of the configured revision labels; empty when none is.
    pub revision: Arc<str>,
    /// The Ready condition; none until the kubelet has written one.
    pub ready: Option<ReadyCondition>,
    /// Whether every readiness gate's condition is True. True when there is no gate.
    pub gates_open: bool,
    /// Whether a main or restartable init container other than Podlight's has an exec readiness or startup
    /// probe, which the sidecar cannot run.
    pub has_exec_probe: bool,
    /// Whether a main or restartable init container other than Podlight's has a readiness probe at all.
    pub has_readiness_probe: bool,
    /// Declared ports of main and restartable init containers.
    pub ports: Vec<ContainerPort>,
}

/// What the sidecar pushed: a maximum over its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Order of the newest event.
    pub order: Order,
    /// The state that event tells.
    pub ready: bool,
    /// When that state began, in milliseconds since the epoch on the node's clock.
    pub observed_at_ms: u64,
    /// The addresses that event names, already checked to be the pod's.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// The greatest boot that has drained, and since when.
    pub drained: Option<(Boot, u64)>,
    /// When the last word stops counting, on the monotonic clock.
    pub lease_until: Duration,
}

/// What an endpoint is to a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Send traffic.
    Ready,
    /// Do not.
    NotReady,
    /// Its sidecar says that it is leaving.
    Draining,
    /// Its deletion has been asked for.
    Terminating,
}

impl State {
    /// As in JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not-ready",
            Self::Draining => "draining",
            Self::Terminating => "terminating",
        }
    }
}

/// Whose word a verdict rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The sidecar's.
    Pushed,
    /// The API server's.
    Observed,
}

impl Source {
    /// As in JSON and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pushed => "pushed",
            Self::Observed => "observed",
        }
    }
}

/// The answer for one pod at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The state.
    pub state: State,
    /// Whose word it is.
    pub source: Source,
    /// When the state began, in milliseconds since the epoch on the node's clock; 0 when nobody said.
    pub since_ms: u64,
    /// Whether the pod answers as far as the API server knows, whatever its state: of one that is draining or
    /// terminating it says that it may still be used (KEP-1669), of a ready one that the ClusterIP leads to it.
    pub serving: bool,
}

/// One life of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// The sidecar's half.
    pub pushed: Option<Pushed>,
    /// The API server's half.
    pub observed: Option<Arc<Observation>>,
    /// What of it decides the verdict, held here so that an event need not fetch the whole from memory.
    word: Word,
}

/// The API server's word on a pod. Before the first, nothing stands in the way of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    ready: Option<ReadyCondition>,
    terminating_since_ms: Option<u64>,
    phase: Phase,
    gates_open: bool,
    has_exec_probe: bool,
    has_readiness_probe: bool,
    has_addresses: bool,
}

impl Default for Word {
    fn default() -> Self {
        Self {
            ready: None,
            terminating_since_ms: None,
            phase: Phase::Alive,
            gates_open: true,
            has_exec_probe: false,
            has_readiness_probe: true,
            has_addresses: false,
        }
    }
}

impl Word {
    fn of(observed: &Observation) -> Self {
        let Observation { ready, terminating_since_ms, phase, gates_open, has_exec_probe, has_readiness_probe, .. } =
            *observed;
        let has_addresses = !observed.addresses.is_empty();
        Self { ready, terminating_since_ms, phase, gates_open, has_exec_probe, has_readiness_probe, has_addresses }
    }
}

impl Entry {
    /// Merges one event in. `lease_until` counts only when the event is the newest.
    pub fn merge_event(&mut self, event: &Event, lease_until: Duration) -> Outcome {
        let drains = (event.kind == Kind::Draining).then_some((event.order.boot, event.observed_at_ms));
        let Some(held) = &mut self.pushed else {
            self.pushed = Some(Pushed::from_event(event, drains, lease_until));
            return Outcome::Applied;
        };
        // A late drain still drains its boot. Of two drains of one boot, the earlier says since when, whichever
        // comes first.
        let drained = match (held.drained, drains) {
            (Some(a), Some(b)) if a.0 == b.0 => Some((a.0, a.1.min(b.1))),
            (a, b) => a.max(b),
        };
        let drained_more = drained.map(|d| d.0) > held.drained.map(|d| d.0);
        match event.order.cmp(&held.order) {
            std::cmp::Ordering::Greater => {
                held.order = event.order;
                held.ready = event.ready;
                held.observed_at_ms = event.observed_at_ms;
                held.addresses = SmallVec::from_slice(&event.addresses);
                held.drained = drained;
                held.lease_until = lease_until;
                Outcome::Applied
            }
            std::cmp::Ordering::Equal => {
                held.drained = drained;
                Outcome::Duplicate
            }
            std::cmp::Ordering::Less => {
                held.drained = drained;
                if drained_more { Outcome::Applied } else { Outcome::Superseded }
            }
        }
    }

    /// Merges one observation in. True when it was news.
    pub fn merge_observation(&mut self, observation: Arc<Observation>) -> bool {
        let news = self.observed.as_ref().is_none_or(|held| observation.resource_version > held.resource_version);
        if news {
            self.word = Word::of(&observation);
            self.observed = Some(observation);
        }
        news
    }

    /// Whether the sidecar's word still counts.
    pub fn leased(&self, uptime: Duration) -> bool {
        self.pushed.as_ref().is_some_and(|pushed| uptime < pushed.lease_until)
    }

    /// Whether the sidecar has said that this boot is leaving.
    pub fn draining(&self) -> Option<u64> {
        let pushed = self.pushed.as_ref()?;
        pushed.drained.filter(|(boot, _)| *boot >= pushed.order.boot).map(|(_, since_ms)| since_ms)
    }

    /// The state of the pod: DESIGN's table, the first line that applies.
    pub fn verdict(&self, uptime: Duration) -> Verdict {
        let word = &self.word;
        let by_api = Told::by_api(word);
        let verdict = |state, source, since_ms| Verdict { state, source, since_ms, serving: by_api.ready };

        // 1. Gone or leaving.
        if let Some(since_ms) = word.terminating_since_ms {
            return verdict(State::Terminating, Source::Observed, since_ms);
        }
        if word.phase == Phase::Ended {
            return Verdict { serving: false, ..verdict(State::NotReady, Source::Observed, by_api.since_ms) };
        }
        if let Some(since_ms) = self.draining() {
            return verdict(State::Draining, Source::Pushed, since_ms);
        }
        // 2. Gates are the API's to tell.
        if !word.gates_open {
            return verdict(State::NotReady, Source::Observed, by_api.since_ms);
        }
        let decided = |told: Told, source| {
            let state = if told.ready { State::Ready } else { State::NotReady };
            verdict(state, source, told.since_ms)
        };
        // 3. Nobody inside speaks, or not for every container.
        let pushed = self.pushed.as_ref().filter(|_| self.leased(uptime) && !word.has_exec_probe);
        let Some(pushed) = pushed.map(Told::by_sidecar) else {
            return decided(by_api, Source::Observed);
        };
        // 4 and 5. Agreement is the push's to date; in disagreement the later transition holds, to the second.
        let api_is_later = by_api.since_ms / 1000 > pushed.since_ms / 1000;
        if pushed.ready != by_api.ready && word.has_readiness_probe && api_is_later {
            decided(by_api, Source::Observed)
        } else {
            decided(pushed, Source::Pushed)
        }
    }

    /// Whether the watch shows what the sidecar last said, so that nothing is gained by hearing it again soon.
    pub fn confirmed(&self) -> bool {
        self.pushed.as_ref().is_some_and(|pushed| {
            // Without a readiness probe the API server never learns more than that the pod runs.
            self.word.ready.is_some_and(|told| told.ready == pushed.ready || !self.word.has_readiness_probe)
        })
    }

    /// Whether the API server has published the pod's addresses, so that what the sidecar names no longer counts.
    pub(super) fn has_published_addresses(&self) -> bool {
        self.word.has_addresses
    }

    /// Where the pod is reached: what the API server published, else what the sidecar named. Nowhere once it has
    /// ended: its address may be another pod's by now.
    pub fn addresses(&self) -> &[IpAddr] {
        match (&self.observed, &self.pushed) {
            (Some(observed), _) if observed.phase == Phase::Ended => &[],
            (Some(observed), _) if !observed.addresses.is_empty() => &observed.addresses,
            (_, Some(pushed)) => &pushed.addresses,
            (_, None) => &[],
        }
    }
}

impl Pushed {
    fn from_event(event: &Event, drained: Option<(Boot, u64)>, lease_until: Duration) -> Self {
        Self {
            order: event.order,
            ready: event.ready,
            observed_at_ms: event.observed_at_ms,
            addresses: SmallVec::from_slice(&event.addresses),
            drained,
            lease_until,
        }
    }
}

/// One side's word: ready or not, since when.
#[derive(Clone, Copy)]
struct Told {
    ready: bool,
    since_ms: u64,
}

impl Told {
    /// No condition yet: not ready since forever, so that any push is later.
    const NOTHING: Self = Self { ready: false, since_ms: 0 };

    fn by_api(word: &Word) -> Self {
        word.ready.map_or(Self::NOTHING, |c| Self { ready: c.ready, since_ms: c.since_seconds.saturating_mul(1000) })
    }

    fn by_sidecar(pushed: &Pushed) -> Self {
        Self { ready: pushed.ready, since_ms: pushed.observed_at_ms }
    }
}
