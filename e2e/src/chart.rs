//! The Helm chart, rendered by the real helm.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersion};
use kube::{Api, Client};
use serde_json::Value;

pub mod readme;

/// The Kubernetes version that charts are rendered for: that of the tests' API server, in which all modes work.
pub const KUBERNETES: &str = "1.36.3";

/// The chart's folder.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/podlight")
}

/// The files of the matrix: every one renders by itself.
///
/// # Errors
/// When they cannot be listed.
pub fn matrix() -> Result<Vec<PathBuf>> {
    let files = std::fs::read_dir(folder().join("ci"))?.map(|file| Ok(file?.path()));
    let mut files = files.collect::<Result<Vec<_>>>()?;
    files.sort();
    ensure!(!files.is_empty(), "the matrix is empty");
    Ok(files)
}

/// A release `podlight`.
#[derive(Clone, Debug)]
pub struct Release {
    helm: PathBuf,
    namespace: String,
    kubernetes: String,
    flags: Vec<String>,
}

impl Release {
    /// One with the chart's own values. Builds helm first when the cache has none.
    ///
    /// # Errors
    /// When helm cannot be built.
    pub fn new() -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/helm.sh");
        let output =
            Command::new(script).stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {script}"))?;
        ensure!(output.status.success(), "{script} failed with {}, its reason is on stderr", output.status);
        let helm = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
        let (namespace, kubernetes) = ("podlight-system".to_owned(), KUBERNETES.to_owned());
        Ok(Self { helm, namespace, kubernetes, flags: Vec::new() })
    }

    /// In another namespace than `podlight-system`.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    /// For another version of Kubernetes.
    pub fn kubernetes(mut self, version: &str) -> Self {
        self.kubernetes = version.to_owned();
        self
    }

    /// With the values of a file.
    pub fn values(mut self, file: &Path) -> Self {
        self.flags.push(format!("--values={}", file.display()));
        self
    }

    /// With one value, as `helm --set-json` takes it: `requests.tls.enabled=true`.
    pub fn set(mut self, value: &str) -> Self {
        self.flags.push(format!("--set-json={value}"));
        self
    }

    /// Its manifests.
    ///
    /// # Errors
    /// What helm has to say.
    pub fn render(&self) -> Result<Vec<Value>> {
        let text = self.local(&["template", "podlight"])?;
        let all: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        Ok(all.into_iter().filter(|object| !object.is_null()).collect())
    }

    /// `helm lint --strict`.
    ///
    /// # Errors
    /// What helm has to say.
    pub fn lint(&self) -> Result<()> {
        self.local(&["lint", "--strict"]).map(drop)
    }

    /// Installs or upgrades it on a cluster. Nothing is waited for.
    ///
    /// # Errors
    /// What helm has to say.
    pub fn run_on(&self, kubeconfig: &Path, what: &[&str], flags: &[&str]) -> Result<()> {
        let folder = folder();
        let mut arguments: Vec<&OsStr> = what.iter().map(OsStr::new).collect();
        arguments.push(folder.as_os_str());
        arguments.extend(self.flags.iter().map(OsStr::new).chain(flags.iter().map(OsStr::new)));
        self.helm(Some(kubeconfig), &arguments).map(drop)
    }

    /// Goes back to a revision.
    ///
    /// # Errors
    /// What helm has to say.
    pub fn rollback(&self, kubeconfig: &Path, revision: u32) -> Result<()> {
        let revision = revision.to_string();
        self.helm(Some(kubeconfig), &["rollback", "podlight", &revision].map(OsStr::new)).map(drop)
    }

    /// Removes it from a cluster.
    ///
    /// # Errors
    /// What helm has to say.
    pub fn uninstall(&self, kubeconfig: &Path) -> Result<()> {
        self.helm(Some(kubeconfig), &["uninstall", "podlight"].map(OsStr::new)).map(drop)
    }

    fn local(&self, what: &[&str]) -> Result<String> {
        let (folder, version) = (folder(), format!("--kube-version={}", self.kubernetes));
        let mut arguments: Vec<&OsStr> = what.iter().map(OsStr::new).collect();
        arguments.extend([folder.as_os_str(), OsStr::new(&version)]);
        arguments.extend(self.flags.iter().map(OsStr::new));
        self.helm(None, &arguments)
    }

    fn helm(&self, kubeconfig: Option<&Path>, arguments: &[&OsStr]) -> Result<String> {
        // What helm keeps between runs is nobody's here.
        let home = tempfile::tempdir()?;
        let mut command = Command::new(&self.helm);
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, home.path());
        }
        command.env("KUBECONFIG", kubeconfig.unwrap_or(&home.path().join("none")));
        let output = command.args(arguments).arg(format!("--namespace={}", self.namespace)).output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("helm {arguments:?}: {}", String::from_utf8_lossy(&said).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// The object of this kind and name.
///
/// # Errors
/// When there is none.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} {name}"))
}

/// The template of pods, or the pod itself, of those objects that have one.
pub fn pod_of(object: &Value) -> Option<Value> {
    match object["kind"].as_str()? {
        "Pod" => Some(object.clone()),
        "Deployment" | "DaemonSet" => Some(object["spec"]["template"].clone()),
        _ => None,
    }
}

/// Applies an object, strictly: what the API server does not know is an error.
///
/// # Errors
/// When the API server refuses.
pub async fn apply(client: &Client, object: &Value, dry_run: bool) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object.clone())?;
    let types = object.types.clone().context("no kind")?;
    let name = object.metadata.name.clone().context("no name")?;
    let version: GroupVersion = types.api_version.parse()?;
    let resource = ApiResource::from_gvk(&version.with_kind(&types.kind));
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let parameters = PatchParams { dry_run, ..PatchParams::apply("helm") }.validation_strict();
    let applied = api.patch(&name, &parameters, &Patch::Apply(&object)).await;
    applied.map(drop).with_context(|| format!("{} {name}", types.kind))
}
