use super::*;
use crate::inject::CONTAINER;
use crate::inject::settings::of_flags as settings;

fn run(text: &str) -> Result<Output, Faults> {
    inject(text, Some("shop"), &settings(&[]))
}

fn text_of(text: &str) -> String {
    run(text).unwrap_or_else(|faults| panic!("{faults}")).text
}

const TEMPLATE: &str =
    "{metadata: {labels: {app: web}}, spec: {containers: [{name: app, image: app, ports: [{containerPort: 80}]}]}}";

fn workload(version: &str, kind: &str, spec: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: web\nspec: {spec}\n")
}

#[test]
fn pods_and_the_templates_of_workloads_get_the_sidecar() {
    let template = format!("{{template: {TEMPLATE}}}");
    let cron = format!("{{jobTemplate: {{spec: {template}}}}}");
    for (version, kind, spec, path, revision) in [
        ("apps/v1", "Deployment", template.as_str(), "/spec/template", Some("pod-template-hash")),
        ("apps/v1", "StatefulSet", &template, "/spec/template", Some("controller-revision-hash")),
        ("apps/v1", "DaemonSet", &template, "/spec/template", Some("controller-revision-hash")),
        ("batch/v1", "Job", &template, "/spec/template", None),
        ("batch/v1", "CronJob", &cron, "/spec/jobTemplate/spec/template", None),
        ("v1", "Pod", "{containers: [{name: app, image: app, ports: [{containerPort: 80}]}]}", "", None),
    ] {
        let written = text_of(&workload(version, kind, spec));
        let object: Value = serde_saphyr::from_str(&written).expect("YAML");
        let sidecar =
            object.pointer(&format!("{path}/spec/initContainers/0")).unwrap_or_else(|| panic!("{kind}: {written}"));
        assert_eq!(sidecar["name"], CONTAINER, "{kind}");
        let env = sidecar["env"].as_array().expect("env");
        let label = env.iter().find(|variable| variable["name"] == "PODLIGHT_REVISION");
        let label = label.and_then(|variable| variable["valueFrom"]["fieldRef"]["fieldPath"].as_str());
        assert_eq!(label, revision.map(|label| format!("metadata.labels['{label}']")).as_deref(), "{kind}");
        assert_eq!(text_of(&written), written, "{kind}: once is enough");
    }
}

#[test]
fn kinds_of_no_concern_are_printed_to_the_letter() {
    let text = "# A comment.\napiVersion: v1\nkind:   Service # spaces\nmetadata: {name: web}\n--- # next\n\n# nothing\n---\napiVersion: apps/v1beta1\nkind: Deployment\n---\napiVersion: argoproj.io/v1alpha1\nkind: Rollout\nspec: {template: {spec: {containers: []}}}\n...\n";
    assert_eq!(run(text), Ok(Output { text: text.to_owned(), notes: Vec::new() }));
    for text in ["", "\n", "# only\n", "---\n---\n", "just text\n", "[1, 2]\n"] {
        assert_eq!(text_of(text), text);
    }
}

#[test]
fn of_several_documents_only_those_that_change_are_written_anew() {
    let service = "apiVersion: v1\nkind: Service   # as it was\nmetadata:\n  name: web\n";
    let pod = workload("v1", "Pod", "{containers: [{name: app, image: app, ports: [{containerPort: 80}]}]}");
    let written = text_of(&format!("{service}---\n{pod}--- # last\n{service}"));
    assert!(written.starts_with(&format!("{service}---\n")), "{written}");
    assert!(written.ends_with(&format!("--- # last\n{service}")), "{written}");
    assert_eq!(written.matches("name: podlight-sidecar").count(), 1, "{written}");
    let spec = "{containers: [{name: app, image: app, ports: [{containerPort: 80}]}]}";
    let on_the_line = text_of(&format!("--- {{apiVersion: v1, kind: Pod, metadata: {{name: x}}, spec: {spec}}}\n"));
    assert!(on_the_line.starts_with("---\napiVersion: v1\n"), "{on_the_line}");
}

