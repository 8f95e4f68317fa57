//! The webhook's certificates on a real API server: made once whoever is first, rotated without a gap, handed out.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use podlight_e2e::control_plane::ControlPlane;
use podlight_e2e::eventually::eventually;
use podlight_e2e::https_client;
use podlight_e2e::webhook::{NAMESPACE, Webhook, configure, install};
use serde_json::json;

use super::{control_plane, create, has_sidecar, namespace, simple};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The texts in a Secret of the webhook's.
pub(crate) async fn secret(control_plane: &ControlPlane, name: &str) -> Result<BTreeMap<String, String>> {
    let secret = Api::<Secret>::namespaced(control_plane.client()?, NAMESPACE).get(name).await?;
    let data = secret.data.unwrap_or_default().into_iter();
    data.map(|(key, ByteString(bytes))| Ok((key, String::from_utf8(bytes)?))).collect()
}

async fn ca_in(control_plane: &ControlPlane, namespace: &str) -> Result<Option<String>> {
    let maps: Api<ConfigMap> = Api::namespaced(control_plane.client()?, namespace);
    Ok(maps.get_opt("podlight-ca").await?.and_then(|map| map.data?.remove("ca.crt")))
}

async fn told_to_the_api_server(control_plane: &ControlPlane) -> Result<Vec<String>> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(control_plane.client()?);
    let webhooks = configurations.get("podlight").await?.webhooks.unwrap_or_default();
    let bundles = webhooks.into_iter().map(|webhook| webhook.client_config.ca_bundle.unwrap_or_default().0);
    bundles.map(|bundle| Ok(String::from_utf8(bundle)?)).collect()
}

/// Whether a client with this CA accepts the webhook.
async fn accepts(ca: &str, webhook: &Webhook) -> Result<bool> {
    let url = format!("https://127.0.0.1:{}/inject", webhook.port());
    Ok(https_client(ca)?.get(url).send().await.is_ok())
}

#[tokio::test]
async fn of_several_replicas_that_start_at_once_one_makes_the_certificates_and_all_use_them() -> Result<()> {
    let control_plane = control_plane().await?;
    let kubeconfig = install(&control_plane).await?;
    namespace(&control_plane.client()?, "shop", json!({ "podlight.dev/inject": "enabled" })).await?;
    configure(&control_plane, 1).await?;
    let replicas = (0..4).map(|_| Webhook::spawn(&kubeconfig, &[])).collect::<Result<Vec<_>>>()?;
    for replica in &replicas {
        replica.wait_ready().await?;
    }
    let ca = secret(&control_plane, "podlight-ca").await?["ca.crt"].clone();
    for replica in &replicas {
        assert!(accepts(&ca, replica).await?, "{}", replica.log_tail());
    }
    assert_eq!(told_to_the_api_server(&control_plane).await?, [ca.as_str(), ca.as_str()]);
    assert_eq!(ca_in(&control_plane, "shop").await?.as_deref(), Some(ca.as_str()), "a labelled namespace has it");
    assert_eq!(ca_in(&control_plane, "default").await?, None);
    let activator = secret(&control_plane, "podlight-activator-tls").await?;
    assert_eq!(activator["ca.crt"], ca);
    assert!(!activator.contains_key("ca.key"), "activators never see the key of the CA");
    assert!(activator["tls.key"].contains("PRIVATE KEY"));
    Ok(())
}

#[tokio::test]
async fn the_activator_serves_with_the_certificate_that_is_made_for_it() -> Result<()> {
    let control_plane = control_plane().await?;
    let kubeconfig = install(&control_plane).await?;
    configure(&control_plane, 1).await?;
    let webhook = Webhook::spawn(&kubeconfig, &["--activator-name=127.0.0.1"])?;
    webhook.wait_ready().await?;
    let made = secret(&control_plane, "podlight-activator-tls").await?;
    let folder = tempfile::tempdir()?;
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, &made["tls.crt"])?;
    std::fs::write(&key, &made["tls.key"])?;
    control_plane.create_activator_account("default", "activator").await?;
    let kubeconfig = control_plane.kubeconfig_for("default", "activator").await?;
    let activator =
        podlight_e2e::activator::ActivatorSpec::new(&kubeconfig).certificate(&certificate, &key).start().await?;
    let answer = https_client(&made["ca.crt"])?.get(format!("{}/v1/targets", activator.url())).send().await?;
    assert_eq!(answer.status().as_u16(), 401, "served, and asks for a token");
    Ok(())
}

/// A CA that ends in so many days, as the webhook would have made it.
fn ca_that_ends_in(days: u32) -> Result<(String, String)> {
    let now = SystemTime::now();
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.not_before = (now - DAY * 30).into();
    params.not_after = (now + DAY * days).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "podlight CA");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

