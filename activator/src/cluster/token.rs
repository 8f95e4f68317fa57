//! A local issuer of tokens shaped as Kubernetes' bound ServiceAccount tokens, for standalone mode and for tests.
//! Whoever can read the key file can speak for every pod: it is a development tool, never a cluster's issuer.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RsaKeyPair, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use podlight_proto::{AUDIENCE, PodUid};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;

use super::api::Reviewed;

/// What standalone tokens say who issued them, unless told otherwise.
pub const DEFAULT_ISSUER: &str = "https://standalone.podlight.dev";

/// Why there is no key, or no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The key file cannot be read or made.
    #[error("cannot use the issuer key file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key is not PEM with a PKCS#8 private key on P-256 or RSA.
    #[error("the issuer key must be PEM, PKCS#8, P-256 or RSA of at least 2048 bits")]
    Key,
    /// The crypto library failed.
    #[error("cannot make a key")]
    Random,
    /// The token could not be signed.
    #[error("cannot sign a token")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// What a token is to say.
#[derive(Debug, Clone)]
pub struct MintRequest {
    /// Namespace of pod and ServiceAccount.
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// The pod.
    pub pod_name: String,
    /// The pod's uid; [`super::standalone::pod_uid`] for one whose manifest has none.
    pub pod_uid: PodUid,
    /// Whom the token is for.
    pub audience: String,
    /// How long it is good, in seconds.
    pub seconds: u64,
    /// Who issues it.
    pub issuer: String,
}

/// A private key that signs tokens, and its public half.
#[derive(Debug)]
pub struct IssuerKey {
    signing: EncodingKey,
    algorithm: Algorithm,
    kid: String,
    jwk: serde_json::Value,
}

impl IssuerKey {
    /// Reads the key, or makes one on P-256 where there is no file yet (mode 0600).
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        let file = |source| TokenError::File { path: path.to_owned(), source };
        match std::fs::read(path) {
            Ok(pem) => Self::from_pem(&pem),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let pem = generate()?;
                let new = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
                match new.and_then(|mut f| f.write_all(pem.as_bytes())) {
                    Ok(()) => Self::from_pem(pem.as_bytes()),
                    // Somebody else was faster: theirs counts.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        Self::from_pem(&std::fs::read(path).map_err(file)?)
                    }
                    Err(e) => Err(file(e)),
                }
            }
            Err(e) => Err(file(e)),
        }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`TokenError::Key`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, TokenError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| TokenError::Key)?;
        let der = der.secret_pkcs8_der();
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            // An uncompressed point: 4, x, y.
            let point = pair.public_key().as_ref();
            let (x, y) = point.get(1..).and_then(|xy| xy.split_at_checked(32)).ok_or(TokenError::Key)?;
            let public =
                json!({"crv": "P-256", "kty": "EC", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y)});
            return Ok(Self::new(EncodingKey::from_ec_der(der), Algorithm::ES256, "ES256", public));
        }
        let pair = RsaKeyPair::from_pkcs8(der).map_err(|_| TokenError::Key)?;
        let public: &rsa::PublicKey = pair.public_key();
        let parts = RsaPublicKeyComponents::<Vec<u8>>::from(public);
        let public = json!({"e": URL_SAFE_NO_PAD.encode(parts.e), "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(parts.n)});
        let signing = EncodingKey::from_rsa_pem(pem).map_err(|_| TokenError::Key)?;
        Ok(Self::new(signing, Algorithm::RS256, "RS256", public))
    }

    /// `public` holds the members of RFC 7638, which serialise in its order: by name.
    fn new(signing: EncodingKey, algorithm: Algorithm, name: &str, public: serde_json::Value) -> Self {
        let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public.to_string().as_bytes());
        let kid = URL_SAFE_NO_PAD.encode(thumbprint);
        let mut jwk = public;
        jwk["kid"] = json!(kid);
        jwk["alg"] = json!(name);
        jwk["use"] = json!("sig");
        Self { signing, algorithm, kid, jwk }
    }

    /// The JSON Web Key Set that verifies this key's tokens.
    pub fn jwks(&self) -> Vec<u8> {
        json!({"keys": [self.jwk]}).to_string().into_bytes()
    }

    /// Signs a token that is good from `now`, in seconds since the epoch.
    ///
    /// # Errors
    /// [`TokenError::Random`], [`TokenError::Sign`].
    pub fn mint(&self, request: &MintRequest, now: u64) -> Result<String, TokenError> {
        let MintRequest { namespace, service_account, pod_name, pod_uid, audience, seconds, issuer } = request;
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(self.algorithm) };
        let claims = json!({
            "iss": issuer,
            "aud": [audience],
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(*seconds),
            "jti": random_uuid()?,
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": pod_name, "uid": pod_uid},
                "serviceaccount": {"name": service_account, "uid": derived_uuid(&["ServiceAccount", namespace, service_account])},
            },
        });
        jsonwebtoken::encode(&header, &claims, &self.signing).map_err(TokenError::Sign)
    }

    /// Verifies a token of this key: signature, issuer, audience, times. The reason is for the sender.
    pub(super) fn verify(&self, token: &str, issuer: &str) -> Result<Reviewed, String> {
        let mut wanted = Validation::new(self.algorithm);
        wanted.set_audience(&[AUDIENCE]);
        wanted.set_issuer(&[issuer]);
        wanted.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        wanted.validate_nbf = true;
        wanted.leeway = 0;
        let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(self.jwk.clone()).map_err(|e| e.to_string())?;
        let key = DecodingKey::from_jwk(&jwk).map_err(|e| e.to_string())?;
        let verified = jsonwebtoken::decode::<Claims>(token, &key, &wanted).map_err(|e| e.to_string())?;
        let bound = verified.claims.kubernetes;
        let pod = match &bound.pod {
            None => None,
            Some(pod) => Some((pod.name.as_str(), PodUid::new(&pod.uid).ok_or("the pod's uid is malformed")?)),
        };
        let pod = pod.as_ref().map(|(name, uid)| (*name, uid));
        Ok(Reviewed::of_service_account(&bound.namespace, &bound.serviceaccount.name, pod))
    }
}

#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: BoundTo,
}

#[derive(Deserialize)]
struct BoundTo {
    namespace: String,
    pod: Option<BoundPod>,
    serviceaccount: BoundAccount,
}

#[derive(Deserialize)]
struct BoundPod {
    name: String,
    uid: String,
}

#[derive(Deserialize)]
struct BoundAccount {
    name: String,
}

fn generate() -> Result<String, TokenError> {
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    Ok(to_pem(key.map_err(|_| TokenError::Random)?.as_ref()))
}

/// A PKCS#8 private key as PEM (RFC 7468).
fn to_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    // Base64 is ASCII: any split is one between characters.
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    pem
}

/// A random UUID (RFC 9562 §5.4).
fn random_uuid() -> Result<String, TokenError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TokenError::Random)?;
    Ok(uuid(bytes, 4))
}

/// A UUID that depends on `parts` alone (RFC 9562 §5.8, SHA-256).
pub(super) fn derived_uuid(parts: &[&str]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parts.join("/").as_bytes());
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    uuid(bytes, 8)
}

fn uuid(bytes: [u8; 16], version: u8) -> String {
    let mut number = u128::from_be_bytes(bytes);
    number = number & !(0xf << 76) | u128::from(version & 0xf) << 76;
    number = number & !(0x3 << 62) | 0x2 << 62;
    let hex = format!("{number:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests;
