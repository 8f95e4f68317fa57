//! From an app, or a preStop hook, to every replica: three real activators, real sidecars, everything over TLS. A round is
//! one life of a sidecar: it starts, the app accepts a while later, every replica tells the pod ready; then preStop runs, and every
//! replica tells it draining. A few pods take their rounds side by side, each on a thread of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::sync::mpsc;

use super::report::Row;
use super::standalone::{Standalone, certificates, pod_name};
use super::usage::{millis, percentile};
use crate::activator::Activator;
use crate::app::App;
use crate::follow::{Change, Followed, follow, told_by_all};
use crate::sender::now_ms;

const REPLICAS: usize = 3;
const PODS: usize = 2;
const ROUNDS: usize = 52;

/// How long after its sidecar an app accepts, at least and at most: spread evenly between.
const STARTS_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(1000)];

/// Measures all figures.
///
/// # Errors
/// When a change does not come, or something does not run.
pub async fn measure() -> Result<Vec<Row>> {
    let standalone = Arc::new(Standalone::new(PODS)?);
    let activators = Arc::new(standalone.activators(REPLICAS).await?);
    let ca_pem = certificates(&activators)?;
    let token = standalone.token(0)?;
    let followed = |activator: &Activator| Followed {
        url: activator.url(),
        ca_pem: ca_pem.clone(),
        token: token.clone(),
        address: None,
    };
    let mut changes = follow(activators.iter().map(followed).collect()).await?;

    let mut senders = Vec::new();
    let mut lanes = Vec::new();
    for pod in 0..PODS {
        let (sender, receiver) = mpsc::unbounded_channel();
        senders.push((pod_name(pod), sender));
        let (standalone, activators) = (Arc::clone(&standalone), Arc::clone(&activators));
        lanes.push(tokio::task::spawn_blocking(move || lane(pod, &standalone, &activators, receiver)));
    }
    let sorting = tokio::spawn(async move {
        while let Some(change) = changes.recv().await {
            let to = senders.iter().find(|(name, _)| *name == change.pod);
            // A pod that has done its rounds listens no more.
            drop(to.map(|(_, sender)| sender.send(change)));
        }
    });
    let mut rounds = Vec::new();
    for lane in lanes {
        rounds.extend(lane.await??);
    }
    sorting.abort();
    Ok(rows(&rounds))
}

fn rows(rounds: &[Round]) -> Vec<Row> {
    let of = |what: fn(&Round) -> f64| rounds.iter().map(what).collect::<Vec<f64>>();
    let (ready, heard, drained) = (of(|round| round.ready_ms), of(|round| round.told_ms), of(|round| round.drained_ms));
    let [least, most] = STARTS_AFTER.map(|after| after.as_secs_f64());
    let app = format!("app accepts, {least} to {most} s after its sidecar, → table of all {REPLICAS} replicas");
    let drain = format!("preStop → table of all {REPLICAS} replicas");
    let observed = "the sidecar's probe passes → the same";
    vec![
        Row::new(format!("{app}, p50"), "ms", percentile(&ready, 50)).bounds(8.0, 4.0),
        Row::new(format!("{app}, p99"), "ms", percentile(&ready, 99)).bounds(25.0, 10.0),
        Row::new(format!("{drain}, p99"), "ms", percentile(&drained, 99)).bounds(25.0, 10.0),
        Row::new(format!("{drain}, p50"), "ms", percentile(&drained, 50)),
        Row::new(format!("{observed}, p50 (clock of 1 ms)"), "ms", percentile(&heard, 50)),
        Row::new(format!("{observed}, p99 (clock of 1 ms)"), "ms", percentile(&heard, 99)),
        Row::new("rounds", "", rounds.len() as f64),
    ]
}

/// One life of a sidecar.
struct Round {
    /// From the app's first accept to the last replica.
    ready_ms: f64,
    /// From the state's beginning, as the sidecar has it, to the last replica.
    told_ms: f64,
    /// From the start of preStop to the last replica.
    drained_ms: f64,
}

/// All rounds of one pod, on a runtime of this thread's own.
fn lane(
    pod: usize,
    standalone: &Standalone,
    activators: &[Activator],
    mut changes: mpsc::UnboundedReceiver<Change>,
) -> Result<Vec<Round>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut rounds = Vec::new();
        for n in 0..ROUNDS {
            let round = round(pod, spread(pod * ROUNDS + n), standalone, activators, &mut changes).await;
            rounds.push(round.with_context(|| format!("round {n} of pod {pod}"))?);
        }
        Ok(rounds)
    })
}

async fn round(
    pod: usize,
    after: Duration,
    standalone: &Standalone,
    activators: &[Activator],
    changes: &mut mpsc::UnboundedReceiver<Change>,
) -> Result<Round> {
    let mut app = App::new()?;
    app.set_ready(true);
    let begun = Instant::now();
    let sidecar = standalone.sidecar(pod, activators, app.port())?.start().await?;
    told_by_all(changes, REPLICAS, "not ready", |change| change.state == "not-ready" && change.source == "pushed")
        .await?;

    tokio::time::sleep_until((begun + after).into()).await;
    let accepts = Instant::now();
    app.listen().await?;
    let told = told_by_all(changes, REPLICAS, "ready", |change| change.state == "ready").await?;
    let arrived_ms = now_ms();
    let last = told.iter().map(|change| change.at).max().context("no replica")?;
    let since_ms = told.iter().map(|change| change.since_ms).max().context("no replica")?;
    let since_arrival = millis(last.elapsed());

    let prestop = Instant::now();
    let (drain, drained) = tokio::join!(
        sidecar.drain("0s"),
        told_by_all(changes, REPLICAS, "draining", |change| change.state == "draining"),
    );
    let (status, said) = drain?;
    ensure!(status.success(), "the drain ended with {status}: {said}");
    let drained = drained?.iter().map(|change| change.at).max().context("no replica")?;
    Ok(Round {
        ready_ms: millis(last.saturating_duration_since(accepts)),
        told_ms: (arrived_ms.saturating_sub(since_ms) as f64 - since_arrival).max(0.0),
        drained_ms: millis(drained.saturating_duration_since(prestop)),
    })
}

/// Spreads rounds over [`STARTS_AFTER`] evenly, whatever their number (the golden ratio's multiples modulo one).
fn spread(n: usize) -> Duration {
    let [least, most] = STARTS_AFTER;
    least + (most - least).mul_f64((n as f64 * 0.618_033_988_749_895).fract())
}
