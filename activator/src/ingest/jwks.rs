//! Step 3: the cluster's signing keys, fetched through the API connection, and the signature check that keeps
//! forged tokens from costing a call. A key is parsed once for each algorithm it may sign with, so a token
//! cannot choose an algorithm of another family. At most one fetch at a time; a failed one keeps the old keys.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use metrics::counter;
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::{debug, warn};

use super::kubernetes::Kubernetes;
use super::token::{Algorithm, UnverifiedToken};
use crate::cluster::ApiError;
use crate::table::owner::Clock;

/// Most keys taken from one document: a cluster has two or three.
const MAX_KEYS: usize = 64;

/// Shortest time between fetches that unknown key ids cause. Without it, made-up ids would be an amplifier
/// towards the API server (k8s#139769).
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(60);

/// Age at which keys are fetched anew.
const REFRESH_AFTER: Duration = Duration::from_secs(300);

/// Shortest time between attempts while there are no keys at all.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// Why a token's signature was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No keys yet, or the last fetch failed and the key may be in what it missed.
    #[error("the cluster's token keys cannot be fetched now")]
    Unavailable,
    /// Nobody in this cluster signs with this key id.
    #[error("the token's kid names no key of this cluster")]
    Unknown,
    /// The key is of another family or bound to another algorithm.
    #[error("the token's alg does not fit the key that its kid names")]
    Algorithm,
    /// The signature is not by that key.
    #[error("the token's signature does not verify")]
    Signature,
}

impl KeyError {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "token_keys_unavailable",
            Self::Unknown => "token_key_unknown",
            Self::Algorithm => "token_key_algorithm",
            Self::Signature => "token_signature",
        }
    }
}

/// Why a fetch brought no keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the API server did not hand out its token keys")]
    Api(#[from] ApiError),
    #[error("the token keys are not a JSON Web Key Set")]
    Json(#[from] serde_json::Error),
    #[error("the JSON Web Key Set holds no RSA, P-256 or P-384 key with a kid")]
    Empty,
}

/// The public keys of one document.
pub(super) struct KeySet {
    by_id: HashMap<String, Vec<(Algorithm, ParsedPublicKey)>>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a document. A key of a kind we do not know is left out, as RFC 7517 §5 has it.
    pub(super) fn parse(json: &[u8]) -> Result<Self, FetchError> {
        let document: Document = serde_json::from_slice(json)?;
        let mut by_id: HashMap<String, Vec<_>> = HashMap::new();
        for jwk in document.keys.into_iter().take(MAX_KEYS) {
            let Ok(jwk) = serde_json::from_value::<Jwk>(jwk) else { continue };
            let keys = jwk.parse();
            if let Some(kid) = jwk.kid.filter(|_| !keys.is_empty()) {
                by_id.entry(kid).or_default().extend(keys);
            }
        }
        if by_id.is_empty() { Err(FetchError::Empty) } else { Ok(Self { by_id }) }
    }

    fn verify(&self, token: &UnverifiedToken<'_>) -> Result<(), KeyError> {
        let keys = self.by_id.get(token.key_id()).ok_or(KeyError::Unknown)?;
        let mut verdict = KeyError::Algorithm;
        for (_, key) in keys.iter().filter(|(algorithm, _)| *algorithm == token.algorithm()) {
            if key.verify_sig(token.signed(), token.signature()).is_ok() {
                return Ok(());
            }
            verdict = KeyError::Signature;
        }
        Err(verdict)
    }
}

impl Jwk {
    /// The key, once for each algorithm that it may sign with: the one in `alg`, else all of its family.
    fn parse(&self) -> Vec<(Algorithm, ParsedPublicKey)> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return Vec::new();
        }
        let candidates: &[Algorithm] = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => &Algorithm::RSA,
            ("EC", Some("P-256")) => &[Algorithm::Es256],
            ("EC", Some("P-384")) => &[Algorithm::Es384],
            _ => &[],
        };
        let wanted = |a: &&Algorithm| self.alg.as_deref().is_none_or(|name| Algorithm::from_name(name) == Some(**a));
        candidates.iter().filter(wanted).filter_map(|&a| Some((a, self.parse_for(a)?))).collect()
    }

    fn parse_for(&self, algorithm: Algorithm) -> Option<ParsedPublicKey> {
        let rsa = |parameters: &'static RsaParameters| {
            let (n, e) = (decode(self.n.as_ref())?, decode(self.e.as_ref())?);
            let trimmed = |bytes: Vec<u8>| bytes.into_iter().skip_while(|&b| b == 0).collect::<Vec<u8>>();
            RsaPublicKeyComponents { n: trimmed(n), e: trimmed(e) }.to_parsed_public_key(parameters).ok()
        };
        let ec = |curve: &'static dyn signature::VerificationAlgorithm| {
            let (x, y) = (decode(self.x.as_ref())?, decode(self.y.as_ref())?);
            ParsedPublicKey::new(curve, [&[4], x.as_slice(), y.as_slice()].concat()).ok()
        };
        match algorithm {
            Algorithm::Rs256 => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::Rs384 => rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::Rs512 => rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::Ps256 => rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::Ps384 => rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::Ps512 => rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Algorithm::Es256 => ec(&ECDSA_P256_SHA256_FIXED),
            Algorithm::Es384 => ec(&ECDSA_P384_SHA384_FIXED),
        }
    }
}

