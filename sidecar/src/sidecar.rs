//! The running process: bind, watch, push, until a signal; then the drain, within its deadline.

use std::net::SocketAddr;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::admin::{Admin, Listeners, Watching};
use crate::announcer::Announcer;
use crate::config::{Config, Push};
use crate::drain::drain;
use crate::probe::{self, Finding};
use crate::publisher::{Publisher, Settings};
use crate::readiness::State;

/// Why the sidecar could not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The admin port or its socket is not to be had.
    #[error("the admin port {address} cannot be bound")]
    Bind {
        /// The port.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    /// A part that never ends has ended.
    #[error("{0} has ended by itself")]
    Ended(&'static str),
    /// A part has panicked.
    #[error("a part of the sidecar has failed")]
    Failed(#[from] tokio::task::JoinError),
    /// A second signal came before the first was done with.
    #[error("a second signal came: ended at once")]
    Aborted,
}

/// Runs until a signal ends it.
///
/// # Errors
/// [`RunError`].
pub async fn run(config: Config, metrics: PrometheusHandle) -> Result<(), RunError> {
    let mut signals = Signals::receive().map_err(RunError::Signals)?;
    let bind = |source| RunError::Bind { address: config.admin, source };
    let listeners = Listeners::bind(config.admin, config.admin_socket.as_deref()).await.map_err(bind)?;
    let admin_address = listeners.local_address().map_err(bind)?;
    let mut parts = JoinSet::new();
    let watching = config.push.as_ref().map(|push| watch(push, &mut parts));
    info!(%admin_address, push = watching.is_some(), version = env!("CARGO_PKG_VERSION"), "sidecar started");
    let admin = Admin { metrics: metrics.clone(), watching: watching.clone() };
    part(&mut parts, "the admin port", admin.serve(listeners));
    part(&mut parts, "metrics upkeep", Admin::upkeep(metrics));
    tokio::select! {
        name = signals.next() => info!(signal = name, "stopping"),
        Some(ended) = parts.join_next() => return Err(RunError::Ended(ended?)),
    }
    let Some(Watching { announcer, board, .. }) = watching else { return Ok(()) };
    if announcer.current().state() == State::Draining {
        info!("the drain was announced before");
        return Ok(());
    }
    tokio::select! {
        _ = drain(&announcer, board, config.drain_deadline) => Ok(()),
        name = signals.next() => {
            warn!(signal = name, "stopping at once");
            Err(RunError::Aborted)
        }
    }
}

/// Starts what a sidecar does that pushes.
fn watch(push: &Push, parts: &mut JoinSet<&'static str>) -> Watching {
    let probes: Arc<[_]> = push.probes.clone().into();
    let thresholds: Vec<_> = probes.iter().map(|probe| probe.thresholds).collect();
    let announcer = Announcer::start(&thresholds);
    let (findings, found) = watch::channel(vec![Finding::default(); probes.len()]);
    let settings = Settings {
        identity: push.identity.clone(),
        activator: push.activator.clone(),
        token: &push.token,
        ca: &push.ca,
        timeout: push.timeout,
    };
    let publisher = Publisher::new(settings, announcer.clone());
    let board = publisher.board();
    part(parts, "the publisher", publisher.run());
    let pod = push.probed_address();
    for index in 0..probes.len() {
        let (probes, announcer, findings) = (Arc::clone(&probes), announcer.clone(), findings.clone());
        part(parts, "a probe", async move { probe::run(index, &probes[index], pod, &announcer, &findings).await });
    }
    Watching { announcer, board, findings: found, probes }
}

fn part(parts: &mut JoinSet<&'static str>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    parts.spawn(async move {
        work.await;
        name
    });
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn receive() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
