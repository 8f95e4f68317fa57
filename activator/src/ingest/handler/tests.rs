use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use http::Request;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use podlight_proto::{Event, Kind, Order, PodRef, Problem, SigningKey};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::super::scripted::{ReviewScript, Scripted, TokenKey, claims, observation, pod};
use super::super::{IngestConfig, Kubernetes, Rate, router};
use super::*;
use crate::table::entry::{Observation, Phase, State};
use crate::table::group::{EndpointId, GroupKey, Service};
use crate::table::owner::{self, Clock};
use crate::table::snapshot::Groups;
use crate::table::{Change, Table, Update};

const HERE: &str = "10.0.0.1";

/// An ingest over a scripted cluster in which the pod web-0 runs, and a Service that chooses it.
struct Site {
    script: Arc<Scripted>,
    ingest: Arc<Ingest>,
    router: Router,
    groups: Groups,
}

impl Site {
    async fn new(auth: AuthMode) -> Self {
        Self::with(auth, |_| {}).await
    }

    async fn with(auth: AuthMode, change: impl FnOnce(&mut IngestConfig)) -> Self {
        let (script, clock) = (Scripted::new(), Clock::start());
        let (table, groups, _, _) = owner::spawn(Table::default(), clock, 1024);
        let mut config = IngestConfig::new(auth, "a-0");
        change(&mut config);
        let ingest = Ingest::over(config, Kubernetes::Scripted(Arc::clone(&script)), table, clock);
        let selector = Some([("app".into(), "web".into())].into());
        let service = Service { selector, ..Service::new(GroupKey::new("shop", "web")) };
        ingest.table.update(Update::Service(Change::Present(Arc::new(service)))).await;
        let site = Self { script, router: router(Arc::clone(&ingest)), ingest, groups };
        site.show(observation(&pod("web-0"))).await;
        site.ingest.warm_up().await;
        site
    }

    /// The watch shows a pod.
    async fn show(&self, mut observation: Observation) {
        observation.labels.insert("app".into(), "web".into());
        self.script.show(observation.clone());
        self.ingest.table.update(Update::Pod(Change::Present(Arc::new(observation)))).await;
    }

    fn state(&self) -> Option<State> {
        let group = self.groups.get("shop", "web")?;
        Some(group.endpoint(&EndpointId::Pod(*pod("web-0").uid()))?.verdict.state)
    }

