//! Is the app ready? Each configured probe asks over and over: fast while the app starts, slowly while it is
//! well. A probe succeeds exactly when the kubelet's probe of the same kind would.

mod grpc;
mod http;
mod pace;
mod tcp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use metrics::{counter, histogram};
use percent_encoding::percent_decode_str;
use reqwest::Url;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::announcer::{Announcer, wall_ms};
use crate::duration;
use crate::readiness::Thresholds;
use pace::Pace;

/// Time between probes of an app that is well: the shortest that the kubelet knows.
const PERIOD: Duration = Duration::from_secs(1);

/// Time for one probe, as the kubelet has it.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Failures in a row that make a passing probe fail, as the kubelet has it.
const FAILURES: NonZeroU32 = NonZeroU32::new(3).expect("not zero");

/// One probe as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub target: Target,
    /// Where; `None` is the pod's own address, which is not known while the text is read.
    pub host: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Time from one probe to the next while it passes.
    pub period: Duration,
    /// Time for an answer.
    pub timeout: Duration,
    /// How many results in a row count.
    pub thresholds: Thresholds,
    /// Whether it has passed for good once it has passed, as a startupProbe has.
    pub once: bool,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A GET answered with 2xx or 3xx.
    Http {
        /// Over TLS, the certificate unchecked.
        tls: bool,
        /// Path and query.
        path: String,
        /// Added to the request.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// A connection.
    Tcp,
    /// `grpc.health.v1.Health/Check` answered with SERVING.
    Grpc {
        /// The service asked about, possibly empty.
        service: String,
    },
}

/// Why a text is no probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Not `<http|https|tcp|grpc>://[host]:port…`.
    #[error("must be <http|https|tcp|grpc>://[address]:<port>[/path], the address an IP address or localhost")]
    Target,
    /// An option that there is not, or a value that it does not take.
    #[error(
        "{0}: the options are period, timeout (durations above 0), failure, success (from 1), once, header (name:value)"
    )]
    Option(String),
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no answer in time")]
    Timeout,
    #[error("cannot connect or speak")]
    Io(#[from] std::io::Error),
    #[error("the HTTP exchange failed")]
    Exchange(#[from] hyper::Error),
    #[error("the request cannot be made")]
    Request(#[from] ::http::Error),
    #[error("answered {0}")]
    Status(u16),
    #[error("redirected more than ten times")]
    Redirects,
    #[error("not serving: {0}")]
    NotServing(String),
}

impl FromStr for Probe {
    type Err = ProbeError;

    /// Reads `scheme://[address]:port[/path][?options]`. The options `period`, `timeout`, `failure`, `success`, `once`
    /// and `header` are the probe's; of an http path, whatever else is in the query is the app's. A header is
    /// percent-decoded, so that it may hold a space or an `&`.
    fn from_str(text: &str) -> Result<Self, ProbeError> {
        let (scheme, rest) = text.split_once("://").ok_or(ProbeError::Target)?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (host, port) = authority.rsplit_once(':').ok_or(ProbeError::Target)?;
        let host = match host.trim_start_matches('[').trim_end_matches(']') {
            "" => None,
            "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
            address => Some(address.parse().map_err(|_| ProbeError::Target)?),
        };
        let port = port.parse().ok().filter(|&port| port != 0).ok_or(ProbeError::Target)?;
        let target = match scheme {
            "http" | "https" => Target::Http { tls: scheme == "https", path: path.into(), headers: Vec::new() },
            "tcp" if path.is_empty() => Target::Tcp,
            "grpc" => Target::Grpc { service: path.trim_start_matches('/').into() },
            _ => return Err(ProbeError::Target),
        };
        let thresholds = Thresholds { success: NonZeroU32::MIN, failure: FAILURES };
        let mut probe = Self { target, host, port, period: PERIOD, timeout: TIMEOUT, thresholds, once: false };
        probe.take_options(query)?;
        Ok(probe)
    }
}

impl Probe {
    fn take_options(&mut self, query: &str) -> Result<(), ProbeError> {
        let mut others = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let span = || duration::parse(value).ok().filter(|duration| !duration.is_zero());
            let taken = match (name, &mut self.target) {
                ("period", _) => span().map(|period| self.period = period),
                ("timeout", _) => span().map(|timeout| self.timeout = timeout),
                ("failure", _) => value.parse().ok().map(|n| self.thresholds.failure = n),
                ("success", _) => value.parse().ok().map(|n| self.thresholds.success = n),
                ("once", _) => value.is_empty().then(|| self.once = true),
                ("header", Target::Http { headers, .. }) => header(value).map(|header| headers.push(header)),
                (_, Target::Http { .. }) => {
                    others.push(option);
                    Some(())
                }
                (_, Target::Tcp | Target::Grpc { .. }) => None,
            };
            taken.ok_or_else(|| ProbeError::Option(option.to_owned()))?;
        }
        if let Target::Http { path, .. } = &mut self.target {
            if path.is_empty() {
                path.push('/');
            }
            if !others.is_empty() {
                path.push('?');
                path.push_str(&others.join("&"));
            }
            if path.parse::<::http::uri::PathAndQuery>().is_err() {
                return Err(ProbeError::Target);
            }
        }
        Ok(())
    }

    /// The kind, for metrics.
    pub const fn kind(&self) -> &'static str {
        match &self.target {
            Target::Http { tls: false, .. } => "http",
            Target::Http { tls: true, .. } => "https",
            Target::Tcp => "tcp",
            Target::Grpc { .. } => "grpc",
        }
    }

    /// Asks once. `pod` is the address asked where none is configured.
    pub(crate) async fn ask(&self, pod: IpAddr) -> Result<(), Failure> {
        let to = SocketAddr::new(self.host.unwrap_or(pod), self.port);
        let asked = async {
            match &self.target {
                Target::Http { tls, path, headers } => {
                    let scheme = if *tls { "https" } else { "http" };
                    let url = Url::parse(&format!("{scheme}://{to}{path}")).map_err(std::io::Error::other)?;
                    http::ask(url, headers).await
                }
                Target::Tcp => tcp::ask(to).await,
                Target::Grpc { service } => grpc::ask(to, service).await,
            }
        };
        timeout(self.timeout, asked).await.unwrap_or(Err(Failure::Timeout))
    }
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    let (name, value) = text.split_once(':')?;
    Some((name.parse().ok()?, value.trim().parse().ok()?))
}

