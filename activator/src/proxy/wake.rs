//! Has targets with held requests scaled up from zero. Never down, and nothing that is up already: whoever else scales
//! them is not disturbed. Each target decides when to ask and how often ([`super::target`]); here the asking is done, for
//! a bounded number of targets at a time.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use metrics::counter;
use tokio::sync::mpsc;

use super::target::Target;
pub use crate::cluster::{ScaleError, Scaled};

/// Most targets asked for at the same time.
const AT_A_TIME: usize = 32;

/// Whoever can scale.
pub trait Scaler: Send + Sync + 'static {
    /// Sees to it that there is at least one replica. Many replicas of the activator may ask for the same at once.
    ///
    /// # Errors
    /// [`ScaleError`].
    fn scale_up<'a>(
        &'a self,
        namespace: &'a str,
        kind: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Scaled, ScaleError>>;
}

/// Asks for each target that wants it. Ends with the last target.
pub async fn run(scaler: Arc<dyn Scaler>, wanted: mpsc::UnboundedReceiver<Arc<Target>>) {
    let wanted = stream::unfold(wanted, async |mut wanted| wanted.recv().await.map(|target| (target, wanted)));
    wanted.for_each_concurrent(AT_A_TIME, |target| scale(&*scaler, target)).await;
}

async fn scale(scaler: &dyn Scaler, target: Arc<Target>) {
    let Some(wanted) = target.settings().scale_target.clone() else {
        // It was taken back meanwhile: what is held waits for whatever else may come.
        return target.scaled(Ok(Scaled::Already));
    };
    let outcome = scaler.scale_up(&target.key().namespace, &wanted.kind, &wanted.name).await;
    let label = outcome.as_ref().map_or_else(ScaleError::label, |scaled| scaled.label());
    counter!("podlight_proxy_scale_total", "outcome" => label).increment(1);
    let (namespace, service) = (&*target.key().namespace, &*target.key().service);
    match &outcome {
        Ok(scaled) => tracing::debug!(namespace, service, %wanted, ?scaled, "asked for a replica"),
        Err(error) => tracing::warn!(namespace, service, %wanted, %error, "cannot scale up for held requests"),
    }
    target.scaled(outcome);
}

#[cfg(test)]
mod tests;
