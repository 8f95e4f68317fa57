//! Work that yields to everything else: how much of it a core gets done tells what the core has left. Unlike the kernel's counts
//! it misses nothing, whichever context a packet is handled in, and is finer than a tick (after Andrew Morton's cyclesoak).
//! `podlight-bench child soak`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::bench::proxy::child::core_of;
use crate::bench::usage::thread_cpu;
use crate::net::tools::output;

/// Steps between two looks at the clock.
const STEPS: u32 = 2_000;

/// What came of it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Soaked {
    /// Steps a second.
    pub(super) rate: f64,
    /// How much of the core the work had, by the scheduler's word, which takes interrupts for a part of the work.
    pub(super) share: f64,
}

/// Works for some seconds.
pub(super) fn run(seconds: f64) -> Soaked {
    let (begun, before) = (Instant::now(), thread_cpu());
    let (mut steps, mut value) = (0_u64, 1_u64);
    while begun.elapsed().as_secs_f64() < seconds {
        for _ in 0..STEPS {
            // Each step waits for the one before it, so that no other use of the core speeds them up.
            value = black_box(value.wrapping_mul(0x5851_f42d_4c95_7f2d) ^ (value >> 29));
        }
        steps += u64::from(STEPS);
    }
    let elapsed = begun.elapsed();
    let used = thread_cpu().saturating_sub(before);
    Soaked { rate: steps as f64 / elapsed.as_secs_f64(), share: used.as_secs_f64() / elapsed.as_secs_f64() }
}

/// Has a core work for so long, with what nobody else wants of it.
pub(super) async fn soak(core: usize, time: Duration) -> Result<Soaked> {
    let mut command = std::process::Command::new("taskset");
    command.args(["-c", &core_of(core), "chrt", "--idle", "0"]).arg(std::env::current_exe()?);
    command.args(["child", "soak", &time.as_secs_f64().to_string()]);
    Ok(serde_json::from_str(&output(command).await?)?)
}
