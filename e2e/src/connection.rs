//! An activator's own connection to the API server, without the activator: what it asks besides watching.

use std::path::Path;

use anyhow::Result;
use podlight_activator::cluster::{self, Api, RevisionLabels, WatchConfig, spawn_kubernetes};
use podlight_activator::table::Table;
use podlight_activator::table::owner::{self, Clock};
use tokio::sync::watch;

/// The connection, as long as it is held.
#[derive(Debug)]
pub struct Connection {
    /// What asks.
    pub api: Api,
    _lives: watch::Sender<bool>,
}

impl Connection {
    /// Opens one with the rights that a kubeconfig gives.
    ///
    /// # Errors
    /// When the kubeconfig makes no client.
    pub async fn open(kubeconfig: &Path) -> Result<Self> {
        let client = cluster::connect(Some(kubeconfig), None).await?;
        let (lives, shutdown) = watch::channel(false);
        let (table, ..) = owner::spawn(Table::default(), Clock::start(), 64);
        let config = WatchConfig { revision_labels: RevisionLabels::default(), shutdown };
        let (api, ..) = spawn_kubernetes(client, config, table);
        Ok(Self { api, _lives: lives })
    }
}
