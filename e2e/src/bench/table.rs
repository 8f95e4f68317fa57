//! The table in this process, as its owner runs it: what one event costs from the channel to the published snapshot at
//! 100 000 pods beside 100, and what a reader pays to find an endpoint. Every event flips its pod, so that each publishes.
//!
//! The figure compares events of as many pods in both, so that it tells what the size of the table costs. Events spread
//! over all 100 000 pods find none of them in a cache, and the row below it tells what that adds; the floor tells how
//! much of it no table can avoid.

use std::hint::black_box;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwap;
use podlight_activator::table::entry::{ContainerPort, Labels, Now, Observation, Phase, Protocol, ReadyCondition};
use podlight_activator::table::group::{EndpointId, GroupKey, Service, ServicePort, TargetPort};
use podlight_activator::table::owner::{Clock, TableHandle, spawn};
use podlight_activator::table::snapshot::Groups;
use podlight_activator::table::{Change, Pacing, Table, Update};
use podlight_proto::{Boot, Event, Kind, Order, Outcome, PodRef, PodUid, Sequence};
use tokio::runtime::Runtime;

use super::report::Row;
use super::usage::{median, thread_cpu};
use crate::sender::now_ms;

const MANY: usize = 100_000;
const FEW: usize = 100;
const NAMESPACE: &str = "bench";

/// Events of one round.
const EVENTS: usize = 2_000;

/// Rounds; the first warms up and does not count.
const ROUNDS: usize = 31;

/// Look-ups of one round.
const LOOKUPS: usize = 50_000;

/// Room in the owner's channel.
const CAPACITY: usize = 1_024;

/// Measures all figures of the table.
///
/// # Errors
/// When an event is not applied or an endpoint not found.
pub fn measure() -> Result<Vec<Row>> {
    let mut rows = vec![floor()?];
    for (size, grouping) in [(Some(10), "Services of 10 pods"), (None, "one Service of all pods")] {
        let (mut many, mut few) = (Owned::new(MANY, size)?, Owned::new(FEW, size)?);
        let figure = format!("apply + publish at {MANY} pods, {grouping}");
        rows.push(compare(&figure, || Ok((many.round(FEW)?, few.round(FEW)?)))?);
        let figure = "the same, with events of all pods: what memory adds";
        rows.push(compare(figure, || Ok((many.round(MANY)?, few.round(FEW)?)))?.informing());
        if size.is_some() {
            rows.push(lookups(&many, "100 Services that are asked for", 1_000)?.bounds(120.0, 60.0));
            rows.push(lookups(&many, "one Service", 10)?);
            rows.push(lookups(&many, "all Services, none in any cache", MANY)?);
        }
        let (mut many, mut few) = (Bare::new(MANY, size)?, Bare::new(FEW, size)?);
        let figure = format!("apply alone at {MANY} pods, {grouping}");
        rows.push(compare(&figure, || Ok((many.round(MANY)?, few.round(FEW)?)))?.informing());
    }
    Ok(rows)
}

fn compare(figure: &str, mut round: impl FnMut() -> Result<(Duration, Duration)>) -> Result<Row> {
    let nanos = |used: Duration| used.as_secs_f64() * 1e9 / EVENTS as f64;
    let (mut many, mut few) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (at_many, at_few) = round()?;
        many.push(nanos(at_many));
        few.push(nanos(at_few));
    }
    let (many, few) = (&many[1..], &few[1..]);
    let ratios: Vec<f64> = many.iter().zip(few).map(|(many, few)| many / few).collect();
    let row = Row::new(figure, "ns", median(many));
    Ok(row.beside(&format!("at {FEW} pods"), median(few), median(&ratios)).bounds(2.0, 1.2))
}

/// The least that a table does for an event: it finds the pod by its uid, and puts a new picture of a Service of ten in
/// the place of the old one.
fn floor() -> Result<Row> {
    let (mut many, mut few) = (Least::new(MANY)?, Least::new(FEW)?);
    let row = compare("the least for an event of any pod: one look-up, one picture of ten", || {
        Ok((many.round()?, few.round()?))
    })?;
    Ok(row.informing())
}

struct Least {
    pods: Pods,
    rows: hashbrown::HashMap<PodUid, usize>,
    pictures: Vec<ArcSwap<[u64; 10]>>,
}

impl Least {
    fn new(count: usize) -> Result<Self> {
        let pods = Pods::new(count, Some(10))?;
        let rows = pods.pods.iter().enumerate().map(|(n, pod)| (*pod.pod.uid(), n)).collect();
        let pictures = (0..count.div_ceil(10)).map(|_| ArcSwap::from_pointee([0; 10])).collect();
        Ok(Self { pods, rows, pictures })
    }

