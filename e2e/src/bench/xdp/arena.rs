//! Whoever answers probes under measurement, each in a pair of namespaces of its own: nginx, the activator itself, and its
//! program in both modes. All at once, so that rounds can take turns.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};

use super::probes::{Probed, Probes};
use crate::bench::proxy::child::{MEASURED_CORE, OTHER_CORE, core_of};
use crate::control_plane::process::Process;
use crate::net::ground::{GroundSpec, Mode, PORT};
use crate::net::pair::{Pair, servers};
use crate::net::servers::nginx_that_answers;

/// The Service that is asked for.
const SERVICE: &str = "web";

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Nginx,
    Ours(Mode),
}

impl Who {
    /// All of them.
    pub(super) const ALL: [Self; 4] =
        [Self::Nginx, Self::Ours(Mode::Userspace), Self::Ours(Mode::Generic), Self::Ours(Mode::Native)];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Ours(Mode::Userspace) => "userspace",
            Self::Ours(Mode::Generic) => "XDP generic",
            Self::Ours(Mode::Native) => "XDP native",
        }
    }
}

/// One of them, ready to answer.
pub(super) struct Contender {
    pub(super) who: Who,
    pub(super) pair: Arc<Pair>,
    pub(super) path: String,
    /// The kernel's id of the process that answers, or whose program does.
    pub(super) process: u32,
    kept: Kept,
}

enum Kept {
    Nginx {
        _process: Process,
    },
    /// The thread that keeps the ground ends when the sender goes.
    Ground(Option<mpsc::Sender<()>>, Option<JoinHandle<Result<()>>>),
}

impl Contender {
    /// Starts it on the measured core.
    pub(super) async fn start(who: Who) -> Result<Self> {
        match who {
            Who::Nginx => {
                let pair = Arc::new(Pair::new(1500).await?);
                let nginx = nginx_that_answers(&pair.server, PORT, Some(&core_of(MEASURED_CORE))).await?;
                Ok(Self {
                    who,
                    path: "/ready".to_owned(),
                    process: nginx.id(),
                    pair,
                    kept: Kept::Nginx { _process: nginx },
                })
            }
            Who::Ours(mode) => tokio::task::spawn_blocking(move || Self::ground(who, mode)).await?,
        }
    }

    fn ground(who: Who, mode: Mode) -> Result<Self> {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let spec = GroundSpec { core: Some(MEASURED_CORE), ..GroundSpec::new(mode) };
        let thread = std::thread::spawn(move || {
            spec.run_with(
                |activator| activator.flag("log", "warn"),
                async move |ground| {
                    ground.lasting(SERVICE).await?;
                    let process = ground.activator().id().context("the activator has ended")?;
                    tell.send((Arc::clone(&ground.pair), ground.path(SERVICE), process))?;
                    // Until nobody needs it.
                    let _ = stopped.recv();
                    Ok(())
                },
            )
        });
        let Ok((pair, path, process)) = told.recv() else {
            let ended = thread.join().map_err(|_| anyhow!("a ground's thread panicked"))?;
            return match ended {
                Err(error) => Err(error),
                Ok(()) => bail!("the ground has ended"),
            };
        };
        Ok(Self { who, pair, path, process, kept: Kept::Ground(Some(stop), Some(thread)) })
    }

    /// Where it is asked.
    pub(super) fn to(&self) -> SocketAddr {
        servers(PORT)[0]
    }

    /// Probes it from the other core.
    pub(super) async fn probe(&self, at_once: usize, count: u64, seconds: f64, rate: Option<f64>) -> Result<Probed> {
        let probes = Probes { to: self.to(), path: self.path.clone(), at_once, count, seconds, rate };
        let report = child(&self.pair, OTHER_CORE, &["probes", &serde_json::to_string(&probes)?]).await?;
        Ok(serde_json::from_str(&report)?)
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        match &mut self.kept {
            Kept::Nginx { .. } => {}
            Kept::Ground(stop, thread) => {
                stop.take();
                // What it says at its end is nobody's concern any more.
                let _ = thread.take().map(JoinHandle::join);
            }
        }
    }
}

/// Runs a child of the bench on a core in the client's namespace to its end. Returns what it printed.
pub(super) async fn child(pair: &Pair, core: usize, arguments: &[&str]) -> Result<String> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path that is no text")?;
    let core = core_of(core);
    pair.client.run("taskset", &[&["-c", &core, program, "child"], arguments].concat()).await
}
