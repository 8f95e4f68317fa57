//! What a Service's `podlight.dev/*` annotations ask for. Each is parsed by itself: one that cannot be is a fault, told
//! with its value and what is expected, and the last good value stays in force. What all of them come to for a Service is
//! decided here too ([`settle()`]).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

mod fault;
mod settle;

pub use fault::{Reporter, TargetFault, Unreported};
pub use settle::{Defaults, settle};

use super::route::HostPattern;
use super::target::{Mode, ScaleTarget};
use crate::table::group::Service;
use settle::{chosen_port, portless, tcp_ports};

/// Opts a Service in, and says which way its requests go.
const ROUTE: &str = "route";
/// Hosts that lead to the Service besides its own name.
const HOSTS: &str = "hosts";
/// Which of the Service's ports.
const PORT: &str = "port";
/// Most requests at a time for each pod.
const CONCURRENCY: &str = "concurrency";
/// What to scale up.
const SCALE_TARGET: &str = "scale-target";
/// How long requests may be held.
const HOLD_TIMEOUT: &str = "hold-timeout";
/// Whether pods are reached by TLS.
const UPSTREAM_TLS: &str = "upstream-tls";
/// Which Secret holds the CA for that.
const UPSTREAM_CA_SECRET: &str = "upstream-ca-secret";
/// Which name the certificates are for.
const UPSTREAM_SERVER_NAME: &str = "upstream-server-name";

/// Longest a request may be held.
const LONGEST_HOLD: Duration = Duration::from_secs(3600);

/// Most hosts of one Service.
const MOST_HOSTS: usize = 100;

/// Which Service port was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortChoice {
    /// By number.
    Number(u16),
    /// By name.
    Name(Arc<str>),
}

/// How a Service opts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteChoice {
    /// In the process's own mode.
    Default,
    /// In this one.
    Mode(Mode),
}

/// What a Service's annotations say; none where they say nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetSpec {
    /// Whether and how requests are taken.
    pub route: Option<RouteChoice>,
    /// Hosts besides the Service's own name.
    pub hosts: Option<Vec<HostPattern>>,
    /// Which port.
    pub port: Option<PortChoice>,
    /// Most requests at a time for each pod.
    pub concurrency: Option<NonZeroU32>,
    /// What to scale up.
    pub scale_target: Option<ScaleTarget>,
    /// How long requests may be held.
    pub hold_timeout: Option<Duration>,
    /// Whether pods are reached by TLS, whatever the port's `appProtocol`.
    pub upstream_tls: Option<bool>,
    /// Secret with the CA.
    pub upstream_ca_secret: Option<Arc<str>>,
    /// Name to verify.
    pub upstream_server_name: Option<Arc<str>>,
}

/// Whether a Service asks to be routed at all.
pub fn opts_in(service: &Service) -> bool {
    service.annotations.contains_key(ROUTE)
}

/// Parses a Service's annotations. `held` is what they came to last.
pub fn parse(service: &Service, held: Option<&TargetSpec>) -> (TargetSpec, Vec<TargetFault>) {
    let mut reading = Reading { service, faults: Vec::new() };
    let nothing = TargetSpec::default();
    let held = held.unwrap_or(&nothing);
    let spec = TargetSpec {
        route: reading.read(ROUTE, &held.route, route),
        hosts: reading.read(HOSTS, &held.hosts, hosts),
        port: reading.read(PORT, &held.port, |text| port(service, text)),
        concurrency: reading.read(CONCURRENCY, &held.concurrency, |text| {
            text.parse().map_err(|_| "a whole number of 1 or more".into())
        }),
        scale_target: reading.read(SCALE_TARGET, &held.scale_target, scale_target),
        hold_timeout: reading.read(HOLD_TIMEOUT, &held.hold_timeout, hold_timeout),
        upstream_tls: reading
            .read(UPSTREAM_TLS, &held.upstream_tls, |text| text.parse().map_err(|_| "true or false".into())),
        upstream_ca_secret: reading.read(UPSTREAM_CA_SECRET, &held.upstream_ca_secret, |text| {
            dns_name(text).ok_or_else(|| "the name of a Secret".into())
        }),
        upstream_server_name: reading.read(UPSTREAM_SERVER_NAME, &held.upstream_server_name, |text| {
            dns_name(text).ok_or_else(|| "a DNS name".into())
        }),
    };
    (spec, reading.faults)
}

/// What [`ROUTE`] may say.
const ROUTES: &str = "always, cold-start-only, disabled or default";

struct Reading<'a> {
    service: &'a Service,
    faults: Vec<TargetFault>,
}

impl Reading<'_> {
    fn read<T: Clone>(
        &mut self,
        name: &'static str,
        held: &Option<T>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.service.annotations.get(name)?;
        match parse(value.trim()) {
            Ok(parsed) => Some(parsed),
            Err(expected) => {
                self.faults.push(TargetFault::annotation(name, value, expected));
                held.clone()
            }
        }
    }
}

fn route(text: &str) -> Result<RouteChoice, String> {
    match text {
        "default" => Ok(RouteChoice::Default),
        _ => text.parse().map(RouteChoice::Mode).map_err(|_| ROUTES.to_owned()),
    }
}

fn hosts(text: &str) -> Result<Vec<HostPattern>, String> {
    let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
    let parsed = hosts.map(|host| HostPattern::parse(host).ok_or(host));
    match parsed.collect::<Result<Vec<_>, _>>() {
        Ok(hosts) if hosts.len() <= MOST_HOSTS => Ok(hosts),
        Ok(_) => Err(format!("at most {MOST_HOSTS} hosts")),
        Err(bad) => Err(format!("hosts or *.<suffix>, separated by commas, without ports; {bad:?} is none")),
    }
}

fn port(service: &Service, text: &str) -> Result<PortChoice, String> {
    let choice = match text.parse::<u16>() {
        Ok(number) => PortChoice::Number(number),
        Err(_) => PortChoice::Name(text.into()),
    };
    let free = portless(service) && matches!(choice, PortChoice::Number(1..));
    let found = free || chosen_port(service, Some(&choice)).is_ok();
    if found { Ok(choice) } else { Err(format!("the number or name of a TCP port: {}", tcp_ports(service))) }
}

fn scale_target(text: &str) -> Result<ScaleTarget, String> {
    let kind_of = |kind: &str| {
        let dotted = kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');
        (dotted && kind.starts_with(|c: char| c.is_ascii_alphabetic())).then(|| kind.into())
    };
    let parts = text.split_once('/').and_then(|(kind, name)| Some((kind_of(kind)?, dns_name(name)?)));
    parts.map(|(kind, name)| ScaleTarget { kind, name }).ok_or_else(|| "<kind>/<name>, as Deployment/web".to_owned())
}

fn hold_timeout(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_ms = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let span = number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit)| number.checked_mul(unit));
    let span = span.map(Duration::from_millis).filter(|span| !span.is_zero() && *span <= LONGEST_HOLD);
    span.ok_or_else(|| "a whole number and ms, s, m or h, more than 0 and at most 1h".to_owned())
}

/// A DNS subdomain as Kubernetes has it (RFC 1123): what objects are called.
fn dns_name(text: &str) -> Option<Arc<str>> {
    let label = |label: &str| {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(valid)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.into())
}

#[cfg(test)]
mod tests;
