//! The admin port: /metrics, /healthz, /readyz, /status, and /drain for whoever is in the pod. One request a
//! connection, few connections, each with a deadline: it is small, and nothing on it can be held open.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::announcer::Announcer;
use crate::drain::{Drained, drain};
use crate::probe::{Finding, Probe};
use crate::publisher::{Board, measure};
use crate::readiness::State;

/// Connections at a time; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;

/// Time for a request to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a connection as a whole.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(70);

/// Longest deadline that a drain may ask for, so that its connection lives to tell.
const MAX_DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// What a drain waits when it is not told.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Histograms give up their samples this often.
const UPKEEP_EVERY: Duration = Duration::from_secs(10);

/// From a loopback exchange to the default time-out, and beyond.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Installs the process's metrics.
///
/// # Errors
/// When there are some already.
pub fn install_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), &BUCKETS)?
        .install_recorder()
}

/// What the admin port shows of a sidecar that pushes.
#[derive(Debug, Clone)]
pub struct Watching {
    /// The pod's readiness.
    pub announcer: Announcer,
    /// How the replicas stand.
    pub board: watch::Receiver<Board>,
    /// What the probes found last, in their order.
    pub findings: watch::Receiver<Vec<Finding>>,
    /// The probes.
    pub probes: Arc<[Probe]>,
}

/// What the admin port answers from.
#[derive(Debug)]
pub struct Admin {
    /// The process's metrics.
    pub metrics: PrometheusHandle,
    /// The sidecar's inside; `None` when it is inert.
    pub watching: Option<Watching>,
}

/// The sockets of the admin port.
#[derive(Debug)]
pub struct Listeners {
    tcp: TcpListener,
    unix: Option<UnixListener>,
}

impl Listeners {
    /// Binds both. A socket file that an earlier run left behind is replaced.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(address: SocketAddr, socket: Option<&Path>) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let unix = match socket {
            Some(path) => {
                std::fs::remove_file(path)
                    .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
                Some(UnixListener::bind(path)?)
            }
            None => None,
        };
        Ok(Self { tcp, unix })
    }

    /// The address bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl Admin {
    /// Serves as long as it is polled.
    pub async fn serve(self, listeners: Listeners) {
        let admin = Arc::new(self);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let served = tokio::select! {
                accepted = listeners.tcp.accept() => accepted.map(|(stream, peer)| {
                    let within = peer.ip().to_canonical().is_loopback();
                    tokio::spawn(admin.clone().connection(stream, within, place));
                }),
                accepted = accept_unix(listeners.unix.as_ref()) => accepted.map(|stream| {
                    tokio::spawn(admin.clone().connection(stream, true, place));
                }),
            };
            if let Err(error) = served {
                // Out of file descriptors, most likely: others have to be closed first.
                debug!(%error, "admin connection not accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Keeps histograms bounded, as long as it is polled.
    pub async fn upkeep(metrics: PrometheusHandle) {
        loop {
            sleep(UPKEEP_EVERY).await;
            metrics.run_upkeep();
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        within: bool,
        _place: tokio::sync::OwnedSemaphorePermit,
    ) {
        let service = service_fn(|request| {
            let admin = Arc::clone(&self);
            async move { Ok::<_, Infallible>(admin.respond(&request, within).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .keep_alive(false)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service);
        match timeout(CONNECTION_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "admin connection failed"),
            Err(_) => debug!("admin connection took too long"),
        }
    }

    async fn respond(&self, request: &Request<Incoming>, within: bool) -> Response<Full<Bytes>> {
        match (request.uri().path(), request.method()) {
            ("/drain", &Method::POST) if !within => text(StatusCode::FORBIDDEN, "only from within the pod\n"),
            ("/drain", &Method::POST) => self.drain(request.uri().query()).await,
            ("/metrics", &Method::GET) => self.metrics(),
            ("/healthz", &Method::GET) => text(StatusCode::OK, "ok\n"),
            ("/readyz", &Method::GET) => self.readyz(),
            ("/status", &Method::GET) => json(&self.status()),
            ("/drain", _) => not_allowed("POST"),
            ("/metrics" | "/healthz" | "/readyz" | "/status", _) => not_allowed("GET"),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics /healthz /readyz /status /drain\n"),
        }
    }

    async fn drain(&self, query: Option<&str>) -> Response<Full<Bytes>> {
        let asked = query.and_then(|query| query.strip_prefix("deadline_ms=")).map(str::parse);
        let deadline = match asked {
            None => DRAIN_DEADLINE,
            Some(Ok(ms)) => Duration::from_millis(ms).min(MAX_DRAIN_DEADLINE),
            Some(Err(_)) => return text(StatusCode::BAD_REQUEST, "deadline_ms must be a number\n"),
        };
        let drained = match &self.watching {
            Some(watching) => drain(&watching.announcer, watching.board.clone(), deadline).await,
            None => Drained::inert(),
        };
        json(&json!(drained))
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        if let Some(watching) = &self.watching {
            measure(&watching.board.borrow());
        }
        text(StatusCode::OK, self.metrics.render())
    }

    /// Ready once every probe has run: from then on what the sidecar says is known, not assumed.
    fn readyz(&self) -> Response<Full<Bytes>> {
        let waiting = self
            .watching
            .as_ref()
            .is_some_and(|watching| watching.findings.borrow().iter().any(|finding| finding.passed.is_none()));
        if waiting {
            text(StatusCode::SERVICE_UNAVAILABLE, "not every probe has run yet\n")
        } else {
            text(StatusCode::OK, "ok\n")
        }
    }

    fn status(&self) -> serde_json::Value {
        let Some(watching) = &self.watching else { return json!({ "push": "off" }) };
        let readiness = watching.announcer.current();
        let statement = readiness.statement();
        let findings = watching.findings.borrow();
        let probes = watching.probes.iter().zip(findings.iter()).enumerate();
        let probes = probes.map(|(i, (probe, finding))| {
            json!({ "kind": probe.kind(), "port": probe.port, "passing": readiness.passing(i), "last": finding })
        });
        let board = watching.board.borrow();
        let replicas: BTreeMap<_, _> = board.iter().map(|(url, status)| (url.as_str(), status)).collect();
        let state = match readiness.state() {
            State::NotReady => "not-ready",
            State::Ready => "ready",
            State::Draining => "draining",
        };
        json!({
            "push": "on",
            "state": state,
            "since_ms": readiness.since_ms(),
            "boot": statement.order.boot,
            "seq": statement.order.seq,
            "probes": probes.collect::<Vec<_>>(),
            "replicas": replicas,
        })
    }
}

async fn accept_unix(listener: Option<&UnixListener>) -> std::io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn json(body: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/json", format!("{body}\n"))
}

fn not_allowed(allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{allowed} only\n"));
    response.headers_mut().insert(ALLOW, http::HeaderValue::from_static(allowed));
    response
}

fn respond(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(media_type));
    response
}
