//! Admission reviews over HTTP: their bounds, the answer, and what follows from it. The API server waits for the answer,
//! so what follows has a short time or none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use metrics::{counter, histogram};
use podlight_proto::ErrorCode;
use tokio::sync::Semaphore;

use super::handout::Handout;
use super::report::Reports;
use super::review::{Effect, review};
use crate::inject::Settings;
use crate::server::{problem, with_fallbacks};

/// Where reviews are posted.
pub(super) const PATH: &str = "/inject";

/// Longest review: an object of at most 3 MiB, as JSON within JSON, and who asks.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// How long a review may take to arrive. An API server waits 5 s in all.
const BODY_TIMEOUT: Duration = Duration::from_secs(4);

/// Reviews at once: each is in memory as a whole.
const IN_FLIGHT: usize = 64;

/// How long the first pod of a namespace waits for its CA. It comes all the same; later, the kubelet looks once a minute.
const HANDOUT_TIMEOUT: Duration = Duration::from_secs(1);

/// What answers need.
pub(super) struct Door {
    pub(super) settings: Settings,
    pub(super) namespace: String,
    pub(super) handout: Arc<Handout>,
    pub(super) reports: Reports,
}

/// Serves reviews.
pub(super) fn router(door: Door) -> Router {
    let state = Arc::new((door, Semaphore::new(IN_FLIGHT)));
    with_fallbacks(Router::new().route(PATH, post(answer)).with_state(state))
}

async fn answer(State(state): State<Arc<(Door, Semaphore)>>, request: Request) -> Response {
    let started = Instant::now();
    let (door, places) = &*state;
    let Ok(_place) = places.try_acquire() else {
        count("overloaded");
        return problem(ErrorCode::Pending, "too many reviews at once");
    };
    let response = door.answer(request.into_body()).await;
    histogram!("podlight_injection_duration_seconds").record(started.elapsed().as_secs_f64());
    response
}

impl Door {
    async fn answer(&self, body: Body) -> Response {
        let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
                count("too-large");
                return problem(ErrorCode::TooLarge, "no review is that long");
            }
            Ok(Err(_)) | Err(_) => {
                count("broken");
                return problem(ErrorCode::InvalidRequest, "the review did not arrive");
            }
        };
        let outcome = match review(&body, &self.namespace, &self.settings) {
            Ok(outcome) => outcome,
            Err(error) => {
                count("broken");
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "what was asked is no review");
                return problem(ErrorCode::InvalidRequest, error.to_string());
            }
        };
        count(outcome.label);
        match outcome.effect {
            Effect::None => {}
            Effect::Injected(namespace) => self.hand_out(&namespace).await,
            Effect::Left(regarding, reason) => self.reports.put(regarding, reason),
        }
        (StatusCode::OK, axum::Json(outcome.answer)).into_response()
    }

    async fn hand_out(&self, namespace: &str) {
        match tokio::time::timeout(HANDOUT_TIMEOUT, self.handout.ensure(namespace)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(namespace, error, "cannot hand out the CA");
            }
            Err(_) => tracing::warn!(namespace, "handing out the CA takes long"),
        }
    }
}

fn count(result: &'static str) {
    counter!("podlight_injections_total", "result" => result).increment(1);
}
