//! DESIGN §5 once more, from its text: what a replica may believe after what it was told, and what all must
//! believe after a quiet time. Shares no rule with the product, only the types of what goes in and comes out.

use std::collections::{BTreeMap, BTreeSet};

use podlight_activator::table::entry::{Observation, Phase, Source, State};
use podlight_activator::table::group::{Endpoint, EndpointId, GroupKey, GroupSnapshot, Service};
use podlight_activator::table::{Change, ListEpoch, Update};
use podlight_proto::{Boot, Event, Kind, Order, PodUid};
use std::sync::Arc;

/// What a sidecar said last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub(super) boot: Boot,
    pub(super) ready: bool,
    pub(super) since_ms: u64,
    /// Whether its lease is live.
    pub(super) live: bool,
}

/// The state that the facts make, and whose word it is; none where both say the same.
pub(super) fn effective(api: &Observation, word: Option<Word>, drained: Option<Boot>) -> (State, Option<Source>) {
    let state = |ready| if ready { State::Ready } else { State::NotReady };
    // Line 1.
    if api.terminating_since_ms.is_some() {
        return (State::Terminating, Some(Source::Observed));
    }
    if api.phase == Phase::Ended {
        return (State::NotReady, Some(Source::Observed));
    }
    if let (Some(drained), Some(word)) = (drained, word)
        && drained >= word.boot
    {
        return (State::Draining, Some(Source::Pushed));
    }
    // Line 2.
    if !api.gates_open {
        return (State::NotReady, Some(Source::Observed));
    }
    // Line 3.
    let api_ready = api.ready.is_some_and(|condition| condition.ready);
    let Some(word) = word.filter(|word| word.live && !api.has_exec_probe) else {
        return (state(api_ready), Some(Source::Observed));
    };
    // Line 4.
    if word.ready == api_ready {
        return (state(api_ready), None);
    }
    // Line 5. Without a condition the API's transition is at minus infinity.
    let second = api.ready.map(|condition| condition.since_seconds);
    let push_holds = !api.has_readiness_probe || second.is_none_or(|second| word.since_ms / 1_000 >= second);
    if push_holds { (state(word.ready), Some(Source::Pushed)) } else { (state(api_ready), Some(Source::Observed)) }
}

/// What one replica was told of one pod.
#[derive(Default)]
struct Known {
    newest: Option<(Order, bool, u64)>,
    drained: Option<Boot>,
    lease_until: u64,
    observed: Option<Arc<Observation>>,
    gone: bool,
}

/// All that one replica was told, kept the naive way.
#[derive(Default)]
pub(super) struct Knowledge {
    pods: BTreeMap<PodUid, Known>,
    services: BTreeMap<GroupKey, Arc<Service>>,
    /// The pods and Services named since the list that is running began.
    pod_list: Option<BTreeSet<PodUid>>,
    service_list: Option<BTreeSet<GroupKey>>,
    lists_begun: ListEpoch,
}

impl Knowledge {
    pub(super) fn told(&mut self, update: &Update, now: u64) {
        match update {
            Update::Pod(Change::ListBegan) => {
                self.pod_list = Some(BTreeSet::new());
                self.lists_begun.0 += 1;
            }
            Update::Pod(Change::Present(pod)) => {
                if let Some(listed) = &mut self.pod_list {
                    listed.insert(*pod.pod.uid());
                }
                self.known(pod.pod.uid(), now).gone = false;
                self.saw(pod, now);
            }
            Update::Pod(Change::Gone(uid)) => self.forget(uid),
            Update::Pod(Change::ListDone) => {
                let listed = self.pod_list.take().unwrap_or_default();
                let unlisted = |(uid, known): &(&PodUid, &Known)| known.observed.is_some() && !listed.contains(*uid);
                let gone: Vec<PodUid> = self.pods.iter().filter(unlisted).map(|(uid, _)| *uid).collect();
                gone.iter().for_each(|uid| self.forget(uid));
            }
            Update::Fetched(pod, asked_in) => {
                let late = self.pods.get(pod.pod.uid()).is_some_and(|known| known.gone);
                if !late && *asked_in == self.lists_begun {
                    self.saw(pod, now);
                }
            }
            Update::Service(Change::ListBegan) => self.service_list = Some(BTreeSet::new()),
            Update::Service(Change::Present(service)) => {
                if let Some(listed) = &mut self.service_list {
                    listed.insert(service.key.clone());
                }
                self.services.insert(service.key.clone(), Arc::clone(service));
            }
            Update::Service(Change::Gone(key)) => drop(self.services.remove(key)),
            Update::Service(Change::ListDone) => {
                let listed = self.service_list.take().unwrap_or_default();
                self.services.retain(|key, _| listed.contains(key));
            }
            Update::Slice(_) => {}
        }
    }

