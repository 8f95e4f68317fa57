use podlight_proto::{Order, Sequence};
use proptest::prelude::*;

use super::*;

/// Pauses of 1, 2, 4 … s.
#[derive(Debug, Default)]
struct Doubling(u32);

impl Pauses for Doubling {
    fn next_pause(&mut self) -> Duration {
        self.0 += 1;
        secs(1 << (self.0 - 1).min(16))
    }

    fn reset(&mut self) {
        self.0 = 0;
    }
}

const AGAIN: Reply = Reply::TryAgain { retry_after: None };

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn boot(n: u64) -> Boot {
    Boot::try_from(n).expect("in range")
}

fn statement(seq: u64, kind: Kind) -> Statement {
    let order = Order { boot: boot(5), seq: Sequence::try_from(seq).expect("in range") };
    Statement { order, kind, ready: kind == Kind::Ready, observed_at_ms: 0 }
}

fn reply(result: Outcome, held: u64) -> Reply {
    let boot = boot(held);
    let (replica, peers) = (String::new(), Vec::new());
    Reply::Accepted(Accepted { result, boot, replica, heartbeat_after_seconds: 10, lease_seconds: 30, peers })
}

fn applied() -> Reply {
    reply(Outcome::Applied, 5)
}

fn new() -> Delivery<Doubling> {
    Delivery::new(statement(1, Kind::NotReady), Doubling::default(), Duration::ZERO)
}

/// Answers what the delivery sends at `now`; a heartbeat has sequence 99.
fn answer(delivery: &mut Delivery<Doubling>, reply: &Reply, now: Duration) -> (Kind, bool, Option<Boot>) {
    let Step::Send { state, with_token } = delivery.next(now) else {
        panic!("nothing to send at {now:?}: {delivery:?}")
    };
    let sent = state.unwrap_or_else(|| statement(99, Kind::Heartbeat));
    (sent.kind, with_token, delivery.replied(sent, with_token, reply, now))
}

fn bound() -> Delivery<Doubling> {
    let mut delivery = new();
    answer(&mut delivery, &applied(), Duration::ZERO);
    delivery
}

#[test]
fn the_first_event_brings_the_token_and_the_next_does_not() {
    let mut delivery = new();
    assert_eq!(answer(&mut delivery, &applied(), secs(0)), (Kind::NotReady, true, None));
    delivery.state(statement(2, Kind::Ready), secs(1));
    assert_eq!(answer(&mut delivery, &applied(), secs(1)), (Kind::Ready, false, None));
}

#[test]
fn asked_for_the_token_it_is_sent_at_once_and_then_waited_for() {
    let mut delivery = bound();
    delivery.state(statement(2, Kind::Ready), secs(1));
    assert_eq!(answer(&mut delivery, &Reply::TokenWanted, secs(1)), (Kind::Ready, false, None));
    assert_eq!(answer(&mut delivery, &Reply::TokenWanted, secs(1)), (Kind::Ready, true, None));
    assert_eq!(delivery.next(secs(1)), Step::WaitUntil(secs(2)));
    assert_eq!(answer(&mut delivery, &applied(), secs(2)), (Kind::Ready, true, None));
}

#[test]
fn a_refusal_is_not_repeated() {
    let mut delivery = new();
    answer(&mut delivery, &Reply::Refused, secs(0));
    assert_eq!(delivery.settled(), Some((Kind::NotReady, Settled::Refused)));
    assert_eq!(delivery.next(secs(0)), Step::WaitUntil(REFUSED_HEARTBEAT));
    delivery.state(statement(2, Kind::Ready), secs(1));
    assert_eq!(answer(&mut delivery, &applied(), secs(1)), (Kind::Ready, true, None));
}

#[test]
fn failures_open_the_circuit_for_ever_longer_and_a_success_closes_it() {
    let mut delivery = new();
    let mut now = secs(0);
    for pause in [1, 2, 4, 8] {
        answer(&mut delivery, &AGAIN, now);
        now += secs(pause);
        assert_eq!(delivery.next(now - millis(1)), Step::WaitUntil(now));
    }
    assert_eq!(delivery.undelivered_since(), Some(secs(0)));
    answer(&mut delivery, &applied(), now);
    assert_eq!((delivery.open_until(), delivery.undelivered_since()), (None, None));
    assert_eq!(delivery.next(now), Step::WaitUntil(now + secs(10)));
}

