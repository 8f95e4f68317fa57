//! The kubelet's probes in the words of the sidecar's `--probe`: what each container's readinessProbe and startupProbe ask,
//! or what its annotation says instead. A probe that cannot be put into these words exactly is a reason not to inject.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::num::NonZeroU32;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, PodSpec, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use podlight_proto::MAX_PORTS;

use super::Reason;
use super::annotations::Wishes;
use crate::config::timeout;

/// Most probes that a sidecar runs.
const MAX_PROBES: usize = MAX_PORTS;

/// The kubelet's period of a probe that says none.
const PERIOD_SECONDS: i32 = 10;

/// Longest span that the sidecar takes.
const LONGEST_SECONDS: i32 = 24 * 3600;

/// The sidecar's defaults, which are the kubelet's.
const TIMEOUT_SECONDS: i32 = 1;
const FAILURES: i32 = 3;
const SUCCESSES: i32 = 1;

/// The sidecar's options, in a query that is otherwise the app's.
const OPTIONS: [&str; 6] = ["period", "timeout", "failure", "success", "once", "header"];

/// What may not stand in a request's path as it is; Go's URLs, which the kubelet uses, write them like this.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`');
const IN_PATH_ONLY: &AsciiSet = &IN_PATH.add(b'{').add(b'|').add(b'}');

/// What may not stand in a header option.
const IN_HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'&').add(b'#');

/// Of which kind a probe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Readiness,
    Startup,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Readiness => "readinessProbe",
            Self::Startup => "startupProbe",
        }
    }
}

/// The containers that run as long as the pod does: the main ones, and init containers that are restarted.
pub(super) fn lasting_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let native = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    native.chain(&spec.containers)
}

/// What the sidecar of a pod probes.
pub(super) fn of_pod(spec: &PodSpec, wishes: &Wishes) -> Result<Vec<String>, Reason> {
    let mut probes = Vec::new();
    for container in lasting_containers(spec) {
        let of_container = match wishes.probes.get(&container.name) {
            Some(wished) => wished.clone(),
            None => of_container(container)?,
        };
        for probe in of_container {
            if !probes.contains(&probe) {
                probes.push(probe);
            }
        }
    }
    match probes.len() {
        0 => Err(Reason::NothingToProbe),
        1..=MAX_PROBES => Ok(probes),
        _ => Err(Reason::TooManyProbes(MAX_PROBES)),
    }
}

fn of_container(container: &Container) -> Result<Vec<String>, Reason> {
    let probes = [(Kind::Startup, &container.startup_probe), (Kind::Readiness, &container.readiness_probe)];
    let probes = probes.into_iter().filter_map(|(kind, probe)| Some((kind, probe.as_ref()?)));
    let translated: Result<Vec<_>, _> = probes.map(|(kind, probe)| translate(container, kind, probe)).collect();
    let mut translated = translated?;
    if translated.is_empty() {
        let tcp = |protocol: Option<&str>| matches!(protocol, None | Some("" | "TCP"));
        let ports = container.ports.iter().flatten().filter(|port| tcp(port.protocol.as_deref()));
        translated.extend(ports.map(|port| format!("tcp://:{}", port.container_port)));
    }
    Ok(translated)
}

fn translate(container: &Container, kind: Kind, probe: &Probe) -> Result<String, Reason> {
    let (name, kind_name) = (&container.name, kind.name());
    let cannot = |fault: String| Reason::Probe { container: name.clone(), kind: kind_name, fault };
    let text = match probe {
        Probe { exec: Some(_), .. } => return Err(Reason::Exec { container: name.clone(), kind: kind_name }),
        Probe { http_get: Some(action), .. } => http(container, action),
        Probe { tcp_socket: Some(action), .. } => tcp(container, action),
        Probe { grpc: Some(action), .. } => grpc(action),
        _ => Err("it asks nothing that is known".to_owned()),
    };
    let mut text = text.map_err(cannot)?;
    let mut mark = if text.contains('?') { '&' } else { '?' };
    let mut option = |written: String| {
        text.push(mark);
        text.push_str(&written);
        mark = '&';
    };
    let given = |number: Option<i32>, default| number.filter(|n| *n > 0).unwrap_or(default);
    let (timeout, failures) = (given(probe.timeout_seconds, TIMEOUT_SECONDS), given(probe.failure_threshold, FAILURES));
    if kind == Kind::Readiness {
        let period = given(probe.period_seconds, PERIOD_SECONDS).min(LONGEST_SECONDS);
        option(format!("period={period}s"));
    }
    if timeout != TIMEOUT_SECONDS {
        option(format!("timeout={}s", timeout.min(LONGEST_SECONDS)));
    }
    match kind {
        // Until it has passed the sidecar asks on; how often it may fail is the kubelet's to judge.
        Kind::Startup => option("once".to_owned()),
        Kind::Readiness => {
            let successes = given(probe.success_threshold, SUCCESSES);
            if failures != FAILURES {
                option(format!("failure={failures}"));
            }
            if successes != SUCCESSES {
                option(format!("success={successes}"));
            }
        }
    }
    for header in probe.http_get.iter().flat_map(|action| action.http_headers.iter().flatten()) {
        let named = HeaderName::from_bytes(header.name.as_bytes()).is_ok();
        if !named || HeaderValue::from_str(&header.value).is_err() {
            return Err(cannot(format!("its header {:?} cannot be sent", header.name)));
        }
        option(format!("header={}:{}", header.name, utf8_percent_encode(&header.value, IN_HEADER)));
    }
    Ok(text)
}

