//! Questions to the API server: is this token good, is this pod there, which keys sign tokens, may this caller read;
//! and the little that is asked of it: to scale from zero, to tell a Service's owner of a fault. Each is one request
//! under a timeout, or a few. An API server that cannot answer is never taken for one that says no.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::core::Status;
use podlight_proto::PodUid;

use super::report::Reason;
use super::scale::{ScaleError, Scaled};
use super::standalone::StandaloneApi;
use crate::table::entry::Observation;
use crate::table::group::GroupKey;

mod kubernetes;
mod review;

pub(super) use kubernetes::Call;
pub use kubernetes::KubernetesApi;

/// Where a cluster publishes the keys that sign its tokens.
const JWKS_PATH: &str = "/openid/v1/jwks";

/// Where a cluster says what it calls itself in tokens.
const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";

/// Why a question has no good answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// The API server did not answer in time, or with 5xx, 429 or something that makes no sense. Ask again later.
    #[error("the API server cannot tell")]
    Unavailable(#[source] Arc<CallFailure>),
    /// The API server refuses the activator itself: 401 or 403 to our own credential. Already logged.
    #[error("the API server refuses the activator's own credential")]
    OwnCredential,
    /// The answer is no. Holds the reason, in words for the one who asked.
    #[error("{0}")]
    Rejected(String),
}

impl ApiError {
    /// As in metric labels.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::OwnCredential => "own-credential",
            Self::Rejected(_) => "rejected",
        }
    }
}

/// How a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallFailure {
    /// No answer within this time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed, or the answer was an error.
    #[error("the call failed")]
    Client(#[source] kube::Error),
    /// The answer was a pod that cannot be used.
    #[error("the pod is malformed: {0}")]
    Pod(String),
    /// The answer was not what it should be, which is told; not what it was.
    #[error("the answer is not {0}")]
    Malformed(&'static str),
}

impl CallFailure {
    /// Whether there was no answer at all, rather than a bad one, or a call that could not be made.
    fn is_silence(&self) -> bool {
        match self {
            Self::Timeout(_) => true,
            Self::Client(error) => matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_)),
            Self::Pod(_) | Self::Malformed(_) => false,
        }
    }

    /// The status that the API server answered with, if that is the failure.
    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Self::Client(kube::Error::Api(status)) => Some(status),
            Self::Timeout(_) | Self::Client(_) | Self::Pod(_) | Self::Malformed(_) => None,
        }
    }

    /// As in metric labels.
    fn label(&self) -> &'static str {
        match self.status().map(|status| status.code) {
            Some(401 | 403) => "own-credential",
            Some(404 | 422) => "rejected",
            _ => "unavailable",
        }
    }
}

/// Whom a token speaks for, by the API server's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    /// The ServiceAccount's namespace.
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// The pod that the token is bound to; none when it is bound to none.
    pub pod_name: Option<String>,
    /// That pod's uid; present exactly when the name is.
    pub pod_uid: Option<PodUid>,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub username: String,
    /// The groups, for authorisation.
    pub groups: Vec<String>,
    /// Whatever else the API server says of the user, for authorisation.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Reviewed {
    /// What the API server would say of a good token of this ServiceAccount and pod.
    pub fn of_service_account(namespace: &str, service_account: &str, pod: Option<(&str, &PodUid)>) -> Self {
        let extra = pod.iter().flat_map(|(name, uid)| {
            [
                (review::POD_NAME.to_owned(), vec![(*name).to_owned()]),
                (review::POD_UID.to_owned(), vec![uid.to_string()]),
            ]
        });
        Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_name: pod.map(|(name, _)| name.to_owned()),
            pod_uid: pod.map(|(_, uid)| *uid),
            username: format!("system:serviceaccount:{namespace}:{service_account}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            extra: extra.collect(),
        }
    }
}

/// Whoever answers the questions.
#[derive(Debug, Clone)]
pub enum Api {
    /// An API server.
    Kubernetes(Arc<KubernetesApi>),
    /// Files and a local key.
    Standalone(Arc<StandaloneApi>),
}