async fn put_ca(control_plane: &ControlPlane, entries: &[(&str, &str)]) -> Result<()> {
    let data: BTreeMap<_, _> = entries.iter().map(|(key, text)| (*key, text)).collect();
    let object =
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "podlight-ca" }, "stringData": data });
    let secrets: Api<Secret> = Api::namespaced(control_plane.client()?, NAMESPACE);
    secrets.patch("podlight-ca", &PatchParams::apply("e2e").force(), &Patch::Apply(object)).await?;
    Ok(())
}

#[tokio::test]
async fn a_ca_near_its_end_is_followed_by_one_that_everybody_trusts_before_it_signs() -> Result<()> {
    let control_plane = control_plane().await?;
    let client = control_plane.client()?;
    let kubeconfig = install(&control_plane).await?;
    namespace(&client, "shop", json!({ "podlight.dev/inject": "enabled" })).await?;
    let (old, old_key) = ca_that_ends_in(100)?;
    put_ca(&control_plane, &[("ca.crt", &old), ("ca.key", &old_key)]).await?;
    let webhook = Webhook::spawn(&kubeconfig, &[])?;
    configure(&control_plane, webhook.port()).await?;
    webhook.wait_ready().await?;

    // Overlap: both are trusted, the old one signs.
    let overlap = secret(&control_plane, "podlight-ca").await?;
    assert_eq!(overlap["ca.crt"], old);
    let bundle = ca_in(&control_plane, "shop").await?.context("no CA was handed out")?;
    assert!(bundle.contains(old.trim_end()) && bundle.contains(overlap["next.crt"].trim_end()), "{bundle}");
    assert_eq!(told_to_the_api_server(&control_plane).await?, [bundle.as_str(), bundle.as_str()]);
    assert!(accepts(&old, &webhook).await? && !accepts(&overlap["next.crt"], &webhook).await?);
    drop(webhook);

    // A day later, which a successor of another age stands for: it signs, and the old one is still trusted.
    let (new, new_key) = ca_that_ends_in(300)?;
    put_ca(&control_plane, &[("ca.crt", &old), ("ca.key", &old_key), ("next.crt", &new), ("next.key", &new_key)])
        .await?;
    let webhook = Webhook::spawn(&kubeconfig, &[])?;
    configure(&control_plane, webhook.port()).await?;
    webhook.wait_ready().await?;
    assert!(accepts(&new, &webhook).await? && !accepts(&old, &webhook).await?);
    let bundle = ca_in(&control_plane, "shop").await?.context("no CA was handed out")?;
    assert!(bundle.contains(old.trim_end()) && bundle.contains(new.trim_end()), "{bundle}");
    let activator = secret(&control_plane, "podlight-activator-tls").await?;
    assert_eq!(activator["ca.crt"], bundle);
    eventually("the API server takes the new one", async || {
        Ok(has_sidecar(&create(&client, "shop", &simple("web", json!({})), true).await?.0).then_some(()))
    })
    .await
}

#[tokio::test]
async fn somebody_elses_config_map_of_that_name_is_left_alone_and_told() -> Result<()> {
    let control_plane = control_plane().await?;
    let client = control_plane.client()?;
    let kubeconfig = install(&control_plane).await?;
    namespace(&client, "shop", json!({ "podlight.dev/inject": "enabled" })).await?;
    let theirs = json!({ "metadata": { "name": "podlight-ca", "namespace": "shop" }, "data": { "ca.crt": "theirs" } });
    let maps: Api<ConfigMap> = Api::namespaced(client, "shop");
    maps.create(&PostParams::default(), &serde_json::from_value(theirs)?).await?;
    configure(&control_plane, 1).await?;
    let webhook = Webhook::spawn(&kubeconfig, &[])?;
    webhook.wait_ready().await?;
    assert_eq!(ca_in(&control_plane, "shop").await?.as_deref(), Some("theirs"));
    assert!(webhook.log_tail().contains("somebody else's ConfigMap"), "{}", webhook.log_tail());
    Ok(())
}

#[tokio::test]
async fn certificates_of_somebody_else_are_shown_their_ca_is_handed_out_and_no_secret_is_touched() -> Result<()> {
    let control_plane = control_plane().await?;
    let client = control_plane.client()?;
    let kubeconfig = install(&control_plane).await?;
    namespace(&client, "shop", json!({ "podlight.dev/inject": "enabled" })).await?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    std::fs::write(path("tls.crt"), issued.cert.pem())?;
    std::fs::write(path("tls.key"), issued.signing_key.serialize_pem())?;
    std::fs::write(path("ca.crt"), issued.cert.pem())?;
    let flag = |flag: &str, name: &str| format!("--{flag}={}", path(name).display());
    let flags = [flag("tls-cert", "tls.crt"), flag("tls-key", "tls.key"), flag("tls-ca", "ca.crt")];
    let webhook = Webhook::spawn(&kubeconfig, &flags.each_ref().map(String::as_str))?;
    webhook.wait_ready().await?;
    assert!(accepts(&issued.cert.pem(), &webhook).await?);
    assert_eq!(ca_in(&control_plane, "shop").await?, Some(issued.cert.pem()));
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
    assert!(secrets.list(&Default::default()).await?.items.is_empty());
    Ok(())
}
