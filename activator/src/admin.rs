//! The admin port: metrics, probes and the status page, on a thread and runtime of their own, so that a busy data path
//! cannot make a healthy process look dead. Plain HTTP without authentication, and nothing can be changed by it. Metrics
//! and probes tell sizes and rates, no names; the status page tells those of pods and Services, and may be left out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

mod page;

pub use page::{PageConfig, Requests};

use crate::cluster::Health;
use crate::server::{Limits, Server, Shutdown, Timeouts, with_fallbacks};

/// How often histograms are brought up to date, so that they do not pile up samples while nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Connections of kubelets and scrapers: a handful each, and room for people.
const CONNECTIONS: usize = 256;

/// How long an answer under way may take once the process ends.
const GRACE: Duration = Duration::from_secs(1);

/// The media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What readiness depends on. Clones share it.
#[derive(Debug, Clone)]
pub struct Readiness {
    health: Health,
    latches: Arc<Latches>,
}

#[derive(Debug, Default)]
struct Latches {
    warm: AtomicBool,
    stopping: AtomicBool,
}

impl Readiness {
    /// Not ready yet.
    pub fn new(health: Health) -> Self {
        Self { health, latches: Arc::default() }
    }

    /// Tokens can be judged from now on.
    pub fn warmed_up(&self) {
        self.latches.warm.store(true, Ordering::Release);
    }

    /// The end has begun: not ready from now on.
    pub fn stopping(&self) {
        self.latches.stopping.store(true, Ordering::Release);
    }

    /// Whether traffic should come, and why. Losing the API server is told but takes nothing away: what is known of
    /// the cluster is kept and still served.
    pub fn report(&self) -> (bool, String) {
        let (synced, reachable) = (self.health.synced(), self.health.reachable());
        let warm = self.latches.warm.load(Ordering::Acquire);
        let stopping = self.latches.stopping.load(Ordering::Acquire);
        let cluster = if synced { "listed" } else { "not listed yet" };
        let keys = if warm { "ready" } else { "not ready yet" };
        let api = if reachable { "reachable" } else { "unreachable" };
        let process = if stopping { "stopping" } else { "serving" };
        let ready = synced && warm && !stopping;
        (ready, format!("cluster: {cluster}\ntokens: {keys}\napi: {api}\nprocess: {process}\n"))
    }
}

/// The admin port's thread.
#[derive(Debug)]
pub struct Admin {
    thread: JoinHandle<io::Result<()>>,
}

impl Admin {
    /// Serves on a listener that is bound already, until the end begins. There is a status page when `page` says what it
    /// shows.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(
        listener: TcpListener,
        readiness: Readiness,
        metrics: PrometheusHandle,
        page: Option<PageConfig>,
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        // A listener belongs to the runtime it was made in.
        let listener = listener.into_std()?;
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve(listener, readiness, metrics, page, shutdown))
        };
        Ok(Self { thread: std::thread::Builder::new().name("admin".to_owned()).spawn(run)? })
    }

    /// Waits for the thread to end.
    ///
    /// # Errors
    /// Why it could not serve.
    pub fn join(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the admin thread panicked")))
    }
}

async fn serve(
    listener: std::net::TcpListener,
    readiness: Readiness,
    metrics: PrometheusHandle,
    page: Option<PageConfig>,
    shutdown: Shutdown,
) -> io::Result<()> {
    let limits = Limits {
        connections: CONNECTIONS,
        connections_per_source: CONNECTIONS,
        grace: GRACE,
        timeouts: Timeouts::default(),
    };
    let upkeep = {
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP_EVERY);
            loop {
                ticks.tick().await;
                metrics.run_upkeep();
            }
        })
    };
    let router = router(readiness, metrics, page, &shutdown);
    let listener = TcpListener::from_std(listener)?;
    Server { name: "admin", listener, tls: None, router, limits }.serve(shutdown).await;
    upkeep.abort();
    Ok(())
}

fn router(readiness: Readiness, metrics: PrometheusHandle, page: Option<PageConfig>, shutdown: &Shutdown) -> Router {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(readiness.clone()))
        .route("/metrics", get(render).with_state(metrics.clone()));
    with_fallbacks(match page {
        Some(page) => router.merge(page::router(page, readiness, metrics, shutdown.clone())),
        None => router,
    })
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    let (ready, report) = readiness.report();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, report)
}

async fn render(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics.render())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt as _;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tower::ServiceExt as _;

    use super::*;
    use crate::cluster::Kind;

    async fn get(readiness: &Readiness, path: &str) -> (StatusCode, String) {
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let (_trigger, shutdown) = Shutdown::new();
        let answer = router(readiness.clone(), metrics, None, &shutdown).oneshot(request).await.expect("infallible");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn ready_once_listed_and_warm_and_until_the_end_begins() {
        let health = Health::unknown();
        let readiness = Readiness::new(health.clone());
        assert_eq!(get(&readiness, "/healthz").await.0, StatusCode::OK);
        let (status, report) = get(&readiness, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(report.contains("cluster: not listed yet") && report.contains("tokens: not ready yet"), "{report}");

        [Kind::Pods, Kind::Services, Kind::Slices].into_iter().for_each(|kind| health.listed(kind));
        assert_eq!(get(&readiness, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        readiness.warmed_up();
        let (status, report) = get(&readiness, "/readyz").await;
        assert_eq!(status, StatusCode::OK, "an API server that does not answer takes nothing away");
        assert!(report.contains("api: unreachable"), "{report}");

        readiness.stopping();
        assert_eq!(get(&readiness, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&readiness, "/healthz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_page_can_be_left_out() {
        let readiness = Readiness::new(Health::local());
        for path in ["/", "/status", "/status/xdp", "/status/events", "/status/page.js", "/status/page.css"] {
            assert_eq!(get(&readiness, path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[tokio::test]
    async fn serves_on_its_own_thread_until_told() {
        let listener = crate::server::bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
        let address = listener.local_addr().expect("bound");
        let (trigger, shutdown) = Shutdown::new();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let admin = Admin::start(listener, Readiness::new(Health::local()), metrics, None, shutdown).expect("starts");
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("builds");
        let answer = client.get(format!("http://{address}/metrics")).send().await.expect("an answer");
        assert_eq!(answer.headers()[header::CONTENT_TYPE], METRICS_TYPE);
        trigger.begin();
        drop(client);
        tokio::task::spawn_blocking(|| admin.join()).await.expect("joins").expect("served");
    }
}
