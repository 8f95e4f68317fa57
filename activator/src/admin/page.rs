//! The status page: `/` with its script and its style, what it shows as JSON at `/status`, and the same again and again
//! as server-sent events at `/status/events`. For people: it tells the names of Services, hosts and pods, and the
//! addresses of these, to whoever reaches the port, and is therefore a thing that can be turned off. It tells nothing
//! of requests but how many there are, no token and no annotation but one that is wrong, and changes nothing.
//!
//! Invariant: however many ask, a picture is taken once in [`EVERY`] at most, and all share it; a reader keeps the
//! latest and at most one before it.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use metrics::counter;
use metrics_exporter_prometheus::PrometheusHandle;
use podlight_proto::ErrorCode;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

mod lag;
mod picture;

pub use picture::Requests;

use super::Readiness;
use crate::server::paced::{Cut, Pieces, answer};
use crate::server::{Shutdown, problem};
use crate::table::owner::Clock;
use crate::table::snapshot::Groups;
use crate::xdp::status::Status;
use picture::Sources;

/// How often there is something new to see at most: people read no faster.
const EVERY: Duration = Duration::from_millis(500);

/// How often a reader hears that the connection lives, when there is nothing else to tell.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Most readers at once: each may hold two pictures, of some 5 MB when all bounds are reached.
const READERS: usize = 16;

/// What a reader who was turned away because of numbers waits, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// Nothing but this page's own script, style and events; inside no other page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = include_str!("page/page.html");
const SCRIPT: &str = include_str!("page/page.js");
const STYLE: &str = include_str!("page/page.css");

/// What the page shows.
#[derive(Debug)]
pub struct PageConfig {
    /// Name of this replica.
    pub replica: String,
    /// Every Service and its endpoints.
    pub groups: Groups,
    /// The request path; none when there is none.
    pub requests: Option<Requests>,
    /// The readiness map; none when there is none.
    pub xdp: Option<Arc<Status>>,
    /// For ages.
    pub clock: Clock,
}

#[derive(Debug)]
struct Page {
    sources: Sources,
    clock: Clock,
    shutdown: Shutdown,
    readers: Arc<Semaphore>,
    latest: Mutex<Option<Taken>>,
}

/// A picture, as JSON.
#[derive(Debug, Clone)]
struct Taken {
    json: Bytes,
    /// Another for each that differs from the one before.
    number: u64,
    /// When it was last seen to be so.
    at: Instant,
    /// The same on the wall clock, in milliseconds since the epoch.
    at_ms: u64,
}

/// The routes.
pub(super) fn router(
    config: PageConfig,
    readiness: Readiness,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
) -> Router {
    let PageConfig { replica, groups, requests, xdp, clock } = config;
    let sources = Sources { replica, readiness, groups, requests, xdp, metrics };
    let readers = Arc::new(Semaphore::new(READERS));
    let page = Arc::new(Page { sources, clock, shutdown, readers, latest: Mutex::new(None) });
    Router::new()
        .route("/", get(async || file("text/html; charset=utf-8", HTML)))
        .route("/status/page.js", get(async || file("text/javascript; charset=utf-8", SCRIPT)))
        .route("/status/page.css", get(async || file("text/css; charset=utf-8", STYLE)))
        .route("/status", get(status))
        .route("/status/events", get(events))
        .route("/status/xdp", get(map))
        .with_state(page)
        .layer(axum::middleware::map_response(async |answer: Response| guarded(answer)))
}

fn file(media_type: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-cache")], text)
}

