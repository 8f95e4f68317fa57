use std::collections::BTreeMap;

use podlight_proto::{Kind, Order, PodRef, Sequence};
use proptest::prelude::*;

use super::entry::{ContainerPort, Phase, Protocol, ReadyCondition, State, Verdict};
use super::group::{EndpointPort, ServicePort, SliceEndpoint, TargetPort};
use super::*;

const T0: u64 = 1_700_000_000_000;

fn at(seconds: u64) -> Now {
    Now { uptime: Duration::from_secs(seconds), wall_ms: T0 + seconds * 1000 }
}

fn pod(name: &str) -> PodRef {
    PodRef::new("default", name, &format!("uid-{name}")).expect("valid")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

fn observed(name: &str, version: u64) -> Observation {
    Observation {
        pod: pod(name),
        resource_version: version,
        service_account: "web".into(),
        phase: Phase::Alive,
        terminating_since_ms: None,
        addresses: vec!["10.0.0.1".parse().expect("ip")],
        labels: labels(&[("app", "web")]),
        revision: "".into(),
        ready: None,
        gates_open: true,
        has_exec_probe: false,
        has_readiness_probe: true,
        ports: vec![ContainerPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }],
    }
}

fn with_ready(mut observation: Observation, ready: bool, since: u64) -> Observation {
    observation.ready = Some(ReadyCondition { ready, since_seconds: T0 / 1000 + since });
    observation
}

fn event(name: &str, kind: Kind, order: (u64, u64), since: u64) -> Event {
    Event {
        pod: pod(name),
        order: Order {
            boot: Boot::try_from(order.0).expect("in range"),
            seq: Sequence::try_from(order.1).expect("in range"),
        },
        kind,
        revision: String::new(),
        addresses: vec!["10.0.0.1".parse().expect("ip")],
        ports: Vec::new(),
        ready: kind == Kind::Ready,
        observed_at_ms: T0 + since * 1000,
    }
}

fn service(selector: Option<&[(&str, &str)]>) -> Service {
    let port = ServicePort {
        name: "web".into(),
        port: 80,
        target: TargetPort::Name("http".into()),
        protocol: Protocol::Tcp,
        app_protocol: None,
    };
    Service { selector: selector.map(labels), ports: vec![port], ..Service::new(GroupKey::new("default", "web")) }
}

fn table_with(observation: Observation) -> Table {
    let mut table = Table::new(Pacing::default());
    table.apply(Update::Service(Change::Present(Arc::new(service(Some(&[("app", "web")]))))), at(0));
    table.apply(Update::Pod(Change::Present(Arc::new(observation))), at(0));
    table
}

fn present(table: &mut Table, observation: Observation, now: Now) {
    table.apply(Update::Pod(Change::Present(Arc::new(observation))), now);
}

fn endpoint(table: &Table, name: &str) -> Option<Endpoint> {
    let id = EndpointId::Pod(*pod(name).uid());
    table.group(&GroupKey::new("default", "web"))?.endpoint(&id)
}

fn state(table: &Table, name: &str) -> Option<(State, Source)> {
    endpoint(table, name).map(|e| (e.verdict.state, e.verdict.source))
}

#[test]
fn a_push_is_ahead_of_the_watch_and_the_watch_alone_is_enough() {
    let mut table = table_with(observed("a", 1));
    assert_eq!(state(&table, "a"), Some((State::NotReady, Source::Observed)));
    table.push(&event("a", Kind::Ready, (1, 2), 5), at(5)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::Ready, Source::Pushed)));

    let mut silent = table_with(observed("a", 1));
    present(&mut silent, with_ready(observed("a", 2), true, 7), at(7));
    assert_eq!(state(&silent, "a"), Some((State::Ready, Source::Observed)));
}

#[test]
fn terminating_beats_any_push() {
    let mut table = table_with(with_ready(observed("a", 1), true, 0));
    table.push(&event("a", Kind::Ready, (1, 1), 1), at(1)).expect("alive");
    let leaving = Observation { terminating_since_ms: Some(T0 + 2000), ..with_ready(observed("a", 2), true, 0) };
    present(&mut table, leaving, at(2));
    table.push(&event("a", Kind::Ready, (2, 1), 3), at(3)).expect("alive");
    let verdict = endpoint(&table, "a").expect("listed").verdict;
    assert_eq!((verdict.state, verdict.serving), (State::Terminating, true));
}

