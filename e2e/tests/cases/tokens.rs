//! Which tokens vouch for an event, and for how long.

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use podlight_e2e::control_plane::TokenSpec;
use podlight_e2e::eventually::eventually;
use podlight_e2e::sender::now_ms;
use podlight_proto::{ErrorCode, Kind, Outcome};
use serde_json::{Value, json};

use crate::scene;

#[tokio::test]
async fn a_rotated_token_renews_the_binding_that_ready_needs() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    let expires = now_ms() / 1000 + 3;
    let short = scene.control_plane.reissue(&web.token, |claims| claims["exp"] = json!(expires))?;
    web.sender.introduce(&base, &short).await?;
    assert_eq!(web.sender.tell(&base, Kind::Ready).await?.result, Outcome::Applied);
    let refusal = eventually("the binding runs out", async || {
        let reply = web.sender.event(Kind::Ready).sign().post(&base).await?;
        Ok((reply.status != 202).then_some(reply))
    })
    .await?;
    assert!(now_ms() / 1000 >= expires, "too early");
    refusal.refused(401, ErrorCode::AuthenticationFailed)?;
    // What takes traffic away needs no living token.
    web.sender.tell(&base, Kind::Heartbeat).await?;
    web.sender.tell(&base, Kind::NotReady).await?;
    let bad = web.sender.event(Kind::NotReady).token(&short).sign().post(&base).await?;
    bad.refused(401, ErrorCode::AuthenticationFailed)?;
    web.sender.tell(&base, Kind::NotReady).await?;

    let rotated = scene.control_plane.token(&TokenSpec::for_pod(&web.pod)).await?;
    assert_ne!(rotated, web.token);
    let heartbeat = web.sender.event(Kind::Heartbeat).token(&rotated).sign();
    assert_eq!(heartbeat.post(&base).await?.outcome()?, Outcome::Applied);
    assert_eq!(web.sender.tell(&base, Kind::Ready).await?.result, Outcome::Applied);
    web.sender.tell(&base, Kind::Draining).await?;
    shop.wait(0, "web-1", "draining pushed").await?;
    Ok(())
}

#[tokio::test]
async fn tokens_that_do_not_vouch_are_refused_and_the_pod_stays_as_it_was() -> Result<()> {
    let scene = scene().await;
    let control_plane = &scene.control_plane;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    let before = shop.wait(0, "web-1", "not-ready observed").await?;
    let now = now_ms() / 1000;
    let reissue = |alter: &dyn Fn(&mut Value)| control_plane.reissue(&web.token, |claims| alter(claims));
    let [header, claims, signature] = parts(&web.token)?;
    let unsigned = format!("{}.{claims}", encode(&json!({ "alg": "none", "typ": "JWT" })));
    let tokens = [
        ("audience", control_plane.token(&TokenSpec::for_pod(&web.pod).audience("other")).await?),
        ("no pod", control_plane.token(&TokenSpec::new(&shop.namespace, "web")).await?),
        ("expired", reissue(&|claims| claims["exp"] = json!(now - 5))?),
        ("expired long ago", reissue(&|claims| claims["exp"] = json!(1_700_000_000))?),
        ("exp as text", reissue(&|claims| claims["exp"] = json!((now + 600).to_string()))?),
        ("no exp", reissue(&|claims| drop(claims.as_object_mut().and_then(|claims| claims.remove("exp"))))?),
        ("not yet valid", reissue(&|claims| claims["nbf"] = json!(now + 60))?),
        ("issuer", reissue(&|claims| claims["iss"] = json!("https://elsewhere.example"))?),
        ("subject", reissue(&|claims| claims["sub"] = json!("system:serviceaccount:kube-system:admin"))?),
        ("alg none", format!("{unsigned}.")),
        ("alg none with a signature", format!("{unsigned}.{signature}")),
        ("alg NONE", format!("{}.{claims}.", encode(&json!({ "alg": "NONE", "typ": "JWT" })))),
        ("HS256 with the public key", hs256(&header, &claims, &control_plane.token_key_pem())?),
        ("RS512 label on RS256", relabelled(&header, "RS512", &claims, &signature)?),
        ("PS256 label on RS256", relabelled(&header, "PS256", &claims, &signature)?),
        ("claims altered", format!("{header}.{}.{signature}", altered(&claims)?)),
        ("signature cut", web.token[..web.token.len() - 4].to_owned()),
        ("unknown kid", format!("{}.{claims}.{signature}", encode(&json!({ "alg": "RS256", "kid": "unknown" })))),
        ("two parts", format!("{header}.{claims}")),
        ("not a token", "opaque".to_owned()),
        ("too long", format!("{}.{claims}.{signature}", "A".repeat(9000))),
    ];
    for (what, token) in tokens {
        let reply = web.sender.event(Kind::Ready).token(&token).sign().post(&base).await?;
        reply.refused(401, ErrorCode::AuthenticationFailed).with_context(|| what.to_owned())?;
    }
    let after = shop.endpoint(0, "web-1").await?;
    assert_eq!(after, Some(before));
    // The pod's own still counts.
    web.sender.introduce(&base, &web.token).await?;
    Ok(())
}

