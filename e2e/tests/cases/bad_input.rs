//! What an activator does not take: each is answered as the wire's table says, with words that help its sender, one metric
//! label, and no state changed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use podlight_e2e::raw::{RawConnection, exchange};
use podlight_e2e::scene::Web;
use podlight_e2e::sender::{Letter, Message};
use podlight_proto::{EVENT_MEDIA_TYPE, EVENTS_PATH, ErrorCode, Kind, MAX_EVENT_BYTES, Outcome};
use serde_json::{Value, json};

use crate::scene;

/// A part of an event's claims, by path.
fn claim<'a>(claims: &'a mut Value, kind: Kind, member: &str) -> &'a mut Value {
    &mut claims["events"][kind.uri()][member]
}

type Alter = fn(&mut Value, &mut Value);

/// Events whose shape is wrong, with the word that says so.
const MALFORMED: &[(&str, ErrorCode, Alter)] = &[
    ("typ", ErrorCode::InvalidRequest, |header, _| header["typ"] = json!("JWT")),
    ("alg", ErrorCode::InvalidRequest, |header, _| header["alg"] = json!("none")),
    ("alg HS256", ErrorCode::InvalidRequest, |header, _| header["alg"] = json!("HS256")),
    ("no jwk", ErrorCode::InvalidRequest, |header, _| remove(header, "jwk")),
    ("crit", ErrorCode::InvalidRequest, |header, _| header["crit"] = json!(["exp"])),
    ("b64", ErrorCode::InvalidRequest, |header, _| header["b64"] = json!(false)),
    ("kty", ErrorCode::InvalidKey, |header, _| header["jwk"]["kty"] = json!("RSA")),
    ("crv", ErrorCode::InvalidKey, |header, _| header["jwk"]["crv"] = json!("X25519")),
    ("short x", ErrorCode::InvalidKey, |header, _| header["jwk"]["x"] = json!("AAAA")),
    ("private part", ErrorCode::InvalidKey, |header, _| header["jwk"]["d"] = json!("AAAA")),
    ("small order", ErrorCode::InvalidKey, |header, _| header["jwk"]["x"] = json!("A".repeat(43))),
    ("aud of another", ErrorCode::InvalidAudience, |_, claims| claims["aud"] = json!("other")),
    ("aud list", ErrorCode::InvalidAudience, |_, claims| claims["aud"] = json!(["podlight"])),
    ("no aud", ErrorCode::InvalidRequest, |_, claims| remove(claims, "aud")),
    ("iss", ErrorCode::InvalidIssuer, |_, claims| claims["iss"] = json!("/namespaces/x/pods/y")),
    ("iat as text", ErrorCode::InvalidRequest, |_, claims| claims["iat"] = json!("now")),
    ("iat with fraction", ErrorCode::InvalidRequest, |_, claims| claims["iat"] = json!(1.5)),
    ("jti", ErrorCode::InvalidRequest, |_, claims| claims["jti"] = json!("1-1")),
    ("no events", ErrorCode::InvalidRequest, |_, claims| claims["events"] = json!({})),
    ("two events", ErrorCode::InvalidRequest, |_, claims| {
        let one = claims["events"][Kind::Ready.uri()].clone();
        claims["events"][Kind::Draining.uri()] = one;
    }),
    ("unknown event", ErrorCode::InvalidRequest, |_, claims| {
        let one = claims["events"][Kind::Ready.uri()].clone();
        claims["events"] = json!({ "https://podlight.dev/event/v1/gone": one });
    }),
    ("boot 0", ErrorCode::InvalidRequest, |_, claims| *claim(claims, Kind::Ready, "boot") = json!(0)),
    ("seq 2^53", ErrorCode::InvalidRequest, |_, claims| *claim(claims, Kind::Ready, "seq") = json!(1_u64 << 53)),
    ("seq negative", ErrorCode::InvalidRequest, |_, claims| *claim(claims, Kind::Ready, "seq") = json!(-1)),
    ("contradiction", ErrorCode::InvalidRequest, |_, claims| *claim(claims, Kind::Ready, "ready") = json!(false)),
    ("no addresses", ErrorCode::InvalidRequest, |_, claims| *claim(claims, Kind::Ready, "addresses") = json!([])),
    ("zone", ErrorCode::InvalidRequest, |_, claims| *claim(claims, Kind::Ready, "addresses") = json!(["fe80::1%eth0"])),
    ("17 addresses", ErrorCode::InvalidRequest, |_, claims| {
        let addresses: Vec<String> = (0..17).map(|n| format!("10.0.0.{n}")).collect();
        *claim(claims, Kind::Ready, "addresses") = json!(addresses);
    }),
    ("port 0", ErrorCode::InvalidRequest, |_, claims| {
        *claim(claims, Kind::Ready, "ports") = json!([{ "name": "http", "port": 0 }]);
    }),
    ("port 65536", ErrorCode::InvalidRequest, |_, claims| {
        *claim(claims, Kind::Ready, "ports") = json!([{ "name": "http", "port": 65_536 }]);
    }),
    ("revision", ErrorCode::InvalidRequest, |_, claims| *claim(claims, Kind::Ready, "revision") = json!("a b")),
    ("no observed_at_ms", ErrorCode::InvalidRequest, |_, claims| {
        remove(&mut claims["events"][Kind::Ready.uri()], "observed_at_ms");
    }),
    ("depth", ErrorCode::InvalidRequest, |_, claims| {
        claims["deep"] = (0..40).fold(json!(0), |inner, _| json!([inner]));
    }),
];

