use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use podlight_proto::PodRef;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::cluster::{Kind, Reviewed};
use crate::server::ShutdownTrigger;
use crate::table::entry::{Observation, Phase, Protocol, ReadyCondition};
use crate::table::group::{GroupKey, Service, ServicePort, TargetPort};
use crate::table::owner::{self, TableHandle};
use crate::table::{Change, Pacing, Table, Update};

const PATIENCE: Duration = Duration::from_secs(10);

/// Who may read: `good` everything, `narrow` one path, `late` nobody can say.
#[derive(Debug, Default)]
pub(super) struct Script {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    pub(super) fn identify(&self, token: &str) -> Result<Reviewed, Refused> {
        match token {
            "good" | "narrow" => Ok(Reviewed::of_service_account("shop", token, None)),
            "late" => Err(undecided("nobody can say")),
            _ => Err(Refused::new(ErrorCode::AuthenticationFailed, "no such token")),
        }
    }

    pub(super) fn may_read(&self, user: &Reviewed, path: &str) -> bool {
        self.asked.lock().expect("no panic").push(path.to_owned());
        user.service_account == "good" || path == "/v1/targets/shop/web"
    }
}

struct Fixture {
    table: TableHandle,
    router: Router,
    feed: Feed,
    asked: Arc<Mutex<Vec<String>>>,
    trigger: ShutdownTrigger,
    readers: Arc<Semaphore>,
}

fn fixture() -> Fixture {
    let clock = Clock::start();
    let (table, groups, feed, _task) = owner::spawn(Table::new(Pacing::default()), clock, 1024);
    let (trigger, shutdown) = Shutdown::new();
    let script = Script::default();
    let asked = Arc::clone(&script.asked);
    let health = Health::local();
    [Kind::Pods, Kind::Services, Kind::Slices].into_iter().for_each(|kind| health.listed(kind));
    let readers = Arc::new(Semaphore::new(2));
    let router = routes(ApiState {
        replica: "a-0".into(),
        instance: "i1".into(),
        access: Access::new(Judge::Scripted(script)),
        health,
        groups,
        feed: feed.clone(),
        clock,
        shutdown,
        readers: Arc::clone(&readers),
        queries: Arc::new(Semaphore::new(2)),
    });
    Fixture { table, router, feed, asked, trigger, readers }
}

fn pod(name: &str, version: u64, ready: bool) -> Observation {
    Observation {
        pod: PodRef::new("shop", name, &format!("uid-{name}")).expect("valid"),
        resource_version: version,
        service_account: "default".into(),
        phase: Phase::Alive,
        terminating_since_ms: None,
        addresses: vec![IpAddr::from([10, 0, 0, 7])],
        labels: BTreeMap::from([("app".into(), "web".into())]),
        revision: "r1".into(),
        ready: Some(ReadyCondition { ready, since_seconds: 1000 }),
        gates_open: true,
        has_exec_probe: false,
        has_readiness_probe: true,
        ports: Vec::new(),
    }
}

fn service(name: &str) -> Service {
    Service {
        selector: Some(BTreeMap::from([("app".into(), name.into())])),
        ports: vec![ServicePort {
            name: "http".into(),
            port: 80,
            target: TargetPort::Number(8080),
            protocol: Protocol::Tcp,
            app_protocol: None,
        }],
        ..Service::new(GroupKey::new("shop", name))
    }
}

impl Fixture {
    /// Applies updates and waits until readers see them.
    async fn apply(&self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            let before = self.feed.newest();
            self.table.update(update).await;
            tokio::time::timeout(PATIENCE, self.feed.wait_beyond(before)).await.expect("a change");
        }
    }

    async fn web_with(&self, pods: &[Observation]) {
        self.apply([Update::Service(Change::Present(Arc::new(service("web"))))]).await;
        self.apply(pods.iter().map(|pod| Update::Pod(Change::Present(Arc::new(pod.clone()))))).await;
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.router.clone().oneshot(request.body(Body::empty()).expect("a request")).await.expect("infallible")
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get(path, &[("authorization", "Bearer good")]).await;
        assert_eq!(answer.status(), StatusCode::OK);
        serde_json::from_slice(&answer.into_body().collect().await.expect("a body").to_bytes()).expect("JSON")
    }

    async fn watch(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let headers = [&[("authorization", "Bearer good")], headers].concat();
        let answer = self.get(path, &headers).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        Events { body: answer.into_body(), text: String::new() }
    }
}

/// A watch, event by event.
struct Events {
    body: Body,
    text: String,
}

#[derive(Debug, PartialEq)]
struct Told {
    event: String,
    id: Option<String>,
    data: Value,
}