fn decode(part: Option<&String>) -> Option<Vec<u8>> {
    BASE64URL.decode(part?).ok()
}

/// What a fetch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Occasion {
    /// There are no keys yet.
    First,
    /// A token names a key that is not among ours.
    UnknownKey,
    /// The keys have reached [`REFRESH_AFTER`].
    Age,
}

/// When fetches began, on the monotonic clock.
#[derive(Debug, Default)]
struct Fetches {
    last: Option<Duration>,
    for_unknown_key: Option<Duration>,
    last_failed: bool,
}

impl Fetches {
    fn due(&self, occasion: Occasion, now: Duration) -> bool {
        let (last, interval) = match occasion {
            Occasion::First => (self.last, FIRST_INTERVAL),
            Occasion::UnknownKey => (self.for_unknown_key, UNKNOWN_KEY_INTERVAL),
            Occasion::Age if self.last_failed => (self.last, FIRST_INTERVAL),
            Occasion::Age => (self.last, REFRESH_AFTER),
        };
        last.is_none_or(|last| now.saturating_sub(last) >= interval)
    }

    fn begin(&mut self, occasion: Occasion, now: Duration) {
        self.last = Some(now);
        if occasion == Occasion::UnknownKey {
            self.for_unknown_key = Some(now);
        }
    }
}

/// The keys in force and the way to newer ones.
pub(super) struct KeyStore {
    kubernetes: Kubernetes,
    clock: Clock,
    keys: ArcSwapOption<KeySet>,
    /// Counts finished fetches, so that whoever waited for one does not start another.
    finished: AtomicU64,
    fetches: Mutex<Fetches>,
}

impl KeyStore {
    pub(super) fn new(kubernetes: Kubernetes, clock: Clock) -> Self {
        let (keys, finished, fetches) = (ArcSwapOption::empty(), AtomicU64::new(0), Mutex::default());
        Self { kubernetes, clock, keys, finished, fetches }
    }

    /// Checks a token's signature, after a fetch if it is signed with a key we have not seen.
    pub(super) async fn verify(&self, token: &UnverifiedToken<'_>) -> Result<(), KeyError> {
        let seen = self.finished.load(Ordering::Acquire);
        let occasion = match self.verify_now(token) {
            Err(KeyError::Unavailable) => Occasion::First,
            Err(KeyError::Unknown) => Occasion::UnknownKey,
            decided @ (Ok(()) | Err(KeyError::Algorithm | KeyError::Signature)) => return decided,
        };
        let failed = self.fetch(occasion, seen).await;
        match self.verify_now(token) {
            Err(KeyError::Unknown) if failed => Err(KeyError::Unavailable),
            decided => decided,
        }
    }

    /// Fetches the keys if there are none.
    pub(super) async fn warm_up(&self) -> bool {
        if self.keys.load().is_none() {
            self.fetch(Occasion::First, self.finished.load(Ordering::Acquire)).await;
        }
        self.keys.load().is_some()
    }

    /// Fetches the keys anew when they are old.
    pub(super) async fn refresh(&self) {
        self.fetch(Occasion::Age, self.finished.load(Ordering::Acquire)).await;
    }

    fn verify_now(&self, token: &UnverifiedToken<'_>) -> Result<(), KeyError> {
        self.keys.load().as_ref().ok_or(KeyError::Unavailable)?.verify(token)
    }

    /// Fetches, unless somebody has since `seen` or it is too early. True when the last fetch failed.
    async fn fetch(&self, occasion: Occasion, seen: u64) -> bool {
        let mut fetches = self.fetches.lock().await;
        let now = self.clock.now().uptime;
        if self.finished.load(Ordering::Acquire) != seen || !fetches.due(occasion, now) {
            return fetches.last_failed;
        }
        fetches.begin(occasion, now);
        let fetched = match self.kubernetes.fetch_jwks().await {
            Ok(json) => KeySet::parse(&json),
            Err(error) => Err(FetchError::Api(error)),
        };
        fetches.last_failed = fetched.is_err();
        match fetched {
            Ok(keys) => {
                counter!("podlight_jwks_refetch_total", "result" => "fetched").increment(1);
                debug!(keys = keys.by_id.len(), ?occasion, "fetched the cluster's token keys");
                self.keys.store(Some(keys.into()));
            }
            Err(error) => {
                counter!("podlight_jwks_refetch_total", "result" => "failed").increment(1);
                warn!(error = %super::chain(&error), ?occasion, "cannot fetch the cluster's token keys");
            }
        }
        self.finished.fetch_add(1, Ordering::AcqRel);
        fetches.last_failed
    }
}

#[cfg(test)]
mod tests;
