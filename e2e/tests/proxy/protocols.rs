//! What travels through the proxy, and how: HTTP/1.1 and HTTP/2 on both sides, upgrades, streams, trailers, and the headers of a hop.

use std::time::Duration;

use anyhow::{Result, ensure};
use podlight_e2e::backend::Backend;
use podlight_e2e::proxy::stage::{Stage, Web};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

mod headers;
mod http1;
mod http2;
mod streams;
mod upgrades;

const PATIENCE: Duration = Duration::from_secs(20);

/// A stage with the Service `web` (HTTP/1.1) and one ready pod, known.
async fn plain() -> Result<(Stage<'static>, Web)> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok((stage, web))
}

/// The same over h2c to the pod.
async fn h2c() -> Result<(Stage<'static>, Web)> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").app_protocol("kubernetes.io/h2c")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok((stage, web))
}

/// A stage whose one pod speaks as `script` says.
async fn scripted<F, T>(script: F) -> Result<(Stage<'static>, Web)>
where
    F: Fn(TcpStream) -> T + Send + Sync + 'static,
    T: Future<Output = Result<()>> + Send + 'static,
{
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_with("web", "web-1", Backend::scripted("web-1", script)?).await?;
    stage.wait("web", "web-1", "ready pushed").await?;
    Ok((stage, web))
}

/// Reads a request's head.
async fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut head).await? > 0, "closed in its head");
    }
    Ok(head)
}
