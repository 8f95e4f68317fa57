//! What a process or a thread has used so far, by the kernel's own count, and statistics over what was measured.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};

/// In what `/proc/<pid>/stat` counts time: the kernel's `USER_HZ`, 100 on every architecture that this is built for.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU time of another process, in nanoseconds from the scheduler (`/proc/<pid>/stat` has ticks of 10 ms).
#[derive(Debug)]
pub struct CpuMeter {
    process: u32,
    /// By thread, so that a thread that has ended still counts.
    threads: HashMap<String, u64>,
}

impl CpuMeter {
    /// For the process of this id.
    pub fn new(process: u32) -> Self {
        Self { process, threads: HashMap::new() }
    }

    /// What all its threads have used since they began.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn total(&mut self) -> Result<Duration> {
        let folder = format!("/proc/{}/task", self.process);
        for thread in fs::read_dir(&folder).with_context(|| format!("no {folder}: the process has ended"))? {
            let thread = thread?;
            // One may end between the listing and here.
            let Ok(line) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let used = line.split_whitespace().next().context("an empty schedstat")?.parse()?;
            self.threads.insert(thread.file_name().to_string_lossy().into_owned(), used);
        }
        ensure!(!self.threads.is_empty(), "process {} has no threads", self.process);
        Ok(Duration::from_nanos(self.threads.values().sum()))
    }
}

/// What a process has used in user space alone, by the scheduler's ticks: good for a share of seconds, not of milliseconds.
///
/// # Errors
/// When the process has ended.
pub fn user_cpu(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("no {path}: the process has ended"))?;
    // The name, in parentheses, may hold anything; utime is the twelfth field behind it.
    let ticks = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(11));
    let ticks: f64 = ticks.with_context(|| format!("{path} has no utime"))?.parse()?;
    Ok(Duration::from_secs_f64(ticks / TICKS_A_SECOND))
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A line of `/proc/<pid>/status` that counts memory, such as `VmRSS`, `VmHWM` or `RssAnon`, in MiB.
///
/// # Errors
/// When the process has ended or has no such line.
pub fn memory_mib(process: u32, line: &str) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("no {path}: the process has ended"))?;
    let value = status.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let value = value.with_context(|| format!("{path} has no {line}"))?;
    let kib: u32 = value.trim().trim_end_matches("kB").trim().parse()?;
    Ok(f64::from(kib) / 1024.0)
}

/// The middle one; of an even number the mean of the middle two. NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value that `percent` of the values do not exceed (nearest rank). NaN of none.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Microseconds for each of `count`.
pub fn micros_each(total: Duration, count: usize) -> f64 {
    total.as_secs_f64() * 1e6 / count as f64
}

/// Milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_nearest_ranks() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 99), 99.0);
        assert_eq!(percentile(&values, 50), 50.0);
        assert_eq!(percentile(&values[..50], 99), 100.0);
        assert_eq!(median(&[3.0, 1.0, 2.0, 4.0]), 2.5);
        assert!(median(&[]).is_nan() && percentile(&[], 99).is_nan());
    }

    #[test]
    fn a_process_uses_memory_and_time() -> Result<()> {
        let own = std::process::id();
        assert!(memory_mib(own, "VmHWM")? > 0.1);
        let mut meter = CpuMeter::new(own);
        let before = meter.total()?;
        let begun = thread_cpu();
        while thread_cpu() < begun + Duration::from_millis(30) {}
        assert!(meter.total()? > before);
        Ok(())
    }
}
