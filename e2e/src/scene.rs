//! A control plane with activator replicas, and on it shops: namespaces of their own with a Service `web`, so that tests share
//! the servers and nothing else.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use crate::activator::{Activator, ActivatorSpec};
use crate::api::{Endpoint, Reader};
use crate::control_plane::{
    ContainerSpec, ControlPlane, Options, PodSpec, PodState, ServiceSpec, TokenSpec, http_probe,
};
use crate::sender::{REVISION_LABEL, Sender, now_ms};
use crate::sidecar::SidecarSpec;

/// A control plane with activators.
pub struct Scene {
    // The activators go before the API server that they watch.
    /// The replicas.
    pub activators: Vec<Activator>,
    /// What they watch.
    pub control_plane: ControlPlane,
    kubeconfig: PathBuf,
    reader_token: String,
    shops: AtomicU32,
}

impl Scene {
    /// Starts a control plane and so many replicas on it.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn start(replicas: usize) -> Result<Self> {
        Self::start_with(replicas, Options::default()).await
    }

    /// As [`Scene::start`], on a control plane that differs.
    ///
    /// # Errors
    /// When one of them does not start.
    pub async fn start_with(replicas: usize, options: Options) -> Result<Self> {
        let control_plane = ControlPlane::start(options).await?;
        control_plane.create_node("node-1").await?;
        control_plane.create_activator_account("default", "activator").await?;
        let kubeconfig = control_plane.kubeconfig_for("default", "activator").await?;
        control_plane.create_service_account("default", "reader").await?;
        control_plane.allow_url("default", "reader", "/v1/*").await?;
        let reader =
            control_plane.create_pod(PodSpec::new("default", "reader").service_account("reader"), None).await?;
        let reader_token = control_plane.token(&TokenSpec::for_pod(&reader)).await?;
        let (activators, shops) = (Vec::new(), AtomicU32::new(0));
        let mut scene = Self { activators, control_plane, kubeconfig, reader_token, shops };
        for replica in 0..replicas {
            let activator = scene.activator().flag("replica", &format!("replica-{replica}")).start().await?;
            scene.activators.push(activator);
        }
        Ok(scene)
    }

    /// How another activator on this control plane would run.
    pub fn activator(&self) -> ActivatorSpec {
        ActivatorSpec::new(&self.kubeconfig)
    }

    /// The kubeconfig of its activators.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A token that may read everything.
    pub fn reader_token(&self) -> &str {
        &self.reader_token
    }

    /// A reader of any activator.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn reader_of(&self, activator: &Activator) -> Result<Reader> {
        Reader::new(&activator.url(), &self.reader_token)
    }

    /// A namespace with the Service `web` (port `http`, 80, to the container port `http`) and the service account `web`.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn shop(&self) -> Result<Shop<'_>> {
        let namespace = format!("shop-{}", self.shops.fetch_add(1, Ordering::Relaxed));
        self.control_plane.create_namespace(&namespace).await?;
        self.control_plane.create_service_account(&namespace, "web").await?;
        let service = ServiceSpec::new(&namespace, "web").selector("app", "web").port("http", 80, "http");
        self.control_plane.create_service(service).await?;
        Ok(Shop { scene: self, namespace })
    }
}

/// A namespace of one test.
pub struct Shop<'a> {
    scene: &'a Scene,
    /// Its name.
    pub namespace: String,
}

/// A pod of a shop, its token and its sidecar's voice.
pub struct Web {
    /// As the API server returned it.
    pub pod: Pod,
    /// Bound to it.
    pub token: String,
    /// Its sidecar.
    pub sender: Sender,
}

impl Web {
    /// How a real sidecar of this pod would run.
    pub fn sidecar(&self) -> SidecarSpec {
        SidecarSpec::new(&self.pod, &self.token)
    }
}

impl Shop<'_> {
    /// A pod of the Service, as account `web`, with an HTTP readiness probe and revision `r1`.
    pub fn spec(&self, name: &str) -> PodSpec {
        self.spec_without_container(name).container(app_container())
    }

    /// The same without its container.
    pub fn spec_without_container(&self, name: &str) -> PodSpec {
        let spec = PodSpec::new(&self.namespace, name).service_account("web");
        spec.label("app", "web").label(REVISION_LABEL, "r1")
    }

    /// A pod that runs at an address of its own and has been not ready for a minute.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn web(&self, name: &str) -> Result<Web> {
        self.pod(self.spec(name), Some(running(&fresh_address()))).await
    }

    /// A pod as given, with its token.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn pod(&self, spec: PodSpec, state: Option<PodState>) -> Result<Web> {
        let pod = self.scene.control_plane.create_pod(spec, state).await?;
        let token = self.scene.control_plane.token(&TokenSpec::for_pod(&pod)).await?;
        let sender = Sender::for_pod(&pod)?;
        Ok(Web { pod, token, sender })
    }

    /// Reports a pod's status.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn set(&self, pod: &str, state: &PodState) -> Result<Pod> {
        self.scene.control_plane.set_pod_state(&self.namespace, pod, state).await
    }

    /// Deletes a pod; with a grace period it terminates, without it is gone.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete(&self, pod: &str, grace: u32) -> Result<()> {
        self.scene.control_plane.delete_pod(&self.namespace, pod, grace).await
    }

    /// Waits until a replica has this verdict (`ready pushed`) on a pod.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn wait(&self, replica: usize, pod: &str, verdict: &str) -> Result<Endpoint> {
        self.reader(replica)?.wait_verdict(&self.namespace, "web", pod, verdict).await
    }

    /// Waits until a replica no longer has a pod.
    ///
    /// # Errors
    /// When it keeps it.
    pub async fn wait_gone(&self, replica: usize, pod: &str) -> Result<()> {
        self.reader(replica)?.wait_gone(&self.namespace, "web", pod).await
    }

    /// What a replica says of a pod now.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn endpoint(&self, replica: usize, pod: &str) -> Result<Option<Endpoint>> {
        self.reader(replica)?.endpoint(&self.namespace, "web", pod).await
    }

    fn reader(&self, replica: usize) -> Result<Reader> {
        self.scene.reader_of(self.scene.activators.get(replica).context("no such replica")?)
    }
}

/// The container of a [`Shop`]'s pods.
pub fn app_container() -> ContainerSpec {
    ContainerSpec::new("app").port("http", 8080).readiness(http_probe("/ready", 8080))
}

/// Running at this address, not ready for a minute.
pub fn running(address: &str) -> PodState {
    PodState::new().phase("Running").address(address).ready(false, seconds_ago(60))
}

/// So many seconds before now, or after it where they are negative.
///
/// # Panics
/// Before the epoch.
pub fn seconds_ago(seconds: i64) -> Timestamp {
    let now = i64::try_from(now_ms() / 1000).expect("this century");
    Timestamp::from_second(now - seconds).expect("this century")
}

/// An address that no other pod of this process has. Nobody dials it.
pub fn fresh_address() -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let n = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    format!("10.{}.{}.{}", n >> 16 & 0xff, n >> 8 & 0xff, n & 0xff)
}
