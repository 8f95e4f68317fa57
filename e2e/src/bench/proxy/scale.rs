//! What many targets and many endpoints change for a request: nothing, it should be. Pods of a stage are all addresses of one
//! backend; with many targets each pod belongs to all of them, and the load goes round so many hosts that their connections are
//! warm.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::child::{self, MEASURED_CORE, OTHER_CORE, load};
use super::contenders::id;
use super::load::Load;
use crate::backend::PORT;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::usage::{CpuMeter, median, micros_each};
use crate::proxy::manifests::manifest;
use crate::proxy::stage::{Stage, running_ready};

const CONNECTIONS: usize = 64;
const SECONDS: f64 = 2.0;
const ROUNDS: usize = 5;

/// Connections to backends that a load may keep warm: hosts times endpoints.
const WARM: usize = 2000;

/// Targets and endpoints of each.
const SIZES: [(usize, usize); 4] = [(1, 1), (1, 100), (1000, 1), (1000, 100)];

/// Measures all figures.
pub(super) async fn measure() -> Result<Vec<Row>> {
    let folder = tempfile::Builder::new().prefix("podlight-scale.").tempdir()?;
    let addresses: Vec<IpAddr> = (1..=100).map(|n| Ipv4Addr::new(127, 3, 0, n).into()).collect();
    let sockets = addresses.iter().map(|address| SocketAddr::new(*address, PORT).to_string());
    let arguments: Vec<String> = ["backend".to_owned()].into_iter().chain(sockets).collect();
    let _backend = child::start(OTHER_CORE, folder.path(), &arguments)?;
    let mut stages = Vec::new();
    for (targets, endpoints) in SIZES {
        progress(&format!("{targets} targets of {endpoints} endpoints"));
        stages.push(stage(targets, &addresses[..endpoints]).await?);
    }
    let mut rates = SIZES.map(|_| Vec::new());
    let mut cpu_us = SIZES.map(|_| Vec::new());
    for round in 0..=ROUNDS {
        for (at, (stage, (targets, endpoints))) in stages.iter().zip(SIZES).enumerate() {
            let hosts = (0..targets.min(WARM / endpoints)).map(|n| stage.host(&format!("web-{n}"))).collect();
            let (address, rate, requests) = (stage.proxy()?, None, None);
            let mut cpu = CpuMeter::new(id(stage.activator())?);
            let before = cpu.total()?;
            let load = Load { address, hosts, connections: CONNECTIONS, seconds: SECONDS, rate, requests };
            let report = child_load(&load).await?;
            // The first round opens the connections.
            if round > 0 {
                rates[at].push(report.0);
                cpu_us[at].push(micros_each(cpu.total()?.saturating_sub(before), report.1));
            }
        }
    }
    let mut rows = Vec::new();
    for (at, (targets, endpoints)) in SIZES.into_iter().enumerate().skip(1) {
        let name = format!("{targets} targets, {endpoints} endpoints each");
        // How much slower: one divided by the other, so that less is better and 1.1 is ten percent.
        let ratios: Vec<f64> = rates[0].iter().zip(&rates[at]).map(|(one, many)| one / many).collect();
        let row =
            Row::new(format!("answers a second with 1 target and endpoint, beside {name}"), "", median(&rates[0]));
        rows.push(row.beside(&name, median(&rates[at]), median(&ratios)).bounds(1.1, 1.03));
        let row = Row::new(format!("CPU per request with {name}"), "µs", median(&cpu_us[at]));
        let ratios: Vec<f64> = cpu_us[at].iter().zip(&cpu_us[0]).map(|(many, one)| many / one).collect();
        rows.push(row.beside("1 of 1", median(&cpu_us[0]), median(&ratios)));
    }
    Ok(rows)
}

async fn child_load(wanted: &Load) -> Result<(f64, usize)> {
    let report = load(wanted).await?.whole()?;
    Ok((report.rate(), usize::try_from(report.answered)?))
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
