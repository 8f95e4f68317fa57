//! The one HTTP client of all deliveries: no proxy, no redirect, one kept connection a replica, one private CA
//! that may be replaced while the sidecar runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tracing::{error, info};

use crate::file::WatchedFile;
use crate::publisher::discovery;
use crate::publisher::replicas::pinned_address;

/// Connections are kept longer than the longest pause between heartbeats that an activator asks for.
const KEEP_IDLE: Duration = Duration::from_secs(660);

/// A connection whose other end is gone is found out before the next event needs it.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Why there is no client.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("there is no usable CA file for the activator's certificate")]
    NoCa,
    #[error("the CA file cannot be read")]
    Unreadable(#[source] Arc<std::io::Error>),
    #[error("the CA file holds no certificate")]
    NoCertificate,
    #[error("the HTTP client cannot be built")]
    Build(#[source] Arc<reqwest::Error>),
}

/// Hands out the client, built anew when the CA file changes.
pub(crate) struct Client {
    timeout: Duration,
    state: Mutex<State>,
}

struct State {
    ca: Option<WatchedFile>,
    current: Option<reqwest::Client>,
}

impl Client {
    /// A client that trusts the CA in a file, or one that speaks no TLS.
    pub(crate) fn new(ca: Option<&Path>, timeout: Duration) -> Self {
        Self { timeout, state: Mutex::new(State { ca: ca.map(WatchedFile::new), current: None }) }
    }

    /// The client as of now. A CA file that has become unusable leaves the last client in use.
    pub(crate) fn current(&self) -> Result<reqwest::Client, ClientError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { ca, current } = &mut *state;
        match ca {
            None if current.is_none() => *current = Some(self.build(&[])?),
            None => {}
            Some(file) => {
                if let Some(content) = file.changed() {
                    let path = file.path().display();
                    match content.map_err(|e| ClientError::Unreadable(Arc::new(e))).and_then(|pem| self.build(&pem)) {
                        Ok(client) => {
                            info!(%path, "CA file read");
                            *current = Some(client);
                        }
                        Err(error) => error!(%path, error = %crate::chain(&error), "CA file not usable"),
                    }
                }
            }
        }
        current.clone().ok_or(ClientError::NoCa)
    }

    fn build(&self, ca_pem: &[u8]) -> Result<reqwest::Client, ClientError> {
        let mut roots = rustls::RootCertStore::empty();
        let certificates = CertificateDer::pem_slice_iter(ca_pem).filter_map(Result::ok);
        let (usable, _) = roots.add_parsable_certificates(certificates);
        if usable == 0 && !ca_pem.is_empty() {
            return Err(ClientError::NoCertificate);
        }
        let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        // An activator gives no tickets.
        tls.resumption = rustls::client::Resumption::disabled();
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(self.timeout)
            .timeout(self.timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(1)
            .dns_resolver(Names::default())
            .user_agent(concat!("podlight-sidecar/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| ClientError::Build(Arc::new(e)))
    }
}

/// Names of replicas spell their addresses; others are looked up.
#[derive(Default)]
struct Names(Arc<Mutex<Option<TokioResolver>>>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = Arc::clone(&self.0);
        Box::pin(async move {
            let host = name.as_str();
            let pinned = pinned_address(host).or((host == "localhost").then_some(Ipv4Addr::LOCALHOST.into()));
            let addresses = match pinned {
                Some(address) => vec![address],
                None => {
                    let resolver = shared(&resolver)?;
                    resolver.lookup_ip(host).await?.iter().collect()
                }
            };
            let addresses: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

fn shared(resolver: &Mutex<Option<TokioResolver>>) -> Result<TokioResolver, discovery::NetError> {
    let mut resolver = resolver.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(resolver) = resolver.as_ref() {
        return Ok(resolver.clone());
    }
    Ok(resolver.insert(discovery::resolver()?).clone())
}
