//! The readiness map: answers to `GET /ready/<namespace>/<service>[/<address>]` and to configured probes of pods, taken from
//! the table. An XDP program gives them before a socket exists, at the interfaces that were named and where the kernel lets
//! it; this process gives the same from the same port everywhere else.
//!
//! [`answers`] tells what is to be answered (pure), [`writer`] follows the table and writes it into [`held`] and [`kernel`],
//! `server` answers from the former, the program from the latter.
//!
//! Invariant: *never a false 200*. Whoever is told 200 is told what the table said at some moment within the time to live
//! before. A writer that lags or hangs, a table that is behind, a kernel that takes no correction: each ends in 503.

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub mod answers;
pub mod attachment;
#[cfg(feature = "xdp")]
pub mod capabilities;
#[cfg(test)]
mod fixtures;
pub mod held;
#[cfg(feature = "xdp")]
pub mod interface;
pub mod kernel;
#[cfg(feature = "xdp")]
pub mod maps;
pub mod place;
pub mod probe;
#[cfg(feature = "xdp")]
pub mod program;
mod server;
pub mod show;
pub mod status;
pub mod writer;

use answers::Answers;
use attachment::{Attachment, Loaded, Packets};
use held::Held;
use place::Probe;
use status::Status;
use writer::Writer;

use crate::server::{Shutdown, ShutdownTrigger};
use crate::table::snapshot::{Feed, Groups};

/// Longest path that can be asked for, in bytes.
pub const LONGEST_PATH: usize = podlight_xdp::MAX_PATH;

/// How often the metrics learn what became of packets.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// Connections of the readiness port, which need a descriptor each.
pub(crate) const CONNECTIONS: usize = server::CONNECTIONS;

/// Who answers at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// This process.
    Off,
    /// Whatever is best there.
    Auto,
    /// An XDP program in the driver.
    Native,
    /// An XDP program in the kernel's own way, for any interface.
    Generic,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            _ => Err(()),
        }
    }
}

/// What is answered, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpConfig {
    /// The readiness port.
    pub listen: SocketAddr,
    /// Who answers at the interfaces.
    pub mode: Mode,
    /// The interfaces, each with its own mode.
    pub interfaces: Vec<(String, Mode)>,
    /// Probes of pods that are answered there.
    pub probes: Vec<Probe>,
    /// How long answers are given after a sign of life.
    pub ttl: Duration,
    /// Most answers.
    pub max_entries: u32,
}

/// Why there is no readiness map.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is not ours.
    #[error("the readiness port cannot be served")]
    Listener(#[source] io::Error),
}

/// The readiness map of a running activator.
#[derive(Debug)]
pub struct Xdp {
    status: Arc<Status>,
    withdraw: ShutdownTrigger,
    withdrawn: Shutdown,
    end: ShutdownTrigger,
}

/// The tasks that have to run as long as it.
pub(crate) type Tasks = [(&'static str, JoinHandle<()>); 3];

impl Xdp {
    /// Starts answering on a listener that is bound: 503 until the cluster is `synced`.
    pub(crate) fn start(
        config: &XdpConfig,
        attachment: Attachment,
        listener: TcpListener,
        (groups, feed): (Groups, Feed),
        synced: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(Self, Tasks), StartError> {
        let listen = listener.local_addr().map_err(StartError::Listener)?;
        let held = Arc::new(Held::new(config.ttl));
        let answers = Answers::new(&config.probes, LONGEST_PATH);
        let most = usize::try_from(config.max_entries).unwrap_or(usize::MAX);
        let Attachment { outcome, kernel } = attachment;
        let packets = kernel.as_ref().map(Loaded::packets);
        let (program, map) = kernel.map(|kernel| kernel.mirror(config, listen)).unzip();
        let writer = Writer::new((groups, feed), answers, Arc::clone(&held), map, most);
        let ((withdraw, begun), (done, withdrawn), (end, ended)) = (Shutdown::new(), Shutdown::new(), Shutdown::new());
        let recording = tokio::spawn(record(packets.clone(), ended.clone()));
        let status = Arc::new(Status { listen, most: config.max_entries, outcome, held: Arc::clone(&held), packets });
        let server = tokio::spawn(server::serve(listener, held, CONNECTIONS, ended.clone()));
        let writer = tokio::spawn(async move {
            let map = writer.run(synced, async move { begun.begun().await }).await;
            done.begin();
            // Attached until the end: what the program has begun to answer, it answers 503.
            ended.begun().await;
            drop((map, program));
        });
        let xdp = Self { status, withdraw, withdrawn, end };
        let tasks = [
            ("the writer of the readiness map", writer),
            ("the readiness port", server),
            ("counting packets", recording),
        ];
        Ok((xdp, tasks))
    }

    /// What it does.
    pub(crate) fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Has every answer be 503 from now on.
    pub(crate) async fn withdraw(&self) {
        self.withdraw.begin();
        self.withdrawn.begun().await;
    }

    /// Ends the program and the server.
    pub(crate) fn end(self) {
        self.end.begin();
    }
}

/// Tells the metrics what became of packets, until the end begins.
async fn record(packets: Option<Packets>, ended: Shutdown) {
    let begun = ended.begun();
    tokio::pin!(begun);
    let mut ticks = tokio::time::interval(RECORD_EVERY);
    loop {
        tokio::select! {
            () = &mut begun => return,
            _ = ticks.tick(), if packets.is_some() => {}
        }
        for (fate, count) in packets.iter().flat_map(|packets| packets()) {
            counter!("podlight_xdp_packets_total", "fate" => fate).absolute(count);
        }
    }
}