#[test]
fn retry_after_is_waited_for() {
    let mut delivery = new();
    answer(&mut delivery, &Reply::TryAgain { retry_after: Some(secs(20)) }, secs(0));
    assert_eq!(delivery.next(secs(0)), Step::WaitUntil(secs(20)));
}

#[test]
fn a_newer_state_replaces_an_undelivered_one() {
    let mut delivery = new();
    answer(&mut delivery, &AGAIN, secs(0));
    delivery.state(statement(2, Kind::Ready), millis(10));
    delivery.state(statement(1, Kind::NotReady), millis(10));
    assert_eq!(answer(&mut delivery, &applied(), millis(10)).0, Kind::Ready);
}

#[test]
fn a_change_tries_at_once_through_an_open_circuit_but_not_too_often() {
    let mut delivery = new();
    answer(&mut delivery, &Reply::TryAgain { retry_after: Some(secs(60)) }, secs(0));
    let mut attempts = Vec::new();
    for tenth in 0..50 {
        let now = secs(10) + millis(tenth * 100);
        delivery.state(statement(2 + tenth, if tenth % 2 == 0 { Kind::Ready } else { Kind::NotReady }), now);
        if matches!(delivery.next(now), Step::Send { .. }) {
            answer(&mut delivery, &Reply::TryAgain { retry_after: Some(secs(60)) }, now);
            attempts.push(tenth);
        }
    }
    assert_eq!(attempts, [0, 10, 20, 30, 40]);
    let drain = secs(15) - millis(50);
    delivery.state(statement(60, Kind::Draining), drain);
    assert_eq!(answer(&mut delivery, &applied(), drain).0, Kind::Draining);
}

#[test]
fn an_abandoned_attempt_makes_room_at_once_the_first_time_only() {
    let mut delivery = new();
    for (now, next) in [(secs(5), secs(5)), (millis(5100), secs(6)), (secs(6), secs(7))] {
        delivery.abandoned(now);
        assert_eq!(delivery.open_until(), Some(next), "abandoned at {now:?}");
    }
    delivery.state(statement(2, Kind::Draining), millis(6100));
    assert!(matches!(delivery.next(millis(6100)), Step::Send { .. }));
}

#[test]
fn heartbeats_keep_the_pace_that_the_replica_asks_for_within_bounds() {
    let mut delivery = bound();
    assert_eq!(delivery.next(secs(9)), Step::WaitUntil(secs(10)));
    assert_eq!(answer(&mut delivery, &applied(), secs(10)), (Kind::Heartbeat, false, None));
    assert_eq!(delivery.next(secs(10)), Step::WaitUntil(secs(20)));
    for (asked, kept) in [(0, 1), (u32::MAX, 600)] {
        let mut delivery = new();
        let Reply::Accepted(accepted) = applied() else { panic!("a 202") };
        let reply = Reply::Accepted(Accepted { heartbeat_after_seconds: asked, ..accepted });
        answer(&mut delivery, &reply, secs(0));
        assert_eq!(delivery.next(secs(0)), Step::WaitUntil(secs(kept)));
    }
}

#[test]
fn no_heartbeat_overtakes_a_state_and_in_place_of_one_the_drain_is_said_again() {
    let mut delivery = bound();
    delivery.state(statement(2, Kind::Ready), secs(9));
    answer(&mut delivery, &Reply::TryAgain { retry_after: Some(secs(30)) }, secs(9));
    assert_eq!(answer(&mut delivery, &applied(), secs(39)).0, Kind::Ready, "the heartbeat was due at 10 s");
    delivery.state(statement(3, Kind::Draining), secs(40));
    answer(&mut delivery, &applied(), secs(40));
    assert_eq!(delivery.settled(), Some((Kind::Draining, Settled::Acknowledged)));
    let drain = statement(3, Kind::Draining);
    for pace in [secs(50), secs(60)] {
        assert_eq!(delivery.next(pace - millis(1)), Step::WaitUntil(pace));
        assert_eq!(delivery.next(pace), Step::Send { state: Some(drain), with_token: false });
        assert_eq!(answer(&mut delivery, &reply(Outcome::Duplicate, 5), pace).0, Kind::Draining);
    }
    delivery.token_rotated(secs(61));
    assert_eq!(delivery.next(secs(61)), Step::Send { state: Some(drain), with_token: true });
}