#[tokio::test]
async fn malformed_events_are_refused_alike_with_token_and_without() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    web.sender.introduce(&base, &web.token).await?;
    let before = shop.endpoint(0, "web-1").await?;
    for (what, err, alter) in MALFORMED {
        for message in [web.sender.event(Kind::Ready), web.sender.event(Kind::Ready).token(&web.token)] {
            let reply = message.sign_altered(alter)?.post(&base).await?;
            reply.refused(400, *err).context(*what)?;
        }
    }
    for (what, body) in bodies(&web)? {
        let reply = web.sender.letter(body).post(&base).await?;
        reply.problem().context(what)?;
        ensure!(reply.status == 400, "{what}: {reply:?}");
    }
    assert_eq!(shop.endpoint(0, "web-1").await?, before);
    Ok(())
}

/// Bodies that are no JWS of an event at all.
fn bodies(web: &Web) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let good = String::from_utf8(web.sender.event(Kind::Ready).sign().body)?;
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else { anyhow::bail!("{good}") };
    let last = signature.chars().next().map_or('A', |first| if first == 'A' { 'B' } else { 'A' });
    let texts = [
        ("empty", String::new()),
        ("a word", "ready".to_owned()),
        ("two parts", format!("{header}.{claims}")),
        ("four parts", format!("{good}.{signature}")),
        ("no signature", format!("{header}.{claims}.")),
        ("another signature", format!("{header}.{claims}.{last}{}", &signature[1..])),
        ("padding", format!("{good}==")),
        ("white space", format!(" {good}\n")),
        ("standard alphabet", format!("{header}.{claims}.{}+/", &signature[..84])),
        ("JSON", r#"{"kind":"ready"}"#.to_owned()),
    ];
    let mut bodies: Vec<(&str, Vec<u8>)> = texts.into_iter().map(|(what, text)| (what, text.into_bytes())).collect();
    bodies.push(("bytes", vec![0xff; 64]));
    bodies.push(("repeated claim", web.sender.sign_raw(&decoded(header)?, &repeated(&decoded(claims)?))));
    bodies.push(("not JSON", web.sender.sign_raw(&decoded(header)?, "{")));
    bodies.push(("JSON and more", web.sender.sign_raw(&decoded(header)?, &format!("{}x", decoded(claims)?))));
    Ok(bodies)
}

#[tokio::test]
async fn media_type_method_and_path_are_what_the_wire_says() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let (base, port) = (scene.activators[0].url(), scene.activators[0].port());
    web.sender.introduce(&base, &web.token).await?;
    let letter = || web.sender.event(Kind::Heartbeat).sign().without(&CONTENT_TYPE);
    for media_type in ["application/json", "application/jwt", "text/plain"] {
        let reply = letter().header(CONTENT_TYPE, media_type).post(&base).await?;
        reply.refused(415, ErrorCode::UnsupportedMediaType)?;
    }
    letter().post(&base).await?.refused(415, ErrorCode::UnsupportedMediaType)?;
    for media_type in ["application/secevent+jwt; charset=utf-8", "Application/SecEvent+JWT"] {
        letter().header(CONTENT_TYPE, media_type).post(&base).await?.accepted()?;
    }
    for (request, status, err) in [
        ("GET /v1/events", 405, ErrorCode::MethodNotAllowed),
        ("DELETE /v1/events", 405, ErrorCode::MethodNotAllowed),
        ("POST /v1/targets", 405, ErrorCode::MethodNotAllowed),
        ("POST /v1/event", 404, ErrorCode::NotFound),
        ("POST /v1/events/", 404, ErrorCode::NotFound),
        ("GET /", 404, ErrorCode::NotFound),
        ("GET /metrics", 404, ErrorCode::NotFound),
    ] {
        let answer = exchange(port, format!("{request} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")).await?;
        assert_eq!((answer.status, answer.problem()?.err), (Some(status), err), "{request}");
    }
    Ok(())
}