#[tokio::test]
async fn every_mode_takes_the_pods_own_token_and_none_a_forged_one() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    for mode in ["hybrid", "token-review", "jwks"] {
        let activator = scene.activator().flag("auth", mode).start().await?;
        let web = shop.web(mode).await?;
        let [header, claims, signature] = parts(&web.token)?;
        let of_another_pod = scene.control_plane.reissue(&web.token, |claims| {
            claims["kubernetes.io"]["pod"]["uid"] = json!("6f9d1b3e-0000-0000-0000-000000000000");
        })?;
        let reply = web.sender.event(Kind::Ready).token(&of_another_pod).sign().post(&activator.url()).await?;
        reply.refused(403, ErrorCode::AccessDenied).context(mode)?;
        for forged in [format!("{header}.{}.{signature}", altered(&claims)?), format!("{header}.{claims}.AAAA")] {
            let reply = web.sender.event(Kind::Ready).token(&forged).sign().post(&activator.url()).await?;
            reply.refused(401, ErrorCode::AuthenticationFailed).context(mode)?;
        }
        web.sender.introduce(&activator.url(), &web.token).await.context(mode)?;
        web.sender.tell(&activator.url(), Kind::Ready).await?;
        let reader = scene.reader_of(&activator)?;
        reader.wait_verdict(&shop.namespace, "web", mode, "ready pushed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_token_slightly_ahead_of_our_clock_is_taken() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let ahead = now_ms() / 1000 + 20;
    let token = scene.control_plane.reissue(&web.token, |claims| claims["nbf"] = json!(ahead))?;
    web.sender.introduce(&scene.activators[0].url(), &token).await?;
    Ok(())
}

#[tokio::test]
async fn an_event_goes_with_its_own_token_only() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    let authorization = format!("Bearer {}", web.token);
    let without_hash = web.sender.event(Kind::NotReady).sign();
    let reply = without_hash.header(http::header::AUTHORIZATION, &authorization).post(&base).await?;
    reply.refused(400, ErrorCode::InvalidRequest)?;
    let of_another = web.sender.event(Kind::NotReady).token("another").sign();
    let of_another = of_another.without(&http::header::AUTHORIZATION);
    let reply = of_another.header(http::header::AUTHORIZATION, &authorization).post(&base).await?;
    reply.refused(400, ErrorCode::InvalidRequest)?;
    Ok(())
}

fn parts(token: &str) -> Result<[String; 3]> {
    let parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts.try_into().ok().context("not a JWS")
}

fn encode(json: &Value) -> String {
    BASE64URL.encode(json.to_string())
}

fn decode(part: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&BASE64URL.decode(part)?)?)
}

fn relabelled(header: &str, algorithm: &str, claims: &str, signature: &str) -> Result<String> {
    let mut header = decode(header)?;
    header["alg"] = json!(algorithm);
    Ok(format!("{}.{claims}.{signature}", encode(&header)))
}

/// The classic: a verifier that takes the algorithm from the token and the public key for a shared secret.
fn hs256(header: &str, claims: &str, public_key_pem: &str) -> Result<String> {
    let mut header = decode(header)?;
    header["alg"] = json!("HS256");
    let signed = format!("{}.{claims}", encode(&header));
    let key = hmac::Key::new(hmac::HMAC_SHA256, public_key_pem.as_bytes());
    Ok(format!("{signed}.{}", BASE64URL.encode(hmac::sign(&key, signed.as_bytes()))))
}

fn altered(claims: &str) -> Result<String> {
    let mut claims = decode(claims)?;
    claims["exp"] = json!(now_ms() / 1000 + 86_400);
    Ok(encode(&claims))
}
