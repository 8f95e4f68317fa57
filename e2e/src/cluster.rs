//! A whole cluster with Podlight installed by its chart, for the suite in `tests/cluster`: kubelets, pods and addresses are
//! real, and the suite is one more of their users. It has to run where pods can be reached by their addresses and their
//! processes can be seen: on the node, or in its namespaces.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::api::Reader;
use crate::control_plane::lock;
use crate::follow::{self, Followed};
use crate::metrics::Metrics;

pub mod evidence;
pub mod processes;
pub mod shop;
pub mod timeline;

/// Where Podlight is installed.
pub const NAMESPACE: &str = "podlight-system";
/// The release, and the beginning of its objects' names.
pub const RELEASE: &str = "podlight";
/// Whom the suite reads the table as; the chart is told.
const READER: &str = "e2e-reader";
/// Which of its pods are activators.
const ACTIVATORS: &str = "app.kubernetes.io/name=podlight,app.kubernetes.io/component=activator";

/// Ports of an activator, the chart's defaults.
const EVENTS_PORT: u16 = 8443;
const ADMIN_PORT: u16 = 9401;
const REQUESTS_PORT: u16 = 8080;

/// The cluster that the kubeconfig names.
pub struct Cluster {
    client: Client,
    shops: AtomicU32,
    notes: Mutex<Vec<String>>,
}

/// A running activator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its pod.
    pub pod: String,
    /// The pod's address.
    pub address: IpAddr,
}

impl Replica {
    /// Where it takes requests.
    pub fn requests(&self) -> SocketAddr {
        SocketAddr::new(self.address, REQUESTS_PORT)
    }

    /// Base URL of its admin port.
    pub fn admin_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, ADMIN_PORT))
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::read(&self.admin_url()).await
    }

    /// What its certificate calls it: the name under which sidecars dial it.
    fn name(&self) -> String {
        let dashed = self.address.to_string().replace(['.', ':'], "-");
        format!("{dashed}.{RELEASE}-activator-events.{NAMESPACE}.svc")
    }
}

impl Cluster {
    /// The cluster that the environment's kubeconfig names.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn reach() -> Result<Self> {
        let client = Client::try_default().await.context("no usable kubeconfig: set KUBECONFIG")?;
        client.apiserver_version().await.context("the API server does not answer")?;
        Ok(Self { client, shops: AtomicU32::new(0), notes: Mutex::default() })
    }

    /// A client for the API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Notes a figure, to be printed beside the test's name.
    pub fn note(&self, text: impl Into<String>) {
        lock(&self.notes).push(text.into());
    }

    /// What was noted since the last look.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.notes))
    }

    pub(crate) fn next_shop(&self) -> u32 {
        self.shops.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs helm and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error is what it said.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let helm = std::env::var_os("HELM").context("HELM has to name helm: `make e2e` sets it")?;
        let mut command = Command::new(helm);
        command.args(arguments).args(["--namespace", NAMESPACE]);
        let output = tokio::task::spawn_blocking(move || command.output()).await?.context("cannot run helm")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "helm {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    }

    /// Installs Podlight from the checkout's chart, or brings an installation up to it, and waits until all of it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn install(&self) -> Result<()> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), "default");
        let reader = serde_json::from_value(json!({ "metadata": { "name": READER } }))?;
        match accounts.create(&PostParams::default(), &reader).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            other => drop(other?),
        }
        let values = tempfile::NamedTempFile::with_suffix(".json")?;
        std::fs::write(values.path(), values_of_the_suite().to_string())?;
        let (chart, values) = (chart(), values.path().display().to_string());
        let arguments = ["upgrade", "--install", RELEASE, &chart, "--create-namespace", "--values", &values];
        self.helm(&[&arguments[..], &["--wait", "--timeout", "180s"]].concat()).await?;
        Ok(())
    }

    /// The ready activators, in the order of their names.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn replicas(&self) -> Result<Vec<Replica>> {
        let pods = Api::<Pod>::namespaced(self.client(), NAMESPACE);
        let mut replicas = Vec::new();
        for pod in pods.list(&ListParams::default().labels(ACTIVATORS)).await? {
            if pod.metadata.deletion_timestamp.is_some() || !shop::is_ready(&pod) {
                continue;
            }
            let address = pod.status.and_then(|status| status.pod_ip).context("a ready pod without address")?;
            let pod = pod.metadata.name.unwrap_or_default();
            replicas.push(Replica { pod, address: address.parse()? });
        }
        replicas.sort_by(|one, other| one.pod.cmp(&other.pod));
        Ok(replicas)
    }

    /// The first of the ready activators.
    ///
    /// # Errors
    /// When none is ready.
    pub async fn replica(&self) -> Result<Replica> {
        self.replicas().await?.into_iter().next().context("no activator is ready")
    }

    /// A reader of one activator's table.
    ///
    /// # Errors
    /// When the API server grants no token.
    pub async fn reader(&self, replica: &Replica) -> Result<Reader> {
        let followed = self.followed(replica).await?;
        Ok(Reader::through(&followed.url, &followed.token, follow::client(&followed)?))
    }

    /// How one activator's table is followed.
    ///
    /// # Errors
    /// When the API server grants no token.
    pub async fn followed(&self, replica: &Replica) -> Result<Followed> {
        let name = replica.name();
        let address = SocketAddr::new(replica.address, EVENTS_PORT);
        Ok(Followed {
            url: format!("https://{name}:{EVENTS_PORT}"),
            ca_pem: self.ca_pem().await?,
            token: self.reader_token().await?,
            address: Some((name, address)),
        })
    }

    /// The CA that Podlight's webhook made.
    async fn ca_pem(&self) -> Result<String> {
        let secrets = Api::<Secret>::namespaced(self.client(), NAMESPACE);
        let data = secrets.get(&format!("{RELEASE}-ca")).await?.data.unwrap_or_default();
        let pem = data.get("ca.crt").context("the CA's Secret has no ca.crt")?;
        Ok(String::from_utf8(pem.0.clone())?)
    }

    async fn reader_token(&self) -> Result<String> {
        let spec = TokenRequestSpec {
            audiences: Some(vec!["podlight".to_owned()]),
            expiration_seconds: Some(3600),
            ..Default::default()
        };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), "default");
        let granted = accounts.create_token_request(READER, &PostParams::default(), &request).await?;
        granted.status.and_then(|status| status.token).context("the API server granted no token")
    }
}

/// The image of the tests' app, which is loaded into the cluster beforehand.
pub fn testapp_image() -> String {
    format!("localhost/podlight-testapp:{}", env!("CARGO_PKG_VERSION"))
}

/// The checkout's chart.
pub fn chart() -> String {
    crate::chart::folder().display().to_string()
}

/// What differs from the chart's defaults.
fn values_of_the_suite() -> Value {
    json!({
        "log": { "format": "text" },
        "query": { "readers": [{ "kind": "ServiceAccount", "name": READER, "namespace": "default" }] },
        "requests": { "scale": { "clusterWide": true } },
    })
}

/// Where what is kept of a run goes.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("e2e")
}
