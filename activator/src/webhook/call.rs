//! One call to the API server: bounded in time, and with what its refusals mean here.

use std::future::Future;
use std::time::Duration;

/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No answer.
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    /// The connection failed, or the answer was an error.
    #[error("the call failed")]
    Client(#[source] Box<kube::Error>),
}

impl CallError {
    /// Somebody else was first, or has what was asked for.
    pub(super) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// What it was about has gone or is going.
    pub(super) fn is_gone(&self) -> bool {
        let ending = |status: &kube::core::Status| {
            status.code == 403
                && status.details.iter().flat_map(|details| &details.causes).any(|c| c.reason == "NamespaceTerminating")
        };
        self.code() == Some(404) || self.status().is_some_and(ending)
    }

    fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    fn status(&self) -> Option<&kube::core::Status> {
        let Self::Client(error) = self else { return None };
        if let kube::Error::Api(status) = error.as_ref() { Some(status) } else { None }
    }
}

/// Makes it.
pub(super) async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| CallError::Client(Box::new(error))),
        Err(_) => Err(CallError::Timeout),
    }
}
