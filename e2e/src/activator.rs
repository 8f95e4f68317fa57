//! The real `podlight-activator` as a process, against whatever API server a kubeconfig names.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::binary;
use crate::control_plane::lock;
use crate::control_plane::process::{Process, free_port};
use crate::eventually::eventually;
use crate::http_client;
use crate::metrics::Metrics;
use crate::net::namespace::Namespace;
use crate::sender::Reply;

/// How an activator is to run: with its defaults and plain HTTP, unless told otherwise.
#[derive(Clone, Debug)]
pub struct ActivatorSpec {
    flags: Vec<(String, String)>,
    switches: Vec<String>,
    proxy_port: Option<u16>,
    proxy_tls_port: Option<u16>,
    core: Option<usize>,
    namespace: Option<PathBuf>,
    dropped: Option<String>,
    tls: Tls,
    parent: PathBuf,
}

/// How the connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    None,
    SelfSigned,
    Files,
}

impl ActivatorSpec {
    /// One that speaks to this API server. Its folder is beside the kubeconfig, and removed with it at the latest: a scene
    /// that a test binary shares is never dropped.
    pub fn new(kubeconfig: &Path) -> Self {
        let parent = kubeconfig.parent().unwrap_or(Path::new(".")).to_owned();
        Self::plain(parent)
            .flag("kubeconfig", &kubeconfig.display().to_string())
            .flag("log-format", "text")
            .flag("replica", "e2e")
    }

    /// One whose cluster is a folder of manifests.
    pub fn standalone(manifests: &Path, issuer_key: &Path) -> Self {
        let parent = issuer_key.parent().unwrap_or(Path::new(".")).to_owned();
        Self::plain(parent)
            .flag("cluster-from", &manifests.display().to_string())
            .flag("issuer-key", &issuer_key.display().to_string())
            .flag("log-format", "text")
            .flag("replica", "e2e")
    }

    fn plain(parent: PathBuf) -> Self {
        let (flags, switches) = (Vec::new(), Vec::new());
        let (namespace, dropped) = (None, None);
        let (proxy_port, proxy_tls_port, core) = (None, None, None);
        Self { flags, switches, proxy_port, proxy_tls_port, core, namespace, dropped, tls: Tls::None, parent }
    }

    /// Sets a flag, in place of what it was.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.retain(|(set, _)| set != name);
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a flag that may be there before.
    pub fn also(mut self, name: &str, value: &str) -> Self {
        self.flags.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets a flag that has no value.
    pub fn switch(mut self, name: &str) -> Self {
        self.switches.push(name.to_owned());
        self
    }

    /// Takes requests at a loopback port of its own, as plain HTTP.
    ///
    /// # Errors
    /// When no port is free.
    pub fn proxy(mut self) -> Result<Self> {
        let port = free_port()?;
        self.proxy_port = Some(port);
        Ok(self.flag("proxy-listen", &format!("127.0.0.1:{port}")))
    }

    /// Takes requests over TLS as well.
    ///
    /// # Errors
    /// When no port is free.
    pub fn proxy_tls(mut self) -> Result<Self> {
        let port = free_port()?;
        self.proxy_tls_port = Some(port);
        Ok(self.flag("proxy-tls-listen", &format!("127.0.0.1:{port}")))
    }

    /// Runs on this core alone.
    pub fn on_core(mut self, core: usize) -> Self {
        self.core = Some(core);
        self
    }

    /// Runs in a network namespace. Whoever speaks to it must be in there.
    pub fn within(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.path());
        self
    }

    /// Runs without these capabilities, as `setpriv --bounding-set` takes them: `-bpf,-net_admin`.
    pub fn without(mut self, capabilities: &str) -> Self {
        self.dropped = Some(capabilities.to_owned());
        self
    }

    /// Speaks TLS with a certificate that it makes itself.
    pub fn self_signed(mut self) -> Self {
        self.tls = Tls::SelfSigned;
        self
    }

