//! The real `podlight-activator webhook` as a process, against a control plane whose API server asks it over loopback.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary;
use crate::control_plane::ControlPlane;
use crate::control_plane::process::{Process, free_port};
use crate::eventually::eventually;
use crate::http_client;
use crate::metrics::Metrics;
use crate::sender::Reply;

/// The namespace of the webhook and its Secrets.
pub const NAMESPACE: &str = "podlight-system";

/// The account of the webhook.
const ACCOUNT: &str = "podlight-webhook";

/// A running webhook; killed on drop.
#[derive(Debug)]
pub struct Webhook {
    // Dropped before the folder that it logs into.
    process: Process,
    port: u16,
    admin_port: u16,
    folder: TempDir,
}

/// Creates the webhook's namespace and its account, which may do what a webhook does and no more. Returns its kubeconfig.
///
/// # Errors
/// When the API server refuses.
pub async fn install(control_plane: &ControlPlane) -> Result<PathBuf> {
    control_plane.create_namespace(NAMESPACE).await?;
    control_plane.create_service_account(NAMESPACE, ACCOUNT).await?;
    let rules = json!([
        { "apiGroups": ["admissionregistration.k8s.io"], "resources": ["mutatingwebhookconfigurations"],
          "resourceNames": ["podlight"], "verbs": ["get", "update"] },
        { "apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"] },
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "create", "patch"] },
        { "apiGroups": [""], "resources": ["events"], "verbs": ["create"] },
    ]);
    control_plane.grant(NAMESPACE, ACCOUNT, "podlight-webhook", rules).await?;
    let secrets = json!([{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create", "update"] }]);
    control_plane.grant_in(NAMESPACE, ACCOUNT, "podlight-webhook", secrets).await?;
    control_plane.kubeconfig_for(NAMESPACE, ACCOUNT).await
}

/// Has the API server ask the webhook at this port, as docs/injection/webhook.yaml says of a Service. What it was told
/// before goes.
///
/// # Errors
/// When the API server refuses.
pub async fn configure(control_plane: &ControlPlane, port: u16) -> Result<()> {
    let mut configuration = crate::manifests(Path::new("docs/injection/webhook.yaml"))?.remove(0);
    for webhook in configuration["webhooks"].as_array_mut().into_iter().flatten() {
        webhook["clientConfig"] = json!({ "url": format!("https://127.0.0.1:{port}/inject") });
    }
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(control_plane.client()?);
    if configurations.get_opt("podlight").await?.is_some() {
        configurations.delete("podlight", &DeleteParams::default()).await?;
    }
    configurations.create(&PostParams::default(), &serde_json::from_value(configuration)?).await?;
    Ok(())
}

impl Webhook {
    /// Starts one. It is not waited for, nor is the API server told.
    ///
    /// # Errors
    /// When the binary has not been built.
    pub fn spawn(kubeconfig: &Path, flags: &[&str]) -> Result<Self> {
        let parent = kubeconfig.parent().unwrap_or(Path::new("."));
        let folder = tempfile::Builder::new().prefix("webhook.").tempdir_in(parent)?;
        let (port, admin_port) = (free_port()?, free_port()?);
        let process = Process::start(&binary("podlight-activator")?, &folder.path().join("log"), |command| {
            command
                .arg("webhook")
                .arg(format!("--kubeconfig={}", kubeconfig.display()))
                .arg(format!("--listen=127.0.0.1:{port}"))
                .arg(format!("--admin-listen=127.0.0.1:{admin_port}"))
                .args(["--webhook-name=127.0.0.1", "--log-format=text", "--shutdown-delay=0s"])
                .args(flags);
        })?;
        Ok(Self { process, port, admin_port, folder })
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it does not.
    pub async fn wait_ready(&self) -> Result<()> {
        let ready = eventually("the webhook is ready", async || {
            if !self.process.is_running() {
                return Ok(Some(false));
            }
            match self.admin("/readyz").await? {
                reply if reply.status == 200 => Ok(Some(true)),
                reply => bail!("{} {}", reply.status, reply.body),
            }
        });
        let ready = ready.await.with_context(|| format!("log:\n{}", self.process.log_tail()))?;
        ensure!(ready, "the webhook ended at its start; its log:\n{}", self.process.log_tail());
        Ok(())
    }

    /// Where it takes reviews.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Asks its admin port.
    ///
    /// # Errors
    /// When that does not answer.
    pub async fn admin(&self, path: &str) -> Result<Reply> {
        Reply::read(http_client()?.get(format!("http://127.0.0.1:{}{path}", self.admin_port)).send().await?).await
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::read(&format!("http://127.0.0.1:{}", self.admin_port)).await
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        self.process.terminate()?;
        eventually("the webhook ends", async || Ok(self.process.exit_status()?)).await
    }

    /// Its whole log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log_text(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("log"))?)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

/// An object of the API without what the server adds to every one of its own.
pub fn essence(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "namespace", "generation"] {
            metadata.remove(field);
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    object
}
