//! The questions as calls to an API server: each bounded, measured, and a sign of whether it is there.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::PostParams;
use metrics::{counter, histogram};
use podlight_proto::AUDIENCE;
use tokio::time::Instant;

use super::{ApiError, CallFailure, Reviewed, review};
use crate::cluster::extract::{ExtractError, RevisionLabels, observation};
use crate::cluster::health::Health;
use crate::cluster::report::Outbox;
use crate::cluster::scale::Scalables;
use crate::cluster::{Shutdown, ended};
use crate::table::entry::Observation;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a TokenReview may take. Nobody waits that long (see `ingest::token_review`), but whoever asks again must
/// not cost a slow API server a second one.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the API server is asked whether it is there. A frozen one shows by nothing else while no call is made.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// Which question, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(in crate::cluster) enum Call {
    TokenReview,
    Pod,
    Jwks,
    Discovery,
    AccessReview,
    Kinds,
    Scale,
    Event,
    Secret,
}

impl Call {
    const fn label(self) -> &'static str {
        match self {
            Self::TokenReview => "tokenreview",
            Self::Pod => "pod",
            Self::Jwks => "jwks",
            Self::Discovery => "discovery",
            Self::AccessReview => "subjectaccessreview",
            Self::Kinds => "kinds",
            Self::Scale => "scale",
            Self::Event => "event",
            Self::Secret => "secret",
        }
    }

    const fn timeout(self) -> Duration {
        match self {
            Self::TokenReview => REVIEW_TIMEOUT,
            Self::Pod
            | Self::Jwks
            | Self::Discovery
            | Self::AccessReview
            | Self::Kinds
            | Self::Scale
            | Self::Event
            | Self::Secret => CALL_TIMEOUT,
        }
    }
}

/// The connection to an API server.
#[derive(Clone)]
pub struct KubernetesApi {
    client: kube::Client,
    revision_labels: RevisionLabels,
    health: Health,
    refused: Arc<AtomicBool>,
    pub(in crate::cluster) scalables: Arc<Scalables>,
    pub(in crate::cluster) outbox: Arc<Outbox>,
}

impl std::fmt::Debug for KubernetesApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesApi").finish_non_exhaustive()
    }
}

impl KubernetesApi {
    pub(in crate::cluster) fn new(client: kube::Client, revision_labels: RevisionLabels, health: Health) -> Self {
        let (refused, scalables, outbox) = (Arc::default(), Arc::default(), Arc::default());
        Self { client, revision_labels, health, refused, scalables, outbox }
    }

