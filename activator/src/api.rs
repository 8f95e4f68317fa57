//! The query API: `GET /v1/targets`, `/v1/targets/{namespace}/{service}` and `/v1/watch`. Reads snapshots and the
//! log of changes, never the table; tells only callers whom the API server lets; keeps nothing per reader that grows.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, header};
use metrics::counter;
use podlight_proto::ErrorCode;
use tokio::sync::Semaphore;

use crate::cluster::{Api, Health};
use crate::ingest::Authenticator;
use crate::server::{Shutdown, problem};
use crate::table::owner::Clock;
use crate::table::snapshot::{Feed, Groups};

mod access;
mod query;
mod view;
mod watch;

use access::{Access, Judge, undecided};
use view::Position;

/// Most readers of the watch: routers and people, not pods.
const READERS: usize = 256;

/// Most answers with lists that are written at once: each may hold a picture of the whole table.
const QUERIES: usize = 64;

/// When a reader who was turned away because of numbers is to come back.
const BUSY_RETRY: Duration = Duration::from_secs(5);

/// What the query API reads from.
#[derive(Debug)]
pub struct ApiConfig {
    /// Name of this replica.
    pub replica: String,
    /// Decides on tokens.
    pub authenticator: Arc<Authenticator>,
    /// Decides on access.
    pub api: Api,
    /// Whether there is a cluster to tell of.
    pub health: Health,
    /// The table.
    pub groups: Groups,
    /// Its changes.
    pub feed: Feed,
    /// For ages.
    pub clock: Clock,
    /// Ends the watches.
    pub shutdown: Shutdown,
}

/// What every handler needs.
#[derive(Debug)]
struct ApiState {
    replica: Arc<str>,
    /// A name of this process: positions in its log mean nothing in another's.
    instance: Arc<str>,
    access: Access,
    health: Health,
    groups: Groups,
    feed: Feed,
    clock: Clock,
    shutdown: Shutdown,
    readers: Arc<Semaphore>,
    queries: Arc<Semaphore>,
}

/// The routes. `instance` must be another for each process.
pub fn router(config: ApiConfig, instance: &str) -> Router {
    let ApiConfig { replica, authenticator, api, health, groups, feed, clock, shutdown } = config;
    let access = Access::new(Judge::Cluster(authenticator, api));
    routes(ApiState {
        replica: replica.into(),
        instance: instance.into(),
        access,
        health,
        groups,
        feed,
        clock,
        shutdown,
        readers: Arc::new(Semaphore::new(READERS)),
        queries: Arc::new(Semaphore::new(QUERIES)),
    })
}

fn routes(state: ApiState) -> Router {
    Router::new()
        .route("/v1/targets", get(query::all))
        .route("/v1/targets/{namespace}/{service}", get(query::one))
        .route("/v1/watch", get(watch::watch))
        .with_state(Arc::new(state))
}

impl ApiState {
    /// Lets a reader pass who may read, once there is something to read.
    async fn admit(&self, headers: &HeaderMap, path: &str) -> Result<(), Refused> {
        self.access.admit(headers, path).await?;
        if self.health.synced() { Ok(()) } else { Err(undecided("the cluster has not been listed yet")) }
    }

    fn position(&self, change: u64) -> Position<'_> {
        Position { instance: &self.instance, change }
    }

    fn now_ms(&self) -> u64 {
        self.clock.now().wall_ms
    }
}

/// Why a reader is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{description}")]
struct Refused {
    err: ErrorCode,
    description: String,
    retry_after: Option<Duration>,
}

impl Refused {
    fn new(err: ErrorCode, description: impl Into<String>) -> Self {
        Self { err, description: description.into(), retry_after: None }
    }

    fn after(self, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..self }
    }

    fn busy(bound: &'static str, description: &str) -> Self {
        counter!("podlight_shed_total", "bound" => bound).increment(1);
        Self::new(ErrorCode::RateLimited, description).after(BUSY_RETRY)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut answer = problem(self.err, self.description);
        if let Some(after) = self.retry_after {
            answer.headers_mut().insert(header::RETRY_AFTER, after.as_secs().into());
        }
        if self.err == ErrorCode::AuthenticationFailed {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        answer
    }
}

/// Reads the query string and the headers of a request for the watch, for the fuzz target.
#[cfg(feature = "fuzzing")]
pub fn fuzz_query(query: &[u8], last_event_id: &[u8], authorization: &[u8]) {
    let uri = [b"/v1/watch?", query].concat();
    let Ok(uri) = http::Uri::try_from(uri) else { return };
    let (id, token) = (HeaderValue::from_bytes(last_event_id), HeaderValue::from_bytes(authorization));
    let named = [(header::HeaderName::from_static("last-event-id"), id), (header::AUTHORIZATION, token)];
    let headers: HeaderMap = named.into_iter().filter_map(|(name, value)| Some((name, value.ok()?))).collect();
    watch::fuzz_wanted(&uri, &headers);
    if let Ok(token) = access::bearer(&headers) {
        assert!(!token.is_empty() && authorization.ends_with(token.as_bytes()), "a token is what the header ends with");
    }
}

#[cfg(test)]
mod tests;
