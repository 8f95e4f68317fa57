//! `podlight-sidecar`: reads its configuration and runs, or asks the running one to drain or whether it is there.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use podlight_sidecar::admin::install_metrics;
use podlight_sidecar::config::{Args, Command, Config, DrainConfig, EXIT_CONFIG, Log, Running};
use podlight_sidecar::{check, drain, sidecar};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => return misconfigured(error.render()),
        Err(help) => return help.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
    };
    let result = match args.command {
        None => match Config::try_from(args.run) {
            Ok(config) => run(config),
            Err(faults) => return misconfigured(faults),
        },
        Some(Command::Drain(args)) => match DrainConfig::try_from(args) {
            Ok(config) => request_drain(&config),
            Err(faults) => return misconfigured(faults),
        },
        Some(Command::Check(args)) => match Running::try_from(args) {
            Ok(running) => request_check(&running),
            Err(faults) => return misconfigured(faults),
        },
    };
    result.map_or_else(failed, |()| ExitCode::SUCCESS)
}

fn run(config: Config) -> anyhow::Result<()> {
    start_log(&config.log);
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok().context("TLS is set up twice")?;
    let metrics = install_metrics()?;
    Ok(runtime()?.block_on(sidecar::run(config, metrics))?)
}

fn request_drain(config: &DrainConfig) -> anyhow::Result<()> {
    runtime()?.block_on(drain::request::run(config, std::io::stdout()));
    Ok(())
}

fn request_check(running: &Running) -> anyhow::Result<()> {
    Ok(runtime()?.block_on(check::run(running))?)
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("the runtime cannot be started")
}

fn start_log(log: &Log) {
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let registry = tracing_subscriber::registry().with(log.targets.clone());
    if log.json { registry.with(lines.json().flatten_event(true)).init() } else { registry.with(lines).init() }
}

fn misconfigured(faults: impl Display) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "podlight-sidecar: {faults}");
    ExitCode::from(EXIT_CONFIG)
}

fn failed(error: anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "podlight-sidecar: {error:#}");
    ExitCode::FAILURE
}
