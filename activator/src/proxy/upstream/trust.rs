//! Whom to believe that it is a backend: CA certificates from a file, or from Secrets that targets name, and the
//! client certificate to show. Without a CA there is no connection: nothing is ever sent unverified.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use metrics::counter;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::server::tls::{Files, LOOK_EVERY, Stamp, TlsError};

/// The name of HTTP/2 in the handshake.
pub(super) const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// A Secret with `ca.crt`, by namespace and name.
type SecretName = (Arc<str>, Arc<str>);

/// The name that a connection is verified for, and how.
#[derive(Debug, Clone)]
pub(in crate::proxy) struct Name {
    pub(super) name: Arc<str>,
    pub(super) config: Arc<ClientConfig>,
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.config, &other.config)
    }
}

impl Eq for Name {}

/// The same trust with each of the offers in the handshake.
#[derive(Debug, Clone)]
struct Configs {
    any: Arc<ClientConfig>,
    /// For requests that change the protocol, which HTTP/2 has no way for.
    http1: Arc<ClientConfig>,
}

/// CA certificates, and how connections are verified with them.
#[derive(Debug, Clone)]
struct Authority {
    roots: Arc<RootCertStore>,
    configs: Configs,
}

#[derive(Debug, Clone, Default)]
struct Current {
    from_file: Option<Authority>,
    from_secrets: HashMap<SecretName, Authority>,
}

/// What connections are verified with is made anew only where it changes: what was verified before is not used again.
#[derive(Debug, Default)]
struct Sources {
    current: Current,
    identity: Option<Identity>,
}

#[derive(Debug)]
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Whom to believe. Shared by all workers.
#[derive(Debug)]
pub struct Trust {
    ca: Option<PathBuf>,
    identity: Option<Files>,
    sources: Mutex<Sources>,
    current: ArcSwap<Current>,
}

impl Trust {
    /// With the CA certificates of a file and with the certificate to show, where there are any.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used.
    pub fn open(ca: Option<PathBuf>, identity: Option<Files>) -> Result<Self, TlsError> {
        let trust = Self { ca, identity, sources: Mutex::default(), current: ArcSwap::default() };
        trust.load()?;
        Ok(trust)
    }

    /// Takes what a Secret has under `ca.crt`; none once it is gone.
    ///
    /// # Errors
    /// [`TlsError`] when there is no certificate in it; what was there before stays.
    pub fn set_secret(&self, namespace: &str, name: &str, pem: Option<&[u8]>) -> Result<(), TlsError> {
        let roots = pem.map(|pem| roots(CertificateDer::pem_slice_iter(pem), Path::new(name))).transpose()?;
        let mut sources = self.lock();
        let key = (namespace.into(), name.into());
        match roots {
            Some(roots)
                if sources.current.from_secrets.get(&key).is_some_and(|held| held.roots.roots == roots.roots) =>
            {
                return Ok(());
            }
            Some(roots) => {
                let authority = Authority::new(roots, sources.identity.as_ref())?;
                sources.current.from_secrets.insert(key, authority);
            }
            None => drop(sources.current.from_secrets.remove(&key)),
        }
        self.current.store(Arc::new(sources.current.clone()));
        Ok(())
    }

    /// Reads the files again whenever they change. Never returns.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = self.stamps();
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let stamps = self.stamps();
            if stamps != seen {
                seen = stamps;
                self.reload();
            }
        }
    }

    /// How to verify a backend of a target in this namespace; why not, when there is no CA.
    pub(in crate::proxy) fn name(
        &self,
        namespace: &Arc<str>,
        server_name: &Arc<str>,
        ca_secret: Option<&Arc<str>>,
        http1_only: bool,
    ) -> Result<Name, String> {
        let current = self.current.load();
        let Authority { configs, .. } = match ca_secret {
            None => current.from_file.as_ref().ok_or_else(|| "no CA is configured".to_owned())?,
            Some(secret) => current
                .from_secrets
                .get(&(Arc::clone(namespace), Arc::clone(secret)))
                .ok_or_else(|| format!("the Secret {secret} with the CA is not there"))?,
        };
        let config = Arc::clone(if http1_only { &configs.http1 } else { &configs.any });
        Ok(Name { name: Arc::clone(server_name), config })
    }

    fn stamps(&self) -> [Option<Stamp>; 3] {
        let identity = self.identity.as_ref();
        [
            self.ca.as_deref().and_then(Stamp::of),
            identity.and_then(|files| Stamp::of(&files.certificate)),
            identity.and_then(|files| Stamp::of(&files.key)),
        ]
    }

    fn reload(&self) {
        let result = match self.load() {
            Ok(()) => "ok",
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the CA or certificate for backends cannot be used; the one before stays");
                "failed"
            }
        };
        counter!("podlight_proxy_trust_reload_total", "result" => result).increment(1);
    }

    fn load(&self) -> Result<(), TlsError> {
        let pem = |source| TlsError::Pem { what: "a certificate", path: self.ca.clone().unwrap_or_default(), source };
        let from_file = match &self.ca {
            Some(path) => Some(roots(CertificateDer::pem_file_iter(path).map_err(pem)?, path)?),
            None => None,
        };
        let identity = match &self.identity {
            Some(files) => {
                let (chain, key) = files.read()?;
                Some(Identity { chain, key })
            }
            None => None,
        };
        let anew = |roots: &Arc<RootCertStore>| Authority::new(Arc::clone(roots), identity.as_ref());
        let mut sources = self.lock();
        let from_file = from_file.as_ref().map(anew).transpose()?;
        let secrets = sources.current.from_secrets.iter();
        let from_secrets =
            secrets.map(|(name, held)| Ok((name.clone(), anew(&held.roots)?))).collect::<Result<_, TlsError>>()?;
        sources.current = Current { from_file, from_secrets };
        sources.identity = identity;
        self.current.store(Arc::new(sources.current.clone()));
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn roots(
    certificates: impl Iterator<Item = Result<CertificateDer<'static>, rustls::pki_types::pem::Error>>,
    from: &Path,
) -> Result<Arc<RootCertStore>, TlsError> {
    let pem = |source| TlsError::Pem { what: "a CA certificate", path: from.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.map_err(pem)?).map_err(TlsError::Mismatch)?;
    }
    if roots.is_empty() {
        return Err(pem(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(Arc::new(roots))
}

impl Authority {
    fn new(roots: Arc<RootCertStore>, identity: Option<&Identity>) -> Result<Self, TlsError> {
        let configs = configs(&roots, identity)?;
        Ok(Self { roots, configs })
    }
}

fn configs(roots: &Arc<RootCertStore>, identity: Option<&Identity>) -> Result<Configs, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Mismatch)?
        .with_root_certificates(Arc::clone(roots));
    let mut any = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { chain, key }) => {
            builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(TlsError::Mismatch)?
        }
    };
    any.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    let mut http1 = any.clone();
    http1.alpn_protocols = vec![ALPN_HTTP1.to_vec()];
    Ok(Configs { any: Arc::new(any), http1: Arc::new(http1) })
}

#[cfg(test)]
mod tests;
