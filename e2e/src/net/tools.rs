//! Programs of somebody else's that are run to their end.

use std::process::Command;

use anyhow::{Context, Result, ensure};

pub use crate::proxy::clients::{install, program};

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// When it cannot be run or fails; the error has what it said.
pub async fn output(mut command: Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    let output = output.with_context(|| format!("cannot run {line}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{line} ended with {}: {said}{error}", output.status);
    Ok(said)
}
