//! A real etcd and kube-apiserver on loopback ports, for tests that must not believe a mock. It owns their processes, keys,
//! data and logs; nothing else of a cluster runs (no kubelet, scheduler or controllers), so a test plays those parts by
//! creating pods and patching their status. Dropping it, or the death of this process in any way, ends both servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Id;

mod access;
mod audit;
mod folder;
mod objects;
mod pki;
pub mod process;
mod specs;
mod tokens;

#[cfg(test)]
mod tests;

pub use objects::uid;
pub use specs::{ContainerSpec, PodSpec, PodState, ServiceSpec, SliceSpec, exec_probe, http_probe};
pub use tokens::TokenSpec;

use folder::Folder;
use pki::Pki;
use process::Process;

/// The issuer of service account tokens, kubeadm's default.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// How long either server may take to start; about 3 s is usual, several test processes on two cores are not.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at a server that is starting.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Of one look: a server that accepts and then hangs must not use up the deadline.
const POLL_TIMEOUT: Duration = Duration::from_secs(2);

/// What a control plane may differ in.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the API server serves watches from its cache, as real ones do. Without it every watch is one in etcd, and
    /// [`ControlPlane::compact_etcd`] alone makes an old resourceVersion 410; with it, a restart is needed as well.
    pub watch_cache: bool,
    /// Flags added to kube-apiserver's command line.
    pub api_server_flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { watch_cache: true, api_server_flags: Vec::new() }
    }
}

/// A running control plane. Every method takes `&self`, so tests may share one.
pub struct ControlPlane {
    // Dropped in this order: servers before the folder that they write to.
    api_server: Mutex<Option<Process>>,
    etcd: Process,
    client: Mutex<Option<(Id, Client)>>,
    pki: Mutex<Pki>,
    admin_token: String,
    binaries: PathBuf,
    etcd_port: u16,
    api_server_port: u16,
    options: Options,
    folder: Folder,
}

impl ControlPlane {
    /// Starts etcd and kube-apiserver and returns once `/readyz` says so and the namespace `default` exists. Builds their
    /// binaries first when the cache has none, which takes minutes, once a machine.
    ///
    /// # Errors
    /// When they cannot be built, or one does not start within 60 s; the error then ends with its log's last lines.
    pub async fn start(options: Options) -> Result<Self> {
        let binaries = tokio::task::spawn_blocking(binaries).await??;
        let folder = Folder::create()?;
        let pki = Pki::generate(folder.path())?;
        let admin_token = pki::random_token()?;
        fs::write(folder.path().join("tokens.csv"), format!("{admin_token},admin,admin,system:masters\n"))?;
        fs::write(folder.path().join("audit-policy.json"), audit::policy().to_string())?;

        let etcd_port = process::free_port()?;
        let etcd = start_etcd(&binaries, &folder, etcd_port)?;
        wait_until(&etcd, async || Ok(tokio::net::TcpStream::connect(("127.0.0.1", etcd_port)).await.map(drop)?))
            .await?;

        let control_plane = Self {
            api_server: Mutex::new(None),
            etcd,
            client: Mutex::new(None),
            pki: Mutex::new(pki),
            admin_token,
            binaries,
            etcd_port,
            api_server_port: process::free_port()?,
            options,
            folder,
        };
        control_plane.start_api_server().await?;
        Ok(control_plane)
    }

    /// Starts the API server, on the same port and data as before.
    ///
    /// # Errors
    /// As [`ControlPlane::start`], or when it runs already.
    pub async fn start_api_server(&self) -> Result<()> {
        ensure!(lock(&self.api_server).is_none(), "the API server runs already");
        let client = self.client()?;
        let process = self.spawn_api_server()?;
        wait_until(&process, async || {
            client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
            client.request_text(http::Request::get("/api/v1/namespaces/default").body(Vec::new())?).await?;
            Ok(())
        })
        .await?;
        *lock(&self.api_server) = Some(process);
        Ok(())
    }

    /// Kills the API server as a crash would: every connection is reset, its port refuses. Does nothing when it is stopped.
    pub fn stop_api_server(&self) {
        lock(&self.api_server).take();
    }

