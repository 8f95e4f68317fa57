//! What a pod's annotations ask for: other probes, another place. Anything that cannot be understood leaves the pod without
//! a sidecar: half of what was asked would be a guess.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::Value;

use super::settings::Position;
use super::{POSITION_ANNOTATION, PROBE_ANNOTATION, Reason, probe};

/// Stands for "ask this container nothing".
const NONE: &str = "none";

/// What the annotations ask for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// Probes by container, in the sidecar's words; an empty list asks it nothing.
    pub(super) probes: BTreeMap<String, Vec<String>>,
    /// Where the sidecar goes.
    pub(super) position: Option<Position>,
}

impl Wishes {
    pub(super) fn of(pod: &Value, spec: &PodSpec) -> Result<Self, Reason> {
        let mut wishes = Self::default();
        let annotations = pod.get("metadata").and_then(|metadata| metadata.get("annotations"));
        for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
            let Some(value) = value.as_str() else {
                return Err(Reason::Malformed(format!("annotation {key} is no text")));
            };
            let fault = |fault: String| Reason::Setting { key: key.clone(), fault };
            if key == POSITION_ANNOTATION {
                wishes.position = Some(value.parse().map_err(fault)?);
            } else if let Some(name) = key.strip_prefix(PROBE_ANNOTATION) {
                let mut lasting = probe::lasting_containers(spec);
                let container = lasting.find(|container| container.name == name);
                let container = container.ok_or_else(|| fault(format!("there is no container {name} that lasts")))?;
                let words = value.split_ascii_whitespace().filter(|word| *word != NONE);
                let probes: Result<Vec<_>, _> = words.map(|word| probe::written(word, container)).collect();
                let probes = probes.map_err(fault)?;
                if probes.is_empty() && value.trim() != NONE {
                    return Err(fault(format!("must be {NONE} or probes separated by spaces")));
                }
                wishes.probes.insert(name.to_owned(), probes);
            }
        }
        Ok(wishes)
    }
}
