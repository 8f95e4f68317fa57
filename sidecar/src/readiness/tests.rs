use proptest::prelude::*;

use super::*;

fn boot(n: u64) -> Boot {
    Boot::try_from(n).expect("in range")
}

fn thresholds(success: u32, failure: u32) -> Thresholds {
    let count = |n| NonZeroU32::new(n).expect("not zero");
    Thresholds { success: count(success), failure: count(failure) }
}

fn started(probes: &[Thresholds]) -> Readiness {
    Readiness::start(boot(1000), probes, 1000)
}

fn seq(statement: Statement) -> u64 {
    statement.order.seq.into()
}

#[test]
fn a_sidecar_starts_by_saying_not_ready() {
    let statement = started(&[thresholds(1, 1)]).statement();
    assert_eq!((statement.kind, statement.ready, statement.observed_at_ms), (Kind::NotReady, false, 1000));
    assert_eq!(statement.order, Order { boot: boot(1000), seq: Sequence::FIRST });
}

#[test]
fn ready_needs_every_probe_and_not_ready_one() {
    let mut readiness = started(&[thresholds(1, 1), thresholds(1, 1)]);
    assert_eq!(readiness.probed(0, true, 1001), None);
    let ready = readiness.probed(1, true, 1002).expect("a change");
    assert_eq!((ready.kind, ready.ready, ready.observed_at_ms, seq(ready)), (Kind::Ready, true, 1002, 2));
    let lost = readiness.probed(0, false, 1003).expect("a change");
    assert_eq!((lost.kind, lost.ready, lost.observed_at_ms, seq(lost)), (Kind::NotReady, false, 1003, 3));
}

#[test]
fn thresholds_count_results_in_a_row() {
    let mut readiness = started(&[thresholds(2, 3)]);
    let changes: Vec<usize> = [true, false, true, true, false, false, true, false, false, false]
        .into_iter()
        .enumerate()
        .filter_map(|(i, passed)| readiness.probed(0, passed, 1000).map(|_| i))
        .collect();
    assert_eq!(changes, [3, 9]);
}

#[test]
fn drain_is_final_and_said_once() {
    let mut readiness = started(&[thresholds(1, 1)]);
    let draining = readiness.drain(1001).expect("a change");
    assert_eq!((draining.kind, draining.ready), (Kind::Draining, false));
    assert_eq!(readiness.drain(1002), None);
    assert_eq!(readiness.probed(0, true, 1003), None);
    assert!(readiness.passing(0), "probes are still followed");
    let restated = readiness.adopt(boot(1000), 1004).expect("adopts");
    assert_eq!(restated.kind, Kind::Draining, "a newer boot of the same process does not undo it");
}

#[test]
fn a_sidecar_that_is_behind_takes_the_next_boot_and_says_the_same_again() {
    let mut readiness = started(&[thresholds(1, 1)]);
    let ready = readiness.probed(0, true, 1005).expect("a change");
    let again = readiness.adopt(boot(2000), 1500).expect("adopts");
    assert_eq!(again.order, Order { boot: boot(2001), seq: Sequence::FIRST });
    assert_eq!((again.kind, again.observed_at_ms), (ready.kind, ready.observed_at_ms));
    assert_eq!(readiness.adopt(boot(2000), 1500), Err(AdoptError::Older), "another replica says the same late");
    assert_eq!(readiness.adopt(boot(BOOT_AHEAD_MS + 1500), 1500), Err(AdoptError::Ahead));
    assert_eq!(readiness.statement(), again);
}

#[test]
fn a_heartbeat_repeats_the_state_and_takes_an_order() {
    let mut readiness = started(&[thresholds(1, 1)]);
    readiness.probed(0, true, 1005);
    let heartbeat = readiness.heartbeat();
    assert_eq!((heartbeat.kind, heartbeat.ready, heartbeat.observed_at_ms), (Kind::Heartbeat, true, 1005));
    assert_eq!(seq(heartbeat), 3);
    assert_eq!(seq(readiness.statement()), 2, "the state keeps its own order");
    assert_eq!(readiness.probed(0, false, 1006).map(seq), Some(4));
}

#[derive(Debug, Clone)]
enum Input {
    Probed(usize, bool),
    Drain,
    Adopt(u64),
    Heartbeat,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        8 => (0..3usize, any::<bool>()).prop_map(|(probe, passed)| Input::Probed(probe, passed)),
        1 => Just(Input::Drain),
        1 => (500..1500u64).prop_map(Input::Adopt),
        2 => Just(Input::Heartbeat),
    ]
}

proptest! {
    #[test]
    fn orders_only_grow_and_nothing_follows_a_drain(inputs in prop::collection::vec(input(), 0..200)) {
        let mut readiness = started(&[thresholds(1, 2), thresholds(2, 1)]);
        let mut last = readiness.statement();
        let mut drained = false;
        for (i, input) in inputs.into_iter().enumerate() {
            let now = 1000 + i as u64;
            let said = match input {
                Input::Probed(probe, passed) => readiness.probed(probe, passed, now),
                Input::Drain => readiness.drain(now),
                Input::Adopt(held) => readiness.adopt(boot(held), now).ok(),
                Input::Heartbeat => Some(readiness.heartbeat()),
            };
            let Some(said) = said else { continue };
            prop_assert!(said.order > last.order);
            prop_assert!(!drained || matches!(said.kind, Kind::Draining | Kind::Heartbeat));
            prop_assert!(!said.ready || (readiness.passing(0) && readiness.passing(1)));
            drained |= said.kind == Kind::Draining;
            last = said;
        }
    }
}
