//! What the tests of the pipeline share: a cluster that does as it is told and counts what it is asked, the keys
//! that sign its tokens, and pods.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use podlight_proto::{PodRef, PodUid};
use serde_json::{Value, json};

use super::locked;
use crate::cluster::api::CallFailure;
use crate::cluster::{ApiError, Reviewed};
use crate::table::entry::{Labels, Observation, Phase};

pub(super) const ISSUER: &str = "https://kubernetes.default.svc";

static RSA: LazyLock<[RsaKeyPair; 2]> =
    LazyLock::new(|| std::array::from_fn(|_| RsaKeyPair::generate(KeySize::Rsa2048).expect("randomness")));
static EC: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("randomness"));

/// A key that signs tokens. The kid of each is its name here.
#[derive(Debug, Clone, Copy)]
pub(super) enum TokenKey {
    First,
    Second,
    Curve,
}

impl TokenKey {
    pub(super) fn kid(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
            Self::Curve => "curve",
        }
    }

    pub(super) fn jwk(self) -> Value {
        let rsa = |pair: &RsaKeyPair| {
            let parts = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
            json!({"kty": "RSA", "kid": self.kid(), "n": BASE64URL.encode(parts.n), "e": BASE64URL.encode(parts.e)})
        };
        match self {
            Self::First => rsa(&RSA[0]),
            Self::Second => rsa(&RSA[1]),
            Self::Curve => {
                let (x, y) = EC.public_key().as_ref()[1..].split_at(32);
                let (x, y) = (BASE64URL.encode(x), BASE64URL.encode(y));
                json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid(), "x": x, "y": y})
            }
        }
    }

    /// Signs with the algorithm that `alg` in the header names, else with the key's own; the header is as given.
    pub(super) fn sign(self, header: &Value, claims: &Value) -> String {
        let encode = |part: &Value| BASE64URL.encode(part.to_string());
        let text = format!("{}.{}", encode(header), encode(claims));
        let random = SystemRandom::new();
        let rsa = |pair: &RsaKeyPair| {
            let mut signature = vec![0; pair.public_modulus_len()];
            let padding: &'static dyn aws_lc_rs::signature::RsaEncoding =
                if header["alg"] == "PS256" { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
            pair.sign(padding, &random, text.as_bytes(), &mut signature).expect("signs");
            signature
        };
        let signature = match self {
            Self::First => rsa(&RSA[0]),
            Self::Second => rsa(&RSA[1]),
            Self::Curve => EC.sign(&random, text.as_bytes()).expect("signs").as_ref().to_vec(),
        };
        format!("{text}.{}", BASE64URL.encode(signature))
    }

    /// Signs as an API server would.
    pub(super) fn mint(self, claims: &Value) -> String {
        let alg = if matches!(self, Self::Curve) { "ES256" } else { "RS256" };
        self.sign(&json!({"alg": alg, "kid": self.kid()}), claims)
    }
}

pub(super) fn jwks(keys: &[TokenKey]) -> Vec<u8> {
    let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
    json!({"keys": keys}).to_string().into_bytes()
}

/// The claims of a token that the kubelet projects into `pod`, good for ten minutes.
pub(super) fn claims(pod: &PodRef, service_account: &str, now_seconds: u64) -> Value {
    let namespace = &**pod.namespace();
    json!({
        "iss": ISSUER, "aud": ["podlight"], "iat": now_seconds, "nbf": now_seconds, "exp": now_seconds + 600,
        "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": service_account, "uid": "sa"},
            "pod": {"name": &**pod.name(), "uid": pod.uid().as_str()},
        },
    })
}

pub(super) fn pod(name: &str) -> PodRef {
    PodRef::new("shop", name, &format!("uid-{name}")).expect("a pod")
}

/// A running pod of the ServiceAccount `web` at 10.0.0.1 and fd00::1, of revision r1.
pub(super) fn observation(pod: &PodRef) -> Observation {
    Observation {
        pod: pod.clone(),
        resource_version: 1,
        service_account: "web".into(),
        phase: Phase::Alive,
        terminating_since_ms: None,
        addresses: vec!["10.0.0.1".parse().expect("an address"), "fd00::1".parse().expect("an address")],
        labels: Labels::new(),
        revision: "r1".into(),
        ready: None,
        gates_open: true,
        has_exec_probe: false,
        has_readiness_probe: true,
        ports: Vec::new(),
    }
}

pub(super) fn unavailable() -> ApiError {
    ApiError::Unavailable(Arc::new(CallFailure::Timeout(Duration::from_secs(2))))
}

