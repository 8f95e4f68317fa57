//! The way in for events: one request, one event, nine steps from bytes to the table. Each step is a type that
//! only the step before can make: `UnverifiedEvent` and `UnverifiedToken` (shape), `VerifiedToken` (signature,
//! review), `Owned` (the pod has what is claimed), `FreshEvent` (signature, time), `AdmittedEvent` (key, boot).
//! Fails closed: what cannot be decided is answered 503, never let through and never refused for good.

use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use metrics::gauge;
use podlight_proto::EVENTS_PATH;

use crate::cluster::{Api, Health, Pods};
use crate::table::Pacing;
use crate::table::owner::{Clock, TableHandle};

mod authenticate;
mod cache;
mod flights;
mod handler;
mod jwks;
mod kubernetes;
mod limits;
mod ownership;
mod refusal;
#[cfg(test)]
mod scripted;
mod session;
mod token;
mod token_review;

pub use authenticate::{AuthError, AuthMode, Authenticator, Caller};
pub use jwks::KeyError;
pub use limits::Rate;
pub use ownership::{Claim, Owned, OwnershipError};
pub use session::{Judgement, Moment, Session, SessionError};
pub use token::{Subject, TokenError, TokenPod};

use kubernetes::Kubernetes;
use limits::{Limits, Room};
use ownership::Ownership;
use session::Sessions;

/// Pause between attempts to fetch the keys before the replica is ready.
const WARM_UP_PAUSE: Duration = Duration::from_secs(1);

/// What ingest is to do and how much it may hold.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// Who has the last word on a token.
    pub auth: AuthMode,
    /// Issuers of tokens, compared exactly. Empty: the one in the API server's discovery document, and any whose
    /// key verifies while that is not known.
    pub issuers: Vec<String>,
    /// This replica's name in replies.
    pub replica: String,
    /// Base URLs of the other replicas, for replies.
    pub peers: Vec<String>,
    /// The table's pacing, for replies that the table does not make.
    pub pacing: Pacing,
    /// Most pods with a bound key.
    pub max_sessions: usize,
    /// Events from everybody together.
    pub rate: Rate,
    /// Events from one source address.
    pub source_rate: Rate,
    /// Most source addresses told apart at once.
    pub max_sources: usize,
    /// Most requests under way, being read or waiting.
    pub max_in_flight: usize,
    /// Most requests that wait for the Kubernetes side.
    pub max_waiting: usize,
    /// Most TokenReviews at once.
    pub reviews_in_flight: usize,
    /// Most TokenReviews that wait for their turn.
    pub reviews_waiting: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
}

impl IngestConfig {
    /// Some 10 MiB: more pods than most clusters have, below the 150 000 that Kubernetes is tested with.
    pub const MAX_SESSIONS: usize = 65_536;
    /// Two cores' worth of signature checks, so that a flood cannot take more than there is.
    pub const RATE: Rate = Rate { per_second: 20_000, burst: 20_000 };
    /// A node's pods behind one address, all restarting; and a load test of 10 000 sidecars on one machine.
    pub const SOURCE_RATE: Rate = Rate { per_second: 4_000, burst: 16_384 };
    /// A source is an address and a number: under a megabyte.
    pub const MAX_SOURCES: usize = 8_192;
    /// As many as the storm of a whole cluster's first contacts, at 16 KiB each the most they can hold.
    pub const MAX_IN_FLIGHT: usize = 16_384;
    /// Two seconds' worth of reviews, beyond which senders have stopped waiting.
    pub const MAX_WAITING: usize = 8_192;
    /// A third of what API priority and fairness grants a ServiceAccount's requests on a small API server.
    pub const REVIEWS_IN_FLIGHT: usize = 16;
    /// At the 2 700 reviews a second measured on a real API server, 1.5 s of waiting.
    pub const REVIEWS_WAITING: usize = 4_096;
    /// As long as headers may: 16 KiB in that time is slower than any link that a pod has (wire rules: 408).
    pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

