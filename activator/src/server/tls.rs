//! The server's certificate: from files, read again within a second of their change, or made at start. A file
//! that cannot be used never replaces a certificate that can.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use metrics::{counter, gauge};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::validity;

/// How often the files are looked at: two `stat` calls.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Validity of a certificate made at start. It lives in memory only and ends with the process, which is
/// restarted more often than this.
const SELF_SIGNED_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A certificate made at start begins to be valid this much earlier, for clients whose clock is behind.
const SELF_SIGNED_SKEW: Duration = Duration::from_secs(60 * 60);

/// Protocols offered in the handshake, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read or holds no such thing.
    #[error("cannot read {what} from {}", .path.display())]
    Pem {
        /// Certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The key does not fit the certificate, or one of them is of a kind that is not supported.
    #[error("certificate and key cannot be used together")]
    Mismatch(#[source] rustls::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The CA's certificate could not be written for clients.
    #[error("cannot write the CA certificate to {}", .path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Where certificate chain and key lie, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What tells one version of a file from another, through the symbolic links that a Secret volume consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    modified: Option<SystemTime>,
    length: u64,
}

/// Of certificate and key; none of a file that is not there.
type Stamps = [Option<Stamp>; 2];

impl Stamp {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { inode: metadata.ino(), modified: metadata.modified().ok(), length: metadata.len() })
    }
}

impl Files {
    fn load(&self) -> Result<Loaded, TlsError> {
        let (chain, key) = self.read()?;
        Loaded::new(chain, key)
    }

    fn stamps(&self) -> Stamps {
        [Stamp::of(&self.certificate), Stamp::of(&self.key)]
    }

    /// The chain and its key.
    pub(crate) fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let pem = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Pem { what, path, source }
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(pem("a certificate", &self.certificate))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(pem("a private key", &self.key))?;
        Ok((chain, key))
    }
}

/// A certificate and its key, ready for use.
#[derive(Debug, Clone)]
struct Loaded {
    certified: Arc<CertifiedKey>,
    not_after: Option<u64>,
}

impl Loaded {
    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        let not_after = chain.first().and_then(|certificate| validity::not_after(certificate));
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        Ok(Self { certified: Arc::new(certified.map_err(TlsError::Mismatch)?), not_after })
    }
}

/// Chooses by the name that the client asks for; the first certificate where none has it.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().filter(|_| self.0.len() > 1).and_then(|name| ServerName::try_from(name).ok());
        let has = |key: &&Arc<CertifiedKey>| {
            let (Some(name), Ok(certificate)) = (&asked, key.end_entity_cert()) else { return false };
            ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
        };
        self.0.iter().find(has).or(self.0.first()).cloned()
    }
}

fn server_config(loaded: &[Loaded]) -> Result<Arc<ServerConfig>, TlsError> {
    let by_name = ByName(loaded.iter().map(|loaded| Arc::clone(&loaded.certified)).collect());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Mismatch)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(by_name));
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    // No tickets: each costs every handshake, and a client keeps its connection; when it comes back, this process has
    // most often been replaced, and the tickets' key with it.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The certificates to answer with now. Clones share them.
#[derive(Debug, Clone)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    loaded: Vec<Loaded>,
    /// The listener's name in metrics.
    listener: &'static str,
    /// What the files were like before they were read.
    read_as: Vec<Stamps>,
}

impl Tls {
    /// From files. [`Tls::follow`] keeps it up to date.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used.
    pub fn from_files(files: &Files) -> Result<Self, TlsError> {
        Self::from_several(std::slice::from_ref(files))
    }

    /// From the files of several certificates, of which the client's SNI chooses; the first is for all other names.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used.
    pub fn from_several(files: &[Files]) -> Result<Self, TlsError> {
        let read_as = files.iter().map(Files::stamps).collect();
        let loaded = files.iter().map(Files::load).collect::<Result<_, _>>()?;
        Ok(Self { read_as, ..Self::holding(loaded)? })
    }

    /// From a chain and its key. [`Tls::replace`] puts others in their place.
    ///
    /// # Errors
    /// [`TlsError`] when they cannot be used together.
    pub(crate) fn from_der(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        Self::holding(vec![Loaded::new(chain, key)?])
    }

