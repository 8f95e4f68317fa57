//! Probes while SYNs from addresses of nobody arrive, as many as one core can send.

use std::time::Duration;

use anyhow::{Context, Result};

use super::arena::{Contender, Who, child};
use crate::bench::progress;
use crate::bench::proxy::child::{MEASURED_CORE, OTHER_CORE};
use crate::bench::report::{Better, Row};
use crate::net::flood::{Flooded, flood, spoofed_syns};
use crate::net::ground::{Mode, PORT};
use crate::net::packets::PacketSocket;
use crate::net::pair::SERVER;

const SECONDS: f64 = 6.0;

/// More than a core sends.
const MOST: u64 = 100_000_000;

/// Probes a second: a node's worst case, KEP-3066.
const RATE: f64 = 600.0;

const AT_ONCE: usize = 32;

/// The flood itself, in a process of its own in the client's namespace.
pub(super) fn run() -> Result<Flooded> {
    let socket = PacketSocket::here()?;
    flood(&socket, &spoofed_syns((SERVER, PORT).into())?, MOST, Duration::from_secs_f64(SECONDS))
}

/// Measures it for everybody.
pub(super) async fn measure(contenders: &[Contender]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for contender in contenders {
        progress(&format!("probes during a flood, {}", contender.who.name()));
        let pair = std::sync::Arc::clone(&contender.pair);
        let flooding = tokio::spawn(async move { child(&pair, OTHER_CORE, &["flood"]).await });
        // Ends while the flood is still on.
        let probes = super::probes::Probes {
            to: contender.to(),
            path: contender.path.clone(),
            at_once: AT_ONCE,
            count: u64::MAX,
            seconds: SECONDS - 2.0,
            rate: Some(RATE),
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let probed = child(&contender.pair, MEASURED_CORE, &["probes", &serde_json::to_string(&probes)?]).await?;
        let probed: super::probes::Probed = serde_json::from_str(&probed)?;
        anyhow::ensure!(!flooding.is_finished(), "the flood ended before the probes");
        let flooded: Flooded = serde_json::from_str(&flooding.await??).context("no report of the flood")?;
        let name = contender.who.name();
        if !probed.failures.is_empty() {
            progress(&format!("{name}: {:?}", probed.failures));
        }
        let answered = probed.answered as f64 * 100.0 / probed.asked() as f64;
        let row = Row::new(format!("probes answered while {:.0} SYN/s arrive, {name}", flooded.rate()), "%", answered);
        let row = Row { better: Better::Higher, ..row };
        let bounded = matches!(contender.who, Who::Ours(Mode::Generic | Mode::Native));
        rows.push(if bounded { row.bounds(99.0, 99.9) } else { row });
        rows.push(Row::new(format!("p99 of those probes, {name}"), "µs", probed.p99_us));
    }
    Ok(rows)
}
