//! The Kubernetes side as the pipeline sees it: what the watches show, whether the API server answers, and the
//! few calls that may be made to it.

use std::sync::Arc;

use podlight_proto::PodUid;

use crate::cluster::{Api, ApiError, Health, Pods, Reviewed};
use crate::table::ListEpoch;
use crate::table::entry::Observation;

/// Handles to the cluster module, or a script in tests.
#[derive(Clone)]
pub(super) enum Kubernetes {
    /// The cluster module.
    Cluster { api: Api, pods: Pods, health: Health },
    /// A cluster that a test makes up.
    #[cfg(test)]
    Scripted(Arc<super::scripted::Scripted>),
}

impl Kubernetes {
    /// The pod as the watch last showed it.
    pub(super) fn pod(&self, uid: &PodUid) -> Option<Arc<Observation>> {
        match self {
            Self::Cluster { pods, .. } => pods.get(uid),
            #[cfg(test)]
            Self::Scripted(script) => script.pod(uid),
        }
    }

    /// The last pod list that was complete.
    pub(super) fn list_epoch(&self) -> ListEpoch {
        match self {
            Self::Cluster { pods, .. } => pods.list_epoch(),
            #[cfg(test)]
            Self::Scripted(_) => ListEpoch(1),
        }
    }

    /// Whether every watch has listed once.
    pub(super) fn synced(&self) -> bool {
        match self {
            Self::Cluster { health, .. } => health.synced(),
            #[cfg(test)]
            Self::Scripted(script) => script.synced(),
        }
    }

    /// Whether the API server answers.
    pub(super) fn reachable(&self) -> bool {
        match self {
            Self::Cluster { health, .. } => health.reachable(),
            #[cfg(test)]
            Self::Scripted(script) => script.reachable(),
        }
    }

    pub(super) async fn review_token(&self, token: &str) -> Result<Reviewed, ApiError> {
        match self {
            Self::Cluster { api, .. } => api.review_token(token).await,
            #[cfg(test)]
            Self::Scripted(script) => script.review_token(token).await,
        }
    }

    pub(super) async fn fetch_pod(&self, namespace: &str, name: &str) -> Result<Option<Arc<Observation>>, ApiError> {
        match self {
            Self::Cluster { api, .. } => api.fetch_pod(namespace, name).await,
            #[cfg(test)]
            Self::Scripted(script) => script.fetch_pod(namespace, name).await,
        }
    }

    pub(super) async fn fetch_issuer(&self) -> Result<Option<String>, ApiError> {
        match self {
            Self::Cluster { api, .. } => api.fetch_issuer().await,
            #[cfg(test)]
            Self::Scripted(_) => Ok(Some(super::scripted::ISSUER.to_owned())),
        }
    }

    pub(super) async fn fetch_jwks(&self) -> Result<Vec<u8>, ApiError> {
        match self {
            Self::Cluster { api, .. } => api.fetch_jwks().await,
            #[cfg(test)]
            Self::Scripted(script) => script.fetch_jwks().await,
        }
    }
}
