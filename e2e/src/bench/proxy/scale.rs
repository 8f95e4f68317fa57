//! What many targets and many endpoints change for a request: nothing, it should be. Pods of a stage are all addresses of one
//! backend, and with many targets each pod belongs to all of them.
//!
//! Three things are told apart. Our core alone is measured, by answers for each second of its time: the other one has the load and
//! the backend, which more connections make slower too. Clients that stay with one host each use as many connections to pods as
//! with one target, and what they show is ours. Clients that go round all hosts, and endpoints that are drawn from a hundred, need
//! more of them, and whoever carries a request then goes through more memory, the kernel's above all: that stands beside how much
//! the bare hyper loop loses over as many backends, and nginx by the power of two choices among as many.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};

use super::child::{self, MEASURED_CORE, OTHER_CORE, load};
use super::contenders::{Contender, hyper_loop, id, two_choices};
use super::load::Load;
use crate::backend::PORT;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::usage::{CpuMeter, median, micros_each, user_cpu};
use crate::proxy::manifests::manifest;
use crate::proxy::stage::{Stage, running_ready};

const CONNECTIONS: usize = 64;
const SECONDS: f64 = 1.5;
const ROUNDS: usize = 5;

const MANY_TARGETS: usize = 1000;
const MANY_ENDPOINTS: usize = 100;

/// Backends that clients go round: hosts times endpoints.
const IN_TURN: usize = MANY_TARGETS;

/// One proxy, asked in one way.
struct Course {
    name: String,
    address: SocketAddr,
    process: u32,
    hosts: Vec<String>,
    kept: bool,
    per_second: Vec<f64>,
    cpu_us: Vec<f64>,
    user_us: Vec<f64>,
}

impl Course {
    fn new(name: String, address: SocketAddr, process: u32, hosts: Vec<String>, kept: bool) -> Self {
        let (per_second, cpu_us, user_us) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, address, process, hosts, kept, per_second, cpu_us, user_us }
    }

    async fn run(&mut self) -> Result<()> {
        let load_of_it = Load {
            address: self.address,
            hosts: self.hosts.clone(),
            kept: self.kept,
            connections: CONNECTIONS,
            seconds: SECONDS,
            rate: None,
            requests: None,
        };
        let mut cpu = CpuMeter::new(self.process);
        let before = (cpu.total()?, user_cpu(self.process)?);
        let report = load(&load_of_it).await?.whole().with_context(|| self.name.clone())?;
        let answered = usize::try_from(report.answered)?;
        self.per_second.push(report.rate());
        self.cpu_us.push(micros_each(cpu.total()?.saturating_sub(before.0), answered));
        self.user_us.push(micros_each(user_cpu(self.process)?.saturating_sub(before.1), answered));
        Ok(())
    }

    /// The first round opened the connections.
    fn forget(&mut self) {
        (self.per_second, self.cpu_us, self.user_us) = (Vec::new(), Vec::new(), Vec::new());
    }

    /// Answers for each second of its core's time.
    fn of_core(&self) -> f64 {
        1e6 / median(&self.cpu_us)
    }

    /// How many answers the other one gives while this one gives one, round by round: 1.1 is ten percent.
    fn behind(&self, other: &Self) -> Vec<f64> {
        self.cpu_us.iter().zip(&other.cpu_us).map(|(ours, theirs)| ours / theirs).collect()
    }

    fn slower_than(&self, other: &Self) -> Vec<f64> {
        other.per_second.iter().zip(&self.per_second).map(|(theirs, ours)| theirs / ours).collect()
    }
}

/// Measures all figures.
pub(super) async fn measure() -> Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("podlight-scale.").tempdir()?;
    let addresses: Vec<IpAddr> = (0..IN_TURN).map(address).collect::<Result<_>>()?;
    let sockets: Vec<SocketAddr> = addresses.iter().map(|address| SocketAddr::new(*address, PORT)).collect();
    let arguments = ["backend".to_owned()].into_iter().chain(sockets.iter().map(SocketAddr::to_string));
    let _backend = child::start(OTHER_CORE, folder.path(), &arguments.collect::<Vec<_>>())?;
    let mut ours = Vec::new();
    let mut stages = Vec::new();
    for (targets, endpoints) in [(1, 1), (1, MANY_ENDPOINTS), (MANY_TARGETS, 1), (MANY_TARGETS, MANY_ENDPOINTS)] {
        progress(&format!("{targets} targets of {endpoints} endpoints"));
        let stage = stage(targets, &addresses[..endpoints]).await?;
        ours.push(course(&stage, targets, endpoints, true)?);
        if targets > 1 {
            ours.push(course(&stage, targets, endpoints, false)?);
        }
        stages.push(stage);
    }
    let mut others = Vec::new();
    let mut processes = Vec::new();
    for backends in [1, MANY_ENDPOINTS, IN_TURN] {
        let (bare, process) = hyper_loop(folder.path(), &sockets[..backends]).await?;
        others.push(peer(bare, backends));
        processes.push(process);
    }
    for backends in [1, MANY_ENDPOINTS] {
        let (nginx, process) = two_choices(folder.path(), &sockets[..backends]).await?;
        others.push(peer(nginx, backends));
        processes.push(process);
    }
    for round in 0..=ROUNDS {
        progress(&format!("targets and endpoints, round {round} of {ROUNDS} after the first"));
        for course in ours.iter_mut().chain(&mut others) {
            course.run().await?;
            if round == 0 {
                course.forget();
            }
        }
    }
    rows(&ours, &others)
}