#[test]
fn a_replica_that_has_forgotten_an_acknowledged_drain_hears_it_again_with_the_token() {
    let mut delivery = bound();
    delivery.state(statement(2, Kind::Draining), secs(1));
    answer(&mut delivery, &applied(), secs(1));
    assert_eq!(answer(&mut delivery, &AGAIN, secs(11)), (Kind::Draining, false, None), "it starts anew");
    assert_eq!(answer(&mut delivery, &Reply::TokenWanted, secs(12)), (Kind::Draining, false, None));
    assert_eq!(answer(&mut delivery, &applied(), secs(12)), (Kind::Draining, true, None));
    assert_eq!(delivery.settled(), Some((Kind::Draining, Settled::Acknowledged)));
}

#[test]
fn a_refused_drain_is_said_again_once_its_cause_may_have_gone() {
    let mut delivery = bound();
    delivery.state(statement(2, Kind::Draining), secs(1));
    answer(&mut delivery, &Reply::Refused, secs(1));
    assert_eq!(delivery.settled(), Some((Kind::Draining, Settled::Refused)));
    let again = secs(1) + REFUSED_HEARTBEAT;
    assert_eq!(delivery.next(again - millis(1)), Step::WaitUntil(again));
    assert_eq!(answer(&mut delivery, &applied(), again), (Kind::Draining, true, None));
    assert_eq!(delivery.settled(), Some((Kind::Draining, Settled::Acknowledged)));
}

#[test]
fn a_rotated_token_renews_the_binding_with_a_heartbeat() {
    let mut delivery = bound();
    delivery.token_rotated(secs(3));
    assert_eq!(answer(&mut delivery, &applied(), secs(3)), (Kind::Heartbeat, true, None));
    assert_eq!(answer(&mut delivery, &applied(), secs(13)), (Kind::Heartbeat, false, None));
}

#[test]
fn a_superseded_event_names_the_boot_to_adopt_and_asks_for_the_token() {
    for (held, adopt) in [(4, None), (5, Some(boot(5))), (9, Some(boot(9)))] {
        let mut delivery = bound();
        delivery.state(statement(2, Kind::Ready), secs(1));
        let (.., behind) = answer(&mut delivery, &reply(Outcome::Superseded, held), secs(1));
        assert_eq!(behind, adopt, "boot {held} holds");
        delivery.state(statement(3, Kind::NotReady), secs(2));
        assert!(matches!(delivery.next(secs(2)), Step::Send { with_token: true, .. }));
    }
}

#[derive(Debug, Clone)]
enum Input {
    Passes(u64),
    Changes,
    Rotates,
    Abandons,
    Replies(Reply),
}

fn input() -> impl Strategy<Value = Input> {
    let replies = prop_oneof![
        Just(applied()),
        Just(reply(Outcome::Superseded, 9)),
        Just(Reply::TokenWanted),
        Just(Reply::Refused),
        (0..100u64).prop_map(|s| Reply::TryAgain { retry_after: Some(secs(s)) }),
    ];
    prop_oneof![
        3 => (0..20_000u64).prop_map(Input::Passes),
        2 => Just(Input::Changes),
        1 => Just(Input::Rotates),
        1 => Just(Input::Abandons),
        6 => replies.prop_map(Input::Replies),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_newest_state_arrives_and_no_heartbeat_overtakes_it(
        inputs in prop::collection::vec(input(), 0..100),
    ) {
        let (mut delivery, mut now, mut seq) = (new(), secs(0), 1);
        let send = |delivery: &mut Delivery<Doubling>, now, reply: &Reply| {
            let Step::Send { state, with_token } = delivery.next(now) else { return };
            let undelivered = delivery.settled().is_none_or(|(kind, _)| kind == Kind::Draining);
            assert_eq!(state.is_some(), undelivered, "a heartbeat goes out only when the state has arrived");
            let sent = state.unwrap_or_else(|| statement(1 << 20, Kind::Heartbeat));
            delivery.replied(sent, with_token, reply, now);
        };
        for input in inputs {
            match input {
                Input::Passes(ms) => now += millis(ms),
                Input::Changes => {
                    seq += 1;
                    delivery.state(statement(seq, if seq % 2 == 0 { Kind::Ready } else { Kind::NotReady }), now);
                }
                Input::Rotates => delivery.token_rotated(now),
                Input::Abandons => delivery.abandoned(now),
                Input::Replies(reply) => send(&mut delivery, now, &reply),
            }
        }
        now += secs(1_000_000);
        delivery.state(statement(seq + 1, Kind::Draining), now);
        send(&mut delivery, now, &applied());
        prop_assert_eq!(delivery.settled(), Some((Kind::Draining, Settled::Acknowledged)));
        prop_assert_eq!(delivery.next(now), Step::WaitUntil(now + secs(10)));
    }
}
