use std::sync::Mutex;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, poll};
use podlight_proto::{Boot, Event, Kind, Order, PodRef, Sequence};

use super::*;
use crate::proxy::annotations::Unreported;
use crate::proxy::fixtures::{DEFAULTS, annotated, ip, service};
use crate::proxy::route::RouteError;
use crate::proxy::wake::{ScaleError, Scaled};
use crate::table::entry::{Labels, Observation, Phase, ReadyCondition, State};
use crate::table::group::{EndpointPort, Slice, SliceEndpoint, SliceKey};
use crate::table::owner::{self, Clock, TableHandle};
use crate::table::{Change, Pacing, Table, Update};

/// A scaler that says that all is up.
struct Up;

impl Scaler for Up {
    fn scale_up<'a>(&'a self, _: &'a str, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Scaled, ScaleError>> {
        async { Ok(Scaled::Already) }.boxed()
    }
}

#[derive(Default)]
struct Reports(Mutex<Vec<String>>);

impl Reporter for Reports {
    fn report(&self, service: &Arc<Service>, faults: &[TargetFault]) {
        let told = faults.iter().map(|fault| format!("{}: {fault}", service.key.service));
        self.0.lock().expect("no panic").extend(told);
    }
}

struct World {
    table: TableHandle,
    groups: Groups,
    feed: Feed,
    following: Following,
    reports: Arc<Reports>,
}

fn config() -> FollowConfig {
    let hold = HoldConfig::default();
    FollowConfig { defaults: DEFAULTS, hold, cluster_domain: "cluster.local".to_owned() }
}

impl World {
    /// A table that has these Services before anybody follows it.
    async fn with(services: Vec<Service>) -> Self {
        let (table, groups, feed, _owner) = owner::spawn(Table::new(Pacing::default()), Clock::start(), 64);
        for service in services {
            table.update(Update::Service(Change::Present(Arc::new(service)))).await;
        }
        settled(&table, &feed).await;
        let reports = Arc::new(Reports::default());
        let reporter = Arc::clone(&reports) as Arc<dyn Reporter>;
        let following = spawn(&config(), groups.clone(), feed.clone(), Arc::new(Up), reporter);
        following.routes.complete();
        Self { table, groups, feed, following, reports }
    }

    async fn put(&self, service: Service) {
        self.update(Update::Service(Change::Present(Arc::new(service)))).await;
    }

    async fn update(&self, update: Update) {
        self.table.update(update).await;
        settled(&self.table, &self.feed).await;
        // The follower runs on this thread too: it has caught up when it waits again.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn observe(&self, observation: Observation) {
        self.update(Update::Pod(Change::Present(Arc::new(observation)))).await;
    }

