//! Flags and environment become a [`Config`], or a list of everything that is wrong with them. Nothing is opened,
//! bound or resolved here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ArgGroup, Parser, Subcommand};
use podlight_proto::{Boot, Event, Kind, MAX_ADDRESSES, MAX_PORTS, Order, PodRef, Port, Sequence, ShapeError};
use reqwest::Url;
use tracing_subscriber::filter::Targets;

use crate::duration;
use crate::probe::Probe;
use crate::publisher::{Activator, Identity, MAX_REPLICAS, base_url};

/// The status of a process that was configured wrongly: `EX_USAGE` of sysexits.h.
pub const EXIT_CONFIG: u8 = 64;

/// Where the activator is when nothing says otherwise.
const ACTIVATOR_NAMESPACE: &str = "podlight-system";

/// The headless Service in front of the activator's replicas.
const ACTIVATOR_SERVICE: &str = "podlight-activator-events";

/// The activator's port for events.
const ACTIVATOR_PORT: u16 = 8443;

/// Most probes: one for each container port an event can name is more than any pod has.
const MAX_PROBES: usize = MAX_PORTS;

/// Watches a pod's containers from inside and pushes signed readiness events to the Podlight activator.
#[derive(Debug, Parser)]
#[command(name = "podlight-sidecar", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of watching.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to watch.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the sidecar does besides watching.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// For preStop: have the running sidecar announce the drain, wait until the replicas know, and hold.
    Drain(DrainArgs),
    /// For a startupProbe: whether the running sidecar answers.
    Check(CheckArgs),
}

/// Flags of the sidecar itself. All are texts here, so that every fault can be told at once.
#[derive(Debug, ArgGroup)]
pub struct RunArgs {
    /// A probe: `<http|https|tcp|grpc>://[address]:<port>[/path or /service][?period=1s&timeout=1s&failure=3&success=1&once&header=Name:value]`.
    /// Repeat for more: the pod is ready when all pass; one with `once` needs to pass but once. Headers are percent-decoded. Without an address the pod's own is asked, as the kubelet does.
    #[arg(long, env = "PODLIGHT_PROBES", value_delimiter = ' ')]
    probe: Vec<String>,
    /// Base URL of an activator replica; repeat or separate by commas for several. Instead of DNS.
    #[arg(long, env = "PODLIGHT_ACTIVATOR", value_delimiter = ',')]
    activator: Vec<String>,
    /// Base URL of the headless Service of the activator's replicas.
    /// `[default: https://podlight-activator-events.<activator-namespace>.svc:8443]`
    #[arg(long, env = "PODLIGHT_ACTIVATOR_SERVICE")]
    activator_service: Option<String>,
    /// Namespace that the activator runs in.
    #[arg(long, env = "PODLIGHT_ACTIVATOR_NAMESPACE", default_value = ACTIVATOR_NAMESPACE)]
    activator_namespace: String,
    /// PEM file of the CA that signs the activator's certificate; read again when it changes.
    #[arg(long, env = "PODLIGHT_ACTIVATOR_CA", default_value = "/var/run/secrets/podlight/ca.crt")]
    activator_ca: PathBuf,
    /// File of the projected ServiceAccount token with audience "podlight"; read again when it changes.
    #[arg(long, env = "PODLIGHT_TOKEN", default_value = "/var/run/secrets/podlight/token")]
    token: PathBuf,
    /// Time for one delivery, connecting included.
    #[arg(long, env = "PODLIGHT_TIMEOUT", default_value = "2s")]
    timeout: String,
    /// "on", or "off" for a sidecar that probes nothing and tells nobody.
    #[arg(long, env = "PODLIGHT_PUSH", default_value = "on")]
    push: String,
    /// The pod's namespace.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// The pod's name.
    #[arg(long, env = "POD_NAME")]
    pod: Option<String>,
    /// The pod's uid.
    #[arg(long, env = "POD_UID")]
    uid: Option<String>,
    /// The pod's addresses, separated by commas. May be empty: then the one that the way to a replica begins at.
    #[arg(long, env = "POD_IPS", value_delimiter = ',')]
    address: Vec<String>,
    /// The pod's revision label.
    #[arg(long, env = "PODLIGHT_REVISION", default_value = "")]
    revision: String,
    /// A port that the pod declares, as name=number or number; repeat or separate by commas for more.
    #[arg(long, env = "PODLIGHT_PORTS", value_delimiter = ',')]
    port: Vec<String>,
    /// Where /metrics, /healthz, /readyz, /status and /drain are served.
    #[arg(long, env = "PODLIGHT_ADMIN_LISTEN", default_value = "0.0.0.0:9402")]
    admin_listen: String,
    /// A unix socket that serves the same.
    #[arg(long, env = "PODLIGHT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
    /// How long SIGTERM waits until the replicas have acknowledged the drain.
    #[arg(long, env = "PODLIGHT_DRAIN_DEADLINE", default_value = "2s")]
    drain_deadline: String,
    /// What is logged: a level, or levels by target as in info,hyper=warn.
    #[arg(long, env = "PODLIGHT_LOG", default_value = "info")]
    log: String,
    /// "text" or "json".
    #[arg(long, env = "PODLIGHT_LOG_FORMAT", default_value = "json")]
    log_format: String,
}

