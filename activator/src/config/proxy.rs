//! Flags of the request path.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::available_parallelism;

use clap::Args as ArgGroup;
use ipnet::IpNet;

use super::{Faults, count, parsed, span, timeout};
use crate::proxy::ProxyConfig;
use crate::proxy::annotations::Defaults;
use crate::proxy::follow::FollowConfig;
use crate::proxy::target::HoldConfig;
use crate::server::Limits;
use crate::server::tls::Files;

/// How long a request is held: as long as a pod may take to be scheduled, pulled and started, and no longer than most
/// clients wait.
const HOLD_TIMEOUT: &str = "30s";

/// Requests held in total: at less than 16 KiB each, what a small container can spare.
const MAX_HELD: &str = "20000";

/// Requests held for one target: one busy target must leave room for the others.
const MAX_HELD_PER_TARGET: &str = "10000";

/// Connections of clients, as of sidecars.
const MAX_CONNECTIONS: &str = "20000";

/// Connections to pods: as many as clients have, should each of them have a request under way.
const MAX_UPSTREAM_CONNECTIONS: &str = "20000";
/// MiB that bodies of held requests may take: enough for 8192 whose length is not known, as those of gRPC.
const MAX_HELD_BODY_MIB: &str = "512";

/// How long a pod may take to accept a connection: a second covers one lost SYN.
const CONNECT_TIMEOUT: &str = "1s";

/// How long the ClusterIP may lag behind the API server's word: kube-proxy's slowest common sync period.
const CLUSTER_IP_LAG: &str = "10s";

/// The domain of nearly every cluster.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Flags of the request path. All are texts here, so that every fault can be told at once.
#[derive(Debug, ArgGroup)]
#[command(next_help_heading = "Request path")]
pub struct ProxyArgs {
    /// Where requests are taken, in the clear. Without it there is no request path.
    #[arg(long, env = "PODLIGHT_PROXY_LISTEN")]
    proxy_listen: Option<String>,
    /// Where requests are taken with TLS.
    #[arg(long, env = "PODLIGHT_PROXY_TLS_LISTEN")]
    proxy_tls_listen: Option<String>,
    /// A certificate for requests, chosen by the name asked for: `<chain.pem>:<key.pem>`, read again when they change;
    /// repeat for more. The first is for clients that ask for no name.
    #[arg(long, env = "PODLIGHT_PROXY_CERTIFICATES", value_delimiter = ',')]
    proxy_certificate: Vec<String>,
    /// Threads that carry requests. Default: one for each CPU.
    #[arg(long, env = "PODLIGHT_PROXY_WORKERS")]
    proxy_workers: Option<String>,
    /// Which way requests go unless their Service says otherwise: always (straight to the pod), cold-start-only or
    /// disabled (through the ClusterIP).
    #[arg(long, env = "PODLIGHT_ROUTE", default_value = "always")]
    route: String,
    /// The cluster's DNS domain.
    #[arg(long, env = "PODLIGHT_CLUSTER_DOMAIN", default_value = CLUSTER_DOMAIN)]
    cluster_domain: String,
    /// How long a request is held unless its Service says otherwise.
    #[arg(long, env = "PODLIGHT_HOLD_TIMEOUT", default_value = HOLD_TIMEOUT)]
    hold_timeout: String,
    /// Most requests held.
    #[arg(long, env = "PODLIGHT_MAX_HELD", default_value = MAX_HELD)]
    max_held: String,
    /// Most requests held for one target.
    #[arg(long, env = "PODLIGHT_MAX_HELD_PER_TARGET", default_value = MAX_HELD_PER_TARGET)]
    max_held_per_target: String,
    /// Most connections of clients, at each of the listeners for requests.
    #[arg(long, env = "PODLIGHT_PROXY_MAX_CONNECTIONS", default_value = MAX_CONNECTIONS)]
    proxy_max_connections: String,
    /// Most connections to pods.
    #[arg(long, env = "PODLIGHT_MAX_UPSTREAM_CONNECTIONS", default_value = MAX_UPSTREAM_CONNECTIONS)]
    max_upstream_connections: String,
    /// Most MiB of bodies that may be in memory while their requests are held.
    #[arg(long, env = "PODLIGHT_MAX_HELD_BODY_MIB", default_value = MAX_HELD_BODY_MIB)]
    max_held_body_mib: String,
    /// How long a pod may take to accept a connection.
    #[arg(long, env = "PODLIGHT_CONNECT_TIMEOUT", default_value = CONNECT_TIMEOUT)]
    connect_timeout: String,
    /// How long a pod may take until its answer begins; 0s for ever.
    #[arg(long, env = "PODLIGHT_RESPONSE_TIMEOUT", default_value = "0s")]
    response_timeout: String,
    /// Whose Forwarded and X-Forwarded-* headers count: an address or a network; repeat for more.
    #[arg(long, env = "PODLIGHT_TRUST_FORWARDED", value_delimiter = ',')]
    trust_forwarded: Vec<String>,
    /// How long a ClusterIP may not lead yet to an endpoint that the API server calls ready.
    #[arg(long, env = "PODLIGHT_CLUSTER_IP_LAG", default_value = CLUSTER_IP_LAG)]
    cluster_ip_lag: String,
    /// CA certificates that pods' certificates are verified with, as PEM, read again when they change.
    #[arg(long, env = "PODLIGHT_UPSTREAM_CA")]
    upstream_ca: Option<PathBuf>,
    /// The certificate to show to pods that ask for one: `<chain.pem>:<key.pem>`.
    #[arg(long, env = "PODLIGHT_UPSTREAM_CERTIFICATE")]
    upstream_certificate: Option<String>,
    /// Log each request.
    #[arg(long, env = "PODLIGHT_ACCESS_LOG")]
    access_log: bool,
}

