//! What one run of the program takes, by the kernel's own count under load (`bpf_stats`). The count takes time as well, and a core
//! that others use, or whose caches a client uses, is slower: so beside it stands a program that does nothing, under the same
//! count, at the client's end of the native pair.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::arena::{Contender, Who};
use super::rate::AT_ONCE;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::usage::median;
use crate::net::ground::Mode;

const SECONDS: f64 = 2.0;

const ROUNDS: usize = 3;

/// Turns the kernel's count on for as long as it lives.
struct Counting(String);

impl Counting {
    const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

    fn on() -> Result<Self> {
        let before = fs::read_to_string(Self::SWITCH).context("the kernel has no bpf_stats")?;
        fs::write(Self::SWITCH, "1")?;
        Ok(Self(before))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Left on, it costs some nanoseconds a run.
        let _ = fs::write(Self::SWITCH, self.0.trim());
    }
}

/// Measures it in both modes.
pub(super) async fn measure(contenders: &[Contender]) -> Result<Vec<Row>> {
    let _counting = Counting::on()?;
    let mut rows = Vec::new();
    for mode in Mode::PROGRAM {
        let who = Who::Ours(mode);
        let of = |who| contenders.iter().find(|contender| contender.who == who).context("no such contender");
        let contender = of(who)?;
        let native = of(Who::Ours(Mode::Native))?;
        let empty = native.pair.client_program().await?;
        let (mut each_ns, mut each_probe, mut empty_ns) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            progress(&format!("the program's own time, {}, round {round} of {ROUNDS}", who.name()));
            let before = runs(contender.process)?;
            let probed = contender.probe(AT_ONCE, u64::MAX, SECONDS, None).await?.whole()?;
            let after = runs(contender.process)?;
            ensure!(after.1 > before.1, "the program did not run");
            let empty_before = counts(empty)?;
            native.probe(AT_ONCE, u64::MAX, SECONDS / 2.0, None).await?.whole()?;
            let empty_after = counts(empty)?;
            ensure!(empty_after.1 > empty_before.1, "the empty program did not run");
            if round > 0 {
                each_ns.push((after.0 - before.0) as f64 / (after.1 - before.1) as f64);
                empty_ns.push((empty_after.0 - empty_before.0) as f64 / (empty_after.1 - empty_before.1) as f64);
                each_probe.push((after.1 - before.1) as f64 / probed.answered as f64);
            }
        }
        let figure = format!("program time per packet, {} ({:.1} packets a probe)", who.name(), median(&each_probe));
        let row = Row::new(figure, "ns", median(&each_ns)).above("an empty program", median(&empty_ns));
        rows.push(row.bounds(130.0, 90.0));
    }
    Ok(rows)
}

/// Nanoseconds and runs of a program.
fn counts(id: u32) -> Result<(u64, u64)> {
    let mut programs = aya::programs::loaded_programs().filter_map(Result::ok);
    let program = programs.find(|program| program.id() == id).context("the program has gone")?;
    let fd = program.fd()?;
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let count = |name| field(&text, name).with_context(|| format!("no {name} in {path}"));
    Ok((count("run_time_ns")?, count("run_cnt")?))
}

/// A line of a file in `fdinfo`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.trim().parse().ok())
}

/// Nanoseconds and runs of all XDP programs that a process holds.
fn runs(process: u32) -> Result<(u64, u64)> {
    /// `BPF_PROG_TYPE_XDP`: `include/uapi/linux/bpf.h`.
    const XDP: u64 = 6;
    let folder = format!("/proc/{process}/fdinfo");
    let (mut total, mut seen) = ((0, 0), Vec::new());
    for file in fs::read_dir(Path::new(&folder)).context("the activator has ended")? {
        let Ok(text) = fs::read_to_string(file?.path()) else { continue };
        let field = |name| field(&text, name);
        let (Some(XDP), Some(id)) = (field("prog_type"), field("prog_id")) else { continue };
        // Several files may be of one program; a link has the same id and no counts.
        let (Some(nanos), Some(count)) = (field("run_time_ns"), field("run_cnt")) else { continue };
        if !seen.contains(&id) {
            seen.push(id);
            total = (total.0 + nanos, total.1 + count);
        }
    }
    ensure!(!seen.is_empty(), "the activator holds no XDP program");
    Ok(total)
}
