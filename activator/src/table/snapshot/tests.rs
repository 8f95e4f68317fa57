use std::time::Duration;

use super::super::entry::{Source, State, Verdict};
use super::super::group::EndpointPort;
use super::super::{EndpointChange, entry::Protocol};
use super::*;

fn ready_endpoint(address: &str) -> Arc<Endpoint> {
    let address = address.parse().expect("ip");
    let slice = super::super::group::SliceKey { namespace: "default".into(), name: "s".into() };
    Arc::new(Endpoint {
        id: EndpointId::Address(slice, address),
        pod: None,
        verdict: Verdict { state: State::Ready, source: Source::Observed, since_ms: 0, serving: true },
        addresses: [address].into(),
        ports: [EndpointPort { name: "http".into(), port: 80, protocol: Protocol::Tcp }].into(),
        revision: "".into(),
    })
}

fn change(service: &str, endpoint: Option<Arc<Endpoint>>) -> Changes {
    let key = GroupKey::new("default", service);
    let mut snapshot = GroupSnapshot::empty(key.clone());
    let mut endpoints = Vec::new();
    if let Some(endpoint) = endpoint {
        snapshot.put(Arc::clone(&endpoint));
        endpoints.push(EndpointChange { id: endpoint.id.clone(), endpoint: Some(endpoint) });
    }
    Changes {
        groups: vec![GroupChange { key, snapshot: Some(Arc::new(snapshot)), service: false, endpoints }],
        timings: Vec::new(),
    }
}

fn removal(service: &str) -> Changes {
    let key = GroupKey::new("default", service);
    Changes {
        groups: vec![GroupChange { key, snapshot: None, service: false, endpoints: Vec::new() }],
        timings: Vec::new(),
    }
}

#[tokio::test]
async fn a_waiter_gets_the_endpoint_itself_even_when_the_service_comes_later() {
    let (mut publisher, groups, _) = Publisher::new();
    let key = GroupKey::new("default", "web");
    let waiter = tokio::spawn({
        let (groups, key) = (groups.clone(), key.clone());
        async move { groups.wait_ready(&key, "http", Instant::now() + Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    publisher.publish(change("web", None));
    tokio::task::yield_now().await;
    publisher.publish(removal("web"));
    tokio::task::yield_now().await;
    let endpoint = ready_endpoint("10.0.0.1");
    publisher.publish(change("web", Some(Arc::clone(&endpoint))));
    assert_eq!(waiter.await.expect("no panic"), Some(endpoint));
}

#[tokio::test]
async fn waiting_ends_at_the_deadline_and_for_a_port_that_nobody_has() {
    let (mut publisher, groups, _) = Publisher::new();
    publisher.publish(change("web", Some(ready_endpoint("10.0.0.1"))));
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(groups.wait_ready(&GroupKey::new("default", "web"), "grpc", deadline).await, None);
}

#[test]
fn one_service_wakes_its_own_waiters_only() {
    let (mut publisher, groups, _) = Publisher::new();
    publisher.publish(change("a", None));
    publisher.publish(change("b", None));
    let subscribe =
        |name| groups.by_key.load().get(&GroupKey::new("default", name)).expect("there").changed.subscribe();
    let (a, b) = (subscribe("a"), subscribe("b"));
    publisher.publish(change("a", Some(ready_endpoint("10.0.0.1"))));
    assert_eq!((a.has_changed().ok(), b.has_changed().ok()), (Some(true), Some(false)));
}

#[tokio::test]
async fn the_feed_numbers_changes_and_says_so_when_it_no_longer_holds_them() {
    let (mut publisher, _, feed) = Publisher::new();
    assert_eq!(feed.newest(), 0);
    publisher.publish(change("web", Some(ready_endpoint("10.0.0.1"))));
    feed.wait_beyond(1).await;
    let items = feed.since(0, 10).expect("held");
    assert_eq!(items.iter().map(|i| i.id).collect::<Vec<_>>(), [1, 2]);
    assert!(matches!(items[0].what, FeedWhat::Service(_)));
    assert!(matches!(items[1].what, FeedWhat::Endpoint(_, Some(_))));
    assert_eq!(feed.since(1, 10).expect("held").len(), 1);
    assert_eq!(feed.since(2, 10).expect("held").len(), 0);
    assert_eq!(feed.since(3, 10).err(), Some(Lagged));
    for _ in 0..FEED_ITEMS {
        publisher.publish(removal("web"));
    }
    assert_eq!(feed.since(0, 1).err(), Some(Lagged));
    assert_eq!(feed.since(2, 1).expect("the oldest held follows").len(), 1);
}
