//! Services, pods and an activator that takes requests for them. The cluster is manifests, which is quick, or a real API server;
//! what a test does is the same on both. Pods have addresses in 127.0.0.0/8 that their apps really listen on.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::client::{self, Answer, get};
use super::manifests::{Manifests, manifest};
use crate::activator::{Activator, ActivatorSpec};
use crate::api::{Endpoint, Reader};
use crate::backend::{Backend, fresh_loopback};
use crate::control_plane::{PodSpec, PodState, ServiceSpec, SliceSpec, TokenSpec};
use crate::eventually::eventually;
use crate::scene::{Scene, app_container, seconds_ago};
use crate::sender::{REVISION_LABEL, Sender};

mod pod;

pub use pod::StagePod;

/// The annotation by which a Service's requests are taken.
pub const ROUTE: &str = "podlight.dev/route";

/// The account of every pod here.
const ACCOUNT: &str = "web";

enum Ground<'a> {
    Manifests(Box<Manifests>),
    ControlPlane(&'a Scene),
}

/// A namespace with Services and pods, and activators that take requests for them.
pub struct Stage<'a> {
    // Dropped before the folder that they log into.
    /// The replicas.
    pub activators: Vec<Activator>,
    ground: Ground<'a>,
    /// The namespace of everything here.
    pub namespace: String,
}

/// A pod with its app.
pub struct Web {
    /// The pod.
    pub pod: StagePod,
    /// The app.
    pub app: Backend,
}

impl Stage<'static> {
    /// Manifests, one activator on them.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn standalone() -> Result<Self> {
        Self::standalone_with(|spec| spec).await
    }

    /// The same with an activator that differs.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn standalone_with(differ: impl FnOnce(ActivatorSpec) -> ActivatorSpec) -> Result<Self> {
        let manifests = Box::new(Manifests::new()?);
        let mut stage =
            Self { activators: Vec::new(), ground: Ground::Manifests(manifests), namespace: "shop".to_owned() };
        stage.put(vec![stage.account()?])?;
        let activator = differ(stage.spec()?).start().await?;
        stage.activators.push(activator);
        Ok(stage)
    }
}

impl<'a> Stage<'a> {
    /// A namespace on a real API server, one activator of its own.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn on(scene: &'a Scene, differ: impl FnOnce(ActivatorSpec) -> ActivatorSpec) -> Result<Self> {
        static NAMESPACES: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("stage-{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
        scene.control_plane.create_namespace(&namespace).await?;
        scene.control_plane.create_service_account(&namespace, ACCOUNT).await?;
        let mut stage = Self { activators: Vec::new(), ground: Ground::ControlPlane(scene), namespace };
        let activator = differ(stage.spec()?).start().await?;
        stage.activators.push(activator);
        Ok(stage)
    }

    /// How another activator here would run: it takes requests.
    ///
    /// # Errors
    /// When no port is free.
    pub fn spec(&self) -> Result<ActivatorSpec> {
        match &self.ground {
            Ground::Manifests(manifests) => manifests.activator(),
            Ground::ControlPlane(scene) => scene.activator(),
        }
        .proxy()
    }