    pub(super) async fn review_token(&self, token: &str) -> Result<Reviewed, ApiError> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: kube::Api<TokenReview> = kube::Api::all(self.client.clone());
        let answer = self.call(Call::TokenReview, reviews.create(&PostParams::default(), &review)).await?;
        review::judge_token(answer.status.unwrap_or_default()).map_err(|reason| ApiError::Rejected(reason.to_string()))
    }

    pub(super) async fn fetch_pod(&self, namespace: &str, name: &str) -> Result<Option<Arc<Observation>>, ApiError> {
        let pods: kube::Api<Pod> = kube::Api::namespaced(self.client.clone(), namespace);
        let Some(pod) = self.call(Call::Pod, pods.get_opt(name)).await? else { return Ok(None) };
        let malformed = |e: ExtractError| ApiError::Unavailable(Arc::new(CallFailure::Pod(e.to_string())));
        observation(&pod, &self.revision_labels).map(|o| Some(Arc::new(o))).map_err(malformed)
    }

    pub(super) async fn get_text(&self, call: Call, path: &str) -> Result<String, ApiError> {
        let request = http::Request::get(path).body(Vec::new()).expect("the path is one of our constants");
        self.call(call, self.client.request_text(request)).await
    }

    pub(super) async fn authorize(&self, user: &Reviewed, path: &str) -> Result<bool, ApiError> {
        let asked = NonResourceAttributes { path: Some(path.to_owned()), verb: Some("get".to_owned()) };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.username.clone()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()),
            non_resource_attributes: Some(asked),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviews: kube::Api<SubjectAccessReview> = kube::Api::all(self.client.clone());
        let answer = self.call(Call::AccessReview, reviews.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| review::judge_access(&status)))
    }

    /// A Secret's data. Both names have been checked.
    pub(super) async fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, ApiError> {
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        let request = http::Request::get(path).body(Vec::new()).expect("names that were checked");
        let refused = |failure: CallFailure| match failure.status().map(|status| status.code) {
            Some(403) => ApiError::Rejected(format!(
                "the activator may not read the Secret {name} in namespace {namespace}: its ServiceAccount needs get on it"
            )),
            Some(404) => ApiError::Rejected(format!("there is no Secret {name} in namespace {namespace}")),
            _ => ApiError::Unavailable(Arc::new(failure)),
        };
        // Read here: the client would log a Secret that it cannot read.
        let text = self.request(Call::Secret, request).await.map_err(refused)?;
        let malformed = |_| ApiError::Unavailable(Arc::new(CallFailure::Malformed("a Secret")));
        let secret: Secret = serde_json::from_str(&text).map_err(malformed)?;
        Ok(secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect())
    }

    /// Sends any request, for those who judge failures by themselves.
    pub(in crate::cluster) async fn request(
        &self,
        call: Call,
        request: http::Request<Vec<u8>>,
    ) -> Result<String, CallFailure> {
        self.ask(call, self.client.request_text(request)).await
    }

    /// Makes a call, and takes a refusal as one of the activator itself.
    async fn call<T>(&self, call: Call, request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
        let outcome = self.ask(call, request).await;
        if outcome.is_ok() {
            self.refused.store(false, Ordering::Relaxed);
        }
        outcome.map_err(|failure| {
            let Some(status) = failure.status().filter(|status| matches!(status.code, 401 | 403)) else {
                return ApiError::Unavailable(Arc::new(failure));
            };
            if !self.refused.swap(true, Ordering::Relaxed) {
                let (call, code, message) = (call.label(), status.code, status.message.as_str());
                tracing::error!(call, code, message, "the API server refuses the activator's own credential");
            }
            ApiError::OwnCredential
        })
    }

    /// Makes a call: bounds it, measures it, and learns from it how the API server is.
    async fn ask<T>(&self, call: Call, request: impl Future<Output = kube::Result<T>>) -> Result<T, CallFailure> {
        let started = Instant::now();
        let outcome = within(call.timeout(), request).await;
        self.health.answered(!outcome.as_ref().err().is_some_and(CallFailure::is_silence));
        let result = outcome.as_ref().err().map_or("ok", CallFailure::label);
        counter!("podlight_api_calls_total", "call" => call.label(), "result" => result).increment(1);
        histogram!("podlight_api_call_duration_seconds", "call" => call.label())
            .record(started.elapsed().as_secs_f64());
        outcome
    }

    /// Asks again and again whether the API server is there, until shutdown.
    pub(in crate::cluster) async fn probe(self, shutdown: Shutdown) {
        tokio::select! {
            () = ended(shutdown) => {}
            () = self.probe_forever() => {}
        }
    }

    async fn probe_forever(&self) {
        let mut was_ready = true;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a constant path");
            let outcome = within(CALL_TIMEOUT, self.client.request_text(request)).await;
            self.health.answered(!outcome.as_ref().err().is_some_and(CallFailure::is_silence));
            let ready = outcome.is_ok();
            if ready && !was_ready {
                self.health.recovered();
            }
            was_ready = ready;
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }
}

async fn within<T>(span: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, CallFailure> {
    match tokio::time::timeout(span, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(CallFailure::Client(error)),
        Err(_) => Err(CallFailure::Timeout(span)),
    }
}

#[cfg(test)]
mod tests;
