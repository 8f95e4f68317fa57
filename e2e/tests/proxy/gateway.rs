//! ClusterIPs that can be dialled: the shared API server hands them out from 127.0.0.0/8, and a backend there stands in for
//! kube-proxy and whatever it would lead to.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use podlight_e2e::backend::Backend;
use podlight_e2e::control_plane::Options;
use podlight_e2e::scene::Scene;

/// A control plane whose ClusterIPs are loopback addresses.
pub(crate) fn options() -> Options {
    let range = "--service-cluster-ip-range=127.192.0.0/16".to_owned();
    Options { api_server_flags: vec![range], ..Options::default() }
}

/// A backend at a Service's ClusterIP and port.
///
/// # Errors
/// When the Service has none.
pub(crate) async fn listen(scene: &Scene, namespace: &str, name: &str) -> Result<Backend> {
    let services = Api::<Service>::namespaced(scene.control_plane.client()?, namespace);
    let spec = services.get(name).await?.spec.context("a Service without spec")?;
    let address = spec.cluster_ip.context("no ClusterIP")?.parse()?;
    let port = spec.ports.iter().flatten().next().context("no port")?.port;
    let backend = Backend::at_port("cluster-ip", SocketAddr::new(address, u16::try_from(port)?));
    backend.listen()?;
    Ok(backend)
}
