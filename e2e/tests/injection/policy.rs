//! The door without a process: docs/injection/policy.yaml, applied to a real API server.

use std::path::Path;

use anyhow::{Context as _, Result};
use kube::Client;
use kube::api::{DynamicObject, Patch, PatchParams};
use podlight_e2e::control_plane::ControlPlane;
use podlight_e2e::eventually::eventually;
use podlight_e2e::manifests;
use podlight_e2e::webhook::{NAMESPACE, essence};
use serde_json::{Value, json};

use super::{Shared, check_opting, control_plane, create, golden, has_sidecar, namespace, plain, simple};

/// What CEL cannot say (docs/injection.md): these pods are left without a sidecar by the policy, and injected by the others.
const NOT_BY_POLICY: [&str; 2] = ["annotations", "path-with-a-word-of-the-sidecars"];

/// A control plane with the policy, once it is in force.
async fn cluster() -> &'static ControlPlane {
    static CLUSTER: Shared<ControlPlane> = Shared::const_new();
    CLUSTER.get_or_init(async || start().await.unwrap_or_else(|e| panic!("{e:#}"))).await
}

async fn start() -> Result<ControlPlane> {
    let control_plane = control_plane().await?;
    control_plane.create_namespace(NAMESPACE).await?;
    let client = control_plane.client()?;
    for object in manifests(Path::new("docs/injection/policy.yaml"))? {
        apply(&client, object).await?;
    }
    namespace(&client, "shop", json!({ "podlight.dev/inject": "enabled" })).await?;
    eventually("the policy is in force", async || {
        let (pod, _) = create(&client, "shop", &simple("probe", json!({})), true).await?;
        Ok(has_sidecar(&pod).then_some(()))
    })
    .await?;
    Ok(control_plane)
}

async fn apply(client: &Client, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("no kind")?;
    let name = object.metadata.name.clone().context("no name")?;
    let group_version: kube::core::GroupVersion = types.api_version.parse()?;
    let kind = kube::core::GroupVersionKind::gvk(&group_version.group, &group_version.version, &types.kind);
    let resource = kube::core::ApiResource::from_gvk(&kind);
    let api = match &object.metadata.namespace {
        Some(namespace) => kube::Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource),
        None => kube::Api::all_with(client.clone(), &resource),
    };
    api.patch(&name, &PatchParams::apply("e2e"), &Patch::Apply(&object)).await.with_context(|| name.clone())?;
    Ok(())
}

#[tokio::test]
async fn golden_pods_come_out_as_of_every_door_where_cel_can_say_it() -> Result<()> {
    let client = cluster().await.client()?;
    for (name, case) in golden()? {
        let expected = case.injected.as_ref().filter(|_| !NOT_BY_POLICY.contains(&name.as_str()));
        let expected = plain(&client, expected.unwrap_or(&case.pod)).await.with_context(|| name.clone())?;
        let (pod, _) = create(&client, "shop", &case.pod, true).await.with_context(|| name.clone())?;
        assert_eq!(essence(pod), expected, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_injected_is_not_injected_again() -> Result<()> {
    let client = cluster().await.client()?;
    for (name, case) in golden()? {
        let Some(injected) = case.injected else { continue };
        let (pod, _) = create(&client, "shop", &injected, true).await.with_context(|| name.clone())?;
        assert_eq!(essence(pod), plain(&client, &injected).await?, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_label_of_the_pod_wins_over_that_of_its_namespace() -> Result<()> {
    check_opting(&cluster().await.client()?, "policy").await
}

#[tokio::test]
async fn annotations_that_name_probes_by_number_are_followed() -> Result<()> {
    let client = cluster().await.client()?;
    for (value, probes) in [
        (
            "http://:8080/ready?period=1s&timeout=250ms tcp://:9000",
            vec!["http://:8080/ready?period=1s&timeout=250ms", "tcp://:9000"],
        ),
        ("grpc://127.0.0.1:9000/shop.Cart?once", vec!["grpc://127.0.0.1:9000/shop.Cart?once"]),
        ("http://:8080/?header=X-A:b&deep=1", vec!["http://:8080/?header=X-A:b&deep=1"]),
        ("none", vec![]),
        ("http://:8080/?timeout=x", vec![]),
        ("http://:8080/?timeout", vec![]),
        ("tcp://:8080/path", vec![]),
        ("tcp://:8080?other=1", vec![]),
        ("ftp://:8080", vec![]),
        ("tcp://:70000", vec![]),
        ("tcp://8080", vec![]),
        ("tcp://10.0.0.1.2:80", vec![]),
        ("tcp://10.0.0:80", vec![]),
        ("tcp://10.0.0.256:80", vec![]),
        ("tcp://10.0.0.255:65535", vec!["tcp://10.0.0.255:65535"]),
        ("http://localhost:1/", vec!["http://localhost:1/"]),
        ("", vec![]),
    ] {
        let mut pod = simple("web", json!({}));
        pod["metadata"]["annotations"] = json!({ "podlight.dev/probe-app": value });
        let (pod, _) = create(&client, "shop", &pod, true).await.with_context(|| value.to_owned())?;
        let sidecar = pod["spec"]["initContainers"].as_array().into_iter().flatten().next();
        let arguments = sidecar.and_then(|sidecar| sidecar["args"].as_array()).into_iter().flatten();
        let found: Vec<_> = arguments.filter_map(|argument| argument.as_str()?.strip_prefix("--probe=")).collect();
        assert_eq!(found, probes, "{value:?}");
    }
    Ok(())
}
