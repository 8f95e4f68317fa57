//! The Helm chart, rendered by the real helm: what it refuses, what a real API server says of what it renders, whether its
//! flags, metrics and rights are those of the programs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

mod cluster;
mod programs;
mod rights;
mod values;

/// A file of the matrix.
fn matrix_file(name: &str) -> PathBuf {
    podlight_e2e::chart::folder().join("ci").join(name)
}

/// A file of the checkout.
fn text(path: &str) -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(file).with_context(|| path.to_owned())
}

/// An object without the labels that the chart gives to all of its own.
fn unlabelled(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("labels");
    }
    object
}
