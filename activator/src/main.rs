//! `podlight-activator`: reads its configuration and serves, shows a running activator's table, mints a token for standalone
//! mode, or adds sidecars to manifests.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Parser as _;
use futures::Stream;
use podlight_activator::activator::RunError;
use podlight_activator::cluster::token::IssuerKey;
use podlight_activator::config::{Args, Command, Config, EXIT_CONFIG, Faults, RunArgs, TokenConfig};
use podlight_activator::inject::command::{self, InjectArgs};
use podlight_activator::webhook::{self, WebhookConfig};
use podlight_activator::xdp::{self, attachment::Attachment};
use podlight_activator::{activator, status, telemetry};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Everything here is small, short-lived and of many sizes: an event costs a fifth less than with the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => return misconfigured(error.render()),
        Err(help) => return help.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
    };
    let result = match args.command {
        None => serve(args.run),
        Some(Command::Run(args)) => serve(*args),
        Some(Command::Status(args)) => show(status::run(&args, io::stdout())),
        Some(Command::Xdp(args)) => show(xdp::show::run(&args, io::stdout())),
        Some(Command::Token(args)) => TokenConfig::try_from(args).map_err(Into::into).and_then(mint),
        Some(Command::Inject(args)) => return inject(&args),
        Some(Command::Webhook(args)) => WebhookConfig::try_from(*args).map_err(Into::into).and_then(answer_reviews),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Faults>() => misconfigured(error),
        Err(error) => failed(error),
    }
}

fn serve(args: RunArgs) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    telemetry::start_log(config.log.targets.clone(), config.log.format)?;
    install_crypto()?;
    let metrics = telemetry::start_metrics()?;
    let attachment = config.xdp.as_ref().map(Attachment::make);
    // As many workers as cores.
    let runtime = Builder::new_multi_thread().enable_all().build().context("the runtime cannot be started")?;
    runtime.block_on(async {
        match activator::run(config, attachment, metrics, signals()?).await {
            Err(RunError::Config(faults)) => Err(faults.into()),
            ended => ended.map_err(Into::into),
        }
    })
}

fn answer_reviews(config: WebhookConfig) -> anyhow::Result<()> {
    telemetry::start_log(config.log.targets.clone(), config.log.format)?;
    install_crypto()?;
    let metrics = telemetry::start_metrics()?;
    let runtime = Builder::new_multi_thread().enable_all().build().context("the runtime cannot be started")?;
    runtime.block_on(async { Ok(webhook::run(config, metrics, signals()?).await?) })
}

/// Runs a client of an activator.
fn show<E: Into<anyhow::Error>>(client: impl Future<Output = Result<(), E>>) -> anyhow::Result<()> {
    install_crypto()?;
    let runtime = Builder::new_current_thread().enable_all().build().context("the runtime cannot be started")?;
    runtime.block_on(client).map_err(Into::into)
}

fn mint(config: TokenConfig) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let token = IssuerKey::load_or_create(&config.issuer_key)?.mint(&config.request, now)?;
    Ok(writeln!(io::stdout(), "{token}")?)
}

fn inject(args: &InjectArgs) -> ExitCode {
    let injected = command::run(args, io::stdin(), io::stdout(), io::stderr());
    injected.map_or_else(
        |error| {
            let code = error.exit_code();
            failed(error.into());
            ExitCode::from(code)
        },
        |()| ExitCode::SUCCESS,
    )
}

fn install_crypto() -> anyhow::Result<()> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok().context("TLS is set up twice")
}

/// SIGTERM and SIGINT, as they come.
fn signals() -> anyhow::Result<impl Stream<Item = ()> + Unpin> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(futures::stream::poll_fn(move |cx| match terminate.poll_recv(cx) {
        Poll::Ready(signal) => Poll::Ready(signal),
        Poll::Pending => interrupt.poll_recv(cx),
    }))
}

fn misconfigured(faults: impl Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "podlight-activator: {faults}");
    ExitCode::from(EXIT_CONFIG)
}

fn failed(error: anyhow::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "podlight-activator: {error:#}");
    ExitCode::FAILURE
}
