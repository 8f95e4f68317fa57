//! What injected sidecars are like: flags, checked before anything is injected.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::Args as ArgGroup;

use crate::config::{Faults, base_url, label_key, on_or_off};

/// The image that this version's `make image` builds.
const IMAGE: &str = concat!("localhost/podlight-sidecar:", env!("CARGO_PKG_VERSION"));

/// The namespace that the sidecar looks for activators in when nothing says otherwise.
const ACTIVATOR_NAMESPACE: &str = "podlight-system";

/// The ConfigMap with the CA of the activator's certificate, in each injected pod's namespace.
const CA_CONFIG_MAP: &str = "podlight-ca";

/// A sidecar at rest uses less than a thousandth of a core and some 6 MiB; requests decide where pods fit.
const REQUESTS: &str = "cpu=10m,memory=16Mi";

/// Room for the handshakes of a rollout; namespaces with quotas ask for a limit of both.
const LIMITS: &str = "cpu=500m,memory=64Mi";

/// Flags that say what injected sidecars are like.
#[derive(Debug, Clone, ArgGroup)]
pub struct InjectionArgs {
    /// The sidecar's image.
    #[arg(long, env = "PODLIGHT_SIDECAR_IMAGE", default_value = IMAGE)]
    sidecar_image: String,
    /// Its imagePullPolicy: Always, IfNotPresent or Never. Default: what Kubernetes makes of the image's tag.
    #[arg(long, env = "PODLIGHT_SIDECAR_PULL_POLICY")]
    sidecar_pull_policy: Option<String>,
    /// Its resource requests, as `<resource>=<quantity>`, separated by commas; empty for none.
    #[arg(long, env = "PODLIGHT_SIDECAR_REQUESTS", default_value = REQUESTS)]
    sidecar_requests: String,
    /// Its resource limits, likewise.
    #[arg(long, env = "PODLIGHT_SIDECAR_LIMITS", default_value = LIMITS)]
    sidecar_limits: String,
    /// Where it goes in the list of init containers: first or last. The annotation podlight.dev/sidecar-position wins.
    #[arg(long, env = "PODLIGHT_SIDECAR_POSITION", default_value = "first")]
    sidecar_position: String,
    /// Whether the containers after it wait until it runs: on or off. A kubelet looks once a second.
    #[arg(long, env = "PODLIGHT_SIDECAR_STARTUP_PROBE", default_value = "on")]
    sidecar_startup_probe: String,
    /// The namespace that the activator runs in. It is never injected.
    #[arg(long, env = "PODLIGHT_ACTIVATOR_NAMESPACE", default_value = ACTIVATOR_NAMESPACE)]
    activator_namespace: String,
    /// Base URL of the headless Service of the activator's replicas.
    /// `[default: https://podlight-activator-events.<activator-namespace>.svc:8443]`
    #[arg(long, env = "PODLIGHT_ACTIVATOR_SERVICE")]
    activator_service: Option<String>,
    /// The ConfigMap of the pod's namespace that holds the CA of the activator's certificate, as ca.crt.
    #[arg(long, env = "PODLIGHT_CA_CONFIG_MAP", default_value = CA_CONFIG_MAP)]
    ca_config_map: String,
    /// A pod label that tells the revision, as the activator has them; repeat for more. Default:
    /// podlight.dev/revision, pod-template-hash, controller-revision-hash.
    #[arg(long, env = "PODLIGHT_REVISION_LABELS", value_delimiter = ',')]
    revision_label: Vec<String>,
}

/// Where in the list of init containers the sidecar goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Before all others: it speaks for the pod from the start, and is the last to be ended.
    First,
    /// After all others.
    Last,
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "first" => Ok(Self::First),
            "last" => Ok(Self::Last),
            _ => Err(format!("{text:?} must be first or last")),
        }
    }
}

/// What injected sidecars are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The sidecar's image.
    pub image: String,
    /// Its imagePullPolicy.
    pub pull_policy: Option<String>,
    /// Its resource requests.
    pub requests: BTreeMap<String, String>,
    /// Its resource limits.
    pub limits: BTreeMap<String, String>,
    /// Where it goes.
    pub position: Position,
    /// Whether it has a startupProbe.
    pub startup_probe: bool,
    /// The activator's namespace.
    pub activator_namespace: String,
    /// The activator's headless Service, when it is not the usual one.
    pub activator_service: Option<String>,
    /// The ConfigMap with the CA.
    pub ca_config_map: String,
    /// Labels that tell a pod's revision; the first present counts.
    pub revision_labels: Vec<String>,
}

impl InjectionArgs {
    /// Checks everything before it gives up on anything.
    pub(crate) fn check(&self, faults: &mut Faults) -> Option<Settings> {
        let image = faults.note("sidecar-image", image(&self.sidecar_image));
        let pull_policy = self.sidecar_pull_policy.as_deref();
        if !matches!(pull_policy, None | Some("Always" | "IfNotPresent" | "Never")) {
            faults.add("sidecar-pull-policy", "must be Always, IfNotPresent or Never");
        }
        let requests = faults.note("sidecar-requests", resources(&self.sidecar_requests));
        let limits = faults.note("sidecar-limits", resources(&self.sidecar_limits));
        let position = faults.note("sidecar-position", self.sidecar_position.parse());
        let startup_probe = faults.note("sidecar-startup-probe", on_or_off(&self.sidecar_startup_probe));
        faults.note("activator-namespace", object_name(&self.activator_namespace));
        if let Some(url) = &self.activator_service {
            faults.note("activator-service", base_url(url));
        }
        faults.note("ca-config-map", object_name(&self.ca_config_map));
        let mut revision_labels = faults.each("revision-label", &self.revision_label, label_key);
        if revision_labels.is_empty() {
            revision_labels = crate::cluster::RevisionLabels::default().iter().map(str::to_owned).collect();
        }
        Some(Settings {
            image: image?,
            pull_policy: self.sidecar_pull_policy.clone(),
            requests: requests?,
            limits: limits?,
            position: position?,
            startup_probe: startup_probe?,
            activator_namespace: self.activator_namespace.clone(),
            activator_service: self.activator_service.clone(),
            ca_config_map: self.ca_config_map.clone(),
            revision_labels,
        })
    }
}

/// The settings that these flags make, for tests and the fuzz target.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn of_flags(flags: &[&str]) -> Settings {
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        injection: InjectionArgs,
    }
    let flags = Flags::try_parse_from(["x"].iter().chain(flags)).expect("flags");
    let mut faults = Faults::default();
    let settings = flags.injection.check(&mut faults);
    faults.or(settings).expect("settings")
}

fn image(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains(char::is_whitespace) { Err("must be an image") } else { Ok(text.to_owned()) }
}

fn object_name(text: &str) -> Result<(), &'static str> {
    if crate::cluster::api::is_object_name(text) { Ok(()) } else { Err("must be an object's name") }
}

fn resources(text: &str) -> Result<BTreeMap<String, String>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (resource, quantity) = pair.split_once('=').unwrap_or((pair, ""));
            let known = label_key(resource).is_ok() && is_quantity(quantity);
            known.then(|| (resource.to_owned(), quantity.to_owned()))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| format!("{text:?} must be <resource>=<quantity>, separated by commas"))
}

/// A positive quantity as Kubernetes writes it: a decimal number and a suffix.
fn is_quantity(text: &str) -> bool {
    let (number, suffix) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let suffixes = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    number.parse::<f64>().is_ok() && suffixes.contains(&suffix)
}