    async fn push(&self, uid: &str, kind: Kind, seq: u64) {
        let order =
            Order { boot: Boot::try_from(1).expect("in range"), seq: Sequence::try_from(seq).expect("in range") };
        let event = Event {
            pod: reference(uid),
            order,
            kind,
            revision: String::new(),
            addresses: vec![ip("10.0.0.1")],
            ports: Vec::new(),
            ready: kind == Kind::Ready,
            observed_at_ms: 1_700_000_000_000 + seq,
        };
        self.table.push(event).await.expect("applied");
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn find(&self, host: &str) -> Arc<Target> {
        self.following.routes.find(host).expect("routed")
    }

    fn reports(&self) -> Vec<String> {
        std::mem::take(&mut *self.reports.0.lock().expect("no panic"))
    }
}

/// Waits until the table's owner has published what it was sent: it answers a push only then.
async fn settled(table: &TableHandle, _: &Feed) {
    let event = Event {
        pod: PodRef::new("nowhere", "nobody", "nobody").expect("valid"),
        order: Order { boot: Boot::try_from(1).expect("in range"), seq: Sequence::try_from(1).expect("in range") },
        kind: Kind::Heartbeat,
        revision: String::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        ready: false,
        observed_at_ms: 1,
    };
    table.push(event).await.expect("answered");
}

fn reference(uid: &str) -> PodRef {
    PodRef::new("default", &format!("pod-{uid}"), uid).expect("valid")
}

fn observation(uid: &str, app: &str, version: u64, ready: bool) -> Observation {
    Observation {
        pod: reference(uid),
        resource_version: version,
        service_account: "web".into(),
        phase: Phase::Alive,
        terminating_since_ms: None,
        addresses: vec![ip("10.0.0.1")],
        labels: Labels::from([("app".into(), app.into())]),
        revision: "".into(),
        ready: Some(ReadyCondition { ready, since_seconds: 1_600_000_000 }),
        gates_open: true,
        has_exec_probe: false,
        has_readiness_probe: true,
        ports: Vec::new(),
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

#[tokio::test]
async fn what_the_table_has_before_is_routed_at_once_and_what_comes_later_too() {
    let world = World::with(vec![service("web")]).await;
    assert_eq!(&*world.find("web.default.svc").key().service, "web");
    assert!(world.following.routes.find("late.default.svc").is_err());
    world.put(service("late")).await;
    assert_eq!(&*world.find("late.default.svc").key().service, "late");
    let plain = Service { annotations: Labels::new(), ..service("plain") };
    world.put(plain).await;
    assert_eq!(world.following.routes.find("plain.default").err(), Some(RouteError::Unknown("plain.default".into())));
}

#[tokio::test]
async fn a_push_releases_what_is_held() {
    let world = World::with(vec![service("web")]).await;
    world.observe(observation("a", "web", 1, false)).await;
    world.push("a", Kind::NotReady, 1).await;
    let target = world.find("web.default");
    let mut held = Box::pin(target.admit(&[], deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    world.push("a", Kind::Ready, 2).await;
    assert_eq!(held.now_or_never().expect("at once").expect("ready").address().to_string(), "10.0.0.1:8080");
}

#[tokio::test]
async fn case_27_a_pod_that_the_selector_leaves_out_gets_nothing_whatever_it_pushes() {
    let world = World::with(vec![service("web")]).await;
    world.observe(observation("a", "web", 1, true)).await;
    world.push("a", Kind::Ready, 1).await;
    let target = world.find("web.default");
    assert!(target.admit(&[], deadline(), 0).now_or_never().is_some());
    world.observe(observation("a", "other", 2, true)).await;
    world.push("a", Kind::Ready, 2).await;
    assert!(target.admit(&[], deadline(), 0).now_or_never().is_none());
}

#[tokio::test]
async fn case_27_a_service_made_anew_under_the_same_name_is_another_target() {
    let world = World::with(vec![service("web")]).await;
    let before = world.find("web.default");
    let mut held = Box::pin(before.admit(&[], deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    world.put(Service { uid: "another".into(), ..service("web") }).await;
    assert_eq!(held.await.err(), Some(Refusal::Gone));
    assert!(!Arc::ptr_eq(&before, &world.find("web.default")));
}

#[tokio::test]
async fn a_service_that_goes_or_opts_out_tells_those_it_holds() {
    let world = World::with(vec![service("gone"), service("out")]).await;
    let (gone, out) = (world.find("gone.default"), world.find("out.default"));
    let (mut first, mut second) = (Box::pin(gone.admit(&[], deadline(), 0)), Box::pin(out.admit(&[], deadline(), 0)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    world.update(Update::Service(Change::Gone(GroupKey::new("default", "gone")))).await;
    world.put(Service { annotations: Labels::new(), ..service("out") }).await;
    assert_eq!((first.await.err(), second.await.err()), (Some(Refusal::Gone), Some(Refusal::Gone)));
    assert!(world.following.routes.find("gone.default").is_err());
    assert!(world.following.routes.find("out.default").is_err());
}

#[tokio::test]
async fn settings_are_live_and_a_bad_annotation_keeps_the_last_good_value_and_is_reported_once() {
    let with = |value| annotated(service("web"), &[("concurrency", value)]);
    let world = World::with(vec![with("3")]).await;
    let target = world.find("web.default");
    let limit = || target.settings().concurrency.map(std::num::NonZeroU32::get);
    assert_eq!(limit(), Some(3));
    world.put(with("5")).await;
    assert_eq!(limit(), Some(5));
    world.put(with("many")).await;
    assert_eq!(limit(), Some(5));
    let reports = world.reports();
    assert!(matches!(reports.as_slice(), [one] if one.contains("concurrency")), "{reports:?}");
    world.put(Service { publish_not_ready: true, ..with("many") }).await;
    assert_eq!(world.reports(), Vec::<String>::new());
    let listed = world.following.routes.get(target.key()).expect("listed");
    assert_eq!(listed.faults.len(), 1);
    assert!(Arc::ptr_eq(&target, &world.find("web.default")));
}

#[tokio::test]
async fn each_report_names_all_faults_that_a_service_has_then() {
    let faults = [("concurrency", "many"), ("hold-timeout", "long"), ("scale-target", "web")];
    let world = World::with(vec![service("web")]).await;
    for count in 1..=faults.len() {
        world.put(annotated(service("web"), &faults[..count])).await;
        assert_named(&world.reports(), &faults[..count]);
    }
    world.put(annotated(service("web"), &faults[1..])).await;
    assert_named(&world.reports(), &faults[1..]);
    world.put(service("web")).await;
    assert_eq!(world.reports(), Vec::<String>::new());
}

/// That these annotations are what was reported, each once.
fn assert_named(reports: &[String], annotations: &[(&str, &str)]) {
    let names = |report: &String, name: &str| report.starts_with(&format!("web: podlight.dev/{name}: "));
    let named = annotations.iter().all(|(name, _)| reports.iter().any(|report| names(report, name)));
    assert!(named && reports.len() == annotations.len(), "{reports:?}");
}

#[tokio::test]
async fn a_host_lost_to_an_older_service_is_reported_to_its_owner() {
    let hosts = [("hosts", "web.example.com")];
    let young = Service { created_seconds: 9, ..annotated(service("young"), &hosts) };
    let world = World::with(vec![young]).await;
    world.put(Service { created_seconds: 1, ..annotated(service("old"), &hosts) }).await;
    assert_eq!(&*world.find("web.example.com").key().service, "old");
    assert!(world.reports()[0].starts_with("young: podlight.dev/hosts: web.example.com belongs to default/old"));
}

#[tokio::test]
async fn case_25_a_service_without_selector_is_reached_by_its_slices() {
    let world = World::with(vec![Service { selector: None, cluster_ips: Vec::new(), ..service("web") }]).await;
    let target = world.find("web.default");
    let mut held = Box::pin(target.admit(&[], deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    let slice = Slice {
        key: SliceKey { namespace: "default".into(), name: "web-1".into() },
        group: GroupKey::new("default", "web"),
        ports: vec![EndpointPort { name: "http".into(), port: 7000, protocol: Default::default() }],
        endpoints: vec![SliceEndpoint { address: ip("192.0.2.7"), pod: None, state: State::Ready, serving: true }],
    };
    world.update(Update::Slice(Change::Present(Arc::new(slice)))).await;
    assert_eq!(held.now_or_never().expect("at once").expect("ready").address().to_string(), "192.0.2.7:7000");
}

#[tokio::test]
async fn case_28_one_push_releases_the_held_of_every_service_over_the_pod() {
    let other = Service { selector: service("web").selector, cluster_ips: Vec::new(), ..service("other") };
    let world = World::with(vec![service("web"), other]).await;
    world.observe(observation("a", "web", 1, false)).await;
    world.push("a", Kind::NotReady, 1).await;
    let targets = [world.find("web.default"), world.find("other.default")];
    let mut held: Vec<_> = targets.iter().map(|target| Box::pin(target.admit(&[], deadline(), 0))).collect();
    for held in &mut held {
        assert!(poll!(held).is_pending());
    }
    world.push("a", Kind::Ready, 2).await;
    assert!(held.into_iter().all(|held| held.now_or_never().is_some_and(|lease| lease.is_ok())));
}

#[tokio::test]
async fn case_21_a_pod_that_has_ended_gets_nothing_even_where_the_not_ready_are_published() {
    let web = Service { publish_not_ready: true, cluster_ips: Vec::new(), ..service("web") };
    let world = World::with(vec![web]).await;
    let target = world.find("web.default");
    world.observe(observation("a", "web", 1, false)).await;
    assert!(target.admit(&[], deadline(), 0).now_or_never().is_some());
    world.observe(Observation { phase: Phase::Ended, ..observation("a", "web", 2, false) }).await;
    assert!(target.admit(&[], deadline(), 0).now_or_never().is_none());
}

#[tokio::test]
async fn a_follower_that_was_outrun_looks_at_everything() {
    let world = World::with(vec![service("web"), service("gone")]).await;
    world.following.follower.abort();
    let (mut follower, _scale) =
        Follower::new(&config(), world.groups.clone(), world.feed.clone(), Arc::new(Unreported));
    let routes = follower.routes().clone();
    let gone = routes.find("gone.default").expect("routed");
    let mut held = Box::pin(gone.admit(&[], deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    world.update(Update::Service(Change::Gone(GroupKey::new("default", "gone")))).await;
    world.put(service("late")).await;
    for version in 1..9000 {
        let flapping = observation("a", "web", version, version % 2 == 0);
        world.table.update(Update::Pod(Change::Present(Arc::new(flapping)))).await;
        let (away, back) = (observation("b", "web", 2 * version, true), observation("b", "x", 2 * version + 1, true));
        world.table.update(Update::Pod(Change::Present(Arc::new(away)))).await;
        world.table.update(Update::Pod(Change::Present(Arc::new(back)))).await;
    }
    settled(&world.table, &world.feed).await;
    assert!(world.feed.since(follower.applied, 1).is_err(), "the log was outrun");
    follower.catch_up();
    assert_eq!(held.await.err(), Some(Refusal::Gone));
    assert!(routes.find("late.default").is_ok() && routes.find("gone.default").is_err());
    assert_eq!(follower.applied, world.feed.newest());
}

#[tokio::test(start_paused = true)]
async fn time_alone_wakes_what_is_held() {
    let world = World::with(vec![service("web")]).await;
    world.observe(observation("a", "web", 1, false)).await;
    world.push("a", Kind::Ready, 1).await;
    let target = world.find("web.default");
    let lease = target.admit(&[], deadline(), 0).await.expect("ready");
    let tried = *lease.backend().id();
    lease.refused();
    drop(lease);
    let begun = Instant::now();
    let again = target.admit(&[tried], deadline(), 0).await.expect("its quarantine ends");
    assert_eq!(*again.backend().id(), tried);
    assert!(begun.elapsed() >= Duration::from_millis(900) && begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn shutting_down_refuses_what_is_still_held() {
    let world = World::with(vec![service("web")]).await;
    let target = world.find("web.default");
    let mut held = Box::pin(target.admit(&[], deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    world.following.routes.shut_down();
    assert_eq!(held.await.err(), Some(Refusal::ShuttingDown));
}
