//! Logs and metrics of the process: how they are written, and the buckets of every histogram. What is measured
//! and what is said stands beside the code it is about.

use std::io::IsTerminal as _;

use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Upper bounds of every histogram of seconds: from half a millisecond, below which nothing that crosses a
/// network differs, to a minute, the longest backoff.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0];

/// Upper bounds of what happens within the process and its kernel: the readiness map's lag.
const SHORT_SECONDS: [f64; 16] = [
    0.000_01, 0.000_02, 0.000_03, 0.000_05, 0.000_075, 0.000_1, 0.000_15, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002,
    0.005, 0.02, 0.1, 1.0,
];

/// Upper bounds of every histogram of bytes: up to the longest event and somewhat beyond.
const BYTES: [f64; 8] = [256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 65_536.0];

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the process cannot tell what it does.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Another subscriber is in place.
    #[error("cannot set up the log")]
    Log(#[from] TryInitError),
    /// Another recorder is in place.
    #[error("cannot set up the metrics")]
    Metrics(#[from] BuildError),
}

/// What never speaks: kube reports what our own code reports again, and puts answers into its lines that it cannot
/// parse, a TokenReview's with the token among them.
const SILENT: [&str; 2] = ["kube_client", "kube_runtime"];

/// Sends logs to standard error.
///
/// # Errors
/// [`TelemetryError::Log`] the second time.
pub fn start_log(targets: Targets, format: LogFormat) -> Result<(), TelemetryError> {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let targets = targets.with_targets(SILENT.map(|target| (target, LevelFilter::OFF)));
    let registry = tracing_subscriber::registry().with(targets);
    match format {
        LogFormat::Text => registry.with(lines).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// Collects metrics from now on. The handle renders them; somebody must call its `run_upkeep` now and then.
///
/// # Errors
/// [`TelemetryError::Metrics`] the second time.
pub fn start_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let handle = builder()?.install_recorder()?;
    describe_gauge!("podlight_build_info", "1, with the version as a label");
    gauge!("podlight_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// Without buckets the exporter would make summaries, which cannot be added up over replicas.
fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets(&SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?
        .set_buckets_for_metric(Matcher::Full("podlight_xdp_lag_seconds".to_owned()), &SHORT_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets() {
        let recorder = builder().expect("buckets").build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("podlight_discovery_lag_seconds", "source" => "pushed").record(0.003);
            metrics::histogram!("podlight_event_bytes").record(1000.0);
        });
        let text = recorder.handle().render();
        assert!(text.contains(r#"podlight_discovery_lag_seconds_bucket{source="pushed",le="0.005"} 1"#), "{text}");
        assert!(text.contains(r#"podlight_event_bytes_bucket{le="1024"} 1"#), "{text}");
        assert!(!text.contains("quantile"), "{text}");
    }
}
