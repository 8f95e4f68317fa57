//! The command line and the environment, turned into checked settings. Every fault is found and told at once, before anything is
//! opened, bound or asked.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args as ArgGroup, Parser, Subcommand, ValueEnum as _};
use http::Uri;
use podlight_proto::PodRef;
use tracing_subscriber::filter::Targets;

use crate::cluster::RevisionLabels;
use crate::cluster::standalone::pod_uid;
use crate::cluster::token::{DEFAULT_ISSUER, MintRequest};
use crate::ingest::{AuthMode, IngestConfig, Rate, chain};
use crate::server::tls::Files;
use crate::server::{Limits, Timeouts};
use crate::table::Pacing;
use crate::telemetry::LogFormat;
use crate::xdp::XdpConfig;

mod proxy;
mod xdp;

pub use proxy::{ProxyArgs, RequestConfig};
pub use xdp::XdpArgs;

/// The status of a process that was configured wrongly: `EX_USAGE` of sysexits.h.
pub const EXIT_CONFIG: u8 = 64;

/// Events and queries. Not 443: no capability is needed to bind it.
const LISTEN: &str = "0.0.0.0:8443";

/// Metrics and probes, beside the sidecar's 9402.
const ADMIN_LISTEN: &str = "0.0.0.0:9401";

/// Connections in total: a kept one per sidecar of a large cluster; at some 20 KiB each they fit 400 MiB.
const MAX_CONNECTIONS: &str = "20000";

/// Connections per source: a load balancer or a node's NAT may stand for many sidecars, but not for all.
const MAX_CONNECTIONS_PER_SOURCE: &str = "10000";

/// Within Kubernetes' default grace period of 30 s, with some seconds to spare for what comes before and after.
const SHUTDOWN_GRACE: &str = "25s";

/// Nothing is waited for by default: sidecars notice a replica that goes by themselves.
const SHUTDOWN_DELAY: &str = "0s";

/// How often a sidecar reports until the watch confirms it: a replica that missed the event learns it so.
const HEARTBEAT_UNCONFIRMED: &str = "5s";

/// How often from then on: the lease is three times that.
const HEARTBEAT_CONFIRMED: &str = "120s";

/// Longest pause between heartbeats that sidecars keep to.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(600);

/// Largest number of anything: beyond what memory holds of the smallest of them.
const LARGEST: usize = 100_000_000;

/// Longest span that is meant seriously by anybody.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Names that a certificate made at start is valid for besides those given.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Lifetime of a token minted here: that of a projected one.
const TOKEN_FOR: &str = "1h";

/// Validates readiness events against the Kubernetes API, keeps the readiness table and serves it.
#[derive(Debug, Parser)]
#[command(name = "podlight-activator", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the activator does besides `podlight-activator` alone.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve: the same as without a command.
    Run(Box<RunArgs>),
    /// Show a running activator's table in the terminal.
    Status(crate::status::StatusArgs),
    /// Show a running activator's readiness map, or probe.
    Xdp(crate::xdp::show::MapArgs),
    /// Mint a pod-bound token with the local issuer key of standalone mode.
    Token(TokenArgs),
    /// Add the sidecar to manifests: prints them with it.
    Inject(Box<crate::inject::command::InjectArgs>),
    /// Answer admission reviews: add the sidecar to pods as they are created.
    Webhook(Box<crate::webhook::WebhookArgs>),
}

