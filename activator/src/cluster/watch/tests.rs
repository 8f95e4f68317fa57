use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use podlight_proto::PodUid;
use serde_json::json;

use super::*;
use crate::table::entry::Observation;
use crate::table::{ListEpoch, Table, owner};

fn mk_pod(name: &str, version: u64) -> Pod {
    let meta =
        json!({"namespace": "shop", "name": name, "uid": uid(name).as_str(), "resourceVersion": version.to_string()});
    serde_json::from_value(json!({"metadata": meta})).unwrap()
}

fn uid(name: &str) -> PodUid {
    PodUid::new(&format!("uid-{name}")).unwrap()
}

fn change(event: Event<Pod>) -> Change<Arc<Observation>, PodUid> {
    translate(&event, &RevisionLabels::default()).unwrap().unwrap()
}

/// Pods as they are after these events.
fn pods_after(events: Vec<Event<Pod>>) -> Pods {
    let pods = Pods::default();
    events.into_iter().for_each(|event| pods.apply(&change(event)));
    pods
}

#[test]
fn a_complete_list_takes_out_what_it_does_not_name() {
    let pods = pods_after(vec![
        Event::Init,
        Event::InitApply(mk_pod("a", 1)),
        Event::InitApply(mk_pod("b", 1)),
        Event::InitDone,
        Event::Apply(mk_pod("c", 2)),
        Event::Init,
        Event::InitApply(mk_pod("b", 3)),
    ]);
    assert_eq!((pods.len(), pods.list_epoch()), (3, ListEpoch(1)), "an open list removes nothing");
    pods.apply(&change(Event::InitDone));
    assert_eq!((pods.len(), pods.list_epoch()), (1, ListEpoch(2)));
    assert_eq!(pods.get(&uid("b")).unwrap().resource_version, 3);
}

#[test]
fn what_is_deleted_is_gone_at_once() {
    let pods = pods_after(vec![Event::Apply(mk_pod("a", 1)), Event::Delete(mk_pod("a", 2))]);
    assert!(pods.is_empty() && pods.get(&uid("a")).is_none());
}

#[test]
fn a_list_that_breaks_off_removes_nothing_and_keeps_the_numbers_of_table_and_pods_alike() {
    let pods = pods_after(vec![
        Event::Init,
        Event::InitApply(mk_pod("a", 1)),
        Event::InitApply(mk_pod("b", 1)),
        Event::InitDone,
        Event::Init,
        Event::InitApply(mk_pod("a", 2)),
    ]);
    assert_eq!(pods.len(), 2);
    for event in [Event::Init, Event::InitApply(mk_pod("b", 3)), Event::InitDone] {
        pods.apply(&change(event));
    }
    assert_eq!((pods.len(), pods.list_epoch()), (1, ListEpoch(3)));
    assert!(pods.get(&uid("a")).is_none(), "named only in the list that broke off");
}

#[test]
fn a_slice_that_serves_no_service_any_more_is_gone() {
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "x"}, "addressType": "IPv4", "endpoints": [],
    }))
    .unwrap();
    let labels = RevisionLabels::default();
    assert!(
        matches!(translate(&Event::Apply(slice.clone()), &labels), Ok(Some(Change::Gone(key))) if &*key.name == "x")
    );
    assert!(matches!(translate(&Event::InitApply(slice), &labels), Ok(None)));
}

#[tokio::test]
async fn a_malformed_object_is_left_out_and_the_others_are_not() {
    let (table, _groups, _feed, _owner) = owner::spawn(Table::default(), owner::Clock::start(), 16);
    let (pods, health) = (Pods::default(), Health::local());
    let mut deliverer = Deliverer::new(table, pods.clone(), health.clone(), RevisionLabels::default());
    let mut bad = mk_pod("bad", 1);
    bad.metadata.resource_version = Some("not a number".to_owned());
    let events = [
        Event::Init,
        Event::InitApply(bad.clone()),
        Event::InitApply(mk_pod("a", 1)),
        Event::InitDone,
        Event::Apply(bad),
    ];
    for event in events {
        deliverer.deliver(&event).await;
    }
    assert_eq!(pods.len(), 1);
    assert_eq!(deliverer.warned.len(), 1);
    assert!(!health.synced(), "services and slices have not listed");
    deliverer.deliver(&Event::<Service>::InitDone).await;
    deliverer.deliver(&Event::<EndpointSlice>::InitDone).await;
    assert!(health.synced());
}

fn refused() -> watcher::Error {
    let status = kube::core::Status::failure("no", "Forbidden").with_code(403);
    watcher::Error::WatchStartFailed(kube::Error::Api(status.boxed()))
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_that_was_opened_again_counts_as_working() {
    let health = Health::local();
    let mut retry = Retry::new(health.clone(), Kind::Pods);
    retry.pause_after(&refused()).await;
    assert!(!health.reachable());
    retry.settled().await;
    assert!(health.reachable());
}

#[tokio::test(start_paused = true)]
async fn the_beginning_of_a_list_proves_nothing() {
    let health = Health::local();
    let mut retry = Retry::new(health.clone(), Kind::Pods);
    retry.pause_after(&refused()).await;
    retry.heard(&Event::<Pod>::Init);
    assert!(tokio::time::timeout(Duration::from_secs(60), retry.settled()).await.is_err());
    assert!(!health.reachable());
    retry.heard(&Event::InitApply(mk_pod("a", 1)));
    assert!(health.reachable());
}

#[tokio::test(start_paused = true)]
async fn a_failing_watch_pauses_longer_each_time_until_the_api_server_is_back() {
    let health = Health::local();
    let mut retry = Retry::new(health.clone(), Kind::Pods);
    for _ in 0..7 {
        retry.pause_after(&refused()).await;
    }
    let before = Instant::now();
    retry.pause_after(&refused()).await;
    assert!(before.elapsed() >= Duration::from_secs(30));
    let before = Instant::now();
    let error = refused();
    let ((), ()) = tokio::join!(retry.pause_after(&error), async { health.recovered() });
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn falling_behind_is_no_failure() {
    let health = Health::local();
    let status = kube::core::Status::failure("too old", "Expired").with_code(410);
    Retry::new(health.clone(), Kind::Slices).pause_after(&watcher::Error::WatchError(status.boxed())).await;
    assert!(health.reachable());
}
