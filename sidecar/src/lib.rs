//! The Podlight sidecar: watches a pod's containers from inside and pushes signed readiness events to every
//! activator replica. The decisions are pure ([`readiness::Readiness`], [`publisher::Delivery`]); around them are
//! probes, one HTTP client and an admin port. It speaks for its pod and never gets in its way: whatever fails
//! here, the pod runs on and the watch of the Kubernetes API tells its readiness.

pub mod admin;
pub mod announcer;
pub mod check;
pub mod config;
pub mod drain;
mod duration;
mod file;
mod local;
pub mod probe;
pub mod publisher;
pub mod readiness;
pub mod retry;
pub mod sidecar;
pub mod token;

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |e| e.source());
    sources.fold(error.to_string(), |line, source| format!("{line}: {source}"))
}