    /// An event, and how long the replica said that it counts.
    pub(super) fn heard(&mut self, event: &Event, lease_seconds: u32, now: u64) {
        let known = self.known(event.pod.uid(), now);
        if known.gone {
            return;
        }
        if event.kind == Kind::Draining {
            known.drained = known.drained.max(Some(event.order.boot));
        }
        if known.newest.is_none_or(|(order, ..)| event.order > order) {
            known.newest = Some((event.order, event.ready, event.observed_at_ms));
            // Leases end with a whole second.
            known.lease_until = (now + u64::from(lease_seconds) * 1_000).next_multiple_of(1_000);
        }
    }

    /// Holds what readers see against what may be believed.
    pub(super) fn check(
        &self,
        published: &BTreeMap<GroupKey, Arc<GroupSnapshot>>,
        now: u64,
    ) -> Result<(), (&'static str, String)> {
        for (key, snapshot) in published {
            let mut ready = snapshot.endpoints().filter(Endpoint::is_ready);
            ready.try_for_each(|endpoint| self.check_ready(key, &endpoint))?;
            let Some(service) = self.services.get(key) else {
                return Err(("service", format!("{key:?} is published without having been told of")));
            };
            for endpoint in snapshot.endpoints() {
                let known = self.of(&endpoint);
                let chosen =
                    known.and_then(|known| known.observed.as_ref()).is_some_and(|o| service.selects(&o.labels));
                if !chosen {
                    return Err(("membership", format!("{endpoint:?} is in {key:?}")));
                }
            }
            for (uid, known) in &self.pods {
                self.check_member(service, snapshot, uid, known, now)?;
            }
        }
        Ok(())
    }

    fn check_member(
        &self,
        service: &Service,
        snapshot: &GroupSnapshot,
        uid: &PodUid,
        known: &Known,
        now: u64,
    ) -> Result<(), (&'static str, String)> {
        let Some(observed) = known.observed.as_deref().filter(|o| service.selects(&o.labels)) else { return Ok(()) };
        let Some(endpoint) = snapshot.endpoint(&EndpointId::Pod(*uid)) else {
            return Err(("membership", format!("{uid} is not in {:?}", service.key)));
        };
        let word = known.newest.map(|(order, ready, since_ms)| Word {
            boot: order.boot,
            ready,
            since_ms,
            live: now < known.lease_until,
        });
        let (state, source) = effective(observed, word, known.drained);
        let verdict = endpoint.verdict;
        if verdict.state != state || source.is_some_and(|source| source != verdict.source) {
            let detail = format!("{uid} is {verdict:?}, should be {state:?} by {source:?}: {word:?} {observed:?}");
            return Err(("verdict", detail));
        }
        Ok(())
    }

    /// The promises about ready endpoints, each by itself.
    fn check_ready(&self, key: &GroupKey, endpoint: &Endpoint) -> Result<(), (&'static str, String)> {
        let broken = |rule| Err((rule, format!("{} is ready in {key:?}", name(endpoint))));
        let Some(known) = self.of(endpoint) else { return broken("unknown pod ready") };
        let Some(observed) = known.observed.as_ref().filter(|_| !known.gone) else {
            return broken("deleted pod ready");
        };
        if observed.terminating_since_ms.is_some() {
            return broken("terminating pod ready");
        }
        if known.drained.is_some_and(|drained| known.newest.is_some_and(|(order, ..)| order.boot <= drained)) {
            return broken("drained pod ready");
        }
        if !observed.gates_open {
            return broken("pod with a closed gate ready");
        }
        let own = endpoint.pod.as_ref() == Some(&observed.pod)
            && endpoint.addresses.iter().all(|a| observed.addresses.is_empty() || observed.addresses.contains(a));
        if own { Ok(()) } else { broken("ready in another pod's name") }
    }

    fn of(&self, endpoint: &Endpoint) -> Option<&Known> {
        match &endpoint.id {
            EndpointId::Pod(uid) => self.pods.get(uid),
            EndpointId::Address(..) => None,
        }
    }

    fn known(&mut self, uid: &PodUid, now: u64) -> &mut Known {
        let known = self.pods.entry(*uid).or_default();
        // What is known by push alone stays until its lease ends.
        if known.observed.is_none() && known.lease_until <= now && !known.gone {
            *known = Known::default();
        }
        known
    }

    fn saw(&mut self, pod: &Arc<Observation>, now: u64) {
        let known = self.known(pod.pod.uid(), now);
        if known.observed.as_ref().is_none_or(|held| pod.resource_version > held.resource_version) {
            known.observed = Some(Arc::clone(pod));
        }
    }

    fn forget(&mut self, uid: &PodUid) {
        self.pods.insert(*uid, Known { gone: true, ..Known::default() });
    }
}

fn name(endpoint: &Endpoint) -> String {
    format!("{:?} {:?} {:?}", endpoint.id, endpoint.verdict, endpoint.addresses)
}