/// How requests are taken, held and passed on.
#[derive(Debug, Clone)]
pub struct RequestConfig {
    /// The data plane.
    pub proxy: ProxyConfig,
    /// Routes and targets.
    pub follow: FollowConfig,
}

impl ProxyArgs {
    /// None without a place to listen, or with faults.
    pub(super) fn check(&self, limits: Option<Limits>, faults: &mut Faults) -> Option<RequestConfig> {
        let address = |flag, text: &Option<String>, faults: &mut Faults| {
            let text = text.as_deref().filter(|text| !text.is_empty())?;
            faults.note::<SocketAddr>(flag, parsed(text, "must be <ip>:<port>"))
        };
        let listen = address("proxy-listen", &self.proxy_listen, faults);
        let tls_listen = address("proxy-tls-listen", &self.proxy_tls_listen, faults);
        let texts = self.proxy_certificate.iter().filter(|text| !text.is_empty());
        let certificates: Vec<Files> = texts.filter_map(|text| faults.note("proxy-certificate", files(text))).collect();
        match (tls_listen, self.proxy_certificate.is_empty()) {
            (Some(_), true) => faults.add("proxy-certificate", "is needed with --proxy-tls-listen"),
            (None, false) if self.proxy_tls_listen.is_none() => {
                faults.add("proxy-tls-listen", "is needed with --proxy-certificate");
            }
            (Some(_), false) | (None, _) => {}
        }
        if self.proxy_listen.is_none() && self.proxy_tls_listen.is_some() {
            faults.add("proxy-listen", "is needed with --proxy-tls-listen");
        }
        let workers = match &self.proxy_workers {
            Some(text) => faults.note("proxy-workers", count(text)),
            None => Some(available_parallelism().map_or(1, usize::from)),
        };
        let mode = faults.note("route", parsed(&self.route, "must be always, cold-start-only or disabled"));
        let hold_timeout = faults.note("hold-timeout", timeout(&self.hold_timeout));
        let max_held = faults.note("max-held", count(&self.max_held));
        let max_held_per_target = faults.note("max-held-per-target", count(&self.max_held_per_target));
        let connections = faults.note("proxy-max-connections", count(&self.proxy_max_connections));
        let upstream_connections = faults.note("max-upstream-connections", count(&self.max_upstream_connections));
        let max_held_body = faults.note("max-held-body-mib", count(&self.max_held_body_mib));
        let connect_timeout = faults.note("connect-timeout", timeout(&self.connect_timeout));
        let response_timeout = faults.note("response-timeout", span(&self.response_timeout));
        let cluster_ip_lag = faults.note("cluster-ip-lag", span(&self.cluster_ip_lag));
        let cluster_domain = self.cluster_domain.trim_matches('.').to_ascii_lowercase();
        if cluster_domain.is_empty() {
            faults.add("cluster-domain", "must not be empty");
        }
        let networks = self.trust_forwarded.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
        let trusted = networks.filter_map(|text| faults.note("trust-forwarded", network(text))).collect();
        let upstream_identity = self.upstream_certificate.as_deref().filter(|text| !text.is_empty());
        let upstream_identity = upstream_identity.map(|text| faults.note("upstream-certificate", files(text)));
        let (workers, mode, hold_timeout) = (workers?, mode?, hold_timeout?);
        Some(RequestConfig {
            proxy: ProxyConfig {
                listen: listen?,
                tls: tls_listen.map(|address| (address, certificates)),
                workers,
                limits: Limits { connections: connections?, ..limits? },
                upstream_connections: upstream_connections?,
                connect_timeout: connect_timeout?,
                response_timeout: response_timeout.filter(|timeout| !timeout.is_zero()),
                trusted,
                upstream_ca: self.upstream_ca.clone(),
                upstream_identity: upstream_identity.flatten(),
                access_log: self.access_log,
            },
            follow: FollowConfig {
                defaults: Defaults { mode, hold_timeout },
                hold: HoldConfig {
                    max_held_per_target: max_held_per_target?,
                    max_held: max_held?,
                    max_held_body: (max_held_body? as u64) << 20,
                    cluster_ip_lag: cluster_ip_lag?,
                    workers,
                },
                cluster_domain,
            },
        })
    }
}

/// `<chain>:<key>`.
fn files(text: &str) -> Result<Files, String> {
    match text.split_once(':') {
        Some((certificate, key)) if !certificate.is_empty() && !key.is_empty() => {
            Ok(Files { certificate: certificate.into(), key: key.into() })
        }
        _ => Err(format!("{text:?} must be <chain.pem>:<key.pem>")),
    }
}

/// A network, or an address that stands for itself.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or(address).map_err(|_| format!("{text:?} must be an IP address or <address>/<prefix length>"))
}
