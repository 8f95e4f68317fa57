//! A real API server's word on everything that the matrix renders, and on its pods where only restricted ones may run.

use std::process::Command;

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::runtime::conditions::is_crd_established;
use kube::{Api, Client, ResourceExt as _};
use podlight_e2e::binary;
use podlight_e2e::chart::{Release, apply, find, matrix, pod_of};
use podlight_e2e::control_plane::{ControlPlane, Options};
use podlight_e2e::eventually::eventually;
use podlight_e2e::webhook::essence;
use serde_json::{Value, json};

/// Kinds of others that the chart has objects of. Their schemas are not here: any content is taken.
const FOREIGN: [(&str, &str, &str); 5] = [
    ("monitoring.coreos.com", "PodMonitor", "podmonitors"),
    ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors"),
    ("monitoring.coreos.com", "PrometheusRule", "prometheusrules"),
    ("cert-manager.io", "Certificate", "certificates"),
    ("cert-manager.io", "Issuer", "issuers"),
];

/// What takes capabilities or the nodes' network.
const PRIVILEGED: [&str; 2] = ["xdp-node-values.yaml", "xdp-pod-values.yaml"];

async fn define(client: &Client, (group, kind, plural): (&str, &str, &str)) -> Result<()> {
    let name = format!("{plural}.{group}");
    let definition = json!({
        "metadata": { "name": name },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            } } }],
        },
    });
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &serde_json::from_value(definition)?).await?;
    eventually("the kind is served", async || {
        let definition = definitions.get(&name).await?;
        Ok(kube::runtime::wait::Condition::matches_object(&is_crd_established(), Some(&definition)).then_some(()))
    })
    .await
}

async fn namespace(client: &Client, name: &str, level: &str) -> Result<()> {
    let labels = json!({ "pod-security.kubernetes.io/enforce": level });
    let namespace = json!({ "metadata": { "name": name, "labels": labels } });
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    Ok(())
}

/// The pod that a template makes.
fn pod(template: &Value, namespace: &str) -> Value {
    let mut pod = template.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("one");
    pod["metadata"]["namespace"] = json!(namespace);
    pod
}

#[tokio::test]
async fn the_api_server_takes_everything_and_restricted_namespaces_the_pods() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let client = control_plane.client()?;
    for kind in FOREIGN {
        define(&client, kind).await?;
    }
    namespace(&client, "podlight-system", "restricted").await?;
    namespace(&client, "open", "privileged").await?;
    // Where roles of theirs go.
    namespace(&client, "shop", "restricted").await?;
    namespace(&client, "cart", "restricted").await?;
    for file in matrix()? {
        let privileged = PRIVILEGED.iter().any(|name| file.ends_with(name));
        let namespace = if privileged { "open" } else { "podlight-system" };
        let release = Release::new()?.values(&file).namespace(namespace);
        let mut pods = 0;
        for object in release.render()? {
            apply(&client, &object, true).await.with_context(|| file.display().to_string())?;
            if let Some(template) = pod_of(&object) {
                apply(&client, &pod(&template, namespace), true).await.with_context(|| file.display().to_string())?;
                pods += 1;
            }
        }
        assert!(pods > 0, "{}", file.display());
    }
    // So that the above says something.
    let release = Release::new()?.values(&super::matrix_file("xdp-pod-values.yaml"));
    let activator = release.render()?.iter().find(|object| object["kind"] == "Deployment").and_then(pod_of);
    let refused = apply(&client, &pod(&activator.context("a Deployment")?, "podlight-system"), true).await;
    let refused = format!("{:#}", refused.expect_err("capabilities are not for restricted namespaces"));
    assert!(refused.contains("violates PodSecurity"), "{refused}");
    Ok(())
}

/// What the API server makes of a pod that is created, without keeping it.
async fn created(client: &Client, namespace: &str, pod: &Value) -> Result<Value> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let parameters = PostParams { dry_run: true, ..PostParams::default() };
    let made = pods.create(&parameters, &serde_json::from_value(pod.clone())?).await?;
    Ok(essence(serde_json::to_value(made)?))
}

