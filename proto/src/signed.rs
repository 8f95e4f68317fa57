//! Signing and verifying: events as compact JWS with Ed25519 (RFC 8417, RFC 7515, RFC 8037). A stage is a type:
//! bytes → [`UnverifiedEvent`] → [`VerifiedEvent`] → [`FreshEvent`]. None can be made but from the one before.

use std::fmt;
use std::net::IpAddr;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::event::{Boot, Event, Kind, Order, PodRef, Port, Sequence, ShapeError};
use crate::reply::ErrorCode;
use crate::{AUDIENCE, BOOT_AHEAD_MS, FRESHNESS_SECONDS, MAX_EVENT_BYTES, strict_json};

const TYPE: &str = "secevent+jwt";
const ALGORITHM: &str = "EdDSA";

/// Encodings of the points of small order, sign bit cleared: y of the eight points, and those of them that have
/// a second, non-canonical encoding below 2^255. One signature by such a "key" fits every message, so it
/// identifies nobody. The same list as libsodium's `ge25519_has_small_order`.
const SMALL_ORDER: [[u8; 32]; 7] = {
    let zero = [0; 32];
    let mut one = zero;
    one[0] = 1;
    let mut minus_one = [0xff; 32];
    minus_one[0] = 0xec;
    minus_one[31] = 0x7f;
    let mut p = minus_one;
    p[0] = 0xed;
    let mut p_plus_one = minus_one;
    p_plus_one[0] = 0xee;
    let order_8 = [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ];
    let minus_order_8 = [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ];
    [zero, one, order_8, minus_order_8, minus_one, p, p_plus_one]
};

/// Why an event was refused. Each says what its sender has to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Longer than [`MAX_EVENT_BYTES`].
    #[error("an event has at most 16384 bytes")]
    TooLarge,
    /// Not three base64url parts.
    #[error("the body must be a compact JWS: three base64url parts without padding or white space, joined by dots")]
    NotCompact,
    /// The header is not what an event's header is.
    #[error("the header must be JSON with typ secevent+jwt, alg EdDSA and jwk, without crit and b64: {0}")]
    Header(String),
    /// The key in the header cannot be trusted to identify anybody.
    #[error("jwk must be kty OKP, crv Ed25519 and x of 32 bytes, without a private part and not of small order: {0}")]
    Key(String),
    /// The claims are not what an event's claims are.
    #[error("the claims are not those of an event: {0}")]
    Claims(String),
    /// `aud` is not the one string [`AUDIENCE`].
    #[error("aud must be the string \"podlight\"")]
    Audience,
    /// A field of the event is out of shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The token's hash differs from `ath`, or `ath` is missing beside a token.
    #[error("ath must be the base64url SHA-256 of the token in the Authorization header")]
    TokenHash,
    /// The signature is not by the key in the header.
    #[error("the signature does not verify with the key in jwk")]
    Signature,
    /// `iat` is too far from the receiver's clock.
    #[error(
        "iat is {0} s off the receiver's clock, more than 30; synchronize the node's clock and sign each attempt anew"
    )]
    Stale(i64),
    /// The boot lies more than a day ahead.
    #[error("boot is more than 24 h ahead of the receiver's clock")]
    BootAhead,
}

impl EventError {
    /// The word for the reply.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge => ErrorCode::TooLarge,
            Self::Key(_) | Self::Signature => ErrorCode::InvalidKey,
            Self::Shape(ShapeError::Issuer) => ErrorCode::InvalidIssuer,
            Self::Audience => ErrorCode::InvalidAudience,
            Self::NotCompact
            | Self::Header(_)
            | Self::Claims(_)
            | Self::Shape(_)
            | Self::TokenHash
            | Self::Stale(_)
            | Self::BootAhead => ErrorCode::InvalidRequest,
        }
    }

    /// The metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotCompact => "not_compact",
            Self::Header(_) => "header",
            Self::Key(_) => "key",
            Self::Claims(_) => "claims",
            Self::Audience => "audience",
            Self::Shape(_) => "shape",
            Self::TokenHash => "token_hash",
            Self::Signature => "signature",
            Self::Stale(_) => "stale",
            Self::BootAhead => "boot_ahead",
        }
    }
}

