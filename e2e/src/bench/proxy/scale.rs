//! What many targets and many endpoints change for a request: nothing, it should be. Pods of a stage are all addresses of one
//! backend, and with many targets each pod belongs to all of them.
//!
//! More connections to backends make every request dearer, whoever carries it: kernel and backend have more memory to go through.
//! So the load comes in two ways. Kept: each client stays with one host, and as many connections to backends are in use as with
//! one target. In turn: clients go round all hosts; that stands beside the bare hyper loop as it goes round as many backends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};

use super::child::{self, MEASURED_CORE, OTHER_CORE, load};
use super::contenders::{hyper_loop, id};
use super::load::Load;
use crate::backend::PORT;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::usage::{CpuMeter, median, micros_each};
use crate::control_plane::process::Process;
use crate::proxy::manifests::manifest;
use crate::proxy::stage::{Stage, running_ready};

const CONNECTIONS: usize = 64;
const SECONDS: f64 = 1.5;
const ROUNDS: usize = 7;

const MANY_TARGETS: usize = 1000;
const MANY_ENDPOINTS: usize = 100;

/// Backends that a load goes round: hosts times endpoints, beyond which not one connection would be used twice in a round.
const IN_TURN: usize = 2000;

/// One proxy, asked in one way.
struct Course {
    name: String,
    address: SocketAddr,
    process: u32,
    hosts: Vec<String>,
    kept: bool,
    per_second: Vec<f64>,
    cpu_us: Vec<f64>,
}

impl Course {
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
        let before = cpu.total()?;
        let report = load(&load_of_it).await?.whole().with_context(|| self.name.clone())?;
        self.per_second.push(report.rate());
        self.cpu_us.push(micros_each(cpu.total()?.saturating_sub(before), usize::try_from(report.answered)?));
        Ok(())
    }

    /// How many times as fast the other one is, round by round.
    fn slower_than(&self, other: &Self) -> Vec<f64> {
        other.per_second.iter().zip(&self.per_second).map(|(theirs, ours)| theirs / ours).collect()
    }

    fn dearer_than(&self, other: &Self) -> Vec<f64> {
        self.cpu_us.iter().zip(&other.cpu_us).map(|(ours, theirs)| ours / theirs).collect()
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
    let mut loops = Vec::new();
    let mut processes = Vec::new();
    for backends in [1, MANY_ENDPOINTS, MANY_TARGETS, IN_TURN] {
        let (course, process) = bare(folder.path(), &sockets[..backends]).await?;
        loops.push(course);
        processes.push(process);
    }
    for round in 0..=ROUNDS {
        progress(&format!("targets and endpoints, round {round} of {ROUNDS}"));
        for course in ours.iter_mut().chain(&mut loops) {
            course.run().await?;
            if round == 0 {
                // It opened the connections.
                (course.per_second.clear(), course.cpu_us.clear());
            }
        }
    }
    rows(&ours, &loops)
}

fn address(n: usize) -> Result<IpAddr> {
    let n = u8::try_from(n / 200).map(|high| (high, (n % 200 + 1) as u8))?;
    Ok(Ipv4Addr::new(127, 3, n.0, n.1).into())
}

fn course(stage: &Stage<'_>, targets: usize, endpoints: usize, kept: bool) -> Result<Course> {
    let hosts = if kept { (CONNECTIONS / endpoints).max(1) } else { IN_TURN / endpoints }.min(targets);
    let step = targets / hosts;
    let (targets, way) = (
        if targets == 1 { "1 target".to_owned() } else { format!("{targets} targets") },
        if kept { "kept" } else { "in turn" },
    );
    Ok(Course {
        name: format!("{targets} of {endpoints}, {hosts} asked {way}"),
        address: stage.proxy()?,
        process: id(stage.activator())?,
        hosts: (0..hosts).map(|n| stage.host(&format!("web-{}", n * step))).collect(),
        kept,
        per_second: Vec::new(),
        cpu_us: Vec::new(),
    })
}

async fn bare(folder: &Path, backends: &[SocketAddr]) -> Result<(Course, Process)> {
    let (contender, process) = hyper_loop(folder, backends).await?;
    let course = Course {
        name: format!("hyper loop over {} backends", backends.len()),
        address: contender.address,
        process: contender.process,
        hosts: vec![contender.host],
        kept: false,
        per_second: Vec::new(),
        cpu_us: Vec::new(),
    };
    Ok((course, process))
}

fn rows(ours: &[Course], loops: &[Course]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for course in ours.iter().chain(loops) {
        let base = if loops.iter().any(|other| std::ptr::eq(other, course)) { &loops[0] } else { &ours[0] };
        let (slower, dearer) = (median(&course.slower_than(base)), median(&course.dearer_than(base)));
        rows.push(Row::new(&course.name, "", median(&course.per_second)).beside(
            &base.name,
            median(&base.per_second),
            slower,
        ));
        rows.push(Row::new(format!("CPU: {}", course.name), "µs", median(&course.cpu_us)).beside(
            &base.name,
            median(&base.cpu_us),
            dearer,
        ));
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