/// Flags of `drain`.
#[derive(Debug, ArgGroup)]
pub struct DrainArgs {
    /// How long to hold after the replicas know, so that requests under way still arrive.
    #[arg(long, env = "PODLIGHT_DRAIN_HOLD", default_value = "5s")]
    hold: String,
    /// How long to wait until the replicas have acknowledged.
    #[arg(long, env = "PODLIGHT_DRAIN_DEADLINE", default_value = "2s")]
    deadline: String,
    #[command(flatten)]
    running: RunningArgs,
}

/// Flags of `check`.
#[derive(Debug, ArgGroup)]
pub struct CheckArgs {
    #[command(flatten)]
    running: RunningArgs,
}

#[derive(Debug, ArgGroup)]
struct RunningArgs {
    /// The running sidecar's admin address.
    #[arg(long, env = "PODLIGHT_ADMIN_LISTEN", default_value = "0.0.0.0:9402")]
    admin_listen: String,
    /// The running sidecar's unix socket, instead of the address.
    #[arg(long, env = "PODLIGHT_ADMIN_SOCKET")]
    admin_socket: Option<PathBuf>,
}

/// A sidecar that can run.
#[derive(Debug, Clone)]
pub struct Config {
    /// What to push; `None` for a sidecar that is inert.
    pub push: Option<Push>,
    /// Where the admin port listens.
    pub admin: SocketAddr,
    /// Its unix socket.
    pub admin_socket: Option<PathBuf>,
    /// How long SIGTERM waits for the drain.
    pub drain_deadline: Duration,
    /// What is logged.
    pub log: Log,
}

/// What a sidecar that is not inert needs.
#[derive(Debug, Clone)]
pub struct Push {
    /// The probes, at least one.
    pub probes: Vec<Probe>,
    /// Whom it speaks for.
    pub identity: Identity,
    /// To whom.
    pub activator: Activator,
    /// The CA file.
    pub ca: PathBuf,
    /// The token file.
    pub token: PathBuf,
    /// Time for one delivery.
    pub timeout: Duration,
}

impl Push {
    /// The address that probes without one ask: the pod's, as the kubelet does, since an app may listen there
    /// alone; loopback when the pod's is not known.
    pub fn probed_address(&self) -> IpAddr {
        self.identity.addresses.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
    }
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Log {
    /// Levels by target.
    pub targets: Targets,
    /// One JSON object a line.
    pub json: bool,
}

/// A drain that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainConfig {
    /// How long to hold afterwards.
    pub hold: Duration,
    /// How long to wait for the replicas.
    pub deadline: Duration,
    /// The sidecar to ask.
    pub running: Running,
}

