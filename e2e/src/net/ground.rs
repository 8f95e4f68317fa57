//! A pair of namespaces with a real activator at the server's end, which answers probes there, and a cluster of manifests. Whoever
//! tests moves to the server's namespace, where the activator's own ports are; probes come from the client's.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::ask;
use super::pair::{DEVICE, Pair, servers};
use crate::activator::{Activator, ActivatorSpec};
use crate::eventually::eventually;
use crate::proxy::stage::{Stage, StagePod, nowhere, running_ready};

/// Where readiness is asked for.
pub const PORT: u16 = 8099;

/// How long somebody waits who does not expect an answer.
const BRIEFLY: Duration = Duration::from_millis(500);

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The activator itself.
    Userspace,
    /// The program, in the kernel's own way.
    Generic,
    /// The program, in the driver.
    Native,
}

impl Mode {
    /// Those in which the program answers.
    pub const PROGRAM: [Self; 2] = [Self::Generic, Self::Native];

    /// As `--xdp` takes it and the status API says it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Userspace => "off",
            Self::Generic => "generic",
            Self::Native => "native",
        }
    }
}

impl Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Userspace => "userspace",
            Self::Generic | Self::Native => self.flag(),
        })
    }
}

/// How a ground is to be.
#[derive(Clone, Copy, Debug)]
pub struct GroundSpec {
    /// Who answers.
    pub mode: Mode,
    /// Of the cable.
    pub mtu: u32,
    /// The activator's core, if it is to have one.
    pub core: Option<usize>,
    /// Who is to answer in the end: the activator itself where it cannot have what it asks for.
    pub serving: Mode,
    /// In which mode somebody else's program is there before (`xdpdrv`, `xdpgeneric`).
    pub foreign: Option<&'static str>,
}

impl GroundSpec {
    /// With the usual MTU.
    pub const fn new(mode: Mode) -> Self {
        Self { mode, mtu: 1500, core: None, serving: mode, foreign: None }
    }

    /// Makes it, runs `test` on it on a thread in the server's namespace, and takes it away.
    ///
    /// # Errors
    /// When it cannot be made or the test fails; the error names the mode.
    pub fn run<T: Send>(self, test: impl AsyncFnOnce(&mut Ground) -> Result<T> + Send) -> Result<T> {
        self.run_with(|spec| spec, test)
    }

    /// The same with an activator that differs.
    ///
    /// # Errors
    /// As [`GroundSpec::run`].
    pub fn run_with<T: Send>(
        self,
        differ: impl FnOnce(ActivatorSpec) -> ActivatorSpec + Send,
        test: impl AsyncFnOnce(&mut Ground) -> Result<T> + Send,
    ) -> Result<T> {
        let run = || {
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
            let pair = runtime()?.block_on(Pair::new(self.mtu))?;
            pair.server.enter()?;
            // Its threads begin in there.
            runtime()?.block_on(async {
                let mut ground = Ground::start(pair, self, differ).await?;
                let tested = test(&mut ground).await;
                tested.with_context(|| format!("the activator's log:\n{}", ground.activator().log_tail()))
            })
        };
        let ended = std::thread::scope(|scope| scope.spawn(run).join());
        ended.map_err(|_| anyhow!("a test on a ground panicked, {self}"))?.with_context(|| self.to_string())
    }
}

impl Display for GroundSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, MTU {}", self.mode, self.mtu)
    }
}

/// The two namespaces, the activator in one of them, its cluster.
pub struct Ground {
    // The activator goes before the namespace that it is in.
    /// The cluster and its one activator.
    pub stage: Stage<'static>,
    /// The namespaces.
    pub pair: Arc<Pair>,
    /// How it is.
    pub spec: GroundSpec,
}

impl Ground {
    async fn start(pair: Pair, spec: GroundSpec, differ: impl FnOnce(ActivatorSpec) -> ActivatorSpec) -> Result<Self> {
        if spec.mode == Mode::Native {
            pair.pass_at_client().await?;
        }
        if let Some(mode) = spec.foreign {
            pair.pass_at_server(mode).await?;
        }
        let stage = Stage::standalone_with(|activator| {
            let mut activator = activator.within(&pair.server).flag("xdp-listen", &format!("[::]:{PORT}"));
            activator = activator.flag("xdp", spec.mode.flag());
            if spec.mode != Mode::Userspace {
                activator = activator.flag("xdp-interface", DEVICE);
            }
            if let Some(core) = spec.core {
                activator = activator.on_core(core);
            }
            differ(activator)
        });
        let ground = Self { stage: stage.await?, pair: Arc::new(pair), spec };
        let status = ground.status().await?;
        let serving = status["map"]["serving"].as_str().unwrap_or_default();
        ensure!(
            serving == spec.serving.to_string(),
            "it serves {serving:?}: {status}, {}",
            ground.activator().log_tail()
        );
        Ok(ground)
    }

