//! What the request path tells of itself: metrics, the status page, the access log.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlight_e2e::proxy::client::{self, ask, get};
use podlight_e2e::proxy::counts::{REQUESTS, wait_held};
use podlight_e2e::proxy::stage::Stage;
use podlight_proto::Kind;

#[tokio::test]
async fn metrics_tell_what_was_held_released_and_answered_which_way_and_name_no_pod() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    web.pod.say(Kind::Ready).await?;
    held.await??.seen()?;
    stage.get("web", "/").await?.seen()?;
    stage.get("nobody", "/").await?.refused(404)?;
    let metrics = stage.activator().metrics().await?;
    assert_eq!(metrics.sum(REQUESTS, &[("outcome", "2xx"), ("way", "direct")]), 2.0);
    assert_eq!(metrics.sum("podlight_proxy_released_total", &[("source", "push")]), 1.0);
    assert_eq!(metrics.sum("podlight_proxy_held_seconds_count", &[("mode", "always")]), 1.0);
    assert_eq!(metrics.sum("podlight_proxy_response_seconds_count", &[("mode", "always"), ("way", "direct")]), 2.0);
    for name in ["web-1", &stage.host("web"), &web.pod.address.to_string()] {
        ensure!(!metrics.text().contains(name), "a label says {name}");
    }
    Ok(())
}

#[tokio::test]
async fn the_status_page_shows_targets_endpoints_and_held_requests_and_is_html() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let held = client::start(stage.proxy()?, get(&stage.host("web"), "/"));
    wait_held(stage.activator(), 1).await?;
    let page = stage.activator().admin("/").await?;
    ensure!(page.status == 200, "{page:?}");
    let kind = page.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    ensure!(kind.starts_with("text/html"), "{kind}");
    ensure!(page.body.to_lowercase().contains("<!doctype html>"), "{}", page.body);
    web.pod.say(Kind::Ready).await?;
    held.await??.seen()?;
    Ok(())
}

#[tokio::test]
async fn requests_are_logged_only_when_that_is_asked_for() -> Result<()> {
    for logged in [false, true] {
        let stage = Stage::standalone_with(|spec| if logged { spec.switch("access-log") } else { spec }).await?;
        stage.create_service(stage.service("web")).await?;
        let _web = stage.ready_web("web", "web-1").await?;
        stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
        ask(stage.proxy()?, get(&stage.host("web"), "/a-path-to-look-for?token=secret")).await?.seen()?;
        let log = stage.activator().log_text()?;
        ensure!(log.contains("/a-path-to-look-for") == logged, "logged: {logged}\n{log}");
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_of_the_metrics_that_stalls_disturbs_no_request() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let admin = stage.activator().admin_url();
    let mut stalled = TcpStream::connect(admin.strip_prefix("http://").context("no address")?)?;
    stalled.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")?;
    stalled.set_read_timeout(Some(Duration::from_secs(5)))?;
    for _ in 0..20 {
        stage.get("web", "/").await?.seen()?;
    }
    let mut first = [0; 15];
    stalled.read_exact(&mut first)?;
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    Ok(())
}