/// The key that a sidecar signs with: made in memory at its start, never written.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    encoded_header: String,
}

impl SigningKey {
    /// Makes a new key from the system's randomness.
    ///
    /// # Panics
    /// When the system has no randomness to give; a process without it cannot speak TLS either.
    #[must_use]
    pub fn generate() -> Self {
        Self::from_pair(Ed25519KeyPair::generate().expect("the system's random source works"))
    }

    /// Makes the key of a 32-byte seed (RFC 8032 §5.1.5), for test vectors.
    ///
    /// # Panics
    /// Never: every seed of this length is a key.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::from_pair(Ed25519KeyPair::from_seed_unchecked(seed).expect("a seed of 32 bytes is a key"))
    }

    fn from_pair(pair: Ed25519KeyPair) -> Self {
        let x = BASE64URL.encode(pair.public_key());
        let header =
            format!(r#"{{"typ":"{TYPE}","alg":"{ALGORITHM}","jwk":{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}}}"#);
        Self { pair, encoded_header: BASE64URL.encode(header) }
    }

    /// The public half.
    ///
    /// # Panics
    /// Never: an Ed25519 public key has 32 bytes.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    /// Signs an event as of `issued_at_seconds` since the epoch, naming the token that goes with it, if any.
    pub fn sign(&self, event: &Event, issued_at_seconds: u64, token: Option<&str>) -> String {
        let claims = ClaimsOut {
            iss: event.pod.issuer(),
            aud: AUDIENCE,
            iat: issued_at_seconds,
            jti: event.order.to_string(),
            ath: token.map(token_hash),
            events: EventsOut(event),
        };
        let claims = serde_json::to_vec(&claims).expect("claims are plain data");
        let mut jws = String::with_capacity(self.encoded_header.len() + claims.len() * 4 / 3 + 96);
        jws.push_str(&self.encoded_header);
        jws.push('.');
        BASE64URL.encode_string(claims, &mut jws);
        let signature = self.pair.sign(jws.as_bytes());
        jws.push('.');
        BASE64URL.encode_string(signature, &mut jws);
        jws
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public_key().thumbprint())
    }
}

/// `ath`: base64url of the SHA-256 of a token (RFC 9449 §4.2).
pub fn token_hash(token: &str) -> String {
    BASE64URL.encode(digest::digest(&digest::SHA256, token.as_bytes()))
}

#[derive(Serialize)]
struct ClaimsOut<'a> {
    iss: String,
    aud: &'static str,
    iat: u64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ath: Option<String>,
    events: EventsOut<'a>,
}

struct EventsOut<'a>(&'a Event);

impl Serialize for EventsOut<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            boot: Boot,
            seq: Sequence,
            revision: &'a str,
            addresses: &'a [IpAddr],
            ports: &'a [Port],
            ready: bool,
            observed_at_ms: u64,
        }
        let Event { order, kind, revision, addresses, ports, ready, observed_at_ms, .. } = self.0;
        let Order { boot, seq } = *order;
        let body = Body { boot, seq, revision, addresses, ports, ready: *ready, observed_at_ms: *observed_at_ms };
        serializer.collect_map([(kind.uri(), body)])
    }
}

/// An Ed25519 public key that is not of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the 32 bytes of a key; `None` for a point of small order.
    pub fn new(bytes: [u8; 32]) -> Option<Self> {
        let mut y = bytes;
        y[31] &= 0x7f;
        (!SMALL_ORDER.contains(&y)).then_some(Self(bytes))
    }

    /// The key's JWK thumbprint (RFC 7638, RFC 8037 §2).
    pub fn thumbprint(&self) -> Thumbprint {
        let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, BASE64URL.encode(self.0));
        let hash = digest::digest(&digest::SHA256, jwk.as_bytes());
        Thumbprint(BASE64URL.encode(hash))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.thumbprint())
    }
}

/// A name for a key that is safe to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbprint(String);

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event of the right shape that nobody has vouched for.
#[derive(Debug, Clone)]
pub struct UnverifiedEvent {
    event: Event,
    key: PublicKey,
    issued_at_seconds: u64,
    ath: Option<String>,
    jws: Vec<u8>,
    signed_len: usize,
    signature: [u8; 64],
}

