//! The admission webhook: a Deployment of its own, so that injection and the request path fail apart. It answers reviews
//! by [`crate::inject`], keeps the certificates of itself and of the activator, tells the API server its CA, and hands the
//! CA to the namespaces of injected pods.
//!
//! Invariants: it never refuses a pod; it changes nothing at a dry run; replicas race by optimistic concurrency alone.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures::{Stream, StreamExt as _};
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use crate::cluster::{self, ConnectError};
use crate::server::{Limits, Server, Shutdown, Timeouts, bind, with_fallbacks};

mod authority;
mod bundle;
mod call;
mod config;
mod door;
mod handout;
mod keeper;
mod report;
mod review;
mod store;

pub use config::{CertificateFiles, Certificates, WebhookArgs, WebhookConfig};
pub use store::ServerSecret;

use door::Door;
use handout::Handout;
use keeper::{Keeper, Source};
use report::Reports;
use store::Store;

/// Connections of API servers, each of which carries many reviews.
const CONNECTIONS: usize = 1024;

/// Connections of kubelets and scrapers.
const ADMIN_CONNECTIONS: usize = 64;

/// How often histograms are brought up to date.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Why a webhook did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No API server to talk to.
    #[error("cannot reach a cluster")]
    Cluster(#[from] ConnectError),
    /// An address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A part that runs for ever has ended.
    #[error("{0} ended unexpectedly")]
    Part(&'static str),
    /// A second signal came before the end.
    #[error("aborted by a second signal")]
    Aborted,
}

/// Runs a webhook until the first signal, and takes it down; a second one aborts that.
///
/// # Errors
/// [`RunError`].
pub async fn run(
    config: WebhookConfig,
    metrics: PrometheusHandle,
    mut signals: impl Stream<Item = ()> + Unpin,
) -> Result<(), RunError> {
    let client = cluster::connect(config.kubeconfig.as_deref(), config.context.as_deref()).await?;
    let admin_listener = listen("admin", config.admin_listen)?;
    let listener = listen("webhook", config.listen)?;
    let ready = Arc::new(AtomicBool::new(false));
    let (admin_trigger, admin_shutdown) = Shutdown::new();
    let admin = admin(admin_listener, Arc::clone(&ready), metrics.clone());
    let admin = tokio::spawn(admin.serve(admin_shutdown));
    let upkeep = tokio::spawn(upkeep(metrics));

    let handout = Arc::new(Handout::new(client.clone(), &config.injection.ca_config_map));
    let source = match config.certificates {
        Certificates::Made { ca_secret, servers, webhook_configuration: configuration } => {
            let store = Store::new(client.clone(), &config.namespace, &ca_secret, servers);
            Source::Made { store: Box::new(store), configuration }
        }
        Certificates::Files(files) => Source::Files(files),
    };
    let keeper = Keeper { client: client.clone(), source, handout: Arc::clone(&handout) };
    let (tls, held) = tokio::select! {
        first = keeper.first() => first,
        _ = signals.next() => return Ok(()),
    };
    let (reports, waiting) = Reports::new();
    let mut sending = tokio::spawn(report::send(client, waiting));
    let door = Door { settings: config.injection, namespace: config.namespace, handout, reports };
    let (trigger, shutdown) = Shutdown::new();
    let limits = limits(CONNECTIONS, config.shutdown_grace);
    let server = Server { name: "webhook", listener, tls: Some(tls.clone()), router: door::router(door), limits };
    let mut server = tokio::spawn(server.serve(shutdown));
    let mut keeping = tokio::spawn(keeper.run(tls, held));
    ready.store(true, Ordering::Release);
    tracing::info!("ready");

    let failure = tokio::select! {
        _ = signals.next() => None,
        _ = &mut server => Some("the server"),
        _ = &mut keeping => Some("keeping certificates"),
        _ = &mut sending => Some("sending Events"),
    };
    ready.store(false, Ordering::Release);
    tracing::info!(delay = ?config.shutdown_delay, "going down");
    let end = async {
        if failure.is_none() {
            tokio::time::sleep(config.shutdown_delay).await;
        }
        trigger.begin();
        if !server.is_finished()
            && let Err(error) = server.await
        {
            tracing::error!(%error, "the server ended badly");
        }
    };
    tokio::select! {
        () = end => {}
        // The streams of signals never end.
        _ = signals.next() => return Err(RunError::Aborted),
    }
    [&keeping, &sending, &upkeep].into_iter().for_each(tokio::task::JoinHandle::abort);
    admin_trigger.begin();
    if let Err(error) = admin.await {
        tracing::error!(%error, "the admin port ended badly");
    }
    failure.map_or(Ok(()), |part| Err(RunError::Part(part)))
}

fn listen(listener: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    let failed = |source| RunError::Bind { address, source };
    let bound = bind(address).map_err(failed)?;
    tracing::info!(listener, address = %bound.local_addr().map_err(failed)?, "listening");
    Ok(bound)
}

fn limits(connections: usize, grace: Duration) -> Limits {
    Limits { connections, connections_per_source: connections, grace, timeouts: Timeouts::default() }
}

/// Metrics and probes, as plain HTTP. They name nobody and change nothing.
fn admin(listener: TcpListener, ready: Arc<AtomicBool>, metrics: PrometheusHandle) -> Server {
    const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
    let readyz = async move || match ready.load(Ordering::Acquire) {
        true => (StatusCode::OK, "serving\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not serving\n"),
    };
    let render = async move || ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics.render());
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render));
    let limits = limits(ADMIN_CONNECTIONS, Duration::from_secs(1));
    Server { name: "admin", listener, tls: None, router: with_fallbacks(router), limits }
}

async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

/// Answers a review, and asks again about the pod as it is patched, for the fuzz target: whether it would be patched again.
/// Nobody is ever refused.
///
/// # Panics
/// When the patch does not fit its pod.
#[cfg(feature = "fuzzing")]
pub fn fuzz_review(body: &[u8]) -> bool {
    let settings = crate::inject::settings::of_flags(&[]);
    let Ok(outcome) = review::review(body, "podlight-system", &settings) else { return false };
    let response = outcome.answer.response.expect("an answer");
    assert!(response.allowed);
    let Some(patch) = response.patch else { return false };
    let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a patch");
    let mut asked: serde_json::Value = serde_json::from_slice(body).expect("it was read before");
    json_patch::patch(&mut asked["request"]["object"], &patch).expect("the patch fits");
    let again = review::review(asked.to_string().as_bytes(), "podlight-system", &settings).expect("an answer");
    again.answer.response.is_some_and(|response| response.patch.is_some())
}
