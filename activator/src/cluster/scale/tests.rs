use std::collections::VecDeque;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;

use super::*;
use crate::cluster::{Health, RevisionLabels};

/// What is asked, as `METHOD path body`.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Vec<String>>>);

impl Script {
    /// An API server that answers this in turn.
    fn new(answers: impl IntoIterator<Item = (u16, Value)>) -> (KubernetesApi, Self) {
        let script = Self::default();
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let service = tower::service_fn({
            let script = script.clone();
            move |request: Request<Body>| {
                let (script, answers) = (script.clone(), Arc::clone(&answers));
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
                    let body = String::from_utf8_lossy(&body).into_owned();
                    let kind = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                    let asked = format!("{} {} {kind} {body}", head.method, head.uri);
                    script.0.lock().unwrap().push(asked.trim_end().to_owned());
                    let answer = answers.lock().unwrap().pop_front();
                    let (status, body) = answer.expect("no more is asked than was foreseen");
                    let status = StatusCode::from_u16(status).unwrap();
                    let body = Body::from(body.to_string().into_bytes());
                    Ok::<_, std::io::Error>(Response::builder().status(status).body(body).unwrap())
                }
            }
        });
        let client = kube::Client::new(service, "default");
        (KubernetesApi::new(client, RevisionLabels::default(), Health::unknown()), script)
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn scale(spec: Value) -> (u16, Value) {
    (200, json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {}, "spec": spec, "status": {}}))
}

fn failure(code: u16) -> (u16, Value) {
    (code, json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "because", "code": code}))
}

fn group() -> (u16, Value) {
    let version = |v: &str| json!({"groupVersion": format!("argoproj.io/{v}"), "version": v});
    let versions = json!([version("v1alpha1"), version("v1")]);
    (200, json!({"name": "argoproj.io", "versions": versions, "preferredVersion": version("v1")}))
}

fn kinds(version: &str, names: &[&str]) -> (u16, Value) {
    let resource = |name: &&str| {
        let kind = if name.ends_with("/scale") { "Scale" } else { "Rollout" };
        json!({"name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get"]})
    };
    let resources: Vec<Value> = names.iter().map(resource).collect();
    (200, json!({"groupVersion": format!("argoproj.io/{version}"), "resources": resources}))
}

const SCALE: &str = "/apis/apps/v1/namespaces/shop/deployments/web/scale";

#[tokio::test]
async fn zero_becomes_one_by_a_patch_that_holds_only_for_what_was_seen() {
    for seen in [json!({}), json!({"replicas": 0})] {
        let (api, script) = Script::new([scale(seen.clone()), scale(json!({"replicas": 1}))]);
        assert_eq!(api.scale_up("shop", "Deployment", "web").await, Ok(Scaled::Raised));
        let [get, patch] = &*script.asked() else { panic!("two calls") };
        assert_eq!(*get, format!("GET {SCALE}"));
        let body = patch.strip_prefix(&format!("PATCH {SCALE}?fieldManager=podlight application/json-patch+json "));
        let body: Value = serde_json::from_str(body.expect("a patch")).unwrap();
        let test = json!({"op": "test", "path": "/spec", "value": seen});
        assert_eq!(body, json!([test, {"op": "add", "path": "/spec/replicas", "value": 1}]));
    }
}

#[tokio::test]
async fn what_has_replicas_is_left_alone() {
    for replicas in [1, 3] {
        let (api, script) = Script::new([scale(json!({"replicas": replicas}))]);
        assert_eq!(api.scale_up("shop", "StatefulSet", "db").await, Ok(Scaled::Already));
        assert_eq!(script.asked(), ["GET /apis/apps/v1/namespaces/shop/statefulsets/db/scale"]);
    }
}

#[tokio::test]
async fn whoever_comes_second_finds_it_done() {
    let (api, _) = Script::new([scale(json!({})), failure(422), scale(json!({"replicas": 1}))]);
    assert_eq!(api.scale_up("shop", "Deployment", "web").await, Ok(Scaled::Already));
    let (api, _) = Script::new([scale(json!({})), failure(422), scale(json!({}))]);
    assert_eq!(api.scale_up("shop", "Deployment", "web").await.unwrap_err().label(), "again");
}