fn address(n: usize) -> Result<IpAddr> {
    let [high, low] = u16::try_from(n + 1)?.to_be_bytes();
    Ok(Ipv4Addr::new(127, 3, high, low).into())
}

fn course(stage: &Stage<'_>, targets: usize, endpoints: usize, kept: bool) -> Result<Course> {
    let hosts = if kept { (CONNECTIONS / endpoints).max(1) } else { IN_TURN / endpoints }.min(targets);
    let step = targets / hosts;
    let (plural, way) = (if targets == 1 { "" } else { "s" }, if kept { "kept" } else { "in turn" });
    let name = format!("{targets} target{plural} of {endpoints} ({hosts} asked, {way})");
    let hosts = (0..hosts).map(|n| stage.host(&format!("web-{}", n * step))).collect();
    Ok(Course::new(name, stage.proxy()?, id(stage.activator())?, hosts, kept))
}

fn peer(contender: Contender, backends: usize) -> Course {
    let Contender { name, address, host, process } = contender;
    Course::new(format!("{name} over {backends}"), address, process, vec![host], false)
}

fn rows(ours: &[Course], others: &[Course]) -> Result<Vec<Row>> {
    let [one, endpoints, targets, targets_in_turn, both, both_in_turn] = ours else { bail!("courses are missing") };
    let [bare, bare_100, bare_1000, nginx, nginx_100] = others else { bail!("peers are missing") };
    let mut rows = Vec::new();
    for (small, large) in [(one, targets), (endpoints, both)] {
        let figure = format!("answers per second of our core's time, {} by {}", small.name, large.name);
        let row = Row::new(figure, "", small.of_core());
        rows.push(row.beside("the latter", large.of_core(), median(&large.behind(small))).bounds(1.1, 1.03));
    }
    let lost = [
        (endpoints, nginx_100, nginx, true),
        (endpoints, bare_100, bare, false),
        (targets_in_turn, bare_1000, bare, true),
        (both_in_turn, bare_1000, bare, true),
    ];
    for (large, reference, its_one, bound) in lost {
        let (ours, theirs) = (large.behind(one), reference.behind(its_one));
        let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
        let row = Row::new(format!("the same, {} by {}", one.name, large.name), "×", median(&ours));
        let its = format!("{}, by over 1", reference.name);
        let row = row.beside(&its, median(&theirs), median(&ratios)).bounds(1.1, 1.03);
        rows.push(if bound { row } else { row.informing() });
    }
    let bases = [(ours, one), (&others[..3], bare), (&others[3..], nginx)];
    for (course, base) in bases.into_iter().flat_map(|(courses, base)| courses.iter().map(move |course| (course, base)))
    {
        let row = Row::new(format!("answers a second, {}", course.name), "", median(&course.per_second));
        rows.push(row.beside(&base.name, median(&base.per_second), median(&course.slower_than(base))));
        let (cpu, user) = (median(&course.cpu_us), median(&course.user_us));
        let figure = format!("CPU per request, {}, of which {user:.1} µs in user space", course.name);
        let row = Row::new(figure, "µs", cpu);
        rows.push(row.beside(&base.name, median(&base.cpu_us), median(&course.behind(base))));
    }
    Ok(rows)
}

/// Services `web-0` and on, each selecting a pod at every address.
async fn stage(targets: usize, addresses: &[IpAddr]) -> Result<Stage<'static>> {
    let differ = |spec: crate::activator::ActivatorSpec| spec.flag("log", "warn").flag("proxy-workers", "1");
    let stage = Stage::standalone_with(|spec| differ(spec).on_core(MEASURED_CORE)).await?;
    let mut objects = Vec::new();
    for target in 0..targets {
        let service = stage.open_service(&format!("web-{target}"));
        objects.push(manifest(&service.selector("app", "web").port("http", 80, "http").build())?);
    }
    for (n, address) in addresses.iter().enumerate() {
        let mut pod = manifest(&stage.pod_spec("web", &format!("pod-{n}")).build())?;
        pod["status"] = running_ready(*address).merge_patch()["status"].clone();
        objects.push(pod);
    }
    stage.put(objects)?;
    stage.wait_endpoints(&format!("web-{}", targets - 1), addresses.len()).await?;
    stage.until(&stage.host("web-0"), |answer| answer.status == 200).await?;
    Ok(stage)
}
