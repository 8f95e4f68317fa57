//! Leaving: by preStop, by signal, with replicas that answer and others.

use std::time::{Duration, Instant};

use podlight_proto::Kind;

use super::App;
use super::activator::{Activator, Answer};
use super::process::{BINARY, Sidecar};

#[tokio::test]
async fn drain_tells_every_replica_says_who_answered_and_holds() {
    let (app, well, down) = (App::start().await, Activator::start([]).await, Activator::start([]).await);
    let refusing = Activator::start([]).await;
    let sidecar = Sidecar::start(&[&app.probe(), &well.flag(), &down.flag(), &refusing.flag()]).await;
    app.ready(true);
    for replica in [&well, &down, &refusing] {
        replica.kind(Kind::Ready).await;
    }
    down.always(Some(Answer::Hang));
    refusing.always(Some(Answer::status(403)));
    let begun = Instant::now();
    let (output, line) = sidecar.drain(&["--deadline=300ms", "--hold=400ms"]).await;
    assert!(output.status.success());
    assert!(begun.elapsed() >= Duration::from_millis(700));
    assert_eq!((&line["complete"], &line["push"], &line["hold_ms"]), (&false.into(), &true.into(), &400.into()));
    for (replica, result) in [(&well, "acknowledged"), (&down, "deadline"), (&refusing, "refused")] {
        assert_eq!(line["replicas"][format!("{}/", replica.url)]["result"], result, "{line}");
    }
    well.kind(Kind::Draining).await;
    app.ready(false);
    assert_eq!(sidecar.status().await["state"], "draining");
}

#[tokio::test]
async fn only_the_drain_itself_follows_a_drain_and_the_signal_after_it_ends_at_once() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    activator.ask_for_heartbeats(1);
    let mut sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    app.ready(true);
    activator.kind(Kind::Ready).await;
    let (output, line) = sidecar.drain(&["--hold=0s"]).await;
    assert!(output.status.success() && line["complete"] == true, "{line}");
    let (_, again) = sidecar.drain(&["--hold=0s"]).await;
    assert_eq!(again["complete"], true, "asking again does no harm");
    let told = activator.count(activator.kinds().len() + 1).await;
    let drains: Vec<_> = told.iter().skip_while(|told| told.event.kind != Kind::Draining).collect();
    assert!(drains.iter().all(|told| told.event == drains[0].event), "{:?}", activator.kinds());
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
}

#[tokio::test]
async fn a_replica_that_has_forgotten_everything_hears_of_the_drain_again() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    activator.ask_for_heartbeats(1);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    activator.kind(Kind::NotReady).await;
    let (_, line) = sidecar.drain(&["--hold=0s"]).await;
    assert_eq!(line["complete"], true, "{line}");
    activator.next(Answer::status(401));
    let drains = activator.until("a drain with the token", |told| {
        let drains: Vec<_> = told.iter().filter(|told| told.event.kind == Kind::Draining).cloned().collect();
        drains.last().is_some_and(|told| told.token.is_some()).then_some(drains)
    });
    let drains = drains.await;
    assert!(drains.len() >= 3 && drains.iter().all(|told| told.event == drains[0].event), "{:?}", activator.kinds());
}

#[tokio::test]
async fn the_drain_goes_through_an_open_circuit() {
    let (app, activator) = (App::start().await, Activator::start([Answer::retry_after(503, 300)]).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    sidecar.logged("the replica does not take events").await;
    let (_, line) = sidecar.drain(&["--hold=0s", "--deadline=10s"]).await;
    assert_eq!(line["complete"], true, "{line}");
}

#[tokio::test]
async fn a_signal_drains_when_no_hook_did() {
    for signal in ["TERM", "INT"] {
        let (app, activator) = (App::start().await, Activator::start([]).await);
        let mut sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), "--drain-deadline=10s"]).await;
        app.ready(true);
        activator.kind(Kind::Ready).await;
        sidecar.signal(signal);
        assert!(sidecar.ended().await.success());
        assert_eq!(activator.kinds().last(), Some(&Kind::Draining));
    }
}

#[tokio::test]
async fn a_signal_waits_for_a_replica_that_hangs_until_the_deadline_or_a_second_signal() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    activator.always(Some(Answer::Hang));
    let deadline = "--drain-deadline=200ms";
    let mut sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), deadline]).await;
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success());
    assert_eq!(sidecar.log_of("the drain was not acknowledged by every replica").len(), 1);

    let mut sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), "--drain-deadline=1h"]).await;
    sidecar.signal("TERM");
    sidecar.logged("draining").await;
    sidecar.signal("TERM");
    assert_eq!(sidecar.ended().await.code(), Some(1));
}

#[tokio::test]
async fn drain_works_over_the_unix_socket() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    let socket = format!("--admin-socket={}", sidecar.dir.path().join("admin").display());
    let (_, line) = sidecar.drain(&["--hold=0s", &socket]).await;
    assert_eq!(line["complete"], true, "{line}");
}

#[tokio::test]
async fn drain_without_a_sidecar_says_so_holds_and_succeeds() {
    let begun = Instant::now();
    let flags = ["drain", "--admin-listen=127.0.0.1:1", "--hold=200ms"];
    let output = std::process::Command::new(BINARY).args(flags).output().expect("started");
    assert!(output.status.success());
    assert!(begun.elapsed() >= Duration::from_millis(200));
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert_eq!(line["complete"], false);
    assert!(line["error"].as_str().is_some_and(|error| error.starts_with("no sidecar answers")), "{line}");
}
