//! A Service under load whose pods flap, die by RST, vanish, leave and are replaced at the same address, for as long as
//! `SOAK_SECONDS` says. No request that may be repeated is lost, none that may not is sent twice, none is answered by a pod that is
//! gone or another Service's, and at the end nothing is left of it: no slot, descriptor or memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podlight_e2e::backend::{Backend, Seen};
use podlight_e2e::bench::usage::memory_mib;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{Answer, Connection, get, post};
use podlight_e2e::proxy::counts::{HELD, open_files, wait_for};
use podlight_e2e::proxy::stage::{Stage, Web, nowhere};
use podlight_e2e::simulation::random::Random;
use podlight_proto::Kind;

/// Without `SOAK_SECONDS`.
const SECONDS: u64 = 20;

/// Clients of each kind.
const CLIENTS: usize = 6;

/// Pods of each Service, of which the first is left alone.
const PODS: usize = 4;

const SERVICES: [&str; 2] = ["left", "right"];

/// Growth that is not yet a leak: what allocators keep, with many connections opened and closed.
const GROWTH_MIB: f64 = 24.0;

/// What the clients report.
#[derive(Default)]
struct Ledger {
    answered: AtomicU64,
    posts_failed: AtomicU64,
    faults: Mutex<Vec<String>>,
    /// When the proxy was known to know that a pod is gone.
    gone: Mutex<BTreeMap<String, Instant>>,
    over: AtomicBool,
}

impl Ledger {
    fn fault(&self, text: String) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    fn set_gone(&self, pod: &str) {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned(), Instant::now());
    }

    fn check(&self, service: &str, asked: Instant, answer: &Answer) {
        match answer.pod() {
            Ok(pod) => {
                if !pod.starts_with(service) {
                    self.fault(format!("{service} was answered by {pod}"));
                }
                let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
                if gone.get(&pod).is_some_and(|gone| *gone < asked) {
                    self.fault(format!("{pod} answered after it was gone"));
                }
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.fault(format!("{error:#}")),
        }
    }
}

#[tokio::test]
async fn a_service_whose_pods_come_and_go_loses_nothing_and_leaves_nothing() -> Result<()> {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(u64::from(std::process::id()));
    println!("SEED={seed}, {seconds} s");
    let stage = Stage::standalone_with(|spec| spec.flag("connect-timeout", "300ms")).await?;
    let mut pods: BTreeMap<&str, Vec<Web>> = BTreeMap::new();
    for service in SERVICES {
        stage.create_service(stage.service(service)).await?;
        for n in 0..PODS {
            pods.entry(service).or_default().push(stage.ready_web(service, &format!("{service}-{n}-0")).await?);
        }
        stage.until(&stage.host(service), |answer| answer.status == 200).await?;
    }
    let process = stage.activator().id().context("ended")?;
    load(&stage, "warm-up", &Arc::new(Ledger::default()), Duration::from_secs(2)).await?;
    settled(&stage).await?;
    let (files, memory) = (open_files(process)?, memory_mib(process, "VmRSS")?);

    let ledger = Arc::new(Ledger::default());
    let mut chaos = Chaos { stage: &stage, ledger: &ledger, random: Random::new(seed, 0), lives: 0, past: Vec::new() };
    let (loaded, churned) =
        tokio::join!(load(&stage, "client", &ledger, Duration::from_secs(seconds)), chaos.run(&mut pods));
    loaded?;
    churned?;
    let faults = ledger.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answered = ledger.answered.load(Ordering::Relaxed);
    ensure!(faults.is_empty(), "SEED={seed}: {} of {answered}: {:#?}", faults.len(), &faults[..faults.len().min(10)]);
    ensure!(answered > 20 * seconds, "{answered} answers: it was hardly loaded");
    let past = std::mem::take(&mut chaos.past);
    let seen = pods.values().flatten().map(|web| &web.app).chain(&past).flat_map(Backend::seen);
    once(seen)?;
    println!("{answered} answered, {} POSTs told that they failed", ledger.posts_failed.load(Ordering::Relaxed));

    drop(past);
    settled(&stage).await?;
    eventually("descriptors are given back", async || {
        let now = open_files(process)?;
        ensure!(now <= files + 16, "{files} before, {now} now");
        Ok(Some(()))
    })
    .await?;
    let after = memory_mib(process, "VmRSS")?;
    ensure!(after < memory + GROWTH_MIB, "{memory} MiB before, {after} after");
    for service in SERVICES {
        stage.get(service, "/").await?.seen()?;
    }
    Ok(())
}

/// No request that may not be repeated came twice.
fn once(seen: impl Iterator<Item = Seen>) -> Result<()> {
    let mut orders = BTreeSet::new();
    for seen in seen.filter(|seen| seen.method == "POST") {
        ensure!(orders.insert(seen.target.clone()), "{} was sent twice", seen.target);
    }
    Ok(())
}

