//! The demo's app, a process of its own: accepts connections after a while, answers `/ready` as it is told to, and tells when it
//! began to accept.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::control_plane::process::Process;
use crate::http_client;

/// Longest request that is read, and how long it may take.
const REQUEST_BYTES: usize = 16 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the app: `podlight-demo app <port> <milliseconds until it accepts>`. Returns only when it cannot.
///
/// # Errors
/// When an argument is missing, or the port is taken.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let port: u16 = arguments.next().context("which port?")?.parse()?;
    let starts_in: u64 = arguments.next().context("after how many milliseconds?")?.parse()?;
    // Work that a real app has to do before it can serve.
    std::thread::sleep(Duration::from_millis(starts_in));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let accepting_since = now_us();
    let mut ready = true;
    for stream in listener.incoming() {
        // A prober that breaks off is not this app's failure.
        let Ok(stream) = stream else { continue };
        drop(answer(stream, accepting_since, &mut ready));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, accepting_since: u64, ready: &mut bool) -> Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES {
        let mut chunk = [0; 1024];
        let read = stream.read(&mut chunk)?;
        ensure!(read > 0, "the request ended early");
        request.extend_from_slice(&chunk[..read]);
    }
    let (status, body) = match std::str::from_utf8(&request)?.split(' ').nth(1) {
        Some("/ready") if *ready => ("200 OK", "ready\n".to_owned()),
        Some("/ready") => ("503 Service Unavailable", "not ready\n".to_owned()),
        Some("/fail") => {
            *ready = false;
            ("200 OK", format!("{}\n", now_us()))
        }
        Some("/recover") => {
            *ready = true;
            ("200 OK", format!("{}\n", now_us()))
        }
        Some("/accepting-since") => ("200 OK", format!("{accepting_since}\n")),
        Some("/") => ("200 OK", format!("{}\n", now_us())),
        _ => ("404 Not Found", "/, /ready, /fail, /recover, /accepting-since\n".to_owned()),
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")?;
    Ok(())
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A running app; killed on drop.
pub(super) struct AppProcess {
    process: Process,
    port: u16,
}

impl AppProcess {
    /// Starts this program again as the app, which will accept connections on the port after `starts_in`.
    pub(super) fn start(folder: &Path, port: u16, starts_in: Duration) -> Result<Self> {
        let log = folder.join(format!("app-{port}.log"));
        let process = Process::start(&std::env::current_exe()?, &log, |command| {
            command.args(["app", &port.to_string(), &starts_in.as_millis().to_string()]);
        })?;
        Ok(Self { process, port })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Whether it passes its probe.
    pub(super) async fn is_ready(&self) -> bool {
        self.ask("accepting-since").await.is_ok()
    }

    /// When it began to accept, in microseconds since the epoch.
    pub(super) async fn accepting_since_us(&self) -> Result<u64> {
        self.ask("accepting-since").await
    }

    /// Has it pass or fail its probe; returns from when on, in microseconds since the epoch.
    pub(super) async fn set_ready(&self, ready: bool) -> Result<u64> {
        self.ask(if ready { "recover" } else { "fail" }).await
    }

    async fn ask(&self, path: &str) -> Result<u64> {
        let response = http_client()?.get(format!("http://127.0.0.1:{}/{path}", self.port)).send().await?;
        ensure!(response.status() == 200, "the app answers {}", response.status());
        Ok(response.text().await?.trim().parse()?)
    }
}
