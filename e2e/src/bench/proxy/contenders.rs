//! The proxies that are measured: each one worker, plain HTTP/1.1, kept connections on both sides, no log of requests.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::child::{self, MEASURED_CORE, OTHER_CORE};
use super::load::Load;
use crate::activator::Activator;
use crate::backend::fresh_loopback;
use crate::bench::usage::CpuMeter;
use crate::control_plane::process::{Process, free_port};
use crate::eventually::eventually;
use crate::proxy::clients::{install, program};
use crate::proxy::stage::{Stage, running_ready};

/// The Service that ours routes by.
const SERVICE: &str = "web";

/// A proxy under measurement.
pub(super) struct Contender {
    /// Its name in the rows.
    pub(super) name: &'static str,
    /// Where it takes requests.
    pub(super) address: SocketAddr,
    /// What `Host` says.
    pub(super) host: String,
    /// The kernel's id of its process.
    pub(super) process: u32,
}

impl Contender {
    /// A load for it.
    pub(super) fn load(&self, connections: usize, seconds: f64, rate: Option<f64>) -> Load {
        let hosts = vec![self.host.clone()];
        Load { address: self.address, hosts, kept: false, connections, seconds, rate, requests: None }
    }

    /// The CPU time that it has used.
    pub(super) fn cpu(&self) -> Result<Duration> {
        CpuMeter::new(self.process).total()
    }
}

/// All of them, the backend, and what keeps them alive.
pub(super) struct Arena {
    /// Ours first.
    pub(super) contenders: Vec<Contender>,
    /// The backend itself.
    pub(super) direct: Contender,
    _stage: Stage<'static>,
    _processes: Vec<Process>,
    _folder: TempDir,
}

impl Arena {
    /// Starts everything, once a proxy that is not there could be installed.
    pub(super) async fn start() -> Result<Self> {
        install().await?;
        let folder = tempfile::Builder::new().prefix("podlight-arena.").tempdir()?;
        let backend = SocketAddr::new(fresh_loopback(), crate::backend::PORT);
        let mut processes =
            vec![child::start(OTHER_CORE, folder.path(), &["backend".to_owned(), backend.to_string()])?];
        let direct = contender("direct", backend, processes[0].id()).await?;
        let (stage, ours) = ours(backend).await?;
        let mut contenders = vec![ours];
        for (name, start) in [("nginx", nginx as Start), ("HAProxy", haproxy), ("hyper loop", hyper)] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let process = start(folder.path(), address, backend).with_context(|| format!("cannot start {name}"))?;
            let started = contender(name, address, process.id()).await;
            contenders.push(started.with_context(|| process.log_tail())?);
            processes.push(process);
        }
        Ok(Self { contenders, direct, _stage: stage, _processes: processes, _folder: folder })
    }
}

type Start = fn(&Path, SocketAddr, SocketAddr) -> Result<Process>;

async fn contender(name: &'static str, address: SocketAddr, process: u32) -> Result<Contender> {
    eventually(&format!("{name} accepts"), async || Ok(TcpStream::connect(address).await.map(|_| Some(()))?)).await?;
    Ok(Contender { name, address, host: "web.shop".to_owned(), process })
}

/// Our own, whose one pod is the backend, ready by the API server's word.
async fn ours(backend: SocketAddr) -> Result<(Stage<'static>, Contender)> {
    let stage =
        Stage::standalone_with(|spec| spec.flag("log", "warn").flag("proxy-workers", "1").on_core(MEASURED_CORE));
    let stage = stage.await?;
    stage.create_service(stage.service(SERVICE)).await?;
    stage.create_pod(stage.pod_spec(SERVICE, "web-0"), &running_ready(backend.ip())).await?;
    let (host, address) = (stage.host(SERVICE), stage.proxy()?);
    stage.until(&host, |answer| answer.status == 200).await?;
    let process = stage.activator().id().context("the activator has ended")?;
    Ok((stage, Contender { name: "ours", address, host, process }))
}

/// The kernel's id of an activator.
pub(super) fn id(activator: &Activator) -> Result<u32> {
    activator.id().context("the activator has ended")
}

fn nginx(folder: &Path, listen: SocketAddr, backend: SocketAddr) -> Result<Process> {
    nginx_over(folder, listen, &[backend])
}

/// nginx, which has the power of two choices as we do.
fn nginx_over(folder: &Path, listen: SocketAddr, backends: &[SocketAddr]) -> Result<Process> {
    let prefix = folder.join(format!("nginx-{}", listen.port()));
    fs::create_dir(&prefix)?;
    let servers: String = backends.iter().map(|backend| format!("server {backend}; ")).collect();
    let balance = if backends.len() > 1 { "random two least_conn;" } else { "" };
    let prefix = prefix.display();
    let text = format!(
        "daemon off; master_process off; worker_processes 1; error_log {prefix}/error.log error; pid {prefix}/pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  tcp_nodelay on;
  client_body_temp_path {prefix}/a; proxy_temp_path {prefix}/b; fastcgi_temp_path {prefix}/c;
  uwsgi_temp_path {prefix}/d; scgi_temp_path {prefix}/e;
  upstream backend {{ {balance} {servers} keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen {listen} backlog=4096;
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"
    );
    let file = folder.join(format!("nginx-{}.conf", listen.port()));
    fs::write(&file, text)?;
    let file = file.to_str().context("a path that is no text")?;
    let error_log = format!("{prefix}/start.log");
    child::pinned(MEASURED_CORE, &folder.join("nginx.log"), &[&program("nginx"), "-e", &error_log, "-c", file])
}

fn haproxy(folder: &Path, listen: SocketAddr, backend: SocketAddr) -> Result<Process> {
    let text = format!(
        "global
  nbthread 1
  maxconn 4000
defaults
  mode http
  option forwardfor
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend in
  bind {listen}
  default_backend out
backend out
  server backend {backend} pool-max-conn -1
"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, text)?;
    let file = file.to_str().context("a path that is no text")?;
    child::pinned(MEASURED_CORE, &folder.join("haproxy.log"), &[&program("haproxy"), "-db", "-f", file])
}

fn hyper(folder: &Path, listen: SocketAddr, backend: SocketAddr) -> Result<Process> {
    ensure!(listen != backend, "one address for both");
    forward(folder, listen, &[backend])
}

fn forward(folder: &Path, listen: SocketAddr, backends: &[SocketAddr]) -> Result<Process> {
    let addresses = [listen].into_iter().chain(backends.iter().copied()).map(|address| address.to_string());
    child::start(MEASURED_CORE, folder, &["forward".to_owned()].into_iter().chain(addresses).collect::<Vec<_>>())
}

/// The bare loop over several backends in turn.
pub(super) async fn hyper_loop(folder: &Path, backends: &[SocketAddr]) -> Result<(Contender, Process)> {
    over(folder, "hyper loop", forward, backends).await
}

/// nginx over several backends by the power of two choices.
pub(super) async fn two_choices(folder: &Path, backends: &[SocketAddr]) -> Result<(Contender, Process)> {
    install().await?;
    over(folder, "nginx", nginx_over, backends).await
}

async fn over(
    folder: &Path,
    name: &'static str,
    start: fn(&Path, SocketAddr, &[SocketAddr]) -> Result<Process>,
    backends: &[SocketAddr],
) -> Result<(Contender, Process)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let process = start(folder, address, backends)?;
    let contender = contender(name, address, process.id()).await;
    Ok((contender.with_context(|| process.log_tail())?, process))
}
