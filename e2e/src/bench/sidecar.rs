//! What a sidecar takes on a node: memory once it is steady, probing a ready app and telling three replicas over TLS, and the size
//! of its one file.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::report::Row;
use super::standalone::{Standalone, certificates};
use super::usage::memory_mib;
use crate::app::App;
use crate::binary;
use crate::eventually::eventually;

const REPLICAS: usize = 3;

/// Until it counts as steady: probes at their slow pace, some heartbeats, everything allocated that will be.
const STEADY_AFTER: Duration = Duration::from_secs(20);

/// Looks at its memory, a second apart; the greatest counts.
const LOOKS: usize = 5;

const MIB: f64 = 1024.0 * 1024.0;

/// The sidecar as its image has it, where `make dist` has built that; else the one that the tests run.
fn program() -> Result<(PathBuf, &'static str)> {
    let tested = binary("podlight-sidecar")?;
    let shipped = tested.parent().and_then(Path::parent).map(|target| target.join("dist/podlight-sidecar"));
    Ok(match shipped.filter(|shipped| shipped.exists()) {
        Some(shipped) => (shipped, "as shipped"),
        None => (tested, "release profile: make dist first"),
    })
}

/// Measures all figures.
///
/// # Errors
/// When the sidecar does not get ready, or `strip` is missing.
pub async fn measure() -> Result<Vec<Row>> {
    let standalone = Standalone::new(1)?;
    let activators = standalone.activators(REPLICAS).await?;
    ensure!(!certificates(&activators)?.is_empty(), "no TLS");
    let mut app = App::new()?;
    app.set_ready(true);
    app.listen().await?;
    let (program, build) = program()?;
    let sidecar = standalone.sidecar(0, &activators, app.port())?.program(&program).start().await?;
    for activator in &activators {
        eventually("every replica has the sidecar's word", async || {
            let leased = activator.metrics().await?.sum("podlight_table_leased_pods", &[]);
            Ok((leased >= 1.0).then_some(()))
        })
        .await?;
    }
    tokio::time::sleep(STEADY_AFTER).await;
    let process = sidecar.id().context("the sidecar has ended")?;
    let (mut resident, mut anonymous) = (0.0_f64, 0.0_f64);
    for _ in 0..LOOKS {
        resident = resident.max(memory_mib(process, "VmRSS")?);
        anonymous = anonymous.max(memory_mib(process, "RssAnon")?);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    ensure!(sidecar.is_running(), "the sidecar has ended: {}", sidecar.log_tail());
    let steady = format!("sidecar ({build}), steady, {REPLICAS} replicas over TLS");
    Ok(vec![
        Row::new(format!("{steady}: resident"), "MiB", resident).bounds(8.0, 6.0),
        Row::new(format!("{steady}: anonymous"), "MiB", anonymous).bounds(2.0, 1.0),
        Row::new(format!("sidecar ({build}), static and stripped binary"), "MiB", stripped_mib(&program)?)
            .bounds(8.0, 6.0),
    ])
}

/// Size of a stripped copy of the binary.
fn stripped_mib(program: &Path) -> Result<f64> {
    let elf = std::fs::read(program)?;
    ensure!(is_static(&elf).context("the sidecar is no ELF file")?, "the sidecar is not linked statically");
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("podlight-sidecar");
    let status = Command::new("strip").arg("-o").arg(&copy).arg(program).status();
    match status.context("cannot run strip (binutils)")? {
        status if status.success() => Ok(std::fs::metadata(copy)?.len() as f64 / MIB),
        status => bail!("strip ended with {status}"),
    }
}

/// Whether an ELF file of 64 bits asks for no interpreter (no program header of type `PT_INTERP`). None when it is no such file.
fn is_static(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| elf.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes).map(usize::from);
    let headers = usize::try_from(u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (half(54)?, half(56)?);
    let mut kinds =
        (0..count).map(|n| elf.get(headers + n * size..)?.get(..4)?.try_into().ok().map(u32::from_le_bytes));
    let magic = elf.starts_with(b"\x7fELF\x02\x01");
    magic.then(|| kinds.all(|kind| kind.is_some_and(|kind| kind != PT_INTERP)))
}
