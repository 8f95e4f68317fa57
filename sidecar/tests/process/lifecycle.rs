//! Starting, being asked, being off, being configured wrongly.

use std::process::Command;

use podlight_proto::Kind;

use super::App;
use super::activator::Activator;
use super::process::{BINARY, Sidecar};

#[tokio::test]
async fn the_admin_port_says_what_there_is() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    app.ready(true);
    let ready = activator.kind(Kind::Ready).await;
    for (method, path, status) in [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/drain", 405),
        ("POST", "/status", 405),
        ("POST", "/drain?deadline_ms=x", 400),
        ("GET", "/", 404),
    ] {
        assert_eq!(sidecar.ask(method, path).await.0, status, "{method} {path}");
    }
    let told = sidecar.status().await;
    assert_eq!((&told["state"], &told["push"]), (&"ready".into(), &"on".into()));
    assert_eq!(told["boot"], u64::from(ready.event.order.boot));
    assert_eq!(told["probes"][0]["last"]["passed"], true);
    assert!(told["replicas"][format!("{}/", activator.url)].is_object(), "{told}");
    let (_, metrics) = sidecar.ask("GET", "/metrics").await;
    assert!(metrics.contains("podlight_sidecar_attempt_duration_seconds_bucket"), "a histogram, not a summary");
    assert_eq!(sidecar.metric("podlight_sidecar_ready").await, Some(1.0));
}

#[tokio::test]
async fn a_sidecar_that_is_off_does_nothing() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    let mut sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), "--push=off"]).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(sidecar.ask("GET", path).await.0, 200);
    }
    assert_eq!(sidecar.status().await, serde_json::json!({ "push": "off" }));
    let (output, line) = sidecar.drain(&["--hold=200ms"]).await;
    assert!(output.status.success());
    assert_eq!(line["push"], false);
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    assert!(activator.received().is_empty());
}

#[tokio::test]
async fn an_app_that_flaps_is_told_in_order() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    let _sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    activator.count(1).await;
    for n in 0..20 {
        app.ready(n % 2 == 0);
        activator.count(n + 2).await;
    }
    let received = activator.received();
    assert!(received.iter().map(|r| r.event.order).is_sorted());
    assert!(received.windows(2).all(|pair| pair[0].event.observed_at_ms <= pair[1].event.observed_at_ms));
    assert_eq!(received.iter().filter(|r| r.event.kind == Kind::Ready).count(), 10);
    assert_eq!(received.iter().filter(|r| r.token.is_some()).count(), 1, "one token for a boot");
}

#[test]
fn a_wrong_configuration_is_told_whole_and_ends_with_64() {
    let output = Command::new(BINARY).args(["--push=maybe", "--timeout=soon"]).output().expect("started");
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).expect("text");
    for flag in ["--push:", "--timeout:", "--probe:", "--namespace:", "--pod:", "--uid:"] {
        assert!(told.contains(flag), "{flag} in {told}");
    }
    for flags in [&["--unknown"][..], &["drain", "--hold=long"]] {
        let output = Command::new(BINARY).args(flags).output().expect("started");
        assert_eq!(output.status.code(), Some(64), "{flags:?}");
    }
    assert!(Command::new(BINARY).arg("--help").output().expect("started").status.success());
}

#[test]
fn an_admin_port_that_is_taken_ends_the_sidecar() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let flag = format!("--admin-listen={}", taken.local_addr().expect("an address"));
    let output = Command::new(BINARY).args(["--push=off", &flag]).output().expect("started");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn check_succeeds_while_the_sidecar_runs_whatever_app_and_activator_do() {
    let app = App::start().await;
    let sidecar = Sidecar::start(&[&app.probe(), "--activator=http://127.0.0.1:1"]).await;
    let socket = format!("--admin-socket={}", sidecar.dir.path().join("admin").display());
    let check = async |flags: &[&str]| {
        let command = std::process::Command::new(BINARY).arg("check").args(flags).spawn().expect("started");
        // The fake app runs on this thread.
        let output = tokio::task::spawn_blocking(|| command.wait_with_output()).await.expect("waited");
        output.expect("output").status
    };
    assert!(check(&[&socket]).await.success());
    assert_eq!(check(&["--admin-listen=127.0.0.1:1"]).await.code(), Some(1));
    assert_eq!(check(&["--admin-listen=nowhere"]).await.code(), Some(64));
}
