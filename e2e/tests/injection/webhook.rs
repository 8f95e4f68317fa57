//! The door of the admission webhook: the real process, asked by a real API server as docs/injection/webhook.yaml has it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::Api;
use podlight_e2e::control_plane::ControlPlane;
use podlight_e2e::eventually::eventually;
use podlight_e2e::https_client;
use podlight_e2e::webhook::{NAMESPACE, Webhook, configure, essence, install};
use serde_json::{Value, json};

use super::{Shared, check_opting, control_plane, create, golden, has_sidecar, namespace, plain, simple};

/// A control plane and a webhook that it asks.
struct Cluster {
    // Before the folder that its kubeconfig is in.
    webhook: Webhook,
    control_plane: ControlPlane,
}

async fn cluster() -> &'static Cluster {
    static CLUSTER: Shared<Cluster> = Shared::const_new();
    CLUSTER.get_or_init(async || start().await.unwrap_or_else(|e| panic!("{e:#}"))).await
}

/// A control plane on which a webhook may run, and its kubeconfig.
async fn prepare() -> Result<(ControlPlane, PathBuf)> {
    let control_plane = control_plane().await?;
    let kubeconfig = install(&control_plane).await?;
    Ok((control_plane, kubeconfig))
}

async fn start() -> Result<Cluster> {
    let (control_plane, kubeconfig) = prepare().await?;
    let webhook = Webhook::spawn(&kubeconfig, &[])?;
    configure(&control_plane, webhook.port()).await?;
    webhook.wait_ready().await?;
    let client = control_plane.client()?;
    namespace(&client, "shop", json!({ "podlight.dev/inject": "enabled" })).await?;
    in_force(&control_plane, "shop").await.with_context(|| webhook.log_tail())?;
    Ok(Cluster { webhook, control_plane })
}

/// The API server learns of configurations by a watch of its own.
async fn in_force(control_plane: &ControlPlane, namespace: &str) -> Result<()> {
    let client = control_plane.client()?;
    eventually("the webhook is asked", async || {
        let (pod, _) = create(&client, namespace, &simple("probe", json!({})), true).await?;
        Ok(has_sidecar(&pod).then_some(()))
    })
    .await
}

fn exec(name: &str) -> Value {
    let mut pod = simple(name, json!({}));
    pod["spec"]["containers"][0]["readinessProbe"] = json!({ "exec": { "command": ["x"] } });
    pod
}

