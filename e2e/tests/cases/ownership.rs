//! An event is taken only from the pod that it speaks for, and only about what is the pod's.

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use podlight_e2e::control_plane::{PodSpec, PodState, TokenSpec, uid};
use podlight_e2e::eventually::eventually;
use podlight_e2e::scene::{app_container, fresh_address, running};
use podlight_e2e::sender::Sender;
use podlight_proto::{ErrorCode, Kind, Outcome, PodRef};

use crate::scene;

#[tokio::test]
async fn first_contact_binds_the_key_and_ready_then_needs_no_token() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    shop.wait(0, "web-1", "not-ready observed").await?;

    let stranger = web.sender.event(Kind::NotReady).sign().post(&base).await?;
    stranger.refused(401, ErrorCode::AuthenticationFailed)?;

    let accepted = web.sender.introduce(&base, &web.token).await?;
    assert_eq!(accepted.result, Outcome::Applied);
    assert_eq!(accepted.boot, web.sender.boot());
    assert_eq!(accepted.replica, "replica-0");
    assert!(accepted.heartbeat_after_seconds < accepted.lease_seconds, "{accepted:?}");

    assert_eq!(web.sender.tell(&base, Kind::Ready).await?.result, Outcome::Applied);
    // No waiting: what is answered 202 is in the table.
    let endpoint = shop.endpoint(0, "web-1").await?.expect("an endpoint");
    assert_eq!(endpoint.verdict(), "ready pushed");
    assert_eq!(endpoint.pod.expect("a pod").uid, uid(&web.pod));
    assert_eq!(endpoint.addresses, [web.pod.status.and_then(|status| status.pod_ip).expect("an address")]);
    assert_eq!(endpoint.ports.iter().map(|port| (port.name.as_str(), port.port)).collect::<Vec<_>>(), [("http", 8080)]);
    assert_eq!(endpoint.revision, "r1");
    assert_eq!(shop.endpoint(1, "web-1").await?.expect("an endpoint").verdict(), "not-ready observed");
    Ok(())
}

#[tokio::test]
async fn an_event_may_come_before_the_watch_shows_its_pod() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    for n in 0..8 {
        let name = format!("web-{n}");
        let web = shop.web(&name).await?;
        assert_eq!(
            web.sender.event(Kind::Ready).token(&web.token).sign().post(&base).await?.outcome()?,
            Outcome::Applied
        );
        shop.wait(0, &name, "ready pushed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_deleted_between_token_and_event_is_refused() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let [reviewed, fresh] = [shop.web("web-1").await?, shop.web("web-2").await?];
    let [first, second] = [0, 1].map(|n| scene.activators[n].url());
    // The API server believes a token that it has reviewed for 10 s more: the first replica must see by itself.
    reviewed.sender.introduce(&second, &reviewed.token).await?;
    for pod in ["web-1", "web-2"] {
        shop.delete(pod, 0).await?;
    }
    let late = reviewed.sender.event(Kind::Ready).token(&reviewed.token).sign().post(&first).await?;
    late.refused(403, ErrorCode::AccessDenied)?;
    let late = fresh.sender.event(Kind::Ready).token(&fresh.token).sign().post(&first).await?;
    late.refused(401, ErrorCode::AuthenticationFailed)?;
    // The key that the second replica knows dies with the pod.
    for replica in [0, 1] {
        shop.wait_gone(replica, "web-1").await?;
    }
    let late = reviewed.sender.event(Kind::Ready).sign().post(&second).await?;
    assert!(matches!(late.status, 401 | 403), "{late:?}");
    assert_eq!(shop.endpoint(1, "web-1").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_reused_name_is_another_pod() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    let old = shop.web("web-1").await?;
    old.sender.introduce(&base, &old.token).await?;
    old.sender.tell(&base, Kind::Ready).await?;
    shop.delete("web-1", 0).await?;
    let new = shop.web("web-1").await?;
    assert_ne!(uid(&old.pod), uid(&new.pod));

    let late = old.sender.event(Kind::Ready).token(&old.token).sign().post(&base).await?;
    late.refused(403, ErrorCode::AccessDenied)?;
    // The old token does not speak for the new pod either.
    let new_pod = PodRef::new(&shop.namespace, "web-1", &uid(&new.pod))?;
    let claim = old.sender.event(Kind::Ready).pod(new_pod).token(&old.token).sign().post(&base).await?;
    claim.refused(403, ErrorCode::AccessDenied)?;

    new.sender.introduce(&base, &new.token).await?;
    new.sender.tell(&base, Kind::Ready).await?;
    let endpoint = shop.endpoint(0, "web-1").await?.expect("an endpoint");
    assert_eq!((endpoint.verdict().as_str(), endpoint.pod.expect("a pod").uid), ("ready pushed", uid(&new.pod)));
    Ok(())
}

#[tokio::test]
async fn another_pods_token_vouches_for_nobody_else() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let [thief, victim] = [shop.web("web-1").await?, shop.web("web-2").await?];
    let base = scene.activators[0].url();
    let forged = victim.sender.event(Kind::Draining).token(&thief.token).sign().post(&base).await?;
    forged.refused(403, ErrorCode::AccessDenied)?;
    shop.wait(0, "web-2", "not-ready observed").await?;
    Ok(())
}

#[tokio::test]
async fn the_revision_is_the_pods_label_and_no_other() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    for claimed in ["r2", ""] {
        let event = web.sender.event(Kind::Ready).revision(claimed).token(&web.token);
        event.sign().post(&base).await?.refused(403, ErrorCode::AccessDenied)?;
    }
    web.sender.introduce(&base, &web.token).await?;
    let known_key = web.sender.event(Kind::Ready).revision("r2").sign().post(&base).await?;
    known_key.refused(403, ErrorCode::AccessDenied)?;
    assert_eq!(shop.endpoint(0, "web-1").await?.expect("an endpoint").verdict(), "not-ready pushed");
    Ok(())
}