#[test]
fn an_ended_pod_is_not_ready_and_does_not_serve() {
    let ended = Observation { phase: Phase::Ended, ..with_ready(observed("a", 1), true, 0) };
    let mut table = table_with(ended);
    table.push(&event("a", Kind::Ready, (1, 1), 1), at(1)).expect("alive");
    let verdict = endpoint(&table, "a").expect("listed").verdict;
    assert_eq!((verdict.state, verdict.serving), (State::NotReady, false));
}

#[test]
fn drain_beats_a_late_ready_and_outlives_its_lease_until_a_newer_boot() {
    let mut table = table_with(with_ready(observed("a", 1), true, 0));
    table.push(&event("a", Kind::Draining, (1, 3), 2), at(2)).expect("alive");
    let late = table.push(&event("a", Kind::Ready, (1, 2), 1), at(3)).expect("alive");
    assert_eq!(late.outcome, Outcome::Superseded);
    table.push(&event("a", Kind::Ready, (1, 4), 3), at(3)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::Draining, Source::Pushed)));
    table.expire(Duration::from_secs(1_000_000));
    assert_eq!(state(&table, "a"), Some((State::Draining, Source::Pushed)));
    table.push(&event("a", Kind::Ready, (2, 1), 4), at(4)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::Ready, Source::Pushed)));
}

#[test]
fn a_late_drain_still_drains_its_boot() {
    let mut table = table_with(observed("a", 1));
    table.push(&event("a", Kind::Ready, (1, 3), 2), at(2)).expect("alive");
    let late = table.push(&event("a", Kind::Draining, (1, 2), 1), at(3)).expect("alive");
    assert_eq!(late.outcome, Outcome::Applied);
    assert_eq!(state(&table, "a"), Some((State::Draining, Source::Pushed)));
}

#[test]
fn a_closed_gate_holds_against_a_push() {
    let mut table = table_with(Observation { gates_open: false, ..observed("a", 1) });
    table.push(&event("a", Kind::Ready, (1, 1), 1), at(1)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::NotReady, Source::Observed)));
}

#[test]
fn an_exec_probe_leaves_the_word_to_the_api() {
    let mut table = table_with(Observation { has_exec_probe: true, ..with_ready(observed("a", 1), false, 0) });
    table.push(&event("a", Kind::Ready, (1, 1), 5), at(5)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::NotReady, Source::Observed)));
}

#[test]
fn a_lease_that_runs_out_leaves_what_the_api_says() {
    let mut table = table_with(with_ready(observed("a", 1), true, 0));
    let transition = table.push(&event("a", Kind::NotReady, (1, 1), 1), at(1)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::NotReady, Source::Pushed)));
    let end = Duration::from_secs(1 + u64::from(transition.lease_seconds));
    assert_eq!(table.next_expiry(), Some(end));
    table.expire(end - Duration::from_millis(1));
    assert_eq!(state(&table, "a"), Some((State::NotReady, Source::Pushed)));
    table.expire(end);
    assert_eq!(state(&table, "a"), Some((State::Ready, Source::Observed)));
}

#[test]
fn in_disagreement_the_later_transition_holds_and_a_tie_is_the_pushs() {
    for (pushed_at, api_at, expected) in [(5, 4, Source::Pushed), (5, 5, Source::Pushed), (5, 6, Source::Observed)] {
        let mut table = table_with(with_ready(observed("a", 1), true, api_at));
        table.push(&event("a", Kind::NotReady, (1, 1), pushed_at), at(7)).expect("alive");
        assert_eq!(state(&table, "a").map(|s| s.1), Some(expected), "{pushed_at} {api_at}");
    }
}

#[test]
fn a_pod_without_readiness_probe_is_ready_only_when_its_sidecar_says_so() {
    let unprobed = Observation { has_readiness_probe: false, ..with_ready(observed("a", 1), true, 9) };
    let mut table = table_with(unprobed);
    table.push(&event("a", Kind::NotReady, (1, 1), 1), at(10)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::NotReady, Source::Pushed)));
}

