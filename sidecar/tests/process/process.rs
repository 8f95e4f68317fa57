//! The sidecar as a process, and what it says about itself.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::eventually;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_podlight-sidecar");

/// A running sidecar, ended with the test.
pub(crate) struct Sidecar {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    admin: String,
    pub(crate) dir: tempfile::TempDir,
}

/// A token with times that suit and a signature that tells it from others.
pub(crate) fn token(signature: &str) -> String {
    use base64::Engine as _;
    let claims = r#"{"iat":1,"exp":9007199254740991}"#;
    format!("e30.{}.{signature}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
}

impl Sidecar {
    /// Starts one for the pod default/web-0, with a token, and waits until its admin port is open.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        write_atomically(&dir.path().join("token"), &token("first"));
        let own_token = flags.iter().any(|flag| flag.starts_with("--token="));
        let token = format!("--token={}", dir.path().join("token").display());
        let mut child = Command::new(BINARY)
            .args(["--namespace=default", "--pod=web-0", "--uid=6f9d1b3e", "--address=10.0.0.7"])
            .args(["--admin-listen=127.0.0.1:0", "--port=web=8080", "--revision=7d4b9c"])
            .args((!own_token).then_some(token))
            .arg(format!("--admin-socket={}", dir.path().join("admin").display()))
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, keeps) = (BufReader::new(child.stderr.take().expect("piped")), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                keeps.lock().expect("not poisoned").push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let mut sidecar = Self { child, log, admin: String::new(), dir };
        let started = sidecar.logged("sidecar started").await;
        sidecar.admin = started["admin_address"].as_str().expect("an address").to_owned();
        sidecar
    }

    pub(crate) fn rotate_token(&self, signature: &str) {
        write_atomically(&self.dir.path().join("token"), &token(signature));
    }

    /// Waits for a message in the log.
    pub(crate) async fn logged(&self, message: &str) -> Value {
        eventually(&format!("logged: {message}"), || self.log_of(message).into_iter().next()).await
    }

    /// The lines with a message so far.
    pub(crate) fn log_of(&self, message: &str) -> Vec<Value> {
        let log = self.log.lock().expect("not poisoned");
        log.iter().filter(|line| line["message"] == message).cloned().collect()
    }

    /// Asks the admin port; returns status and body.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.admin).await.expect("connected");
        stream.write_all(format!("{method} {path} HTTP/1.0\r\n\r\n").as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let status = answer.split(' ').nth(1).expect("a status line").parse().expect("a status");
        let body = answer.split_once("\r\n\r\n").expect("a head").1.to_owned();
        (status, body)
    }

    pub(crate) async fn status(&self) -> Value {
        serde_json::from_str(&self.ask("GET", "/status").await.1).expect("JSON")
    }

    /// The value of a metric, its labels as written.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, metrics) = self.ask("GET", "/metrics").await;
        metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Runs `podlight-sidecar drain` against it.
    pub(crate) async fn drain(&self, flags: &[&str]) -> (Output, Value) {
        let command = std::process::Command::new(BINARY)
            .arg("drain")
            .arg(format!("--admin-listen={}", self.admin))
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        // The fake activator runs on this thread.
        let output = tokio::task::spawn_blocking(|| command.wait_with_output()).await.expect("waited");
        let output = output.expect("output");
        let line = serde_json::from_slice(&output.stdout).expect("one line of JSON");
        (output, line)
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the process has ended", || child.try_wait().expect("a child")).await
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log.lock().expect("not poisoned");
            log.iter().for_each(|line| drop(writeln!(std::io::stderr(), "{line}")));
        }
    }
}

pub(crate) fn write_atomically(path: &std::path::Path, content: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, content).expect("written");
    std::fs::rename(new, path).expect("swapped");
}