impl Events {
    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Told> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    block.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim_start().to_owned())
                };
                let told = field("event:").map(|event| Told {
                    event,
                    id: field("id:"),
                    data: serde_json::from_str(&field("data:").expect("data")).expect("JSON"),
                });
                self.text = rest.to_owned();
                if told.is_some() {
                    return told;
                }
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("something in time")?;
            let data = frame.expect("a frame").into_data().expect("data");
            self.text.push_str(std::str::from_utf8(&data).expect("UTF-8"));
        }
    }

    /// The next event, which must have this name.
    async fn expect(&mut self, event: &str) -> Told {
        let told = self.next().await.expect("not the end");
        assert_eq!(told.event, event, "{told:?}");
        told
    }
}

#[tokio::test]
async fn endpoints_are_told_in_full_ready_or_not() {
    let fixture = fixture();
    fixture.web_with(&[pod("b", 2, false), pod("a", 1, true)]).await;
    let answer = fixture.json("/v1/targets").await;
    let mut endpoints = answer["targets"][0]["endpoints"].as_array().expect("a list").clone();
    for endpoint in &mut endpoints {
        assert!(endpoint.as_object_mut().expect("an object").remove("age_ms").is_some());
    }
    let endpoint = |name: &str, state: &str| {
        json!({
            "pod": {"name": name, "uid": format!("uid-{name}")}, "state": state, "source": "observed",
            "since_ms": 1_000_000, "addresses": ["10.0.0.7"], "ports": [{"name": "http", "port": 8080}], "revision": "r1",
        })
    };
    assert_eq!(endpoints, [endpoint("a", "ready"), endpoint("b", "not-ready")]);
    assert_eq!((&answer["targets"][0]["namespace"], &answer["targets"][0]["service"]), (&json!("shop"), &json!("web")));
    assert_eq!(answer["replica"], "a-0");
    assert_eq!(answer["id"], format!("i1-{}", fixture.feed.newest()));
}