#[test]
fn lists_get_the_sidecar_in_their_items() {
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: apps/v1, kind: Deployment, metadata: {{name: a}}, spec: {{template: {TEMPLATE}}}}}\n- {{apiVersion: v1, kind: Service, metadata: {{name: b}}}}\n"
    );
    let object: Value = serde_saphyr::from_str(&text_of(&list)).expect("YAML");
    assert_eq!(object["items"][0]["spec"]["template"]["spec"]["initContainers"][0]["name"], CONTAINER);
    assert_eq!(object["items"][1]["metadata"]["name"], "b");
}

#[test]
fn json_stays_json() {
    let pod: Value = serde_saphyr::from_str(&workload(
        "v1",
        "Pod",
        "{containers: [{name: app, image: app, ports: [{containerPort: 80}]}]}",
    ))
    .expect("YAML");
    let written = text_of(&format!("{pod}\n{pod}"));
    let objects: Vec<Value> =
        serde_json::Deserializer::from_str(&written).into_iter().map(|v| v.expect("JSON")).collect();
    assert_eq!(objects.len(), 2);
    assert!(objects.iter().all(|pod| pod["spec"]["initContainers"][0]["name"] == CONTAINER));
}

#[test]
fn what_yaml_readers_read_in_two_ways_is_written_in_one() {
    let values = [
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "~",
        "null",
        "true",
        "0777",
        "0x1f",
        "1_000",
        "1:30",
        "1e3",
        ".5",
        "2026-01-02",
        "=",
        "<<",
        "",
        "a: b",
        "- a",
        "# a",
        "a #b",
        "'",
        "\"",
        "a\nb\n",
        " a ",
        "%",
        "@",
        "`",
        "*a",
        "&a",
        "!a",
        "|",
        ">",
        "é",
        "0o17",
    ];
    let pod = serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "x", "annotations": values.iter().enumerate().map(|(i, v)| (format!("k{i}"), *v)).collect::<std::collections::BTreeMap<_, _>>() }, "spec": { "containers": [{ "name": "app", "ports": [{ "containerPort": 80 }], "args": values.to_vec() }] } });
    let yaml = to_yaml(&pod).expect("YAML");
    let strict: Value =
        serde_saphyr::from_str_with_options(&yaml, serde_saphyr::options! { strict_booleans: true }).expect("YAML");
    assert_eq!((from_yaml(&yaml).as_ref(), &strict), (Ok(&pod), &pod), "{yaml}");
    let octal = from_yaml("defaultMode: 0644\nother: yes\n").expect("YAML");
    assert_eq!(octal, serde_json::json!({ "defaultMode": 420, "other": true }), "as kubectl reads it");
}

#[test]
fn what_is_left_without_a_sidecar_is_told_unless_it_was_meant() {
    let exec = "{containers: [{name: app, image: app, readinessProbe: {exec: {command: [x]}}}]}";
    let output = run(&workload("v1", "Pod", exec)).expect("printed");
    assert_eq!(output.text, workload("v1", "Pod", exec));
    assert!(
        output.notes[0].starts_with("Pod shop/web is left as it is: the readinessProbe of container app"),
        "{:?}",
        output.notes
    );
    let meant =
        workload("v1", "Pod", exec).replace("  name: web", "  name: web\n  labels: {podlight.dev/inject: disabled}");
    assert!(run(&meant).expect("printed").notes.is_empty());
}

#[test]
fn all_that_cannot_be_used_is_told_at_once() {
    let bad = workload("v1", "Pod", "{containers: [{name: app, image: app, ports: [{containerPort: 80}]}]}")
        .replace("  name: web", "  name: web\n  annotations: {podlight.dev/probe-app: nonsense}");
    let text =
        format!("{bad}---\na: [\n---\n{}---\n{}", workload("v1", "Pod", "7"), workload("apps/v1", "Deployment", "{}"));
    let Faults(faults) = run(&text).expect_err("faults");
    assert_eq!(faults.len(), 4, "{faults:#?}");
    assert!(faults[0].starts_with("Pod shop/web: podlight.dev/probe-app cannot be used"), "{faults:?}");
    assert!(faults[1].starts_with("document 2: "), "{faults:?}");
    assert!(faults[3].contains("it has nothing at /spec/template"), "{faults:?}");
}

#[test]
fn an_alias_bomb_is_a_fault() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    assert!(run(bomb).is_err());
}