    /// The activator.
    pub fn activator(&self) -> &Activator {
        self.stage.activator()
    }

    /// Where to ask, over both families.
    pub fn servers(&self) -> [SocketAddr; 2] {
        servers(PORT)
    }

    /// Where to ask.
    pub fn server(&self) -> SocketAddr {
        self.servers()[0]
    }

    /// The path of a Service.
    pub fn path(&self, service: &str) -> String {
        format!("/ready/{}/{service}", self.stage.namespace)
    }

    /// The path of one of its endpoints.
    pub fn path_of(&self, service: &str, address: IpAddr) -> String {
        format!("{}/{address}", self.path(service))
    }

    /// A Service with one pod, ready by its sidecar's word, once the answer is 200.
    ///
    /// # Errors
    /// When it is not.
    pub async fn ready(&self, service: &str) -> Result<StagePod> {
        let pod = self.unready(service).await?;
        pod.ready().await?;
        self.until(&self.path(service), 200).await?;
        Ok(pod)
    }

    /// A Service with one pod that is ready by the API server's word, which holds while no sidecar says anything, once the
    /// answer is 200.
    ///
    /// # Errors
    /// When it is not.
    pub async fn lasting(&self, service: &str) -> Result<()> {
        self.stage.create_service(self.stage.service(service)).await?;
        let spec = self.stage.pod_spec(service, &format!("{service}-0"));
        self.stage.create_pod(spec, &running_ready(nowhere())).await?;
        self.until(&self.path(service), 200).await
    }

    /// A Service with one pod that is not ready, once the answer is 503.
    ///
    /// # Errors
    /// When it is not.
    pub async fn unready(&self, service: &str) -> Result<StagePod> {
        self.stage.create_service(self.stage.service(service)).await?;
        let pod = self.stage.pod_at(service, &format!("{service}-0"), nowhere()).await?;
        self.until(&self.path(service), 503).await?;
        Ok(pod)
    }

    /// The status of an answer over IPv4.
    ///
    /// # Errors
    /// When there is none.
    pub fn ask(&self, path: &str) -> Result<u16> {
        ask::status(&ask::exchange(&self.pair, self.server(), &[&ask::request(path)])?)
    }

    /// What the activator says of its readiness map.
    ///
    /// # Errors
    /// When it does not.
    pub async fn status(&self) -> Result<Value> {
        let reply = self.activator().admin("/status/xdp").await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.body);
        Ok(serde_json::from_str(&reply.body)?)
    }

    /// What has become of every packet to the port.
    ///
    /// # Errors
    /// When the activator does not say.
    pub async fn counters(&self) -> Result<Counters> {
        Ok(Counters(serde_json::from_value(self.status().await?["packets"].take())?))
    }

    /// The status of an answer over IPv4, if there is one within half a second.
    pub fn ask_briefly(&self, path: &str) -> Option<u16> {
        let answer = ask::exchange_within(&self.pair, self.server(), &[&ask::request(path)], BRIEFLY);
        answer.ok().and_then(|answer| ask::status(&answer).ok())
    }

    /// Asks until the answers over both families are as wanted: for what the map learns in its own time.
    ///
    /// # Errors
    /// When they never are.
    pub async fn until(&self, path: &str, status: u16) -> Result<()> {
        for server in self.servers() {
            eventually(&format!("{server} answers {status} for {path}"), async || {
                let answer = ask::status(&ask::exchange(&self.pair, server, &[&ask::request(path)])?)?;
                ensure!(answer == status, "it answers {answer}");
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }
}

/// The program's counters.
#[derive(Clone, Debug)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// One of them.
    pub fn of(&self, label: &str) -> u64 {
        self.0.get(label).copied().unwrap_or(0)
    }

    /// All of them.
    pub fn sum(&self) -> u64 {
        self.0.values().sum()
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().map(|(label, count)| (label.clone(), count - before.of(label))).collect())
    }
}