/// What a review is to say.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReviewScript {
    /// As the token's claims have it.
    Accept,
    /// That it is somebody else's.
    Other,
    Reject,
    Fail,
    /// As the claims have it, after so many seconds.
    AcceptAfter(u64),
}

#[derive(Debug)]
struct State {
    watched: HashMap<PodUid, Arc<Observation>>,
    live: HashMap<String, Arc<Observation>>,
    synced: bool,
    reachable: bool,
    jwks: Option<Vec<u8>>,
    review: ReviewScript,
}

/// A cluster that does as it is told.
#[derive(Debug)]
pub(super) struct Scripted {
    state: Mutex<State>,
    pub(super) reviews: AtomicUsize,
    pub(super) gets: AtomicUsize,
    pub(super) key_fetches: AtomicUsize,
}

impl Scripted {
    /// Synced, reachable, with the first token key and no pods.
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            watched: HashMap::new(),
            live: HashMap::new(),
            synced: true,
            reachable: true,
            jwks: Some(jwks(&[TokenKey::First, TokenKey::Curve])),
            review: ReviewScript::Accept,
        };
        let [reviews, gets, key_fetches] = std::array::from_fn(|_| AtomicUsize::new(0));
        Arc::new(Self { state: Mutex::new(state), reviews, gets, key_fetches })
    }

    /// Lets the watch show a pod, and a GET find it.
    pub(super) fn show(&self, observation: Observation) {
        let observation = Arc::new(observation);
        locked(&self.state).watched.insert(*observation.pod.uid(), Arc::clone(&observation));
        self.show_live(&observation);
    }

    /// Lets a GET find a pod that the watch does not show.
    pub(super) fn show_live(&self, observation: &Arc<Observation>) {
        locked(&self.state).live.insert(observation.pod.name().to_string(), Arc::clone(observation));
    }

    pub(super) fn delete(&self, pod: &PodRef) {
        let mut state = locked(&self.state);
        state.watched.remove(pod.uid());
        state.live.remove(&**pod.name());
    }

    pub(super) fn set_synced(&self, synced: bool) {
        locked(&self.state).synced = synced;
    }

    pub(super) fn set_reachable(&self, reachable: bool) {
        locked(&self.state).reachable = reachable;
    }

    /// None: the keys cannot be fetched.
    pub(super) fn set_keys(&self, keys: Option<&[TokenKey]>) {
        locked(&self.state).jwks = keys.map(jwks);
    }

    pub(super) fn set_review(&self, review: ReviewScript) {
        locked(&self.state).review = review;
    }

    pub(super) fn pod(&self, uid: &PodUid) -> Option<Arc<Observation>> {
        locked(&self.state).watched.get(uid).cloned()
    }

    pub(super) fn synced(&self) -> bool {
        locked(&self.state).synced
    }

    pub(super) fn reachable(&self) -> bool {
        locked(&self.state).reachable
    }

    pub(super) async fn review_token(&self, token: &str) -> Result<Reviewed, ApiError> {
        self.reviews.fetch_add(1, Ordering::SeqCst);
        let script = locked(&self.state).review;
        tokio::task::yield_now().await;
        let claims = BASE64URL.decode(token.split('.').nth(1).expect("three parts")).expect("base64url");
        let claims: Value = serde_json::from_slice(&claims).expect("claims");
        let text = |path: &str| claims.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let uid = PodUid::new(&text("/kubernetes.io/pod/uid"));
        let name = text("/kubernetes.io/pod/name");
        let pod = uid.as_ref().map(|uid| (name.as_str(), uid));
        let (namespace, account) = (text("/kubernetes.io/namespace"), text("/kubernetes.io/serviceaccount/name"));
        match script {
            ReviewScript::Accept => Ok(Reviewed::of_service_account(&namespace, &account, pod)),
            ReviewScript::Other => Ok(Reviewed::of_service_account(&namespace, "other", pod)),
            ReviewScript::Reject => Err(ApiError::Rejected("it said no".into())),
            ReviewScript::Fail => Err(unavailable()),
            ReviewScript::AcceptAfter(seconds) => {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(Reviewed::of_service_account(&namespace, &account, pod))
            }
        }
    }

    pub(super) async fn fetch_pod(&self, namespace: &str, name: &str) -> Result<Option<Arc<Observation>>, ApiError> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        assert_eq!(namespace, "shop");
        let state = locked(&self.state);
        if state.reachable { Ok(state.live.get(name).cloned()) } else { Err(unavailable()) }
    }

    pub(super) async fn fetch_jwks(&self) -> Result<Vec<u8>, ApiError> {
        self.key_fetches.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        locked(&self.state).jwks.clone().ok_or_else(unavailable)
    }
}
