//! Requests through the proxy of a real activator, on real sockets. What only the proxy decides is seen on manifests, an activator
//! a test; what the API server decides with it is seen on a real one, which those tests share, each in a namespace of its own and
//! with an activator of its own.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use podlight_e2e::proxy::pki::Authority;
use podlight_e2e::proxy::stage::Stage;
use podlight_e2e::scene::Scene;
use tokio::sync::OnceCell;

mod bad_input;
mod balance;
mod endpoints;
mod events;
mod failure;
mod gateway;
mod grpc;
mod holding;
mod modes;
mod ports;
mod protocols;
mod routing;
mod seeing;
mod shutdown;
mod tls;
mod upstream_tls;
mod waking;

/// The API server of the tests that need one.
///
/// # Panics
/// When it cannot be set up: a test that cannot run has failed.
async fn scene() -> &'static Scene {
    static SCENE: OnceCell<Scene> = OnceCell::const_new();
    let started = SCENE.get_or_try_init(|| Scene::start_with(0, gateway::options())).await;
    started.unwrap_or_else(|error| panic!("no control plane: {error:#}"))
}

/// An authority of one test.
///
/// # Panics
/// When there is no randomness.
fn authority(name: &str) -> Authority {
    Authority::new(name).unwrap_or_else(|error| panic!("no authority: {error:#}"))
}

/// What the Events of this reason about a Service say, on a real API server.
///
/// # Errors
/// When they cannot be listed.
async fn told(stage: &Stage<'_>, service: &str, reason: &str) -> Result<Vec<String>> {
    let client = stage.scene().context("no API server")?.control_plane.client()?;
    let events = Api::<Event>::namespaced(client, &stage.namespace).list(&ListParams::default()).await?;
    let is_about = |event: &Event| {
        let about = &event.involved_object;
        let named = (about.kind.as_deref(), about.namespace.as_deref(), about.name.as_deref());
        named == (Some("Service"), Some(stage.namespace.as_str()), Some(service))
            && event.reason.as_deref() == Some(reason)
    };
    Ok(events.items.into_iter().filter(is_about).filter_map(|event| event.message).collect())
}
