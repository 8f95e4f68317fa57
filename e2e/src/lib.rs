//! What the end-to-end tests stand on: a real API server, the real binaries as processes, and hands to move and read them
//! with. No test lives here and nothing is believed without being looked at; what waits, waits for a condition.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Certificate, Client, ClientBuilder};

pub mod activator;
pub mod api;
pub mod app;
pub mod backend;
pub mod bench;
pub mod browser;
pub mod chart;
pub mod cluster;
pub mod connection;
pub mod control_plane;
pub mod demo;
pub mod eventually;
pub mod follow;
pub mod metrics;
pub mod net;
pub mod proxy;
pub mod raw;
pub mod scene;
pub mod sender;
pub mod sidecar;
pub mod simulation;
pub mod webhook;

/// How long a single request may take: longer than any of an activator's own deadlines.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A client for plain HTTP that follows no redirect and repeats nothing.
///
/// # Errors
/// When TLS cannot be set up all the same.
pub fn http_client() -> Result<Client> {
    Ok(client_builder().tls_certs_only([]).build()?)
}

/// As [`http_client`], trusting the certificates of a PEM file.
///
/// # Errors
/// When the text holds none.
pub fn https_client(ca_pem: &str) -> Result<Client> {
    Ok(client_builder().tls_certs_only(Certificate::from_pem_bundle(ca_pem.as_bytes())?).build()?)
}

pub(crate) fn client_builder() -> ClientBuilder {
    static PROVIDER: Once = Once::new();
    // Fails when somebody else has set it: as good.
    PROVIDER.call_once(|| drop(rustls::crypto::aws_lc_rs::default_provider().install_default()));
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .timeout(REQUEST_TIMEOUT)
}

/// The objects of a file of YAML manifests, its path beginning at the checkout.
///
/// # Errors
/// When it cannot be read.
pub fn manifests(path: &Path) -> Result<Vec<serde_json::Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())
}

/// One of our binaries, in the target folder that this test or benchmark was built into.
///
/// # Errors
/// When it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let folder = this.parent().context("no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().context("no folder")? } else { folder };
    let binary = folder.join(name);
    ensure!(binary.exists(), "{} is missing: run `make build` first", binary.display());
    Ok(binary)
}
