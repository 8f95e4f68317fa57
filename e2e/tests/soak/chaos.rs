//! Whatever can happen to pods, all kinds in turn.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podlight_e2e::backend::Backend;
use podlight_e2e::proxy::island::Island;
use podlight_e2e::proxy::stage::{Stage, Web};
use podlight_e2e::simulation::random::Random;
use podlight_proto::Kind;

use crate::{Ledger, SERVICES};

/// Pods of each Service, of which the first is left alone.
pub(crate) const PODS: usize = 4;

/// Whoever has a request on a lost node waits until the kernel finds out, for 20 s: others are to be left who ask.
const LOST_EVERY: Duration = Duration::from_secs(10);

/// Addresses of lost pods rest until there are more than this.
const SPARE: usize = 4;

/// What can happen to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Blow {
    /// Not ready and ready again.
    Flap,
    /// Killed, its connections reset, and started again: nobody says so until it is back.
    Reset,
    /// Its packets are dropped for a while, and nobody ever says so.
    Blackhole,
    /// Its packets are dropped for good, and its node is found to be lost: another pod comes at another address.
    Lost,
    /// Replaced by another life at its address.
    Replaced,
    /// It and a pod of the other Service are replaced by pods that have each other's address.
    Swapped,
}

impl Blow {
    pub(crate) const ALL: [Self; 6] =
        [Self::Flap, Self::Reset, Self::Blackhole, Self::Lost, Self::Replaced, Self::Swapped];
}

/// A pod whose packets are dropped for a while.
struct Dark {
    service: &'static str,
    n: usize,
    until: Instant,
}

/// Does it.
pub(crate) struct Chaos<'a> {
    stage: &'a Stage<'static>,
    island: &'a Island,
    ledger: &'a Ledger,
    random: Random,
    lives: u64,
    pub(crate) blows: BTreeMap<Blow, usize>,
    dark: Vec<Dark>,
    lost_at: Option<Instant>,
    spare: VecDeque<IpAddr>,
    /// Apps of pods that are gone, which would answer whatever came on a connection that they have.
    pub(crate) past: Vec<Backend>,
}

pub(crate) type Pods = BTreeMap<&'static str, Vec<Web>>;

impl<'a> Chaos<'a> {
    pub(crate) fn new(stage: &'a Stage<'static>, island: &'a Island, ledger: &'a Ledger, random: Random) -> Self {
        let (blows, dark, spare, past) = (BTreeMap::new(), Vec::new(), VecDeque::new(), Vec::new());
        Self { stage, island, ledger, random, lives: 0, blows, dark, lost_at: None, spare, past }
    }

    pub(crate) async fn run(&mut self, pods: &mut Pods) -> Result<()> {
        while !self.ledger.is_over() {
            for blow in Blow::ALL {
                if blow == Blow::Lost && self.lost_at.is_some_and(|at| at.elapsed() < LOST_EVERY) {
                    continue;
                }
                if blow == Blow::Lost {
                    self.lost_at = Some(Instant::now());
                }
                for (service, _) in SERVICES {
                    self.light(pods, Instant::now()).await?;
                    let n = self.victim(service);
                    self.strike(pods, blow, service, n).await?;
                    *self.blows.entry(blow).or_default() += 1;
                }
            }
        }
        let end = Instant::now() + Duration::from_secs(3600);
        self.light(pods, end).await
    }

    /// A pod that is not dark.
    fn victim(&mut self, service: &str) -> usize {
        loop {
            let n = 1 + self.random.index(PODS - 1);
            if !self.dark.iter().any(|dark| dark.service == service && dark.n == n) {
                return n;
            }
        }
    }

    /// Passes the packets of those who have been dark for long enough.
    async fn light(&mut self, pods: &Pods, now: Instant) -> Result<()> {
        let (over, dark): (Vec<Dark>, _) = std::mem::take(&mut self.dark).into_iter().partition(|d| d.until <= now);
        self.dark = dark;
        for Dark { service, n, .. } in over {
            self.island.pass(pods[service][n].pod.address).await?;
        }
        Ok(())
    }

    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.random.between(20, 140))).await;
    }

    async fn strike(&mut self, pods: &mut Pods, blow: Blow, service: &'static str, n: usize) -> Result<()> {
        let web = &pods[service][n];
        match blow {
            Blow::Flap => {
                web.pod.say(Kind::NotReady).await?;
                self.pause().await;
                web.pod.say(Kind::Ready).await
            }
            Blow::Reset => {
                web.app.die().await;
                self.pause().await;
                web.app.listen()?;
                web.pod.say(Kind::NotReady).await?;
                web.pod.say(Kind::Ready).await
            }
            Blow::Blackhole => {
                // One at a time of each Service.
                let dark = self.dark.iter_mut().filter(|dark| dark.service == service);
                dark.for_each(|dark| dark.until = Instant::now());
                self.light(pods, Instant::now()).await?;
                self.island.drop_packets(web.pod.address).await?;
                let until = Instant::now() + Duration::from_millis(self.random.between(200, 2500));
                self.dark.push(Dark { service, n, until });
                Ok(())
            }
            Blow::Lost => {
                self.island.drop_packets(web.pod.address).await?;
                self.pause().await;
                let address = self.bury(pods, service, n).await?;
                self.spare.push_back(address);
                let next = if self.spare.len() > SPARE { self.spare.pop_front() } else { None };
                let address = match next {
                    Some(address) => {
                        self.island.pass(address).await?;
                        address
                    }
                    None => self.island.address().await?,
                };
                self.bear(pods, service, n, address).await
            }
            Blow::Replaced => {
                web.pod.say(Kind::Draining).await?;
                let address = self.bury(pods, service, n).await?;
                self.bear(pods, service, n, address).await
            }
            Blow::Swapped => {
                let other = if service == SERVICES[0].0 { SERVICES[1].0 } else { SERVICES[0].0 };
                let m = self.victim(other);
                for (service, n) in [(service, n), (other, m)] {
                    pods[service][n].pod.say(Kind::Draining).await?;
                }
                let (ours, theirs) = (self.bury(pods, service, n).await?, self.bury(pods, other, m).await?);
                self.bear(pods, service, n, theirs).await?;
                self.bear(pods, other, m, ours).await
            }
        }
    }

    /// A pod goes: its port refuses, what is on its connections goes on, and the proxy knows. Returns its address.
    async fn bury(&mut self, pods: &Pods, service: &str, n: usize) -> Result<IpAddr> {
        let web = &pods[service][n];
        web.app.refuse().await;
        self.stage.delete_pod(&web.pod.name, 0).await?;
        self.stage.reader()?.wait_gone(&self.stage.namespace, service, &web.pod.name).await?;
        self.ledger.set_gone(&web.pod.name);
        Ok(web.pod.address)
    }

    /// Another pod comes in place of one that went.
    async fn bear(&mut self, pods: &mut Pods, service: &str, n: usize, address: IpAddr) -> Result<()> {
        self.lives += 1;
        let name = format!("{service}-{n}-{}", self.lives);
        let app = Backend::at(&name, address).on(self.island);
        app.listen()?;
        let new = self.stage.ready_with(service, &name, app).await?;
        let place = pods.get_mut(service).and_then(|webs| webs.get_mut(n)).context("no such pod")?;
        self.past.push(std::mem::replace(place, new).app);
        Ok(())
    }
}