#[tokio::test]
async fn failures_that_stay_are_final_and_others_are_tried_again() {
    let cases = [
        (403, "final"),
        (404, "final"),
        (405, "final"),
        (400, "final"),
        (401, "again"),
        (409, "again"),
        (429, "again"),
        (500, "again"),
        (503, "again"),
    ];
    for (code, expected) in cases {
        let (api, _) = Script::new([failure(code)]);
        let error = api.scale_up("shop", "Deployment", "web").await.unwrap_err();
        assert_eq!(error.label(), expected, "GET {code}: {error}");
        let (api, _) = Script::new([scale(json!({})), failure(code)]);
        let error = api.scale_up("shop", "Deployment", "web").await.unwrap_err();
        assert_eq!(error.label(), expected, "PATCH {code}: {error}");
    }
    let (api, _) = Script::new([(200, json!("no scale"))]);
    assert_eq!(api.scale_up("shop", "Deployment", "web").await.unwrap_err().label(), "again");
}

#[tokio::test]
async fn what_is_forbidden_names_the_rule_that_is_missing() {
    let (api, _) = Script::new([scale(json!({})), failure(403)]);
    let told = api.scale_up("shop", "Deployment", "web").await.unwrap_err().to_string();
    for part in ["may not patch deployments/scale", "in namespace shop", "get and patch", "API group apps", "because"] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_silent_may_be_asked_again() {
    let service =
        tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, std::io::Error>>());
    let client = kube::Client::new(service, "default");
    let api = KubernetesApi::new(client, RevisionLabels::default(), Health::unknown());
    assert_eq!(api.scale_up("shop", "Deployment", "web").await.unwrap_err().label(), "again");
}

#[tokio::test]
async fn another_kind_is_looked_up_once_where_it_has_a_scale() {
    let found = kinds("v1alpha1", &["rollouts", "rollouts/scale"]);
    let one = || scale(json!({"replicas": 1}));
    let (api, script) = Script::new([group(), kinds("v1", &["others"]), found, one(), one(), failure(404)]);
    for _ in 0..2 {
        assert_eq!(api.scale_up("shop", "Rollout.argoproj.io", "web").await, Ok(Scaled::Already));
    }
    let scale = "GET /apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/web/scale";
    let lookup = ["GET /apis/argoproj.io", "GET /apis/argoproj.io/v1", "GET /apis/argoproj.io/v1alpha1"];
    assert_eq!(script.asked(), [&lookup[..], &[scale, scale]].concat());
    assert_eq!(api.scale_up("shop", "Rollout.argoproj.io", "web").await.unwrap_err().label(), "final");
    assert_eq!(api.scalables.lookup("Rollout.argoproj.io"), None, "what is not found is looked up anew");
}

#[tokio::test]
async fn a_kind_that_cannot_be_scaled_is_told_so() {
    let told = async |kind: &str, answers: Vec<(u16, Value)>| {
        let (api, _) = Script::new(answers);
        api.scale_up("shop", kind, "web").await.unwrap_err()
    };
    let error = told("Rollout.argoproj.io", vec![failure(404)]).await;
    assert_eq!(error, ScaleError::Final("there is no API group argoproj.io".to_owned()));
    let bare = kinds("v1", &["rollouts"]);
    let error = told("Rollout.argoproj.io", vec![group(), bare, kinds("v1alpha1", &["rollouts"])]).await;
    assert_eq!(error, ScaleError::Final("Rollout.argoproj.io has no scale subresource".to_owned()));
    let error = told("Rollout.argoproj.io", vec![group(), failure(404), failure(404)]).await;
    assert_eq!(error, ScaleError::Final("Rollout.argoproj.io is not a namespaced kind of this cluster".to_owned()));
    assert_eq!(told("Rollout.argoproj.io", vec![failure(503)]).await.label(), "again");
}

#[tokio::test]
async fn names_that_would_be_another_path_are_refused_before_anything_is_asked() {
    let (api, script) = Script::new([]);
    for name in ["", ".", "..", "../secrets/x", "web/scale?x", "Web", "web ", "a".repeat(254).as_str()] {
        assert_eq!(api.scale_up("shop", "Deployment", name).await.unwrap_err().label(), "final", "{name:?}");
    }
    for kind in
        ["", "Rollout", "Rollout.", ".argoproj.io", "a/b.argoproj.io", "Rollout.argoproj.io/../v1", "deployment"]
    {
        assert_eq!(api.scale_up("shop", kind, "web").await.unwrap_err().label(), "final", "{kind:?}");
    }
    assert_eq!(script.asked(), [""; 0]);
}

#[test]
fn kinds_remembered_are_bounded() {
    let scalables = Scalables::default();
    let resource = Arc::new(Resource { group_version: "a/v1".to_owned(), plural: "bs".to_owned() });
    for n in 0..=KINDS_MAX {
        scalables.remember(&format!("K{n}.a"), Arc::clone(&resource));
    }
    assert_eq!(scalables.0.lock().unwrap().len(), 1);
    assert_eq!(scalables.lookup(&format!("K{KINDS_MAX}.a")), Some(resource));
}
