use podlight_proto::{Kind, Order, SigningKey, UnverifiedEvent};

use super::super::scripted::pod;
use super::super::token::{Subject, TokenPod};
use super::*;

const NOW: u64 = 1_000;
const VALID: u64 = 2_000;
const EXPIRED: u64 = 1_000;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn event(name: &str, boot: u64, kind: Kind, ready: bool) -> Event {
    Event {
        pod: pod(name),
        order: Order { boot: boot.try_into().expect("in range"), seq: 1.try_into().expect("in range") },
        kind,
        revision: String::new(),
        addresses: vec!["10.0.0.1".parse().expect("an address")],
        ports: Vec::new(),
        ready,
        observed_at_ms: 0,
    }
}

fn moment(seconds: u64) -> Moment {
    Moment { wall_seconds: NOW + seconds, uptime: Duration::from_secs(seconds) }
}

/// A session of the first key, bound until `binding_expires`, at boot 10.
fn held(binding_expires: u64) -> Session {
    let boot = 10.try_into().expect("in range");
    Session { key: key(1).public_key(), boot, binding_expires, last_heard: Duration::ZERO }
}

/// What comes of an event: the seed of the key, the boot and the end of the binding that hold afterwards, or the
/// boot that supersedes it, or the refusal.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    Holds(u8, u64, u64),
    Superseded(u64),
    Refused(SessionError),
}

#[test]
fn the_rules_of_the_wire_sentence_by_sentence() {
    use Kind::{Draining, Heartbeat, NotReady, Ready};
    use SessionError::{BindingExpired, OtherKey, UnknownKey};
    use Then::{Holds, Refused, Superseded};
    let (none, valid, expired) = (None, Some(held(VALID)), Some(held(EXPIRED)));
    // The first event whose token verifies binds the uid to the key.
    let mut cases = vec![
        ("first contact", none, 1, 10, (NotReady, false), Some(VALID), Holds(1, 10, VALID)),
        ("first contact, ready at once", none, 1, 10, (Ready, true), Some(VALID), Holds(1, 10, VALID)),
        ("no token, no key", none, 1, 10, (NotReady, false), None, Refused(UnknownKey)),
        ("no token, no key, draining", none, 1, 10, (Draining, false), None, Refused(UnknownKey)),
    ];
    // From then on the key alone is enough, also after the token's end; only `ready` needs a live binding.
    for kind in [(NotReady, false), (Draining, false), (Heartbeat, false)] {
        cases.push(("by key", valid, 1, 10, kind, None, Holds(1, 10, VALID)));
        cases.push(("by key after the end", expired, 1, 10, kind, None, Holds(1, 10, EXPIRED)));
    }
    for kind in [(Ready, true), (Heartbeat, true)] {
        cases.push(("ready by key", valid, 1, 10, kind, None, Holds(1, 10, VALID)));
        cases.push(("ready by key after the end", expired, 1, 10, kind, None, Refused(BindingExpired)));
        cases.push(("ready with a new token", expired, 1, 10, kind, Some(VALID), Holds(1, 10, VALID)));
    }
    cases.extend([
        // A heartbeat with the rotated token renews the binding; an older token does not shorten it.
        ("renewal", valid, 1, 10, (Heartbeat, true), Some(VALID + 1), Holds(1, 10, VALID + 1)),
        ("older token", valid, 1, 10, (Heartbeat, true), Some(VALID - 1), Holds(1, 10, VALID)),
        // The same key with a newer boot is the same sidecar.
        ("own newer boot", valid, 1, 11, (NotReady, false), None, Holds(1, 11, VALID)),
        ("own newer boot, ready", valid, 1, 11, (Ready, true), None, Holds(1, 11, VALID)),
        ("own newer boot after the end", expired, 1, 11, (Ready, true), None, Refused(BindingExpired)),
        // An older boot of the same key is the table's to order; what holds stays.
        ("own older boot", valid, 1, 9, (NotReady, false), None, Holds(1, 10, VALID)),
        // A new key needs a newer boot and a token.
        ("new key, newer boot, token", valid, 2, 11, (NotReady, false), Some(VALID), Holds(2, 11, VALID)),
        (
            "new key is not bound beyond its token",
            valid,
            2,
            11,
            (Ready, true),
            Some(VALID - 5),
            Holds(2, 11, VALID - 5),
        ),
        ("new key, newer boot, no token", valid, 2, 11, (NotReady, false), None, Refused(OtherKey)),
        ("new key, same boot, token", valid, 2, 10, (Ready, true), Some(VALID), Superseded(10)),
        ("new key, older boot, token", valid, 2, 9, (Draining, false), Some(VALID), Superseded(10)),
        ("new key, older boot, no token", valid, 2, 9, (Draining, false), None, Refused(OtherKey)),
        ("new key after the end", expired, 2, 11, (Ready, true), Some(VALID), Holds(2, 11, VALID)),
    ]);
    for (name, held, seed, boot, (kind, ready), expires, expected) in cases {
        let event = event("web-0", boot, kind, ready);
        let then = match Session::judge(held.as_ref(), key(seed).public_key(), &event, expires, moment(0)) {
            Ok(Judgement::Admit(session)) => {
                assert_eq!(session.key, key(seed).public_key(), "{name}");
                Holds(seed, session.boot.into(), session.binding_expires)
            }
            Ok(Judgement::Superseded(boot)) => Superseded(boot.into()),
            Err(refused) => Refused(refused),
        };
        assert_eq!(then, expected, "{name}");
    }
}

