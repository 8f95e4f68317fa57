//! What replicas are told, whatever they answer.

use std::sync::Arc;
use std::time::Duration;

use podlight_proto::{Kind, Outcome};
use tokio_rustls::TlsAcceptor;

use super::activator::{Activator, Answer};
use super::process::{Sidecar, token, write_atomically};
use super::{App, eventually};

#[tokio::test]
async fn not_ready_brings_the_token_and_ready_follows_without() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    activator.count(1).await;
    app.ready(true);
    activator.kind(Kind::Ready).await;
    app.ready(false);
    let received = activator.count(3).await;
    let told: Vec<_> = received.iter().map(|r| (r.event.kind, u64::from(r.event.order.seq), r.token.clone())).collect();
    assert_eq!(told, [(Kind::NotReady, 1, Some(token("first"))), (Kind::Ready, 2, None), (Kind::NotReady, 3, None)]);
    let event = &received[1].event;
    assert_eq!(event.pod.issuer(), "/namespaces/default/pods/web-0/6f9d1b3e");
    assert_eq!((event.revision.as_str(), event.ports[0].port), ("7d4b9c", 8080));
    assert_eq!(event.addresses, [std::net::IpAddr::from([10, 0, 0, 7])]);
    assert_eq!(sidecar.metric(r#"podlight_sidecar_events_total{kind="ready",result="applied"}"#).await, Some(1.0));
}

#[tokio::test]
async fn what_is_refused_is_not_repeated_and_the_next_state_is_tried() {
    for status in [400, 403, 413, 415] {
        let (app, activator) = (App::start().await, Activator::start([Answer::status(status)]).await);
        let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
        let refused = sidecar.logged("the replica does not take events").await;
        assert_eq!(refused["level"], "ERROR");
        app.ready(true);
        let ready = activator.kind(Kind::Ready).await;
        assert!(ready.token.is_some(), "who was refused may not be known");
        assert_eq!(activator.kinds(), [Kind::NotReady, Kind::Ready], "{status}");
        let refused = r#"podlight_sidecar_events_total{kind="not-ready",result="refused"}"#;
        assert_eq!(sidecar.metric(refused).await, Some(1.0));
    }
}

#[tokio::test]
async fn asked_for_the_token_it_sends_the_same_event_with_it() {
    let (app, activator) = (App::start().await, Activator::start([Answer::APPLIED, Answer::status(401)]).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    activator.count(1).await;
    app.ready(true);
    let received = activator.count(3).await;
    assert_eq!(received[1].event.order, received[2].event.order);
    assert_eq!((&received[1].token, &received[2].token), (&None, &Some(token("first"))));
    sidecar.logged("state changed").await;
    assert!(sidecar.log_of("the replica does not take events").is_empty(), "that is no failure");
}

#[tokio::test]
async fn a_token_that_is_not_accepted_is_tried_again_later() {
    let (app, activator) = (App::start().await, Activator::start([Answer::status(401)]).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    let received = activator.count(2).await;
    assert!(received.iter().all(|r| r.token.is_some()));
    sidecar.logged("the replica takes events again").await;
}

#[tokio::test]
async fn every_other_status_is_tried_again_and_logged_once() {
    for status in [500, 502, 503, 408, 404] {
        is_tried_again_and_logged_once(Answer::status(status), "ERROR").await;
    }
    is_tried_again_and_logged_once(Answer::status(429), "WARN").await;
}

#[tokio::test]
async fn an_activator_that_hangs_is_tried_again_and_logged_once() {
    is_tried_again_and_logged_once(Answer::Hang, "WARN").await;
}

#[tokio::test]
async fn an_activator_that_closes_early_is_tried_again_and_logged_once() {
    is_tried_again_and_logged_once(Answer::Close, "ERROR").await;
}

#[tokio::test]
async fn garbage_and_replies_of_somebody_else_are_tried_again_and_logged_once() {
    for answer in [
        Answer::Garbage,
        Answer::Status(200, Vec::new(), String::new()),
        Answer::Status(202, Vec::new(), "{}".into()),
        Answer::Status(202, Vec::new(), "x".repeat(100_000)),
    ] {
        is_tried_again_and_logged_once(answer, "ERROR").await;
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let elsewhere = Activator::start([]).await;
    for status in [301, 302, 303, 307, 308] {
        let location = vec![("location", format!("{}/v1/events", elsewhere.url))];
        is_tried_again_and_logged_once(Answer::Status(status, location, String::new()), "ERROR").await;
    }
    assert!(elsewhere.received().is_empty());
}

async fn is_tried_again_and_logged_once(answer: Answer, level: &str) {
    let script = [answer.clone(), answer.clone(), answer.clone()];
    let (app, activator) = (App::start().await, Activator::start(script).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), "--timeout=300ms"]).await;
    let received = activator.count(4).await;
    sidecar.logged("the replica takes events again").await;
    let logged = sidecar.log_of("the replica does not take events");
    assert_eq!(logged.len(), 1, "{answer:?}: {logged:#?}");
    assert_eq!(logged[0]["level"], level, "{answer:?}");
    assert!(received.iter().all(|r| r.event == received[0].event), "{answer:?}");
    assert_eq!(sidecar.metric("podlight_sidecar_circuit_open").await, Some(0.0));
}

#[tokio::test]
async fn retry_after_is_waited_for_and_each_attempt_is_signed_anew() {
    let script = [Answer::retry_after(429, 1), Answer::retry_after(503, 1)];
    let (app, activator) = (App::start().await, Activator::start(script).await);
    let _sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    let received = activator.count(3).await;
    for pair in received.windows(2) {
        assert!(pair[1].at - pair[0].at >= Duration::from_secs(1));
        assert_eq!(pair[0].event, pair[1].event);
        assert_ne!(pair[0].jws, pair[1].jws, "another second, another iat");
    }
}

#[tokio::test]
async fn a_newer_state_supersedes_an_undelivered_one_and_does_not_wait() {
    for answer in [Answer::retry_after(503, 300), Answer::Hang] {
        let (app, activator) = (App::start().await, Activator::start([answer.clone()]).await);
        let sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), "--timeout=60s"]).await;
        activator.count(1).await;
        let undelivered = "podlight_sidecar_undelivered_age_seconds";
        assert!(sidecar.metric(undelivered).await.expect("a value") > 0.0);
        app.ready(true);
        activator.kind(Kind::Ready).await;
        eventually("acknowledged", || {
            let log = sidecar.log_of("state changed");
            (!log.is_empty()).then_some(())
        })
        .await;
        app.ready(false);
        activator.count(3).await;
        assert_eq!(activator.kinds(), [Kind::NotReady, Kind::Ready, Kind::NotReady], "{answer:?}");
    }
}