    /// The scene, where the cluster is a real API server.
    pub fn scene(&self) -> Option<&'a Scene> {
        match self.ground {
            Ground::ControlPlane(scene) => Some(scene),
            Ground::Manifests(_) => None,
        }
    }

    /// A folder for a test's own files, removed with the stage or the scene.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self) -> Result<tempfile::TempDir> {
        Ok(tempfile::Builder::new().prefix("podlight-files.").tempdir()?)
    }

    /// The first replica.
    pub fn activator(&self) -> &Activator {
        &self.activators[0]
    }

    /// Where the first replica takes requests.
    ///
    /// # Errors
    /// When it takes none.
    pub fn proxy(&self) -> Result<SocketAddr> {
        self.activator().proxy_address()
    }

    /// What reaches a Service by its name.
    pub fn host(&self, service: &str) -> String {
        format!("{service}.{}", self.namespace)
    }

    /// A Service whose requests are taken: it selects pods by `app=<name>`, its port `http`, 80, leads to the container port `http`.
    pub fn service(&self, name: &str) -> ServiceSpec {
        self.bare_service(name).port("http", 80, "http")
    }

    /// The same without its port.
    pub fn bare_service(&self, name: &str) -> ServiceSpec {
        self.open_service(name).selector("app", name)
    }

    /// The same without selector and port: no more than that its requests are taken.
    pub fn open_service(&self, name: &str) -> ServiceSpec {
        ServiceSpec::new(&self.namespace, name).annotation(ROUTE, "default")
    }

    /// A pod of the Service `app`.
    pub fn pod_spec(&self, app: &str, name: &str) -> PodSpec {
        self.bare_pod_spec(app, name).container(app_container())
    }

    /// The same without its container.
    pub fn bare_pod_spec(&self, app: &str, name: &str) -> PodSpec {
        PodSpec::new(&self.namespace, name).service_account(ACCOUNT).label("app", app).label(REVISION_LABEL, "r1")
    }

    /// Creates a Service.
    ///
    /// # Errors
    /// When the cluster refuses, as in all functions that create or change something.
    pub async fn create_service(&self, spec: ServiceSpec) -> Result<()> {
        match &self.ground {
            Ground::Manifests(_) => {
                let mut service = spec.build();
                let times = &mut service.metadata.creation_timestamp;
                times.get_or_insert(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()));
                self.put(vec![manifest(&service)?])
            }
            Ground::ControlPlane(scene) => scene.control_plane.create_service(spec).await.map(drop),
        }
    }

    /// Changes a Service by a merge patch.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn patch_service(&self, name: &str, patch: Value) -> Result<()> {
        match &self.ground {
            Ground::Manifests(manifests) => manifests.patch("Service", &self.namespace, name, &patch).map(drop),
            Ground::ControlPlane(scene) => {
                let services = Api::<Service>::namespaced(scene.control_plane.client()?, &self.namespace);
                services.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                Ok(())
            }
        }
    }

    /// Sets (or with `None` removes) an annotation of a Service.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn annotate(&self, service: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.patch_service(service, json!({ "metadata": { "annotations": { key: value } } })).await
    }

    /// Deletes a Service.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn delete_service(&self, name: &str) -> Result<()> {
        match &self.ground {
            Ground::Manifests(manifests) => manifests.remove("Service", &self.namespace, name),
            Ground::ControlPlane(scene) => {
                let services = Api::<Service>::namespaced(scene.control_plane.client()?, &self.namespace);
                services.delete(name, &DeleteParams::default()).await?;
                Ok(())
            }
        }
    }

    /// Creates an EndpointSlice, or replaces it in manifests.
    ///
    /// # Errors
    /// When the cluster refuses; a real one refuses loopback addresses.
    pub async fn put_slice(&self, spec: SliceSpec) -> Result<()> {
        match &self.ground {
            Ground::Manifests(_) => self.put(vec![manifest(&spec.build())?]),
            Ground::ControlPlane(scene) => scene.control_plane.create_endpoint_slice(spec).await.map(drop),
        }
    }

    /// Takes an EndpointSlice away. Manifests only.
    ///
    /// # Errors
    /// On a real API server.
    pub fn remove_slice(&self, name: &str) -> Result<()> {
        self.manifests()?.remove("EndpointSlice", &self.namespace, name)
    }

    /// Creates a pod, with a token for it.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn create_pod(&self, spec: PodSpec, state: &PodState) -> Result<StagePod> {
        let (pod, token) = match &self.ground {
            Ground::Manifests(manifests) => {
                let mut pod = spec.build();
                let (namespace, name) = (&self.namespace, pod.metadata.name.clone().context("a pod without name")?);
                // Another life of the same name is another pod.
                static LIVES: AtomicU32 = AtomicU32::new(0);
                let life = LIVES.fetch_add(1, Ordering::Relaxed);
                pod.metadata.uid.get_or_insert_with(|| format!("00000000-0000-4000-8000-{life:012x}"));
                manifests.put(vec![manifest(&pod)?])?;
                let pod = manifests.patch("Pod", namespace, &name, &state.merge_patch())?;
                let pod: Pod = serde_json::from_value(pod)?;
                let token = manifests.token(&pod)?;
                (pod, token)
            }
            Ground::ControlPlane(scene) => {
                let pod = scene.control_plane.create_pod(spec, Some(state.clone())).await?;
                let token = scene.control_plane.token(&TokenSpec::for_pod(&pod)).await?;
                (pod, token)
            }
        };
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or("0.0.0.0").parse()?;
        let name = pod.metadata.name.clone().context("a pod without name")?;
        let replicas = self.activators.iter().map(Activator::url).collect();
        Ok(StagePod { name, address, sender: Sender::for_pod(&pod)?, pod, token, replicas })
    }

    /// A pod of the Service `app` at `address`, running and not ready.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn pod_at(&self, app: &str, name: &str, address: IpAddr) -> Result<StagePod> {
        self.create_pod(self.pod_spec(app, name), &running(address)).await
    }

    /// A pod of the Service `app` whose app listens at an address of its own. Nobody has said that it is ready.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn web(&self, app: &str, name: &str) -> Result<Web> {
        let app_of_it = Backend::start(name)?;
        let pod = self.pod_at(app, name, app_of_it.address().ip()).await?;
        Ok(Web { pod, app: app_of_it })
    }

    /// The same, ready by its sidecar's word and known as such.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn ready_web(&self, app: &str, name: &str) -> Result<Web> {
        let web = self.web(app, name).await?;
        web.pod.ready().await?;
        Ok(web)
    }

    /// A pod of the Service `app` whose app is `backend`, ready by its sidecar's word.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn ready_with(&self, app: &str, name: &str, backend: Backend) -> Result<Web> {
        let pod = self.pod_at(app, name, backend.address().ip()).await?;
        pod.ready().await?;
        Ok(Web { pod, app: backend })
    }

    /// Reports a pod's status.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn set_state(&self, pod: &str, state: &PodState) -> Result<()> {
        match &self.ground {
            Ground::Manifests(manifests) => {
                manifests.patch("Pod", &self.namespace, pod, &state.merge_patch()).map(drop)
            }
            Ground::ControlPlane(scene) => {
                scene.control_plane.set_pod_state(&self.namespace, pod, state).await.map(drop)
            }
        }
    }

    /// Deletes a pod; with a grace period it terminates, without it is gone.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn delete_pod(&self, pod: &str, grace: u32) -> Result<()> {
        match &self.ground {
            Ground::Manifests(manifests) if grace == 0 => manifests.remove("Pod", &self.namespace, pod),
            Ground::Manifests(manifests) => {
                let deadline = Timestamp::now() + std::time::Duration::from_secs(grace.into());
                let deadline = Timestamp::from_second(deadline.as_second())?.to_string();
                let patch = json!({ "deletionTimestamp": deadline, "deletionGracePeriodSeconds": grace });
                manifests.patch("Pod", &self.namespace, pod, &json!({ "metadata": patch })).map(drop)
            }
            Ground::ControlPlane(scene) => scene.control_plane.delete_pod(&self.namespace, pod, grace).await,
        }
    }

    /// A reader of the first replica's query API.
    ///
    /// # Errors
    /// When no token can be made.
    pub fn reader(&self) -> Result<Reader> {
        match &self.ground {
            Ground::ControlPlane(scene) => scene.reader_of(self.activator()),
            Ground::Manifests(manifests) => {
                let (url, token) = (self.activator().url(), manifests.reader_token()?);
                match self.activator().ca_pem()? {
                    None => Reader::new(&url, &token),
                    Some(ca_pem) => Reader::over_tls(&url, &token, &ca_pem),
                }
            }
        }
    }

    /// Waits until the first replica has this verdict (`ready pushed`) on a pod.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn wait(&self, service: &str, pod: &str, verdict: &str) -> Result<Endpoint> {
        self.reader()?.wait_verdict(&self.namespace, service, pod, verdict).await
    }

    /// Waits until the first replica has so many endpoints of a Service.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn wait_endpoints(&self, service: &str, count: usize) -> Result<Vec<Endpoint>> {
        let reader = self.reader()?;
        eventually(&format!("{service} has {count} endpoints"), async || {
            let endpoints = reader.endpoints(&self.namespace, service).await?;
            anyhow::ensure!(endpoints.len() == count, "{endpoints:?}");
            Ok(Some(endpoints))
        })
        .await
    }

    /// Asks for `path` of a Service by its name.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get(&self, service: &str, path: &str) -> Result<Answer> {
        client::ask(self.proxy()?, get(&self.host(service), path)).await
    }

    /// Asks again and again until an answer is as wanted: for what the proxy learns from the cluster in its own time.
    ///
    /// # Errors
    /// When it never is.
    pub async fn until(&self, host: &str, wanted: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let proxy = self.proxy()?;
        eventually(&format!("{host} answers as wanted"), async || {
            let answer = client::ask(proxy, get(host, "/")).await?;
            if !wanted(&answer) {
                bail!("it answers {answer:?}");
            }
            Ok(Some(answer))
        })
        .await
    }

    fn manifests(&self) -> Result<&Manifests> {
        match &self.ground {
            Ground::Manifests(manifests) => Ok(manifests),
            Ground::ControlPlane(_) => bail!("there are no manifests"),
        }
    }

    /// Puts any manifests there.
    ///
    /// # Errors
    /// On a real API server.
    pub fn put(&self, objects: Vec<Value>) -> Result<()> {
        self.manifests()?.put(objects)
    }

    fn account(&self) -> Result<Value> {
        let mut account = ServiceAccount::default();
        account.metadata.namespace = Some(self.namespace.clone());
        account.metadata.name = Some(ACCOUNT.to_owned());
        manifest(&account)
    }
}

/// Running at this address, not ready for a minute as far as the kubelet knows.
pub fn running(address: IpAddr) -> PodState {
    PodState::new().phase("Running").address(&address.to_string()).ready(false, seconds_ago(60))
}

/// Running at this address, and ready for some seconds as the kubelet knows.
pub fn running_ready(address: IpAddr) -> PodState {
    PodState::new().phase("Running").address(&address.to_string()).ready(true, seconds_ago(5))
}

/// An address for a pod that nobody listens at yet.
pub fn nowhere() -> IpAddr {
    fresh_loopback()
}
