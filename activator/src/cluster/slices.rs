//! From an EndpointSlice as the API server shows it to its endpoints and ports.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;
use podlight_proto::PodRef;

use super::extract::{ExtractError, RevisionLabels, address, namespaced_name, port, protocol, text};
use super::health::Kind;
use super::watch::Subject;
use crate::table::entry::State;
use crate::table::group::{EndpointPort, GroupKey, Slice, SliceEndpoint, SliceKey};
use crate::table::{Change, Update};

/// Names the Service that a slice serves.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Subject for discovery::EndpointSlice {
    const KIND: Kind = Kind::Slices;
    type Value = Slice;
    type Key = SliceKey;

    /// None for a slice of host names, and for one that serves no Service.
    fn extract(&self, _: &RevisionLabels) -> Result<Option<Slice>, ExtractError> {
        let key = self.key()?;
        let service = self.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        let Some(service) = service.filter(|name| !name.is_empty() && self.address_type != "FQDN") else {
            return Ok(None);
        };
        let group = GroupKey { namespace: Arc::clone(&key.namespace), service: service.as_str().into() };
        let ports = self.ports.iter().flatten().filter_map(|p| endpoint_port(p).transpose());
        let endpoints = self.endpoints.iter().flatten().filter_map(|e| endpoint(e, &key.namespace).transpose());
        let (ports, endpoints) = (ports.collect::<Result<_, _>>()?, endpoints.collect::<Result<_, _>>()?);
        Ok(Some(Slice { key, group, ports, endpoints }))
    }

    fn key(&self) -> Result<SliceKey, ExtractError> {
        let (namespace, name) = namespaced_name(&self.metadata)?;
        Ok(SliceKey { namespace: namespace.into(), name: name.into() })
    }

    fn update(change: Change<Arc<Slice>, SliceKey>) -> Update {
        Update::Slice(change)
    }
}

/// None for "all ports": there is nothing to resolve a name to.
fn endpoint_port(declared: &discovery::EndpointPort) -> Result<Option<EndpointPort>, ExtractError> {
    let Some(number) = declared.port else { return Ok(None) };
    let protocol = protocol(declared.protocol.as_deref())?;
    Ok(Some(EndpointPort { name: text(&declared.name).into(), port: port(number)?, protocol }))
}

/// None for an endpoint without address. Of several addresses only the first has a meaning.
fn endpoint(declared: &discovery::Endpoint, namespace: &str) -> Result<Option<SliceEndpoint>, ExtractError> {
    let Some(first) = declared.addresses.first() else { return Ok(None) };
    let conditions = declared.conditions.as_ref();
    let published = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(published);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    // With publishNotReadyAddresses `ready` is true whatever the pod is: then the other two tell.
    let state = match (terminating, published && serving) {
        (true, _) => State::Terminating,
        (false, true) => State::Ready,
        (false, false) => State::NotReady,
    };
    Ok(Some(SliceEndpoint { address: address(first)?, pod: pod(declared, namespace), state, serving }))
}

/// The pod behind an endpoint. A reference that cannot be a pod's is as good as none.
fn pod(declared: &discovery::Endpoint, namespace: &str) -> Option<PodRef> {
    let target = declared.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"))?;
    let namespace = target.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
    PodRef::new(namespace, text(&target.name), text(&target.uid)).ok()
}
