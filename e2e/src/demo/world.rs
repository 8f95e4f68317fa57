//! What the demo runs in: a folder with manifests, an issuer key, tokens and logs, and the processes that are started on it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use podlight_activator::cluster::standalone::pod_uid;
use serde_json::json;
use tempfile::TempDir;

use super::app::AppProcess;
use crate::activator::{Activator, ActivatorSpec};
use crate::binary;
use crate::control_plane::process::free_port;
use crate::sidecar::{Sidecar, SidecarSpec};

pub(super) const NAMESPACE: &str = "shop";
pub(super) const SERVICE: &str = "web";

/// A pod of the manifests. Its labels, its ServiceAccount and its Service go by one name.
pub(super) struct DemoPod {
    pub(super) name: &'static str,
    account: &'static str,
    address: &'static str,
}

/// The pod of the story.
pub(super) const APP: DemoPod = DemoPod { name: "web-0", account: SERVICE, address: "127.0.0.1" };

/// The same without a sidecar.
pub(super) const QUIET: DemoPod = DemoPod { name: "quiet-0", account: "quiet", address: "127.0.0.1" };

/// A pod of somebody else's.
pub(super) const THIEF: DemoPod = DemoPod { name: "thief-0", account: "thief", address: "127.0.0.9" };

const SERVICES_AND_ACCOUNTS: &str = "\
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: web, annotations: { podlight.dev/route: always } }
spec:
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: http }]
---
apiVersion: v1
kind: Service
metadata: { namespace: shop, name: quiet, annotations: { podlight.dev/route: always } }
spec:
  selector: { app: quiet }
  ports: [{ name: http, port: 80, targetPort: http }]
---
apiVersion: v1
kind: ServiceAccount
metadata: { namespace: shop, name: web }
---
apiVersion: v1
kind: ServiceAccount
metadata: { namespace: shop, name: quiet }
---
apiVersion: v1
kind: ServiceAccount
metadata: { namespace: shop, name: thief }
";

pub(super) struct World {
    folder: TempDir,
    /// Where the app of [`APP`] listens, and that of [`QUIET`].
    ports: [u16; 2],
    /// Where health checks are answered.
    readiness: SocketAddr,
}

