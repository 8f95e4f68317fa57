//! Every pod of a Service is replaced while requests come in, as a Deployment's rolling update does it: the new pod gets ready,
//! then the old one's preStop tells its sidecar and its app gets SIGTERM at the same moment. Nobody sleeps in a preStop hook.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::child::load;
use super::load::Load;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::proxy::stage::{Stage, Web};
use crate::sidecar::Sidecar;

const PODS: usize = 4;

/// Times that every pod is replaced.
const UPDATES: usize = 3;

const RATE: f64 = 500.0;

/// Longer than all updates take; the load is ended by its number of requests at the latest.
const SECONDS: f64 = 30.0;

/// Between two replacements.
const PAUSE: Duration = Duration::from_millis(500);

/// Measures all figures.
pub(super) async fn measure() -> Result<Vec<Row>> {
    let stage = Stage::standalone_with(|spec| spec.flag("log", "warn").self_signed()).await?;
    stage.create_service(stage.service("web")).await?;
    let mut pods = Vec::new();
    for n in 0..PODS {
        pods.push(start(&stage, &format!("web-0-{n}")).await?);
    }
    let (address, hosts) = (stage.proxy()?, vec![stage.host("web")]);
    let wanted =
        Load { address, hosts, kept: false, connections: 32, seconds: SECONDS, rate: Some(RATE), requests: None };
    let loading = tokio::spawn(async move { load(&wanted).await });
    for update in 1..=UPDATES {
        for (n, pod) in pods.iter_mut().enumerate() {
            progress(&format!("update {update}, pod {n}"));
            let new = start(&stage, &format!("web-{update}-{n}")).await?;
            let (web, sidecar) = std::mem::replace(pod, new);
            let (drain, ()) = tokio::join!(sidecar.drain("0s"), web.app.leave());
            let (status, said) = drain?;
            ensure!(status.success(), "the drain ended with {status}: {said}");
            sidecar.terminate()?;
            sidecar.ended().await?;
            stage.delete_pod(&web.pod.name, 0).await?;
            tokio::time::sleep(PAUSE).await;
        }
    }
    ensure!(!loading.is_finished(), "the updates took longer than the load");
    let report = loading.await??;
    if report.failed() > 0 {
        progress(&format!("failed: {:?}", report.failures));
    }
    let figure = format!("{} pods replaced under {RATE} requests a second, no preStop sleep", UPDATES * PODS);
    Ok(vec![
        Row::new(format!("{figure}: failed requests"), "", report.failed() as f64).bounds(0.0, 0.0),
        Row::new(format!("{figure}: answered"), "", report.answered as f64),
        Row::new(format!("{figure}: p99 from when each was due"), "µs", report.p99_us),
        Row::new(format!("{figure}: slowest"), "µs", report.worst_us),
    ])
}

/// A pod with its app and a real sidecar, once it takes requests.
async fn start(stage: &Stage<'_>, name: &str) -> Result<(Web, Sidecar)> {
    let web = stage.web("web", name).await?;
    stage.wait("web", name, "not-ready observed").await?;
    let ca = stage.activator().ca_file();
    let sidecar = web.pod.sidecar().probe(&web.app.probe()).flag("log", "warn");
    let sidecar = sidecar.flag("activator-ca", &ca.display().to_string()).start().await?;
    stage.wait("web", name, "ready pushed").await.with_context(|| sidecar.log_tail())?;
    Ok((web, sidecar))
}