/// Where the running sidecar is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The address that it listens on.
    pub admin: SocketAddr,
    /// Its unix socket, which is asked instead.
    pub socket: Option<PathBuf>,
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
    fn add(&mut self, flag: &str, fault: impl fmt::Display) {
        self.0.push(format!("--{flag}: {fault}"));
    }

    /// Takes the value, or notes the fault and goes on without.
    fn note<T>(&mut self, flag: &str, result: Result<T, impl fmt::Display>) -> Option<T> {
        result.map_err(|fault| self.add(flag, fault)).ok()
    }

    fn each<T>(&mut self, flag: &str, texts: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
        texts.filter_map(|text| self.note(flag, parse(text).map_err(|e| format!("{text:?} {e}")))).collect()
    }
}

impl TryFrom<RunArgs> for Config {
    type Error = Faults;

    fn try_from(args: RunArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let push = match args.push.as_str() {
            "on" => args.push(&mut faults),
            "off" => None,
            other => {
                faults.add("push", format_args!("{other:?} must be on or off"));
                args.push(&mut faults)
            }
        };
        let admin = faults.note("admin-listen", socket_address(&args.admin_listen));
        let drain_deadline = faults.note("drain-deadline", duration::parse(&args.drain_deadline));
        let log = args.log(&mut faults);
        match (admin, drain_deadline, log) {
            (Some(admin), Some(drain_deadline), Some(log)) if faults.0.is_empty() => {
                Ok(Self { push, admin, admin_socket: args.admin_socket, drain_deadline, log })
            }
            _ => Err(faults),
        }
    }
}

impl RunArgs {
    fn push(&self, faults: &mut Faults) -> Option<Push> {
        let probes = self.probes(faults);
        let identity = self.identity(faults);
        let activator = self.activator(faults);
        let timeout = faults.note("timeout", positive(&self.timeout));
        let (ca, token) = (self.activator_ca.clone(), self.token.clone());
        Some(Push { probes, identity: identity?, activator: activator?, ca, token, timeout: timeout? })
    }

    fn probes(&self, faults: &mut Faults) -> Vec<Probe> {
        let probes = faults.each("probe", &self.probe, |text| text.parse().map_err(|e| format!("{e}")));
        if self.probe.iter().all(|text| text.trim().is_empty()) {
            faults.add("probe", "at least one is needed, or nothing would ever be ready");
        }
        if probes.len() > MAX_PROBES {
            faults.add("probe", format_args!("at most {MAX_PROBES} are run"));
        }
        probes
    }

