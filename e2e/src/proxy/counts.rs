//! What a proxy has open and counts, for tests that wait until it holds so much, or check that it kept nothing.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::activator::Activator;
use crate::eventually::eventually;

/// Requests that are held now.
pub const HELD: &str = "podlight_proxy_held";

/// Connections that have changed their protocol and are open now.
pub const TUNNELS: &str = "podlight_proxy_tunnels";

/// Tasks of the workers.
pub const TASKS: &str = "podlight_proxy_tasks";

/// Requests that were answered, by class and way.
pub const REQUESTS: &str = "podlight_proxy_requests_total";

/// Backends that got quarantined.
pub const QUARANTINES: &str = "podlight_proxy_quarantines_total";

/// Requests that went to another backend after a first one failed.
pub const RETRIES: &str = "podlight_proxy_retries_total";

/// Waits until a metric has this value in sum.
///
/// # Errors
/// When it does not come to that.
pub async fn wait_for(activator: &Activator, metric: &str, value: f64) -> Result<()> {
    eventually(&format!("{metric} is {value}"), async || {
        let metrics = activator.metrics().await?;
        let sum = metrics.sum(metric, &[]);
        ensure!(value == 0.0 || metrics.has(metric, &[]), "there is no {metric}");
        ensure!(sum == value, "it is {sum}");
        Ok(Some(()))
    })
    .await
}

/// Waits until so many requests are held.
///
/// # Errors
/// When there are not.
pub async fn wait_held(activator: &Activator, count: usize) -> Result<()> {
    wait_for(activator, HELD, count as f64).await
}

/// Open file descriptors of a process.
///
/// # Errors
/// When it has ended.
pub fn open_files(process: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/fd")).context("the process has ended")?.count())
}