/// Nothing is held, and no client's connection is open.
async fn settled(stage: &Stage<'_>) -> Result<()> {
    wait_for(stage.activator(), HELD, 0.0).await
}

/// Clients that ask as fast as they are answered: over HTTP/1.1 and HTTP/2, GET and POST.
async fn load(stage: &Stage<'_>, round: &'static str, ledger: &Arc<Ledger>, time: Duration) -> Result<()> {
    let mut clients = Vec::new();
    for n in 0..2 * CLIENTS {
        let (proxy, service) = (stage.proxy()?, SERVICES[n % SERVICES.len()]);
        let (host, ledger) = (stage.host(service), Arc::clone(ledger));
        clients.push(tokio::spawn(async move {
            let begun = Instant::now();
            let mut asked = 0_u64;
            while begun.elapsed() < time {
                let opened = if n < CLIENTS { Connection::http1(proxy).await } else { Connection::http2(proxy).await };
                let mut connection = opened?;
                // A connection is kept for some time, and the last answer ends it.
                for _ in 0..100 {
                    asked += 1;
                    let at = Instant::now();
                    let writes = asked.is_multiple_of(5);
                    let target = format!("/{round}/{n}/{asked}");
                    let request = if writes { post(&host, &target, "order") } else { get(&host, &target) };
                    match connection.ask(request).await {
                        Ok(answer) if answer.status == 502 && writes => {
                            ledger.posts_failed.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => ledger.check(service, at, &answer),
                        Err(error) => {
                            ledger.fault(format!("{target}: no answer: {error:#}"));
                            break;
                        }
                    }
                    if begun.elapsed() >= time {
                        break;
                    }
                }
            }
            Ok::<_, anyhow::Error>(())
        }));
    }
    for client in clients {
        client.await??;
    }
    ledger.over.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whatever can happen to a pod, one thing at a time.
struct Chaos<'a> {
    stage: &'a Stage<'static>,
    ledger: &'a Ledger,
    random: Random,
    lives: u64,
    /// Apps of pods that are gone, which would answer whatever came on a connection that they have.
    past: Vec<Backend>,
}

impl Chaos<'_> {
    async fn run(&mut self, pods: &mut BTreeMap<&str, Vec<Web>>) -> Result<()> {
        while !self.ledger.over.load(Ordering::Relaxed) {
            for (service, webs) in pods.iter_mut() {
                let n = 1 + self.random.index(PODS - 1);
                let web = webs.get_mut(n).context("no such pod")?;
                match self.random.index(5) {
                    0 => self.flap(web).await?,
                    1 => self.die(web).await?,
                    2 => self.vanish(web).await?,
                    3 => self.leave(service, n, web, false).await?,
                    _ => self.leave(service, n, web, true).await?,
                }
            }
        }
        Ok(())
    }

    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.random.between(20, 140))).await;
    }

    /// Not ready and ready again.
    async fn flap(&mut self, web: &Web) -> Result<()> {
        web.pod.say(Kind::NotReady).await?;
        self.pause().await;
        web.pod.say(Kind::Ready).await
    }

    /// Killed and started again: nobody says so until it is back.
    async fn die(&mut self, web: &Web) -> Result<()> {
        web.app.die().await;
        self.pause().await;
        web.app.listen()?;
        web.pod.say(Kind::NotReady).await?;
        web.pod.say(Kind::Ready).await
    }

    /// Its node is unreachable for a while.
    async fn vanish(&mut self, web: &Web) -> Result<()> {
        web.app.blackhole().await?;
        web.app.reset_connections();
        self.pause().await;
        web.app.refuse().await;
        web.app.listen()?;
        web.pod.say(Kind::NotReady).await?;
        web.pod.say(Kind::Ready).await
    }

    /// Replaced by another life, at the same address or another.
    async fn leave(&mut self, service: &str, n: usize, web: &mut Web, reuse: bool) -> Result<()> {
        web.pod.say(Kind::Draining).await?;
        web.app.refuse().await;
        self.stage.delete_pod(&web.pod.name, 0).await?;
        let reader = self.stage.reader()?;
        reader.wait_gone(&self.stage.namespace, service, &web.pod.name).await?;
        self.ledger.set_gone(&web.pod.name);
        self.lives += 1;
        let name = format!("{service}-{n}-{}", self.lives);
        let address = if reuse { web.pod.address } else { nowhere() };
        let app = Backend::at(&name, address);
        app.listen()?;
        let new = self.stage.ready_with(service, &name, app).await?;
        let old = std::mem::replace(web, new);
        self.past.push(old.app);
        Ok(())
    }
}