    fn identity(&self, faults: &mut Faults) -> Option<Identity> {
        let given = [("namespace", &self.namespace), ("pod", &self.pod), ("uid", &self.uid)];
        for (flag, value) in given {
            if value.as_deref().unwrap_or_default().is_empty() {
                faults.add(flag, "is needed; the downward API knows it");
            }
        }
        let [namespace, name, uid] = given.map(|(_, value)| value.as_deref().filter(|value| !value.is_empty()));
        // A missing part has been told already; stand-ins let the others be checked.
        let pod = PodRef::new(namespace.unwrap_or("x"), name.unwrap_or("x"), uid.unwrap_or("x"));
        let pod = faults.note("namespace, --pod or --uid", pod.map_err(|_| "is not a valid name or uid"));
        let addresses = faults.each("address", &self.address, |text| {
            text.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| "must be an IP address".into())
        });
        if addresses.len() > MAX_ADDRESSES {
            faults.add("address", format_args!("at most {MAX_ADDRESSES} are taken"));
        }
        let ports = faults.each("port", &self.port, port);
        if ports.len() > MAX_PORTS {
            faults.add("port", format_args!("at most {MAX_PORTS} are taken"));
        }
        faults.note("revision", event_shape(&self.revision, &[]));
        Some(Identity { pod: pod?, revision: self.revision.clone(), addresses, ports })
    }

    fn activator(&self, faults: &mut Faults) -> Option<Activator> {
        let urls = faults.each("activator", &self.activator, activator_url);
        if self.activator.iter().any(|text| !text.trim().is_empty()) {
            if self.activator_service.is_some() {
                faults.add("activator-service", "cannot be used together with --activator");
            }
            if urls.iter().any(|url| url.scheme() != urls[0].scheme()) {
                faults.add("activator", "must all have the same scheme");
            }
            if urls.len() > MAX_REPLICAS {
                faults.add("activator", format_args!("at most {MAX_REPLICAS} are told"));
            }
            return Some(Activator::Fixed(urls));
        }
        let derived = format!("https://{ACTIVATOR_SERVICE}.{}.svc:{ACTIVATOR_PORT}", self.activator_namespace);
        let (flag, text) = match &self.activator_service {
            Some(text) => ("activator-service", text),
            None => ("activator-namespace", &derived),
        };
        let url = activator_url(text).and_then(|url| match url.domain() {
            Some(name) if name.contains('.') => Ok(url),
            Some(_) | None => Err("must have the DNS name of a Service".into()),
        });
        faults.note(flag, url.map_err(|e| format!("{text:?} {e}"))).map(Activator::Service)
    }

    fn log(&self, faults: &mut Faults) -> Option<Log> {
        let targets = faults.note("log", self.log.parse().map_err(|e| format!("{:?} {e}", self.log)));
        let json = match self.log_format.as_str() {
            "json" => Some(true),
            "text" => Some(false),
            other => {
                faults.add("log-format", format_args!("{other:?} must be text or json"));
                None
            }
        };
        Some(Log { targets: targets?, json: json? })
    }
}

impl TryFrom<DrainArgs> for DrainConfig {
    type Error = Faults;

    fn try_from(args: DrainArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let hold = faults.note("hold", duration::parse(&args.hold));
        let deadline = faults.note("deadline", duration::parse(&args.deadline));
        let running = args.running.check(&mut faults);
        match (hold, deadline, running) {
            (Some(hold), Some(deadline), Some(running)) => Ok(Self { hold, deadline, running }),
            _ => Err(faults),
        }
    }
}

impl TryFrom<CheckArgs> for Running {
    type Error = Faults;

    fn try_from(args: CheckArgs) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        args.running.check(&mut faults).ok_or(faults)
    }
}

impl RunningArgs {
    fn check(self, faults: &mut Faults) -> Option<Running> {
        let admin = faults.note("admin-listen", socket_address(&self.admin_listen))?;
        Some(Running { admin, socket: self.admin_socket })
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    let span = duration::parse(text).map_err(|e| e.to_string())?;
    if span.is_zero() { Err("must be longer than nothing".into()) } else { Ok(span) }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} must be an IP address and a port"))
}

fn activator_url(text: &str) -> Result<Url, String> {
    base_url(text).ok_or_else(|| "must be https://<host>[:port], or http:// with a loopback address".into())
}

fn port(text: &str) -> Result<Port, String> {
    let (name, number) = text.rsplit_once('=').unwrap_or(("", text));
    let port = number.parse().ok().filter(|&port| port != 0);
    let port = port.map(|port| Port { name: name.into(), port });
    port.filter(|port| event_shape("", std::slice::from_ref(port)).is_ok())
        .ok_or_else(|| "must be name=number, the name a port name, the number from 1 to 65535".into())
}

/// Checks parts of an event by making one.
fn event_shape(revision: &str, ports: &[Port]) -> Result<(), ShapeError> {
    let order = Order { boot: Boot::try_from(1)?, seq: Sequence::FIRST };
    let (pod, kind, revision, ports) = (PodRef::new("x", "x", "x")?, Kind::NotReady, revision.into(), ports.into());
    let addresses = vec![Ipv4Addr::LOCALHOST.into()];
    let event = Event { pod, order, kind, revision, addresses, ports, ready: false, observed_at_ms: 0 };
    event.normalized().map(drop)
}

#[cfg(test)]
mod tests;
