//! Servers and load balancers of somebody else's at either end: nginx that answers 200, and nginx and HAProxy that ask.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::namespace::Namespace;
use crate::control_plane::process::Process;
use crate::eventually::eventually;

/// nginx in a namespace: one worker that answers every request with 200 and closes, as probes ask.
///
/// # Errors
/// When it does not start.
pub async fn nginx_that_answers(namespace: &Namespace, port: u16, cores: Option<&str>) -> Result<Process> {
    let server = format!("listen {port} backlog=4096; listen [::]:{port} backlog=4096; return 200 \"ok\";");
    let process = nginx(namespace, "answers", &server, cores)?;
    accepts(namespace, port).await.with_context(|| process.log_tail())?;
    Ok(process)
}

/// nginx in a namespace that hands every request on to `to`, at `path`: each is a probe by nginx.
///
/// # Errors
/// When it does not start.
pub async fn nginx_that_asks(namespace: &Namespace, port: u16, to: SocketAddr, path: &str) -> Result<Process> {
    let server = format!("listen {port}; location / {{ proxy_pass http://{to}{path}; proxy_connect_timeout 2s; }}");
    let process = nginx(namespace, "asks", &server, None)?;
    accepts(namespace, port).await.with_context(|| process.log_tail())?;
    Ok(process)
}

fn nginx(namespace: &Namespace, name: &str, server: &str, cores: Option<&str>) -> Result<Process> {
    let prefix = namespace.folder().join(format!("nginx-{name}"));
    fs::create_dir(&prefix)?;
    let (file, prefix) = (prefix.join("nginx.conf"), prefix.display());
    let text = format!(
        "daemon off; master_process off; worker_processes 1; error_log {prefix}/error.log error; pid {prefix}/pid;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  tcp_nodelay on;
  client_body_temp_path {prefix}/a; proxy_temp_path {prefix}/b; fastcgi_temp_path {prefix}/c;
  uwsgi_temp_path {prefix}/d; scgi_temp_path {prefix}/e;
  server {{ {server} }}
}}
"
    );
    fs::write(&file, text)?;
    namespace.start("nginx", &["-e", &format!("{prefix}/start.log"), "-c", text_of(&file)?], cores)
}

/// HAProxy with one server, whose health it asks for.
pub struct HaProxy {
    process: Process,
    port: u16,
}

impl HaProxy {
    /// Starts it in a namespace: it asks `to` for `path` ten times a second, and believes each answer.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(namespace: &Namespace, port: u16, to: SocketAddr, path: &str) -> Result<Self> {
        let text = format!(
            "global
  nbthread 1
defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
frontend stats
  bind 127.0.0.1:{port}
  stats enable
  stats uri /stats
backend out
  option httpchk
  http-check send meth GET uri {path} ver HTTP/1.1 hdr Host web
  http-check expect status 200
  server web {to} check inter 100ms fastinter 100ms downinter 100ms rise 1 fall 1
"
        );
        let file = namespace.folder().join("haproxy.cfg");
        fs::write(&file, text)?;
        let process = namespace.start("haproxy", &["-db", "-f", text_of(&file)?], None)?;
        accepts(namespace, port).await.with_context(|| process.log_tail())?;
        Ok(Self { process, port })
    }

    /// Waits until it says this of its server: `UP` or `DOWN`, and how the last check ended (`L7OK`, `L7STS`).
    ///
    /// # Errors
    /// When it does not.
    pub async fn wait(&self, namespace: &Namespace, status: &str, check: &str, code: &str) -> Result<()> {
        let wanted = [("status", status), ("check_status", check), ("check_code", code)];
        let what = format!("HAProxy says {status} after {check} {code}");
        let look = eventually(&what, async || {
            let url = format!("http://127.0.0.1:{}/stats;csv", self.port);
            let text = namespace.run("curl", &["--silent", "--max-time", "2", &url]).await?;
            let mut lines = text.lines();
            let heads: Vec<&str> = lines.next().context("no statistics")?.trim_start_matches("# ").split(',').collect();
            let line = lines.find(|line| line.starts_with("out,web,")).context("no server")?;
            let fields: Vec<&str> = line.split(',').collect();
            let found = wanted.map(|(name, _)| {
                heads.iter().position(|head| *head == name).and_then(|at| fields.get(at).copied()).unwrap_or_default()
            });
            if found != wanted.map(|(_, value)| value) {
                bail!("it says {found:?}");
            }
            Ok(Some(()))
        });
        look.await.with_context(|| self.process.log_tail())
    }
}

async fn accepts(namespace: &Namespace, port: u16) -> Result<()> {
    eventually(&format!("port {port} accepts"), async || {
        // In LISTEN.
        ensure!(namespace.sockets(port, &["0A"])? > 0, "nobody listens");
        Ok(Some(()))
    })
    .await
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