#[tokio::test]
async fn one_target_is_told_alone_and_an_unknown_one_is_not_found() {
    let fixture = fixture();
    fixture.web_with(&[pod("a", 1, true)]).await;
    fixture.apply([Update::Service(Change::Present(Arc::new(service("other"))))]).await;
    let answer = fixture.json("/v1/targets/shop/other").await;
    assert_eq!(answer["targets"], json!([{"namespace": "shop", "service": "other", "endpoints": []}]));
    assert_eq!(fixture.json("/v1/targets").await["targets"].as_array().map(Vec::len), Some(2));
    let answer = fixture.get("/v1/targets/shop/none", &[("authorization", "bearer good")]).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn many_endpoints_are_one_valid_answer() {
    let fixture = fixture();
    let pods: Vec<_> = (0..300).map(|n| pod(&format!("p{n:03}"), n + 1, true)).collect();
    fixture.web_with(&pods).await;
    let answer = fixture.json("/v1/targets").await;
    let endpoints = answer["targets"][0]["endpoints"].as_array().expect("a list");
    assert_eq!(endpoints.len(), 300);
    assert!(endpoints.is_sorted_by_key(|endpoint| endpoint["pod"]["name"].as_str().map(str::to_owned)));

    let mut events = fixture.watch("/v1/watch", &[]).await;
    let mut told = 0;
    while told < 300 {
        told += events.expect("state").await.data["endpoints"].as_array().expect("a list").len();
    }
    events.expect("synced").await;
}

#[tokio::test]
async fn readers_without_a_good_token_or_the_right_are_refused() {
    let fixture = fixture();
    fixture.web_with(&[]).await;
    let cases: [(&[(&str, &str)], StatusCode); 7] = [
        (&[], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Basic good")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Bearer ")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Bearer good"), ("authorization", "Bearer good")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Bearer bad")], StatusCode::UNAUTHORIZED),
        (&[("authorization", "Bearer narrow")], StatusCode::FORBIDDEN),
        (&[("authorization", "Bearer late")], StatusCode::SERVICE_UNAVAILABLE),
    ];
    for path in ["/v1/targets", "/v1/watch"] {
        for (headers, status) in cases {
            let answer = fixture.get(path, headers).await;
            assert_eq!(answer.status(), status, "{path} {headers:?}");
            assert_eq!(answer.headers().contains_key(header::WWW_AUTHENTICATE), status == StatusCode::UNAUTHORIZED);
            assert_eq!(answer.headers().contains_key(header::RETRY_AFTER), status == StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    let answer = fixture.get("/v1/targets/shop/web", &[("authorization", "Bearer narrow")]).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_decision_is_kept_for_its_path_and_token_only() {
    let fixture = fixture();
    fixture.web_with(&[]).await;
    for path in ["/v1/targets", "/v1/targets", "/v1/targets/shop/web", "/v1/targets"] {
        fixture.json(path).await;
    }
    assert_eq!(*fixture.asked.lock().expect("no panic"), ["/v1/targets", "/v1/targets/shop/web"]);
    fixture.get("/v1/targets", &[("authorization", "Bearer narrow")]).await;
    assert_eq!(fixture.asked.lock().expect("no panic").len(), 3);
}

#[tokio::test]
async fn a_watch_tells_the_state_and_then_each_change() {
    let fixture = fixture();
    fixture.web_with(&[pod("a", 1, false)]).await;
    let mut events = fixture.watch("/v1/watch", &[]).await;
    let state = events.expect("state").await;
    assert_eq!((state.id, &state.data["endpoints"][0]["state"]), (None, &json!("not-ready")));
    let synced = events.expect("synced").await;
    assert_eq!(synced.id, Some(format!("i1-{}", fixture.feed.newest())));
    assert_eq!(synced.data, json!({"replica": "a-0", "resumed": false}));

    fixture.apply([Update::Pod(Change::Present(Arc::new(pod("a", 2, true))))]).await;
    let change = events.expect("endpoint").await;
    assert_eq!((&change.data["id"], &change.data["endpoint"]["state"]), (&json!("uid-a"), &json!("ready")));
    assert_eq!(change.id, Some(format!("i1-{}", fixture.feed.newest())));

    let uid = *pod("a", 2, true).pod.uid();
    fixture.apply([Update::Pod(Change::Gone(uid))]).await;
    assert_eq!(
        events.expect("endpoint-gone").await.data,
        json!({"namespace": "shop", "service": "web", "id": "uid-a"})
    );
    fixture.apply([Update::Service(Change::Gone(GroupKey::new("shop", "web")))]).await;
    assert_eq!(events.expect("target-gone").await.data, json!({"namespace": "shop", "service": "web"}));
}

#[tokio::test]
async fn a_watch_resumes_where_it_left_off() {
    let fixture = fixture();
    fixture.web_with(&[pod("a", 1, false)]).await;
    let left_at = format!("i1-{}", fixture.feed.newest());
    fixture.apply([Update::Pod(Change::Present(Arc::new(pod("a", 2, true))))]).await;

    for (path, headers) in [
        ("/v1/watch".to_owned(), vec![("last-event-id", left_at.as_str())]),
        (format!("/v1/watch?last_event_id={left_at}"), vec![]),
    ] {
        let mut events = fixture.watch(&path, &headers).await;
        assert_eq!(events.expect("synced").await.data["resumed"], true);
        assert_eq!(events.expect("endpoint").await.data["endpoint"]["state"], "ready");
    }
    for unknown in ["i2-1", "i1-999999", "i1-18446744073709551615", "nonsense", ""] {
        let mut events = fixture.watch("/v1/watch", &[("last-event-id", unknown)]).await;
        events.expect("state").await;
        assert_eq!(events.expect("synced").await.data["resumed"], false, "{unknown}");
    }
}

#[tokio::test]
async fn a_watch_can_be_of_one_target() {
    let fixture = fixture();
    fixture.web_with(&[pod("a", 1, true)]).await;
    fixture.apply([Update::Service(Change::Present(Arc::new(service("other"))))]).await;
    let mut events = fixture.watch("/v1/watch?namespace=shop&service=other", &[]).await;
    assert_eq!(events.expect("state").await.data["service"], "other");
    events.expect("synced").await;
    fixture.apply([Update::Pod(Change::Present(Arc::new(pod("a", 2, false))))]).await;
    fixture.apply([Update::Service(Change::Gone(GroupKey::new("shop", "other")))]).await;
    events.expect("target-gone").await;

    let answer = fixture.get("/v1/watch?service=web", &[("authorization", "Bearer good")]).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn readers_are_bounded_and_end_with_the_process() {
    let fixture = fixture();
    let mut first = fixture.watch("/v1/watch", &[]).await;
    let second = fixture.watch("/v1/watch", &[]).await;
    let answer = fixture.get("/v1/watch", &[("authorization", "Bearer good")]).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(second);
    assert_eq!(fixture.readers.available_permits(), 1, "the place is free again");
    first.expect("synced").await;
    fixture.trigger.begin();
    assert_eq!(first.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let fixture = fixture();
    fixture.web_with(&[pod("a", 1, false)]).await;
    let mut events = fixture.watch("/v1/watch", &[]).await;
    events.expect("state").await;
    // Enough changes for the queue to fill; nobody reads, and time passes by itself.
    for n in 0..2_000 {
        fixture.apply([Update::Pod(Change::Present(Arc::new(pod("a", n + 2, n % 2 == 0))))]).await;
    }
    tokio::time::sleep(PATIENCE * 3).await;
    let mut told = 0;
    while events.next().await.is_some() {
        told += 1;
    }
    assert!(told < 2_000, "{told} events were kept for a reader that took none");
}
