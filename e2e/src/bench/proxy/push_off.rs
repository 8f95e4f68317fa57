//! The same cold start without push: a real API server, and in the kubelet's place a probe once a second at an even phase whose
//! success is patched into the pod's status. A real kubelet does no better, and has more to do; endpoint controllers and what they
//! add are left out, as ours reads pods.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cold::spread;
use crate::backend::Backend;
use crate::bench::report::{Better, Row};
use crate::bench::usage::{millis, percentile};
use crate::proxy::client::{self, get};
use crate::proxy::counts::wait_held;
use crate::proxy::stage::{Stage, nowhere, running, running_ready};
use crate::scene::Scene;

const ROUNDS: usize = 20;

/// The kubelet's default.
const PROBE_PERIOD: Duration = Duration::from_secs(1);

/// Measures all figures, beside the median with push.
pub(super) async fn measure(with_push_ms: f64) -> Result<Vec<Row>> {
    let scene = Scene::start(0).await?;
    let stage = Stage::on(&scene, |spec| spec.flag("log", "warn")).await?;
    // Without a virtual address, which would be asked in vain while no sidecar speaks.
    stage.create_service(stage.service("web").headless()).await?;
    let mut answered_ms = Vec::new();
    for n in 0..ROUNDS {
        answered_ms.push(millis(round(&stage, &format!("web-{n}"), spread([Duration::ZERO, PROBE_PERIOD], n)).await?));
    }
    let figure = "app accepts → held request answered, push off (API server real, a 1 s probe simulated)";
    let p50 = percentile(&answered_ms, 50);
    let row = Row::new(format!("{figure}, p50"), "ms", p50).beside("push on", with_push_ms, p50 / with_push_ms);
    Ok(vec![
        Row { better: Better::Higher, ..row }.bounds(1.0, 100.0),
        Row::new(format!("{figure}, p99"), "ms", percentile(&answered_ms, 99)),
    ])
}

async fn round(stage: &Stage<'_>, name: &str, until_probe: Duration) -> Result<Duration> {
    let app = Backend::at(name, nowhere());
    let address = app.address().ip();
    stage.create_pod(stage.pod_spec("web", name), &running(address)).await?;
    stage.wait("web", name, "not-ready observed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    let accepts = Instant::now();
    app.listen()?;
    tokio::time::sleep_until((accepts + until_probe).into()).await;
    stage.set_state(name, &running_ready(address)).await?;
    let answer = held.await??;
    let took = accepts.elapsed();
    ensure!(answer.pod()? == name, "{answer:?}");
    stage.delete_pod(name, 0).await?;
    stage.wait_endpoints("web", 0).await?;
    Ok(took)
}
