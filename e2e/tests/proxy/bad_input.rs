//! What nobody should send: refused with a clear error, in bounded memory, and nothing else is disturbed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podlight_e2e::bench::usage::memory_mib;
use podlight_e2e::eventually::{eventually, within};
use podlight_e2e::proxy::client::{Connection, get, with};
use podlight_e2e::proxy::frames::{END_HEADERS, END_STREAM, Frames, field, frame, get_head, kind};
use podlight_e2e::proxy::stage::{Stage, Web};
use podlight_e2e::raw::{RawAnswer, RawConnection, exchange};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{scene, told};

/// How long a connection that is to end may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long an Event may take: another about the same Service and reason came before it, and they are 10 s apart at least.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

async fn stage() -> Result<(Stage<'static>, Web)> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.ready_web("web", "web-1").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    Ok((stage, web))
}

/// Sends bytes, and checks that they are refused with this status, that no pod saw any of it, and that others are served.
async fn refused(stage: &Stage<'_>, web: &Web, what: &str, bytes: &[u8], statuses: &[u16]) -> Result<RawAnswer> {
    let before = web.app.requests();
    let mut connection = RawConnection::open(stage.proxy()?.port()).await?;
    connection.send(bytes).await?;
    let answer = connection.answer().await?;
    ensure!(answer.status.is_some_and(|status| statuses.contains(&status)), "{what}: {answer:?}");
    // Where a message ends is in doubt, so the connection ends with it.
    eventually(&format!("{what}: the connection is closed"), async || Ok(connection.is_closed().then_some(()))).await?;
    assert_eq!(web.app.requests(), before, "{what} reached a pod");
    stage.get("web", "/").await?.seen()?;
    Ok(answer)
}