    /// Answers with another chain from now on.
    ///
    /// # Errors
    /// [`TlsError`] when it cannot be used; the one before stays then.
    pub(crate) fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        self.current.store(Self::from_der(chain, key)?.shown_by(self.listener).current());
        Ok(())
    }

    /// With a key and a CA made now, valid for these names and addresses. The CA's certificate goes to `ca_out`.
    ///
    /// # Errors
    /// [`TlsError`] when a name cannot be in a certificate or the file cannot be written.
    pub fn self_signed(names: &[String], ca_out: Option<&Path>) -> Result<Self, TlsError> {
        let (ca_pem, loaded) = make(names)?;
        if let Some(path) = ca_out {
            std::fs::write(path, ca_pem).map_err(|source| TlsError::Write { path: path.to_owned(), source })?;
        }
        Self::holding(vec![loaded])
    }

    /// Says which listener shows them, for the metrics: when the first of them ends is told from now on.
    #[must_use]
    pub fn shown_by(self, listener: &'static str) -> Self {
        let tls = Self { listener, ..self };
        tls.tell_expiry();
        tls
    }

    /// What to shake hands with now.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again whenever they change. Never returns.
    pub async fn follow(mut self, files: Vec<Files>) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for (at, files) in files.iter().enumerate() {
                let stamps = files.stamps();
                if self.read_as.get(at) != Some(&stamps) {
                    self.read_as[at] = stamps;
                    self.reload(at, files);
                }
            }
        }
    }

    /// Reads the files of the certificate at `at`.
    fn reload(&mut self, at: usize, files: &Files) {
        let loaded = files.load().and_then(|loaded| {
            let mut all = self.loaded.clone();
            all[at] = loaded;
            Ok((server_config(&all)?, all))
        });
        let result = match loaded {
            Ok((config, loaded)) => {
                self.loaded = loaded;
                self.current.store(config);
                self.tell_expiry();
                tracing::info!(certificate = %files.certificate.display(), "certificate read");
                "ok"
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the certificate cannot be used; the one before stays");
                "failed"
            }
        };
        counter!("podlight_tls_reload_total", "listener" => self.listener, "result" => result).increment(1);
    }

    fn holding(loaded: Vec<Loaded>) -> Result<Self, TlsError> {
        let current = Arc::new(ArcSwap::new(server_config(&loaded)?));
        Ok(Self { current, loaded, listener: "", read_as: Vec::new() })
    }

    /// The first of all ends.
    fn tell_expiry(&self) {
        if let Some(seconds) = self.loaded.iter().filter_map(|loaded| loaded.not_after).min() {
            // Exact in an f64 for the next 285 million years.
            #[expect(clippy::cast_precision_loss, reason = "seconds since the epoch are far below 2^52")]
            gauge!("podlight_tls_certificate_expiry_timestamp_seconds", "listener" => self.listener)
                .set(seconds as f64);
        }
    }
}

/// A CA, and a server certificate by it: a client that trusts the one accepts the other.
fn make(names: &[String]) -> Result<(String, Loaded), TlsError> {
    let dated = |mut params: rcgen::CertificateParams, name: &str| {
        let now = SystemTime::now();
        params.not_before = (now - SELF_SIGNED_SKEW).into();
        params.not_after = (now + SELF_SIGNED_FOR).into();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params
    };
    let mut ca = dated(rcgen::CertificateParams::new(Vec::new())?, "podlight self-signed CA");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    ca.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    let ca_key = rcgen::KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = rcgen::Issuer::new(ca, ca_key);

    let mut server = dated(rcgen::CertificateParams::new(names.to_vec())?, "podlight-activator");
    server.use_authority_key_identifier_extension = true;
    server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate()?;
    let certificate = server.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Ok((ca_certificate.pem(), Loaded::new(vec![certificate.der().clone()], key)?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes a fresh certificate for `name` and its key as a Secret volume would.
    pub(crate) fn write_pair(folder: &Path, name: &str) -> (Files, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("makes");
        let files = Files { certificate: folder.join("tls.crt"), key: folder.join("tls.key") };
        std::fs::write(&files.certificate, made.cert.pem()).expect("writes");
        std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("writes");
        (files, made.cert.der().clone())
    }

    #[test]
    fn a_bad_file_leaves_the_certificate_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let (files, _) = write_pair(folder.path(), "a.test");
        let mut tls = Tls::from_files(&files).expect("loads");
        let before = tls.current();

        std::fs::write(&files.certificate, "nonsense").expect("writes");
        tls.reload(0, &files);
        assert!(Arc::ptr_eq(&before, &tls.current()));

        write_pair(folder.path(), "b.test");
        tls.reload(0, &files);
        assert!(!Arc::ptr_eq(&before, &tls.current()));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (files, _) = write_pair(folder.path(), "a.test");
        let key = std::fs::read(&files.key).expect("reads");
        write_pair(folder.path(), "b.test");
        std::fs::write(&files.key, key).expect("writes");
        assert!(matches!(Tls::from_files(&files), Err(TlsError::Mismatch(_))));
    }

    #[test]
    fn a_certificate_made_at_start_lasts_and_names_its_addresses() {
        let (ca, loaded) = make(&["localhost".into(), "127.0.0.1".into(), "::1".into()]).expect("makes");
        assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        let expected = (now + SELF_SIGNED_FOR).as_secs();
        assert!(loaded.not_after.expect("parses").abs_diff(expected) < 60);
    }
}
