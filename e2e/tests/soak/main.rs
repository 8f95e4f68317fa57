//! Two Services under load whose pods flap, die by RST and by dropped packets, are lost with their nodes, leave, and hand their
//! addresses on, to each other's pods too, for as long as `SOAK_SECONDS` says. No request that may be repeated is lost, none that may
//! not is sent twice, none is answered by a pod that is gone or another Service's, and at the end nothing is left of it: no slot,
//! task, descriptor or memory. Pods live in a network namespace, which takes root.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podlight_e2e::backend::{Backend, Seen};
use podlight_e2e::bench::usage::memory_mib;
use podlight_e2e::eventually::{eventually, within};
use podlight_e2e::proxy::client::{Answer, Connection, get, post};
use podlight_e2e::proxy::counts::{HELD, TASKS, TUNNELS, open_files, wait_for};
use podlight_e2e::proxy::island::Island;
use podlight_e2e::proxy::stage::Stage;
use podlight_e2e::simulation::random::Random;

mod chaos;

use chaos::{Blow, Chaos, PODS, Pods};

/// Without `SOAK_SECONDS`: enough for many blows of each kind.
const SECONDS: u64 = 120;

/// Clients of each version of HTTP.
const CLIENTS: usize = 16;

/// What its pods speak, by Service.
const SERVICES: [(&str, Option<&str>); 2] = [("left", None), ("right", Some("kubernetes.io/h2c"))];

/// Growth that is not yet a leak: what allocators keep, with many connections opened and closed.
const GROWTH_MIB: f64 = 24.0;

/// Descriptors and tasks that differ from one look to the next: readers of metrics, a manifest that is being read.
const UNSTEADY: usize = 4;

/// How long it takes at most to tell how many tasks there are.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

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

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
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
async fn services_whose_pods_come_and_go_lose_nothing_and_leave_nothing() -> Result<()> {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(u64::from(std::process::id()));
    println!("SEED={seed}, {seconds} s");
    let island = Island::new().await?;
    let stage = Stage::standalone_with(|spec| spec.flag("connect-timeout", "300ms")).await?;
    let process = stage.activator().id().context("ended")?;
    for (service, protocol) in SERVICES {
        let spec = stage.service(service);
        stage.create_service(protocol.into_iter().fold(spec, |spec, protocol| spec.app_protocol(protocol))).await?;
    }
    eventually("the proxy tells of its tasks", async || {
        Ok(stage.activator().metrics().await?.has(TASKS, &[]).then_some(()))
    })
    .await?;
    let before = (open_files(process)?, tasks(&stage).await?);

    let mut pods = Pods::new();
    for (service, _) in SERVICES {
        for n in 0..PODS {
            let app = Backend::at(&format!("{service}-{n}-0"), island.address().await?).on(&island);
            app.listen()?;
            pods.entry(service).or_default().push(stage.ready_with(service, &format!("{service}-{n}-0"), app).await?);
        }
        stage.until(&stage.host(service), |answer| answer.status == 200).await?;
    }
    load(&stage, "warm-up", &Arc::new(Ledger::default()), Duration::from_secs(2)).await?;
    let memory = memory_mib(process, "VmRSS")?;

    let ledger = Arc::new(Ledger::default());
    let mut chaos = Chaos::new(&stage, &island, &ledger, Random::new(seed, 0));
    let (loaded, churned) =
        tokio::join!(load(&stage, "client", &ledger, Duration::from_secs(seconds)), chaos.run(&mut pods));
    loaded?;
    churned?;
    let faults = ledger.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answered = ledger.answered.load(Ordering::Relaxed);
    let blows = format!("{:?}", chaos.blows);
    ensure!(faults.is_empty(), "SEED={seed}: {} of {answered}: {:#?}", faults.len(), &faults[..faults.len().min(10)]);
    ensure!(answered > 20 * seconds, "{answered} answers: it was hardly loaded");
    ensure!(Blow::ALL.iter().all(|blow| chaos.blows.contains_key(blow)), "not every kind of death: {blows}");
    let past = std::mem::take(&mut chaos.past);
    once(pods.values().flatten().map(|web| &web.app).chain(&past).flat_map(Backend::seen))?;
    println!(
        "{answered} answered, {} POSTs told that they failed, {blows}",
        ledger.posts_failed.load(Ordering::Relaxed)
    );

    for (service, _) in SERVICES {
        stage.get(service, "/").await?.seen()?;
    }
    wait_for(stage.activator(), HELD, 0.0).await?;
    wait_for(stage.activator(), TUNNELS, 0.0).await?;
    eventually("no request has a place", async || {
        let status: serde_json::Value = serde_json::from_str(&stage.activator().admin("/status").await?.body)?;
        let targets = status["state"]["targets"].as_array().context("no targets")?;
        ensure!(targets.len() == SERVICES.len(), "{status}");
        let in_flight: Vec<_> = targets.iter().map(|target| target["in_flight"].as_u64()).collect();
        ensure!(in_flight.iter().all(|count| *count == Some(0)), "{in_flight:?}");
        Ok(Some(()))
    })
    .await?;
    let after = memory_mib(process, "VmRSS")?;
    ensure!(after < memory + GROWTH_MIB, "{memory} MiB before, {after} after");
    for web in pods.values().flatten() {
        stage.delete_pod(&web.pod.name, 0).await?;
    }
    drop((pods, past));
    within(TOLD_WITHIN, "descriptors and tasks are given back", async || {
        let now = (open_files(process)?, tasks(&stage).await?);
        ensure!(now.0 <= before.0 + UNSTEADY && now.1 <= before.1 + UNSTEADY, "{before:?} before, {now:?} now");
        Ok(Some(()))
    })
    .await
}

async fn tasks(stage: &Stage<'_>) -> Result<usize> {
    let sum = stage.activator().metrics().await?.sum(TASKS, &[]);
    Ok(sum.to_string().parse()?)
}

/// No request that may not be repeated came twice.
fn once(seen: impl Iterator<Item = Seen>) -> Result<()> {
    let mut orders = BTreeSet::new();
    for seen in seen.filter(|seen| seen.method == "POST") {
        ensure!(orders.insert(seen.target.clone()), "{} was sent twice", seen.target);
    }
    Ok(())
}

/// Clients that ask as fast as they are answered: over HTTP/1.1 and HTTP/2, GET and POST.
async fn load(stage: &Stage<'_>, round: &'static str, ledger: &Arc<Ledger>, time: Duration) -> Result<()> {
    let mut clients = Vec::new();
    for n in 0..2 * CLIENTS {
        let (proxy, (service, _)) = (stage.proxy()?, SERVICES[n % SERVICES.len()]);
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
                        // It was sent, and nobody knows what became of it.
                        Ok(answer) if writes && answer.status == 502 && answer.error() == "reset" => {
                            ledger.posts_failed.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => ledger.check(service, at, &answer),
                        Err(error) => {
                            ledger.fault(format!("{target} after {:?}: no answer: {error:#}", at.elapsed()));
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
