//! Warm requests. Rounds take turns between the proxies, so that whatever else the machine does hits all of them; a ratio is the
//! median of the rounds' ratios.

use anyhow::{Context, Result};

use super::child::load;
use super::contenders::{Arena, Contender};
use super::load::Report;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::usage::{median, micros_each};

/// Kept connections, as the peers were measured before.
const CONNECTIONS: usize = 64;

/// Seconds of a round at saturation, and before the first.
const SECONDS: f64 = 2.0;

/// Rounds of each proxy at saturation.
const ROUNDS: usize = 7;

/// Requests a second at a fixed rate.
const RATE: f64 = 1000.0;

/// Seconds of a round at that rate.
const RATE_SECONDS: f64 = 4.0;

/// Rounds of each proxy at that rate.
const RATE_ROUNDS: usize = 5;

/// One proxy's rounds.
#[derive(Default)]
struct Rounds {
    cpu_us: Vec<f64>,
    per_second: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    paced_cpu_us: Vec<f64>,
}

/// Measures all figures.
pub(super) async fn measure() -> Result<Vec<Row>> {
    let arena = Arena::start().await?;
    let mut all: Vec<Rounds> = arena.contenders.iter().map(|_| Rounds::default()).collect();
    let mut direct = Rounds::default();
    for contender in &arena.contenders {
        load(&contender.load(CONNECTIONS, SECONDS, None)).await?.whole().context(contender.name)?;
    }
    for round in 0..ROUNDS {
        progress(&format!("at saturation, round {} of {ROUNDS}", round + 1));
        for (contender, rounds) in arena.contenders.iter().zip(&mut all) {
            let (report, cpu_us) = loaded(contender, None).await?;
            rounds.cpu_us.push(cpu_us);
            rounds.per_second.push(report.rate());
        }
    }
    for round in 0..RATE_ROUNDS {
        progress(&format!("at {RATE} requests a second, round {} of {RATE_ROUNDS}", round + 1));
        for (contender, rounds) in arena.contenders.iter().zip(&mut all).chain([(&arena.direct, &mut direct)]) {
            let (report, cpu_us) = loaded(contender, Some(RATE)).await?;
            rounds.paced_cpu_us.push(cpu_us);
            rounds.p50_us.push(report.p50_us);
            rounds.p99_us.push(report.p99_us);
        }
    }
    rows(&arena, &all, &direct)
}

async fn loaded(contender: &Contender, rate: Option<f64>) -> Result<(Report, f64)> {
    let before = contender.cpu()?;
    let seconds = if rate.is_some() { RATE_SECONDS } else { SECONDS };
    let report = load(&contender.load(CONNECTIONS, seconds, rate)).await?.whole().context(contender.name)?;
    let cpu = contender.cpu()?.saturating_sub(before);
    let each = micros_each(cpu, usize::try_from(report.answered)?);
    Ok((report, each))
}

fn rows(arena: &Arena, all: &[Rounds], direct: &Rounds) -> Result<Vec<Row>> {
    let of = |name: &str| {
        let at = arena.contenders.iter().position(|contender| contender.name == name);
        at.and_then(|at| all.get(at)).with_context(|| format!("no {name}"))
    };
    let ours = of("ours")?;
    let mut rows = Vec::new();
    for (name, must) in [("nginx", 1.5), ("HAProxy", 1.5), ("hyper loop", 1.4)] {
        let figure = format!("CPU per proxied request at saturation, {CONNECTIONS} connections, beside {name}");
        rows.push(beside(&figure, "µs", name, &ours.cpu_us, &of(name)?.cpu_us).bounds(must, 1.1));
    }
    let nginx = of("nginx")?;
    let paced = format!("{RATE} requests a second, from when each was due");
    rows.push(beside(&format!("{paced}: p50"), "µs", "nginx", &ours.p50_us, &nginx.p50_us).bounds(1.3, 0.9));
    rows.push(beside(&format!("{paced}: p99"), "µs", "nginx", &ours.p99_us, &nginx.p99_us).bounds(1.5, 0.9));
    for (name, other) in [("HAProxy", of("HAProxy")?), ("hyper loop", of("hyper loop")?), ("no proxy", direct)] {
        rows.push(beside(&format!("{paced}: p50"), "µs", name, &ours.p50_us, &other.p50_us));
        rows.push(beside(&format!("{paced}: p99"), "µs", name, &ours.p99_us, &other.p99_us));
    }
    for name in ["nginx", "HAProxy", "hyper loop"] {
        let other = of(name)?;
        rows.push(beside("answers a second of one core", "", name, &ours.per_second, &other.per_second));
        let figure = format!("CPU per proxied request at {RATE} a second");
        rows.push(beside(&figure, "µs", name, &ours.paced_cpu_us, &other.paced_cpu_us));
    }
    Ok(rows)
}

fn beside(figure: &str, unit: &'static str, name: &str, ours: &[f64], theirs: &[f64]) -> Row {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    Row::new(figure, unit, median(ours)).beside(name, median(theirs), median(&ratios))
}