fn http(container: &Container, action: &HTTPGetAction) -> Result<String, String> {
    let scheme = match action.scheme.as_deref() {
        None | Some("" | "HTTP") => "http",
        Some("HTTPS") => "https",
        Some(other) => return Err(format!("its scheme is {other:?}")),
    };
    let (host, port) = (host(action.host.as_deref())?, port(container, &action.port)?);
    let path = path(action.path.as_deref().unwrap_or_default());
    if path.parse::<PathAndQuery>().is_err() {
        return Err(format!("its path is {path:?}"));
    }
    Ok(format!("{scheme}://{host}:{port}{path}"))
}

fn tcp(container: &Container, action: &TCPSocketAction) -> Result<String, String> {
    Ok(format!("tcp://{}:{}", host(action.host.as_deref())?, port(container, &action.port)?))
}

fn grpc(action: &GRPCAction) -> Result<String, String> {
    let port = number(action.port)?;
    match action.service.as_deref().unwrap_or_default() {
        "" => Ok(format!("grpc://:{port}")),
        service if service.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) => {
            Ok(format!("grpc://:{port}/{service}"))
        }
        service => Err(format!("its service is {service:?}")),
    }
}

fn host(host: Option<&str>) -> Result<String, String> {
    let name = host.unwrap_or_default();
    match name.trim_start_matches('[').trim_end_matches(']').parse() {
        _ if matches!(name, "" | "localhost") => Ok(name.to_owned()),
        Ok(IpAddr::V4(ip)) => Ok(ip.to_string()),
        Ok(IpAddr::V6(ip)) => Ok(format!("[{ip}]")),
        Err(_) => Err(format!("its host {name:?} is no address")),
    }
}

/// The port's number: as the kubelet does, a name is looked for among the ports of the same container.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => named_port(container, name),
    }
}

fn named_port(container: &Container, name: &str) -> Result<u16, String> {
    let declared = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
    match (declared, name.parse()) {
        (Some(port), _) => number(port.container_port),
        (None, Ok(port)) => number(port),
        (None, Err(_)) => Err(format!("the container has no port {name:?}")),
    }
}

fn number(port: i32) -> Result<u16, String> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| format!("its port is {port}"))
}

/// Path and query as the kubelet requests them, with the app's own parameters kept apart from the sidecar's options.
fn path(path: &str) -> String {
    let path = path.split_once('#').map_or(path, |(path, _)| path);
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut text = format!("{slash}{}", utf8_percent_encode(path, IN_PATH_ONLY));
    for (index, parameter) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        let mut rest = parameter;
        if OPTIONS.contains(&name) {
            // Means the same to the app, and nothing to the sidecar.
            let _ = write!(text, "%{:02X}", parameter.as_bytes()[0]);
            rest = &parameter[1..];
        }
        let _ = write!(text, "{}", utf8_percent_encode(rest, IN_PATH));
    }
    text
}

/// A probe that an annotation names in the sidecar's own words. Its port may be the name of one that the container declares.
pub(super) fn written(text: &str, container: &Container) -> Result<String, String> {
    let form = || format!("{text:?} must be <http|https|tcp|grpc>://[address]:<port>[/path][?options]");
    let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let (address, port) = authority.rsplit_once(':').ok_or_else(form)?;
    let (host, port) = (host(Some(address))?, named_port(container, port)?);
    let http = matches!(scheme, "http" | "https");
    let options: Result<Vec<_>, _> =
        query.split('&').filter(|option| !option.is_empty()).map(|option| check_option(option, http)).collect();
    options?;
    let path_fits = match scheme {
        "http" | "https" => {
            let path = format!("{}{path}?{query}", if path.is_empty() { "/" } else { "" });
            path.parse::<PathAndQuery>().is_ok()
        }
        "tcp" => path.is_empty(),
        "grpc" => true,
        _ => false,
    };
    if !path_fits {
        return Err(form());
    }
    let mark = if query.is_empty() { "" } else { "?" };
    Ok(format!("{scheme}://{host}:{port}{path}{mark}{query}"))
}

fn check_option(option: &str, http: bool) -> Result<(), String> {
    let (name, value) = option.split_once('=').unwrap_or((option, ""));
    let valid = match name {
        "period" | "timeout" => timeout(value).is_ok(),
        "failure" | "success" => value.parse::<NonZeroU32>().is_ok(),
        "once" => value.is_empty(),
        "header" if http => is_header(value),
        // The app's.
        _ => http,
    };
    if valid { Ok(()) } else { Err(format!("{option:?} is no option, or not a value that it takes")) }
}

fn is_header(text: &str) -> bool {
    let Ok(text) = percent_decode_str(text).decode_utf8() else { return false };
    let Some((name, value)) = text.split_once(':') else { return false };
    name.parse::<HeaderName>().is_ok() && value.trim().parse::<HeaderValue>().is_ok()
}