    /// Speaks TLS with a certificate and a key from PEM files.
    pub fn certificate(self, certificate: &Path, key: &Path) -> Self {
        let spec = Self { tls: Tls::Files, ..self };
        spec.flag("tls-cert", &certificate.display().to_string()).flag("tls-key", &key.display().to_string())
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it is not in time; the error ends with its log's last lines.
    pub async fn start(self) -> Result<Activator> {
        let activator = self.spawn()?;
        activator.wait_ready().await?;
        Ok(activator)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// When the binary has not been built.
    pub fn spawn(self) -> Result<Activator> {
        let folder = tempfile::Builder::new().prefix("activator.").tempdir_in(&self.parent)?;
        let (port, admin_port) = (free_port()?, free_port()?);
        let activator = Activator { process: Mutex::new(None), spec: self, port, admin_port, folder };
        activator.spawn()?;
        Ok(activator)
    }
}

/// A running activator; killed on drop.
#[derive(Debug)]
pub struct Activator {
    // Dropped before the folder that it logs into.
    process: Mutex<Option<Process>>,
    spec: ActivatorSpec,
    port: u16,
    admin_port: u16,
    folder: TempDir,
}

impl Activator {
    /// Starts it again after [`Activator::kill`], on the same ports, knowing nothing.
    ///
    /// # Errors
    /// As [`ActivatorSpec::start`].
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        self.wait_ready().await
    }

    fn spawn(&self) -> Result<()> {
        let binary = binary("podlight-activator")?;
        // Each word leads to the next program and at last to ours, in the same process.
        let mut line: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.spec.namespace {
            line.extend(["nsenter".into(), format!("--net={}", namespace.display()).into(), "--".into()]);
        }
        if let Some(capabilities) = &self.spec.dropped {
            line.extend(["setpriv", "--bounding-set", capabilities, "--"].map(OsString::from));
        }
        if let Some(core) = self.spec.core {
            line.extend(["taskset", "-c", &core.to_string()].map(OsString::from));
        }
        line.push(binary.into());
        let process = Process::start(Path::new(&line[0]), &self.log(), |command| {
            command.args(&line[1..]);
            command.args(self.spec.switches.iter().map(|name| format!("--{name}")));
            command.args(self.spec.flags.iter().map(|(name, value)| format!("--{name}={value}")));
            command.arg(format!("--listen=127.0.0.1:{}", self.port));
            command.arg(format!("--admin-listen=127.0.0.1:{}", self.admin_port));
            match self.spec.tls {
                Tls::None => drop(command.arg("--plaintext")),
                Tls::SelfSigned => {
                    command.arg("--tls-self-signed").arg(format!("--tls-ca-out={}", self.ca_file().display()));
                }
                Tls::Files => {}
            }
        })?;
        *lock(&self.process) = Some(process);
        Ok(())
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Errors
    /// When it does not.
    pub async fn wait_ready(&self) -> Result<()> {
        let ready = eventually("the activator is ready", async || {
            if !self.is_running() {
                return Ok(Some(false));
            }
            match self.admin("/readyz").await? {
                reply if reply.status == 200 => Ok(Some(true)),
                reply => bail!("{} {}", reply.status, reply.body),
            }
        });
        let ready = ready.await.with_context(|| format!("log:\n{}", self.log_tail()))?;
        ensure!(ready, "the activator ended at its start; its log:\n{}", self.log_tail());
        Ok(())
    }

    /// Kills it, as a lost node would.
    pub fn kill(&self) {
        lock(&self.process).take();
    }

    /// Freezes it: a partition, seen from the outside.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<()> {
        self.with_process(Process::pause)
    }

    /// Ends the partition.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<()> {
        self.with_process(Process::resume)
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Errors
    /// When it has ended.
    pub fn terminate(&self) -> Result<()> {
        self.with_process(Process::terminate)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(&self) -> Result<ExitStatus> {
        eventually("the activator ends", async || self.with_process(|process| Ok(process.exit_status()?))).await
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        lock(&self.process).as_ref().is_some_and(Process::is_running)
    }

    /// The kernel's id of the process, while it has not been killed.
    pub fn id(&self) -> Option<u32> {
        lock(&self.process).as_ref().map(Process::id)
    }

    /// Base URL for events and queries.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.spec.tls == Tls::None { "http" } else { "https" }, self.port)
    }

    /// The port of [`Activator::url`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it takes requests as plain HTTP.
    ///
    /// # Errors
    /// When it does not: see [`ActivatorSpec::proxy`].
    pub fn proxy_address(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], self.spec.proxy_port.context("it takes no requests")?)))
    }

    /// Where it takes requests over TLS.
    ///
    /// # Errors
    /// When it does not: see [`ActivatorSpec::proxy_tls`].
    pub fn proxy_tls_address(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::from(([127, 0, 0, 1], self.spec.proxy_tls_port.context("it takes none over TLS")?)))
    }

    /// Base URL of its admin port.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// The certificate authority that it made itself, PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// The same as text; none when it did not make its certificate itself.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn ca_pem(&self) -> Result<Option<String>> {
        let made = self.spec.tls == Tls::SelfSigned;
        Ok(if made { Some(std::fs::read_to_string(self.ca_file())?) } else { None })
    }

    /// Asks its admin port.
    ///
    /// # Errors
    /// When that does not answer.
    pub async fn admin(&self, path: &str) -> Result<Reply> {
        Reply::read(http_client()?.get(format!("{}{path}", self.admin_url())).send().await?).await
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::read(&self.admin_url()).await
    }

    /// Runs `podlight-activator status` against it. Returns how that ended and what it said.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn run_status(&self, token: &str, namespace: &str) -> Result<(ExitStatus, String)> {
        let mut command = std::process::Command::new(binary("podlight-activator")?);
        command.args(self.status_arguments(token, namespace)?);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status, String::from_utf8_lossy(&said).into_owned()))
    }

    /// Starts `podlight-activator status --watch` against it. What it prints is its log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn watch_status(&self, token: &str, namespace: &str) -> Result<Process> {
        let arguments = self.status_arguments(token, namespace)?;
        Process::start(&binary("podlight-activator")?, &self.folder.path().join("status.log"), |command| {
            command.args(&arguments).arg("--watch");
        })
    }

    fn status_arguments(&self, token: &str, namespace: &str) -> Result<Vec<String>> {
        let file = self.folder.path().join(format!("{namespace}.token"));
        std::fs::write(&file, token)?;
        let flags = [("server", self.url()), ("namespace", namespace.to_owned())];
        let flags = flags.map(|(name, value)| format!("--{name}={value}"));
        Ok([vec!["status".to_owned(), format!("--token-file={}", file.display())], flags.to_vec()].concat())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        lock(&self.process).as_ref().map(Process::log_tail).unwrap_or_default()
    }

    /// Its whole log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log_text(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log())?)
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn with_process<T>(&self, act: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        act(lock(&self.process).as_ref().context("the activator was killed")?)
    }
}
