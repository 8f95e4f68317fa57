//! The Kubernetes side: watches pods, Services and EndpointSlices, asks the API server what a token, a pod or a caller
//! is, scales from zero and reports faults. It reduces objects to what the table needs and refuses those it cannot read, one by one.
//!
//! Invariants: [`Pods`] hears of a change before the table does; losing the API server loses nothing that is known;
//! every question is bounded in time and fails as "cannot tell", never as a verdict. [`standalone`] puts files in
//! the API server's place; from the update channel on it is the same code.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use tokio::sync::watch as signal;
use tokio::task::JoinHandle;

use crate::table::owner::TableHandle;

pub mod api;
pub mod connection;
mod extract;
pub mod health;
pub mod pods;
mod report;
mod scale;
mod services;
mod slices;
pub mod standalone;
pub mod token;
mod watch;

pub use api::{Api, ApiError, Reviewed};
pub use connection::{ConnectError, connect};
pub use extract::RevisionLabels;
pub use health::{Health, Kind};
pub use pods::Pods;
pub use report::Reason;
pub use scale::{ScaleError, Scaled};
pub use standalone::{StandaloneConfig, spawn_standalone};

/// Turns true, or loses its sender, when everything is to end.
pub type Shutdown = signal::Receiver<bool>;

/// Objects per list page. Bounds how much of a list is in memory at once: a pod as it is decoded takes dozens of KiB, most of
/// them for who manages which of its fields.
const PAGE_SIZE: u32 = 100;

/// How long one watch request lasts before it is renewed. A connection that died without a word is noticed this
/// much later, plus 5 s; a renewal costs the API server next to nothing.
const WATCH_SECONDS: u32 = 60;

/// How the cluster is watched.
#[derive(Debug, Clone)]
pub struct WatchConfig {
    /// Which labels tell a pod's revision.
    pub revision_labels: RevisionLabels,
    /// Ends the watches.
    pub shutdown: Shutdown,
}

/// Starts the watches of an API server and the probe that tells whether it answers. The tasks end at shutdown.
pub fn spawn_kubernetes(
    client: kube::Client,
    config: WatchConfig,
    table: TableHandle,
) -> (Api, Pods, Health, Vec<JoinHandle<()>>) {
    let (pods, health) = (Pods::default(), Health::unknown());
    let api = api::KubernetesApi::new(client.clone(), config.revision_labels.clone(), health.clone());
    let deliverer = watch::Deliverer::new(table, pods.clone(), health.clone(), config.revision_labels);
    // Most recent: a list from a lagging cache could show pods that are gone, and would be believed.
    let watched = watcher::Config::default()
        .list_semantic(watcher::ListSemantic::MostRecent)
        .page_size(PAGE_SIZE)
        .timeout(WATCH_SECONDS);
    let stop = config.shutdown;
    let tasks = vec![
        tokio::spawn(watch::run(
            kube::Api::<Pod>::all(client.clone()),
            watched.clone(),
            deliverer.clone(),
            stop.clone(),
        )),
        tokio::spawn(watch::run(
            kube::Api::<Service>::all(client.clone()),
            watched.clone(),
            deliverer.clone(),
            stop.clone(),
        )),
        tokio::spawn(watch::run(kube::Api::<EndpointSlice>::all(client), watched, deliverer, stop.clone())),
        tokio::spawn(api.clone().probe(stop.clone())),
        tokio::spawn(api.clone().send_reports(stop)),
    ];
    (Api::Kubernetes(Arc::new(api)), pods, health, tasks)
}

/// Waits for the signal to end.
async fn ended(mut shutdown: Shutdown) {
    // A sender that is gone can no longer ask for the end: it is here.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
