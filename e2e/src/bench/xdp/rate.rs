//! Probes a second and how long each takes, as fast as they are answered. The load is on one core; nginx and the activator itself
//! are on the other, and the program runs wherever the kernel runs it, which on a veth pair is the core of whoever sends.

use anyhow::{Context, Result};

use super::arena::{Contender, Who};
use super::beside;
use crate::bench::progress;
use crate::bench::proxy::child::{OTHER_CORE, core_of};
use crate::bench::report::{Better, Row};
use crate::net::ask::wrk;
use crate::net::ground::Mode;

/// Probes at once.
pub(super) const AT_ONCE: usize = 8;

/// Seconds of a round.
const SECONDS: u32 = 2;

const ROUNDS: usize = 4;

#[derive(Default)]
struct Rounds {
    per_second: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    whole_p50_us: Vec<f64>,
    whole_p99_us: Vec<f64>,
}

/// Measures all figures.
pub(super) async fn measure(contenders: &[Contender]) -> Result<Vec<Row>> {
    let mut all: Vec<Rounds> = contenders.iter().map(|_| Rounds::default()).collect();
    let core = core_of(OTHER_CORE);
    for round in 0..=ROUNDS {
        progress(&format!("probes as fast as they are answered, round {round} of {ROUNDS}"));
        for (contender, rounds) in contenders.iter().zip(&mut all) {
            let (pair, path) = (&contender.pair, &contender.path);
            let seen = wrk(pair, contender.to(), path, AT_ONCE, SECONDS, Some(&core)).await?.whole()?;
            let timed = contender.probe(AT_ONCE, u64::MAX, SECONDS.into(), None).await?.whole()?;
            // The first round warms up.
            if round > 0 {
                rounds.per_second.push(seen.rate);
                rounds.p50_us.push(seen.p50_us);
                rounds.p99_us.push(seen.p99_us);
                rounds.whole_p50_us.push(timed.p50_us);
                rounds.whole_p99_us.push(timed.p99_us);
            }
        }
    }
    let of = |who: Who| {
        let at = contenders.iter().position(|contender| contender.who == who);
        at.and_then(|at| all.get(at)).with_context(|| format!("no {}", who.name()))
    };
    let (nginx, userspace) = (of(Who::Nginx)?, of(Who::Ours(Mode::Userspace))?);
    let mut rows = Vec::new();
    let load = format!("wrk, {AT_ONCE} at once on one core");
    for (mode, aim) in [(Mode::Generic, 2.5), (Mode::Native, 3.0)] {
        let (who, rounds) = (Who::Ours(mode), of(Who::Ours(mode))?);
        let row = beside(
            &format!("probes a second, {} ({load})", who.name()),
            "",
            "nginx",
            &rounds.per_second,
            &nginx.per_second,
        );
        rows.push(Row { better: Better::Higher, ..row.bounds(2.0, aim) });
        let figure = format!("p99 of a probe under that load, {}", who.name());
        rows.push(beside(&figure, "µs", "userspace", &rounds.p99_us, &userspace.p99_us).bounds(0.5, 0.25));
        let figure = format!("p99 from SYN to the answer's end, {}", who.name());
        rows.push(beside(&figure, "µs", "userspace", &rounds.whole_p99_us, &userspace.whole_p99_us));
        let figure = format!("p50 of a probe under that load, {}", who.name());
        rows.push(beside(&figure, "µs", "userspace", &rounds.p50_us, &userspace.p50_us));
        let figure = format!("p50 from SYN to the answer's end, {}", who.name());
        rows.push(beside(&figure, "µs", "userspace", &rounds.whole_p50_us, &userspace.whole_p50_us));
    }
    let row = beside("probes a second, userspace", "", "nginx", &userspace.per_second, &nginx.per_second);
    rows.push(Row { better: Better::Higher, ..row });
    Ok(rows)
}
