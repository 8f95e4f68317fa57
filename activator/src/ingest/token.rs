//! Step 2: the shape of a ServiceAccount token, read without trusting it and without asking anybody. What passes
//! here may still be forged; what fails here costs no signature check and no call.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use podlight_proto::{AUDIENCE, PodRef, PodUid};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Longest token in bytes. A pod-bound token has about 1 200.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// How far `nbf` may lie ahead, in seconds: the API server's clock and ours. `exp` has no leeway.
const NBF_LEEWAY_SECONDS: u64 = 30;

/// A JWS algorithm (RFC 7518 §3.1) that a cluster may sign tokens with. No `none`, no shared secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
}

impl Algorithm {
    pub(super) const RSA: [Self; 6] = [Self::Rs256, Self::Rs384, Self::Rs512, Self::Ps256, Self::Ps384, Self::Ps512];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            _ => return None,
        })
    }
}

/// What is wrong with a token, as its sender can see by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Longer than 8 KiB.
    #[error("a token has at most 8192 bytes")]
    TooLong,
    /// Not three base64url parts.
    #[error("the token is not a compact JWT: three base64url parts joined by dots")]
    NotCompact,
    /// A header that is not JSON, or demands what we do not do.
    #[error("the token's header is not a JWT header with alg and kid, without crit: {0}")]
    Header(String),
    /// `none`, a shared-secret algorithm, or one never heard of.
    #[error("the token's alg is not one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384")]
    Algorithm,
    /// Claims that are not those of a ServiceAccount token.
    #[error("the token's claims are not those of a bound ServiceAccount token: {0}")]
    Claims(String),
    /// Meant for somebody else.
    #[error("the token's aud does not hold \"podlight\"; project a ServiceAccount token with that audience")]
    Audience,
    /// Out of date.
    #[error("the token has expired")]
    Expired,
    /// Not yet valid.
    #[error("the token's nbf lies in the future")]
    NotYetValid,
    /// Signed for another cluster.
    #[error("the token's iss is not an issuer that this activator accepts")]
    Issuer,
    /// `sub` names another ServiceAccount than the private claims.
    #[error("the token's sub is not system:serviceaccount:<namespace>:<name> of its own claims")]
    Subject,
    /// Bound to no pod.
    #[error("the token is not bound to a pod; project it into the pod instead of minting it by hand")]
    NotOfAPod,
}

impl TokenError {
    /// The metric label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::TooLong => "token_too_long",
            Self::NotCompact => "token_not_compact",
            Self::Header(_) => "token_header",
            Self::Algorithm => "token_algorithm",
            Self::Claims(_) => "token_claims",
            Self::Audience => "token_audience",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Issuer => "token_issuer",
            Self::Subject => "token_subject",
            Self::NotOfAPod => "token_not_of_a_pod",
        }
    }
}

/// SHA-256 of a token: what caches know it by, so that no token is ever stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenHash([u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

/// Which pod a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: PodUid,
}

/// Who a token says it speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The ServiceAccount's namespace, and the pod's.
    pub namespace: String,
    /// The ServiceAccount's name.
    pub service_account: String,
    /// The pod, if the token is bound to one.
    pub pod: Option<TokenPod>,
}

impl Subject {
    /// Whether the token is bound to this life of this pod.
    pub(super) fn is_pod(&self, pod: &PodRef) -> bool {
        let bound = self.pod.as_ref().is_some_and(|p| p.name == **pod.name() && p.uid == *pod.uid());
        bound && self.namespace == **pod.namespace()
    }
}

/// A token of the right shape that nobody has vouched for.
pub(super) struct UnverifiedToken<'t> {
    text: &'t str,
    signed: &'t str,
    signature: Vec<u8>,
    algorithm: Algorithm,
    key_id: String,
    subject: Subject,
    expires_seconds: u64,
}