/// What a probe found last.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Finding {
    /// Whether it passed; `None` before it has run.
    pub passed: Option<bool>,
    /// Why it did not.
    pub failure: Option<String>,
    /// When, in wall milliseconds.
    pub at_ms: u64,
}

/// Asks over and over and reports to `announcer` and `findings`, as long as it is polled.
pub async fn run(
    index: usize,
    probe: &Probe,
    pod: IpAddr,
    announcer: &Announcer,
    findings: &watch::Sender<Vec<Finding>>,
) {
    let mut pace = Pace::new(probe.period);
    let mut failing = None;
    loop {
        let begun = Instant::now();
        let result = probe.ask(pod).await;
        let passed = result.is_ok();
        let outcome = if passed { "passed" } else { "failed" };
        counter!("podlight_sidecar_probes_total", "probe" => probe.kind(), "result" => outcome).increment(1);
        histogram!("podlight_sidecar_probe_duration_seconds", "probe" => probe.kind()).record(begun.elapsed());
        let failure = result.err().map(|failure| crate::chain(&failure));
        if failing != failure {
            debug!(probe = index, kind = probe.kind(), failure, "probe result changed");
            failing.clone_from(&failure);
        }
        findings.send_if_modified(|findings| {
            if let Some(finding) = findings.get_mut(index) {
                *finding = Finding { passed: Some(passed), failure, at_ms: wall_ms() };
            }
            false
        });
        let passing = announcer.probed(index, passed);
        if probe.once && passing {
            return std::future::pending().await;
        }
        sleep_until(begun + pace.after(passed, passing)).await;
    }
}

/// What the grpc probe makes of a server that sends these bytes, for the fuzz target: whether it counts as serving.
/// Whatever they are, it comes to an end.
///
/// # Panics
/// When it does not within a minute.
#[cfg(feature = "fuzzing")]
pub fn fuzz_grpc(answer: &[u8]) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let asked = async { timeout(Duration::from_secs(60), grpc::ask_bytes(answer)).await };
    runtime.block_on(asked).expect("a probe ends when its peer has")
}

#[cfg(test)]
mod tests;