/// Flags of the activator itself. All are texts here, so that every fault can be told at once.
#[derive(Debug, ArgGroup)]
pub struct RunArgs {
    /// Where events and queries are taken.
    #[arg(long, env = "PODLIGHT_LISTEN", default_value = LISTEN)]
    listen: String,
    /// Where metrics and probes are served, as plain HTTP.
    #[arg(long, env = "PODLIGHT_ADMIN_LISTEN", default_value = ADMIN_LISTEN)]
    admin_listen: String,
    /// Whether the admin port shows a page with the names of Services, hosts and pods, to whoever asks: on or off.
    #[arg(long, env = "PODLIGHT_STATUS_PAGE", default_value = "on")]
    status_page: String,
    /// Certificate chain as PEM, read again when it changes.
    #[arg(long, env = "PODLIGHT_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Private key as PEM, read again when it changes.
    #[arg(long, env = "PODLIGHT_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Make a CA and a certificate at start, instead of reading files.
    #[arg(long, env = "PODLIGHT_TLS_SELF_SIGNED")]
    tls_self_signed: bool,
    /// A DNS name or IP address for the certificate made at start, besides localhost and its addresses. Repeat for more.
    #[arg(long, env = "PODLIGHT_TLS_NAMES", value_delimiter = ',')]
    tls_name: Vec<String>,
    /// Where to write the certificate of the CA made at start, so that clients can trust it.
    #[arg(long, env = "PODLIGHT_TLS_CA_OUT")]
    tls_ca_out: Option<PathBuf>,
    /// Serve without TLS: tokens can be read on the wire.
    #[arg(long, env = "PODLIGHT_PLAINTEXT")]
    plaintext: bool,
    /// How tokens are judged: hybrid, token-review or jwks. Default: hybrid; jwks with --cluster-from.
    #[arg(long, env = "PODLIGHT_AUTH")]
    auth: Option<String>,
    /// An issuer of tokens, compared exactly; repeat for more. Default: what the API server says.
    #[arg(long, env = "PODLIGHT_ISSUERS", value_delimiter = ',')]
    issuer: Vec<String>,
    /// A pod label that tells the revision, the first present counts; repeat for more. Default:
    /// podlight.dev/revision, pod-template-hash, controller-revision-hash.
    #[arg(long, env = "PODLIGHT_REVISION_LABELS", value_delimiter = ',')]
    revision_label: Vec<String>,
    /// Manifests, a file or a directory, in place of a cluster: standalone mode.
    #[arg(long, env = "PODLIGHT_CLUSTER_FROM")]
    cluster_from: Option<PathBuf>,
    /// The key that signs tokens in standalone mode, made when it is not there.
    #[arg(long, env = "PODLIGHT_ISSUER_KEY")]
    issuer_key: Option<PathBuf>,
    /// Kubeconfig. Default: KUBECONFIG, ~/.kube/config or the pod's ServiceAccount, the first that is there.
    #[arg(long, env = "PODLIGHT_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, env = "PODLIGHT_CONTEXT")]
    context: Option<String>,
    /// This replica's name. Default: the host's.
    #[arg(long, env = "PODLIGHT_REPLICA")]
    replica: Option<String>,
    #[arg(long, env = "HOSTNAME", hide = true)]
    hostname: Option<String>,
    /// Base URL of another replica, told to sidecars; repeat for more.
    #[arg(long, env = "PODLIGHT_PEERS", value_delimiter = ',')]
    peer: Vec<String>,
    /// Most pods with a bound key.
    #[arg(long, env = "PODLIGHT_MAX_SESSIONS", default_value_t = IngestConfig::MAX_SESSIONS.to_string())]
    max_sessions: String,
    /// Most events of everybody together: `<per second>:<burst>`.
    #[arg(long, env = "PODLIGHT_RATE", default_value_t = written(IngestConfig::RATE))]
    rate: String,
    /// Most events of one source address: `<per second>:<burst>`.
    #[arg(long, env = "PODLIGHT_SOURCE_RATE", default_value_t = written(IngestConfig::SOURCE_RATE))]
    source_rate: String,
    /// Most source addresses whose rate is told apart at once.
    #[arg(long, env = "PODLIGHT_MAX_SOURCES", default_value_t = IngestConfig::MAX_SOURCES.to_string())]
    max_sources: String,
    /// Most events under way, being read or waiting.
    #[arg(long, env = "PODLIGHT_MAX_IN_FLIGHT", default_value_t = IngestConfig::MAX_IN_FLIGHT.to_string())]
    max_in_flight: String,
    /// Most events that wait for the Kubernetes API or the table.
    #[arg(long, env = "PODLIGHT_MAX_WAITING", default_value_t = IngestConfig::MAX_WAITING.to_string())]
    max_waiting: String,
    /// Most TokenReviews at once.
    #[arg(long, env = "PODLIGHT_MAX_REVIEWS", default_value_t = IngestConfig::REVIEWS_IN_FLIGHT.to_string())]
    max_reviews: String,
    /// Most TokenReviews that wait for their turn.
    #[arg(long, env = "PODLIGHT_MAX_REVIEWS_WAITING", default_value_t = IngestConfig::REVIEWS_WAITING.to_string())]
    max_reviews_waiting: String,
    /// How long a request's headers may take.
    #[arg(long, env = "PODLIGHT_HEAD_TIMEOUT", default_value_t = seconds(Timeouts::HEAD))]
    head_timeout: String,
    /// How long an event's body may take.
    #[arg(long, env = "PODLIGHT_BODY_TIMEOUT", default_value_t = seconds(IngestConfig::BODY_TIMEOUT))]
    body_timeout: String,
    /// Most connections.
    #[arg(long, env = "PODLIGHT_MAX_CONNECTIONS", default_value = MAX_CONNECTIONS)]
    max_connections: String,
    /// Most connections of one source address.
    #[arg(long, env = "PODLIGHT_MAX_CONNECTIONS_PER_SOURCE", default_value = MAX_CONNECTIONS_PER_SOURCE)]
    max_connections_per_source: String,
    /// How long to go on serving after SIGTERM, not ready any more, until others have noticed.
    #[arg(long, env = "PODLIGHT_SHUTDOWN_DELAY", default_value = SHUTDOWN_DELAY)]
    shutdown_delay: String,
    /// How long requests under way may still take from then on.
    #[arg(long, env = "PODLIGHT_SHUTDOWN_GRACE", default_value = SHUTDOWN_GRACE)]
    shutdown_grace: String,
    /// How often a sidecar reports until the watch confirms what it said.
    #[arg(long, env = "PODLIGHT_HEARTBEAT_UNCONFIRMED", default_value = HEARTBEAT_UNCONFIRMED)]
    heartbeat_unconfirmed: String,
    /// How often from then on.
    #[arg(long, env = "PODLIGHT_HEARTBEAT_CONFIRMED", default_value = HEARTBEAT_CONFIRMED)]
    heartbeat_confirmed: String,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    xdp: XdpArgs,
}

