//! Waiting for a condition instead of for a time: looked at again and again, until a deadline that only a failure reaches.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a condition may take to come true. Two cores shared by several servers are slow at times.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Longest single look: what hangs is looked at again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks until `look` finds something, and returns it.
///
/// # Errors
/// When it has not within [`DEADLINE`]; the error names `what` and how the last look failed.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    within(DEADLINE, what, look).await
}

/// As [`eventually`] with a deadline of one's own.
///
/// # Errors
/// As [`eventually`].
pub async fn within<T>(deadline: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    loop {
        let looked = tokio::time::timeout(LOOK_TIMEOUT, look()).await;
        let failure = match looked {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some(error),
            Err(elapsed) => Some(elapsed.into()),
        };
        if begun.elapsed() > deadline {
            let late = || format!("{what}: not within {deadline:?}");
            match failure {
                Some(error) => return Err(error).with_context(late),
                None => bail!(late()),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
