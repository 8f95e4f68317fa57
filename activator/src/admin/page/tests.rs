use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use metrics_exporter_prometheus::PrometheusBuilder;
use podlight_proto::PodRef;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::picture::{MOST_BACKENDS, MOST_TARGETS};
use super::*;
use crate::cluster::Health;
use crate::proxy::annotations::{Defaults, parse, settle};
use crate::proxy::route::{RouteTable, Taker};
use crate::proxy::target::{Errands, HoldConfig, Hub, Lease, Mode, Refusal, Target};
use crate::server::{ShutdownTrigger, with_fallbacks};
use crate::table::entry::{Observation, Phase, Protocol, ReadyCondition};
use crate::table::group::{GroupKey, Service, ServicePort, TargetPort};
use crate::table::owner;
use crate::table::{Change, Pacing, Table, Update};

const PATIENCE: Duration = Duration::from_secs(60);

const LEASE: Duration = Duration::from_secs(3600);

fn service(name: &str, annotations: &[(&str, &str)]) -> Service {
    let port = ServicePort {
        name: "http".into(),
        port: 80,
        target: TargetPort::Number(8080),
        protocol: Protocol::Tcp,
        app_protocol: None,
    };
    Service {
        selector: Some(BTreeMap::from([("app".into(), name.into())])),
        ports: vec![port],
        annotations: annotations.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..Service::new(GroupKey::new("shop", name))
    }
}

fn pod(service: &str, n: u8, ready: bool) -> Observation {
    let name = format!("{service}-{n}");
    Observation {
        pod: PodRef::new("shop", &name, &format!("uid-{name}")).expect("valid"),
        resource_version: 1,
        service_account: "default".into(),
        phase: Phase::Alive,
        terminating_since_ms: None,
        addresses: vec![IpAddr::from([10, 0, 0, n])],
        labels: BTreeMap::from([("app".into(), service.into())]),
        revision: "r1".into(),
        ready: Some(ReadyCondition { ready, since_seconds: 1000 }),
        gates_open: true,
        has_exec_probe: false,
        has_readiness_probe: true,
        ports: Vec::new(),
    }
}

/// A page over a table, and over targets for those of its Services that have annotations.
struct Fixture {
    router: Router,
    targets: BTreeMap<Arc<str>, Arc<Target>>,
    trigger: ShutdownTrigger,
    _errands: Errands,
}

struct World<'a> {
    services: Vec<Service>,
    pods: Vec<Observation>,
    routed: bool,
    metrics: &'a PrometheusHandle,
}

async fn fixture(services: Vec<Service>, pods: Vec<Observation>) -> Fixture {
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    open(World { services, pods, routed: true, metrics: &metrics }).await
}

async fn open(world: World<'_>) -> Fixture {
    let clock = Clock::start();
    let (table, groups, feed, _task) = owner::spawn(Table::new(Pacing::default()), clock, 1024);
    let services = world.services.iter().map(|service| Update::Service(Change::Present(Arc::new(service.clone()))));
    for update in services.chain(world.pods.into_iter().map(|pod| Update::Pod(Change::Present(Arc::new(pod))))) {
        let before = feed.newest();
        table.update(update).await;
        tokio::time::timeout(PATIENCE, feed.wait_beyond(before)).await.expect("a change");
    }
    let (hub, errands) = Hub::new(&HoldConfig::default());
    let mut routes = RouteTable::new("cluster.local");
    let mut targets = BTreeMap::new();
    for service in world.services.iter().filter(|service| !service.annotations.is_empty()) {
        let (spec, faults) = parse(service, None);
        let taker = match settle(service, &spec, &Defaults { mode: Mode::Always, hold_timeout: PATIENCE }) {
            Ok(settings) => {
                let target = Target::new(service, settings, &hub);
                target.endpoints(&groups.get("shop", &service.key.service).expect("known"));
                targets.insert(Arc::clone(&service.key.service), Arc::clone(&target));
                Taker::Target(target)
            }
            Err(why) => Taker::Nobody(why),
        };
        routes.put(&Arc::new(service.clone()), taker, &spec.hosts.unwrap_or_default(), faults);
    }
    routes.publish();
    let requests = world.routed.then(|| Requests { routes: routes.routes().clone(), hub });
    let config = PageConfig { replica: "a-0".to_owned(), groups, requests, xdp: None, clock };
    let (trigger, shutdown) = Shutdown::new();
    let router = router(config, Readiness::new(Health::local()), world.metrics.clone(), shutdown);
    Fixture { router: with_fallbacks(router), targets, trigger, _errands: errands }
}

