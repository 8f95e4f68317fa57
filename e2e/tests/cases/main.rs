//! Podlight's real binaries against a real API server: what every event, endpoint and caller is told. All cases share one
//! control plane with two activators, each in a namespace of its own, so none of them stops a server or counts its requests.

use podlight_e2e::scene::Scene;
use tokio::sync::OnceCell;

mod bad_input;
mod cluster_calls;
mod endpoints;
mod order;
mod ownership;
mod process;
mod query;
mod sidecar;
mod tokens;

/// The scene of all cases.
///
/// # Panics
/// When it cannot be set up: a case that cannot run has failed.
async fn scene() -> &'static Scene {
    static SCENE: OnceCell<Scene> = OnceCell::const_new();
    let started = SCENE.get_or_try_init(|| Scene::start(2)).await;
    started.unwrap_or_else(|error| panic!("no control plane: {error:#}"))
}