/// Flags of whatever runs for long.
#[derive(Debug, ArgGroup)]
pub struct LogArgs {
    /// What is logged: a level, or target=level, separated by commas.
    #[arg(long, env = "PODLIGHT_LOG", default_value = "info")]
    log: String,
    /// text or json.
    #[arg(long, env = "PODLIGHT_LOG_FORMAT", default_value = "json")]
    log_format: String,
}

/// Flags of `podlight-activator token`.
#[derive(Debug, ArgGroup)]
pub struct TokenArgs {
    /// The key that signs, made when it is not there.
    #[arg(long, env = "PODLIGHT_ISSUER_KEY")]
    issuer_key: PathBuf,
    /// What the token says who issued it.
    #[arg(long, env = "PODLIGHT_ISSUERS", default_value = DEFAULT_ISSUER)]
    issuer: String,
    /// The pod's namespace.
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// The pod.
    #[arg(long)]
    pod: String,
    /// The pod's uid. Default: what standalone mode gives a pod whose manifest has none.
    #[arg(long)]
    uid: Option<String>,
    /// The pod's ServiceAccount.
    #[arg(long, default_value = "default")]
    service_account: String,
    /// Whom the token is for.
    #[arg(long, default_value = podlight_proto::AUDIENCE)]
    audience: String,
    /// How long it is good.
    #[arg(long, default_value = TOKEN_FOR)]
    lifetime: String,
}

