//! `podlight-sidecar drain`: asks the running sidecar to drain, tells what came of it in one line, and holds.
//! It succeeds whatever happened: a preStop hook that fails would only end the container sooner.

use std::io::Write;
use std::time::Duration;

use http::Method;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::Drained;
use crate::config::DrainConfig;
use crate::local::{self, LocalError};

/// How much longer than the deadline the running sidecar's answer is waited for.
const MARGIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Ask(#[from] LocalError),
    #[error("the sidecar does not answer in time")]
    Timeout,
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
    let path = format!("/drain?deadline_ms={}", config.deadline.as_millis());
    let answer = local::request(&config.running, Method::POST, &path).await?;
    serde_json::from_slice(&answer).map_err(|_| RequestError::NoSidecar)
}