#[tokio::test]
async fn the_policy_with_other_settings_injects_what_the_command_does() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let client = control_plane.client()?;
    control_plane.create_namespace("podlight-system").await?;
    let objects = Release::new()?.values(&super::matrix_file("policy-values.yaml")).render()?;
    for object in objects.iter().filter(|object| object["kind"] == "ConfigMap" || is_policy(object)) {
        apply(&client, object, false).await?;
    }
    let labels = json!({ "podlight.dev/inject": "enabled" });
    for name in ["shop", "legacy"] {
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        apply(&client, &namespace, false).await?;
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web", "labels": { "example.com/build": "7", "pod-template-hash": "x" } },
        "spec": {
            "serviceAccountName": "default",
            "initContainers": [{ "name": "init", "image": "example.invalid/init" }],
            "containers": [{ "name": "app", "image": "example.invalid/app", "ports": [{ "containerPort": 8080 }] }],
        },
    });
    let webhook = pod_of(find(&objects, "Deployment", "lights-webhook")?).context("a Deployment")?;
    let flags = webhook["spec"]["containers"][0]["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let shared = ["--sidecar-", "--activator-namespace", "--activator-service", "--ca-config-map", "--revision-label"];
    let flags: Vec<_> = flags.filter(|flag| shared.iter().any(|name| flag.starts_with(name))).collect();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), pod.to_string())?;
    let command =
        Command::new(binary("podlight-activator")?).args(["inject", "-f"]).arg(file.path()).args(flags).output()?;
    let injected: Value = serde_saphyr::from_str(&String::from_utf8(command.stdout)?)?;
    assert_eq!(injected["spec"]["initContainers"][1]["name"], "podlight-sidecar", "{injected}");

    let expected = created(&client, "default", &injected).await?;
    let found = eventually("the policy is in force", async || {
        let found = created(&client, "shop", &pod).await?;
        Ok(found["spec"]["initContainers"][1].is_object().then_some(found))
    });
    assert_eq!(found.await?, expected);
    let left = created(&client, "legacy", &pod).await?;
    assert_eq!(left["spec"]["initContainers"].as_array().map(Vec::len), Some(1), "an excluded namespace");
    Ok(())
}

fn is_policy(object: &Value) -> bool {
    object["kind"].as_str().is_some_and(|kind| kind.starts_with("MutatingAdmissionPolicy"))
}

/// What of the release is there, of the kinds that hold something or decide something.
async fn left(client: &Client) -> Result<Vec<String>> {
    async fn of<K>(client: &Client) -> Result<Vec<String>>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let ours = ListParams::default().labels("app.kubernetes.io/instance=podlight");
        let found = Api::<K>::all(client.clone()).list(&ours).await?.items;
        Ok(found
            .iter()
            .map(|object| format!("{} {}", K::kind(&K::DynamicType::default()), object.name_any()))
            .collect())
    }
    let all = [
        of::<Secret>(client).await?,
        of::<ConfigMap>(client).await?,
        of::<Service>(client).await?,
        of::<ServiceAccount>(client).await?,
        of::<Deployment>(client).await?,
        of::<PodDisruptionBudget>(client).await?,
        of::<NetworkPolicy>(client).await?,
        of::<Role>(client).await?,
        of::<RoleBinding>(client).await?,
        of::<ClusterRole>(client).await?,
        of::<ClusterRoleBinding>(client).await?,
        of::<MutatingWebhookConfiguration>(client).await?,
    ];
    Ok(all.concat())
}

#[tokio::test]
async fn upgrade_and_rollback_keep_what_the_webhook_wrote_and_uninstalling_leaves_nothing() -> Result<()> {
    let control_plane = ControlPlane::start(Options::default()).await?;
    let (client, kubeconfig) = (control_plane.client()?, control_plane.admin_kubeconfig()?);
    let release = Release::new()?;
    release.run_on(&kubeconfig, &["install", "podlight"], &["--create-namespace"])?;
    assert!(left(&client).await?.len() > 20);

    // As the webhook does: the whole object, changed.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "podlight-system");
    let mut secret = secrets.get("podlight-activator-tls").await?;
    secret.data = Some([("tls.crt".to_owned(), ByteString(b"PEM".to_vec()))].into());
    let secret = secrets.replace("podlight-activator-tls", &PostParams::default(), &secret).await?;
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let mut configuration = configurations.get("podlight").await?;
    let bundle = ByteString(control_plane.ca_pem().into_bytes());
    for webhook in configuration.webhooks.iter_mut().flatten() {
        webhook.client_config.ca_bundle = Some(bundle.clone());
    }
    configurations.replace("podlight", &PostParams::default(), &configuration).await?;

    let upgraded = release.clone().set("activator.replicas=3").set("injection.timeoutSeconds=3");
    upgraded.run_on(&kubeconfig, &["upgrade", "podlight"], &[])?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "podlight-system");
    for (replicas, timeout, next) in [(3, 3, true), (2, 5, false)] {
        let spec = deployments.get("podlight-activator").await?.spec;
        assert_eq!(spec.and_then(|spec| spec.replicas), Some(replicas));
        assert_eq!(secrets.get("podlight-activator-tls").await?.data, secret.data);
        for webhook in configurations.get("podlight").await?.webhooks.into_iter().flatten() {
            assert_eq!(
                (webhook.timeout_seconds, webhook.client_config.ca_bundle),
                (Some(timeout), Some(bundle.clone()))
            );
        }
        if next {
            release.rollback(&kubeconfig, 1)?;
        }
    }
    release.uninstall(&kubeconfig)?;
    assert_eq!(left(&client).await?, Vec::<String>::new());
    Ok(())
}
