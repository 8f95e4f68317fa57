//! What the bench runs as processes of their own, so that each one's CPU is its own: `podlight-bench child backend|forward|load`,
//! and `probes|flood` of the readiness map.
//! They are this same program, and pinned by whoever starts them.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::load::{Load, Report};
use super::{forward, load, replies};
use crate::control_plane::process::Process;

/// The core of whatever is measured; everything that measures is on [`OTHER_CORE`].
pub(in crate::bench) const MEASURED_CORE: usize = 0;

/// The core of the backend and the load.
pub(in crate::bench) const OTHER_CORE: usize = 1;

/// Runs a child: the arguments behind `podlight-bench child`.
///
/// # Errors
/// When it is none of them, or fails.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let kind = arguments.next().context("which child?")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match kind.as_str() {
        "backend" => runtime.block_on(replies::serve(addresses(arguments)?)),
        "forward" => {
            let addresses = addresses(arguments)?;
            let (listen, to) = addresses.split_first().context("which address?")?;
            runtime.block_on(forward::serve(*listen, to))
        }
        "load" => {
            let load: Load = serde_json::from_str(&arguments.next().context("which load?")?)?;
            let report = runtime.block_on(load::run(load))?;
            use std::io::Write as _;
            Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?)
        }
        other => {
            use std::io::Write as _;
            let said = runtime.block_on(crate::bench::xdp::child(other, arguments.next()))?;
            Ok(writeln!(std::io::stdout(), "{said}")?)
        }
    }
}

fn addresses(texts: impl Iterator<Item = String>) -> Result<Vec<SocketAddr>> {
    texts.map(|address| Ok(address.parse()?)).collect()
}

/// Starts a child on a core.
pub(super) fn start(core: usize, folder: &Path, arguments: &[String]) -> Result<Process> {
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path that is no text")?;
    let arguments: Vec<&str> = [program, "child"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    pinned(core, &folder.join(format!("{}.log", arguments[2])), &arguments)
}

/// Starts a program on a core.
pub(super) fn pinned(core: usize, log: &Path, command_line: &[&str]) -> Result<Process> {
    Process::start(Path::new("taskset"), log, |command| {
        command.arg("-c").arg(core_of(core)).args(command_line);
    })
}

/// Runs a load to its end, on the other core.
///
/// # Errors
/// When it fails.
pub async fn load(load: &Load) -> Result<Report> {
    let mut command = std::process::Command::new("taskset");
    command.arg("-c").arg(core_of(OTHER_CORE)).arg(std::env::current_exe()?);
    command.args(["child", "load", &serde_json::to_string(load)?]);
    let output = tokio::task::spawn_blocking(move || command.output()).await?.context("cannot run taskset")?;
    if !output.status.success() {
        bail!("the load ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// On a machine with one core there is no other.
pub(in crate::bench) fn core_of(core: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (core % cores).to_string()
}
