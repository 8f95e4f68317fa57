//! A sidecar's voice without a sidecar: signs whatever a test wants said and posts it however the test wants it posted.
//! Nothing is retried or put in order here; each message says what its test told it to.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use k8s_openapi::api::core::v1::Pod;
use podlight_proto::{
    Accepted, Boot, EVENT_MEDIA_TYPE, EVENTS_PATH, ErrorCode, Event, Kind, Order, Outcome, PodRef, Port, Problem,
    Sequence, SigningKey,
};
use serde_json::Value;

use crate::http_client;

/// The label that names a pod's revision unless an activator is told otherwise.
pub const REVISION_LABEL: &str = "podlight.dev/revision";

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// One start of a sidecar: a pod, a key, a boot and a sequence. It keeps its connections, as a sidecar does.
pub struct Sender {
    key: SigningKey,
    pair: Ed25519KeyPair,
    event: Event,
    last_seq: AtomicU64,
    http: reqwest::Client,
}

impl Sender {
    /// The sidecar of a pod as the API server returned it, with its addresses and its revision.
    ///
    /// # Errors
    /// When the pod has no name or uid, or an address that is none.
    pub fn for_pod(pod: &Pod) -> Result<Self> {
        let metadata = &pod.metadata;
        let namespace = metadata.namespace.as_deref().context("a pod without namespace")?;
        let name = metadata.name.as_deref().context("a pod without name")?;
        let uid = metadata.uid.as_deref().context("a pod without uid")?;
        let labels = metadata.labels.as_ref();
        let addresses = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        let addresses: Result<Vec<IpAddr>, _> = addresses.map(|address| address.ip.parse()).collect();
        let event = Event {
            pod: PodRef::new(namespace, name, uid)?,
            order: Order { boot: Boot::try_from(now_ms())?, seq: Sequence::FIRST },
            kind: Kind::NotReady,
            revision: labels.and_then(|labels| labels.get(REVISION_LABEL)).cloned().unwrap_or_default(),
            addresses: addresses?,
            ports: vec![Port { name: "http".to_owned(), port: 8080 }],
            ready: false,
            observed_at_ms: 0,
        };
        Self::with(event)
    }

    /// The same pod's next sidecar: a new key and the boot after.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn restarted(&self) -> Result<Self> {
        let mut event = self.event.clone();
        event.order.boot = event.order.boot.next();
        Self::with(event)
    }

    /// Another sidecar of the same pod and the same boot, with a key of its own.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn impostor(&self) -> Result<Self> {
        Self::with(self.event.clone())
    }

    fn with(event: Event) -> Result<Self> {
        let mut seed = [0; 32];
        rand::fill(&mut seed)?;
        Ok(Self {
            key: SigningKey::from_seed(&seed),
            pair: Ed25519KeyPair::from_seed_unchecked(&seed)?,
            event,
            last_seq: AtomicU64::new(0),
            http: http_client()?,
        })
    }

    /// The boot of this start.
    pub fn boot(&self) -> Boot {
        self.event.order.boot
    }

    /// The next event, as of now. A heartbeat says not ready unless [`Message::ready`] is called.
    ///
    /// # Panics
    /// After 2^53 events.
    pub fn event(&self, kind: Kind) -> Message<'_> {
        let seq = self.last_seq.fetch_add(1, Ordering::Relaxed) + 1;
        let mut event = self.event.clone();
        event.kind = kind;
        event.ready = kind == Kind::Ready;
        event.order.seq = Sequence::try_from(seq).expect("a test sends few events");
        event.observed_at_ms = now_ms();
        Message { sender: self, event, token: None, issued_at_offset: 0 }
    }

    /// `not-ready` with the token: what a sidecar says first.
    ///
    /// # Errors
    /// When the activator cannot be reached or does not take it.
    pub async fn introduce(&self, base: &str, token: &str) -> Result<Accepted> {
        self.event(Kind::NotReady).token(token).sign().post(base).await?.accepted()
    }

    /// An event without token that is taken.
    ///
    /// # Errors
    /// When the activator cannot be reached or does not take it.
    pub async fn tell(&self, base: &str, kind: Kind) -> Result<Accepted> {
        self.event(kind).sign().post(base).await?.accepted()
    }
}

/// An event before it is signed.
#[must_use]
pub struct Message<'a> {
    sender: &'a Sender,
    event: Event,
    token: Option<String>,
    issued_at_offset: i64,
}

