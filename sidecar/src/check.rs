//! `podlight-sidecar check`: succeeds when the running sidecar answers. A startupProbe that runs it needs no network,
//! and does not depend on the activator or on the app.

use std::time::Duration;

use http::Method;
use tokio::time::timeout;

use crate::config::Running;
use crate::local::{self, LocalError};

/// Below the second that a kubelet gives a probe by default.
const TIMEOUT: Duration = Duration::from_millis(900);

/// Why there is no running sidecar to be found.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It did not answer, or not as a sidecar does.
    #[error("cannot ask the running sidecar")]
    Ask(#[from] LocalError),
    /// It has not answered.
    #[error("the running sidecar does not answer within {TIMEOUT:?}")]
    Timeout,
}

/// Asks once.
///
/// # Errors
/// [`CheckError`].
pub async fn run(running: &Running) -> Result<(), CheckError> {
    let asked = timeout(TIMEOUT, local::request(running, Method::GET, "/healthz")).await;
    asked.map_err(|_| CheckError::Timeout)??;
    Ok(())
}
