//! When a pod became what, by each activator's table and by the EndpointSlices, on one clock. Both are followed by watches
//! from before the change that a test is about.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::runtime::watcher::{self, Event};
use tokio::task::JoinHandle;

use super::Cluster;
use super::shop::{PATIENCE, Shop};
use crate::control_plane::lock;
use crate::eventually::within;
use crate::follow::follow;

/// Who told a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// An activator's table, by the activator's place among the replicas.
    Table(usize),
    /// The EndpointSlices.
    Slices,
}

/// A state of a pod, when it was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// By whom.
    pub by: Teller,
    /// When it arrived here.
    pub at: Instant,
    /// Of which pod.
    pub pod: String,
    /// `ready`, `not-ready`, `draining`, `terminating`; by the EndpointSlices also `gone`.
    pub state: String,
    /// Whose word a table has it from; empty in EndpointSlices.
    pub source: String,
}

/// What is told of a shop's pods, from [`Timeline::of`] on.
pub struct Timeline {
    told: Arc<Mutex<Vec<Told>>>,
    tables: usize,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Timeline {
    /// Follows every activator's table and the shop's slices; returns once all of them have told what is.
    ///
    /// # Errors
    /// When one cannot be followed.
    pub async fn of(cluster: &Cluster, shop: &Shop) -> Result<Self> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let mut replicas = Vec::new();
        for replica in cluster.replicas().await? {
            replicas.push(cluster.followed(&replica).await?);
        }
        let tables = replicas.len();
        let mut changes = follow(replicas).await?;
        let sink = Arc::clone(&told);
        let from_tables = tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                let (by, at, pod) = (Teller::Table(change.replica), change.at, change.pod);
                lock(&sink).push(Told { by, at, pod, state: change.state, source: change.source });
            }
        });
        let (listed, mut all_listed) = tokio::sync::watch::channel(false);
        let slices = watcher(shop.api::<EndpointSlice>(), watcher::Config::default());
        let sink = Arc::clone(&told);
        let from_slices = tokio::spawn(async move {
            let mut slices = std::pin::pin!(slices);
            let mut known = BTreeMap::new();
            while let Some(event) = slices.next().await {
                let at = Instant::now();
                // The watcher watches again by itself; what it missed shows in the next list.
                let Ok(event) = event else { continue };
                match event {
                    Event::Apply(slice) | Event::InitApply(slice) => note_changes(&sink, at, &mut known, &slice),
                    Event::InitDone => drop(listed.send_replace(true)),
                    Event::Init | Event::Delete(_) => {}
                }
            }
        });
        let this = Self { told, tables, tasks: vec![from_tables, from_slices] };
        all_listed.wait_for(|listed| *listed).await.context("the slices' watch ended")?;
        Ok(this)
    }

    /// Waits until this teller has told, at `after` or later, a state of the pod for which `wanted` holds. Returns when.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn first(
        &self,
        by: Teller,
        pod: &str,
        after: Instant,
        wanted: impl Fn(&Told) -> bool,
    ) -> Result<Instant> {
        let what = format!("{by:?} tells of {pod}");
        let found = within(PATIENCE, &what, async || {
            let told = lock(&self.told);
            let mut told = told.iter().filter(|told| told.by == by && told.pod == pod && told.at >= after);
            Ok(told.find(|told| wanted(told)).map(|told| told.at))
        });
        found.await.with_context(|| format!("told: {:#?}", self.all(pod)))
    }

    /// As [`Timeline::first`], when the last of all activators has told it.
    ///
    /// # Errors
    /// As [`Timeline::first`].
    pub async fn in_all_tables(&self, pod: &str, after: Instant, wanted: impl Fn(&Told) -> bool) -> Result<Instant> {
        let mut last = after;
        for table in 0..self.tables {
            last = last.max(self.first(Teller::Table(table), pod, after, &wanted).await?);
        }
        Ok(last)
    }

    /// Whatever was told of a pod.
    pub fn all(&self, pod: &str) -> Vec<Told> {
        lock(&self.told).iter().filter(|told| told.pod == pod).cloned().collect()
    }
}

fn watcher(
    slices: kube::Api<EndpointSlice>,
    config: watcher::Config,
) -> impl futures::Stream<Item = watcher::Result<Event<EndpointSlice>>> + Send {
    kube::runtime::watcher(slices, config)
}

/// Tells what a slice says otherwise than before. A shop has one slice: a hundred endpoints fit into it.
fn note_changes(told: &Mutex<Vec<Told>>, at: Instant, known: &mut BTreeMap<String, String>, slice: &EndpointSlice) {
    let mut present = BTreeMap::new();
    for endpoint in slice.endpoints.iter().flatten() {
        if let Some(pod) = endpoint.target_ref.as_ref().and_then(|target| target.name.clone()) {
            present.insert(pod, state_of(endpoint).to_owned());
        }
    }
    let gone = known.keys().filter(|pod| !present.contains_key(*pod)).map(|pod| (pod.clone(), "gone".to_owned()));
    let changed = present.iter().filter(|(pod, state)| known.get(*pod) != Some(*state));
    let changes: Vec<_> = gone.chain(changed.map(|(pod, state)| (pod.clone(), state.clone()))).collect();
    let source = String::new;
    lock(told).extend(changes.into_iter().map(|(pod, state)| Told {
        by: Teller::Slices,
        at,
        pod,
        state,
        source: source(),
    }));
    *known = present;
}

fn state_of(endpoint: &Endpoint) -> &'static str {
    let conditions = endpoint.conditions.as_ref();
    let is = |of: fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>| {
        conditions.and_then(of).unwrap_or_default()
    };
    if is(|conditions| conditions.terminating) {
        "terminating"
    } else if is(|conditions| conditions.ready) {
        "ready"
    } else {
        "not-ready"
    }
}

/// This clock's moment of a time that a pod told, in milliseconds since the epoch: pods and suite share one machine.
///
/// # Errors
/// When it is not within this machine's life.
pub fn instant_of(since_epoch_ms: u64) -> Result<Instant> {
    let ago = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_millis(since_epoch_ms))?;
    Instant::now().checked_sub(ago).context("before this machine started")
}
