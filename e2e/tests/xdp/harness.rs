//! What the harness sees of an ordinary server.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlight_e2e::eventually::eventually;
use podlight_e2e::net::ask::{curl, exchange, kubelet, request, status, wrk};
use podlight_e2e::net::flood::{flood, spoofed_syns};
use podlight_e2e::net::flow::Flow;
use podlight_e2e::net::frame::Segment;
use podlight_e2e::net::pair::{CLIENT, Pair, SERVER, servers};
use podlight_e2e::net::servers::{HaProxy, nginx_that_answers, nginx_that_asks};

const PORT: u16 = 8099;

#[tokio::test]
async fn nginx_answers_every_client_over_both_families_and_leaves_sockets_that_are_counted() -> Result<()> {
    let pair = Pair::new(1500).await?;
    let _nginx = nginx_that_answers(&pair.server, PORT, None).await?;
    for to in servers(PORT) {
        assert_eq!(curl(&pair, to, "/ready").await?, (200, "ok".to_owned()));
        let seen = kubelet(&pair, to, "/ready", 20).await?;
        assert_eq!(seen.verdicts.get("success"), Some(&20), "{seen:?}");
        assert_eq!(status(&exchange(&pair, to, &[&request("/ready")])?)?, 200);
        let seen = wrk(&pair, to, "/ready", 4, 1, None).await?;
        ensure!(seen.answers > 100 && seen.refusals == 0 && seen.errors == 0 && seen.p99_us > 0.0, "{seen:?}");
    }
    ensure!(pair.server.sockets(PORT, &["06"])? > 100, "nginx closes first: it must have sockets in TIME_WAIT");
    Ok(())
}

#[tokio::test]
async fn load_balancers_tell_an_nginx_that_answers_from_one_that_has_gone() -> Result<()> {
    let pair = Pair::new(1500).await?;
    let nginx = nginx_that_answers(&pair.server, PORT, None).await?;
    let to = SocketAddr::from((SERVER, PORT));
    let asks = nginx_that_asks(&pair.client, 8100, to, "/ready").await?;
    let haproxy = HaProxy::start(&pair.client, 8101, to, "/ready").await?;
    haproxy.wait(&pair.client, "UP", "L7OK", "200").await?;
    let here = SocketAddr::from((CLIENT, 8100));
    assert_eq!(curl(&pair, here, "/").await?.0, 200);
    drop(nginx);
    eventually("HAProxy sees that nobody listens", async || {
        haproxy.wait(&pair.client, "DOWN", "L4CON", "").await.map(Some)
    })
    .await?;
    assert_eq!(curl(&pair, here, "/").await?.0, 502);
    drop(asks);
    Ok(())
}

#[tokio::test]
async fn frames_arrive_as_they_were_made() -> Result<()> {
    let pair = Pair::new(9000).await?;
    let _nginx = nginx_that_answers(&pair.server, PORT, None).await?;
    // With it, checksums of what a socket sends are left to a device that a veth pair has not.
    pair.offload(&["tx", "off"]).await?;
    let packets = pair.packets()?;
    let nobody = Flow::new(&packets, SocketAddr::from((SERVER, 1)));
    nobody.send(&Segment::syn(nobody.from, nobody.to, 77))?;
    let refused = nobody.expect("a reset")?;
    ensure!(refused.header.rst && refused.header.acknowledgment_number == 78 && refused.intact, "{refused:?}");
    for to in servers(PORT) {
        let flow = Flow::open(&packets, to)?;
        flow.send(&flow.segment().data(&request("/ready")))?;
        let answer = packets.expect("an answer", |seen| if seen.to == flow.from { seen.status() } else { None })?;
        assert_eq!(answer, 200);
    }
    Ok(())
}

#[tokio::test]
async fn a_flood_is_bounded_and_arrives() -> Result<()> {
    let pair = Pair::new(1500).await?;
    let packets = pair.packets()?;
    let before = received(&pair).await?;
    let sent = flood(&packets, &spoofed_syns((SERVER, PORT).into())?, 100_000, Duration::from_secs(5))?;
    ensure!(sent.sent >= 10_000 && sent.seconds < 6.0, "{sent:?}");
    let arrived = received(&pair).await? - before;
    ensure!(arrived >= sent.sent, "{arrived} of {} arrived", sent.sent);
    Ok(())
}

#[tokio::test]
async fn a_native_program_at_either_end_is_seen() -> Result<()> {
    let pair = Pair::new(1500).await?;
    pair.pass_at_client().await?;
    pair.pass_at_server("xdpgeneric").await?;
    let shown = pair.client.run("ip", &["-details", "link", "show", "health0"]).await?;
    ensure!(shown.contains("prog/xdp") && !shown.contains("xdpgeneric"), "{shown}");
    let shown = pair.server.run("ip", &["-details", "link", "show", "health0"]).await?;
    ensure!(shown.contains("xdpgeneric"), "{shown}");
    let _nginx = nginx_that_answers(&pair.server, PORT, None).await?;
    for to in servers(PORT) {
        assert_eq!(curl(&pair, to, "/ready").await?.0, 200);
    }
    Ok(())
}

/// Packets that the server's device has received.
async fn received(pair: &Pair) -> Result<u64> {
    let said = pair.server.run("ip", &["-statistics", "-json", "link", "show", "health0"]).await?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    said[0]["stats64"]["rx"]["packets"].as_u64().context("no count")
}
