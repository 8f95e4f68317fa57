use super::super::entry::{Source, State, Verdict};
use super::super::group::{EndpointFacts, EndpointPort};
use super::super::{EndpointChange, entry::Protocol};
use super::*;

fn ready_endpoint(address: &str) -> Endpoint {
    let address = address.parse().expect("ip");
    let slice = super::super::group::SliceKey { namespace: "default".into(), name: "s".into() };
    let facts = EndpointFacts {
        group: GroupKey::new("default", "web"),
        id: EndpointId::Address(slice, address),
        pod: None,
        addresses: vec![address],
        ports: vec![EndpointPort { name: "http".into(), port: 80, protocol: Protocol::Tcp }],
        revision: "".into(),
    };
    let verdict = Verdict { state: State::Ready, source: Source::Observed, since_ms: 0, serving: true };
    Endpoint::new(Arc::new(facts), verdict)
}

fn change(endpoint: Option<Endpoint>) -> Changes {
    let mut snapshot = GroupSnapshot::empty(GroupKey::new("default", "web"));
    if let Some(endpoint) = &endpoint {
        snapshot.put(endpoint, &mut Vec::new());
    }
    let endpoints = endpoint.into_iter().map(EndpointChange::Now).collect();
    only(GroupWhat::Now { snapshot: Arc::new(snapshot), service: false, endpoints })
}

fn removal() -> Changes {
    only(GroupWhat::Gone(GroupKey::new("default", "web")))
}

fn only(what: GroupWhat) -> Changes {
    Changes { groups: vec![GroupChange { index: GroupIndex(0), what }], timings: Vec::new() }
}

#[tokio::test]
async fn the_feed_numbers_changes_and_says_so_when_it_no_longer_holds_them() {
    let (mut publisher, _, feed) = Publisher::new();
    assert_eq!(feed.newest(), 0);
    publisher.publish(change(Some(ready_endpoint("10.0.0.1"))));
    feed.wait_beyond(1).await;
    let items = feed.since(0, 10).expect("held");
    assert_eq!(items.iter().map(|i| i.id).collect::<Vec<_>>(), [1, 2]);
    assert!(matches!(items[0].what, FeedWhat::Service(_)));
    assert!(matches!(items[1].what, FeedWhat::Endpoint(_)));
    assert_eq!(feed.since(1, 10).expect("held").len(), 1);
    assert_eq!(feed.since(2, 10).expect("held").len(), 0);
    assert_eq!(feed.since(3, 10).err(), Some(Lagged));
    for _ in 0..FEED_ITEMS {
        publisher.publish(removal());
    }
    assert_eq!(feed.since(0, 1).err(), Some(Lagged));
    assert_eq!(feed.since(2, 1).expect("the oldest held follows").len(), 1);
}