    fn round(&mut self) -> Result<Duration> {
        let events = self.pods.events(self.rows.len())?;
        let begun = thread_cpu();
        for event in &events {
            let n = self.rows.get(event.pod.uid()).context("an unknown pod")?;
            let picture = &self.pictures[n / 10];
            let mut next = **picture.load();
            next[n % 10] += 1;
            picture.store(Arc::new(next));
        }
        Ok(thread_cpu().saturating_sub(begun))
    }
}

/// Times `Groups::get` and the look-up of an endpoint in what it returns, for pods among the first `among` in no order.
fn lookups(owned: &Owned, what: &str, among: usize) -> Result<Row> {
    let pods = &owned.pods.pods;
    let mut order = Shuffle::new(among);
    let mut nanos = Vec::new();
    for _ in 0..ROUNDS {
        // Names of the asker's own, as a request would bring them: the table's are not brought to the cache by it.
        let wanted: Vec<(String, EndpointId)> = (0..LOOKUPS)
            .map(|_| &pods[order.next()])
            .map(|pod| anyhow::Ok((pod.service.to_string(), EndpointId::Pod(*own(&pod.pod)?.uid()))))
            .collect::<Result<_>>()?;
        let begun = thread_cpu();
        let mut found = 0;
        for (service, id) in &wanted {
            let group = owned.groups.get(NAMESPACE, service);
            found += usize::from(black_box(group.as_deref().and_then(|group| group.endpoint(id))).is_some());
        }
        nanos.push(thread_cpu().saturating_sub(begun).as_secs_f64() * 1e9 / LOOKUPS as f64);
        ensure!(found == LOOKUPS, "{found} of {LOOKUPS} endpoints found");
    }
    Ok(Row::new(format!("snapshot load + look-up at {MANY} pods, {what}"), "ns", median(&nanos[1..])))
}

/// Pods and the state each was last told to be in.
struct Pods {
    pods: Vec<BenchPod>,
    order: Shuffle,
    next_seq: u64,
    boot: Boot,
}

struct BenchPod {
    pod: PodRef,
    address: IpAddr,
    service: Arc<str>,
    ready: bool,
}

impl Pods {
    /// As many pods, a Service for each `size` of them, or one for all.
    fn new(count: usize, size: Option<usize>) -> Result<Self> {
        let pods = (0..count).map(|n| {
            let pod = PodRef::new(NAMESPACE, &format!("pod-{n}"), &format!("6f9d1b3e-0000-4000-8000-{n:012x}"))?;
            let bits = u128::try_from(n)? + Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).to_bits();
            let service = format!("service-{}", size.map_or(0, |size| n / size)).into();
            anyhow::Ok(BenchPod { pod, address: Ipv6Addr::from_bits(bits).into(), service, ready: false })
        });
        let boot = Boot::try_from(now_ms())?;
        Ok(Self { pods: pods.collect::<Result<_>>()?, order: Shuffle::new(count), next_seq: 1, boot })
    }

    /// A table that holds them all, not ready by the API server's word.
    fn table(&self) -> Table {
        let mut table = Table::new(Pacing::default());
        let now = Now { uptime: Duration::ZERO, wall_ms: now_ms() };
        table.apply(Update::Service(Change::ListBegan), now);
        let mut last = None;
        for pod in &self.pods {
            if last.replace(&pod.service) != Some(&pod.service) {
                table.apply(Update::Service(Change::Present(Arc::new(service(&pod.service)))), now);
            }
        }
        table.apply(Update::Service(Change::ListDone), now);
        table.apply(Update::Pod(Change::ListBegan), now);
        for pod in &self.pods {
            table.apply(Update::Pod(Change::Present(Arc::new(observation(pod)))), now);
        }
        table.apply(Update::Pod(Change::ListDone), now);
        table
    }

    /// Each pod's first word, which says what the API server says: from then on all are alike, as in a cluster that runs.
    fn greetings(&self) -> Result<Vec<Event>> {
        self.pods.iter().map(|pod| event(pod, self.boot, 1, now_ms())).collect()
    }

    /// Events that flip pods among the first `among`, in no order.
    fn events(&mut self, among: usize) -> Result<Vec<Event>> {
        let observed_at_ms = now_ms();
        let events = (0..EVENTS).map(|_| {
            let n = self.order.next() % among;
            let pod = &mut self.pods[n];
            pod.ready = !pod.ready;
            self.next_seq += 1;
            event(pod, self.boot, self.next_seq, observed_at_ms)
        });
        events.collect()
    }
}

