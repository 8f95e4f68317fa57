//! The real `podlight-sidecar` as a process, for a pod that a test has made.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tempfile::TempDir;

use crate::binary;
use crate::control_plane::lock;
use crate::control_plane::process::{Process, free_port};
use crate::eventually::eventually;
use crate::http_client;
use crate::metrics::Metrics;
use crate::sender::{REVISION_LABEL, Reply};

/// How a sidecar is to run.
#[derive(Clone, Debug)]
pub struct SidecarSpec {
    flags: Vec<(String, String)>,
    token: String,
    program: Option<PathBuf>,
}

impl SidecarSpec {
    /// For a pod as the API server returned it: its identity, its addresses and its revision.
    pub fn new(pod: &Pod, token: &str) -> Self {
        let metadata = &pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let addresses = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        let addresses: Vec<&str> = addresses.map(|address| address.ip.as_str()).collect();
        let revision = metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL));
        Self { flags: Vec::new(), token: token.to_owned(), program: None }
            .flag("namespace", &text(&metadata.namespace))
            .flag("pod", &text(&metadata.name))
            .flag("uid", &text(&metadata.uid))
            .flag("address", &addresses.join(","))
            .flag("revision", revision.map_or("", String::as_str))
            .flag("port", "http=8080")
            .flag("log-format", "text")
    }

    /// Tells this replica.
    pub fn activator(self, base: &str) -> Self {
        self.flag("activator", base)
    }

    /// Asks this probe.
    pub fn probe(self, probe: &str) -> Self {
        self.flag("probe", probe)
    }

    /// Any flag.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs this build of it.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Starts it and waits until its admin port answers.
    ///
    /// # Errors
    /// When it does not; the error ends with its log's last lines.
    pub async fn start(self) -> Result<Sidecar> {
        let folder = tempfile::Builder::new().prefix("podlight-sidecar.").tempdir()?;
        std::fs::write(folder.path().join("token"), &self.token)?;
        let sidecar = Sidecar { process: Mutex::new(None), spec: self, admin_port: free_port()?, folder };
        sidecar.start().await?;
        Ok(sidecar)
    }
}

/// A running sidecar; killed on drop.
#[derive(Debug)]
pub struct Sidecar {
    // Dropped before the folder that it logs into.
    process: Mutex<Option<Process>>,
    spec: SidecarSpec,
    admin_port: u16,
    folder: TempDir,
}

impl Sidecar {
    /// Starts it again after [`Sidecar::kill`], with a new key and a new boot.
    ///
    /// # Errors
    /// As [`SidecarSpec::start`].
    pub async fn start(&self) -> Result<()> {
        let program = self.spec.program.clone().map_or_else(|| binary("podlight-sidecar"), Ok)?;
        let process = Process::start(&program, &self.folder.path().join("log"), |command| {
            command.args(self.spec.flags.iter().map(|(name, value)| format!("--{name}={value}")));
            command.arg(format!("--token={}", self.token_file().display()));
            command.arg(format!("--admin-listen=127.0.0.1:{}", self.admin_port));
        })?;
        *lock(&self.process) = Some(process);
        let health = format!("{}/healthz", self.admin_url());
        let client = http_client()?;
        let answers = eventually("the sidecar's admin port answers", async || {
            if !self.is_running() {
                return Ok(Some(false));
            }
            let answer = client.get(&health).send().await?;
            Ok((answer.status() == 200).then_some(true))
        });
        let answers = answers.await.with_context(|| format!("log:\n{}", self.log_tail()))?;
        ensure!(answers, "the sidecar ended at its start; its log:\n{}", self.log_tail());
        Ok(())
    }

    /// Kills it, as the kernel does when memory runs out: it says nothing to anybody.
    pub fn kill(&self) {
        lock(&self.process).take();
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When it has ended.
    pub fn terminate(&self) -> Result<()> {
        lock(&self.process).as_ref().context("the sidecar was killed")?.terminate()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(&self) -> Result<ExitStatus> {
        eventually("the sidecar ends", async || {
            Ok(lock(&self.process).as_ref().context("the sidecar was killed")?.exit_status()?)
        })
        .await
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        lock(&self.process).as_ref().is_some_and(Process::is_running)
    }

    /// The kernel's id of the process, while it has not been killed.
    pub fn id(&self) -> Option<u32> {
        lock(&self.process).as_ref().map(Process::id)
    }

    /// Runs `podlight-sidecar drain` beside it, as a preStop hook does. Returns how that ended and what it said.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn drain(&self, hold: &str) -> Result<(ExitStatus, String)> {
        let mut command = std::process::Command::new(binary("podlight-sidecar")?);
        command.arg("drain").arg(format!("--admin-listen=127.0.0.1:{}", self.admin_port));
        command.arg(format!("--hold={hold}"));
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status, String::from_utf8_lossy(&said).into_owned()))
    }

    /// Puts another token in the old one's place, as the kubelet does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rotate_token(&self, token: &str) -> Result<()> {
        let new = self.folder.path().join("token.new");
        std::fs::write(&new, token)?;
        Ok(std::fs::rename(new, self.token_file())?)
    }

    /// Base URL of its admin port.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// Its own account of itself.
    ///
    /// # Errors
    /// When it gives none.
    pub async fn status(&self) -> Result<Value> {
        let response = http_client()?.get(format!("{}/status", self.admin_url())).send().await?;
        Ok(serde_json::from_str(&Reply::read(response).await?.body)?)
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::read(&self.admin_url()).await
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        lock(&self.process).as_ref().map(Process::log_tail).unwrap_or_default()
    }

    fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }
}
