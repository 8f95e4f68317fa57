use std::sync::atomic::Ordering;

use podlight_proto::Order;

use super::super::scripted::{Scripted, observation, pod};
use super::super::token::TokenPod;
use super::*;
use crate::table::Table;
use crate::table::owner;

const HERE: &str = "10.0.0.1";

fn event(kind: Kind, pod: &PodRef, addresses: &[&str]) -> Event {
    let one = 1.try_into().expect("in range");
    Event {
        pod: pod.clone(),
        order: Order { boot: one, seq: 1.try_into().expect("in range") },
        kind,
        revision: "r1".into(),
        addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
        ports: Vec::new(),
        ready: kind == Kind::Ready,
        observed_at_ms: 0,
    }
    .normalized()
    .expect("well formed")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn check(event: &Event, pod: &Observation) -> Result<(), &'static str> {
    let claim = Claim { event, subject: None, peer: address("10.9.9.9") };
    claim.check(pod).map(|_| ()).map_err(|error| error.label())
}

#[test]
fn a_pod_speaks_for_its_own_addresses_in_any_order_and_notation() {
    let (web, shown) = (pod("web-0"), observation(&pod("web-0")));
    for addresses in [&["10.0.0.1"][..], &["fd00::1"], &["fd00::1", "10.0.0.1"], &["::ffff:10.0.0.1"]] {
        assert_eq!(check(&event(Kind::Ready, &web, addresses), &shown), Ok(()), "{addresses:?}");
    }
    for addresses in [&["10.0.0.2"][..], &["10.0.0.1", "10.0.0.2"]] {
        assert_eq!(check(&event(Kind::Ready, &web, addresses), &shown), Err("address"), "{addresses:?}");
    }
    let mapped = Observation { addresses: vec![address("::ffff:10.0.0.1")], ..shown };
    assert_eq!(check(&event(Kind::Ready, &web, &[HERE]), &mapped), Ok(()));
}

#[test]
fn before_the_addresses_are_published_the_network_has_the_word() {
    let web = pod("web-0");
    let bare = Observation { addresses: Vec::new(), ..observation(&web) };
    let from = |event: &Event, peer: &str| {
        Claim { event, subject: None, peer: address(peer) }.check(&bare).map(|_| ()).map_err(|error| error.label())
    };
    let one = event(Kind::Ready, &web, &[HERE]);
    assert_eq!(from(&one, HERE), Ok(()));
    assert_eq!(from(&one, "::ffff:10.0.0.1"), Ok(()));
    assert_eq!(from(&one, "10.0.0.2"), Err("address_not_published"));
    assert_eq!(from(&event(Kind::Ready, &web, &[HERE, "fd00::1"]), HERE), Err("address_not_published"));
}

#[test]
fn a_leaving_pod_may_say_so_but_not_be_ready() {
    let web = pod("web-0");
    let leaving = Observation { terminating_since_ms: Some(1), ..observation(&web) };
    let ended = Observation { phase: Phase::Ended, ..observation(&web) };
    let ready_heartbeat = Event { ready: true, ..event(Kind::Heartbeat, &web, &[HERE]) };
    assert_eq!(check(&event(Kind::Ready, &web, &[HERE]), &leaving), Err("pod_terminating"));
    assert_eq!(check(&ready_heartbeat, &leaving), Err("pod_terminating"));
    for kind in [Kind::NotReady, Kind::Draining, Kind::Heartbeat] {
        assert_eq!(check(&event(kind, &web, &[HERE]), &leaving), Ok(()), "{kind}");
        assert_eq!(check(&event(kind, &web, &[HERE]), &ended), Err("pod_ended"), "{kind}");
    }
}

#[test]
fn every_part_of_the_identity_must_be_the_pods() {
    let (web, shown) = (pod("web-0"), observation(&pod("web-0")));
    let ready = event(Kind::Ready, &web, &[HERE]);
    for (namespace, name) in [("other", "web-0"), ("shop", "web-1")] {
        let other = PodRef::new(namespace, name, "uid-web-0").expect("a pod");
        assert_eq!(check(&event(Kind::Ready, &other, &[HERE]), &shown), Err("no_such_pod"));
    }
    let revision = Observation { revision: "r2".into(), ..shown.clone() };
    assert_eq!(check(&ready, &revision), Err("revision"));

    let token = |service_account: &str, uid: &str| Subject {
        namespace: "shop".into(),
        service_account: service_account.into(),
        pod: PodUid::new(uid).map(|uid| TokenPod { name: "web-0".into(), uid }),
    };
    let with = |subject: &Subject| {
        let claim = Claim { event: &ready, subject: Some(subject), peer: address(HERE) };
        claim.check(&shown).map(|_| ()).map_err(|error| error.label())
    };
    assert_eq!(with(&token("web", "uid-web-0")), Ok(()));
    assert_eq!(with(&token("other", "uid-web-0")), Err("other_service_account"));
    assert_eq!(with(&token("web", "uid-other")), Err("other_pod"));
}

fn ownership(script: &Arc<Scripted>) -> Ownership {
    let clock = Clock::start();
    let (table, ..) = owner::spawn(Table::default(), clock, 16);
    Ownership::new(Kubernetes::Scripted(Arc::clone(script)), table, clock)
}

#[tokio::test]
async fn a_pod_that_the_watch_does_not_show_is_asked_for_once() {
    let (script, web) = (Scripted::new(), pod("web-0"));
    script.show_live(&Arc::new(observation(&web)));
    let ownership = ownership(&script);
    let ready = event(Kind::Ready, &web, &[HERE]);
    let claim = Claim { event: &ready, subject: None, peer: address(HERE) };
    let (a, b) = futures::join!(ownership.check(claim), ownership.check(claim));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(script.gets.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_pod_that_is_gone_is_refused_for_good_and_asked_for_once() {
    let (script, web) = (Scripted::new(), pod("web-0"));
    let ownership = ownership(&script);
    let ready = event(Kind::Ready, &web, &[HERE]);
    let claim = Claim { event: &ready, subject: None, peer: address(HERE) };
    // The name is another life's now.
    let reborn = PodRef::new("shop", "web-0", "uid-reborn").expect("a pod");
    script.show_live(&Arc::new(observation(&reborn)));
    for _ in 0..2 {
        assert!(matches!(ownership.check(claim).await, Err(OwnershipError::NoSuchPod)));
    }
    assert_eq!(script.gets.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn not_being_able_to_ask_decides_nothing() {
    let (script, web) = (Scripted::new(), pod("web-0"));
    script.set_reachable(false);
    let ownership = ownership(&script);
    let ready = event(Kind::Ready, &web, &[HERE]);
    let claim = Claim { event: &ready, subject: None, peer: address(HERE) };
    assert!(matches!(ownership.check(claim).await, Err(OwnershipError::Unavailable(_))));
    script.set_reachable(true);
    script.show_live(&Arc::new(observation(&web)));
    assert!(ownership.check(claim).await.is_ok());
}
