//! Sockets that probes leave behind on the answering side.

use anyhow::Result;

use super::arena::Contender;
use super::rate::AT_ONCE;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::net::ground::PORT;

const PROBES: u64 = 100_000;

/// More than they take.
const SECONDS: f64 = 60.0;

/// TIME_WAIT, as `/proc/net/tcp` has it: `enum` in `include/net/tcp_states.h`.
const TIME_WAIT: &str = "06";

/// Every other state but LISTEN.
const OTHERS: [&str; 10] = ["01", "02", "03", "04", "05", "07", "08", "09", "0B", "0C"];

/// Measures it for the program, with nginx beside it.
pub(super) async fn measure(nginx: &Contender, ours: &Contender) -> Result<Vec<Row>> {
    let mut left = Vec::new();
    for contender in [ours, nginx] {
        progress(&format!("{PROBES} probes of {}", contender.who.name()));
        let server = &contender.pair.server;
        let count = || Ok::<_, anyhow::Error>((server.sockets(PORT, &[TIME_WAIT])?, server.sockets(PORT, &OTHERS)?));
        // Of before, which end one after the other.
        let before = count()?;
        contender.probe(AT_ONCE, PROBES, SECONDS, None).await?.whole()?;
        let after = count()?;
        left.push((after.0.saturating_sub(before.0), after.1.saturating_sub(before.1)));
    }
    let name = ours.who.name();
    let mut row = Row::new(format!("TIME_WAIT left by {PROBES} probes, {name}"), "", left[0].0 as f64).bounds(0.0, 0.0);
    row.reference = Some(left[1].0 as f64);
    row.reference_name = Some(nginx.who.name().to_owned());
    Ok(vec![row, Row::new(format!("other sockets left by them, {name}"), "", left[0].1 as f64).bounds(0.0, 0.0)])
}