#[tokio::test]
async fn authorization_is_one_bearer_token_or_nothing() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let base = scene.activators[0].url();
    let letter = || web.sender.event(Kind::NotReady).token(&web.token).sign();
    let twice = letter().header(AUTHORIZATION, &format!("Bearer {}", web.token));
    twice.post(&base).await?.refused(400, ErrorCode::InvalidRequest)?;
    for value in ["Basic dTpw".to_owned(), "Bearer".to_owned(), web.token.clone()] {
        let reply = letter().without(&AUTHORIZATION).header(AUTHORIZATION, &value).post(&base).await?;
        reply.refused(401, ErrorCode::AuthenticationFailed)?;
    }
    let lower = letter().without(&AUTHORIZATION).header(AUTHORIZATION, &format!("bearer {}", web.token));
    assert_eq!(lower.post(&base).await?.outcome()?, Outcome::Applied);
    Ok(())
}

#[tokio::test]
async fn a_body_has_sixteen_kibibytes_and_not_a_byte_more() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let (base, port) = (scene.activators[0].url(), scene.activators[0].port());
    web.sender.introduce(&base, &web.token).await?;
    for length in [MAX_EVENT_BYTES - 1, MAX_EVENT_BYTES] {
        let letter = of_length(|| web.sender.event(Kind::Heartbeat), length)?;
        assert_eq!(letter.post(&base).await?.outcome()?, Outcome::Applied, "{length}");
    }
    let before = shop.endpoint(0, "web-1").await?;
    let letter = of_length(|| web.sender.event(Kind::Ready), MAX_EVENT_BYTES + 1)?;
    letter.post(&base).await?.refused(413, ErrorCode::TooLarge)?;
    // Neither does it help not to say how long it is.
    let body = &letter.body;
    let mut request = format!(
        "POST {EVENTS_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request.extend_from_slice(b"\r\n0\r\n\r\n");
    let answer = exchange(port, request).await?;
    assert_eq!((answer.status, answer.problem()?.err), (Some(413), ErrorCode::TooLarge));
    assert_eq!(shop.endpoint(0, "web-1").await?, before);
    Ok(())
}

#[tokio::test]
async fn slow_headers_and_slow_bodies_are_answered_408() -> Result<()> {
    let scene = scene().await;
    let port = scene.activators[0].port();
    let head = format!("POST {EVENTS_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\n");
    let begun = Instant::now();
    let [mut slow_head, mut slow_body] = [RawConnection::open(port).await?, RawConnection::open(port).await?];
    slow_head.send(&head).await?;
    slow_body.send(format!("{head}content-length: 100\r\n\r\nabc")).await?;
    for connection in [&mut slow_head, &mut slow_body] {
        let answer = connection.answer().await?;
        assert_eq!((answer.status, answer.problem()?.err), (Some(408), ErrorCode::Timeout));
    }
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test]
async fn requests_that_contradict_themselves_are_too_large_or_no_http_are_refused() -> Result<()> {
    let scene = scene().await;
    let port = scene.activators[0].port();
    let head = format!("POST {EVENTS_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\n");
    let both = format!("{head}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    let answer = exchange(port, both).await?;
    assert_eq!((answer.status, answer.problem()?.err), (Some(400), ErrorCode::InvalidRequest));
    let long = format!("{head}x-long: {}\r\n\r\n", "a".repeat(40_000));
    assert_eq!(exchange(port, long).await?.status, Some(431));
    let nonsense = exchange(port, "\u{1}\u{2}\u{3}\r\n\r\n").await?;
    assert!(matches!(nonsense.status, None | Some(400)), "{nonsense:?}");
    Ok(())
}

#[tokio::test]
async fn a_sender_that_leaves_before_the_answer_has_told() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let letter = web.sender.event(Kind::Ready).token(&web.token).sign();
    let mut connection = RawConnection::open(scene.activators[0].port()).await?;
    let body = String::from_utf8(letter.body)?;
    let head = format!("POST {EVENTS_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\n");
    let head = format!("{head}authorization: Bearer {}\r\ncontent-length: {}\r\n\r\n", web.token, body.len());
    connection.send(format!("{head}{body}")).await?;
    drop(connection);
    shop.wait(0, "web-1", "ready pushed").await?;
    Ok(())
}