/// How the listener for events and queries is secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsConfig {
    /// With a certificate from files.
    Files(Files),
    /// With one made at start.
    SelfSigned {
        /// Names and addresses in it.
        names: Vec<String>,
        /// Where the CA's certificate goes.
        ca_out: Option<PathBuf>,
    },
    /// Not at all.
    Plaintext,
}

/// Where the cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterConfig {
    /// Behind an API server.
    Kubernetes {
        /// How to reach it; the pod's own ServiceAccount when neither is given.
        kubeconfig: Option<PathBuf>,
        /// Which context of the kubeconfig.
        context: Option<String>,
    },
    /// In manifests.
    Standalone {
        /// Their file or directory.
        manifests: PathBuf,
        /// The key that signs tokens.
        issuer_key: PathBuf,
        /// What tokens say who issued them.
        issuer: String,
    },
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Levels by target.
    pub targets: Targets,
    /// In which form.
    pub format: LogFormat,
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where events and queries are taken.
    pub listen: SocketAddr,
    /// Where metrics and probes are served.
    pub admin_listen: SocketAddr,
    /// Whether the status page is served there.
    pub status_page: bool,
    /// How events and queries are secured.
    pub tls: TlsConfig,
    /// Where the cluster is.
    pub cluster: ClusterConfig,
    /// Labels that tell a pod's revision.
    pub revision_labels: RevisionLabels,
    /// Pace of heartbeats and bounds of what comes in.
    pub ingest: IngestConfig,
    /// Bounds of the listener.
    pub limits: Limits,
    /// The request path; none when there is to be none.
    pub requests: Option<RequestConfig>,
    /// The readiness map; none when there is to be none.
    pub xdp: Option<XdpConfig>,
    /// How long to go on serving after the signal.
    pub shutdown_delay: Duration,
    /// The log.
    pub log: LogConfig,
}

/// Everything that is wrong with a configuration, each with the flag to mend.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
pub struct Faults(Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(faults) = self;
        write!(f, "{} of the configuration cannot be used:", faults.len())?;
        faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl Faults {
    pub(crate) fn add(&mut self, flag: &str, fault: impl fmt::Display) {
        self.0.push(format!("--{flag}: {fault}"));
    }

    /// Takes the value, or notes the fault and goes on without.
    pub(crate) fn note<T>(&mut self, flag: &str, result: Result<T, impl fmt::Display>) -> Option<T> {
        result.map_err(|fault| self.add(flag, fault)).ok()
    }

    /// The same for what a file is to hold: with the causes of the error.
    pub(crate) fn open<T, E: Error + 'static>(&mut self, flag: &str, result: Result<T, E>) -> Option<T> {
        self.note(flag, result.map_err(|error| chain(&error)))
    }

    pub(crate) fn each(
        &mut self,
        flag: &str,
        texts: &[String],
        check: impl Fn(&str) -> Result<(), &'static str>,
    ) -> Vec<String> {
        let texts = texts.iter().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        texts.filter(|text| self.note(flag, check(text).map_err(|e| format!("{text:?} {e}"))).is_some()).collect()
    }

    /// The value, unless anything is wrong.
    pub(crate) fn or<T>(self, value: Option<T>) -> Result<T, Self> {
        value.filter(|_| self.0.is_empty()).ok_or(self)
    }
}

impl TryFrom<RunArgs> for Config {
    type Error = Faults;

    fn try_from(args: RunArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let config = args.check(&mut faults);
        faults.or(config)
    }
}