    /// The defaults for a replica of this name.
    pub fn new(auth: AuthMode, replica: impl Into<String>) -> Self {
        Self {
            auth,
            issuers: Vec::new(),
            replica: replica.into(),
            peers: Vec::new(),
            pacing: Pacing::default(),
            max_sessions: Self::MAX_SESSIONS,
            rate: Self::RATE,
            source_rate: Self::SOURCE_RATE,
            max_sources: Self::MAX_SOURCES,
            max_in_flight: Self::MAX_IN_FLIGHT,
            max_waiting: Self::MAX_WAITING,
            reviews_in_flight: Self::REVIEWS_IN_FLIGHT,
            reviews_waiting: Self::REVIEWS_WAITING,
            body_timeout: Self::BODY_TIMEOUT,
        }
    }
}

/// Takes events.
pub struct Ingest {
    auth: AuthMode,
    replica: String,
    peers: Vec<String>,
    pacing: Pacing,
    clock: Clock,
    table: TableHandle,
    kubernetes: Kubernetes,
    limits: Limits,
    body_timeout: Duration,
    in_flight: Room,
    waiting: Room,
    authenticator: Arc<Authenticator>,
    ownership: Ownership,
    sessions: Sessions,
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest").field("auth", &self.auth).field("replica", &self.replica).finish_non_exhaustive()
    }
}

impl Ingest {
    /// Ingest over the cluster's handles.
    pub fn new(
        config: IngestConfig,
        api: Api,
        pods: Pods,
        health: Health,
        table: TableHandle,
        clock: Clock,
    ) -> Arc<Self> {
        Self::over(config, Kubernetes::Cluster { api, pods, health }, table, clock)
    }

    fn over(config: IngestConfig, kubernetes: Kubernetes, table: TableHandle, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            limits: Limits::new(config.rate, config.source_rate, config.max_sources),
            body_timeout: config.body_timeout,
            in_flight: Room::new(config.max_in_flight),
            waiting: Room::new(config.max_waiting),
            authenticator: Arc::new(Authenticator::new(&config, kubernetes.clone(), clock)),
            ownership: Ownership::new(kubernetes.clone(), table.clone(), clock),
            sessions: Sessions::new(config.max_sessions),
            auth: config.auth,
            replica: config.replica,
            peers: config.peers,
            pacing: config.pacing,
            clock,
            table,
            kubernetes,
        })
    }

    /// Decides on tokens, for the query API as well.
    pub fn authenticator(&self) -> Arc<Authenticator> {
        Arc::clone(&self.authenticator)
    }

    /// Fetches the keys that tokens are checked with, again and again until they are there. A replica is ready
    /// only then.
    pub async fn warm_up(&self) {
        while !self.authenticator.warm_up().await {
            tokio::time::sleep(WARM_UP_PAUSE).await;
        }
    }

    /// Drops what has ended: sessions of pods that are gone, cached decisions, old keys. To be called every half
    /// minute or so.
    pub async fn sweep(&self) {
        self.sessions.prune(self.clock.now().uptime, |pod| self.kubernetes.pod(pod).is_some());
        self.publish_sessions();
        self.authenticator.sweep().await;
    }

    fn publish_sessions(&self) {
        gauge!("podlight_sessions").set(as_gauge(self.sessions.len()));
    }
}

/// The route for events. Everything else is answered as the wire says.
pub fn router(ingest: Arc<Ingest>) -> Router {
    Router::new().route(EVENTS_PATH, post(handler::post).fallback(handler::method_not_allowed)).with_state(ingest)
}

/// Locks; a thread that panicked elsewhere has left nothing half done, since nothing under these locks panics.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error and its causes on one line, each said once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn as_gauge(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

/// Reads a document of keys, for the fuzz target.
#[cfg(feature = "fuzzing")]
pub fn fuzz_keys(document: &[u8]) -> bool {
    jwks::KeySet::parse(document).is_ok()
}

/// Reads an Authorization header's value, for the fuzz target.
#[cfg(feature = "fuzzing")]
pub fn fuzz_authorization(value: &[u8]) -> bool {
    http::HeaderValue::from_bytes(value).is_ok_and(|value| handler::bearer(&value).is_ok())
}

/// Reads a token's shape, for the fuzz target.
#[cfg(feature = "fuzzing")]
pub fn fuzz_token(text: &str, now_ms: u64) -> bool {
    token::UnverifiedToken::parse(text, &[], now_ms).is_ok()
}
