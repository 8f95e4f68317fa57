//! `podlight-sidecar drain`: asks the running sidecar to drain, tells what came of it in one line, and holds.
//! It succeeds whatever happened: a preStop hook that fails would only end the container sooner.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::Drained;
use crate::config::DrainConfig;

/// How much longer than the deadline the running sidecar's answer is waited for.
const MARGIN: Duration = Duration::from_secs(1);

/// Longest answer that is read: every replica has a line.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("no sidecar answers")]
    Connect(#[source] std::io::Error),
    #[error("the sidecar does not answer in time")]
    Timeout,
    #[error("the exchange with the sidecar failed")]
    Exchange(#[from] hyper::Error),
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error("the sidecar answered {0}")]
    Status(http::StatusCode),
    #[error("what answers is no sidecar")]
    NoSidecar,
}

#[derive(Serialize)]
struct Line {
    complete: bool,
    hold_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    drained: Option<Drained>,
}

/// Drains, writes one line of JSON to `out`, holds.
pub async fn run(config: &DrainConfig, mut out: impl Write) {
    let drained = timeout(config.deadline + MARGIN, ask(config)).await.unwrap_or(Err(RequestError::Timeout));
    let complete = drained.as_ref().is_ok_and(Drained::complete);
    let error = drained.as_ref().err().map(|error| crate::chain(error));
    let line = Line { complete, hold_ms: config.hold.as_millis(), error, drained: drained.ok() };
    // Nobody may be reading, which is no reason to fail.
    let _ = writeln!(out, "{}", serde_json::to_string(&line).unwrap_or_default());
    let _ = out.flush();
    sleep(config.hold).await;
}

async fn ask(config: &DrainConfig) -> Result<Drained, RequestError> {
    if let Some(path) = &config.admin_socket {
        return exchange(UnixStream::connect(path).await.map_err(RequestError::Connect)?, config.deadline).await;
    }
    let mut refused = None;
    for ip in loopback(config.admin.ip()) {
        match TcpStream::connect(SocketAddr::new(ip, config.admin.port())).await {
            Ok(stream) => return exchange(stream, config.deadline).await,
            Err(error) => refused = Some(error),
        }
    }
    Err(RequestError::Connect(refused.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())))
}

/// Where a listener on this address is reached from within the pod.
fn loopback(listens_on: IpAddr) -> Vec<IpAddr> {
    match listens_on {
        ip if !ip.is_unspecified() => vec![ip],
        _ => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin, deadline: Duration) -> Result<Drained, RequestError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(format!("/drain?deadline_ms={}", deadline.as_millis()))
        .header(HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let asked = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        if !head.status.is_success() {
            return Err(RequestError::Status(head.status));
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|_| RequestError::NoSidecar)?;
        serde_json::from_slice(&body.to_bytes()).map_err(|_| RequestError::NoSidecar)
    };
    let mut asked = pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // What the connection had received is still to be read.
        _ = connection => asked.await,
    }
}