#[tokio::test]
async fn golden_pods_come_out_as_of_every_door() -> Result<()> {
    let cluster = cluster().await;
    let client = cluster.control_plane.client()?;
    for (name, case) in golden()? {
        let expected =
            plain(&client, case.injected.as_ref().unwrap_or(&case.pod)).await.with_context(|| name.clone())?;
        let (pod, _) = create(&client, "shop", &case.pod, true).await.with_context(|| name.clone())?;
        assert_eq!(essence(pod), expected, "{name}");
        if let Some(injected) = case.injected {
            let (again, warnings) = create(&client, "shop", &injected, true).await?;
            assert_eq!((essence(again), warnings), (expected, Vec::new()), "{name}: once is enough");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_label_of_the_pod_wins_over_that_of_its_namespace() -> Result<()> {
    check_opting(&cluster().await.control_plane.client()?, "webhook").await
}

#[tokio::test]
async fn kube_system_and_its_own_namespace_are_never_touched() -> Result<()> {
    let client = cluster().await.control_plane.client()?;
    for namespace in ["kube-system", NAMESPACE] {
        let pod = simple("web", json!({ "podlight.dev/inject": "enabled" }));
        assert!(!has_sidecar(&create(&client, namespace, &pod, true).await?.0), "{namespace}");
    }
    Ok(())
}

#[tokio::test]
async fn a_namespace_of_the_restricted_level_takes_injected_pods() -> Result<()> {
    let client = cluster().await.control_plane.client()?;
    let labels = json!({ "podlight.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "restricted" });
    namespace(&client, "restricted", labels).await?;
    let pod = golden()?.remove("restricted").context("no such pod")?.pod;
    assert!(has_sidecar(&create(&client, "restricted", &pod, false).await?.0));
    // The level is enforced: a pod that does not keep to it is refused.
    assert!(create(&client, "restricted", &simple("web", json!({})), false).await.is_err());
    Ok(())
}

#[tokio::test]
async fn who_creates_a_pod_that_is_left_without_a_sidecar_is_warned() -> Result<()> {
    let client = cluster().await.control_plane.client()?;
    let (pod, warnings) = create(&client, "shop", &exec("warned"), true).await?;
    assert!(!has_sidecar(&pod));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("the readinessProbe of container app is a command"), "{warnings:?}");
    let mut pod = simple("annotated", json!({}));
    pod["metadata"]["annotations"] = json!({ "podlight.dev/probe-app": "nonsense" });
    let (pod, warnings) = create(&client, "shop", &pod, false).await?;
    assert!(!has_sidecar(&pod), "admitted without");
    assert!(warnings[0].contains("podlight.dev/probe-app cannot be used"), "{warnings:?}");
    Ok(())
}

#[tokio::test]
async fn an_event_beside_the_controller_says_why_its_pods_have_no_sidecar() -> Result<()> {
    let client = cluster().await.control_plane.client()?;
    let owner =
        json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "commanded", "uid": "u-1", "controller": true });
    for name in ["commanded-a", "commanded-b"] {
        let mut pod = exec(name);
        pod["metadata"]["ownerReferences"] = json!([owner]);
        create(&client, "shop", &pod, false).await?;
    }
    let events: Api<Event> = Api::namespaced(client, "shop");
    let found = eventually("the Event is there", async || {
        let all = events.list(&Default::default()).await?.items;
        let found: Vec<_> =
            all.into_iter().filter(|e| e.involved_object.name.as_deref() == Some("commanded")).collect();
        Ok(Some(found).filter(|found| !found.is_empty()))
    })
    .await?;
    let [event] = &found[..] else { panic!("once is enough: {found:?}") };
    assert_eq!(
        (event.involved_object.uid.as_deref(), event.reason.as_deref()),
        (Some("u-1"), Some("SidecarNotInjected"))
    );
    assert!(event.message.as_deref().is_some_and(|message| message.contains("is a command")), "{event:?}");
    Ok(())
}

#[tokio::test]
async fn a_dry_run_changes_nothing_in_the_cluster() -> Result<()> {
    let cluster = cluster().await;
    let client = cluster.control_plane.client()?;
    namespace(&client, "dry", json!({})).await?;
    let pod = simple("web", json!({ "podlight.dev/inject": "enabled" }));
    assert!(has_sidecar(&create(&client, "dry", &pod, true).await?.0));
    create(&client, "dry", &exec("web"), true).await?;
    // What a wet run does follows before its answer.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "dry");
    assert!(maps.get_opt("podlight-ca").await?.is_none());
    create(&client, "dry", &pod, false).await?;
    assert!(maps.get_opt("podlight-ca").await?.is_some(), "the first pod's namespace has the CA");
    Ok(())
}

#[tokio::test]
async fn what_is_no_review_is_refused_and_what_comes_of_reviews_is_counted() -> Result<()> {
    let cluster = cluster().await;
    let secret = super::certificates::secret(&cluster.control_plane, "podlight-ca").await?;
    let client = https_client(&secret["ca.crt"])?;
    let url = format!("https://127.0.0.1:{}/inject", cluster.webhook.port());
    for (body, status) in [(String::new(), 400), ("{}".to_owned(), 400), (" ".repeat(9 << 20), 413)] {
        let answer = client.post(&url).body(body).send().await?;
        assert_eq!(answer.status().as_u16(), status);
    }
    assert_eq!(client.get(&url).send().await?.status().as_u16(), 405);
    let kube = cluster.control_plane.client()?;
    create(&kube, "shop", &simple("counted", json!({})), true).await?;
    create(&kube, "shop", &exec("counted"), true).await?;
    let metrics = cluster.webhook.metrics().await?;
    for result in ["injected", "exec-probe", "broken", "too-large"] {
        assert!(metrics.sum("podlight_injections_total", &[("result", result)]) >= 1.0, "{result}\n{}", metrics.text());
    }
    assert!(metrics.has("podlight_injection_duration_seconds_bucket", &[("le", "0.005")]));
    assert!(metrics.has("podlight_tls_certificate_expiry_timestamp_seconds", &[("listener", "webhook")]));
    Ok(())
}

#[tokio::test]
async fn without_the_webhook_pods_are_created_without_a_sidecar_and_with_it_again_with_one() -> Result<()> {
    let (control_plane, kubeconfig) = prepare().await?;
    let client = control_plane.client()?;
    let webhook = Webhook::spawn(&kubeconfig, &[])?;
    configure(&control_plane, webhook.port()).await?;
    webhook.wait_ready().await?;
    namespace(&client, "shop", json!({ "podlight.dev/inject": "enabled" })).await?;
    in_force(&control_plane, "shop").await?;
    assert!(webhook.terminate().await?.success(), "{}", webhook.log_tail());
    let (pod, _) = create(&client, "shop", &simple("meanwhile", json!({})), false).await?;
    assert!(!has_sidecar(&pod));
    let webhook = Webhook::spawn(&kubeconfig, &[])?;
    configure(&control_plane, webhook.port()).await?;
    webhook.wait_ready().await?;
    in_force(&control_plane, "shop").await
}

#[tokio::test]
async fn a_webhook_without_its_rights_is_not_ready_says_which_it_needs_and_recovers() -> Result<()> {
    let control_plane = control_plane().await?;
    control_plane.create_namespace(NAMESPACE).await?;
    control_plane.create_service_account(NAMESPACE, "podlight-webhook").await?;
    let kubeconfig = control_plane.kubeconfig_for(NAMESPACE, "podlight-webhook").await?;
    let webhook = Webhook::spawn(&kubeconfig, &[])?;
    configure(&control_plane, webhook.port()).await?;
    eventually("it complains", async || {
        Ok((webhook.log_tail().contains("cannot read the Secret podlight-ca")).then_some(()))
    })
    .await?;
    assert_eq!(webhook.admin("/readyz").await?.status, 503);
    assert_eq!(webhook.admin("/healthz").await?.status, 200, "a restart would not help");
    install(&control_plane).await?;
    webhook.wait_ready().await
}
