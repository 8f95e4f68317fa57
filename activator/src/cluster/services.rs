//! From a Service as the API server shows it to what decides its endpoints: selector and ports.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::extract::{ExtractError, RevisionLabels, namespaced_name, port, protocol, text};
use super::health::Kind;
use super::watch::Subject;
use crate::table::group::{GroupKey, Service, ServicePort, TargetPort};
use crate::table::{Change, Update};

impl Subject for core::Service {
    const KIND: Kind = Kind::Services;
    type Value = Service;
    type Key = GroupKey;

    fn extract(&self, _: &RevisionLabels) -> Result<Option<Service>, ExtractError> {
        let key = self.key()?;
        let spec = self.spec.as_ref();
        // An ExternalName is an alias in DNS: whatever else its spec says leads nowhere.
        let Some(spec) = spec.filter(|s| s.type_.as_deref() != Some("ExternalName")) else {
            return Ok(Some(Service { key, selector: None, ports: Vec::new() }));
        };
        let selector = spec.selector.as_ref().filter(|labels| !labels.is_empty());
        let selector = selector.map(|s| s.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect());
        let ports = spec.ports.iter().flatten().map(service_port).collect::<Result<_, _>>()?;
        Ok(Some(Service { key, selector, ports }))
    }

    fn key(&self) -> Result<GroupKey, ExtractError> {
        namespaced_name(&self.metadata).map(|(namespace, name)| GroupKey::new(namespace, name))
    }

    fn update(change: Change<Arc<Service>, GroupKey>) -> Update {
        Update::Service(change)
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
    Ok(ServicePort { name: text(&declared.name).into(), port: number, target, protocol })
}
