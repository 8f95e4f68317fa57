//! From an event to the map. A real activator counts itself how long a change of its table takes to be in the map. What that leaves
//! out stands beside it: from the event that is sent to the first probe that is answered by it, which are the request, the
//! signature, the table, the writer and the probe. The probes, one after the other without a pause, are the program's to answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use podlight_proto::Kind;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::bench::progress;
use crate::bench::proxy::child::{MEASURED_CORE, OTHER_CORE, core_of};
use crate::bench::report::Row;
use crate::bench::usage::percentile;
use crate::metrics::Histogram;
use crate::net::ask::{request, status};
use crate::net::ground::{Ground, GroundSpec, Mode};
use crate::net::pair::Pair;

const EVENTS: usize = 1_000;

/// The activator's own count of how long the map takes to follow the table.
const LAG: &str = "podlight_xdp_lag_seconds";

/// Longest wait for a change.
const PATIENCE: Duration = Duration::from_secs(5);

/// A status and when the first probe with it was answered.
type Seen = (u16, Instant);

/// Measures it in a mode.
pub(super) async fn measure(mode: Mode) -> Result<Vec<Row>> {
    progress(&format!("{EVENTS} changes, XDP {mode}"));
    let spec = GroundSpec { core: Some(MEASURED_CORE), ..GroundSpec::new(mode) };
    let run = move || spec.run_with(|spec| spec.flag("log", "warn"), changes);
    let (measured, lag) = tokio::task::spawn_blocking(run).await??;
    let figure = format!("from an event sent to a probe that it answers, XDP {mode}");
    let applied = format!("from an event applied to the map that shows it (the activator's own count), XDP {mode}");
    Ok(vec![
        Row::new(format!("{applied}: p99, at most"), "ms", lag.at_most(0.99) * 1e3).bounds(1.0, 0.2),
        Row::new(format!("{applied}: p50, at most"), "ms", lag.at_most(0.5) * 1e3),
        Row::new(format!("{figure}: p99"), "ms", percentile(&measured, 99)),
        Row::new(format!("{figure}: p50"), "ms", percentile(&measured, 50)),
    ])
}

async fn changes(ground: &mut Ground) -> Result<(Vec<f64>, Histogram)> {
    let pod = ground.ready("web").await?;
    let before = ground.activator().metrics().await?.histogram(LAG);
    let (tell, seen) = mpsc::channel();
    let over = Arc::new(AtomicBool::new(false));
    let watching = {
        let (pair, over, to, request) =
            (Arc::clone(&ground.pair), Arc::clone(&over), ground.server(), request(&ground.path("web")));
        std::thread::spawn(move || watch(&pair, to, &request, &tell, &over))
    };
    let first: Seen = seen.recv_timeout(PATIENCE).context("no probe is answered")?;
    ensure!(first.0 == 200, "it answers {}", first.0);
    let mut latencies_ms = Vec::new();
    for n in 0..EVENTS {
        let (kind, wanted) = if n % 2 == 0 { (Kind::NotReady, 503) } else { (Kind::Ready, 200) };
        let begun = Instant::now();
        pod.say(kind).await?;
        let (status, at) = seen.recv_timeout(PATIENCE).context("no probe sees the event")?;
        ensure!(status == wanted, "{status} after an event for {wanted}");
        latencies_ms.push(at.saturating_duration_since(begun).as_secs_f64() * 1e3);
    }
    over.store(true, Ordering::Relaxed);
    watching.join().map_err(|_| anyhow!("the probes panicked"))??;
    let lag = ground.activator().metrics().await?.histogram(LAG).since(&before);
    ensure!(lag.count() >= EVENTS as f64, "{lag:?} of {EVENTS} events");
    Ok((latencies_ms, lag))
}

/// Probes without a pause, and tells each change.
fn watch(pair: &Pair, to: SocketAddr, request: &[u8], tell: &mpsc::Sender<Seen>, over: &AtomicBool) -> Result<()> {
    pair.client.within(|| {
        let mut core = CpuSet::new();
        core.set(core_of(OTHER_CORE).parse()?);
        sched_setaffinity(None, &core)?;
        let (mut last, mut answer) = (0, Vec::new());
        while !over.load(Ordering::Relaxed) {
            let mut stream = TcpStream::connect(to)?;
            stream.write_all(request)?;
            answer.clear();
            stream.read_to_end(&mut answer)?;
            let status = status(&answer)?;
            if status != last {
                last = status;
                tell.send((status, Instant::now()))?;
            }
        }
        Ok(())
    })
}