#[tokio::test]
async fn a_sidecar_that_is_behind_takes_the_boot_after_the_one_that_holds() {
    let held = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let held = held as u64 + 60_000;
    let script = [Answer::Accepted(Outcome::Superseded, Some(held))];
    let (app, activator) = (App::start().await, Activator::start(script).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    let received = activator.count(2).await;
    let (first, again) = (&received[0], &received[1]);
    assert_eq!((u64::from(again.event.order.boot), u64::from(again.event.order.seq)), (held + 1, 1));
    assert_eq!(again.event.kind, Kind::NotReady);
    assert_eq!(again.event.observed_at_ms, first.event.observed_at_ms);
    assert!(again.token.is_some(), "a new key needs a newer boot and a token");
    assert_eq!(sidecar.metric("podlight_sidecar_boots_adopted_total").await, Some(1.0));
}

#[tokio::test]
async fn a_boot_that_other_replicas_would_refuse_is_not_taken() {
    let script = [Answer::Accepted(Outcome::Superseded, Some((1 << 53) - 2))];
    let (app, activator) = (App::start().await, Activator::start(script).await);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    sidecar.logged("the replica does not take events").await;
    app.ready(true);
    let ready = activator.kind(Kind::Ready).await;
    assert_eq!(ready.event.order.boot, activator.received()[0].event.order.boot);
}

#[tokio::test]
async fn a_rotated_token_is_sent_with_a_heartbeat() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    activator.ask_for_heartbeats(1);
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag()]).await;
    let heartbeat = activator.kind(Kind::Heartbeat).await;
    assert_eq!((heartbeat.token, heartbeat.event.ready), (None, false));
    sidecar.rotate_token("second");
    eventually("the new token arrives", || {
        activator.received().into_iter().find(|r| r.token == Some(token("second")) && r.event.kind == Kind::Heartbeat)
    })
    .await;
}

