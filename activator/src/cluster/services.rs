//! From a Service as the API server shows it to what decides its endpoints and the way to them.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::extract::{ExtractError, RevisionLabels, address, namespaced_name, port, protocol, text};
use super::health::Kind;
use super::watch::Subject;
use crate::table::group::{Family, GroupKey, Service, ServiceKind, ServicePort, TargetPort};
use crate::table::{Change, Update};

/// What the annotations begin with that are meant for Podlight.
const ANNOTATIONS: &str = "podlight.dev/";

/// What stands in the place of the address of a Service that has none.
const HEADLESS: &str = "None";

impl Subject for core::Service {
    const KIND: Kind = Kind::Services;
    type Value = Service;
    type Key = GroupKey;

    fn extract(&self, _: &RevisionLabels) -> Result<Option<Service>, ExtractError> {
        let key = self.key()?;
        let spec = self.spec.as_ref();
        let meta = &self.metadata;
        let created = meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let annotation = |(name, value): (&String, &String)| {
            name.strip_prefix(ANNOTATIONS).map(|name| (name.into(), value.as_str().into()))
        };
        let service = Service {
            uid: text(&meta.uid).into(),
            created_seconds: created.try_into().unwrap_or(0),
            annotations: meta.annotations.iter().flatten().filter_map(annotation).collect(),
            ..Service::new(key)
        };
        // An ExternalName is an alias in DNS: whatever else its spec says leads nowhere.
        if spec.is_some_and(|s| s.type_.as_deref() == Some("ExternalName")) {
            return Ok(Some(Service { kind: ServiceKind::ExternalName, ..service }));
        }
        let Some(spec) = spec else { return Ok(Some(service)) };
        let selector = spec.selector.as_ref().filter(|labels| !labels.is_empty());
        let headless = spec.cluster_ip.as_deref() == Some(HEADLESS);
        Ok(Some(Service {
            kind: if headless { ServiceKind::Headless } else { ServiceKind::Cluster },
            cluster_ips: cluster_ips(spec)?,
            families: spec.ip_families.iter().flatten().filter_map(|family| self::family(family)).collect(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            selector: selector.map(|s| s.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect()),
            ports: spec.ports.iter().flatten().map(service_port).collect::<Result<_, _>>()?,
            ..service
        }))
    }

    fn key(&self) -> Result<GroupKey, ExtractError> {
        namespaced_name(&self.metadata).map(|(namespace, name)| GroupKey::new(namespace, name))
    }

    fn update(change: Change<Arc<Service>, GroupKey>) -> Update {
        Update::Service(change)
    }
}

/// The virtual addresses. Manifests may name one or all; before the API server has given any, there are none.
fn cluster_ips(spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, ExtractError> {
    let named = spec.cluster_ips.iter().flatten();
    let named = if spec.cluster_ips.is_some() { named.collect() } else { spec.cluster_ip.iter().collect::<Vec<_>>() };
    named.into_iter().filter(|ip| !ip.is_empty() && *ip != HEADLESS).map(|ip| address(ip)).collect()
}

fn family(name: &str) -> Option<Family> {
    match name {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        // A family that is yet to be invented: no address of ours is of it.
        _ => None,
    }
}

fn service_port(declared: &core::ServicePort) -> Result<ServicePort, ExtractError> {
    let number = port(declared.port)?;
    let target = match &declared.target_port {
        // 0 is how an omitted targetPort looks in some clients' objects.
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(n)) => TargetPort::Number(port(*n)?),
        Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(number),
        Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
    };
    let protocol = protocol(declared.protocol.as_deref())?;
    let app_protocol = declared.app_protocol.as_deref().map(Into::into);
    Ok(ServicePort { name: text(&declared.name).into(), port: number, target, protocol, app_protocol })
}
