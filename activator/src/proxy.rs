//! The request path: holds requests for targets without a ready pod, wakes the targets up, and lets requests go to
//! the pod the moment it is ready. Each worker is a thread with listeners, connections and pools of its own, so that
//! nothing on a warm request's way waits for another thread.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use metrics::gauge;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

pub mod annotations;
pub mod cluster;
pub mod fault;
#[cfg(test)]
mod fixtures;
pub mod follow;
mod forward;
mod guard;
mod headers;
mod listener;
pub mod route;
pub mod status;
pub mod target;
pub mod upstream;
pub mod wake;

#[cfg(feature = "fuzzing")]
pub use guard::{FuzzedGuard, fuzz as fuzz_guard};

use crate::server::connections::Connections;
use crate::server::tls::{Files, Tls, TlsError};
use crate::server::{Limits, Shutdown, ShutdownTrigger};
use forward::{Meters, Worker};
use listener::Door;
use route::Routes;
use target::Backend;
use upstream::trust::Trust;
use upstream::{Dialer, Slots};

/// How often connections to backends are looked through for those that nobody has used for long.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// How long before the end of the grace those whose requests are still held are told so.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How requests are taken and passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Where to listen for HTTP/1.1 and HTTP/2 in the clear.
    pub listen: SocketAddr,
    /// Where to listen for TLS, and the certificates to choose from by the name that a client asks for; the first is
    /// for those that ask for none of them.
    pub tls: Option<(SocketAddr, Vec<Files>)>,
    /// Threads.
    pub workers: usize,
    /// Bounds of each listener, over all workers.
    pub limits: Limits,
    /// Most connections to pods, over all workers.
    pub upstream_connections: usize,
    /// How long a pod may take to accept a connection, and as long again for TLS.
    pub connect_timeout: Duration,
    /// How long a pod may take until its answer begins; for ever when none.
    pub response_timeout: Option<Duration>,
    /// Whose `Forwarded` and `X-Forwarded-*` count.
    pub trusted: Vec<IpNet>,
    /// The CA certificates that pods' certificates are verified with.
    pub upstream_ca: Option<PathBuf>,
    /// The certificate to show to pods that ask for one.
    pub upstream_identity: Option<Files>,
    /// Whether each request is logged.
    pub access_log: bool,
}

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A certificate cannot be used.
    #[error("cannot use TLS")]
    Tls(#[from] TlsError),
    /// No thread, or no runtime on it.
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
}

/// A proxy that runs. Dropping it begins its end, which nobody waits for then.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    tls_address: Option<SocketAddr>,
    trust: Arc<Trust>,
    trigger: ShutdownTrigger,
    routes: Routes,
    grace: Duration,
    /// How many connections each worker cut at its end.
    ends: Vec<oneshot::Receiver<usize>>,
    followers: Vec<AbortHandle>,
}

impl Proxy {
    /// Starts the workers. Certificates are followed by tasks of the runtime that this is called in.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(config: ProxyConfig, routes: Routes) -> Result<Self, StartError> {
        let trust = Arc::new(Trust::open(config.upstream_ca.clone(), config.upstream_identity.clone())?);
        let (trigger, shutdown) = Shutdown::new();
        let workers = config.workers.max(1);
        let clear = Port::bind("proxy", config.listen, None, &config, workers)?;
        let (tls, files) = match &config.tls {
            None => (None, None),
            Some((address, files)) => {
                let tls = Tls::from_several(files)?.shown_by("proxy-tls");
                (
                    Some(Port::bind("proxy-tls", *address, Some(tls.clone()), &config, workers)?),
                    Some((tls, files.clone())),
                )
            }
        };
        let (address, tls_address) = (clear.address, tls.as_ref().map(|port| port.address));
        let mut ports: Vec<Port> = [Some(clear), tls].into_iter().flatten().collect();
        let trusted: Arc<[IpNet]> = config.trusted.clone().into();
        let mut ends = Vec::with_capacity(workers);
        for index in 0..workers {
            let doors = ports.iter_mut().filter_map(Port::door).collect();
            let start = Start {
                index,
                doors,
                routes: routes.clone(),
                trust: Arc::clone(&trust),
                config: config.clone(),
                trusted: Arc::clone(&trusted),
                shutdown: shutdown.clone(),
            };
            ends.push(start.spawn().map_err(StartError::Worker)?);
        }
        let mut followers = vec![tokio::spawn(Arc::clone(&trust).follow()).abort_handle()];
        followers.extend(files.map(|(tls, files)| tokio::spawn(tls.follow(files)).abort_handle()));
        Ok(Self { address, tls_address, trust, trigger, routes, grace: config.limits.grace, ends, followers })
    }

    /// Where it listens in the clear.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens with TLS.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// Whom it believes that they are pods: for whoever reads Secrets with CA certificates.
    pub fn trust(&self) -> &Arc<Trust> {
        &self.trust
    }

    /// Returns once a worker has ended, which none should before [`Proxy::end`].
    pub async fn first_end(&mut self) {
        let _ = futures::future::select_all(&mut self.ends).await;
    }

    /// Stops accepting, lets requests that are held or under way finish within the grace, and closes what is left.
    /// Returns how many connections that were.
    pub async fn end(self) -> usize {
        self.trigger.begin();
        let (routes, patience) = (self.routes, self.grace.saturating_sub(LAST_WORDS));
        let last_words = tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            routes.shut_down();
        });
        let mut cut = 0;
        for end in self.ends {
            match end.await {
                Ok(connections) => cut += connections,
                Err(_) => tracing::error!("a worker of the proxy panicked"),
            }
        }
        last_words.abort();
        self.followers.iter().for_each(AbortHandle::abort);
        cut
    }
}