impl RunArgs {
    /// Checks everything before it gives up on anything.
    fn check(&self, faults: &mut Faults) -> Option<Config> {
        let listen = faults.note("listen", parsed(&self.listen, "must be <ip>:<port>"));
        let admin_listen = faults.note("admin-listen", parsed(&self.admin_listen, "must be <ip>:<port>"));
        let status_page = faults.note("status-page", on_or_off(&self.status_page));
        let tls = self.tls(faults);
        let cluster = self.cluster(faults);
        let revision_labels = self.revision_labels(faults);
        let ingest = self.ingest(faults);
        let limits = self.limits(faults);
        let requests = self.proxy.check(limits, faults);
        let xdp = self.xdp.check(faults);
        let shutdown_delay = faults.note("shutdown-delay", span(&self.shutdown_delay));
        let log = self.log.check(faults);
        if let (Some(listen), Some(admin)) = (listen, admin_listen)
            && listen == admin
            && SocketAddr::port(&listen) != 0
        {
            faults.add("admin-listen", "must differ from --listen");
        }
        Some(Config {
            listen: listen?,
            admin_listen: admin_listen?,
            status_page: status_page?,
            tls: tls?,
            cluster: cluster?,
            revision_labels,
            ingest: ingest?,
            limits: limits?,
            requests,
            xdp,
            shutdown_delay: shutdown_delay?,
            log: log?,
        })
    }