impl World {
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("podlight-demo.").tempdir()?;
        let manifests = folder.path().join("manifests");
        fs::create_dir(&manifests)?;
        fs::write(manifests.join("services.yaml"), SERVICES_AND_ACCOUNTS)?;
        let readiness = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let world = Self { folder, ports: [free_port()?, free_port()?], readiness };
        for pod in [APP, QUIET, THIEF] {
            world.write(&pod, None)?;
        }
        Ok(world)
    }

    /// Writes what the API server would show of a pod: not ready, or ready since some second after the epoch.
    pub(super) fn write(&self, pod: &DemoPod, ready_since: Option<u64>) -> Result<()> {
        let file = self.path("manifests").join(format!("{}.yaml", pod.name));
        // Put there in one piece: the activator reads it whenever it has changed.
        let draft = self.path("draft");
        fs::write(&draft, pod.manifest(self.port(pod), ready_since)?)?;
        Ok(fs::rename(draft, file)?)
    }

    /// Where a pod's app listens.
    pub(super) fn port(&self, pod: &DemoPod) -> u16 {
        self.ports[usize::from(pod.name == QUIET.name)]
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) async fn activator(&self) -> Result<Activator> {
        ActivatorSpec::standalone(&self.folder().join("manifests"), &self.folder().join("issuer.key"))
            .flag("replica", "activator-0")
            .flag("xdp-listen", &self.readiness.to_string())
            .flag("xdp-interface", "lo")
            .self_signed()
            .proxy()?
            .start()
            .await
    }

    /// Where a health check of the Service is answered.
    pub(super) fn health_check(&self) -> String {
        format!("http://{}/ready/{NAMESPACE}/{SERVICE}", self.readiness)
    }

    pub(super) fn sidecar(&self, activator: &Activator, app_port: u16, token: &str) -> Result<SidecarSpec> {
        let spec = SidecarSpec::new(&self.pod(&APP)?, token)
            .activator(&activator.url())
            .flag("activator-ca", &activator.ca_file().display().to_string());
        Ok(spec.probe(&format!("http://127.0.0.1:{app_port}/ready")))
    }

    /// A pod as an API server would return it.
    pub(super) fn pod(&self, pod: &DemoPod) -> Result<Pod> {
        Ok(serde_json::from_value(json!({
            "metadata": {
                "namespace": NAMESPACE,
                "name": pod.name,
                "uid": pod_uid(NAMESPACE, pod.name).as_str(),
                "labels": { "app": pod.account, "podlight.dev/revision": "v1" },
            },
            "spec": { "serviceAccountName": pod.account, "containers": [] },
            "status": { "podIPs": [{ "ip": pod.address }] },
        }))?)
    }

    /// Has the activator's own command mint a pod's token.
    pub(super) fn token(&self, pod: &DemoPod) -> Result<String> {
        let mut command = Command::new(binary("podlight-activator")?);
        command.arg("token").arg("--issuer-key").arg(self.path("issuer.key"));
        command.args(["--namespace", NAMESPACE, "--pod", pod.name, "--service-account", pod.account]);
        let output = command.output().context("cannot run podlight-activator token")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "podlight-activator token ended with {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// What a reader may want to run now.
    pub(super) fn commands(
        &self,
        activator: &Activator,
        sidecar: &Sidecar,
        app: &AppProcess,
        token: &str,
    ) -> Result<Vec<(&'static str, String)>> {
        let token_file = self.path("reader.token");
        fs::write(&token_file, token)?;
        let (ca, token, url) = (activator.ca_file(), token_file.display(), activator.url());
        let ca = ca.display();
        let program = relative(binary("podlight-activator")?);
        let curl = format!("curl -s --cacert {ca} -H \"Authorization: Bearer $(cat {token})\"");
        let (admin, sidecar_admin, port) = (activator.admin_url(), sidecar.admin_url(), app.port());
        Ok(vec![
            (
                "the table in this terminal, live",
                format!("{program} status --watch --server {url} --ca {ca} --token-file {token}"),
            ),
            (
                "a request through the activator, straight to the pod",
                format!("curl -s -H 'Host: {SERVICE}.{NAMESPACE}' http://{}", activator.proxy_address()?),
            ),
            ("a health check of the Service", format!("{program} xdp probe {}", self.health_check())),
            ("what the readiness map holds, and who answers from it", format!("{program} xdp --admin {admin}")),
            ("one Service as JSON", format!("{curl} {url}/v1/targets/{NAMESPACE}/{SERVICE}")),
            ("every change as it comes, beside the two lines below", format!("{curl} -N {url}/v1/watch")),
            (
                "make the app fail its probe, and recover",
                format!("curl -s http://127.0.0.1:{port}/fail; sleep 3; curl -s http://127.0.0.1:{port}/recover"),
            ),
            ("how late the table learned of each change", format!("curl -s {admin}/metrics | grep discovery_lag")),
            ("what the sidecar says of itself", format!("curl -s {sidecar_admin}/status")),
        ])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl DemoPod {
    fn manifest(&self, port: u16, ready_since: Option<u64>) -> Result<String> {
        let Self { name, account, address } = self;
        let (status, since) = match ready_since {
            Some(since) => ("True", i64::try_from(since)?),
            None => ("False", 0),
        };
        let since = Timestamp::from_second(since)?;
        Ok(format!(
            "\
# What the API server would show: running, and ready or not as far as the kubelet has noticed.
apiVersion: v1
kind: Pod
metadata:
  namespace: {NAMESPACE}
  name: {name}
  labels: {{ app: {account}, podlight.dev/revision: v1 }}
spec:
  serviceAccountName: {account}
  containers:
    - name: app
      image: example.invalid/app
      ports: [{{ name: http, containerPort: {port} }}]
      readinessProbe: {{ httpGet: {{ path: /ready, port: http }} }}
status:
  phase: Running
  podIPs: [{{ ip: {address} }}]
  conditions: [{{ type: Ready, status: '{status}', lastTransitionTime: '{since}' }}]
"
        ))
    }
}

/// A path as short as it can be typed from here.
fn relative(path: PathBuf) -> String {
    let here = std::env::current_dir().ok();
    let short = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    short.unwrap_or(path).display().to_string()
}