impl UnverifiedEvent {
    /// Reads the body of a request. Costs no cryptography.
    ///
    /// # Errors
    /// Every [`EventError`] but `TokenHash`, `Signature`, `Stale` and `BootAhead`.
    pub fn parse(body: &[u8]) -> Result<Self, EventError> {
        if body.len() > MAX_EVENT_BYTES {
            return Err(EventError::TooLarge);
        }
        let mut parts = body.split(|&b| b == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(EventError::NotCompact);
        };
        let signed_len = header.len() + 1 + claims.len();
        let decode = |part: &[u8]| BASE64URL.decode(part).map_err(|_| EventError::NotCompact);
        let key = parse_header(&decode(header)?)?;
        let claims = decode(claims)?;
        let signature = decode(signature)?.try_into().map_err(|_| EventError::Signature)?;
        let claims: ClaimsIn<'_> = strict_json::from_slice(&claims).map_err(|e| EventError::Claims(e.to_string()))?;
        if claims.aud != Audience::Ours {
            return Err(EventError::Audience);
        }
        let issued_at_seconds = claims.iat;
        let ath = claims.ath.map(str::to_owned);
        let event = claims.into_event()?;
        Ok(Self { event, key, issued_at_seconds, ath, jws: body.to_vec(), signed_len, signature })
    }

    /// The pod the event claims to speak for.
    pub fn unverified_pod(&self) -> &PodRef {
        &self.event.pod
    }

    /// The event as claimed.
    pub fn unverified_event(&self) -> &Event {
        &self.event
    }

    /// The key the event says it is signed with.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Checks that the event was made to go with `token`.
    ///
    /// # Errors
    /// [`EventError::TokenHash`] when it was not.
    pub fn check_token(&self, token: &str) -> Result<(), EventError> {
        if self.ath.as_deref() == Some(token_hash(token).as_str()) { Ok(()) } else { Err(EventError::TokenHash) }
    }

    /// Checks the signature: the one costly step.
    ///
    /// # Errors
    /// [`EventError::Signature`] when it is not by the key in the header.
    pub fn verify(self) -> Result<VerifiedEvent, EventError> {
        let signed = self.jws.get(..self.signed_len).ok_or(EventError::Signature)?;
        UnparsedPublicKey::new(&ED25519, &self.key.0)
            .verify(signed, &self.signature)
            .map_err(|_| EventError::Signature)?;
        Ok(VerifiedEvent { event: self.event, key: self.key, issued_at_seconds: self.issued_at_seconds })
    }
}

/// An event that the holder of [`VerifiedEvent::key`] signed, at some time.
#[derive(Debug, Clone)]
pub struct VerifiedEvent {
    event: Event,
    key: PublicKey,
    issued_at_seconds: u64,
}

impl VerifiedEvent {
    /// Who signed it.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Checks `iat` and the boot against the receiver's clock. A state that is said to have begun after the
    /// event was signed counts as begun then.
    ///
    /// # Errors
    /// [`EventError::Stale`] and [`EventError::BootAhead`].
    pub fn fresh(self, now_ms: u64) -> Result<FreshEvent, EventError> {
        let now = now_ms / 1000;
        if self.issued_at_seconds.abs_diff(now) > FRESHNESS_SECONDS {
            let off = i64::try_from(i128::from(self.issued_at_seconds) - i128::from(now)).unwrap_or(i64::MAX);
            return Err(EventError::Stale(off));
        }
        let mut event = self.event;
        if u64::from(event.order.boot) > now_ms.saturating_add(BOOT_AHEAD_MS) {
            return Err(EventError::BootAhead);
        }
        if event.observed_at_ms / 1000 > self.issued_at_seconds {
            event.observed_at_ms = self.issued_at_seconds * 1000;
        }
        Ok(FreshEvent { event, key: self.key })
    }
}

/// An event signed by its key within the last [`FRESHNESS_SECONDS`].
#[derive(Debug, Clone)]
pub struct FreshEvent {
    event: Event,
    key: PublicKey,
}

impl FreshEvent {
    /// What it says.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Who signed it.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// What it says, by value.
    pub fn into_event(self) -> Event {
        self.event
    }
}

