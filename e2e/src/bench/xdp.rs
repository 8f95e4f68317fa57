//! What answering probes in the kernel is worth: nginx that returns 200, the activator's own server, and its program in both modes
//! side by side, each over a veth pair of its own. Needs root.

use anyhow::{Context, Result};

use super::report::Row;
use super::usage::median;
use crate::net::ground::Mode;

mod arena;
mod change;
mod cpu;
mod flooded;
mod leftover;
mod passing;
mod probes;
mod program;
mod rate;
mod replay;
mod soak;

use arena::{Contender, Who};

/// Measures all figures.
///
/// # Errors
/// When this process may not, or something does not run.
pub async fn measure() -> Result<Vec<Row>> {
    // Before minutes are spent.
    cpu::background().await?;
    let replayed = tokio::task::spawn_blocking(replay::measure).await??;
    let mut changes = change::measure(Mode::Generic).await?;
    changes.extend(change::measure(Mode::Native).await?);
    let mut contenders = Vec::new();
    for who in Who::ALL {
        contenders.push(Contender::start(who).await.with_context(|| format!("cannot start {}", who.name()))?);
    }
    let of = |who: Who| contenders.iter().find(|contender| contender.who == who).context("no such contender");
    let mut rows = rate::measure(&contenders).await?;
    rows.extend(changes);
    rows.extend(program::measure(&contenders).await?);
    rows.extend(replayed);
    rows.extend(leftover::measure(of(Who::Nginx)?, of(Who::Ours(Mode::Generic))?).await?);
    rows.extend(flooded::measure(&contenders).await?);
    rows.extend(passing::measure(&contenders).await?);
    // Last: it changes where packets are handled.
    rows.extend(cpu::measure(&contenders).await?);
    Ok(rows)
}

/// Runs a child: `probes` or `flood`, in a namespace, or `soak`. Returns what it found as JSON.
///
/// # Errors
/// When it fails.
pub(super) async fn child(kind: &str, argument: Option<String>) -> Result<String> {
    match kind {
        "probes" => {
            let probes = serde_json::from_str(&argument.context("which probes?")?)?;
            Ok(serde_json::to_string(&probes::run(probes).await?)?)
        }
        "soak" => Ok(serde_json::to_string(&soak::run(argument.context("how long?")?.parse()?))?),
        "flood" => Ok(serde_json::to_string(&flooded::run()?)?),
        other => anyhow::bail!("no child {other:?}"),
    }
}

fn beside(figure: &str, unit: &'static str, name: &str, ours: &[f64], theirs: &[f64]) -> Row {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    Row::new(figure, unit, median(ours)).beside(name, median(theirs), median(&ratios))
}
