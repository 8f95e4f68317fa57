//! The control plane's keys: an authority, the API server's certificate, and the RSA keys of service account tokens.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SigningKey,
};

pub(super) const AUTHORITY_FILE: &str = "ca.crt";
pub(super) const SERVER_CERTIFICATE_FILE: &str = "server.crt";
pub(super) const SERVER_KEY_FILE: &str = "server.key";
pub(super) const SIGNING_KEY_FILE: &str = "service-account.key";
/// Public keys, the current one first; the API server accepts, and lists in its JWKS, all of them.
pub(super) const VERIFYING_KEYS_FILE: &str = "service-account.pub";

#[derive(Debug)]
pub(super) struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    token_key: KeyPair,
}

impl Pki {
    /// Makes all keys and writes them into `folder`.
    pub(super) fn generate(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "podlight-e2e");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_key = KeyPair::generate()?;
        let server = params.signed_by(&server_key, &authority)?;

        fs::write(folder.join(AUTHORITY_FILE), authority.pem())?;
        fs::write(folder.join(SERVER_CERTIFICATE_FILE), server.pem())?;
        fs::write(folder.join(SERVER_KEY_FILE), server_key.serialize_pem())?;
        let token_key = generate_token_key(folder)?;
        Ok(Self { authority, token_key })
    }

    pub(super) fn authority_pem(&self) -> String {
        self.authority.pem()
    }

    pub(super) fn authority_der(&self) -> Vec<u8> {
        self.authority.der().to_vec()
    }

    pub(super) fn token_key_pem(&self) -> String {
        self.token_key.public_key_pem()
    }

    pub(super) fn rotate_token_key(&mut self, folder: &Path) -> Result<()> {
        self.token_key = generate_token_key(folder)?;
        Ok(())
    }

    /// The RS256 signature of `message` by the key that signs tokens, base64url.
    pub(super) fn sign(&self, message: &str) -> Result<String> {
        Ok(BASE64_URL_SAFE_NO_PAD.encode(self.token_key.sign(message.as_bytes())?))
    }
}

/// RSA, since it is what clusters sign with: tokens come out as RS256.
fn generate_token_key(folder: &Path) -> Result<KeyPair> {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    let verifying_keys = folder.join(VERIFYING_KEYS_FILE);
    let older = fs::read_to_string(&verifying_keys).unwrap_or_default();
    fs::write(verifying_keys, format!("{}\n{older}", key.public_key_pem()))?;
    fs::write(folder.join(SIGNING_KEY_FILE), key.serialize_pem())?;
    Ok(key)
}

/// 256 bits from the kernel, base64url.
pub(super) fn random_token() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("no randomness")?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}