    fn tls(&self, faults: &mut Faults) -> Option<TlsConfig> {
        if !self.tls_self_signed {
            if !self.tls_name.is_empty() {
                faults.add("tls-name", "needs --tls-self-signed");
            }
            if self.tls_ca_out.is_some() {
                faults.add("tls-ca-out", "needs --tls-self-signed");
            }
        }
        let names = faults.each("tls-name", &self.tls_name, dns_name_or_address);
        let files = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                Some(TlsConfig::Files(Files { certificate: certificate.clone(), key: key.clone() }))
            }
            (Some(_), None) => return faults.note("tls-key", Err("is needed with --tls-cert")),
            (None, Some(_)) => return faults.note("tls-cert", Err("is needed with --tls-key")),
            (None, None) => None,
        };
        let self_signed = self.tls_self_signed.then(|| {
            let names = LOCAL_NAMES.map(str::to_owned).into_iter().chain(names).collect();
            TlsConfig::SelfSigned { names, ca_out: self.tls_ca_out.clone() }
        });
        let plaintext = self.plaintext.then_some(TlsConfig::Plaintext);
        let mut chosen = [files, self_signed, plaintext].into_iter().flatten();
        match (chosen.next(), chosen.next()) {
            (Some(chosen), None) => Some(chosen),
            (None, _) => faults.note("tls-cert", Err("one of --tls-cert, --tls-self-signed and --plaintext is needed")),
            (Some(_), Some(_)) => {
                faults.note("tls-cert", Err("only one of --tls-cert, --tls-self-signed and --plaintext can be meant"))
            }
        }
    }

    fn cluster(&self, faults: &mut Faults) -> Option<ClusterConfig> {
        let Some(manifests) = self.cluster_from.clone() else {
            if self.issuer_key.is_some() {
                faults.add("issuer-key", "needs --cluster-from: a cluster has its own");
            }
            let (kubeconfig, context) = (self.kubeconfig.clone(), self.context.clone());
            return Some(ClusterConfig::Kubernetes { kubeconfig, context });
        };
        for (flag, given) in [("kubeconfig", self.kubeconfig.is_some()), ("context", self.context.is_some())] {
            if given {
                faults.add(flag, "cannot be used together with --cluster-from");
            }
        }
        let issuer = match self.issuer.as_slice() {
            [] => DEFAULT_ISSUER.to_owned(),
            [issuer] => issuer.clone(),
            [_, _, ..] => return faults.note("issuer", Err("only one can be with --cluster-from")),
        };
        let issuer_key = self.issuer_key.clone().ok_or("is needed with --cluster-from");
        let issuer_key = faults.note("issuer-key", issuer_key)?;
        Some(ClusterConfig::Standalone { manifests, issuer_key, issuer })
    }

    fn revision_labels(&self, faults: &mut Faults) -> RevisionLabels {
        let labels = faults.each("revision-label", &self.revision_label, label_key);
        if labels.is_empty() { RevisionLabels::default() } else { labels.into_iter().collect() }
    }

    fn ingest(&self, faults: &mut Faults) -> Option<IngestConfig> {
        let auth = match &self.auth {
            Some(auth) => {
                let auth = AuthMode::from_str(auth, true).map_err(|_| "must be hybrid, token-review or jwks");
                faults.note("auth", auth)
            }
            None if self.cluster_from.is_some() => Some(AuthMode::Jwks),
            None => Some(AuthMode::Hybrid),
        };
        // Shells keep HOSTNAME to themselves; the kernel tells everybody.
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let replica = self.replica.as_deref().or(self.hostname.as_deref()).unwrap_or(&node).trim();
        if replica.is_empty() {
            faults.add("replica", "is needed: the host has no name");
        }
        let issuers = faults.each("issuer", &self.issuer, |_| Ok(()));
        let peers = faults.each("peer", &self.peer, base_url);
        let pacing = self.pacing(faults);
        let max_sessions = faults.note("max-sessions", count(&self.max_sessions));
        let rate = faults.note("rate", rate(&self.rate));
        let source_rate = faults.note("source-rate", self::rate(&self.source_rate));
        let max_sources = faults.note("max-sources", count(&self.max_sources));
        let max_in_flight = faults.note("max-in-flight", count(&self.max_in_flight));
        let max_waiting = faults.note("max-waiting", count(&self.max_waiting));
        let reviews_in_flight = faults.note("max-reviews", count(&self.max_reviews));
        let reviews_waiting = faults.note("max-reviews-waiting", count(&self.max_reviews_waiting));
        let body_timeout = faults.note("body-timeout", timeout(&self.body_timeout));
        Some(IngestConfig {
            issuers,
            peers,
            pacing: pacing?,
            max_sessions: max_sessions?,
            rate: rate?,
            source_rate: source_rate?,
            max_sources: max_sources?,
            max_in_flight: max_in_flight?,
            max_waiting: max_waiting?,
            reviews_in_flight: reviews_in_flight?,
            reviews_waiting: reviews_waiting?,
            body_timeout: body_timeout?,
            ..IngestConfig::new(auth?, replica)
        })
    }

    fn pacing(&self, faults: &mut Faults) -> Option<Pacing> {
        let unconfirmed = faults.note("heartbeat-unconfirmed", heartbeat(&self.heartbeat_unconfirmed));
        let confirmed = faults.note("heartbeat-confirmed", heartbeat(&self.heartbeat_confirmed));
        let pacing = Pacing { unconfirmed_seconds: unconfirmed?, confirmed_seconds: confirmed? };
        if pacing.unconfirmed_seconds > pacing.confirmed_seconds {
            faults.add("heartbeat-unconfirmed", "must not be longer than --heartbeat-confirmed");
        }
        Some(pacing)
    }

    fn limits(&self, faults: &mut Faults) -> Option<Limits> {
        let connections = faults.note("max-connections", count(&self.max_connections));
        let per_source = faults.note("max-connections-per-source", count(&self.max_connections_per_source));
        let grace = faults.note("shutdown-grace", span(&self.shutdown_grace));
        let head = faults.note("head-timeout", timeout(&self.head_timeout));
        Some(Limits {
            connections: connections?,
            connections_per_source: per_source?,
            grace: grace?,
            timeouts: Timeouts { head: head?, ..Timeouts::default() },
        })
    }
}

impl LogArgs {
    pub(crate) fn check(&self, faults: &mut Faults) -> Option<LogConfig> {
        let targets = faults.note("log", self.log.parse().map_err(|e| format!("{:?} {e}", self.log)));
        let format = LogFormat::from_str(&self.log_format, true).map_err(|_| "must be text or json");
        let format = faults.note("log-format", format);
        Some(LogConfig { targets: targets?, format: format? })
    }
}

/// A token to be minted, and the key to do it with.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    /// The key's file.
    pub issuer_key: PathBuf,
    /// What the token is to say.
    pub request: MintRequest,
}

impl TryFrom<TokenArgs> for TokenConfig {
    type Error = Faults;