#[tokio::test]
async fn bounds_answer_429_and_when_to_come_back() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let [first, second] = [shop.web("web-1").await?, shop.web("web-2").await?];
    let full = scene.activator().flag("max-sessions", "1").start().await?;
    first.sender.introduce(&full.url(), &first.token).await?;
    let reply = second.sender.event(Kind::NotReady).token(&second.token).sign().post(&full.url()).await?;
    reply.refused(429, ErrorCode::RateLimited)?;
    // A pod that the watch shows is there all the same, and whoever is in stays in.
    let reader = scene.reader_of(&full)?;
    reader.wait_verdict(&shop.namespace, "web", "web-2", "not-ready observed").await?;
    first.sender.tell(&full.url(), Kind::Ready).await?;
    assert!(full.metrics().await?.has("podlight_shed_total", &[("bound", "sessions")]));

    for flag in ["rate", "source-rate"] {
        let slow = scene.activator().flag(flag, "1:2").start().await?;
        let mut statuses = Vec::new();
        for _ in 0..4 {
            let reply = first.sender.event(Kind::NotReady).sign().post(&slow.url()).await?;
            if reply.status == 429 {
                reply.refused(429, ErrorCode::RateLimited)?;
            }
            statuses.push(reply.status);
        }
        assert_eq!(statuses[..2], [401, 401], "{flag}");
        assert!(statuses[2..].contains(&429), "{flag}: {statuses:?}");
    }
    Ok(())
}

#[tokio::test]
async fn every_refusal_is_counted_under_a_label_of_its_own() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    // Its own activator: the others count everybody's.
    let activator = scene.activator().start().await?;
    let base = activator.url();
    let sender = &web.sender;
    let unsigned = |letter: Letter| letter.without(&AUTHORIZATION);
    let letters = [
        ("unknown_key", sender.event(Kind::NotReady).sign()),
        ("media_type", sender.event(Kind::NotReady).sign().without(&CONTENT_TYPE)),
        ("too_large", sender.letter(vec![b'a'; MAX_EVENT_BYTES + 1])),
        ("not_compact", sender.letter("a.b")),
        ("audience", sender.event(Kind::NotReady).sign_altered(|_, claims| claims["aud"] = json!("x"))?),
        ("shape", sender.event(Kind::NotReady).sign_altered(|_, claims| claims["iss"] = json!("x"))?),
        (
            "token_hash",
            unsigned(sender.event(Kind::NotReady).sign()).header(AUTHORIZATION, &format!("Bearer {}", web.token)),
        ),
        ("not_bearer", sender.event(Kind::NotReady).sign().header(AUTHORIZATION, "Basic dTpw")),
        ("revision", sender.event(Kind::NotReady).revision("r9").token(&web.token).sign()),
        ("address", sender.event(Kind::NotReady).addresses(&["10.255.0.1"]).token(&web.token).sign()),
        ("stale", sender.event(Kind::NotReady).issued_at_offset(-120).token(&web.token).sign()),
        ("key", sender.event(Kind::NotReady).sign_altered(|header, _| header["jwk"]["kty"] = json!("EC"))?),
        ("not_compact", sender.letter("")),
    ];
    for (label, letter) in letters {
        let count = async || {
            Ok::<_, anyhow::Error>(activator.metrics().await?.sum("podlight_refusals_total", &[("reason", label)]))
        };
        let before = count().await?;
        let reply = letter.post(&base).await?;
        assert!(reply.problem().is_ok(), "{label}: {reply:?}");
        assert_eq!(count().await? - before, 1.0, "{label}: {reply:?}");
    }
    let reader = scene.reader_of(&activator)?;
    reader.wait_verdict(&shop.namespace, "web", "web-1", "not-ready observed").await?;
    Ok(())
}

/// Signs a message whose event has exactly this length.
fn of_length<'a>(message: impl Fn() -> Message<'a>, length: usize) -> Result<Letter> {
    // Three characters of base64 cannot be told apart by length of the claims alone: the header helps.
    for in_header in 0..3 {
        let sign = |in_claims: usize| {
            message().sign_altered(|header, claims| {
                header["pad"] = json!("a".repeat(in_header));
                claims["pad"] = json!("a".repeat(in_claims));
            })
        };
        let missing = length.saturating_sub(sign(0)?.body.len());
        for in_claims in (missing * 3 / 4).saturating_sub(8)..missing * 3 / 4 + 8 {
            let letter = sign(in_claims)?;
            if letter.body.len() == length {
                return Ok(letter);
            }
        }
    }
    anyhow::bail!("no event has {length} bytes")
}

fn remove(json: &mut Value, member: &str) {
    if let Some(members) = json.as_object_mut() {
        members.remove(member);
    }
}

fn decoded(part: &str) -> Result<String> {
    use base64::Engine;
    Ok(String::from_utf8(base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(part)?)?)
}

/// The same claims with one of them twice.
fn repeated(claims: &str) -> String {
    claims.replacen('{', r#"{"iat":1,"#, 1)
}
