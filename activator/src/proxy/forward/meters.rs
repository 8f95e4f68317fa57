//! What is counted of requests on their way. Each worker looks its handles up once, so that counting is an addition.

use std::time::Duration;

use http::StatusCode;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::proxy::fault::Fault;
use crate::proxy::target::{Mode, Way};

/// Why a request was sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// The connection was refused, or did not get as far as HTTP.
    Connect,
    ConnectTimeout,
    Tls,
    /// A kept connection turned out to be closed.
    Stale,
    /// A new connection ended without an answer.
    Reset,
    ResponseTimeout,
    /// The pod was gone before anything was sent.
    Replaced,
}

impl Retry {
    const ALL: [Self; 7] = [
        Self::Connect,
        Self::ConnectTimeout,
        Self::Tls,
        Self::Stale,
        Self::Reset,
        Self::ResponseTimeout,
        Self::Replaced,
    ];

    /// Whether it does not count as one of a request's tries. `guess`: what it was tried on was one.
    pub(super) const fn is_no_try(self, guess: bool) -> bool {
        match self {
            Self::Connect | Self::ConnectTimeout => guess,
            Self::Replaced => true,
            Self::Tls | Self::Stale | Self::Reset | Self::ResponseTimeout => false,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect-timeout",
            Self::Tls => "tls",
            Self::Stale => "stale",
            Self::Reset => "reset",
            Self::ResponseTimeout => "response-timeout",
            Self::Replaced => "replaced",
        }
    }
}

/// Answers by the first digit of their status; those of pods begin with 1 to 9, of which 1 to 5 mean something.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// One worker's handles.
#[derive(Debug)]
pub(in crate::proxy) struct Meters {
    /// By class and way.
    requests: [[Counter; 2]; CLASSES.len()],
    /// By reason and mode.
    retries: [[Counter; Mode::ALL.len()]; Retry::ALL.len()],
    connect_seconds: Histogram,
    /// By way and mode.
    response_seconds: [[Histogram; Mode::ALL.len()]; 2],
    opened: Counter,
    failed: Counter,
    reused: Counter,
    pub(super) tunnels: Gauge,
}

/// In the order of `place`.
const WAYS: [Way; 2] = [Way::Direct, Way::ClusterIp];

const fn place(way: Way) -> usize {
    match way {
        Way::Direct => 0,
        Way::ClusterIp => 1,
    }
}

impl Meters {
    pub(in crate::proxy) fn new() -> Self {
        let requests = |outcome: &'static str| {
            WAYS.map(|way| counter!("podlight_proxy_requests_total", "outcome" => outcome, "way" => way.as_str()))
        };
        let retries = |why: Retry| {
            Mode::ALL
                .map(|mode| counter!("podlight_proxy_retries_total", "reason" => why.label(), "mode" => mode.as_str()))
        };
        let response_seconds = |way: Way| {
            Mode::ALL.map(
                |mode| histogram!("podlight_proxy_response_seconds", "way" => way.as_str(), "mode" => mode.as_str()),
            )
        };
        let connections = |how: &'static str| counter!("podlight_proxy_upstream_connections_total", "how" => how);
        Self {
            requests: CLASSES.map(requests),
            retries: Retry::ALL.map(retries),
            connect_seconds: histogram!("podlight_proxy_connect_seconds"),
            response_seconds: WAYS.map(response_seconds),
            opened: connections("opened"),
            failed: connections("failed"),
            reused: connections("reused"),
            tunnels: gauge!("podlight_proxy_tunnels"),
        }
    }

    /// A pod has answered, so long after the request was sent.
    pub(super) fn answered(&self, status: StatusCode, way: Way, mode: Mode, after: Duration) {
        let class = usize::from(status.as_u16() / 100);
        self.requests[if class < CLASSES.len() { class } else { 0 }][place(way)].increment(1);
        self.response_seconds[place(way)][mode as usize].record(after.as_secs_f64());
    }

    /// A request was answered by the proxy itself.
    #[expect(clippy::unused_self, reason = "such answers are rare, so their counters are looked up")]
    pub(super) fn fault(&self, fault: &Fault) {
        counter!("podlight_proxy_requests_total", "outcome" => fault.label(), "way" => "none").increment(1);
    }

    pub(super) fn retried(&self, why: Retry, mode: Mode) {
        self.retries[why as usize][mode as usize].increment(1);
    }

    /// A connection to a backend was opened or not.
    pub(super) fn opened(&self, after: Duration, well: bool) {
        self.connect_seconds.record(after.as_secs_f64());
        if well { &self.opened } else { &self.failed }.increment(1);
    }

    pub(super) fn reused(&self) {
        self.reused.increment(1);
    }
}