impl Message<'_> {
    /// Brings the token along.
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Signs it as of so many seconds from now.
    pub fn issued_at_offset(mut self, seconds: i64) -> Self {
        self.issued_at_offset = seconds;
        self
    }

    /// Claims this revision.
    pub fn revision(mut self, revision: &str) -> Self {
        revision.clone_into(&mut self.event.revision);
        self
    }

    /// Claims these addresses and no others.
    pub fn addresses(mut self, addresses: &[&str]) -> Self {
        self.event.addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        self
    }

    /// In another's name.
    pub fn pod(mut self, pod: PodRef) -> Self {
        self.event.pod = pod;
        self
    }

    /// At this place in the order.
    pub fn order(mut self, boot: Boot, seq: Sequence) -> Self {
        self.event.order = Order { boot, seq };
        self
    }

    /// With this state in a heartbeat.
    pub fn ready(mut self, ready: bool) -> Self {
        self.event.ready = ready;
        self
    }

    /// The state began then.
    pub fn observed_at_ms(mut self, at: u64) -> Self {
        self.event.observed_at_ms = at;
        self
    }

    /// Signs it, ready to be posted any number of times.
    pub fn sign(self) -> Letter {
        let now = now_ms() / 1000;
        let issued_at = now.saturating_add_signed(self.issued_at_offset);
        let body = self.sender.key.sign(&self.event, issued_at, self.token.as_deref());
        Letter::new(&self.sender.http, body.into_bytes(), self.token.as_deref())
    }

    /// Signs it after `alter` has changed header and claims: what a broken or hostile sidecar would send.
    ///
    /// # Errors
    /// None in practice: what this changes was made by [`Message::sign`].
    pub fn sign_altered(self, alter: impl FnOnce(&mut Value, &mut Value)) -> Result<Letter> {
        let (sender, token) = (self.sender, self.token.clone());
        let letter = self.sign();
        let text = String::from_utf8(letter.body)?;
        let mut parts = text.split('.').map(|part| BASE64URL.decode(part));
        let (header, claims) = parts.next().zip(parts.next()).context("not a JWS")?;
        let (mut header, mut claims) = (serde_json::from_slice(&header?)?, serde_json::from_slice(&claims?)?);
        alter(&mut header, &mut claims);
        Ok(Letter::new(&sender.http, sender.sign_raw(&header.to_string(), &claims.to_string()), token.as_deref()))
    }
}

impl Sender {
    /// Signs any text as header and claims.
    pub fn sign_raw(&self, header: &str, claims: &str) -> Vec<u8> {
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
        let signature = BASE64URL.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}").into_bytes()
    }

    /// A letter of any bytes.
    pub fn letter(&self, body: impl Into<Vec<u8>>) -> Letter {
        Letter::new(&self.http, body.into(), None)
    }
}

/// A request to `/v1/events`, ready to be sent and sent again.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Its body.
    pub body: Vec<u8>,
    headers: HeaderMap,
    http: reqwest::Client,
}

impl Letter {
    fn new(http: &reqwest::Client, body: Vec<u8>, token: Option<&str>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_MEDIA_TYPE));
        let letter = Self { body, headers, http: http.clone() };
        match token {
            Some(token) => letter.header(AUTHORIZATION, &format!("Bearer {token}")),
            None => letter,
        }
    }

    /// Adds a header beside those that are there.
    ///
    /// # Panics
    /// When `value` cannot be one.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    /// Takes a header away.
    #[must_use]
    pub fn without(mut self, name: &HeaderName) -> Self {
        self.headers.remove(name);
        self
    }

    /// Sends it to an activator's base URL.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn post(&self, base: &str) -> Result<Reply> {
        let request = self.http.post(format!("{base}{EVENTS_PATH}"));
        let request = request.headers(self.headers.clone()).body(self.body.clone());
        Reply::read(request.send().await?).await
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as text.
    pub body: String,
}

impl Reply {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// When it has none.
    pub async fn read(response: reqwest::Response) -> Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Self { status, headers, body: response.text().await? })
    }

    /// The body of a 202.
    ///
    /// # Errors
    /// When it is another status.
    pub fn accepted(&self) -> Result<Accepted> {
        anyhow::ensure!(self.status == 202, "{}: {}", self.status, self.body);
        serde_json::from_str(&self.body).with_context(|| self.body.clone())
    }

    /// What became of an event that was taken.
    ///
    /// # Errors
    /// When it was not.
    pub fn outcome(&self) -> Result<Outcome> {
        Ok(self.accepted()?.result)
    }

    /// The body of a refusal.
    ///
    /// # Errors
    /// When it is none, or tells its sender nothing.
    pub fn problem(&self) -> Result<Problem> {
        anyhow::ensure!(self.status >= 400, "not refused: {} {}", self.status, self.body);
        let problem: Problem = serde_json::from_str(&self.body).with_context(|| self.body.clone())?;
        anyhow::ensure!(problem.description.len() > 10, "no description: {}", self.body);
        Ok(problem)
    }

    /// Checks that it refuses with this status and word.
    ///
    /// # Errors
    /// When it does not.
    pub fn refused(&self, status: u16, err: ErrorCode) -> Result<Problem> {
        let problem = self.problem()?;
        let expected = self.status == status && problem.err == err;
        anyhow::ensure!(expected, "{} {} instead of {status} {err}", self.status, self.body);
        if status == 401 {
            anyhow::ensure!(self.text(&WWW_AUTHENTICATE).starts_with("Bearer"), "401 without challenge");
        }
        if matches!(status, 429 | 503) {
            self.text(&RETRY_AFTER).parse::<u32>().context("no Retry-After")?;
        }
        Ok(problem)
    }

    fn text(&self, name: &HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}
