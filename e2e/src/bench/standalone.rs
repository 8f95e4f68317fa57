//! Activators without a cluster: manifests in a temporary folder stand in for the API server, a local key for its tokens. One
//! Service, `web` in the namespace `shop`, with so many pods.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use podlight_activator::cluster::standalone::pod_uid;
use podlight_activator::cluster::token::{DEFAULT_ISSUER, IssuerKey, MintRequest};
use podlight_proto::AUDIENCE;
use serde_json::json;
use tempfile::TempDir;

use crate::activator::{Activator, ActivatorSpec};
use crate::sidecar::SidecarSpec;

/// The namespace of everything.
pub const NAMESPACE: &str = "shop";

/// The Service, the ServiceAccount and the first part of pods' names.
pub const SERVICE: &str = "web";

/// Long enough for any measurement.
const TOKEN_SECONDS: u64 = 3600;

/// Manifests and an issuer key.
pub struct Standalone {
    folder: TempDir,
    key: IssuerKey,
    pods: Vec<Pod>,
}

impl Standalone {
    /// Writes them: so many pods, running at addresses of their own and not ready.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn new(pods: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("podlight-standalone.").tempdir()?;
        fs::create_dir(folder.path().join("manifests"))?;
        let pods: Vec<Pod> = (0..pods).map(pod).collect::<Result<_>>()?;
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "namespace": NAMESPACE, "name": SERVICE },
            "spec": { "selector": { "app": SERVICE }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
        });
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": { "namespace": NAMESPACE, "name": SERVICE },
        });
        let mut items = vec![service, account];
        for pod in &pods {
            items.push(serde_json::to_value(pod)?);
        }
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        fs::write(folder.path().join("manifests/cluster.json"), list.to_string())?;
        let key = IssuerKey::load_or_create(&folder.path().join("issuer.key"))?;
        Ok(Self { folder, key, pods })
    }

    /// Starts so many replicas, with TLS.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn activators(&self, count: usize) -> Result<Vec<Activator>> {
        let mut activators = Vec::new();
        for n in 0..count {
            let spec = ActivatorSpec::standalone(
                &self.folder.path().join("manifests"),
                &self.folder.path().join("issuer.key"),
            )
            .flag("replica", &format!("replica-{n}"));
            activators.push(spec.flag("log", "warn").self_signed().start().await?);
        }
        fs::write(self.bundle(), certificates(&activators)?)?;
        Ok(activators)
    }

    /// A token of a pod.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn token(&self, pod: usize) -> Result<String> {
        let pod_name = self.pods.get(pod).and_then(|pod| pod.metadata.name.clone()).context("no such pod")?;
        let request = MintRequest {
            namespace: NAMESPACE.to_owned(),
            service_account: SERVICE.to_owned(),
            pod_uid: pod_uid(NAMESPACE, &pod_name),
            pod_name,
            audience: AUDIENCE.to_owned(),
            seconds: TOKEN_SECONDS,
            issuer: DEFAULT_ISSUER.to_owned(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(self.key.mint(&request, now)?)
    }

    /// A pod's sidecar, telling all of `activators`, for an app on this loopback port.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn sidecar(&self, pod: usize, activators: &[Activator], app_port: u16) -> Result<SidecarSpec> {
        let manifest = self.pods.get(pod).context("no such pod")?;
        let spec = SidecarSpec::new(manifest, &self.token(pod)?)
            .probe(&format!("http://127.0.0.1:{app_port}/ready"))
            .flag("activator-ca", &self.bundle().display().to_string())
            .flag("log", "warn");
        Ok(activators.iter().fold(spec, |spec, activator| spec.activator(&activator.url())))
    }

    /// The file of all activators' CA certificates.
    fn bundle(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }
}

/// The CA certificates of these activators, PEM.
///
/// # Errors
/// When one cannot be read.
pub fn certificates(activators: &[Activator]) -> Result<String> {
    let certificates = activators.iter().map(|activator| {
        let file = activator.ca_file();
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    });
    certificates.collect()
}

/// The name of a pod.
pub fn pod_name(n: usize) -> String {
    format!("{SERVICE}-{n}")
}

fn pod(n: usize) -> Result<Pod> {
    let (name, address) = (pod_name(n), format!("127.2.0.{}", n + 1));
    let since = Timestamp::now() - Duration::from_secs(60);
    let since = Timestamp::from_second(since.as_second())?.to_string();
    let probe = json!({ "httpGet": { "path": "/ready", "port": 8080 } });
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "uid": pod_uid(NAMESPACE, &name).as_str(),
            "labels": { "app": SERVICE, "podlight.dev/revision": "v1" },
        },
        "spec": {
            "serviceAccountName": SERVICE,
            "containers": [{
                "name": "app",
                "image": "example.invalid/app",
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "readinessProbe": probe,
            }],
        },
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "False", "lastTransitionTime": since }],
        },
    }))?)
}