fn parse_header(json: &[u8]) -> Result<PublicKey, EventError> {
    #[derive(Deserialize)]
    struct Header<'a> {
        typ: &'a str,
        alg: &'a str,
        #[serde(borrow)]
        jwk: Jwk<'a>,
        #[serde(default)]
        crit: Present,
        #[serde(default)]
        b64: Present,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Jwk<'a> {
        kty: &'a str,
        crv: &'a str,
        x: &'a str,
        #[serde(default)]
        d: Present,
    }
    let header: Header<'_> = strict_json::from_slice(json).map_err(|e| EventError::Header(e.to_string()))?;
    for (valid, what) in [
        (header.typ == TYPE, "typ"),
        (header.alg == ALGORITHM, "alg"),
        (!header.crit.0, "crit"),
        (!header.b64.0, "b64"),
    ] {
        if !valid {
            return Err(EventError::Header(what.into()));
        }
    }
    let Jwk { kty, crv, x, d } = header.jwk;
    for (valid, what) in [(kty == "OKP", "kty"), (crv == "Ed25519", "crv"), (!d.0, "d")] {
        if !valid {
            return Err(EventError::Key(what.into()));
        }
    }
    let x: Option<[u8; 32]> = BASE64URL.decode(x).ok().and_then(|x| x.try_into().ok());
    let x = x.ok_or_else(|| EventError::Key("x".into()))?;
    PublicKey::new(x).ok_or_else(|| EventError::Key("small order".into()))
}

/// Whether a member is there at all, `null` included.
#[derive(Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

#[derive(Deserialize)]
struct ClaimsIn<'a> {
    #[serde(borrow)]
    iss: std::borrow::Cow<'a, str>,
    aud: Audience,
    iat: u64,
    jti: &'a str,
    ath: Option<&'a str>,
    #[serde(borrow)]
    events: EventsIn<'a>,
}

impl ClaimsIn<'_> {
    fn into_event(self) -> Result<Event, EventError> {
        let pod = PodRef::from_issuer(&self.iss)?;
        let kind = Kind::from_uri(self.events.uri)
            .ok_or_else(|| EventError::Claims(format!("unknown event {:?}", self.events.uri)))?;
        let body = self.events.body;
        let order = Order { boot: body.boot, seq: body.seq };
        if self.jti != order.to_string() {
            return Err(EventError::Claims("jti must be <boot>-<seq>".into()));
        }
        // `IpAddr` knows no zone, so an address with one does not parse.
        let addresses: Result<Vec<IpAddr>, _> = body.addresses.iter().map(|a| a.parse()).collect();
        let ports = body.ports.into_iter().map(|PortIn { name, port }| Port { name: name.into_owned(), port });
        let event = Event {
            pod,
            order,
            kind,
            revision: body.revision.into_owned(),
            addresses: addresses.map_err(|_| ShapeError::Addresses)?,
            ports: ports.collect(),
            ready: body.ready,
            observed_at_ms: body.observed_at_ms,
        };
        Ok(event.normalized()?)
    }
}

#[derive(PartialEq, Eq)]
enum Audience {
    Ours,
    Other,
}

impl<'de> Deserialize<'de> for Audience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let audience = serde_json::Value::deserialize(deserializer)?;
        Ok(if audience.as_str() == Some(AUDIENCE) { Self::Ours } else { Self::Other })
    }
}

#[derive(Deserialize)]
struct BodyIn<'a> {
    boot: Boot,
    seq: Sequence,
    #[serde(borrow)]
    revision: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    addresses: Vec<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    ports: Vec<PortIn<'a>>,
    ready: bool,
    observed_at_ms: u64,
}

#[derive(Deserialize)]
struct PortIn<'a> {
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    port: u16,
}

/// Exactly one event, as RFC 8417 §2.2 has it keyed by its URI.
struct EventsIn<'a> {
    uri: &'a str,
    body: BodyIn<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for EventsIn<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = EventsIn<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("events with exactly one member")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut events: A) -> Result<Self::Value, A::Error> {
                let one = events.next_entry::<&'de str, BodyIn<'de>>()?;
                let (Some((uri, body)), None) = (one, events.next_key::<IgnoredAny>()?) else {
                    return Err(serde::de::Error::invalid_length(0, &self));
                };
                Ok(EventsIn { uri, body })
            }
        }
        deserializer.deserialize_map(One)
    }
}