impl<'t> UnverifiedToken<'t> {
    /// Reads a token. `issuers` empty means that any will do whose key verifies.
    pub(super) fn parse(text: &'t str, issuers: &[String], now_ms: u64) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::NotCompact);
        };
        let signed = text.get(..header.len() + 1 + claims.len()).ok_or(TokenError::NotCompact)?;
        let decode = |part: &str| BASE64URL.decode(part).map_err(|_| TokenError::NotCompact);
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        let header: Header<'_> = serde_json::from_slice(&header).map_err(|e| TokenError::Header(e.to_string()))?;
        let algorithm = Algorithm::from_name(&header.alg).ok_or(TokenError::Algorithm)?;
        if header.crit.is_some() {
            return Err(TokenError::Header("crit".into()));
        }
        let key_id = header.kid.filter(|kid| !kid.is_empty()).ok_or_else(|| TokenError::Header("no kid".into()))?;
        let claims: Claims<'_> = serde_json::from_slice(&claims).map_err(|e| TokenError::Claims(e.to_string()))?;
        claims.check(issuers, now_ms / 1000)?;
        Ok(Self {
            text,
            signed,
            signature,
            algorithm,
            key_id: key_id.into_owned(),
            expires_seconds: claims.exp,
            subject: claims.into_subject()?,
        })
    }

    /// The token, to hand it to the API server.
    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// What the signature covers.
    pub(super) fn signed(&self) -> &[u8] {
        self.signed.as_bytes()
    }

    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Who it says it speaks for.
    pub(super) fn unverified_subject(&self) -> &Subject {
        &self.subject
    }

    /// When it ends, in seconds since the epoch.
    pub(super) fn expires_seconds(&self) -> u64 {
        self.expires_seconds
    }

    /// How long it still lives.
    pub(super) fn lifetime(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.expires_seconds.saturating_mul(1000).saturating_sub(now_ms))
    }

    pub(super) fn hash(&self) -> TokenHash {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, self.text.as_bytes()).as_ref());
        TokenHash(hash)
    }
}

#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<IgnoredAny>,
}

/// What Kubernetes puts into a bound token (`pkg/serviceaccount/claims.go`). Times are whole numbers: a string
/// or a fraction is refused, not skipped.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow)]
    iss: Cow<'a, str>,
    #[serde(borrow)]
    sub: Cow<'a, str>,
    aud: Audience,
    exp: u64,
    nbf: Option<u64>,
    #[serde(borrow, rename = "kubernetes.io")]
    kubernetes: Kubernetes<'a>,
}

#[derive(Deserialize)]
struct Kubernetes<'a> {
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    serviceaccount: Named<'a>,
    #[serde(borrow)]
    pod: Option<PodClaim<'a>>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct PodClaim<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

impl Claims<'_> {
    fn check(&self, issuers: &[String], now: u64) -> Result<(), TokenError> {
        if !self.aud.ours {
            return Err(TokenError::Audience);
        }
        if self.exp <= now {
            return Err(TokenError::Expired);
        }
        if self.nbf.is_some_and(|nbf| nbf > now.saturating_add(NBF_LEEWAY_SECONDS)) {
            return Err(TokenError::NotYetValid);
        }
        if !issuers.is_empty() && !issuers.iter().any(|issuer| *issuer == self.iss) {
            return Err(TokenError::Issuer);
        }
        let Kubernetes { namespace, serviceaccount, .. } = &self.kubernetes;
        let mut sub = self.sub.split(':');
        let parts = [sub.next(), sub.next(), sub.next(), sub.next(), sub.next()];
        let expected = [Some("system"), Some("serviceaccount"), Some(namespace), Some(&serviceaccount.name), None];
        if namespace.is_empty() || serviceaccount.name.is_empty() || parts != expected {
            return Err(TokenError::Subject);
        }
        Ok(())
    }

    fn into_subject(self) -> Result<Subject, TokenError> {
        let Kubernetes { namespace, serviceaccount, pod } = self.kubernetes;
        let pod = match pod {
            None => None,
            Some(pod) => {
                let uid = PodUid::new(&pod.uid).ok_or_else(|| TokenError::Claims("pod.uid is not a uid".into()))?;
                Some(TokenPod { name: pod.name.into_owned(), uid })
            }
        };
        Ok(Subject { namespace: namespace.into_owned(), service_account: serviceaccount.name.into_owned(), pod })
    }
}

/// One audience or several (RFC 7519 §4.1.3).
struct Audience {
    ours: bool,
}

impl<'de> Deserialize<'de> for Audience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Audience;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("aud as a string or an array of strings")
            }

            fn visit_str<E>(self, audience: &str) -> Result<Audience, E> {
                Ok(Audience { ours: audience == AUDIENCE })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut audiences: A) -> Result<Audience, A::Error> {
                let mut ours = false;
                while let Some(audience) = audiences.next_element::<Cow<'de, str>>()? {
                    ours |= audience == AUDIENCE;
                }
                Ok(Audience { ours })
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests;
