//! Many held requests: how soon all are answered once their pod is ready, what each takes while it waits, and what is left of
//! that an hour's worth of requests later.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::child::{self, OTHER_CORE, load};
use super::contenders::id;
use super::load::{Connection, Load};
use crate::backend::PORT;
use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::usage::{median, memory_mib, millis, percentile};
use crate::control_plane::process::Process;
use crate::proxy::counts::{HELD, wait_for, wait_held};
use crate::proxy::stage::{Stage, StagePod, nowhere};

/// Held at once and released by one event.
const RELEASED: usize = 1000;

/// Times that is done, each with a new pod, so that no connection to it is warm.
const ROUNDS: usize = 9;

/// Held at once to see what each takes.
const MANY: usize = 10_000;

/// An hour's worth of requests at a hundred a second.
const HOUR: u64 = 360_000;

/// Connections that are being opened at once.
const OPENING: usize = 64;

/// Measures all figures.
pub(super) async fn measure() -> Result<Vec<Row>> {
    allow_files()?;
    let folder = tempfile::Builder::new().prefix("podlight-held.").tempdir()?;
    let mut rows = release(folder.path()).await?;
    rows.extend(memory(folder.path()).await?);
    Ok(rows)
}

async fn stage() -> Result<Stage<'static>> {
    // All from one address, and no more than 20 000 descriptors together.
    let (many, more) = (MANY.to_string(), (MANY + 500).to_string());
    // A target never holds more than is left for the others.
    let twice = (2 * MANY).to_string();
    let stage = Stage::standalone_with(|spec| {
        let spec = spec.flag("log", "warn").flag("max-held", &twice).flag("max-held-per-target", &many);
        let spec = spec.flag("hold-timeout", "120s").flag("max-connections-per-source", &more);
        spec.flag("proxy-max-connections", &more)
            .flag("max-connections", "500")
            .flag("max-upstream-connections", "5000")
    })
    .await?;
    stage.create_service(stage.service("web")).await?;
    Ok(stage)
}

/// A pod whose app answers already, and that nobody has said to be ready.
async fn pod(stage: &Stage<'_>, name: &str, folder: &Path) -> Result<(StagePod, Process)> {
    let address = nowhere();
    let socket = SocketAddr::new(address, PORT).to_string();
    let process = child::start(OTHER_CORE, folder, &["backend".to_owned(), socket])?;
    let pod = stage.pod_at("web", name, address).await?;
    pod.introduce().await?;
    Ok((pod, process))
}

async fn release(folder: &Path) -> Result<Vec<Row>> {
    let stage = stage().await?;
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", stage.host("web")).into_bytes();
    let mut connections = open(&stage, RELEASED).await?;
    let (mut last_ms, mut median_ms) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        progress(&format!("{RELEASED} held and released, round {} of {ROUNDS}", round + 1));
        let name = format!("web-{round}");
        let (pod, _process) = pod(&stage, &name, folder).await?;
        for connection in &mut connections {
            connection.send(&request).await?;
        }
        wait_held(stage.activator(), RELEASED).await?;
        let released = Instant::now();
        let answers = async {
            let answers = connections.iter_mut().map(async |connection| {
                let status = connection.answer().await?;
                ensure!(status == 200, "status {status}");
                Ok(millis(released.elapsed()))
            });
            stream::iter(answers).buffer_unordered(RELEASED).try_collect::<Vec<f64>>().await
        };
        let (said, took_ms) = tokio::join!(pod.say(podlight_proto::Kind::Ready), answers);
        said?;
        let took_ms = took_ms?;
        last_ms.push(percentile(&took_ms, 100));
        median_ms.push(percentile(&took_ms, 50));
        stage.delete_pod(&name, 0).await?;
        stage.wait_endpoints("web", 0).await?;
    }
    let figure = format!("{RELEASED} held requests, one ready event posted");
    Ok(vec![
        Row::new(format!("{figure} → last answer, median of {ROUNDS}"), "ms", median(&last_ms)).bounds(120.0, 50.0),
        Row::new(format!("{figure} → last answer, worst of {ROUNDS}"), "ms", percentile(&last_ms, 100)),
        Row::new(format!("{figure} → median answer"), "ms", median(&median_ms)),
    ])
}

async fn memory(folder: &Path) -> Result<Vec<Row>> {
    let stage = stage().await?;
    let process = id(stage.activator())?;
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", stage.host("web")).into_bytes();
    let (pod, _backend) = pod(&stage, "web-0", folder).await?;
    let warm = Load {
        address: stage.proxy()?,
        hosts: vec![stage.host("web")],
        kept: false,
        connections: 64,
        seconds: 600.0,
        rate: None,
        requests: Some(10_000),
    };
    pod.say(podlight_proto::Kind::Ready).await?;
    stage.wait("web", "web-0", "ready pushed").await?;
    load(&warm).await?.whole()?;
    pod.say(podlight_proto::Kind::NotReady).await?;
    stage.wait("web", "web-0", "not-ready pushed").await?;
    let idle = memory_mib(process, "VmRSS")?;

    progress(&format!("{MANY} held"));
    let mut connections = open(&stage, MANY).await?;
    let open_mib = memory_mib(process, "VmRSS")?;
    for connection in &mut connections {
        connection.send(&request).await?;
    }
    wait_held(stage.activator(), MANY).await?;
    let held = memory_mib(process, "VmRSS")?;
    let answers = connections.iter_mut().map(async |connection| {
        let status = connection.answer().await?;
        ensure!(status == 200, "status {status}");
        Ok(())
    });
    let answers = stream::iter(answers).buffer_unordered(MANY).try_for_each(async |()| Ok(()));
    let (said, answered) = tokio::join!(pod.say(podlight_proto::Kind::Ready), answers);
    said?;
    answered.context("after the release")?;
    drop(connections);
    wait_for(stage.activator(), HELD, 0.0).await?;
    progress(&format!("{HOUR} requests"));
    load(&Load { requests: Some(HOUR), ..warm }).await?.whole()?;
    let later = memory_mib(process, "VmRSS")?;
    let kib_each = (held - idle) * 1024.0 / MANY as f64;
    let of_which = (open_mib - idle) * 1024.0 / MANY as f64;
    let figure = format!("resident {HOUR} requests (an hour's at 100/s) after {MANY} were held");
    Ok(vec![
        Row::new(format!("memory per held request, its connection included, {MANY} held"), "KiB", kib_each)
            .bounds(16.0, 8.0),
        Row::new("of which its connection, before the request", "KiB", of_which),
        Row::new(figure, "MiB", later).beside("idle before", idle, later / idle).bounds(1.2, 1.05),
    ])
}

async fn open(stage: &Stage<'_>, count: usize) -> Result<Vec<Connection>> {
    let address = stage.proxy()?;
    stream::iter(0..count).map(|_| Connection::open(address)).buffer_unordered(OPENING).try_collect().await
}

/// As many open files as this process may have.
fn allow_files() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let enough = maximum.is_none_or(|maximum| maximum >= 2 * MANY as u64);
    ensure!(enough, "{MANY} connections need more open files than {maximum:?}");
    Ok(())
}
