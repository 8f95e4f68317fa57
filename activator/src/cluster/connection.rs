//! The connection to the API server: where it is, who we are to it, and how long we wait for it.

use std::path::Path;
use std::time::Duration;

use kube::config::{Config, InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// How long a connection may take to come about. Watches have no other bound on their start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may be silent. A watch is renewed by then (see [`super::WATCH_SECONDS`]), and calls have a
/// shorter bound of their own; what this ends is a list or the start of a watch that never gets its answer.
const READ_TIMEOUT: Duration = Duration::from_secs(super::WATCH_SECONDS as u64 + 15);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be read or does not fit together.
    #[error("cannot use the kubeconfig")]
    Kubeconfig(#[from] KubeconfigError),
    /// Neither a kubeconfig nor the environment of a pod was found.
    #[error("no kubeconfig given, and this is not a pod with a ServiceAccount")]
    NotFound(#[from] InferConfigError),
    /// The settings do not make a client (certificates, say).
    #[error("cannot set up the connection to the API server")]
    Client(#[from] kube::Error),
}

/// Makes a client from a kubeconfig and one of its contexts, or from what the environment offers when neither is
/// given. It does not repeat calls by itself: a caller that waits is told.
///
/// # Errors
/// [`ConnectError`]; nothing is sent yet, so an API server that is down is no error.
pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<kube::Client, ConnectError> {
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = match (kubeconfig, context) {
        (Some(path), _) => Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
        (None, Some(_)) => Config::from_kubeconfig(&options).await?,
        (None, None) => Config::infer().await?,
    };
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    Ok(kube::Client::try_from(config)?)
}
