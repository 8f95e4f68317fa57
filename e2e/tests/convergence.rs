//! 200 replicas hear the same about one pod, each in an order of its own, with repeats, and all end with the same
//! entry: that of a naive oracle which knows only maxima.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use podlight_activator::table::entry::{Labels, Now, Observation, Phase, ReadyCondition, Source, State};
use podlight_activator::table::group::{EndpointId, GroupKey, Service};
use podlight_activator::table::{Change, Pacing, Table, Update};
use podlight_e2e::simulation::Random;
use podlight_proto::{Boot, Event, Kind, Order, PodRef, PodUid, Sequence};

const REPLICAS: usize = 200;
const CASES: u64 = 200;
const T0_SECONDS: u64 = 1_700_000_000;
const NOW: Now = Now { uptime: Duration::from_secs(60), wall_ms: (T0_SECONDS + 60) * 1_000 };
/// Longer than any lease.
const LATER: Duration = Duration::from_secs(60 + 3_600);

#[derive(Clone)]
enum Fact {
    Event(Event),
    Observation(Arc<Observation>),
}

fn pod() -> PodRef {
    PodRef::new("default", "web-0", "uid-0").expect("valid")
}

fn labels() -> Labels {
    Labels::from([("app".into(), "web".into())])
}

/// A pod whose app flaps: one history, of which every replica hears everything.
fn flaps(random: &mut Random) -> Vec<Fact> {
    let (gated, exec, probe) = (random.chance(15), random.chance(15), random.chance(80));
    let mut facts = Vec::new();
    let mut second = T0_SECONDS;
    let (mut boot, mut seq) = (1, 0);
    let mut orders = BTreeSet::new();
    for version in 1..=random.between(1, 12) {
        second += random.between(0, 2);
        facts.push(Fact::Observation(Arc::new(Observation {
            pod: pod(),
            resource_version: version,
            service_account: "web".into(),
            phase: if random.chance(3) { Phase::Ended } else { Phase::Alive },
            terminating_since_ms: random.chance(3).then_some(second * 1_000),
            addresses: vec![Ipv4Addr::new(10, 0, 0, 1).into()],
            labels: labels(),
            revision: "".into(),
            ready: random.chance(90).then(|| ReadyCondition { ready: random.chance(50), since_seconds: second }),
            gates_open: !gated || random.chance(50),
            has_exec_probe: exec,
            has_readiness_probe: probe,
            ports: Vec::new(),
        })));
        for _ in 0..random.between(0, 3) {
            if random.chance(10) {
                (boot, seq) = (boot + 1, 0);
            }
            seq += random.between(1, 2);
            let order = Order {
                boot: Boot::try_from(boot).expect("in range"),
                seq: Sequence::try_from(seq).expect("in range"),
            };
            assert!(orders.insert(order), "an order is used once");
            let kind = match random.between(0, 99) {
                0..=39 => Kind::Ready,
                40..=79 => Kind::NotReady,
                80..=89 => Kind::Draining,
                _ => Kind::Heartbeat,
            };
            facts.push(Fact::Event(Event {
                pod: pod(),
                order,
                kind,
                revision: String::new(),
                addresses: vec![Ipv4Addr::new(10, 0, 0, 1).into()],
                ports: Vec::new(),
                ready: kind == Kind::Ready || kind == Kind::Heartbeat && random.chance(50),
                observed_at_ms: second * 1_000 + random.between(0, 1_999),
            }));
        }
    }
    facts
}

