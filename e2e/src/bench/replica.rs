//! One activator replica on a fleet's API server, set up for a measurement: TLS, and the limits of production.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::activator::{Activator, ActivatorSpec};
use crate::eventually::within;
use crate::metrics::Metrics;

use super::fleet::Fleet;

/// How long it may take to have listed all pods.
const LISTED_WITHIN: Duration = Duration::from_secs(60);

/// A running replica that has listed all pods.
pub struct Replica(Activator);

impl Replica {
    /// Starts one.
    ///
    /// # Errors
    /// When it does not start, or does not list all pods in time.
    pub async fn start(fleet: &Fleet, auth: &str) -> Result<Self> {
        let spec = ActivatorSpec::new(&fleet.kubeconfig).flag("auth", auth).flag("replica", "replica-0");
        let activator = spec.flag("log", "warn").self_signed().start().await?;
        let pods = fleet.members.len() as f64;
        within(LISTED_WITHIN, "the activator has listed all pods", async || {
            let listed = activator.metrics().await?.sum("podlight_table_pods", &[]);
            Ok((listed >= pods).then_some(()))
        })
        .await
        .with_context(|| activator.log_tail())?;
        Ok(Self(activator))
    }

    /// The kernel's id of the process.
    ///
    /// # Panics
    /// Never: nobody kills it before it is dropped.
    pub fn id(&self) -> u32 {
        self.0.id().expect("it is killed on drop only")
    }

    /// Where events go.
    pub fn events_port(&self) -> u16 {
        self.0.port()
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn metrics(&self) -> Result<Metrics> {
        self.0.metrics().await
    }
}
