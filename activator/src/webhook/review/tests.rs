use serde_json::json;

use super::*;
use crate::inject::settings::of_flags as settings;

fn pod() -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web-1" }, "spec": { "containers": [
        { "name": "app", "image": "app", "ports": [{ "containerPort": 80 }] },
    ] } })
}

fn exec() -> Value {
    let mut pod = pod();
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "exec": { "command": ["x"] } });
    pod
}

fn question(pod: &Value, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut request = json!({
        "uid": "u-1", "kind": { "group": "", "version": "v1", "kind": "Pod" },
        "resource": { "group": "", "version": "v1", "resource": "pods" },
        "name": "web-1", "namespace": "shop", "operation": "CREATE", "userInfo": {}, "object": pod, "dryRun": false,
    });
    change(&mut request);
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request })
        .to_string()
        .into_bytes()
}

fn ask(pod: &Value, change: impl FnOnce(&mut Value)) -> (Value, Effect, &'static str) {
    let outcome = review(&question(pod, change), "podlight-own", &settings(&[])).expect("an answer");
    let answer = serde_json::to_value(outcome.answer).expect("JSON");
    assert_eq!((&answer["apiVersion"], &answer["kind"]), (&json!("admission.k8s.io/v1"), &json!("AdmissionReview")));
    let response = answer["response"].clone();
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)), "nothing is ever refused");
    (response, outcome.effect, outcome.label)
}

#[test]
fn a_pod_is_answered_with_a_json_patch_that_adds_the_sidecar() {
    let (response, effect, label) = ask(&pod(), |_| {});
    assert_eq!((&response["patchType"], label), (&json!("JSONPatch"), "injected"));
    assert_eq!(effect, Effect::Injected("shop".to_owned()));
    assert!(response.get("warnings").is_none());
}

#[test]
fn a_dry_run_has_the_same_answer_and_no_effect() {
    for pod in [pod(), exec()] {
        let (wet, wet_effect, _) = ask(&pod, |_| {});
        let (dry, dry_effect, _) = ask(&pod, |request| request["dryRun"] = json!(true));
        assert_eq!(wet, dry);
        assert_ne!(wet_effect, Effect::None);
        assert_eq!(dry_effect, Effect::None);
    }
}

#[test]
fn what_is_no_creation_of_a_pod_is_let_through() {
    let changes: [fn(&mut Value); 4] = [
        |request| request["operation"] = json!("UPDATE"),
        |request| request["subResource"] = json!("binding"),
        |request| request["resource"]["resource"] = json!("replicasets"),
        |request| drop(request.as_object_mut().expect("an object").remove("object")),
    ];
    for change in changes {
        let (response, effect, label) = ask(&pod(), change);
        assert!(response.get("patch").is_none());
        assert_eq!((effect, label), (Effect::None, "no-pod"));
    }
}

#[test]
fn a_pod_that_is_left_is_told_to_its_creator_and_beside_its_controller() {
    let mut of_a_controller = exec();
    of_a_controller["metadata"] = json!({ "generateName": "web-", "ownerReferences": [
        { "apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "o-0" },
        { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "o-1", "controller": true },
    ] });
    let (response, effect, label) = ask(&of_a_controller, |_| {});
    assert_eq!((response.get("patch"), label), (None, "exec-probe"));
    let warning = response["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("readinessProbe of container app is a command") && warning.len() <= 256, "{warning}");
    let Effect::Left(regarding, Reason::Exec { .. }) = effect else { panic!("an Event: {effect:?}") };
    assert_eq!((regarding.kind.as_str(), regarding.uid.as_str()), ("ReplicaSet", "o-1"));

    let Effect::Left(regarding, _) = ask(&exec(), |_| {}).1 else { panic!("an Event") };
    assert_eq!((regarding.kind.as_str(), regarding.name.as_str()), ("Pod", "web-1"));
    let mut nameless = exec();
    nameless["metadata"] = json!({ "generateName": "web-" });
    assert_eq!(ask(&nameless, |_| {}).1, Effect::None, "nothing to hang it on: its creator was warned");
}

#[test]
fn own_namespaces_and_kube_system_are_never_touched() {
    for namespace in ["podlight-own", "podlight-system", "kube-system"] {
        let (response, effect, label) = ask(&pod(), |request| request["namespace"] = json!(namespace));
        assert_eq!((response.get("patch"), effect, label), (None, Effect::None, "namespace"), "{namespace}");
    }
}

#[test]
fn what_was_injected_is_answered_without_a_patch_or_a_word() {
    let mut injected = pod();
    json_patch::patch(&mut injected, &decide(Subject::pod(&pod(), None), &settings(&[])).expect("injects"))
        .expect("fits");
    let (response, effect, label) = ask(&injected, |_| {});
    assert_eq!(
        (response.get("patch"), response.get("warnings"), effect, label),
        (None, None, Effect::None, "already-injected")
    );
}

#[test]
fn what_is_no_review_is_an_error() {
    for body in ["", "{}", "[]", r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#] {
        assert!(review(body.as_bytes(), "x", &settings(&[])).is_err(), "{body}");
    }
    for namespace in ["", "../nodes", "a/b", "A", "a?b"] {
        let question = question(&pod(), |request| request["namespace"] = json!(namespace));
        let answer = review(&question, "x", &settings(&[]));
        assert!(matches!(answer, Err(ReviewError::Namespace(_))), "{namespace}");
    }
}