/// Adds what browsers are to keep to.
fn guarded(mut answer: Response) -> Response {
    let headers: [(HeaderName, &'static str); 3] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    answer.headers_mut().extend(headers.map(|(name, value)| (name, HeaderValue::from_static(value))));
    answer
}

async fn status(State(page): State<Arc<Page>>) -> Response {
    page.tell("application/json", Telling::Once)
}

async fn events(State(page): State<Arc<Page>>) -> Response {
    page.tell("text/event-stream", Telling::Changes)
}

/// Which answers of the readiness map to show.
#[derive(Debug, Deserialize)]
struct Chosen {
    #[serde(default)]
    beginning: String,
    #[serde(default)]
    limit: usize,
}

async fn map(State(page): State<Arc<Page>>, Query(chosen): Query<Chosen>) -> Response {
    let Some(xdp) = &page.sources.xdp else {
        return problem(ErrorCode::NotFound, "there is no readiness map: see --xdp-listen");
    };
    let contents = xdp.contents(&chosen.beginning, chosen.limit);
    ([(header::CACHE_CONTROL, "no-store")], Json(contents)).into_response()
}

/// What a reader wants to be told.
#[derive(Debug, Clone, Copy)]
enum Telling {
    /// How it is now.
    Once,
    /// Events: how it is now, and each time that it has changed.
    Changes,
}

impl Page {
    /// Answers a reader, unless there are too many of them.
    fn tell(self: Arc<Self>, media_type: &'static str, telling: Telling) -> Response {
        let Ok(permit) = Arc::clone(&self.readers).try_acquire_owned() else {
            let retry = [(header::RETRY_AFTER, RETRY_AFTER)];
            return (StatusCode::SERVICE_UNAVAILABLE, retry, "too many readers look at the status\n").into_response();
        };
        let (pieces, body) = answer(permit);
        tokio::spawn(Reader { page: self, pieces }.run(telling));
        ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")], body).into_response()
    }

    /// How it is now, give or take [`EVERY`].
    fn look(&self) -> Taken {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, at_ms) = (Instant::now(), self.clock.now().wall_ms);
        let before = match &*latest {
            Some(taken) if at.duration_since(taken.at) < EVERY => return taken.clone(),
            Some(taken) => Some((taken.number, &taken.json)),
            None => None,
        };
        // Names and numbers only: they can be written as JSON.
        let json = serde_json::to_vec(&self.sources.picture()).unwrap_or_default();
        let (number, json) = match before {
            Some((number, before)) if *before == json => (number, before.clone()),
            Some((number, _)) => (number + 1, json.into()),
            None => (0, json.into()),
        };
        let taken = Taken { json, number, at, at_ms };
        *latest = Some(taken.clone());
        taken
    }
}

struct Reader {
    page: Arc<Page>,
    pieces: Pieces,
}

impl Reader {
    async fn run(mut self, telling: Telling) {
        let shutdown = self.page.shutdown.clone();
        let ended = tokio::select! {
            ended = self.told(telling) => ended,
            () = shutdown.begun() => Ok(()),
        };
        if let Err(cut @ (Cut::Stalled | Cut::Lagged)) = ended {
            counter!("podlight_status_readers_cut_total", "reason" => cut.label()).increment(1);
            tracing::info!(reason = cut.label(), "a reader of the status was cut off");
        }
    }

    async fn told(&mut self, telling: Telling) -> Result<(), Cut> {
        match telling {
            Telling::Once => {
                let taken = self.page.look();
                self.picture("", &taken, "\n").await
            }
            Telling::Changes => self.changes().await,
        }
    }

    async fn changes(&mut self) -> Result<(), Cut> {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = None;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.pieces.left() => return Err(Cut::Left),
                _ = ticks.tick() => {}
            }
            let taken = self.page.look();
            if told != Some(taken.number) {
                self.picture("data: ", &taken, "\n\n").await?;
                told = Some(taken.number);
            } else if heard.elapsed() >= KEEP_ALIVE_EVERY {
                self.pieces.buffer().extend_from_slice(b":\n\n");
                self.pieces.flush().await?;
            } else {
                continue;
            }
            heard = Instant::now();
        }
    }

    /// Tells one picture and when it was so. Compact JSON has no line breaks.
    async fn picture(&mut self, before: &str, taken: &Taken, after: &str) -> Result<(), Cut> {
        // Writing to a Vec cannot fail.
        let _ = write!(self.pieces.buffer(), "{before}{{\"at_ms\":{},\"state\":", taken.at_ms);
        self.pieces.share(&taken.json).await?;
        let _ = write!(self.pieces.buffer(), "}}{after}");
        self.pieces.flush().await
    }
}

#[cfg(test)]
mod tests;