impl Api {
    /// One TokenReview for the audience `podlight`. It may take longer than anybody wants to wait: up to 10 s, so that
    /// a slow API server is not asked again for what it is about to say.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn review_token(&self, token: &str) -> Result<Reviewed, ApiError> {
        match self {
            Self::Kubernetes(api) => api.review_token(token).await,
            Self::Standalone(api) => api.review_token(token),
        }
    }

    /// The pod as it is now; none when there is no such pod.
    ///
    /// # Errors
    /// [`ApiError`], never [`ApiError::Rejected`].
    pub async fn fetch_pod(&self, namespace: &str, name: &str) -> Result<Option<Arc<Observation>>, ApiError> {
        match self {
            Self::Kubernetes(api) => api.fetch_pod(namespace, name).await,
            Self::Standalone(api) => Ok(api.fetch_pod(namespace, name)),
        }
    }

    /// The JSON Web Key Set of the keys that sign tokens.
    ///
    /// # Errors
    /// [`ApiError`], never [`ApiError::Rejected`].
    pub async fn fetch_jwks(&self) -> Result<Vec<u8>, ApiError> {
        match self {
            Self::Kubernetes(api) => api.get_text(Call::Jwks, JWKS_PATH).await.map(String::into_bytes),
            Self::Standalone(api) => Ok(api.jwks()),
        }
    }

    /// The issuer that the cluster says its tokens have; none when its discovery document names none.
    ///
    /// # Errors
    /// [`ApiError`], never [`ApiError::Rejected`].
    pub async fn fetch_issuer(&self) -> Result<Option<String>, ApiError> {
        match self {
            Self::Kubernetes(api) => {
                let document = api.get_text(Call::Discovery, DISCOVERY_PATH).await?;
                let document: Option<serde_json::Value> = serde_json::from_str(&document).ok();
                Ok(document.and_then(|d| d.get("issuer")?.as_str().map(str::to_owned)))
            }
            Self::Standalone(api) => Ok(Some(api.issuer().to_owned())),
        }
    }

    /// Whether a caller may `get` a non-resource path. Standalone, whoever has a good token may.
    ///
    /// # Errors
    /// [`ApiError`], never [`ApiError::Rejected`].
    pub async fn authorize(&self, user: &Reviewed, path: &str) -> Result<bool, ApiError> {
        match self {
            Self::Kubernetes(api) => api.authorize(user, path).await,
            Self::Standalone(_) => Ok(true),
        }
    }

    /// Takes a resource from zero replicas to one, never to fewer than it has. `kind` is `Deployment`, `StatefulSet`,
    /// `ReplicaSet`, or any other kind with its group, as `Rollout.argoproj.io`.
    ///
    /// # Errors
    /// [`ScaleError`]. Standalone, there is nothing that could.
    pub async fn scale_up(&self, namespace: &str, kind: &str, name: &str) -> Result<Scaled, ScaleError> {
        match self {
            Self::Kubernetes(api) => api.scale_up(namespace, kind, name).await,
            Self::Standalone(_) => Err(ScaleError::Final("standalone mode scales nothing".to_owned())),
        }
    }

    /// Tells a Service's owner what is wrong with it: an Event of type Warning on the Service, one for each reason, so
    /// that `message` is to tell everything of that reason. Returns at once; what comes too often or in too great
    /// numbers is dropped. Standalone, it is logged.
    pub fn report(&self, service: &GroupKey, uid: &str, reason: Reason, message: &str) {
        match self {
            Self::Kubernetes(api) => api.outbox.put(service, uid, reason, message),
            Self::Standalone(_) => {
                let (namespace, service, reason) = (&*service.namespace, &*service.service, reason.as_str());
                tracing::warn!(namespace, service, reason, message, "a Service is not as it should be");
            }
        }
    }

    /// The data of a Secret.
    ///
    /// # Errors
    /// [`ApiError`]: rejected when there is no such Secret, or when the activator may not read it.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, ApiError> {
        if !(is_object_name(namespace) && is_object_name(name)) {
            return Err(ApiError::Rejected(format!("{name:?} in namespace {namespace:?} cannot be a Secret's name")));
        }
        match self {
            Self::Kubernetes(api) => api.secret(namespace, name).await,
            Self::Standalone(api) => api.secret(namespace, name),
        }
    }
}

/// Whether an object can be called this (RFC 1123 subdomain): it can then be a segment of a path.
pub(crate) fn is_object_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 253 && text.bytes().all(inner) && outer(text.bytes().next()) && outer(text.bytes().last())
}
