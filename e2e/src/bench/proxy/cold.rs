//! From an app that begins to accept to the answer of the request that was held for it: a real activator and a real sidecar, over
//! TLS. A round is one life of a pod's app and sidecar; lanes take their rounds side by side, each with a Service of its own and
//! on a thread of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::backend::Backend;
use crate::bench::report::Row;
use crate::bench::usage::{millis, percentile};
use crate::eventually::eventually;
use crate::proxy::client::{self, get};
use crate::proxy::stage::{Stage, StagePod, nowhere};

const LANES: usize = 2;
const ROUNDS: usize = 100;

/// How long after the request the app accepts, at least and at most: spread evenly between.
const ACCEPTS_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(1000)];

/// What was measured.
pub(super) struct Cold {
    answered_ms: Vec<f64>,
}

impl Cold {
    pub(super) fn p50_ms(&self) -> f64 {
        percentile(&self.answered_ms, 50)
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let [least, most] = ACCEPTS_AFTER.map(|after| after.as_secs_f64());
        let figure = format!("app accepts, {least} to {most} s after the request, → held request answered");
        vec![
            Row::new(format!("{figure}, p50"), "ms", self.p50_ms()).bounds(8.0, 4.0),
            Row::new(format!("{figure}, p99"), "ms", percentile(&self.answered_ms, 99)).bounds(25.0, 10.0),
            Row::new("rounds", "", self.answered_ms.len() as f64),
        ]
    }
}

/// Measures all rounds.
pub(super) async fn measure() -> Result<Cold> {
    let stage = Arc::new(Stage::standalone_with(|spec| spec.flag("log", "warn").self_signed()).await?);
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let (service, name) = (format!("web-{lane}"), format!("pod-{lane}"));
        stage.create_service(stage.service(&service)).await?;
        let pod = stage.pod_at(&service, &name, nowhere()).await?;
        stage.wait_endpoints(&service, 1).await?;
        let stage = Arc::clone(&stage);
        lanes.push(tokio::task::spawn_blocking(move || rounds(lane, &stage, &service, &pod)));
    }
    let mut answered_ms = Vec::new();
    for lane in lanes {
        answered_ms.extend(lane.await??);
    }
    Ok(Cold { answered_ms })
}

fn rounds(lane: usize, stage: &Stage<'_>, service: &str, pod: &StagePod) -> Result<Vec<f64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut answered_ms = Vec::new();
        for n in 0..ROUNDS {
            let after = spread(ACCEPTS_AFTER, lane * ROUNDS + n);
            let took = round(stage, service, pod, after).await;
            answered_ms.push(millis(took.with_context(|| format!("round {n} of lane {lane}"))?));
        }
        Ok(answered_ms)
    })
}

async fn round(stage: &Stage<'_>, service: &str, pod: &StagePod, after: Duration) -> Result<Duration> {
    let app = Backend::at(&pod.name, pod.address);
    let sidecar = pod.sidecar().probe(&format!("http://{}/ready", app.address())).flag("log", "warn");
    let ca = stage.activator().ca_file();
    let _sidecar = sidecar.flag("activator-ca", &ca.display().to_string()).start().await?;
    eventually("the sidecar has told that the app is not ready", async || {
        let reader = stage.reader()?;
        let endpoint = reader.endpoint(&stage.namespace, service, &pod.name).await?;
        Ok(endpoint.is_some_and(|endpoint| endpoint.verdict() == "not-ready pushed").then_some(()))
    })
    .await?;
    let begun = Instant::now();
    let held = client::start(stage.proxy()?, get(&stage.host(service), "/"));
    tokio::time::sleep_until((begun + after).into()).await;
    ensure!(!held.is_finished(), "the request was not held: {:?}", held.await?);
    let accepts = Instant::now();
    app.listen()?;
    let answer = held.await??;
    let took = accepts.elapsed();
    ensure!(answer.pod()? == pod.name, "{answer:?}");
    Ok(took)
}

/// Spreads rounds evenly, whatever their number (the golden ratio's multiples modulo one).
pub(super) fn spread([least, most]: [Duration; 2], n: usize) -> Duration {
    least + (most - least).mul_f64((n as f64 * 0.618_033_988_749_895).fract())
}