    async fn send(&self, sent: Sent) -> Answer {
        let mut request = Request::post("/v1/events").header(CONTENT_TYPE, "application/secevent+jwt");
        for header in &sent.authorization {
            request = request.header(AUTHORIZATION, header);
        }
        let mut request = request.body(Body::from(sent.body)).expect("a request");
        request.extensions_mut().insert(Peer((sent.peer, 4711).into()));
        self.answer(request).await
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        assert_eq!(parts.headers[CONTENT_TYPE], "application/json");
        let body = body.collect().await.expect("a body").to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&body).expect("JSON"),
        }
    }

    /// Sends and expects this refusal, with its headers.
    async fn refused(&self, sent: Sent, status: u16, err: &str, words: &str) {
        let answer = self.send(sent).await;
        let Problem { err: code, description } = serde_json::from_value(answer.body).expect("a problem");
        assert_eq!((answer.status, code.as_str()), (status, err), "{description}");
        assert!(description.contains(words), "{description:?} does not say {words:?}");
        assert_eq!(answer.headers.get(WWW_AUTHENTICATE).is_some_and(|v| v == "Bearer"), status == 401);
        let retry =
            answer.headers.get(RETRY_AFTER).map(|v| v.to_str().expect("ASCII").parse::<u64>().expect("seconds"));
        assert_eq!(retry.is_some_and(|seconds| seconds >= 1), matches!(status, 429 | 503));
    }

    /// Sends and expects 202 with this result.
    async fn accepted(&self, sent: Sent, result: &str) -> Accepted {
        let answer = self.send(sent).await;
        assert_eq!((answer.status, &answer.body["result"]), (202, &json!(result)), "{}", answer.body);
        serde_json::from_value(answer.body).expect("an acceptance")
    }

    fn calls(&self) -> (usize, usize, usize) {
        let Scripted { reviews, gets, key_fetches, .. } = &*self.script;
        (reviews.load(Ordering::SeqCst), gets.load(Ordering::SeqCst), key_fetches.load(Ordering::SeqCst))
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

#[derive(Debug, Clone)]
struct Sent {
    authorization: Vec<String>,
    body: Vec<u8>,
    peer: IpAddr,
}

/// One start of a sidecar.
struct Sidecar {
    key: SigningKey,
    pod: PodRef,
    boot: u64,
    addresses: Vec<IpAddr>,
    revision: &'static str,
    clock_off: i64,
    token: String,
}

fn now_ms() -> u64 {
    Clock::start().now().wall_ms
}

impl Sidecar {
    fn new(seed: u8, boot: u64) -> Self {
        let pod = pod("web-0");
        let token = TokenKey::First.mint(&claims(&pod, "web", now_ms() / 1000));
        let (key, addresses) = (SigningKey::from_seed(&[seed; 32]), vec![HERE.parse().expect("an address")]);
        Self { key, pod, boot, addresses, revision: "r1", clock_off: 0, token }
    }

    fn with_claims(self, change: impl FnOnce(&mut Value)) -> Self {
        let mut claims = claims(&self.pod, "web", now_ms() / 1000);
        change(&mut claims);
        Self { token: TokenKey::First.mint(&claims), ..self }
    }

    fn sign(&self, kind: Kind, seq: u64, ready: bool, token: Option<&str>) -> Vec<u8> {
        let event = Event {
            pod: self.pod.clone(),
            order: Order { boot: self.boot.try_into().expect("in range"), seq: seq.try_into().expect("in range") },
            kind,
            revision: self.revision.into(),
            addresses: self.addresses.clone(),
            ports: Vec::new(),
            ready,
            observed_at_ms: now_ms(),
        };
        let seconds = (now_ms() / 1000).checked_add_signed(self.clock_off).expect("in range");
        self.key.sign(&event, seconds, token).into_bytes()
    }

    fn sent(&self, kind: Kind, seq: u64, token: Option<&str>) -> Sent {
        let authorization = token.iter().map(|token| format!("Bearer {token}")).collect();
        let body = self.sign(kind, seq, kind == Kind::Ready, token);
        Sent { authorization, body, peer: HERE.parse().expect("an address") }
    }

    /// With the key alone.
    fn event(&self, kind: Kind, seq: u64) -> Sent {
        self.sent(kind, seq, None)
    }

    /// With the token.
    fn vouched(&self, kind: Kind, seq: u64) -> Sent {
        self.sent(kind, seq, Some(&self.token))
    }
}

#[tokio::test]
async fn a_pod_announces_itself_turns_ready_and_drains() {
    let site = Site::new(AuthMode::Jwks).await;
    let sidecar = Sidecar::new(1, 10);
    let accepted = site.accepted(sidecar.vouched(Kind::NotReady, 1), "applied").await;
    assert_eq!((u64::from(accepted.boot), accepted.replica.as_str()), (10, "a-0"));
    assert!(accepted.heartbeat_after_seconds < accepted.lease_seconds);
    site.accepted(sidecar.event(Kind::Ready, 2), "applied").await;
    assert_eq!(site.state(), Some(State::Ready));
    site.accepted(sidecar.event(Kind::Draining, 3), "applied").await;
    assert_eq!(site.state(), Some(State::Draining));
    site.accepted(sidecar.event(Kind::Ready, 2), "superseded").await;
    assert_eq!(site.state(), Some(State::Draining), "a drain beats a late ready");
    assert_eq!(site.calls(), (0, 0, 1), "in jwks mode nothing is asked");
}

#[tokio::test]
async fn a_replay_is_acknowledged_and_changes_nothing() {
    let site = Site::new(AuthMode::Hybrid).await;
    let sidecar = Sidecar::new(1, 10);
    let first = sidecar.vouched(Kind::Ready, 1);
    site.accepted(first.clone(), "applied").await;
    site.accepted(first.clone(), "duplicate").await;
    site.accepted(sidecar.event(Kind::NotReady, 2), "applied").await;
    site.accepted(first, "superseded").await;
    assert_eq!(site.state(), Some(State::NotReady));
    assert_eq!(site.calls().0, 1, "one review for one token");
}

#[tokio::test]
async fn malformed_requests_are_told_what_to_mend() {
    let site = Site::new(AuthMode::Jwks).await;
    let sidecar = Sidecar::new(1, 10);
    let good = sidecar.vouched(Kind::NotReady, 1);
    // Shape comes before the token.
    let garbage = Sent { authorization: Vec::new(), body: b"garbage".to_vec(), ..good.clone() };
    site.refused(garbage, 400, "invalid_request", "three base64url parts").await;
    let twice =
        Sent { authorization: [good.authorization.clone(), good.authorization.clone()].concat(), ..good.clone() };
    site.refused(twice, 400, "invalid_request", "one Authorization").await;
    let other = Sidecar { token: sidecar.token.clone(), ..Sidecar::new(2, 10) }.event(Kind::NotReady, 1);
    let no_ath = Sent { authorization: good.authorization.clone(), ..other };
    site.refused(no_ath, 400, "invalid_request", "ath").await;
    let mut forged = good.clone();
    let end = forged.body.len() - 10;
    forged.body[end] = if forged.body[end] == b'A' { b'B' } else { b'A' };
    site.refused(forged, 400, "invalid_key", "signature").await;
    for off in [-32, 32] {
        let skewed = Sidecar { clock_off: off, ..Sidecar::new(1, 10) };
        site.refused(skewed.vouched(Kind::NotReady, 1), 400, "invalid_request", "iat").await;
    }
    let far = Sidecar { boot: now_ms() + 25 * 3_600_000, ..Sidecar::new(1, 10) };
    site.refused(far.vouched(Kind::NotReady, 1), 400, "invalid_request", "24 h").await;
    assert_eq!(site.ingest.sessions.len(), 0, "no state changed");
    let skewed = Sidecar { clock_off: -29, ..Sidecar::new(1, 10) };
    site.accepted(skewed.vouched(Kind::NotReady, 1), "applied").await;
}

#[tokio::test]
async fn the_body_has_a_type_and_a_bound() {
    let site = Site::new(AuthMode::Jwks).await;
    let good = Sidecar::new(1, 10).vouched(Kind::NotReady, 1);
    let send = async |media_type: Option<&str>, body: Vec<u8>| {
        let mut request = Request::post("/v1/events").header(AUTHORIZATION, &good.authorization[0]);
        if let Some(media_type) = media_type {
            request = request.header(CONTENT_TYPE, media_type);
        }
        site.answer(request.body(Body::from(body)).expect("a request")).await
    };
    for bad in [None, Some("application/json"), Some("application/secevent+jwtx"), Some("")] {
        let answer = send(bad, good.body.clone()).await;
        assert_eq!((answer.status, &answer.body["err"]), (415, &json!("unsupported_media_type")), "{bad:?}");
    }
    for fine in ["application/secevent+jwt; charset=utf-8", "Application/SecEvent+JWT"] {
        assert_eq!(send(Some(fine), good.body.clone()).await.status, 202, "{fine}");
    }
    let at_bound = send(Some(EVENT_MEDIA_TYPE), vec![b'a'; MAX_EVENT_BYTES]).await;
    assert_eq!((at_bound.status, &at_bound.body["err"]), (400, &json!("invalid_request")));
    let over = send(Some(EVENT_MEDIA_TYPE), vec![b'a'; MAX_EVENT_BYTES + 1]).await;
    assert_eq!((over.status, &over.body["err"]), (413, &json!("too_large")));
    // The length may also be announced, or show only as the pieces come.
    let announced = Request::post("/v1/events").header(CONTENT_TYPE, EVENT_MEDIA_TYPE).header(CONTENT_LENGTH, "16385");
    assert_eq!(site.answer(announced.body(Body::empty()).expect("a request")).await.status, 413);
    for (pieces, status) in [(4, 400), (5, 413)] {
        let pieces = (0..pieces).map(|_| Ok::<_, std::io::Error>(vec![b'a'; MAX_EVENT_BYTES / 4]));
        let body = Body::from_stream(futures::stream::iter(pieces));
        let request = Request::post("/v1/events").header(CONTENT_TYPE, EVENT_MEDIA_TYPE).body(body);
        assert_eq!(site.answer(request.expect("a request")).await.status, status);
    }
}

#[tokio::test]
async fn an_event_in_pieces_is_read_whole() {
    let site = Site::new(AuthMode::Jwks).await;
    let good = Sidecar::new(1, 10).vouched(Kind::NotReady, 1);
    let pieces = good.body.chunks(100).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>();
    let request = Request::post("/v1/events")
        .header(CONTENT_TYPE, EVENT_MEDIA_TYPE)
        .header(AUTHORIZATION, &good.authorization[0]);
    let request = request.body(Body::from_stream(futures::stream::iter(pieces))).expect("a request");
    assert_eq!(site.answer(request).await.status, 202);
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_given_up_and_a_broken_one_refused() {
    let site = Site::new(AuthMode::Jwks).await;
    let request =
        |body: Body| Request::post("/v1/events").header(CONTENT_TYPE, EVENT_MEDIA_TYPE).body(body).expect("a request");
    let stuck = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
    let answer = site.answer(request(stuck)).await;
    assert_eq!((answer.status, &answer.body["err"]), (408, &json!("timeout")));
    let broken = Body::from_stream(futures::stream::iter([Err::<Vec<u8>, _>(std::io::Error::other("gone"))]));
    let answer = site.answer(request(broken)).await;
    assert_eq!((answer.status, &answer.body["err"]), (400, &json!("invalid_request")));
}

#[tokio::test]
async fn other_methods_are_not_allowed() {
    let site = Site::new(AuthMode::Jwks).await;
    let answer = site.answer(Request::get("/v1/events").body(Body::empty()).expect("a request")).await;
    assert_eq!((answer.status, &answer.body["err"]), (405, &json!("method_not_allowed")));
    assert_eq!(answer.headers[ALLOW], "POST");
}

#[tokio::test]
async fn tokens_that_speak_against_themselves_are_refused_without_a_call() {
    let site = Site::new(AuthMode::Hybrid).await;
    let refused = async |sidecar: Sidecar, words: &str| {
        site.refused(sidecar.vouched(Kind::NotReady, 1), 401, "authentication_failed", words).await;
    };
    let fresh = || Sidecar::new(1, 10);
    refused(fresh().with_claims(|c| c["aud"] = json!(["https://kubernetes.default.svc"])), "aud").await;
    refused(fresh().with_claims(|c| c["exp"] = json!(now_ms() / 1000)), "expired").await;
    refused(fresh().with_claims(|c| c["exp"] = json!("9999999999")), "claims").await;
    refused(fresh().with_claims(|c| c["nbf"] = json!(now_ms() / 1000 + 60)), "nbf").await;
    refused(fresh().with_claims(|c| c["iss"] = json!("https://elsewhere")), "iss").await;
    refused(fresh().with_claims(|c| c["sub"] = json!("system:serviceaccount:shop:other")), "sub").await;
    let unbound = fresh().with_claims(|c| {
        c["kubernetes.io"].as_object_mut().expect("an object").remove("pod");
    });
    refused(unbound, "not bound to a pod").await;
    refused(Sidecar { token: "garbage".into(), ..fresh() }, "three base64url parts").await;
    refused(Sidecar { token: "a.".repeat(5000), ..fresh() }, "8192").await;

    let claims = claims(&pod("web-0"), "web", now_ms() / 1000);
    let none = TokenKey::First.sign(&json!({"alg": "none", "kid": "first"}), &claims);
    refused(Sidecar { token: none, ..fresh() }, "alg").await;
    let modulus = TokenKey::First.jwk()["n"].as_str().expect("text").to_owned();
    let secret = jsonwebtoken::EncodingKey::from_secret(modulus.as_bytes());
    let header = jsonwebtoken::Header { kid: Some("first".into()), ..Default::default() };
    let hs256 = jsonwebtoken::encode(&header, &claims, &secret).expect("a token");
    refused(Sidecar { token: hs256, ..fresh() }, "alg").await;
    let stranger = TokenKey::Second.sign(&json!({"alg": "RS256", "kid": "first"}), &claims);
    refused(Sidecar { token: stranger, ..fresh() }, "signature").await;

    let basic = Sent { authorization: vec!["Basic dTpw".into()], ..fresh().event(Kind::NotReady, 1) };
    site.refused(basic, 401, "authentication_failed", "Bearer").await;
    assert_eq!(site.calls(), (0, 0, 1));
    assert_eq!(site.ingest.sessions.len(), 0);
}

#[tokio::test]
async fn the_scheme_is_read_in_any_case() {
    let site = Site::new(AuthMode::Jwks).await;
    let mut sent = Sidecar::new(1, 10).vouched(Kind::NotReady, 1);
    sent.authorization[0] = sent.authorization[0].replacen("Bearer ", "bEARER  ", 1);
    site.accepted(sent, "applied").await;
}

#[tokio::test]
async fn what_is_not_the_callers_is_denied() {
    let site = Site::new(AuthMode::Jwks).await;
    let denied = async |sidecar: Sidecar, words: &str| {
        site.refused(sidecar.vouched(Kind::Ready, 1), 403, "access_denied", words).await;
    };
    let fresh = || Sidecar::new(1, 10);
    site.show(observation(&pod("web-1"))).await;
    denied(Sidecar { pod: pod("web-1"), ..fresh() }, "iss").await;
    denied(Sidecar { addresses: vec!["10.0.0.9".parse().expect("an address")], ..fresh() }, "podIPs").await;
    denied(Sidecar { revision: "r2", ..fresh() }, "revision").await;
    let gone = PodRef::new("shop", "web-0", "uid-former").expect("a pod");
    denied(Sidecar { pod: gone, ..fresh() }.with_claims(|_| {}), "no pod").await;
    site.show(Observation { service_account: "other".into(), ..observation(&pod("web-0")) }).await;
    denied(fresh(), "ServiceAccount").await;
    site.show(Observation { phase: Phase::Ended, ..observation(&pod("web-0")) }).await;
    denied(fresh(), "ended").await;
    site.show(Observation { terminating_since_ms: Some(1), ..observation(&pod("web-0")) }).await;
    denied(fresh(), "terminating").await;
    assert_eq!(site.ingest.sessions.len(), 0);
    site.accepted(fresh().vouched(Kind::Draining, 1), "applied").await;
}

#[tokio::test]
async fn a_heartbeat_may_not_say_what_ready_may_not() {
    let site = Site::new(AuthMode::Jwks).await;
    let sidecar = Sidecar::new(1, 10);
    site.accepted(sidecar.vouched(Kind::Ready, 1), "applied").await;
    site.show(Observation { terminating_since_ms: Some(1), resource_version: 2, ..observation(&pod("web-0")) }).await;
    let beat =
        |ready| Sent { body: sidecar.sign(Kind::Heartbeat, 2, ready, None), ..sidecar.event(Kind::Heartbeat, 2) };
    site.refused(beat(true), 403, "access_denied", "terminating").await;
    site.accepted(beat(false), "applied").await;
}

#[tokio::test]
async fn keys_and_boots_follow_the_wire() {
    let site = Site::new(AuthMode::Jwks).await;
    let (first, second) = (Sidecar::new(1, 10), Sidecar::new(2, 11));
    site.refused(first.event(Kind::NotReady, 1), 401, "authentication_failed", "token").await;
    site.accepted(first.vouched(Kind::Ready, 1), "applied").await;
    site.refused(second.event(Kind::NotReady, 1), 401, "authentication_failed", "another key").await;
    let behind = Sidecar::new(2, 10);
    let held = site.accepted(behind.vouched(Kind::NotReady, 1), "superseded").await;
    assert_eq!(u64::from(held.boot), 10);
    assert_eq!(site.state(), Some(State::Ready), "nothing changed");
    site.accepted(second.vouched(Kind::NotReady, 1), "applied").await;
    assert_eq!(site.state(), Some(State::NotReady));
    site.refused(first.event(Kind::Ready, 2), 401, "authentication_failed", "another key").await;
    let late = site.accepted(first.vouched(Kind::Draining, 3), "superseded").await;
    assert_eq!(u64::from(late.boot), 11);
    let same = Sidecar::new(2, 12);
    site.accepted(same.event(Kind::Ready, 1), "applied").await;
}

#[tokio::test]
async fn a_known_key_with_a_bad_token_is_refused_and_stays_known() {
    let site = Site::new(AuthMode::Hybrid).await;
    let sidecar = Sidecar::new(1, 10);
    site.accepted(sidecar.vouched(Kind::Ready, 1), "applied").await;
    let expired = Sidecar::new(1, 10).with_claims(|c| c["exp"] = json!(1));
    site.refused(expired.vouched(Kind::Heartbeat, 2), 401, "authentication_failed", "expired").await;
    site.script.set_review(ReviewScript::Reject);
    let rejected = Sidecar::new(1, 10).with_claims(|c| c["jti"] = json!("another"));
    site.refused(rejected.vouched(Kind::Heartbeat, 2), 401, "authentication_failed", "it said no").await;
    site.accepted(sidecar.event(Kind::NotReady, 2), "applied").await;
}

#[tokio::test]
async fn a_review_that_says_no_is_remembered_apart() {
    let site = Site::new(AuthMode::Hybrid).await;
    let sidecar = Sidecar::new(1, 10);
    site.script.set_review(ReviewScript::Reject);
    for _ in 0..3 {
        site.refused(sidecar.vouched(Kind::NotReady, 1), 401, "authentication_failed", "it said no").await;
    }
    assert_eq!(site.calls().0, 1);
    site.script.set_review(ReviewScript::Other);
    let other = Sidecar::new(1, 10).with_claims(|c| c["jti"] = json!("another"));
    site.refused(other.vouched(Kind::NotReady, 1), 401, "authentication_failed", "names another").await;
}

#[tokio::test]
async fn token_review_mode_needs_no_keys() {
    let site = Site::with(AuthMode::TokenReview, |_| {}).await;
    site.script.set_keys(None);
    let sidecar = Sidecar::new(1, 10);
    site.accepted(sidecar.vouched(Kind::Ready, 1), "applied").await;
    site.accepted(sidecar.vouched(Kind::Ready, 2), "applied").await;
    assert_eq!(site.calls(), (1, 0, 0));
}

#[tokio::test]
async fn a_thousand_first_contacts_with_one_token_are_one_review() {
    let site = Site::new(AuthMode::Hybrid).await;
    let sidecar = Sidecar::new(1, 10);
    let sent: Vec<Sent> = (1..=1000).map(|seq| sidecar.vouched(Kind::NotReady, seq)).collect();
    let answers = futures::future::join_all(sent.into_iter().map(|sent| site.send(sent))).await;
    assert!(answers.iter().all(|answer| answer.status == 202));
    assert_eq!(site.calls().0, 1);
}

#[tokio::test(start_paused = true)]
async fn a_review_that_outlasts_those_who_asked_is_not_asked_for_again() {
    let site = Site::new(AuthMode::Hybrid).await;
    let sidecar = Sidecar::new(1, 10);
    let started = tokio::time::Instant::now();
    site.script.set_review(ReviewScript::AcceptAfter(6));
    for _ in 0..3 {
        site.refused(sidecar.vouched(Kind::NotReady, 1), 503, "pending", "cannot review the token now").await;
        assert_eq!(started.elapsed(), Duration::from_secs(2), "who comes again is told at once");
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    site.accepted(sidecar.vouched(Kind::NotReady, 1), "applied").await;
    assert_eq!((started.elapsed(), site.calls().0), (Duration::from_secs(7), 1));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_review_is_told_when_the_api_server_goes() {
    let site = Site::with(AuthMode::Hybrid, |config| config.reviews_in_flight = 1).await;
    site.script.set_review(ReviewScript::AcceptAfter(6));
    let first = Sidecar::new(1, 10);
    let second = Sidecar::new(1, 10).with_claims(|claims| claims["jti"] = json!("another"));
    let (sent, queued) = (site.send(first.vouched(Kind::NotReady, 1)), site.send(second.vouched(Kind::NotReady, 1)));
    let gone = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.script.set_reachable(false);
    };
    let (sent, queued, ()) = futures::join!(sent, queued, gone);
    assert_eq!((sent.status, queued.status, site.calls().0), (503, 503, 1));
}

#[tokio::test]
async fn garbage_tokens_cost_no_reviews() {
    let site = Site::new(AuthMode::Hybrid).await;
    let claims = claims(&pod("web-0"), "web", now_ms() / 1000);
    for n in 0..200 {
        let kid = if n % 2 == 0 { "first".to_owned() } else { format!("made-up-{n}") };
        let token = TokenKey::Second.sign(&json!({"alg": "RS256", "kid": kid}), &claims);
        let answer = site.send(Sidecar { token, ..Sidecar::new(1, 10) }.vouched(Kind::Ready, 1)).await;
        assert_eq!(answer.status, 401);
    }
    assert_eq!(site.calls(), (0, 0, 2), "the first fetch, and one for all unknown keys");
}

#[tokio::test]
async fn what_cannot_be_decided_is_pending() {
    let site = Site::new(AuthMode::Hybrid).await;
    let sidecar = Sidecar::new(1, 10);
    site.script.set_synced(false);
    site.refused(sidecar.vouched(Kind::NotReady, 1), 503, "pending", "whole cluster").await;
    site.script.set_synced(true);
    site.script.set_review(ReviewScript::Fail);
    site.refused(sidecar.vouched(Kind::NotReady, 1), 503, "pending", "review").await;
    site.script.set_review(ReviewScript::Accept);
    site.show(Observation { addresses: Vec::new(), resource_version: 2, ..observation(&pod("web-0")) }).await;
    let elsewhere = Sent { peer: "10.0.0.7".parse().expect("an address"), ..sidecar.vouched(Kind::NotReady, 1) };
    site.refused(elsewhere, 503, "pending", "not published").await;
    site.accepted(sidecar.vouched(Kind::NotReady, 1), "applied").await;
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_make_tokens_pending() {
    let (script, clock) = (Scripted::new(), Clock::start());
    let (table, groups, _, _) = owner::spawn(Table::default(), clock, 16);
    script.set_keys(None);
    script.show(observation(&pod("web-0")));
    let config = IngestConfig::new(AuthMode::Hybrid, "a-0");
    let ingest = Ingest::over(config, Kubernetes::Scripted(Arc::clone(&script)), table, clock);
    let site = Site { script, router: router(Arc::clone(&ingest)), ingest, groups };
    site.refused(Sidecar::new(1, 10).vouched(Kind::NotReady, 1), 503, "pending", "keys").await;
}

#[tokio::test]
async fn while_the_api_server_is_down_known_keys_go_on() {
    let site = Site::new(AuthMode::Hybrid).await;
    let sidecar = Sidecar::new(1, 10);
    site.accepted(sidecar.vouched(Kind::NotReady, 1), "applied").await;
    site.script.set_reachable(false);
    site.script.set_review(ReviewScript::Fail);
    site.accepted(sidecar.event(Kind::Ready, 2), "applied").await;
    // A rotated token cannot be reviewed; the key still speaks.
    let rotated = Sidecar::new(1, 10).with_claims(|c| c["jti"] = json!("rotated"));
    site.accepted(rotated.vouched(Kind::Heartbeat, 3), "applied").await;
    let stranger = Sidecar::new(2, 11);
    site.refused(stranger.vouched(Kind::NotReady, 1), 503, "pending", "no new key").await;
    assert_eq!(site.calls().0, 1);
}

#[tokio::test]
async fn while_the_api_server_is_down_jwks_mode_admits_pods_that_the_watch_showed() {
    let site = Site::new(AuthMode::Jwks).await;
    site.script.set_reachable(false);
    site.accepted(Sidecar::new(1, 10).vouched(Kind::NotReady, 1), "applied").await;
    let unseen = Sidecar { pod: pod("web-9"), ..Sidecar::new(3, 10) }.with_claims(|_| {});
    site.refused(unseen.vouched(Kind::NotReady, 1), 503, "pending", "no new key").await;
}

#[tokio::test]
async fn a_pod_that_a_get_found_is_in_the_table_before_its_event() {
    let site = Site::new(AuthMode::Hybrid).await;
    let mut early = observation(&pod("web-9"));
    early.labels.insert("app".into(), "web".into());
    early.gates_open = false;
    site.script.show_live(&Arc::new(early));
    site.ingest.table.update(Update::Pod(Change::ListBegan)).await;
    let sidecar = Sidecar { pod: pod("web-9"), ..Sidecar::new(1, 10) }.with_claims(|_| {});
    site.accepted(sidecar.vouched(Kind::Ready, 1), "applied").await;
    let group = site.groups.get("shop", "web").expect("a group");
    let endpoint = group.endpoint(&EndpointId::Pod(*pod("web-9").uid())).expect("an endpoint");
    assert_eq!(endpoint.verdict.state, State::NotReady, "its gate is known to be closed");
    assert_eq!(site.calls(), (1, 1, 1));
}

#[tokio::test]
async fn a_deleted_pod_is_refused_and_forgotten() {
    let site = Site::new(AuthMode::Jwks).await;
    let sidecar = Sidecar::new(1, 10);
    site.accepted(sidecar.vouched(Kind::Ready, 1), "applied").await;
    // The table has heard of the deletion, the map of pods not yet.
    site.ingest.table.update(Update::Pod(Change::Gone(*pod("web-0").uid()))).await;
    site.refused(sidecar.event(Kind::Heartbeat, 2), 403, "access_denied", "deleted").await;
    assert_eq!(site.ingest.sessions.len(), 0);
    site.script.delete(&pod("web-0"));
    site.refused(sidecar.vouched(Kind::Ready, 3), 403, "access_denied", "no pod").await;
}

#[tokio::test]
async fn bounds_are_answered_with_when_to_come_again() {
    let one = Rate { per_second: 1, burst: 1 };
    let sidecar = Sidecar::new(1, 10);
    let site = Site::with(AuthMode::Jwks, |config| config.source_rate = one).await;
    site.accepted(sidecar.vouched(Kind::NotReady, 1), "applied").await;
    site.refused(sidecar.event(Kind::NotReady, 2), 429, "rate_limited", "address").await;
    let site = Site::with(AuthMode::Jwks, |config| config.rate = one).await;
    site.accepted(sidecar.vouched(Kind::NotReady, 1), "applied").await;
    site.refused(sidecar.event(Kind::NotReady, 2), 429, "rate_limited", "rate").await;
    let site = Site::with(AuthMode::Jwks, |config| config.max_sessions = 0).await;
    site.refused(sidecar.vouched(Kind::NotReady, 1), 429, "rate_limited", "no room").await;
    let site = Site::with(AuthMode::Jwks, |config| config.max_in_flight = 0).await;
    site.refused(sidecar.vouched(Kind::NotReady, 1), 503, "pending", "under way").await;
    let site = Site::with(AuthMode::Hybrid, |config| config.max_waiting = 0).await;
    site.refused(sidecar.vouched(Kind::NotReady, 1), 503, "pending", "wait for the Kubernetes API").await;
}

#[tokio::test]
async fn a_sender_that_leaves_has_still_told_us() {
    // It waits for the review in one mode, for the table in the other.
    for mode in [AuthMode::Hybrid, AuthMode::Jwks] {
        let site = Site::new(mode).await;
        let sidecar = Sidecar::new(1, 10);
        let mut leaving = Box::pin(site.send(sidecar.vouched(Kind::Ready, 1)));
        assert!(futures::poll!(&mut leaving).is_pending());
        drop(leaving);
        let applied = async {
            while site.state() != Some(State::Ready) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), applied).await.expect("applied");
        site.accepted(sidecar.event(Kind::Ready, 1), "duplicate").await;
    }
}

#[tokio::test]
async fn queries_are_reviewed_in_every_mode_and_need_no_pod() {
    for mode in [AuthMode::Jwks, AuthMode::Hybrid] {
        let site = Site::new(mode).await;
        let authenticator = site.ingest.authenticator();
        let mut claims = claims(&pod("web-0"), "prometheus", now_ms() / 1000);
        claims["kubernetes.io"].as_object_mut().expect("an object").remove("pod");
        let token = TokenKey::Curve.mint(&claims);
        for _ in 0..2 {
            let caller = authenticator.authenticate(&token).await.expect("accepted");
            assert_eq!(caller.user().username, "system:serviceaccount:shop:prometheus");
        }
        assert_eq!(site.calls().0, 1);
        let error = authenticator.authenticate("garbage").await.expect_err("refused");
        assert!(!error.is_undecided());
        // An event's token that was accepted without a review is not good for a query.
        let sidecar = Sidecar::new(1, 10);
        site.accepted(sidecar.vouched(Kind::NotReady, 1), "applied").await;
        site.script.set_review(ReviewScript::Fail);
        let error = authenticator.authenticate(&sidecar.token).await.expect_err("not reviewed");
        assert!(error.is_undecided());
    }
}