impl Fixture {
    async fn get(&self, path: &str) -> Response {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        self.router.clone().oneshot(request).await.expect("infallible")
    }

    async fn state(&self) -> Value {
        let answer = self.get("/status").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let mut told: Value = serde_json::from_slice(&body).expect("JSON");
        assert!(told["at_ms"].as_u64() > Some(0), "{told}");
        told["state"].take()
    }

    async fn events(&self) -> Events {
        let answer = self.get("/status/events").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        Events { body: answer.into_body(), text: String::new() }
    }

    /// A request that waits until it is dropped.
    fn hold(&self, service: &str) -> tokio::task::JoinHandle<Result<Lease, Refusal>> {
        let target = Arc::clone(&self.targets[service]);
        tokio::spawn(async move { target.admit(&[], Instant::now() + LEASE, 0).await })
    }
}

struct Events {
    body: Body,
    text: String,
}

impl Events {
    /// What the next event tells; none at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let data = event.strip_prefix("data: ").map(|data| serde_json::from_str(data).expect("JSON"));
                self.text = rest.to_owned();
                if data.is_some() {
                    return data.map(|mut told: Value| told["state"].take());
                }
            }
            let frame = self.body.frame().await?.expect("a frame").into_data().expect("data");
            self.text.push_str(std::str::from_utf8(&frame).expect("UTF-8"));
        }
    }
}

fn always(name: &str) -> Service {
    service(name, &[("route", "always")])
}

#[tokio::test]
async fn the_page_runs_its_own_script_only_and_puts_nothing_in_as_html() {
    let fixture = fixture(Vec::new(), Vec::new()).await;
    for (path, media_type, text) in [
        ("/", "text/html; charset=utf-8", HTML),
        ("/status/page.js", "text/javascript; charset=utf-8", SCRIPT),
        ("/status/page.css", "text/css; charset=utf-8", STYLE),
    ] {
        let answer = fixture.get(path).await;
        assert_eq!(answer.headers()[header::CONTENT_TYPE], media_type);
        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().expect("text").to_owned();
        let own = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'";
        assert!(policy.starts_with(own) && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), text);
    }
    assert_eq!(fixture.get("/status").await.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert_eq!(fixture.get("/status/else").await.status(), StatusCode::NOT_FOUND);
    for way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
        assert!(!SCRIPT.contains(way), "{way}");
    }
    for inline in ["<script>", "<style", "style=", "onclick", "onload", "javascript:", "://"] {
        assert!(!HTML.contains(inline), "{inline}");
    }
    assert!([HTML, SCRIPT, STYLE].map(|text| text.lines().count()).iter().sum::<usize>() < 300);
}

