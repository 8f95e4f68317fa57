//! What the request path costs and how fast it lets go: ours beside nginx, HAProxy and the least that a proxy on hyper can be, all
//! in the same run, with one worker each on the same core, the same backend and the same load on the other.

use anyhow::Result;

use super::report::Row;

pub mod child;
mod cold;
mod contenders;
mod forward;
mod held;
mod load;
mod push_off;
mod replies;
mod rollout;
mod scale;
mod warm;

/// Warm requests: what one costs and how long it takes, and what many targets and endpoints change.
///
/// # Errors
/// When a proxy cannot be installed or does not run.
pub async fn measure_warm() -> Result<Vec<Row>> {
    let mut rows = warm::measure().await?;
    rows.extend(scale::measure().await?);
    Ok(rows)
}

/// Held requests: what one costs, and how soon all are answered.
///
/// # Errors
/// When something does not run.
pub async fn measure_held() -> Result<Vec<Row>> {
    let cold = cold::measure().await?;
    let mut rows = cold.rows();
    rows.extend(push_off::measure(cold.p50_ms()).await?);
    rows.extend(held::measure().await?);
    Ok(rows)
}

/// A rolling update under load.
///
/// # Errors
/// When something does not run.
pub async fn measure_rollout() -> Result<Vec<Row>> {
    rollout::measure().await
}
