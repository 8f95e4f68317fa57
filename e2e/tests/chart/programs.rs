//! The chart beside the programs: their flags, their metrics, and the runbooks of its alerts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use podlight_e2e::binary;
use podlight_e2e::chart::{Release, find, folder, matrix, pod_of};
use serde_json::Value;

use super::{matrix_file, text};

/// Labels that Prometheus gives, not the programs.
const FOREIGN_LABELS: [&str; 3] = ["le", "namespace", "pod"];

#[test]
fn every_container_has_flags_that_its_program_takes() -> Result<()> {
    for file in matrix()? {
        let objects = Release::new()?.values(&file).render()?;
        for pod in objects.iter().filter_map(pod_of) {
            let container = &pod["spec"]["containers"][0];
            // Nothing is to be attached here.
            let flags = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let flags: Vec<_> = flags.map(|flag| flag.replace("=eth", "=none")).collect();
            // It gets as far as to look for what only its pod has. Faults of flags would be told before those of files.
            let mut command = Command::new(binary("podlight-activator")?);
            command
                .env_clear()
                .env("HOSTNAME", "one")
                .args(&flags)
                .args((flags[0] != "status").then_some("--kubeconfig=/none"));
            let output = command.output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            let mut faults = said.lines().filter(|line| line.starts_with("  --"));
            let only_files = faults.all(|fault| fault.contains("No such file or directory"));
            assert!(!output.status.success() && only_files, "{}: {flags:?}: {said}", file.display());
            let unknown = output.status.code() == Some(64) && !said.contains("No such file or directory");
            assert!(!unknown, "{}: {flags:?}: {said}", file.display());
        }
    }
    Ok(())
}

/// The sources of both programs, as one text.
fn sources() -> Result<String> {
    fn add(folder: &Path, all: &mut String) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                add(&path, all)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                all.push_str(&fs::read_to_string(path)?);
            }
        }
        Ok(())
    }
    let (mut all, root) = (String::new(), Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    ["activator/src", "activator/xdp/src", "sidecar/src", "proto/src"]
        .iter()
        .try_for_each(|part| add(&root.join(part), &mut all))?;
    Ok(all)
}

/// Every `expr` below a value.
fn queries(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            all.extend(map.get("expr").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| queries(value, all));
        }
        Value::Array(list) => list.iter().for_each(|value| queries(value, all)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// What selectors and groupings of a query name: labels, and the values that they are compared with.
fn labels(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut names, mut values) = (BTreeSet::new(), BTreeSet::new());
    for selector in query.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
        for matcher in selector.split("\",").map(|matcher| matcher.trim().trim_end_matches('"')) {
            let Some((name, value)) = matcher.split_once('"') else { continue };
            names.extend(words(name).map(str::to_owned));
            if !FOREIGN_LABELS.contains(&words(name).next().unwrap_or_default()) {
                values.extend(value.split('|').filter(|value| !value.contains('*')).map(str::to_owned));
            }
        }
    }
    for grouping in query.split("by (").skip(1).filter_map(|rest| rest.split(')').next()) {
        names.extend(words(grouping).map(str::to_owned));
    }
    (names, values)
}

#[test]
fn every_query_names_metrics_labels_and_values_that_there_are() -> Result<()> {
    let rules = Release::new()?.set("metrics.prometheusRule.enabled=true").render()?;
    let mut all = Vec::new();
    queries(find(&rules, "PrometheusRule", "podlight")?, &mut all);
    let alerts = all.len();
    queries(&serde_json::from_str(&fs::read_to_string(folder().join("dashboards/podlight.json"))?)?, &mut all);
    assert!(alerts > 10 && all.len() > alerts + 20, "{alerts} of {}", all.len());
    let sources = sources()?;
    let there = |literal: &str| sources.contains(&format!("\"{literal}\""));
    for query in all {
        let metrics: Vec<_> = words(&query).filter(|word| word.starts_with("podlight_")).collect();
        assert!(!metrics.is_empty(), "{query}");
        for metric in metrics {
            let series = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix));
            assert!(there(metric) || series.is_some_and(there), "{metric} in {query}");
        }
        let (names, values) = labels(&query);
        for name in names.iter().filter(|name| !FOREIGN_LABELS.contains(&name.as_str())) {
            assert!(sources.contains(&format!("\"{name}\" =>")), "the label {name} in {query}");
        }
        assert!(values.iter().all(|value| there(value)), "{values:?} in {query}");
    }
    Ok(())
}

#[test]
fn labels_are_found_in_queries() {
    let (names, values) =
        labels(r#"sum by (le, kind) (rate(a{way="none", outcome=~"connect|tls|x.*"}[5m])) / b{le="1"}"#);
    assert_eq!(names, ["kind", "le", "outcome", "way"].map(str::to_owned).into());
    assert_eq!(values, ["connect", "none", "tls"].map(str::to_owned).into());
}

#[test]
fn every_alert_has_its_runbook() -> Result<()> {
    let file = matrix_file("cert-manager-values.yaml");
    let objects = Release::new()?.values(&file).set("metrics.prometheusRule.disabled=[]").render()?;
    let rules = find(&objects, "PrometheusRule", "podlight")?["spec"]["groups"][0]["rules"].as_array();
    let operating = text("docs/operating.md")?;
    let headings: BTreeSet<_> = operating.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let mut alerts = BTreeSet::new();
    for rule in rules.context("rules")? {
        let alert = rule["alert"].as_str().context("a name")?;
        alerts.insert(alert);
        let runbook = format!("https://podlight.dev/docs/operating#{}", alert.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], runbook);
        assert_eq!(rule["labels"]["team"], "platform", "{alert}");
        assert!(["critical", "warning", "info"].map(Some).contains(&rule["labels"]["severity"].as_str()), "{alert}");
    }
    assert_eq!(alerts, headings);
    Ok(())
}
