//! Clients that are programs of somebody else's: curl and h2load. `e2e/peers.sh` installs them; without them a test fails.

use std::net::SocketAddr;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// Has the script install what is missing of nginx, HAProxy, h2load and curl. Once a process; it is quick when they are there.
///
/// # Errors
/// When they cannot be installed: whatever needs them has then failed.
pub async fn install() -> Result<()> {
    static INSTALLED: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    INSTALLED
        .get_or_try_init(async || {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers.sh");
            let output = run(Command::new(script)).await?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{script} ended with {}: {said}", output.status);
            Ok(())
        })
        .await
        .copied()
}

/// Where a program of Debian's is, which is not in everybody's `PATH`.
pub fn program(name: &str) -> String {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .map(|folder| format!("{folder}/{name}"))
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap_or_else(|| name.to_owned())
}

/// What curl says: the answer's status and whatever it printed.
#[derive(Debug)]
pub struct Curled {
    /// The last answer's status; 0 when there was none.
    pub status: u16,
    /// What was printed, headers too with `--include`.
    pub output: String,
}

/// Runs curl for `http://<host><path>` by way of `address`, with more arguments.
///
/// # Errors
/// When it cannot be run or gets no answer.
pub async fn curl(address: SocketAddr, host: &str, path: &str, arguments: &[&str]) -> Result<Curled> {
    install().await?;
    let mut command = Command::new(program("curl"));
    let (url, by_way) = (format!("http://{host}:80{path}"), format!("::{}:{}", address.ip(), address.port()));
    command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*", "--connect-to", &by_way]);
    command.args(["--write-out", "\n%{http_code}"]).args(arguments).arg(&url);
    let output = run(command).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (printed, status) = said.rsplit_once('\n').context("curl says nothing")?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "curl ended with {}: {error}", output.status);
    Ok(Curled { status: status.parse()?, output: printed.to_owned() })
}

/// Runs h2load for so many requests over so many connections with so many streams each. Returns what it printed.
///
/// # Errors
/// When it cannot be run.
pub async fn h2load(
    address: SocketAddr,
    host: &str,
    requests: usize,
    clients: usize,
    streams: usize,
) -> Result<String> {
    install().await?;
    let mut command = Command::new(program("h2load"));
    command.args(["--requests", &requests.to_string(), "--clients", &clients.to_string()]);
    command.args(["--max-concurrent-streams", &streams.to_string(), "--threads", "1"]);
    command.args(["--header", &format!(":authority: {host}"), &format!("http://{address}/")]);
    let output = run(command).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "h2load ended with {}: {said}", output.status);
    Ok(said)
}

async fn run(mut command: Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    tokio::task::spawn_blocking(move || command.output()).await?.with_context(|| format!("cannot run {name}"))
}
