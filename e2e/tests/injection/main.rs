//! Injection through every door there is: the command, the admission webhook and the admission policy, the latter two by a
//! real API server. The golden pods, whose outcome the activator's own tests fix, come out of each the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use http::Request;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::PostParams;
use kube::{Api, Client};
use podlight_e2e::control_plane::{ControlPlane, Options};
use podlight_e2e::manifests;
use podlight_e2e::webhook::essence;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

mod certificates;
mod command;
mod policy;
mod webhook;

/// A pod and what is to become of it: with a sidecar, or as it was.
struct Case {
    pod: Value,
    injected: Option<Value>,
}

fn golden_folder() -> PathBuf {
    Path::new("activator/tests/golden/inject").to_owned()
}

fn golden() -> Result<BTreeMap<String, Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(golden_folder());
    let mut cases = BTreeMap::new();
    for file in std::fs::read_dir(&folder)? {
        let name = file?.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".yaml").filter(|name| !name.ends_with(".injected")) else { continue };
        let read = |file: String| manifests(&golden_folder().join(file)).map(|mut all| all.remove(0));
        let left = folder.join(format!("{name}.left")).exists();
        let injected = if left { None } else { Some(read(format!("{name}.injected.yaml"))?) };
        cases.insert(name.to_owned(), Case { pod: read(format!("{name}.yaml"))?, injected });
    }
    Ok(cases)
}

/// A control plane with what golden pods refer to.
async fn control_plane() -> Result<ControlPlane> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let class = json!({ "metadata": { "name": "sandboxed" }, "handler": "sandboxed" });
    let classes: Api<RuntimeClass> = Api::all(control_plane.client()?);
    classes.create(&PostParams::default(), &serde_json::from_value(class)?).await?;
    Ok(control_plane)
}

/// Creates a namespace with labels.
async fn namespace(client: &Client, name: &str, labels: Value) -> Result<()> {
    let namespace = json!({ "metadata": { "name": name, "labels": labels } });
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    Ok(())
}

/// What the API server makes of a pod that is created: the pod, and the warnings to whoever created it.
async fn create(client: &Client, namespace: &str, pod: &Value, dry_run: bool) -> Result<(Value, Vec<String>)> {
    let query = if dry_run { "?dryRun=All" } else { "" };
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/pods{query}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(kube::client::Body::from(serde_json::to_vec(pod)?))?;
    let (head, body) = client.send(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    if !head.status.is_success() {
        bail!("{}: {}", head.status, String::from_utf8_lossy(&body));
    }
    let warnings = head.headers.get_all(http::header::WARNING).iter();
    let warnings = warnings.map(|warning| warning.to_str().map(str::to_owned)).collect::<Result<_, _>>()?;
    Ok((serde_json::from_slice(&body)?, warnings))
}

/// What the API server makes of a pod where nobody injects anything: its defaults filled in.
async fn plain(client: &Client, pod: &Value) -> Result<Value> {
    Ok(essence(create(client, "default", pod, true).await.context("the pod as it is")?.0))
}

fn has_sidecar(pod: &Value) -> bool {
    let init = pod["spec"]["initContainers"].as_array();
    init.into_iter().flatten().any(|container| container["name"] == "podlight-sidecar")
}

/// A pod with one container that declares a port.
fn simple(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
        "spec": { "serviceAccountName": "default", "containers": [
            { "name": "app", "image": "example.invalid/app", "ports": [{ "containerPort": 8080 }] },
        ] },
    })
}

/// A control plane that the tests of one door share.
type Shared<T> = OnceCell<T>;

/// Namespaces and pods by their labels, and whether a pod of theirs is injected. The pod's label wins.
const OPTING: [(&str, Option<&str>, Option<&str>, bool); 9] = [
    ("neither", None, None, false),
    ("namespace", Some("enabled"), None, true),
    ("pod", None, Some("enabled"), true),
    ("both", Some("enabled"), Some("enabled"), true),
    ("pod-opts-out", Some("enabled"), Some("disabled"), false),
    ("pod-opts-in", Some("disabled"), Some("enabled"), true),
    ("namespace-opts-out", Some("disabled"), None, false),
    ("both-opt-out", Some("disabled"), Some("disabled"), false),
    ("unknown-word", Some("enabled"), Some("true"), false),
];

/// Creates the namespaces and pods of [`OPTING`] and compares.
async fn check_opting(client: &Client, prefix: &str) -> Result<()> {
    let label = |value: Option<&str>| value.map_or_else(|| json!({}), |value| json!({ "podlight.dev/inject": value }));
    for (name, of_namespace, of_pod, injected) in OPTING {
        let in_namespace = format!("{prefix}-{name}");
        namespace(client, &in_namespace, label(of_namespace)).await?;
        let (pod, _) = create(client, &in_namespace, &simple("web", label(of_pod)), false).await?;
        assert_eq!(has_sidecar(&pod), injected, "{name}");
    }
    Ok(())
}