fn fresh(name: &str, seed: u8, boot: u64) -> FreshEvent {
    let jws = key(seed).sign(&event(name, boot, Kind::NotReady, false), NOW, None);
    UnverifiedEvent::parse(jws.as_bytes())
        .and_then(UnverifiedEvent::verify)
        .and_then(|e| e.fresh(NOW * 1000))
        .expect("good")
}

fn token(name: &str) -> VerifiedToken {
    let bound = TokenPod { name: name.into(), uid: *pod(name).uid() };
    let subject = Subject { namespace: "shop".into(), service_account: "web".into(), pod: Some(bound) };
    VerifiedToken::assumed(subject, VALID)
}

fn contact(sessions: &Sessions, name: &str, at: u64, alive: &[&str]) -> Result<(), SessionError> {
    let (owned, token) = (Owned::assumed(*pod(name).uid()), token(name));
    let is_alive = |uid: &PodUid| alive.iter().any(|name| pod(name).uid() == uid);
    sessions.admit(fresh(name, 1, 10), &owned, Voucher::Token(&token), moment(at), is_alive).map(|_| ())
}

#[test]
fn a_refused_event_changes_nothing() {
    let sessions = Sessions::new(8);
    contact(&sessions, "web-0", 0, &[]).expect("first contact");
    let (owned, uid) = (Owned::assumed(*pod("web-0").uid()), *pod("web-0").uid());
    let refused = sessions.admit(fresh("web-0", 2, 11), &owned, Voucher::Key, moment(0), |_| true);
    assert!(matches!(refused, Err(SessionError::OtherKey)));
    let other = token("web-0");
    let superseded = sessions.admit(fresh("web-0", 2, 10), &owned, Voucher::Token(&other), moment(0), |_| true);
    assert!(matches!(superseded, Ok(Admission::Superseded(_))));
    assert_eq!(sessions.recognise(&uid, &key(1).public_key()), Ok(()));
    assert_eq!(sessions.recognise(&uid, &key(2).public_key()), Err(SessionError::OtherKey));
    assert_eq!(sessions.len(), 1);
}

#[test]
fn the_proofs_must_be_of_the_events_own_pod() {
    let sessions = Sessions::new(8);
    let (own, other) = (Owned::assumed(*pod("web-0").uid()), Owned::assumed(*pod("web-1").uid()));
    for (owned, token) in [(&other, token("web-0")), (&own, token("web-1"))] {
        let refused = sessions.admit(fresh("web-0", 1, 10), owned, Voucher::Token(&token), moment(0), |_| true);
        assert!(matches!(refused, Err(SessionError::OtherPod)));
    }
    assert_eq!(sessions.len(), 0);
}

#[test]
fn a_full_map_drops_the_dead_before_it_refuses_the_living() {
    let sessions = Sessions::new(2);
    contact(&sessions, "web-0", 0, &[]).expect("room");
    contact(&sessions, "web-1", 0, &[]).expect("room");
    assert_eq!(contact(&sessions, "web-2", 1, &[]), Err(SessionError::Full), "within the grace nobody is dropped");
    contact(&sessions, "web-0", 1, &[]).expect("a known pod needs no room");
    assert_eq!(contact(&sessions, "web-2", 61, &["web-0", "web-1", "web-2"]), Err(SessionError::Full));
    contact(&sessions, "web-2", 63, &["web-0"]).expect("web-1 is gone");
    assert_eq!(sessions.len(), 2);
    assert_eq!(sessions.recognise(pod("web-1").uid(), &key(1).public_key()), Err(SessionError::UnknownKey));
}

#[test]
fn the_sweep_spares_the_living_and_the_newly_fetched() {
    let sessions = Sessions::new(8);
    for (name, at) in [("alive", 0), ("dead", 0), ("fetched", 30)] {
        contact(&sessions, name, at, &[]).expect("room");
    }
    sessions.prune(Duration::from_secs(60), |uid| uid == pod("alive").uid());
    let known = |name| sessions.recognise(pod(name).uid(), &key(1).public_key()).is_ok();
    assert_eq!([known("alive"), known("dead"), known("fetched")], [true, false, true]);
    sessions.forget(pod("fetched").uid());
    assert_eq!(sessions.len(), 1);
}