/// One address, bound once for each worker.
struct Port {
    name: &'static str,
    address: SocketAddr,
    listeners: Vec<std::net::TcpListener>,
    tls: Option<Tls>,
    connections: Arc<Connections>,
}

impl Port {
    fn bind(
        name: &'static str,
        wanted: SocketAddr,
        tls: Option<Tls>,
        config: &ProxyConfig,
        workers: usize,
    ) -> Result<Self, StartError> {
        let mut address = wanted;
        let mut listeners = Vec::with_capacity(workers);
        for _ in 0..workers {
            let failed = |source| StartError::Bind { address, source };
            let listener = listener::bind(address).map_err(failed)?;
            // Whoever asked for any port gets one, the same for all workers.
            address = listener.local_addr().map_err(failed)?;
            listeners.push(listener);
        }
        tracing::info!(listener = name, %address, "listening");
        let Limits { connections, connections_per_source, .. } = config.limits;
        let connections = Arc::new(Connections::new(name, connections, connections_per_source));
        Ok(Self { name, address, listeners, tls, connections })
    }

    /// One worker's share of it.
    fn door(&mut self) -> Option<Door> {
        let (tls, connections) = (self.tls.clone(), Arc::clone(&self.connections));
        self.listeners.pop().map(|listener| Door { name: self.name, listener, tls, connections })
    }
}

/// What a worker begins with.
struct Start {
    index: usize,
    doors: Vec<Door>,
    routes: Routes,
    trust: Arc<Trust>,
    config: ProxyConfig,
    trusted: Arc<[IpNet]>,
    shutdown: Shutdown,
}

impl Start {
    fn spawn(self) -> io::Result<oneshot::Receiver<usize>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name(format!("proxy-{}", self.index)).spawn(move || {
            let cut = runtime.block_on(self.run());
            let _ = ended.send(cut);
        })?;
        Ok(end)
    }

    async fn run(self) -> usize {
        let (sweeps, wanted) = mpsc::unbounded_channel();
        let slots = Slots::new(self.config.upstream_connections / self.config.workers.max(1));
        let worker = Arc::new(Worker {
            index: self.index,
            routes: self.routes,
            trust: self.trust,
            dialer: Dialer::new(self.config.connect_timeout, Arc::clone(&slots)),
            meters: Meters::new(),
            response_timeout: self.config.response_timeout,
            access_log: self.config.access_log,
            sweeps,
        });
        let sweeping = tokio::spawn(sweep(self.index, wanted, slots));
        let doors = self.doors.into_iter().map(|door| {
            listener::run(
                door,
                Arc::clone(&worker),
                self.config.limits,
                Arc::clone(&self.trusted),
                self.shutdown.clone(),
            )
        });
        let mut cut = 0;
        for ended in futures::future::join_all(doors).await {
            match ended {
                Ok(connections) => cut += connections,
                Err(error) => tracing::error!(%error, "a listener could not be used"),
            }
        }
        sweeping.abort();
        cut
    }
}

/// Closes connections of this worker that nobody has used for long, or sooner when there is no room for others, and tells
/// how many tasks it has.
async fn sweep(index: usize, mut wanted: mpsc::UnboundedReceiver<Weak<Backend>>, slots: Arc<Slots>) {
    let mut backends: Vec<Weak<Backend>> = Vec::new();
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let tasks = gauge!("podlight_proxy_tasks", "worker" => index.to_string());
    let runtime = tokio::runtime::Handle::current().metrics();
    loop {
        let tight = tokio::select! {
            _ = ticks.tick() => false,
            () = slots.tight() => true,
        };
        // Exact in an f64, however many there are.
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        tasks.set(runtime.num_alive_tasks() as f64);
        while let Ok(backend) = wanted.try_recv() {
            backends.push(backend);
        }
        if tight {
            backends.iter().filter_map(Weak::upgrade).for_each(|backend| backend.pool(index).shed());
        }
        let now = Instant::now();
        backends.retain(|backend| backend.upgrade().is_some_and(|backend| backend.pool(index).sweep(now)));
    }
}

#[cfg(test)]
mod tests;
