//! CPU of the answering side alone. On a veth pair a packet is handled on the core that sent it, the far end's share with it;
//! here each end is told to handle what it receives on a core of its own: packet steering (`rps_cpus`) for skbs, a NAPI thread
//! pinned to the core for native XDP. The client's core is then the client's, the other one the server's: its packets, its
//! program, its TCP, its process, and the interrupts between the cores that a real NIC would have too. What a core was not idle
//! is counted, which the kernel keeps to the microsecond, less what it is not idle without probes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::arena::{Contender, Who};
use super::beside;
use super::rate::AT_ONCE;
use crate::bench::progress;
use crate::bench::proxy::child::{MEASURED_CORE, OTHER_CORE, core_of};
use crate::bench::report::Row;
use crate::eventually::eventually;
use crate::net::ask::wrk;
use crate::net::ground::Mode;
use crate::net::namespace::Namespace;
use crate::net::pair::DEVICE;

const SECONDS: u32 = 2;

const ROUNDS: usize = 4;

/// More of the measured core than this is somebody else's run.
const MOST_BACKGROUND: f64 = 0.2;

/// `USER_HZ`: the unit of `/proc/stat`.
const TICKS_A_SECOND: f64 = 100.0;

/// Measures all figures.
pub(super) async fn measure(contenders: &[Contender]) -> Result<Vec<Row>> {
    for contender in contenders {
        separate(contender).await.with_context(|| format!("cannot give {} a core", contender.who.name()))?;
    }
    let mut each_us: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::new()).collect();
    let core = core_of(OTHER_CORE);
    for round in 0..=ROUNDS {
        progress(&format!("CPU of the answering core, round {round} of {ROUNDS}"));
        let background = background().await?;
        for (contender, each_us) in contenders.iter().zip(&mut each_us) {
            let (begun, before) = (Instant::now(), idle(MEASURED_CORE)?);
            let seen = wrk(&contender.pair, contender.to(), &contender.path, AT_ONCE, SECONDS, Some(&core)).await?;
            let (seconds, seen) = (begun.elapsed().as_secs_f64(), seen.whole()?);
            let busy = seconds - (idle(MEASURED_CORE)? - before) - background * seconds;
            if round > 0 {
                each_us.push(busy * 1e6 / seen.answers as f64);
            }
        }
    }
    let of = |who: Who| {
        let at = contenders.iter().position(|contender| contender.who == who);
        at.and_then(|at| each_us.get(at)).with_context(|| format!("no {}", who.name()))
    };
    let nginx = of(Who::Nginx)?;
    let row = |mode: Mode| -> Result<Row> {
        let who = Who::Ours(mode);
        let figure = format!("CPU per probe of the answering core, {}", who.name());
        Ok(beside(&figure, "µs", "nginx", of(who)?, nginx))
    };
    Ok(vec![row(Mode::Generic)?.bounds(0.333, 0.2), row(Mode::Native)?.bounds(0.333, 0.2), row(Mode::Userspace)?])
}

/// How much of the measured core something else takes, from 0 to 1.
///
/// # Errors
/// When it takes so much that figures would be about that.
pub(super) async fn background() -> Result<f64> {
    let (begun, before) = (Instant::now(), idle(MEASURED_CORE)?);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let busy = 1.0 - (idle(MEASURED_CORE)? - before) / begun.elapsed().as_secs_f64();
    ensure!(busy < MOST_BACKGROUND, "something else takes {:.0} % of the measured core", busy * 100.0);
    Ok(busy.max(0.0))
}

/// Has each end of a pair handle on its own core what it receives.
async fn separate(contender: &Contender) -> Result<()> {
    let ends = [(&contender.pair.server, MEASURED_CORE), (&contender.pair.client, OTHER_CORE)];
    for (end, core) in ends {
        if contender.who == Who::Ours(Mode::Native) {
            thread(end, core).await?;
        } else {
            let core: usize = core_of(core).parse()?;
            end.write_sys(DEVICE, "queues/rx-0/rps_cpus", &format!("{:x}", 1 << core)).await?;
        }
    }
    Ok(())
}

/// Has a device's packets handled by a thread on this core.
async fn thread(end: &Namespace, core: usize) -> Result<()> {
    let before = napi_threads()?;
    end.write_sys(DEVICE, "threaded", "1").await?;
    let fresh = eventually("the device's thread is there", async || {
        let now = napi_threads()?;
        Ok(now.into_iter().find(|thread| !before.contains(thread)))
    })
    .await?;
    let mut command = std::process::Command::new("taskset");
    command.args(["-c", "-p", &core_of(core), &fresh]);
    crate::net::tools::output(command).await.map(drop)
}

/// The kernel's threads that handle packets of devices named as ours are.
fn napi_threads() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let name = process?.file_name().to_string_lossy().into_owned();
        let comm = fs::read_to_string(format!("/proc/{name}/comm")).unwrap_or_default();
        if comm.starts_with(&format!("napi/{DEVICE}")) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Seconds that a core has been idle since the start.
fn idle(core: usize) -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let prefix = format!("cpu{} ", core_of(core));
    let line = stat.lines().find_map(|line| line.strip_prefix(&prefix)).context("no such core")?;
    let ticks: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(ticks.len() >= 8, "no counts of a core");
    // Idle, waiting for a disk, and what another machine on the same host took.
    Ok((ticks[3] + ticks[4] + ticks[7]) as f64 / TICKS_A_SECOND)
}
