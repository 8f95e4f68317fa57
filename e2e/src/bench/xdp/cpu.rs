//! CPU of the answering side alone. On a veth pair a packet is handled on the core that sent it, the far end's share with it;
//! here each end is told to handle what it receives on a core of its own: packet steering (`rps_cpus`) for skbs, a NAPI thread
//! pinned to the core for native XDP. The client's core is then the client's, the other one the server's: its packets, its
//! program, its TCP, its process, and the interrupts between the cores that a real NIC would have too. What is measured is how
//! much less other work that core gets done while probes come, work that yields to everything: the kernel's own counts of a
//! core's time go by ticks, and take what an interrupt does for the work of whoever was interrupted.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::arena::{Contender, Who};
use super::beside;
use super::rate::AT_ONCE;
use super::soak::soak;
use crate::bench::progress;
use crate::bench::proxy::child::{MEASURED_CORE, OTHER_CORE, core_of};
use crate::bench::report::Row;
use crate::eventually::eventually;
use crate::net::ask::wrk;
use crate::net::ground::Mode;
use crate::net::namespace::Namespace;
use crate::net::pair::DEVICE;

/// Probes come for so long.
const SECONDS: u32 = 2;

/// From the load's start on until it is under way.
const START: Duration = Duration::from_millis(300);

/// The part of the load in which the core is watched.
const WATCHED: Duration = Duration::from_millis(1_400);

const ROUNDS: usize = 5;

/// More of the measured core than this is somebody else's run.
const MOST_BACKGROUND: f64 = 0.2;

/// Measures all figures.
pub(super) async fn measure(contenders: &[Contender]) -> Result<Vec<Row>> {
    for contender in contenders {
        separate(contender).await.with_context(|| format!("cannot give {} a core", contender.who.name()))?;
    }
    let mut each_us: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        progress(&format!("CPU of the answering core, round {round} of {ROUNDS}"));
        for (contender, each_us) in contenders.iter().zip(&mut each_us) {
            let us = probe_us(contender).await?;
            if round > 0 {
                each_us.push(us);
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
        let figure = format!("CPU per probe of the answering core (other work that it gets less done), {}", who.name());
        Ok(beside(&figure, "µs", "nginx", of(who)?, nginx))
    };
    Ok(vec![row(Mode::Generic)?.bounds(0.333, 0.2), row(Mode::Native)?.bounds(0.333, 0.2), row(Mode::Userspace)?])
}

/// Time of the measured core that a probe takes, in microseconds.
async fn probe_us(contender: &Contender) -> Result<f64> {
    let alone = soak(MEASURED_CORE, WATCHED).await?;
    let core = core_of(OTHER_CORE);
    let load = wrk(&contender.pair, contender.to(), &contender.path, AT_ONCE, SECONDS, Some(&core));
    let watch = async {
        tokio::time::sleep(START).await;
        soak(MEASURED_CORE, WATCHED).await
    };
    let (seen, beside) = tokio::join!(load, watch);
    Ok((1.0 - beside?.rate / alone.rate) * 1e6 / seen?.whole()?.rate)
}

/// Fails when something else takes so much of the measured core that figures would be about that.
///
/// # Errors
/// When it does.
pub(super) async fn background() -> Result<()> {
    let taken = 1.0 - soak(MEASURED_CORE, Duration::from_secs(1)).await?.share;
    ensure!(taken < MOST_BACKGROUND, "something else takes {:.0} % of the measured core", taken * 100.0);
    Ok(())
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