#[test]
fn heartbeats_set_a_state_where_there_is_none_and_publish_nothing_elsewhere() {
    let mut table = table_with(observed("a", 1));
    let heartbeat = |seq| Event { ready: true, ..event("a", Kind::Heartbeat, (1, seq), 3) };
    table.push(&heartbeat(4), at(5)).expect("alive");
    assert_eq!(state(&table, "a"), Some((State::Ready, Source::Pushed)));
    table.take_changes();
    assert_eq!(table.push(&heartbeat(5), at(9)).expect("alive").outcome, Outcome::Applied);
    assert!(table.take_changes().groups.is_empty());
    assert_eq!(table.push(&heartbeat(5), at(9)).expect("alive").outcome, Outcome::Duplicate);
}

#[test]
fn heartbeats_are_slow_once_the_watch_confirms() {
    let mut table = table_with(observed("a", 1));
    let first = table.push(&event("a", Kind::Ready, (1, 1), 1), at(1)).expect("alive");
    present(&mut table, with_ready(observed("a", 2), true, 2), at(2));
    let next = Event { ready: true, ..event("a", Kind::Heartbeat, (1, 2), 1) };
    let second = table.push(&next, at(3)).expect("alive");
    assert!(first.heartbeat_after_seconds < second.heartbeat_after_seconds);
    assert!(second.lease_seconds > second.heartbeat_after_seconds);
    assert!(matches!(
        table.take_changes().timings.as_slice(),
        [Timing::Lag(Source::Pushed, _), Timing::Lag(Source::Observed, _), Timing::Lead(lead)] if *lead == Duration::from_secs(1)
    ));
}

#[test]
fn a_deleted_pod_does_not_come_back_by_a_push_or_a_late_get() {
    let mut table = table_with(observed("a", 1));
    table.apply(Update::Pod(Change::Gone(*pod("a").uid())), at(1));
    assert_eq!(table.push(&event("a", Kind::Ready, (1, 1), 1), at(2)), Err(PodGone));
    table.apply(Update::Fetched(Arc::new(observed("a", 1)), ListEpoch(0)), at(2));
    assert_eq!(endpoint(&table, "a"), None);
    assert_eq!(table.sizes().gone, 1);
    table.expire(Duration::from_secs(1) + GONE_FOR);
    assert_eq!(table.sizes(), Sizes { services: 1, ..Sizes::default() });
}

#[test]
fn a_relist_removes_what_it_does_not_name_and_keeps_what_was_only_pushed() {
    let mut table = table_with(observed("a", 1));
    present(&mut table, observed("b", 1), at(0));
    table.push(&event("c", Kind::Ready, (1, 1), 1), at(1)).expect("alive");
    table.apply(Update::Pod(Change::ListBegan), at(2));
    table.push(&event("a", Kind::Ready, (1, 1), 1), at(2)).expect("alive");
    present(&mut table, observed("b", 1), at(2));
    table.apply(Update::Pod(Change::ListDone), at(2));
    assert_eq!(endpoint(&table, "a"), None);
    assert!(endpoint(&table, "b").is_some());
    assert!(table.entry(pod("c").uid()).is_some());
    table.expire(Duration::from_secs(3600));
    assert!(table.entry(pod("c").uid()).is_none());
}

#[test]
fn a_get_that_was_sent_before_a_relist_began_counts_no_more() {
    let mut table = table_with(observed("a", 1));
    table.apply(Update::Pod(Change::ListBegan), at(1));
    table.apply(Update::Fetched(Arc::new(observed("b", 1)), ListEpoch(0)), at(1));
    table.apply(Update::Pod(Change::ListDone), at(1));
    assert_eq!(endpoint(&table, "b"), None);
    table.apply(Update::Fetched(Arc::new(observed("b", 1)), ListEpoch(1)), at(2));
    assert!(endpoint(&table, "b").is_some());
}

#[test]
fn a_relist_removes_services_and_slices_too() {
    let mut table = table_with(observed("a", 1));
    table.apply(Update::Service(Change::ListBegan), at(1));
    table.apply(Update::Service(Change::ListDone), at(1));
    assert!(table.group(&GroupKey::new("default", "web")).is_none());
    let changes = table.take_changes();
    assert!(changes.groups.iter().any(|c| matches!(c.what, GroupWhat::Gone(_))));
}