#[tokio::test]
async fn without_a_token_it_says_so_once_and_goes_on_trying() {
    let (app, activator) = (App::start().await, Activator::start([]).await);
    activator.always(Some(Answer::status(401)));
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    let flag = format!("--token={}", path.display());
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), &flag]).await;
    activator.count(3).await;
    assert_eq!(sidecar.log_of("the token file cannot be read; the last token stays in use").len(), 1);
    write_atomically(&path, &token("late"));
    activator.always(None);
    eventually("the token arrives", || activator.received().into_iter().find(|r| r.token == Some(token("late")))).await;
}

#[tokio::test]
async fn every_replica_is_told_and_peers_are_too() {
    let (app, first) = (App::start().await, Activator::start([]).await);
    let (second, hidden) = (Activator::start([]).await, Activator::start([]).await);
    let https = second.url.replace("http:", "https:");
    first.name_peers(&[&second.url, &https, "http://192.0.2.1:80", "nonsense"]);
    second.name_peers(&[&first.url, &hidden.url]);
    let sidecar = Sidecar::start(&[&app.probe(), &first.flag()]).await;
    app.ready(true);
    for replica in [&first, &second, &hidden] {
        replica.kind(Kind::Ready).await;
    }
    assert_eq!(sidecar.metric("podlight_sidecar_replicas").await, Some(3.0));
    assert!(sidecar.metric("podlight_sidecar_peers_refused_total").await.expect("a value") >= 3.0);
    first.name_peers(&[]);
    app.ready(false);
    sidecar.logged("replica is gone").await;
}

#[tokio::test]
async fn one_replica_that_hangs_keeps_no_other_waiting() {
    let (app, well, hung) = (App::start().await, Activator::start([]).await, Activator::start([]).await);
    hung.always(Some(Answer::Hang));
    let _sidecar = Sidecar::start(&[&app.probe(), &well.flag(), &hung.flag()]).await;
    hung.count(1).await;
    app.ready(true);
    well.kind(Kind::Ready).await;
    app.ready(false);
    let received = well.count(3).await;
    assert!(received.last().is_some_and(|r| r.event.kind == Kind::NotReady));
}

struct Ca {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "podlight test");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a configuration");
        TlsAcceptor::from(Arc::new(config))
    }
}

#[tokio::test]
async fn the_certificate_is_checked_against_a_ca_file_that_may_change() {
    let (ours, other) = (Ca::new(), Ca::new());
    let app = App::start().await;
    let activator = Activator::start_with(Some(ours.acceptor("localhost")), []).await;
    let misnamed = Activator::start_with(Some(ours.acceptor("elsewhere.example")), []).await;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ca.crt");
    write_atomically(&path, &other.certificate.pem());
    let ca = format!("--activator-ca={}", path.display());
    let sidecar = Sidecar::start(&[&app.probe(), &activator.flag(), &misnamed.flag(), &ca]).await;
    let failed = sidecar.logged("the replica does not take events").await;
    assert!(failed["reason"].as_str().is_some_and(|reason| reason.contains("certificate")), "{failed}");
    write_atomically(&path, &ours.certificate.pem());
    activator.kind(Kind::NotReady).await;
    app.ready(true);
    activator.kind(Kind::Ready).await;
    assert!(misnamed.received().is_empty());
}

#[tokio::test]
async fn a_replica_found_by_its_address_is_verified_by_its_name_below_the_service() {
    let (ca, app) = (Ca::new(), App::start().await);
    let activator = Activator::start_with(Some(ca.acceptor("*.events.mesh.svc")), []).await;
    let dir = tempfile::tempdir().expect("a directory");
    write_atomically(&dir.path().join("ca.crt"), &ca.certificate.pem());
    let flag = activator.flag().replace("localhost", "127-0-0-1.events.mesh.svc");
    let ca = format!("--activator-ca={}", dir.path().join("ca.crt").display());
    let _sidecar = Sidecar::start(&[&app.probe(), &flag, &ca]).await;
    activator.kind(Kind::NotReady).await;
}
