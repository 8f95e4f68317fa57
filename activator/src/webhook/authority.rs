//! Keys and certificates over time: a CA, its successor before it ends, and server certificates by it. Pure: time is an
//! argument, only keys are drawn. A successor is trusted for [`OVERLAP`] before it signs anything, and a CA that no longer
//! signs is trusted until it ends, so that no client ever meets a certificate that it does not trust yet.

use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, crypto::aws_lc_rs};

use crate::server::validity;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Validity of a CA: long, since its certificate has to reach every namespace; short enough that its rotation is lived through.
const CA_FOR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A CA gets its successor this long before its end: what it signed last ends before it does.
const SUCCESSOR_BEFORE: Duration = Duration::from_secs(120 * 24 * 3600);

/// How long a successor is trusted before it signs. Kubelets bring a ConfigMap to the pods within minutes.
pub(super) const OVERLAP: Duration = DAY;

/// Validity of a server certificate.
const SERVER_FOR: Duration = Duration::from_secs(90 * 24 * 3600);

/// A server certificate is replaced this long before its end.
pub(super) const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Certificates begin to be valid this much earlier, for clients whose clock is behind.
const SKEW: Duration = Duration::from_secs(3600);

/// What each CA is called. A signature tells one from another.
const CA_NAME: &str = "podlight CA";

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    /// By the library that makes them.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// A certificate and its key, as PEM. The key is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What is to hold, and whether that is news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Due<T> {
    pub(super) value: T,
    pub(super) changed: bool,
}

/// The CAs of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    /// Signs.
    pub(super) current: Pair,
    /// Will sign.
    pub(super) next: Option<Pair>,
    /// Certificates of those that signed, newest first.
    pub(super) old: Vec<String>,
}

impl Authority {
    fn new(now: SystemTime) -> Result<Self, AuthorityError> {
        Ok(Self { current: make_ca(now)?, next: None, old: Vec::new() })
    }

    /// What clients are to trust: every CA whose certificates may be met.
    pub(super) fn bundle(&self) -> String {
        let next = self.next.iter().map(|pair| pair.certificate.as_str());
        let all =
            [self.current.certificate.as_str()].into_iter().chain(next).chain(self.old.iter().map(String::as_str));
        all.map(|pem| format!("{}\n", pem.trim_end())).collect()
    }

    /// What is to hold now.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(super) fn due(held: Option<&Self>, now: SystemTime) -> Result<Due<Self>, AuthorityError> {
        let Some(held) = held.filter(|held| held.current.fits() && left(&held.current.certificate, now).is_some())
        else {
            return Ok(Due { value: Self::new(now)?, changed: true });
        };
        let mut due = held.clone();
        due.old.retain(|certificate| left(certificate, now).is_some());
        due.next = due.next.filter(|next| next.fits() && left(&next.certificate, now).is_some());
        match &due.next {
            Some(next) if left(&next.certificate, now).is_some_and(|left| left + OVERLAP <= CA_FOR) => {
                let next = next.clone();
                due.next = None;
                due.old.insert(0, std::mem::replace(&mut due.current, next).certificate);
            }
            None if left(&due.current.certificate, now).is_some_and(|left| left <= SUCCESSOR_BEFORE) => {
                due.next = Some(make_ca(now)?);
            }
            Some(_) | None => {}
        }
        Ok(Due { changed: due != *held, value: due })
    }

    /// The server certificate that is to be shown now: the one that is held if clients that trust the CA accept it for
    /// each of its names, now and as long as it takes to replace it.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(super) fn server_due(
        &self,
        held: Option<&Pair>,
        names: &[String],
        now: SystemTime,
    ) -> Result<Due<Pair>, AuthorityError> {
        let later = now + RENEW_BEFORE;
        let good = |held: &&Pair| held.fits() && names.iter().all(|name| accepted(&self.current, held, name, later));
        match held.filter(good) {
            Some(held) => Ok(Due { value: held.clone(), changed: false }),
            None => Ok(Due { value: make_server(&self.current, names, now)?, changed: true }),
        }
    }
}

impl Pair {
    /// Whether both can be read and belong together.
    fn fits(&self) -> bool {
        self.der()
            .is_some_and(|(chain, key)| CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).is_ok())
    }

    /// Both as a server needs them.
    pub(super) fn der(&self) -> Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).ok()?;
        Some((chain, key))
    }
}

/// How long a certificate is still valid; none when it is not, or is no certificate.
fn left(certificate: &str, now: SystemTime) -> Option<Duration> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(validity::not_after(&der)?);
    end.duration_since(now).ok().filter(|left| !left.is_zero())
}

/// Whether a client that trusts this CA alone accepts the server under this name at that time.
fn accepted(ca: &Pair, server: &Pair, name: &str, at: SystemTime) -> bool {
    let accept = || {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.certificate.as_bytes()).ok()?).ok()?;
        let provider = aws_lc_rs::default_provider().into();
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().ok()?;
        let (chain, _) = server.der()?;
        let (certificate, intermediates) = chain.split_first()?;
        // A name under the wildcard stands for all of them.
        let asked = name.strip_prefix("*.").map_or_else(|| name.to_owned(), |rest| format!("any.{rest}"));
        let (asked, at) = (ServerName::try_from(asked).ok()?, at.duration_since(SystemTime::UNIX_EPOCH).ok()?);
        let at = UnixTime::since_unix_epoch(at);
        verifier.verify_server_cert(certificate, intermediates, &asked, &[], at).ok()
    };
    accept().is_some()
}

fn dated(
    mut params: rcgen::CertificateParams,
    name: &str,
    now: SystemTime,
    until: SystemTime,
) -> rcgen::CertificateParams {
    params.not_before = (now - SKEW).into();
    params.not_after = until.into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
}

fn ca_params(now: SystemTime) -> Result<rcgen::CertificateParams, rcgen::Error> {
    let mut params = dated(rcgen::CertificateParams::new(Vec::new())?, CA_NAME, now, now + CA_FOR);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn make_ca(now: SystemTime) -> Result<Pair, AuthorityError> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = ca_params(now)?.self_signed(&key)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn make_server(ca: &Pair, names: &[String], now: SystemTime) -> Result<Pair, AuthorityError> {
    // Of a CA's certificate nothing but its name and its key goes into what it signs.
    let issuer = rcgen::Issuer::new(ca_params(now)?, rcgen::KeyPair::from_pem(&ca.key)?);
    let end = now + left(&ca.certificate, now).unwrap_or_default().min(SERVER_FOR);
    let mut params = dated(rcgen::CertificateParams::new(names.to_vec())?, "podlight", now, end);
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests;