#[tokio::test]
async fn the_label_of_a_deployment_or_a_stateful_set_names_the_revision_too() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    for (n, label) in ["pod-template-hash", "controller-revision-hash"].into_iter().enumerate() {
        let name = format!("web-{n}");
        let spec = PodSpec::new(&shop.namespace, &name)
            .service_account("web")
            .label("app", "web")
            .label(label, "abc")
            .container(app_container());
        let web = shop.pod(spec, Some(running(&fresh_address()))).await?;
        let event = web.sender.event(Kind::Ready).revision("abc").token(&web.token);
        assert_eq!(event.sign().post(&base).await?.outcome()?, Outcome::Applied);
        assert_eq!(shop.wait(0, &name, "ready pushed").await?.revision, "abc");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_of_an_account_that_the_pod_does_not_run_as_is_refused() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    scene.control_plane.create_service_account(&shop.namespace, "other").await?;
    // A token of that account shows its uid; the API server would issue none for this pod, yet it accepts one.
    let spec = TokenSpec::new(&shop.namespace, "other");
    let other = claims(&scene.control_plane.token(&spec).await?)?;
    let token = scene.control_plane.reissue(&web.token, |claims| {
        claims["sub"] = other["sub"].clone();
        claims["kubernetes.io"]["serviceaccount"] = other["kubernetes.io"]["serviceaccount"].clone();
    })?;
    let reply = web.sender.event(Kind::Ready).token(&token).sign().post(&scene.activators[0].url()).await?;
    let problem = reply.refused(403, ErrorCode::AccessDenied)?;
    assert!(problem.description.contains("ServiceAccount"), "{problem:?}");
    Ok(())
}

#[tokio::test]
async fn an_address_must_be_the_pods() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let address = fresh_address();
    let web = shop.pod(shop.spec("web-1"), Some(running(&address).address("fd00::7"))).await?;
    let base = scene.activators[0].url();
    for claimed in [&["10.255.0.1"][..], &[&address, "10.255.0.1"], &["127.0.0.1"], &["fd00::8"]] {
        let event = web.sender.event(Kind::Ready).addresses(claimed).token(&web.token);
        event.sign().post(&base).await?.refused(403, ErrorCode::AccessDenied)?;
    }
    let mapped = format!("::ffff:{address}");
    for claimed in [&[address.as_str(), "fd00::7"][..], &["fd00:0::7"], &[&mapped]] {
        let event = web.sender.event(Kind::Ready).addresses(claimed).token(&web.token);
        assert_eq!(event.sign().post(&base).await?.outcome()?, Outcome::Applied, "{claimed:?}");
    }
    Ok(())
}

