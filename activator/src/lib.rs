//! The activator: validates readiness events against the Kubernetes API, keeps the readiness table and serves it.
//!
//! Data goes one way only. [`ingest`] and [`cluster`] send updates, [`table`] applies them in one place and publishes
//! immutable snapshots, and [`api`], [`proxy`] and [`xdp`] read snapshots. [`server`] carries ingest and api over TLS, [`admin`] answers
//! probes and metrics from a thread of its own, [`config`] turns the command line into checked settings, [`activator`]
//! connects it all, and [`status`] is the client. Apart from that, [`inject`] decides which pods get a sidecar and what it is
//! like, and [`webhook`] asks it for every pod that is created.
//!
//! Nothing downstream calls upstream, no lock is held across an await, and everything with a size has a bound.

pub mod activator;
pub mod admin;
pub mod api;
pub mod cluster;
pub mod config;
pub mod ingest;
pub mod inject;
pub mod proxy;
pub mod server;
pub mod status;
pub mod table;
pub mod telemetry;
pub mod webhook;
pub mod xdp;
