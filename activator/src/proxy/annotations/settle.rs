//! What a Service, its annotations and the process's defaults come to.

use std::sync::Arc;
use std::time::Duration;

use super::{PortChoice, ROUTES, RouteChoice, TargetSpec};
use crate::proxy::target::{AppProtocol, Mode, Settings, UpstreamTls};
use crate::table::entry::Protocol;
use crate::table::group::{Service, ServiceKind, ServicePort};

/// What holds where annotations say nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The mode.
    pub mode: Mode,
    /// How long requests may be held.
    pub hold_timeout: Duration,
}

/// What the annotations, the Service and the defaults come to.
///
/// # Errors
/// Why the Service can take no requests.
pub fn settle(service: &Service, spec: &TargetSpec, defaults: &Defaults) -> Result<Settings, Arc<str>> {
    let Some(route) = spec.route else {
        return Err(format!("podlight.dev/route must be {ROUTES}").into());
    };
    if service.kind == ServiceKind::ExternalName {
        return Err("an ExternalName Service has no endpoints; name the host itself instead".into());
    }
    // A headless Service may leave out its ports: then whoever knows the number needs no more.
    let pod_port = match spec.port {
        Some(PortChoice::Number(number)) if portless(service) => Some(number),
        Some(_) | None => None,
    };
    let (port_name, service_port, app_protocol) = match pod_port {
        Some(number) => (Arc::default(), number, None),
        None => {
            let port = chosen_port(service, spec.port.as_ref())?;
            (Arc::clone(&port.name), port.port, port.app_protocol.as_deref())
        }
    };
    let mut protocol = AppProtocol::of(app_protocol);
    match spec.upstream_tls {
        Some(true) => protocol = AppProtocol::Https,
        Some(false) if protocol == AppProtocol::Https => protocol = AppProtocol::Http1,
        Some(false) | None => {}
    }
    let server_name: Arc<str> = format!("{}.{}.svc", service.key.service, service.key.namespace).into();
    let tls = (protocol == AppProtocol::Https).then(|| UpstreamTls {
        server_name: spec.upstream_server_name.clone().unwrap_or_else(|| Arc::clone(&server_name)),
        ca_secret: spec.upstream_ca_secret.clone(),
    });
    Ok(Settings {
        mode: match route {
            RouteChoice::Default => defaults.mode,
            RouteChoice::Mode(mode) => mode,
        },
        port_name,
        service_port,
        pod_port,
        protocol,
        tls,
        concurrency: spec.concurrency,
        scale_target: spec.scale_target.clone(),
        server_name,
        hold_timeout: spec.hold_timeout.unwrap_or(defaults.hold_timeout),
    })
}

pub(super) fn portless(service: &Service) -> bool {
    service.kind == ServiceKind::Headless && service.ports.is_empty()
}

pub(super) fn chosen_port<'a>(service: &'a Service, choice: Option<&PortChoice>) -> Result<&'a ServicePort, Arc<str>> {
    let mut tcp = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let found = match choice {
        Some(PortChoice::Number(number)) => tcp.find(|port| port.port == *number),
        Some(PortChoice::Name(name)) => tcp.find(|port| port.name == *name),
        None => match (tcp.clone().count(), tcp.clone().next()) {
            (1, only) => only,
            _ => tcp.find(|port| &*port.name == "http"),
        },
    };
    found.ok_or_else(|| {
        let which = match choice {
            Some(PortChoice::Number(number)) => format!("there is no TCP port {number}"),
            Some(PortChoice::Name(name)) => format!("there is no TCP port {name:?}"),
            None => "podlight.dev/port must say which port".to_owned(),
        };
        format!("{which}; the Service has {}", tcp_ports(service)).into()
    })
}

pub(super) fn tcp_ports(service: &Service) -> String {
    let tcp = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let named =
        |p: &ServicePort| if p.name.is_empty() { p.port.to_string() } else { format!("{} ({})", p.port, p.name) };
    let ports: Vec<String> = tcp.map(named).collect();
    if ports.is_empty() { "no TCP port".to_owned() } else { ports.join(", ") }
}