    fn try_from(args: TokenArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let uid = args.uid.unwrap_or_else(|| pod_uid(&args.namespace, &args.pod).to_string());
        let pod = PodRef::new(&args.namespace, &args.pod, &uid);
        let pod = faults.note("namespace, --pod or --uid", pod.map_err(|_| "is not a valid name or uid"));
        let lifetime = faults.note("lifetime", span(&args.lifetime));
        if lifetime.is_some_and(|lifetime| lifetime < Duration::from_secs(1)) {
            faults.add("lifetime", "must be a second or more");
        }
        if args.service_account.is_empty() {
            faults.add("service-account", "must not be empty");
        }
        let config = pod.zip(lifetime).map(|(pod, lifetime)| Self {
            issuer_key: args.issuer_key,
            request: MintRequest {
                namespace: args.namespace,
                service_account: args.service_account,
                pod_name: args.pod,
                pod_uid: *pod.uid(),
                audience: args.audience,
                seconds: lifetime.as_secs(),
                issuer: args.issuer,
            },
        });
        faults.or(config)
    }
}

pub(crate) fn parsed<T: FromStr>(text: &str, otherwise: &'static str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} {otherwise}"))
}

pub(crate) fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?} must be on or off")),
    }
}

/// A whole number of at least one.
fn count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=LARGEST).contains(count));
    count.ok_or_else(|| format!("{text:?} must be a whole number from 1 to {LARGEST}"))
}

/// A span in which something can happen.
pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    span(text).and_then(|span| if span.is_zero() { Err("must not be zero".to_owned()) } else { Ok(span) })
}

fn seconds(span: Duration) -> String {
    format!("{}s", span.as_secs())
}

/// `<number><ms|s|m|h>`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_ms = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let span = number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit)| number.checked_mul(unit));
    let span = span.map(Duration::from_millis).filter(|span| *span <= LONGEST);
    span.ok_or_else(|| format!("{text:?} must be a whole number and ms, s, m or h, at most 24h"))
}

/// A pause between heartbeats, in whole seconds.
fn heartbeat(text: &str) -> Result<u32, String> {
    let pause = span(text)?;
    if pause.subsec_millis() != 0 || pause.is_zero() || pause > LONGEST_HEARTBEAT {
        return Err(format!("{text:?} must be whole seconds, from 1s to 600s"));
    }
    u32::try_from(pause.as_secs()).map_err(|e| e.to_string())
}

fn rate(text: &str) -> Result<Rate, String> {
    let numbers = text.split_once(':').and_then(|(rate, burst)| Some((rate.parse().ok()?, burst.parse().ok()?)));
    match numbers {
        Some((per_second, burst)) if per_second > 0 && burst > 0 => Ok(Rate { per_second, burst }),
        _ => Err(format!("{text:?} must be <per second>:<burst>, whole numbers of 1 or more")),
    }
}

fn written(rate: Rate) -> String {
    format!("{}:{}", rate.per_second, rate.burst)
}

pub(crate) fn base_url(text: &str) -> Result<(), &'static str> {
    let url: Option<Uri> = text.parse().ok();
    let valid = url.is_some_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.authority().is_some()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
    });
    if valid { Ok(()) } else { Err("must be http(s)://<host>[:<port>]") }
}

pub(crate) fn dns_name_or_address(text: &str) -> Result<(), &'static str> {
    let dns = |name: &str| rustls::pki_types::DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok();
    if text.parse::<IpAddr>().is_ok() || dns(text) { Ok(()) } else { Err("must be a DNS name or an IP address") }
}

/// `[<dns name>/]<name>` as Kubernetes writes label keys.
pub(crate) fn label_key(text: &str) -> Result<(), &'static str> {
    let name = text.rsplit_once('/').map_or(text, |(_, name)| name);
    let valid = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && text.len() <= 317
        && text.matches('/').count() <= 1;
    if valid { Ok(()) } else { Err("must be a label's key") }
}

#[cfg(test)]
mod tests;