#[test]
fn membership_follows_labels_and_selectors_and_a_push_cannot_change_it() {
    let mut table = table_with(Observation { labels: labels(&[("app", "other")]), ..observed("a", 1) });
    table.push(&event("a", Kind::Ready, (1, 1), 1), at(1)).expect("alive");
    assert_eq!(endpoint(&table, "a"), None);
    present(&mut table, observed("a", 2), at(2));
    assert!(endpoint(&table, "a").is_some());
    table.apply(Update::Service(Change::Present(Arc::new(service(Some(&[("app", "other")]))))), at(3));
    assert_eq!(endpoint(&table, "a"), None);
    table.apply(Update::Service(Change::Present(Arc::new(service(Some(&[("app", "web")]))))), at(4));
    assert!(endpoint(&table, "a").is_some());
    present(&mut table, Observation { labels: labels(&[]), ..observed("a", 5) }, at(5));
    assert_eq!(endpoint(&table, "a"), None);
}

#[test]
fn named_target_ports_resolve_on_each_pod() {
    let mut table = table_with(observed("a", 1));
    let other = ContainerPort { name: "http".into(), port: 9090, protocol: Protocol::Tcp };
    let udp = ContainerPort { name: "http".into(), port: 53, protocol: Protocol::Udp };
    present(&mut table, Observation { ports: vec![udp.clone(), other], ..observed("b", 1) }, at(0));
    present(&mut table, Observation { ports: vec![udp], ..observed("c", 1) }, at(0));
    let port = |name| endpoint(&table, name).expect("member").tcp_port("web");
    assert_eq!((port("a"), port("b"), port("c")), (Some(8080), Some(9090), None));
}

#[test]
fn slices_serve_services_without_selector_and_no_others() {
    let slice = |address: &str, state| Slice {
        key: SliceKey { namespace: "default".into(), name: format!("s-{address}").into() },
        group: GroupKey::new("default", "web"),
        ports: vec![EndpointPort { name: "web".into(), port: 81, protocol: Protocol::Tcp }],
        endpoints: vec![SliceEndpoint { address: address.parse().expect("ip"), pod: None, state, serving: true }],
    };
    let mut table = table_with(observed("a", 1));
    table.apply(Update::Slice(Change::Present(Arc::new(slice("10.9.9.9", State::Ready)))), at(0));
    let addresses = |table: &mut Table| -> Vec<String> {
        table.take_changes();
        let group = table.group(&GroupKey::new("default", "web")).expect("exists");
        let mut all: Vec<String> = group.endpoints().map(|e| e.addresses[0].to_string()).collect();
        all.sort();
        all
    };
    assert_eq!(addresses(&mut table), ["10.0.0.1"]);
    table.apply(Update::Service(Change::Present(Arc::new(service(None)))), at(1));
    assert_eq!(addresses(&mut table), ["10.9.9.9"]);
    table.apply(Update::Slice(Change::Present(Arc::new(slice("10.9.9.8", State::NotReady)))), at(1));
    assert_eq!(addresses(&mut table), ["10.9.9.8", "10.9.9.9"]);
    table.apply(Update::Slice(Change::ListBegan), at(2));
    table.apply(Update::Slice(Change::Present(Arc::new(slice("10.9.9.8", State::Ready)))), at(2));
    table.apply(Update::Slice(Change::ListDone), at(2));
    assert_eq!(addresses(&mut table), ["10.9.9.8"]);
    table.apply(Update::Service(Change::Present(Arc::new(service(Some(&[("app", "web")]))))), at(3));
    assert_eq!(addresses(&mut table), ["10.0.0.1"]);
}

#[test]
fn forgotten_pods_are_bounded_and_counted() {
    let mut table = Table::new(Pacing::default());
    for i in 0..=GONE_MAX {
        table.apply(Update::Pod(Change::Gone(PodUid::new(&format!("u{i}")).expect("valid"))), at(1));
    }
    assert_eq!((table.sizes().gone, table.sizes().gone_evicted), (GONE_MAX, 1));
}

#[derive(Debug, Clone)]
enum Fact {
    Event(Kind, (u64, u64), u64, bool),
    Observed(u64, Option<(bool, u64)>, bool, bool),
}