#[tokio::test(start_paused = true)]
async fn targets_are_told_with_settings_faults_endpoints_and_held_requests() {
    let web = [
        ("route", "always"),
        ("hosts", "web.example.com"),
        ("concurrency", "many"),
        ("scale-target", "Deployment/web"),
    ];
    let services =
        vec![service("web", &web), always("api"), service("broken", &[("route", "maybe")]), service("quiet", &[])];
    let fixture = fixture(services, vec![pod("web", 2, false), pod("web", 1, false), pod("api", 3, true)]).await;
    let _lease = fixture.targets["api"].admit(&[], Instant::now() + LEASE, 0).await.expect("ready");
    let held = [fixture.hold("web"), fixture.hold("web")];
    tokio::time::sleep(Duration::from_secs(3)).await;

    let state = fixture.state().await;
    assert_eq!((&state["replica"], &state["ready"]), (&json!("a-0"), &json!(false)));
    assert_eq!(state["requests"], json!({ "held": 2, "other_services": 1 }));
    let names: Vec<&Value> = state["targets"].as_array().expect("targets").iter().map(|t| &t["service"]).collect();
    assert_eq!(names, ["api", "broken", "web"], "sorted, and only those that take requests");
    let [api, broken, web] = [0, 1, 2].map(|n| &state["targets"][n]);
    assert_eq!((&api["in_flight"], &api["backends"][0]["in_flight"]), (&json!(1), &json!(1)));
    assert_eq!((&api["backends"][0]["state"], &api["backends"][0]["source"]), (&json!("ready"), &json!("observed")));
    assert!(broken["settings"].is_null() && broken["faults"][0].as_str().is_some_and(|fault| fault.contains("route")));
    assert_eq!(web["held"], 2);
    assert!(web["held_seconds"].as_f64().is_some_and(|seconds| (3.0..3.1).contains(&seconds)), "{web}");
    assert_eq!(
        (&web["settings"]["mode"], &web["settings"]["scale_target"]),
        (&json!("always"), &json!("Deployment/web"))
    );
    assert!(web["faults"][0].as_str().is_some_and(|fault| fault.contains("concurrency")), "{web}");
    assert!(web["hosts"].as_array().is_some_and(|hosts| hosts.contains(&json!("web.example.com"))));
    assert_eq!((&web["backends"][0]["pod"], &web["backends"][1]["pod"]), (&json!("web-1"), &json!("web-2")));
    assert_eq!(
        (&web["backends"][0]["state"], &web["backends"][0]["since_ms"]),
        (&json!("not-ready"), &json!(1_000_000))
    );
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn without_a_request_path_all_services_are_told_and_that_there_is_none() {
    let metrics = PrometheusBuilder::new().build_recorder().handle();
    let (services, pods) = (vec![service("web", &[]), always("api")], vec![pod("web", 2, true), pod("web", 1, false)]);
    let state = open(World { services, pods, routed: false, metrics: &metrics }).await.state().await;
    assert!(state["requests"].is_null());
    assert_eq!((&state["targets"][0]["service"], &state["targets"][1]["service"]), (&json!("api"), &json!("web")));
    let backends = &state["targets"][1]["backends"];
    assert_eq!((&backends[0]["pod"], &backends[0]["state"]), (&json!("web-1"), &json!("not-ready")));
    assert_eq!((&backends[1]["pod"], &backends[1]["state"]), (&json!("web-2"), &json!("ready")));
    assert_eq!(backends[1]["address"], "10.0.0.2");
    assert!(state["targets"][1]["settings"].is_null());
}

#[tokio::test]
async fn what_is_too_much_is_left_out_and_counted() {
    let long = "x".repeat(100_000);
    let hosts: Vec<String> = (0..50).map(|n| format!("{n}.example.com")).collect();
    let last = service("zz", &[("route", "always"), ("port", &long), ("hosts", &hosts.join(","))]);
    let kind = service("kind", &[("route", "always"), ("scale-target", &format!("{long}/web"))]);
    let quiet = (0..MOST_TARGETS + 1).map(|n| always(&format!("quiet-{n:03}")));
    let services = quiet.chain([last, kind]).collect();
    let fixture = fixture(services, (0..150).map(|n| pod("zz", n, false)).collect()).await;
    let state = fixture.state().await;
    let targets = state["targets"].as_array().expect("targets");
    assert_eq!((targets.len(), &state["targets_cut"]), (MOST_TARGETS, &json!(3)));
    assert_eq!(state["requests"]["other_services"], 0);
    let zz = targets.last().expect("many");
    assert_eq!(zz["service"], "zz", "what has a fault stays");
    let backends = zz["backends"].as_array().expect("backends").len();
    assert!(backends <= MOST_BACKENDS, "{backends}");
    assert_eq!(zz["backends_cut"].as_u64(), Some(150 - backends as u64));
    assert_eq!(zz["hosts_cut"].as_u64(), Some(50 + 3 - zz["hosts"].as_array().expect("hosts").len() as u64));
    let text = state.to_string();
    assert!(text.contains('…') && !text.contains(&long[..1000]), "long texts are cut");
    assert!(targets.iter().all(|target| target["service"] == "zz" || target["backends_cut"] == 0));
}

#[tokio::test(start_paused = true)]
async fn a_reader_hears_of_changes_and_of_nothing_else() {
    let fixture = fixture(vec![always("web")], Vec::new()).await;
    let mut events = fixture.events().await;
    assert_eq!(events.next().await.expect("at once")["targets"][0]["held"], 0);
    let nothing = tokio::time::timeout(KEEP_ALIVE_EVERY * 3, events.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let held = fixture.hold("web");
    assert_eq!(events.next().await.expect("a change")["targets"][0]["held"], 1);
    let (begun, mut told) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(events.next().await.expect("it is held for longer now")["requests"]["held"], 1);
        told += 1;
    }
    assert!((9..=11).contains(&told), "{told} in 5 s");
    held.abort();
    while events.next().await.expect("a change")["requests"]["held"] != 0 {}
}

#[tokio::test]
async fn readers_are_bounded_and_end_with_the_process() {
    let fixture = fixture(vec![always("web")], Vec::new()).await;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(fixture.events().await);
    }
    for path in ["/status", "/status/events"] {
        let answer = fixture.get(path).await;
        assert_eq!(
            (answer.status(), &answer.headers()[header::RETRY_AFTER]),
            (StatusCode::SERVICE_UNAVAILABLE, &RETRY_AFTER)
        );
    }
    readers.pop();
    let mut last = fixture.events().await;
    assert!(last.next().await.is_some());
    fixture.trigger.begin();
    assert_eq!(tokio::time::timeout(PATIENCE, last.next()).await.expect("in time"), None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let fixture = fixture((0..MOST_TARGETS).map(|n| always(&format!("web-{n}"))).collect(), Vec::new()).await;
    let _held = fixture.hold("web-0");
    let events = fixture.events().await;
    // Something changes all the time, and nobody reads.
    tokio::time::sleep(PATIENCE).await;
    let rest = tokio::time::timeout(PATIENCE, events.body.collect()).await.expect("it has ended").expect("a body");
    assert!(rest.to_bytes().len() < 1_000_000, "what waits for a reader is bounded");
}

#[tokio::test]
async fn the_lag_is_told_by_source_each_change_once() {
    let recorder = PrometheusBuilder::new().set_buckets(&[0.01, 0.5]).expect("buckets").build_recorder();
    metrics::with_local_recorder(&recorder, || {
        for (source, lag) in [("pushed", 0.002), ("pushed", 0.003), ("pushed", 0.2), ("observed", 3.0)] {
            metrics::histogram!("podlight_discovery_lag_seconds", "source" => source).record(lag);
        }
        metrics::histogram!("podlight_push_lead_seconds").record(1.0);
    });
    let world = World { services: Vec::new(), pods: Vec::new(), routed: true, metrics: &recorder.handle() };
    let state = open(world).await.state().await;
    let bucket = |up_to: Option<f64>, count| json!({ "up_to_seconds": up_to, "count": count });
    let observed = [bucket(Some(0.01), 0), bucket(Some(0.5), 0), bucket(None, 1)];
    let pushed = [bucket(Some(0.01), 2), bucket(Some(0.5), 1), bucket(None, 0)];
    assert_eq!(state["lag"][0], json!({ "source": "observed", "count": 1, "sum_seconds": 3.0, "buckets": observed }));
    assert_eq!((&state["lag"][1]["count"], &state["lag"][1]["buckets"]), (&json!(3), &json!(pushed)));
}