    /// Freezes the API server: connections stay open and new ones are accepted by the kernel, but nothing answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause_api_server(&self) -> Result<()> {
        lock(&self.api_server).as_ref().context("the API server is stopped")?.pause()
    }

    /// Lets a frozen API server run on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume_api_server(&self) -> Result<()> {
        lock(&self.api_server).as_ref().context("the API server is stopped")?.resume()
    }

    /// Makes etcd forget every revision so far, whether the API server runs or not. Its cache may still serve them, see
    /// [`Options::watch_cache`] and [`ControlPlane::expire_watches`].
    ///
    /// # Errors
    /// When etcd refuses.
    pub async fn compact_etcd(&self) -> Result<()> {
        let mut revision = Value::Null;
        // Compaction at a revision keeps that one, and a watch after the one before it is still served: so two writes, to a
        // key ("podlight") that the API server does not look at.
        for _ in 0..2 {
            let written = self.etcd_call("/v3/kv/put", &json!({ "key": "cG9kbGlnaHQ=", "value": "" })).await?;
            revision = written["header"]["revision"].clone();
        }
        self.etcd_call("/v3/kv/compaction", &json!({ "revision": revision, "physical": true })).await?;
        Ok(())
    }

    /// Deletes a pod in etcd while the API server is stopped: no watch is ever told of it, as when a watcher was away for
    /// too long.
    ///
    /// # Errors
    /// When the API server runs, whose cache would contradict it, or etcd has no such pod.
    pub async fn erase_pod(&self, namespace: &str, name: &str) -> Result<()> {
        ensure!(lock(&self.api_server).is_none(), "the API server runs");
        let key = BASE64_STANDARD.encode(format!("/registry/pods/{namespace}/{name}"));
        let deleted = self.etcd_call("/v3/kv/deleterange", &json!({ "key": key })).await?;
        ensure!(deleted["deleted"] == json!("1"), "etcd has no pod {namespace}/{name}: {deleted}");
        Ok(())
    }

    /// Breaks every watch and makes every resourceVersion seen so far too old, so that all watchers must list again: a
    /// compaction and a restart of the API server.
    ///
    /// # Errors
    /// As its steps.
    pub async fn expire_watches(&self) -> Result<()> {
        self.compact_etcd().await?;
        self.stop_api_server();
        self.start_api_server().await
    }

    /// Whether both servers run, by the kernel's word.
    pub fn is_running(&self) -> bool {
        self.etcd.is_running() && lock(&self.api_server).as_ref().is_some_and(Process::is_running)
    }

    /// The public half of the key that signs service account tokens, PEM.
    pub fn token_key_pem(&self) -> String {
        lock(&self.pki).token_key_pem()
    }

    /// Takes a new key for service account tokens. The old one stays valid and both are in the JWKS, but only once the API
    /// server has been stopped and started.
    ///
    /// # Errors
    /// When the key cannot be made or written.
    pub fn rotate_token_key(&self) -> Result<()> {
        lock(&self.pki).rotate_token_key(self.folder.path())
    }

    /// The folder of keys, data and logs (`etcd.log`, `kube-apiserver.log`, `audit.log`); removed on drop.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn spawn_api_server(&self) -> Result<Process> {
        let folder = self.folder.path();
        let file = |name: &str| folder.join(name).display().to_string();
        let flags = [
            ("etcd-servers", format!("http://127.0.0.1:{}", self.etcd_port)),
            ("bind-address", "127.0.0.1".to_owned()),
            ("secure-port", self.api_server_port.to_string()),
            // Never dialled and never published; without it the server looks for a default route, which a test need not have.
            ("advertise-address", "192.0.2.1".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("cert-dir", file("certificates")),
            ("tls-cert-file", file(pki::SERVER_CERTIFICATE_FILE)),
            ("tls-private-key-file", file(pki::SERVER_KEY_FILE)),
            ("service-account-issuer", ISSUER.to_owned()),
            ("service-account-signing-key-file", file(pki::SIGNING_KEY_FILE)),
            ("service-account-key-file", file(pki::VERIFYING_KEYS_FILE)),
            ("token-auth-file", file("tokens.csv")),
            ("authorization-mode", "RBAC".to_owned()),
            // Would refuse every pod until a controller has made the namespace's `default` account.
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112".to_owned()),
            ("watch-cache", self.options.watch_cache.to_string()),
            ("audit-policy-file", file("audit-policy.json")),
            ("audit-log-path", file(audit::LOG_FILE)),
            ("audit-log-mode", "blocking".to_owned()),
            // Megabytes; a rotated log would lose counts.
            ("audit-log-maxsize", "4096".to_owned()),
        ];
        Process::start(&self.binaries.join("kube-apiserver"), &folder.join("kube-apiserver.log"), |command| {
            command.args(flags.map(|(name, value)| format!("--{name}={value}"))).args(&self.options.api_server_flags);
        })
    }

    async fn etcd_call(&self, path: &str, body: &Value) -> Result<Value> {
        let client = Client::try_from(Config::new(format!("http://127.0.0.1:{}", self.etcd_port).parse()?))?;
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(body)?)?;
        client.request(request).await.with_context(|| format!("etcd {path}"))
    }
}

fn start_etcd(binaries: &Path, folder: &Folder, port: u16) -> Result<Process> {
    let url = format!("http://127.0.0.1:{port}");
    Process::start(&binaries.join("etcd"), &folder.path().join("etcd.log"), |command| {
        command
            .arg("--data-dir")
            .arg(folder.path().join("etcd"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", "http://127.0.0.1:0", "--unsafe-no-fsync", "--log-level", "warn"]);
    })
}

/// Polls `check` until it succeeds.
async fn wait_until(process: &Process, check: impl AsyncFn() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    loop {
        let failure = match tokio::time::timeout(POLL_TIMEOUT, check()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        if !process.is_running() {
            bail!("{} ended while starting; its log ends:\n{}", process.name(), process.log_tail());
        }
        if started.elapsed() > START_DEADLINE {
            let (name, tail) = (process.name(), process.log_tail());
            return Err(failure.context(format!("{name} is not ready after {START_DEADLINE:?}; its log ends:\n{tail}")));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The folder of etcd and kube-apiserver, built when it is not in the cache.
fn binaries() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/build.sh");
    // Its progress goes to our stderr, which the test runner does not capture: minutes of silence look like a hang.
    let output =
        Command::new(script).stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {script}"))?;
    ensure!(output.status.success(), "{script} failed with {}, its reason is on stderr", output.status);
    let folder = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(folder.trim_end()))
}

/// Locks what no code path leaves half-changed, so poison from a failed test that shares it is no news.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
