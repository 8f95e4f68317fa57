//! Values: every file of the matrix renders and lints, contradictions are refused with what to change, the README tells
//! them all, and what is rendered for injection is what docs/injection has.

use std::path::Path;

use anyhow::Result;
use podlight_e2e::chart::{Release, find, folder, matrix, readme};
use podlight_e2e::manifests;

use super::{matrix_file, text, unlabelled};

#[test]
fn the_matrix_renders_and_lints() -> Result<()> {
    for file in matrix()? {
        let release = Release::new()?.values(&file);
        assert!(!release.render()?.is_empty(), "{}", file.display());
        release.lint()?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_meant_is_refused_with_what_to_change() -> Result<()> {
    for (values, told) in [
        // By the schema.
        (&["nonsense=1"][..], "additional properties 'nonsense' not allowed"),
        (&["activator.nonsense=1"], "additional properties 'nonsense' not allowed"),
        (&["activator.replicas=0"], "at '/activator/replicas': minimum"),
        (&["activator.auth=\"basic\""], "at '/activator/auth': value must be one of"),
        (&["injection.mode=\"manual\""], "at '/injection/mode': value must be one of"),
        (&["activator.image.digest=\"sha256:1\""], "at '/activator/image/digest'"),
        (&["activator.ports.events=70000"], "at '/activator/ports/events': maximum"),
        (&["activator.extraArgs=[\"max-held=1\"]"], "at '/activator/extraArgs/0'"),
        (&["requests.holdTimeout=\"half a minute\""], "at '/requests/holdTimeout'"),
        (&["injection.sidecar.limits.gpu=1"], "at '/injection/sidecar/limits': additional properties 'gpu'"),
        // By the chart.
        (&["activator.hostNetwork=true"], "activator.kind=DaemonSet"),
        (&["activator.ports.admin=8443"], "activator.ports.admin and activator.ports.events are both 8443"),
        (&["webhook.adminPort=8444"], "webhook.port and webhook.adminPort are the same"),
        (&["requests.tls.enabled=true"], "requests.tls.secrets"),
        (&["requests.tls.secrets=[\"a\"]"], "requests.tls.enabled=true"),
        (
            &["requests.enabled=false", "requests.tls={\"enabled\":true,\"secrets\":[\"a\"]}"],
            "needs requests.enabled=true",
        ),
        (&["requests.scale={\"clusterWide\":true,\"namespaces\":[\"shop\"]}"], "clusterWide already covers"),
        (&["requests.service.loadBalancerClass=\"a\""], "requests.service.type=LoadBalancer"),
        (&["requests.service.externalTrafficPolicy=\"Local\""], "NodePort or LoadBalancer"),
        (&["xdp.interfaces=[\"eth0\"]"], "xdp.enabled=true"),
        (&["xdp={\"enabled\":true,\"probes\":[\"shop/web:81/\"]}"], "xdp.probes needs an interface"),
        (&["xdp={\"enabled\":true,\"mode\":\"native\"}"], "xdp.mode=native needs an interface"),
        (&["certificates.mode=\"existing\""], "certificates.existing.activatorSecret"),
        (
            &["certificates={\"mode\":\"existing\",\"existing\":{\"activatorSecret\":\"a\",\"webhookSecret\":\"b\"}}"],
            "certificates.existing.caBundle",
        ),
        (&["certificates.existing.activatorSecret=\"a\""], "set mode=existing"),
        (&["certificates.certManager.issuerRef={\"name\":\"a\"}"], "certificates.mode=cert-manager"),
        (&["metrics.podMonitor.enabled=true"], "networkPolicy.metrics"),
        (
            &["metrics.podMonitor.enabled=true", "metrics.serviceMonitor.enabled=true", "networkPolicy.enabled=false"],
            "enable one",
        ),
        (&["activator.podDisruptionBudget={\"minAvailable\":1,\"maxUnavailable\":1}"], "exclude each other"),
        (&["webhook.podDisruptionBudget.minAvailable=2"], "would block every drain"),
    ] {
        let release = values.iter().fold(Release::new()?, |release, value| release.set(value));
        let error = release.render().expect_err(&values.join(" ")).to_string();
        assert!(error.contains(told), "{values:?}: {error}");
    }
    let error = Release::new()?.set("activator.hostNetwork=true").set("xdp.interfaces=[\"eth0\"]").render();
    let error = error.expect_err("two contradictions").to_string();
    assert!(error.contains("activator.kind=DaemonSet") && error.contains("xdp.enabled=true"), "not both: {error}");
    Ok(())
}

#[test]
fn a_cluster_that_is_too_old_is_refused_with_the_version_needed() -> Result<()> {
    let error = Release::new()?.kubernetes("1.28.15").render().expect_err("too old").to_string();
    assert!(error.contains("kubeVersion: >=1.29.0"), "{error}");
    Release::new()?.kubernetes("1.29.0").render()?;
    Release::new()?.kubernetes("1.30.5-gke.100").render()?;
    let policy = Release::new()?.set("injection.mode=\"policy\"");
    let error = policy.clone().kubernetes("1.35.2").render().expect_err("too old").to_string();
    assert!(error.contains("needs Kubernetes 1.36") && error.contains("injection.mode=webhook"), "{error}");
    policy.kubernetes("1.36.0").render().map(drop)
}

#[test]
fn the_readme_has_every_value() -> Result<()> {
    let (written, values) = (text("charts/podlight/README.md")?, text("charts/podlight/values.yaml")?);
    assert!(written == readme::with_table(&written, &values)?, "the README is not up to date: make chart-readme");
    Ok(())
}

#[test]
fn the_webhook_and_the_policy_are_those_of_the_docs() -> Result<()> {
    let objects = Release::new()?.render()?;
    let [documented] = &*manifests(Path::new("docs/injection/webhook.yaml"))? else { panic!("one object") };
    assert_eq!(&unlabelled(find(&objects, "MutatingWebhookConfiguration", "podlight")?), documented);
    let objects = Release::new()?.set("injection.mode=\"policy\"").render()?;
    for documented in manifests(Path::new("docs/injection/policy.yaml"))? {
        let (kind, name) = (documented["kind"].as_str(), documented["metadata"]["name"].as_str());
        let rendered = find(&objects, kind.unwrap_or_default(), name.unwrap_or_default())?;
        assert_eq!(unlabelled(rendered), documented);
    }
    Ok(())
}

#[test]
fn only_what_was_asked_for_is_rendered() -> Result<()> {
    let bare = Release::new()?.values(&matrix_file("bare-values.yaml")).render()?;
    let kinds: Vec<_> = bare.iter().map(|object| object["kind"].as_str().unwrap_or_default()).collect();
    assert_eq!(kinds, ["Service", "Service", "Deployment"]);
    let policy = Release::new()?.set("injection.mode=\"policy\"").render()?;
    assert!(find(&policy, "MutatingWebhookConfiguration", "podlight").is_err());
    find(&policy, "Deployment", "podlight-webhook")?;
    let node = Release::new()?.values(&matrix_file("xdp-node-values.yaml")).render()?;
    find(&node, "DaemonSet", "podlight-activator")?;
    assert!(find(&node, "PodDisruptionBudget", "podlight-activator").is_err());
    Ok(())
}

#[test]
fn the_chart_has_the_version_of_the_programs() -> Result<()> {
    let chart: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(folder().join("Chart.yaml"))?)?;
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    Ok(())
}
