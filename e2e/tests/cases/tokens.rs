//! Which tokens vouch for an event, and for how long.

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use podlight_e2e::api::Endpoint;
use podlight_e2e::control_plane::TokenSpec;
use podlight_e2e::eventually::eventually;
use podlight_e2e::scene::{Scene, Shop, Web};
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
async fn a_token_of_another_audience_or_of_no_pod_is_refused() -> Result<()> {
    let case = Case::new().await?;
    let control_plane = &case.scene.control_plane;
    let other = control_plane.token(&TokenSpec::for_pod(&case.web.pod).audience("other")).await?;
    case.refused("audience", other).await?;
    case.refused("no pod", control_plane.token(&TokenSpec::new(&case.shop.namespace, "web")).await?).await?;
    case.ends_as_it_was().await
}

#[tokio::test]
async fn an_expired_token_and_one_without_a_clear_end_are_refused() -> Result<()> {
    let case = Case::new().await?;
    let now = now_ms() / 1000;
    let without = |claims: &mut Value| drop(claims.as_object_mut().and_then(|claims| claims.remove("exp")));
    case.refused("expired", case.reissued(|claims| claims["exp"] = json!(now - 5))?).await?;
    case.refused("expired long ago", case.reissued(|claims| claims["exp"] = json!(1_700_000_000))?).await?;
    case.refused("exp as text", case.reissued(|claims| claims["exp"] = json!((now + 600).to_string()))?).await?;
    case.refused("no exp", case.reissued(without)?).await?;
    case.refused("not yet valid", case.reissued(|claims| claims["nbf"] = json!(now + 60))?).await?;
    case.ends_as_it_was().await
}

#[tokio::test]
async fn a_token_of_another_issuer_or_subject_is_refused() -> Result<()> {
    let case = Case::new().await?;
    case.refused("issuer", case.reissued(|claims| claims["iss"] = json!("https://elsewhere.example"))?).await?;
    let admin = "system:serviceaccount:kube-system:admin";
    case.refused("subject", case.reissued(|claims| claims["sub"] = json!(admin))?).await?;
    case.ends_as_it_was().await
}

#[tokio::test]
async fn alg_none_is_refused() -> Result<()> {
    let case = Case::new().await?;
    let [_, claims, signature] = parts(&case.web.token)?;
    for algorithm in ["none", "NONE"] {
        let unsigned = format!("{}.{claims}", encode(&json!({ "alg": algorithm, "typ": "JWT" })));
        case.refused(algorithm, format!("{unsigned}.")).await?;
        case.refused(algorithm, format!("{unsigned}.{signature}")).await?;
    }
    case.ends_as_it_was().await
}

#[tokio::test]
async fn hs256_with_the_public_key_and_other_mistaken_algorithms_are_refused() -> Result<()> {
    let case = Case::new().await?;
    let [header, claims, signature] = parts(&case.web.token)?;
    let public_key = case.scene.control_plane.token_key_pem();
    case.refused("HS256 with the public key", hs256(&header, &claims, &public_key)?).await?;
    for algorithm in ["RS512", "PS256"] {
        case.refused(algorithm, relabelled(&header, algorithm, &claims, &signature)?).await?;
    }
    case.ends_as_it_was().await
}

#[tokio::test]
async fn altered_tokens_and_what_is_no_token_are_refused() -> Result<()> {
    let case = Case::new().await?;
    let token = &case.web.token;
    let [header, claims, signature] = parts(token)?;
    let unknown = encode(&json!({ "alg": "RS256", "kid": "unknown" }));
    case.refused("claims altered", format!("{header}.{}.{signature}", altered(&claims)?)).await?;
    case.refused("signature cut", token[..token.len() - 4].to_owned()).await?;
    case.refused("unknown kid", format!("{unknown}.{claims}.{signature}")).await?;
    case.refused("two parts", format!("{header}.{claims}")).await?;
    case.refused("not a token", "opaque".to_owned()).await?;
    case.refused("too long", format!("{}.{claims}.{signature}", "A".repeat(9000))).await?;
    case.ends_as_it_was().await
}

/// A pod whose event comes with tokens that must not vouch for it.
struct Case {
    scene: &'static Scene,
    shop: Shop<'static>,
    web: Web,
    before: Endpoint,
}

impl Case {
    async fn new() -> Result<Self> {
        let scene = scene().await;
        let shop = scene.shop().await?;
        let web = shop.web("web-1").await?;
        let before = shop.wait(0, "web-1", "not-ready observed").await?;
        Ok(Self { scene, shop, web, before })
    }

    /// The pod's token with other claims, signed by the cluster's key.
    fn reissued(&self, alter: impl Fn(&mut Value)) -> Result<String> {
        self.scene.control_plane.reissue(&self.web.token, |claims| alter(claims))
    }

    async fn refused(&self, what: &str, token: String) -> Result<()> {
        let base = self.scene.activators[0].url();
        let reply = self.web.sender.event(Kind::Ready).token(&token).sign().post(&base).await?;
        reply.refused(401, ErrorCode::AuthenticationFailed).with_context(|| what.to_owned())?;
        Ok(())
    }

    /// Nothing has come of it, and the pod's own token still counts.
    async fn ends_as_it_was(self) -> Result<()> {
        assert_eq!(self.shop.endpoint(0, "web-1").await?, Some(self.before));
        self.web.sender.introduce(&self.scene.activators[0].url(), &self.web.token).await?;
        Ok(())
    }
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
