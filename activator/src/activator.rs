//! One activator, from checked settings to its end: opens everything, connects the parts in the one direction that
//! data goes, and takes them down in order. Everything that can fail before the listeners are bound does.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use metrics_exporter_prometheus::PrometheusHandle;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use crate::admin::{Admin, PageConfig, Readiness, Requests};
use crate::api::{self, ApiConfig};
use crate::cluster::token::IssuerKey;
use crate::cluster::{self, Api, Health, Pods, StandaloneConfig, WatchConfig, spawn_standalone};
use crate::config::{ClusterConfig, Config, Faults, RequestConfig, TlsConfig};
use crate::ingest::{self, Ingest};
use crate::proxy::cluster::follow_secrets;
use crate::proxy::follow::{self, Following};
use crate::proxy::upstream::trust::Trust;
use crate::proxy::wake::Scaler;
use crate::proxy::{self, Proxy, ProxyConfig};
use crate::server::tls::{Tls, TlsError};
use crate::server::{Server, Shutdown, ShutdownTrigger, bind, with_fallbacks};
use crate::table::Table;
use crate::table::owner::{self, Clock, TableHandle};
use crate::table::snapshot::{Feed, Groups};
use crate::xdp::attachment::Attachment;
use crate::xdp::{self, Xdp, XdpConfig};

/// Messages that may wait for the table besides those of requests under way, so that none of these is turned away.
const TABLE_MESSAGES: usize = 16_384;

/// Descriptors kept back for everything that is not a connection of a listener or to a pod.
const OTHER_DESCRIPTORS: usize = 512;