#[tokio::test]
async fn a_message_whose_length_is_ambiguous_is_refused() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    for (what, headers) in [
        ("CL and TE", "content-length: 5\r\ntransfer-encoding: chunked"),
        ("TE and CL", "transfer-encoding: chunked\r\ncontent-length: 5"),
        ("two CL", "content-length: 5\r\ncontent-length: 6"),
        ("two equal CL", "content-length: 5\r\ncontent-length: 5"),
        ("CL list", "content-length: 5, 5"),
        ("CL with a sign", "content-length: +5"),
        ("negative CL", "content-length: -5"),
        ("hexadecimal CL", "content-length: 0x5"),
        ("empty CL", "content-length: "),
        ("huge CL", "content-length: 99999999999999999999"),
        ("TE that does not end in chunked", "transfer-encoding: chunked, identity"),
        ("unknown TE", "transfer-encoding: xchunked"),
        ("two TE", "transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
        ("TE with a vertical tab", "transfer-encoding: \x0bchunked"),
        ("a space before the colon", "content-length : 5"),
        ("TE with a space before the colon", "transfer-encoding : chunked"),
        ("obs-fold", "x-a: 1\r\n 2\r\ncontent-length: 5"),
        ("a folded TE", "transfer-encoding:\r\n chunked"),
        ("a header without a colon", "x-a\r\ncontent-length: 5"),
        ("a NUL in a value", "x-a: a\0b\r\ncontent-length: 5"),
        ("a bare CR in a value", "x-a: a\rb\r\ncontent-length: 5"),
        ("an empty name", ": x\r\ncontent-length: 5"),
    ] {
        let text = format!("POST / HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n\r\nhello");
        refused(&stage, &web, what, text.as_bytes(), &[400, 501]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn lines_that_end_in_a_bare_line_feed_are_refused() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    for (what, text) in [
        ("everywhere", format!("GET / HTTP/1.1\nhost: {host}\n\n")),
        ("in the request line", format!("GET / HTTP/1.1\nhost: {host}\r\n\r\n")),
        ("in a header", format!("GET / HTTP/1.1\r\nhost: {host}\nx: y\r\n\r\n")),
        ("at the end", format!("GET / HTTP/1.1\r\nhost: {host}\r\n\n")),
    ] {
        refused(&stage, &web, what, text.as_bytes(), &[400]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_chunked_body_that_is_malformed_is_never_completed_for_the_pod() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    for (what, body) in [
        ("no number", "x\r\nhello\r\n0\r\n\r\n"),
        ("a number too large", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("a chunk longer than it says", "3\r\nhello\r\n0\r\n\r\n"),
        ("a bare line feed behind the size", "5\nhello\r\n0\r\n\r\n"),
        ("a sign", "+5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let head = format!("POST /chunked HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
        let answer = exchange(stage.proxy()?.port(), format!("{head}{body}")).await?;
        ensure!(answer.status != Some(200), "{what}: {answer:?}");
        let whole = web.app.seen().iter().any(|seen| seen.target == "/chunked" && !seen.body_sha256.is_empty());
        ensure!(!whole, "{what}: it reached the pod as a whole");
        stage.get("web", "/").await?.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_body_longer_than_its_length_is_no_second_request_of_somebody_elses() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    let text = format!("POST /first HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\n\r\nhelloGARBAGE\r\n\r\n");
    let mut stream = TcpStream::connect(stage.proxy()?).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut all = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut all)).await.context("the connection stays open")??;
    let all = String::from_utf8_lossy(&all);
    // What is left is no request: it is refused or not even answered, and where another would begin is unknown.
    let statuses: Vec<&str> = all.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)).collect();
    ensure!(matches!(statuses[..], ["200"] | ["200", "400"]), "{all}");
    let targets: Vec<String> =
        web.app.seen().into_iter().map(|seen| seen.target).filter(|target| target != "/").collect();
    ensure!(targets.iter().all(|target| target == "/first"), "{targets:?}");
    for _ in 0..5 {
        stage.get("web", "/").await?.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_host_that_is_none_is_400() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    for (what, head) in [
        ("no Host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("an empty Host", "GET / HTTP/1.1\r\nhost: \r\n\r\n".to_owned()),
        ("two Hosts", format!("GET / HTTP/1.1\r\nhost: {host}\r\nhost: {host}\r\n\r\n")),
        ("two different Hosts", format!("GET / HTTP/1.1\r\nhost: {host}\r\nhost: other.shop\r\n\r\n")),
        ("a user", format!("GET / HTTP/1.1\r\nhost: user@{host}\r\n\r\n")),
        ("a path", format!("GET / HTTP/1.1\r\nhost: {host}/x\r\n\r\n")),
        ("a space", "GET / HTTP/1.1\r\nhost: web shop\r\n\r\n".to_owned()),
        ("a port that is none", format!("GET / HTTP/1.1\r\nhost: {host}:99999\r\n\r\n")),
        ("letters for a port", format!("GET / HTTP/1.1\r\nhost: {host}:http\r\n\r\n")),
        ("an open bracket", "GET / HTTP/1.1\r\nhost: [::1\r\n\r\n".to_owned()),
        ("bytes beyond ASCII", "GET / HTTP/1.1\r\nhost: w\u{e9}b.shop\r\n\r\n".to_owned()),
        ("an endless name", format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", "a.".repeat(2000))),
    ] {
        let before = web.app.requests();
        let answer = exchange(stage.proxy()?.port(), head).await?;
        ensure!(answer.status == Some(400), "{what}: {answer:?}");
        assert_eq!(web.app.requests(), before, "{what} reached a pod");
    }
    stage.get("web", "/").await?.seen()?;
    Ok(())
}

#[tokio::test]
async fn an_absolute_target_with_another_host_than_the_header_is_refused() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    stage.create_service(stage.service("other")).await?;
    let other = stage.ready_web("other", "other-1").await?;
    stage.until(&stage.host("other"), |answer| answer.status == 200).await?;
    let before = (web.app.requests(), other.app.requests());
    for head in [
        format!("GET http://{host}/ HTTP/1.1\r\nhost: {}\r\n\r\n", stage.host("other")),
        format!("GET http://{}/ HTTP/1.1\r\nhost: {host}\r\n\r\n", stage.host("other")),
        format!("GET http://{host}@{}/ HTTP/1.1\r\nhost: {host}\r\n\r\n", stage.host("other")),
    ] {
        let answer = exchange(stage.proxy()?.port(), head).await?;
        ensure!(answer.status == Some(400), "{answer:?}");
    }
    assert_eq!((web.app.requests(), other.app.requests()), before);
    Ok(())
}

#[tokio::test]
async fn a_host_beside_another_authority_in_http2_is_refused() -> Result<()> {
    let (stage, web) = stage().await?;
    let before = web.app.requests();
    let mut frames = Frames::open(stage.proxy()?).await?;
    let mut head = get_head(&stage.host("web"))?;
    head.extend(field("host", "other.shop")?);
    frames.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head)).await?;
    frames.refusal(1).await?;
    assert_eq!(web.app.requests(), before);
    Ok(())
}

#[tokio::test]
async fn headers_of_one_hop_in_http2_and_pseudo_headers_out_of_place_are_refused() -> Result<()> {
    let (stage, web) = stage().await?;
    let before = web.app.requests();
    for (name, value) in [("connection", "close"), ("transfer-encoding", "chunked"), (":path", "/x"), ("X-Upper", "1")]
    {
        let mut frames = Frames::open(stage.proxy()?).await?;
        let mut head = get_head(&stage.host("web"))?;
        head.extend(field(name, value)?);
        frames.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head)).await?;
        frames.refusal(1).await?;
        assert_eq!(web.app.requests(), before, "{name} reached a pod");
    }
    stage.get("web", "/").await?.seen()?;
    Ok(())
}

#[tokio::test]
async fn a_hundred_kib_of_headers_are_431_and_what_is_less_passes() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    let before = web.app.requests();
    for lines in [vec!["x".repeat(100 << 10)], vec!["y".repeat(1000); 100]] {
        let headers: String = lines.iter().enumerate().map(|(n, value)| format!("x-{n}: {value}\r\n")).collect();
        let answer =
            exchange(stage.proxy()?.port(), format!("GET / HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n")).await?;
        ensure!(answer.status == Some(431), "{answer:?}");
    }
    let mut two = Connection::http2(stage.proxy()?).await?;
    let asked = two.ask(with(get(&host, "/"), "x-large", &"z".repeat(100 << 10))).await;
    ensure!(asked.as_ref().map_or(true, |answer| answer.status == 431), "{asked:?}");
    assert_eq!(web.app.requests(), before);
    let answer =
        podlight_e2e::proxy::client::ask(stage.proxy()?, with(get(&host, "/"), "x-large", &"z".repeat(8 << 10)));
    answer.await?.seen()?;
    Ok(())
}