#[tokio::test]
async fn without_published_addresses_the_connection_vouches() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let base = scene.activators[0].url();
    let web = shop.pod(shop.spec("web-1"), Some(PodState::new().phase("Running"))).await?;
    for claimed in [&["10.255.0.1"][..], &["127.0.0.1", "10.255.0.1"]] {
        let event = web.sender.event(Kind::Ready).addresses(claimed).token(&web.token);
        event.sign().post(&base).await?.refused(503, ErrorCode::Pending)?;
    }
    let event = web.sender.event(Kind::Ready).addresses(&["127.0.0.1"]).token(&web.token);
    assert_eq!(event.sign().post(&base).await?.outcome()?, Outcome::Applied);
    assert_eq!(shop.wait(0, "web-1", "ready pushed").await?.addresses, ["127.0.0.1"]);

    // Once they are published they alone count.
    let address = fresh_address();
    let pod = shop.set("web-1", &PodState::new().address(&address)).await?;
    eventually("the published address holds", async || {
        let endpoint = shop.endpoint(0, "web-1").await?;
        Ok(endpoint.filter(|endpoint| endpoint.addresses == [address.as_str()]))
    })
    .await?;
    let event = web.sender.event(Kind::Heartbeat).ready(true).addresses(&["127.0.0.1"]);
    event.sign().post(&base).await?.refused(403, ErrorCode::AccessDenied)?;
    let restarted = Sender::for_pod(&pod)?;
    restarted.introduce(&base, &web.token).await?;
    Ok(())
}

#[tokio::test]
async fn a_terminating_pod_may_drain_and_not_be_ready() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let [known, stranger] = [shop.web("web-1").await?, shop.web("web-2").await?];
    let base = scene.activators[0].url();
    known.sender.introduce(&base, &known.token).await?;
    known.sender.tell(&base, Kind::Ready).await?;
    for pod in ["web-1", "web-2"] {
        shop.delete(pod, 30).await?;
        shop.wait(0, pod, "terminating observed").await?;
    }
    known.sender.event(Kind::Ready).sign().post(&base).await?.refused(403, ErrorCode::AccessDenied)?;
    let heartbeat = known.sender.event(Kind::Heartbeat).ready(true).sign();
    heartbeat.post(&base).await?.refused(403, ErrorCode::AccessDenied)?;
    let restarted = known.sender.restarted()?;
    let ready = restarted.event(Kind::Ready).token(&known.token).sign();
    ready.post(&base).await?.refused(403, ErrorCode::AccessDenied)?;
    known.sender.tell(&base, Kind::NotReady).await?;
    known.sender.tell(&base, Kind::Draining).await?;
    // Its token is valid until it is gone, also for a first contact.
    let drain = stranger.sender.event(Kind::Draining).token(&stranger.token).sign();
    assert_eq!(drain.post(&base).await?.outcome()?, Outcome::Applied);
    for pod in ["web-1", "web-2"] {
        assert_eq!(shop.endpoint(0, pod).await?.expect("an endpoint").verdict(), "terminating observed");
        shop.delete(pod, 0).await?;
        shop.wait_gone(0, pod).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_has_ended_says_nothing() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    web.sender.tell(&base, Kind::Ready).await?;
    shop.set("web-1", &PodState::new().phase("Succeeded")).await?;
    eventually("an ended pod is not ready", async || {
        let endpoint = shop.endpoint(0, "web-1").await?;
        Ok(endpoint.is_none_or(|endpoint| endpoint.state != "ready").then_some(()))
    })
    .await?;
    for kind in [Kind::Ready, Kind::NotReady] {
        let event = web.sender.event(kind).token(&web.token).sign();
        event.post(&base).await?.refused(403, ErrorCode::AccessDenied)?;
    }
    Ok(())
}

/// What a token says, unverified.
fn claims(token: &str) -> Result<serde_json::Value> {
    let part = token.split('.').nth(1).unwrap_or_default();
    Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part)?)?)
}