/// How often ingest drops what has ended.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// How long the watches and the table may take to end once nothing feeds them.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an activator did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What the configuration names cannot be used: files, or the way to a cluster.
    #[error(transparent)]
    Config(#[from] Faults),
    /// An address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No random name for this process.
    #[error("there is no randomness")]
    Random,
    /// The admin port could not be served.
    #[error("the admin port ended")]
    Admin(#[source] io::Error),
    /// The request path could not begin.
    #[error("cannot take requests")]
    Proxy(#[from] proxy::StartError),
    /// Health checks cannot be answered as they have to be.
    #[error("cannot serve the readiness map")]
    Xdp(#[from] xdp::StartError),
    /// A part that runs for ever has ended.
    #[error("{0} ended unexpectedly")]
    Part(&'static str),
    /// A second signal came before the end.
    #[error("aborted by a second signal")]
    Aborted,
}

/// Where the cluster's objects will come from, checked but not yet asked.
enum Source {
    Kubernetes(kube::Client),
    Standalone { manifests: PathBuf, key: Arc<IssuerKey>, issuer: String },
}

/// Runs an activator until the first signal, and takes it down; a second one aborts that. The attachment is that of the
/// configured readiness map; it is made before there are threads.
///
/// # Errors
/// [`RunError`].
pub async fn run(
    config: Config,
    attachment: Option<Attachment>,
    metrics: PrometheusHandle,
    mut signals: impl Stream<Item = ()> + Unpin,
) -> Result<(), RunError> {
    let config = within_descriptors(config);
    let mut faults = Faults::default();
    let tls = faults.open("tls-cert", open_tls(&config.tls));
    let source = Source::open(&config.cluster, &mut faults).await;
    if let Some(requests) = &config.requests {
        try_files(&requests.proxy, &mut faults);
    }
    let (tls, source) = faults.or(tls.zip(source))?;
    let instance = random_name()?;
    let admin_listener = listen("admin", config.admin_listen)?;
    let listener = listen("events", config.listen)?;
    let readiness_listener = config.xdp.as_ref().map(|xdp| listen("readiness", xdp.listen)).transpose()?;

    let (trigger, shutdown) = Shutdown::new();
    let clock = Clock::start();
    let (table, groups, feed, owner) =
        owner::spawn(Table::new(config.ingest.pacing), clock, TABLE_MESSAGES + config.ingest.max_in_flight);
    let (api, pods, health, watches) = source.spawn(&config, &shutdown, table.clone());
    let readiness = Readiness::new(health.clone());
    let ingest = Ingest::new(config.ingest.clone(), api.clone(), pods, health.clone(), table, clock);
    let mut parts = Parts::default();
    let read = Read { api, health: health.clone(), groups, feed, clock };
    let (proxy, requests) = match &config.requests {
        Some(requests) => Some(start_proxy(requests, read.clone(), &mut parts)?).unzip(),
        None => (None, None),
    };
    let xdp = config.xdp.as_ref().zip(attachment).zip(readiness_listener);
    let xdp = xdp.map(|(xdp, listener)| start_xdp(xdp, listener, &read, &mut parts)).transpose()?;
    let (admin_trigger, admin_shutdown) = Shutdown::new();
    let page = config.status_page.then(|| PageConfig {
        replica: config.ingest.replica.clone(),
        groups: read.groups.clone(),
        requests,
        xdp: xdp.as_ref().map(Xdp::status),
        clock,
    });
    let admin =
        Admin::start(admin_listener, readiness.clone(), metrics, page, admin_shutdown).map_err(RunError::Admin)?;
    let router = router(&config, &ingest, read, &instance, &shutdown);
    parts.add("the table", owner);
    watches.into_iter().for_each(|watch| parts.add("a watch", watch));
    parts.add_endless("warming up", warm_up(Arc::clone(&ingest), health, readiness.clone()));
    parts.add_endless("sweeping", sweep(ingest));
    if let (Some(tls), TlsConfig::Files(files)) = (&tls, &config.tls) {
        parts.add_endless("following the certificate", tls.clone().follow(vec![files.clone()]));
    }
    let server = Server { name: "events", listener, tls, router, limits: config.limits };
    let mut server = tokio::spawn(server.serve(shutdown));

    let failure = tokio::select! {
        _ = signals.next() => None,
        part = parts.first_end() => Some(part),
        _ = &mut server => Some("the server"),
    };
    if let Some(part) = failure {
        tracing::error!(part, "a part of the activator ended unexpectedly; it goes down");
    }
    let end = end(&config, &readiness, trigger, server, (proxy, xdp), parts);
    tokio::select! {
        () = end => {}
        // The streams of signals never end.
        _ = signals.next() => return Err(RunError::Aborted),
    }
    admin_trigger.begin();
    let joined = tokio::task::spawn_blocking(|| admin.join()).await.map_err(io::Error::other);
    joined.and_then(|served| served).map_err(RunError::Admin)?;
    tracing::info!("ended");
    failure.map_or(Ok(()), |part| Err(RunError::Part(part)))
}

/// Not ready, then (once others may have noticed) no new connections, then the end of those that are there.
async fn end(
    config: &Config,
    readiness: &Readiness,
    trigger: ShutdownTrigger,
    server: JoinHandle<usize>,
    (proxy, xdp): (Option<Proxy>, Option<Xdp>),
    parts: Parts,
) {
    readiness.stopping();
    tracing::info!(delay = ?config.shutdown_delay, grace = ?config.limits.grace, "going down");
    tokio::time::sleep(config.shutdown_delay).await;
    // Probers hear 503 while the rest ends.
    if let Some(xdp) = &xdp {
        xdp.withdraw().await;
    }
    // Requests first: events still release what is held.
    if let Some(proxy) = proxy {
        proxy.end().await;
    }
    trigger.begin();
    if !server.is_finished()
        && let Err(error) = server.await
    {
        tracing::error!(%error, "the server ended badly");
    }
    xdp.into_iter().for_each(Xdp::end);
    parts.end().await;
}

/// Starts taking requests. Before the cluster has been listed, a host that nobody has is answered 503, not 404.
fn start_proxy(config: &RequestConfig, read: Read, parts: &mut Parts) -> Result<(Proxy, Requests), RunError> {
    let Read { api, health, groups, feed, .. } = read;
    let asked = Arc::new(api.clone());
    let Following { routes, hub, follower, waker } =
        follow::spawn(&config.follow, groups, feed, Arc::clone(&asked) as Arc<dyn Scaler>, asked);
    let proxy = Proxy::start(config.proxy.clone(), routes.clone())?;
    let requests = Requests { routes: routes.clone(), hub };
    parts.add_task("following the table", follower);
    parts.add_task("waking targets", waker);
    parts.add_endless("following Secrets", follow_secrets(api, routes.clone(), Arc::clone(proxy.trust())));
    parts.add_endless("waiting for the cluster", async move {
        health.wait_synced().await;
        routes.complete();
        std::future::pending().await
    });
    Ok((proxy, requests))
}

/// Starts answering health checks. Before the cluster has been listed, each is answered 503.
fn start_xdp(
    (config, attachment): (&XdpConfig, Attachment),
    listener: TcpListener,
    read: &Read,
    parts: &mut Parts,
) -> Result<Xdp, RunError> {
    let health = read.health.clone();
    let synced = async move { health.wait_synced().await };
    let (xdp, tasks) = Xdp::start(config, attachment, listener, (read.groups.clone(), read.feed.clone()), synced)?;
    tasks.into_iter().for_each(|(name, task)| parts.add(name, task));
    Ok(xdp)
}

fn open_tls(config: &TlsConfig) -> Result<Option<Tls>, TlsError> {
    let tls = match config {
        TlsConfig::Files(files) => Tls::from_files(files)?,
        TlsConfig::SelfSigned { names, ca_out } => Tls::self_signed(names, ca_out.as_deref())?,
        TlsConfig::Plaintext => {
            tracing::warn!("serving without TLS: tokens can be read on the wire");
            return Ok(None);
        }
    };
    Ok(Some(tls.shown_by("events")))
}

/// Reads the files that the request path will use, to tell of all that cannot be.
fn try_files(config: &ProxyConfig, faults: &mut Faults) {
    for files in config.tls.iter().flat_map(|(_, certificates)| certificates) {
        faults.open("proxy-certificate", Tls::from_files(files));
    }
    faults.open("upstream-ca", Trust::open(config.upstream_ca.clone(), None));
    if let Some(files) = &config.upstream_identity {
        faults.open("upstream-certificate", Tls::from_files(files));
    }
}

/// A name that no other process has, so that nobody resumes a watch in the wrong one.
fn random_name() -> Result<String, RunError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| RunError::Random)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

fn listen(listener: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    let failed = |source| RunError::Bind { address, source };
    let bound = bind(address).map_err(failed)?;
    tracing::info!(listener, address = %bound.local_addr().map_err(failed)?, "listening");
    Ok(bound)
}

/// Has the bounds of all connections fit into the descriptors that there are: beyond a bound idle connections make room,
/// beyond the descriptors the kernel refuses.
fn within_descriptors(mut config: Config) -> Config {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The soft limit is low for the sake of select(2), which is not used here.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let Some(descriptors) = getrlimit(Resource::Nofile).current else { return config };
    let kept = OTHER_DESCRIPTORS + config.xdp.as_ref().map_or(0, |_| xdp::CONNECTIONS);
    let most = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(kept).max(1);
    let mut bounds = vec![(1, &mut config.limits.connections)];
    if let Some(RequestConfig { proxy, .. }) = &mut config.requests {
        let listeners = if proxy.tls.is_some() { 2 } else { 1 };
        bounds.extend([(listeners, &mut proxy.limits.connections), (1, &mut proxy.upstream_connections)]);
    }
    let wanted = fit(&mut bounds, most);
    if most < wanted {
        tracing::warn!(wanted, most, "the limit of open files allows fewer connections");
    }
    config
}

/// Makes bounds smaller, all by the same factor, until as many of each as it says are not more than `most` together.
/// Returns how many they were.
fn fit(bounds: &mut [(usize, &mut usize)], most: usize) -> usize {
    let wanted = bounds.iter().map(|(times, bound)| bound.saturating_mul(*times)).fold(0, usize::saturating_add);
    if most < wanted {
        for (_, bound) in bounds {
            let share = **bound as u128 * most as u128 / wanted as u128;
            **bound = usize::try_from(share).unwrap_or(usize::MAX).max(1);
        }
    }
    wanted
}

impl Source {
    async fn open(config: &ClusterConfig, faults: &mut Faults) -> Option<Self> {
        match config {
            ClusterConfig::Kubernetes { kubeconfig, context } => {
                let client = cluster::connect(kubeconfig.as_deref(), context.as_deref()).await;
                faults.open("kubeconfig", client).map(Self::Kubernetes)
            }
            ClusterConfig::Standalone { manifests, issuer_key, issuer } => {
                let key = faults.open("issuer-key", IssuerKey::load_or_create(issuer_key))?;
                Some(Self::Standalone { manifests: manifests.clone(), key: Arc::new(key), issuer: issuer.clone() })
            }
        }
    }

    fn spawn(
        self,
        config: &Config,
        shutdown: &Shutdown,
        table: TableHandle,
    ) -> (Api, Pods, Health, Vec<JoinHandle<()>>) {
        let (revision_labels, shutdown) = (config.revision_labels.clone(), shutdown.signal());
        match self {
            Self::Kubernetes(client) => {
                cluster::spawn_kubernetes(client, WatchConfig { revision_labels, shutdown }, table)
            }
            Self::Standalone { manifests: path, key: issuer_key, issuer } => {
                tracing::info!(auth = ?config.ingest.auth, manifests = %path.display(), "standalone: manifests are the cluster");
                spawn_standalone(StandaloneConfig { path, issuer_key, issuer, revision_labels, shutdown }, table)
            }
        }
    }
}

/// What the query API and the request path read.
#[derive(Clone)]
struct Read {
    api: Api,
    health: Health,
    groups: Groups,
    feed: Feed,
    clock: Clock,
}

fn router(config: &Config, ingest: &Arc<Ingest>, read: Read, instance: &str, shutdown: &Shutdown) -> axum::Router {
    let Read { api, health, groups, feed, clock } = read;
    let queries = ApiConfig {
        replica: config.ingest.replica.clone(),
        authenticator: ingest.authenticator(),
        api,
        health,
        groups,
        feed,
        clock,
        shutdown: shutdown.clone(),
    };
    with_fallbacks(ingest::router(Arc::clone(ingest)).merge(api::router(queries, instance)))
}

/// Ready once the cluster has been listed and tokens can be judged. Stays, because parts that end are looked at.
async fn warm_up(ingest: Arc<Ingest>, health: Health, readiness: Readiness) {
    tokio::join!(health.wait_synced(), ingest.warm_up());
    readiness.warmed_up();
    tracing::info!("ready");
    std::future::pending().await
}

async fn sweep(ingest: Arc<Ingest>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        ingest.sweep().await;
    }
}

/// What runs as long as the process.
#[derive(Default)]
struct Parts {
    ends: JoinSet<&'static str>,
    endless: Vec<AbortHandle>,
}

impl Parts {
    /// Adds a part that ends by itself once the end has begun.
    fn add(&mut self, name: &'static str, task: JoinHandle<()>) {
        self.ends.spawn(async move {
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(part = name, %error, "a part of the activator panicked");
            }
            name
        });
    }

    /// Adds a part that has to be ended.
    fn add_endless(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.add_task(name, tokio::spawn(part));
    }

    /// As [`Parts::add_endless`], for one that has been spawned.
    fn add_task(&mut self, name: &'static str, task: JoinHandle<()>) {
        self.endless.push(task.abort_handle());
        self.add(name, task);
    }

    /// Waits until one of them has ended, which none should.
    async fn first_end(&mut self) -> &'static str {
        match self.ends.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(_)) | None => "a part",
        }
    }

    /// Waits for all to end, with a deadline.
    async fn end(mut self) {
        self.endless.iter().for_each(AbortHandle::abort);
        let all = async { while self.ends.join_next().await.is_some() {} };
        if tokio::time::timeout(END_TIMEOUT, all).await.is_err() {
            tracing::warn!(parts = self.ends.len(), "parts of the activator do not end");
        }
    }
}

#[cfg(test)]
mod tests;