#[tokio::test]
async fn an_endless_request_line_and_too_many_headers_are_refused() -> Result<()> {
    let (stage, web) = stage().await?;
    let host = stage.host("web");
    let before = web.app.requests();
    let endless = format!("GET /{} HTTP/1.1\r\nhost: {host}\r\n\r\n", "a".repeat(200 << 10));
    let answer = exchange(stage.proxy()?.port(), endless).await?;
    ensure!(matches!(answer.status, Some(400 | 414 | 431)), "{answer:?}");
    let many: String = (0..2000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let answer = exchange(stage.proxy()?.port(), format!("GET / HTTP/1.1\r\nhost: {host}\r\n{many}\r\n")).await?;
    ensure!(matches!(answer.status, Some(400 | 431)), "{answer:?}");
    assert_eq!(web.app.requests(), before);
    stage.get("web", "/").await?.seen()?;
    Ok(())
}

#[tokio::test]
async fn a_flood_of_continuation_frames_ends_the_connection_in_bounded_memory() -> Result<()> {
    let (stage, web) = stage().await?;
    let process = stage.activator().id().context("ended")?;
    let (memory, before) = (memory_mib(process, "VmRSS")?, web.app.requests());
    for _ in 0..4 {
        let mut frames = Frames::open(stage.proxy()?).await?;
        frames.send(&frame(kind::HEADERS, END_STREAM, 1, &get_head(&stage.host("web"))?)).await?;
        let filler: Vec<u8> =
            (0..100).map(|_| field("x-filler", &"f".repeat(100))).collect::<Result<Vec<_>>>()?.concat();
        let more = frame(kind::CONTINUATION, 0, 1, &filler);
        let mut cut = false;
        // 100 MB in all, unless somebody stops it.
        for _ in 0..10_000 {
            if frames.send(&more).await.is_err() {
                cut = true;
                break;
            }
        }
        ensure!(cut || frames.refusal(1).await?.is_some(), "all of it was taken");
    }
    let after = memory_mib(process, "VmRSS")?;
    ensure!(after - memory < 32.0, "{memory} MiB before, {after} after");
    assert_eq!(web.app.requests(), before);
    stage.get("web", "/").await?.seen()?;
    Ok(())
}

#[tokio::test]
async fn streams_that_are_reset_as_soon_as_they_are_opened_end_the_connection_and_reach_few_pods() -> Result<()> {
    const STREAMS: u32 = 50_000;
    let (stage, web) = stage().await?;
    let process = stage.activator().id().context("ended")?;
    let (memory, before) = (memory_mib(process, "VmRSS")?, web.app.requests());
    let mut frames = Frames::open(stage.proxy()?).await?;
    let head = get_head(&stage.host("web"))?;
    let mut cut = false;
    for n in 0..STREAMS {
        let stream = 2 * n + 1;
        let mut both = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &head);
        both.extend(frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if frames.send(&both).await.is_err() {
            cut = true;
            break;
        }
    }
    let ended = async {
        while let Some(frame) = frames.receive().await? {
            if frame.kind == kind::GOAWAY {
                break;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    ensure!(cut || ended.await.is_ok(), "it goes on for ever");
    let asked = web.app.requests() - before;
    ensure!(asked < 5_000, "{asked} of {STREAMS} reached the pod");
    let after = memory_mib(process, "VmRSS")?;
    ensure!(after - memory < 32.0, "{memory} MiB before, {after} after");
    for _ in 0..10 {
        stage.get("web", "/").await?.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_sends_its_head_byte_by_byte_is_cut_off_and_keeps_nobody_out() -> Result<()> {
    let (stage, web) = stage().await?;
    let mut slow = TcpStream::connect(stage.proxy()?).await?;
    slow.write_all(b"GET / HTTP/1.1\r\nx").await?;
    let dribble = async {
        // Well beyond any sensible deadline for a head.
        for _ in 0..120 {
            if slow.write_all(b"x").await.is_err() {
                return true;
            }
            let mut byte = [0; 64];
            if slow.try_read(&mut byte).is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        false
    };
    let others = async {
        for _ in 0..20 {
            stage.get("web", "/").await?.seen()?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (cut, others) = tokio::join!(dribble, others);
    others?;
    ensure!(cut, "it may go on for ever");
    drop(web);
    Ok(())
}

#[tokio::test]
async fn an_annotation_that_cannot_be_parsed_is_reported_and_the_last_good_value_kept() -> Result<()> {
    let stage = Stage::on(scene().await, |spec| spec).await?;
    let host = format!("{}.example.com", stage.namespace);
    stage.create_service(stage.service("web").annotation("podlight.dev/hosts", &host)).await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until(&host, |answer| answer.status == 200).await?;
    let mut broken: Vec<&str> = Vec::new();
    for (key, bad) in [
        ("podlight.dev/hosts", "not a host!"),
        ("podlight.dev/concurrency", "many"),
        ("podlight.dev/hold-timeout", "soon"),
        ("podlight.dev/scale-target", "web"),
        ("podlight.dev/upstream-tls", "perhaps"),
        ("podlight.dev/route", "sometimes"),
    ] {
        stage.annotate("web", key, Some(bad)).await?;
        broken.push(key);
        eventually(&format!("{broken:?} are reported"), async || {
            let faults = faults(&stage).await?;
            let is_told = |key: &&str| faults.iter().any(|fault| fault.starts_with(&format!("{key}: ")));
            ensure!(broken.iter().all(is_told), "{faults:?}");
            let fault = format!("{key}: {bad:?} must be ");
            ensure!(faults.iter().any(|told| told.starts_with(&fault)), "{faults:?}");
            Ok(Some(()))
        })
        .await?;
        stage.until(&host, |answer| answer.status == 200).await?;
    }
    // And to the Service's owner, all of them in one.
    within(TOLD_WITHIN, "an Event tells", async || {
        let events = told(&stage, "web", "InvalidAnnotation").await?;
        let is_whole = |event: &String| broken.iter().all(|key| event.contains(&format!("{key}: ")));
        ensure!(events.iter().any(is_whole), "{events:?}");
        Ok(Some(()))
    })
    .await?;
    let metrics = stage.activator().metrics().await?;
    let counted = metrics.sum("podlight_proxy_route_faults", &[("kind", "annotation")]);
    ensure!(counted >= broken.len() as f64, "{counted} are counted");
    Ok(())
}

/// What is wrong with the Service `web`, as the status page has it.
async fn faults(stage: &Stage<'_>) -> Result<Vec<String>> {
    let status: Value = serde_json::from_str(&stage.activator().admin("/status").await?.body)?;
    let targets = status["state"]["targets"].as_array().context("no targets")?;
    // Those of other tests are there too.
    let is_ours = |target: &&Value| target["namespace"] == stage.namespace.as_str() && target["service"] == "web";
    let faults = &targets.iter().find(is_ours).context("no target")?["faults"];
    Ok(serde_json::from_value(faults.clone())?)
}