fn event(pod: &BenchPod, boot: Boot, seq: u64, observed_at_ms: u64) -> Result<Event> {
    Ok(Event {
        pod: own(&pod.pod)?,
        order: Order { boot, seq: Sequence::try_from(seq)? },
        kind: if pod.ready { Kind::Ready } else { Kind::NotReady },
        revision: "v1".to_owned(),
        addresses: vec![pod.address],
        ports: Vec::new(),
        ready: pod.ready,
        observed_at_ms,
    })
}

/// A table with its owner, on a runtime of its own.
struct Owned {
    pods: Pods,
    groups: Groups,
    handle: TableHandle,
    // Dropped last: the owner's task lives on it.
    runtime: Runtime,
}

impl Owned {
    fn new(count: usize, size: Option<usize>) -> Result<Self> {
        let pods = Pods::new(count, size)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let table = pods.table();
        let (handle, groups, _feed, _task) = runtime.block_on(async { spawn(table, Clock::start(), CAPACITY) });
        let greetings = pods.greetings()?;
        let greeted = handle.clone();
        runtime.block_on(async move {
            for event in greetings {
                greeted.push(event).await?;
            }
            anyhow::Ok(())
        })?;
        Ok(Self { pods, groups, handle, runtime })
    }

    /// CPU time of one round: each event waits until readers see it, so none shares its publication with another.
    fn round(&mut self, among: usize) -> Result<Duration> {
        let events = self.pods.events(among)?;
        let handle = self.handle.clone();
        // From a task, since waking the runtime's outermost future costs a system call.
        let round = self.runtime.spawn(async move {
            let begun = thread_cpu();
            for event in events {
                let transition = handle.push(event).await?;
                ensure!(transition.outcome == Outcome::Applied, "an event was not news");
            }
            Ok(thread_cpu().saturating_sub(begun))
        });
        self.runtime.block_on(round)?
    }
}

/// A table without its owner: no channel and no publication.
struct Bare {
    pods: Pods,
    table: Table,
    clock: Clock,
}

impl Bare {
    fn new(count: usize, size: Option<usize>) -> Result<Self> {
        let pods = Pods::new(count, size)?;
        let (mut table, clock) = (pods.table(), Clock::start());
        for event in pods.greetings()? {
            table.push(&event, clock.now())?;
        }
        table.take_changes();
        Ok(Self { pods, table, clock })
    }

    fn round(&mut self, among: usize) -> Result<Duration> {
        let events = self.pods.events(among)?;
        let begun = thread_cpu();
        for event in &events {
            let transition = self.table.push(event, self.clock.now()).context("the pod is gone")?;
            ensure!(transition.outcome == Outcome::Applied, "an event was not news");
            ensure!(!black_box(self.table.take_changes()).groups.is_empty(), "nothing to publish");
        }
        Ok(thread_cpu().saturating_sub(begun))
    }
}

/// A copy that shares nothing, as the one that an event from the network brings.
fn own(pod: &PodRef) -> Result<PodRef> {
    Ok(PodRef::new(pod.namespace(), pod.name(), pod.uid().as_str())?)
}

/// Numbers below a bound in an order that has no pattern for caches to learn (Numerical Recipes' generator).
struct Shuffle {
    state: u64,
    below: usize,
}

impl Shuffle {
    fn new(below: usize) -> Self {
        Self { state: 1, below }
    }

    fn next(&mut self) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.state >> 33).unwrap_or(0) % self.below
    }
}

fn service(name: &str) -> Service {
    let selector: Labels = [("app".into(), name.into())].into();
    let port = ServicePort {
        name: "http".into(),
        port: 80,
        target: TargetPort::Name("http".into()),
        protocol: Protocol::Tcp,
        app_protocol: None,
    };
    Service { selector: Some(selector), ports: vec![port], ..Service::new(GroupKey::new(NAMESPACE, name)) }
}

fn observation(pod: &BenchPod) -> Observation {
    let since_seconds = now_ms() / 1000 - 60;
    Observation {
        pod: pod.pod.clone(),
        resource_version: 1,
        service_account: "default".into(),
        phase: Phase::Alive,
        terminating_since_ms: None,
        addresses: vec![pod.address],
        labels: [("app".into(), Arc::clone(&pod.service)), ("pod-template-hash".into(), "v1".into())].into(),
        revision: "v1".into(),
        ready: Some(ReadyCondition { ready: false, since_seconds }),
        gates_open: true,
        has_exec_probe: false,
        has_readiness_probe: true,
        ports: vec![ContainerPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }],
    }
}