fn fact() -> impl Strategy<Value = Fact> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let event = (kind, (1..4u64, 1..6u64));
    prop_oneof![
        // One order, one content: a sidecar never says two things under one number.
        event.prop_map(|(kind, order)| Fact::Event(kind, order, order.0 * 10 + order.1, order.1 % 2 == 0)),
        (1..9u64).prop_map(|v| Fact::Observed(v, (v % 4 != 0).then_some((v % 2 == 0, v * 3)), v % 5 != 0, v == 8)),
    ]
}

fn tell(table: &mut Table, fact: &Fact) {
    match *fact {
        Fact::Event(kind, order, since, ready) => {
            let ready = if kind == Kind::Heartbeat { ready } else { kind == Kind::Ready };
            table.push(&Event { ready, ..event("a", kind, order, since) }, at(50)).expect("never deleted");
        }
        Fact::Observed(version, ready, gates_open, leaving) => {
            let mut observation = Observation { gates_open, ..observed("a", version) };
            observation.terminating_since_ms = leaving.then_some(T0);
            if let Some((ready, since)) = ready {
                observation = with_ready(observation, ready, since);
            }
            present(table, observation, at(50));
        }
    }
}

/// Keeps one kind per order, as one sidecar would.
fn consistent(facts: Vec<Fact>) -> Vec<Fact> {
    let mut kinds: BTreeMap<(u64, u64), Kind> = BTreeMap::new();
    let same = |fact: Fact| match fact {
        Fact::Event(kind, order, since, ready) => Fact::Event(*kinds.entry(order).or_insert(kind), order, since, ready),
        observed @ Fact::Observed(..) => observed,
    };
    facts.into_iter().map(same).collect()
}

proptest! {
    #[test]
    fn any_order_and_any_repetition_end_in_the_same_verdict(
        facts in prop::collection::vec(fact(), 1..12),
        shuffle in any::<prop::sample::Index>(),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let facts = consistent(facts);
        let mut table = table_with(observed("a", 0));
        facts.iter().for_each(|fact| tell(&mut table, fact));
        let mut other = table_with(observed("a", 0));
        let mut order: Vec<usize> = (0..facts.len()).rev().collect();
        order.rotate_left(shuffle.index(facts.len()));
        order.extend(again.iter().map(|i| i.index(facts.len())));
        order.iter().for_each(|i| tell(&mut other, &facts[*i]));
        let verdict = |table: &Table| -> Option<Verdict> { endpoint(table, "a").map(|e| e.verdict) };
        prop_assert_eq!(verdict(&table), verdict(&other));
        // The readers' picture is the verdict, nothing staler.
        let entry = table.entry(pod("a").uid()).expect("told of");
        prop_assert_eq!(verdict(&table), Some(entry.verdict(at(50).uptime)));
    }

    #[test]
    fn every_endpoint_has_its_own_verdict_however_pods_come_and_go(steps in prop::collection::vec((0..12u8, any::<bool>(), any::<bool>()), 1..60)) {
        let mut table = table_with(observed("p0", 1));
        for (version, (index, ready, gone)) in steps.into_iter().enumerate() {
            let name = format!("p{index}");
            if gone {
                table.apply(Update::Pod(Change::Gone(*pod(&name).uid())), at(1));
            } else {
                present(&mut table, with_ready(observed(&name, version as u64 + 2), ready, 1), at(1));
            }
            let group = table.group(&GroupKey::new("default", "web")).expect("exists");
            let listed: BTreeMap<EndpointId, Verdict> = group.endpoints().map(|e| (e.id.clone(), e.verdict)).collect();
            let rows = (0..12).filter_map(|n| table.entry(pod(&format!("p{n}")).uid()));
            let wanted = rows.filter_map(|entry| {
                let uid = *entry.observed.as_ref()?.pod.uid();
                Some((EndpointId::Pod(uid), entry.verdict(at(1).uptime)))
            });
            let wanted: BTreeMap<EndpointId, Verdict> = wanted.collect();
            for (id, verdict) in &wanted {
                prop_assert_eq!(group.endpoint(id).map(|e| e.verdict), Some(*verdict));
            }
            prop_assert_eq!(listed, wanted);
        }
    }
}