/// What DESIGN §5 says of all the facts, whatever their order, and whether a lease is live.
fn oracle(facts: &[Fact], leased: bool) -> (State, Option<Source>) {
    let observations = facts.iter().filter_map(|fact| match fact {
        Fact::Observation(observation) => Some(observation),
        Fact::Event(_) => None,
    });
    let events = || {
        facts.iter().filter_map(|fact| match fact {
            Fact::Event(event) => Some(event),
            Fact::Observation(_) => None,
        })
    };
    let api = observations.max_by_key(|observation| observation.resource_version).expect("at least one");
    let newest = events().max_by_key(|event| event.order);
    let drained = events().filter(|event| event.kind == Kind::Draining).map(|event| event.order.boot).max();
    let api_ready = api.ready.is_some_and(|condition| condition.ready);
    let state = |ready| if ready { State::Ready } else { State::NotReady };
    if api.terminating_since_ms.is_some() {
        return (State::Terminating, Some(Source::Observed));
    }
    if api.phase == Phase::Ended {
        return (State::NotReady, Some(Source::Observed));
    }
    if newest.is_some_and(|event| drained == Some(event.order.boot)) {
        return (State::Draining, Some(Source::Pushed));
    }
    if !api.gates_open {
        return (State::NotReady, Some(Source::Observed));
    }
    let Some(push) = newest.filter(|_| leased && !api.has_exec_probe) else {
        return (state(api_ready), Some(Source::Observed));
    };
    if push.ready == api_ready {
        return (state(api_ready), None);
    }
    let api_is_later = api.ready.is_some_and(|condition| condition.since_seconds > push.observed_at_ms / 1_000);
    if api.has_readiness_probe && api_is_later {
        (state(api_ready), Some(Source::Observed))
    } else {
        (state(push.ready), Some(Source::Pushed))
    }
}

/// All the facts at least once, some more often, in an order of this replica's own.
fn shuffled(facts: &[Fact], random: &mut Random) -> Vec<Fact> {
    let mut heard = facts.to_vec();
    for _ in 0..random.index(facts.len() + 1) {
        heard.push(facts[random.index(facts.len())].clone());
    }
    for at in (1..heard.len()).rev() {
        heard.swap(at, random.index(at + 1));
    }
    heard
}

fn table() -> Table {
    let mut table = Table::new(Pacing::default());
    let service = Service { selector: Some(labels()), ..Service::new(GroupKey::new("default", "web")) };
    table.apply(Update::Service(Change::Present(Arc::new(service))), NOW);
    table
}

fn seen(table: &Table) -> (State, Source) {
    let uid = PodUid::new("uid-0").expect("valid");
    let group = table.group(&GroupKey::new("default", "web")).expect("the Service is known");
    let verdict = group.endpoint(&EndpointId::Pod(uid)).expect("the pod is a member").verdict;
    (verdict.state, verdict.source)
}

#[test]
fn flaps_heard_in_any_order_by_200_replicas_end_in_one_entry() {
    for case in 0..CASES {
        let mut random = Random::new(case, 0);
        let facts = flaps(&mut random);
        let mut first = None;
        for replica in 0..REPLICAS {
            let mut table = table();
            for fact in shuffled(&facts, &mut random) {
                match fact {
                    Fact::Event(event) => drop(table.push(&event, NOW).expect("the pod is alive")),
                    Fact::Observation(observation) => {
                        table.apply(Update::Pod(Change::Present(observation)), NOW);
                    }
                }
            }
            let context = format!("case {case}, replica {replica}");
            let fits = |(state, source), (wanted, by): (State, Option<Source>)| {
                assert_eq!(state, wanted, "{context}");
                assert!(by.is_none_or(|by| by == source), "{context}: {source:?} instead of {by:?}");
            };
            fits(seen(&table), oracle(&facts, true));
            // How long a lease is follows from what was known when it was renewed; all else is the same.
            let mut entry = table.entry(&PodUid::new("uid-0").expect("valid")).expect("known").clone();
            if let Some(pushed) = &mut entry.pushed {
                pushed.lease_until = Duration::ZERO;
            }
            assert_eq!(*first.get_or_insert_with(|| entry.clone()), entry, "{context}");
            table.expire(LATER);
            fits(seen(&table), oracle(&facts, false));
        }
    }
}
