//! Follows `/v1/watch` of several replicas and notes when each change arrived, on a thread of its own, so that nothing else a
//! measurement does delays the note.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Certificate, Client};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::client_builder;

/// Longer than any measurement: the client's own deadline would end the watch.
const WATCH_FOR: Duration = Duration::from_secs(900);

/// How long a change may take before it counts as not coming.
const CHANGE_WITHIN: Duration = Duration::from_secs(10);

/// A replica to follow.
#[derive(Debug, Clone)]
pub struct Followed {
    /// Its base URL.
    pub url: String,
    /// The CA that it is known by, PEM.
    pub ca_pem: String,
    /// A token that may read.
    pub token: String,
    /// Where the name in the URL leads, when DNS does not say so here.
    pub address: Option<(String, SocketAddr)>,
}

/// One change of one endpoint, as one replica told it.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which replica, by its place in the list.
    pub replica: usize,
    /// When it arrived here.
    pub at: Instant,
    /// The pod's name.
    pub pod: String,
    /// The state.
    pub state: String,
    /// Whose word it is.
    pub source: String,
    /// When the state began, in milliseconds since the epoch.
    pub since_ms: u64,
}

/// Starts to follow replicas; returns once each has told its full state. Every change then goes to the channel, until the
/// receiver is gone.
///
/// # Errors
/// When a watch cannot be started.
pub async fn follow(replicas: Vec<Followed>) -> Result<mpsc::UnboundedReceiver<Change>> {
    let (changes, receiver) = mpsc::unbounded_channel();
    let (synced, mut all_synced) = mpsc::unbounded_channel::<Result<()>>();
    let count = replicas.len();
    std::thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            // Nobody may be waiting any more.
            Err(error) => return drop(synced.send(Err(error.into()))),
        };
        let followers = replicas.into_iter().enumerate().map(|(n, replica)| {
            let (changes, synced) = (changes.clone(), synced.clone());
            async move {
                let ended = tokio::select! {
                    ended = follow_one(n, replica, &changes, &synced) => ended,
                    () = changes.closed() => Ok(()),
                };
                drop(ended.map_err(|error| synced.send(Err(error))));
            }
        });
        runtime.block_on(futures::future::join_all(followers));
    });
    for _ in 0..count {
        all_synced.recv().await.context("a watch ended")?.context("cannot watch")?;
    }
    Ok(receiver)
}

/// A client of this replica.
///
/// # Errors
/// When the CA is none.
pub(crate) fn client(followed: &Followed) -> Result<Client> {
    let authorities = Certificate::from_pem_bundle(followed.ca_pem.as_bytes())?;
    let mut client = client_builder().tls_certs_only(authorities);
    if let Some((name, address)) = &followed.address {
        client = client.resolve(name, *address);
    }
    Ok(client.build()?)
}

async fn follow_one(
    replica: usize,
    followed: Followed,
    changes: &mpsc::UnboundedSender<Change>,
    synced: &mpsc::UnboundedSender<Result<()>>,
) -> Result<()> {
    let client = client(&followed)?;
    let request = client.get(format!("{}/v1/watch", followed.url)).bearer_auth(&followed.token).timeout(WATCH_FOR);
    let mut response = request.send().await?;
    ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
    let mut text = String::new();
    loop {
        let chunk = response.chunk().await?.context("the replica ended the watch")?;
        let at = Instant::now();
        text.push_str(std::str::from_utf8(&chunk)?);
        while let Some((block, rest)) = text.split_once("\n\n") {
            match Told::read(block)? {
                Told::Synced => drop(synced.send(Ok(()))),
                Told::Endpoint(endpoint) => {
                    let Endpoint { pod, state, source, since_ms } = endpoint;
                    let pod = pod.map(|pod| pod.name).unwrap_or_default();
                    if changes.send(Change { replica, at, pod, state, source, since_ms }).is_err() {
                        return Ok(());
                    }
                }
                Told::Other => {}
            }
            text = rest.to_owned();
        }
    }
}

enum Told {
    Synced,
    Endpoint(Endpoint),
    Other,
}

#[derive(Deserialize)]
struct Endpoint {
    pod: Option<PodName>,
    state: String,
    source: String,
    since_ms: u64,
}

#[derive(Deserialize)]
struct PodName {
    name: String,
}

impl Told {
    fn read(block: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Data {
            endpoint: Endpoint,
        }
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Ok(match (field("event:"), field("data:")) {
            (Some("synced"), _) => Self::Synced,
            (Some("endpoint"), Some(data)) => Self::Endpoint(serde_json::from_str::<Data>(data)?.endpoint),
            _ => Self::Other,
        })
    }
}

/// Waits until each of `replicas` has told `wanted` of a pod; returns when each did, in their order.
///
/// # Errors
/// When one does not in time.
pub async fn told_by_all(
    changes: &mut mpsc::UnboundedReceiver<Change>,
    replicas: usize,
    what: &str,
    wanted: impl Fn(&Change) -> bool,
) -> Result<Vec<Change>> {
    let mut told: Vec<Option<Change>> = vec![None; replicas];
    let all = async {
        while told.iter().any(Option::is_none) {
            let Some(change) = changes.recv().await else { bail!("the watches ended") };
            if wanted(&change)
                && let Some(slot) = told.get_mut(change.replica)
            {
                slot.get_or_insert(change);
            }
        }
        Ok(())
    };
    timeout(CHANGE_WITHIN, all).await.with_context(|| format!("not every replica tells that the pod is {what}"))??;
    Ok(told.into_iter().flatten().collect())
}
