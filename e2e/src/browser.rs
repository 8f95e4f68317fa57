//! A headless Chromium with one page, asked over its DevTools protocol: a page that follows something is never finished, so it
//! is looked at while it lives.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::control_plane::process::Process;
use crate::eventually::eventually;
use crate::http_client;

/// Installs one where there is none, and says where it is.
const INSTALLER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/chromium.sh");

/// What the page's own script is asked with.
const EVALUATE: &str = "Runtime.evaluate";

/// A browser with one page; killed on drop.
pub struct Browser {
    page: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
    /// What the page complained of: errors of its script, and what its policy forbade.
    complaints: Vec<String>,
    // Dropped before the folder that it writes into.
    process: Process,
    _folder: TempDir,
}

impl Browser {
    /// Opens a page.
    ///
    /// # Errors
    /// When there is no Chromium and none can be installed, or it does not start.
    pub async fn open(url: &str) -> Result<Self> {
        let program = tokio::task::spawn_blocking(chromium).await??;
        let folder = tempfile::Builder::new().prefix("podlight-browser.").tempdir()?;
        let process = Process::start(&program, &folder.path().join("log"), |command| {
            command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
            command.args(["--disable-background-networking", "--no-proxy-server", "--remote-debugging-port=0"]);
            command.arg(format!("--user-data-dir={}", folder.path().display())).arg("about:blank");
            command.env("HOME", folder.path());
        })?;
        let socket = page_socket(&process, folder.path()).await?;
        let (page, _) = connect_async(socket).await.context("the browser's page cannot be reached")?;
        let mut browser = Self { page, asked: 0, complaints: Vec::new(), process, _folder: folder };
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            browser.ask(domain, json!({})).await?;
        }
        browser.ask("Page.navigate", json!({ "url": url })).await?;
        Ok(browser)
    }

    /// What an expression comes to in the page, as JSON.
    ///
    /// # Errors
    /// When it throws.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let mut answer = self.ask(EVALUATE, json!({ "expression": expression, "returnByValue": true })).await?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true in the page.
    ///
    /// # Errors
    /// When it never is; the error has the page's text.
    pub async fn wait_for(&mut self, expression: &str) -> Result<()> {
        let waited =
            eventually(expression, async || Ok((self.evaluate(expression).await? == true).then_some(()))).await;
        let Err(error) = waited else { return Ok(()) };
        let text = self.evaluate("document.body.innerText").await.unwrap_or_default();
        let text = text.as_str().unwrap_or_default();
        Err(error.context(format!("the page complained of {:?} and says:\n{text}", self.complaints)))
    }

    /// The document as it is now.
    ///
    /// # Errors
    /// When the page is gone.
    pub async fn html(&mut self) -> Result<String> {
        Ok(self.evaluate("document.documentElement.outerHTML").await?.as_str().unwrap_or_default().to_owned())
    }

    /// What the page has complained of until now.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    async fn ask(&mut self, method: &str, params: Value) -> Result<Value> {
        self.asked += 1;
        let call = json!({ "id": self.asked, "method": method, "params": params });
        self.page.send(Message::text(call.to_string())).await?;
        while let Some(message) = self.page.next().await {
            let Message::Text(text) = message? else { continue };
            let mut said: Value = serde_json::from_str(&text)?;
            match said["method"].as_str() {
                Some("Runtime.exceptionThrown" | "Log.entryAdded") => self.complaints.push(said["params"].to_string()),
                Some(_) => {}
                None if said["id"] == self.asked => {
                    ensure!(said["error"].is_null(), "{method}: {}", said["error"]);
                    return Ok(said["result"].take());
                }
                None => {}
            }
        }
        bail!("the browser has gone; its log:\n{}", self.process.log_tail())
    }
}

/// Where Chromium is.
fn chromium() -> Result<PathBuf> {
    let output = Command::new(INSTALLER).output().with_context(|| format!("cannot run {INSTALLER}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "there is no Chromium to look at the page with (`make browser` installs it):\n{said}"
    );
    let mut path = output.stdout;
    path.truncate(path.trim_ascii_end().len());
    Ok(OsString::from_vec(path).into())
}

/// Where the first page is reached, once the browser listens.
async fn page_socket(process: &Process, folder: &Path) -> Result<String> {
    let found = eventually("the browser listens", async || {
        ensure!(process.is_running(), "it has ended");
        let Ok(written) = std::fs::read_to_string(folder.join("DevToolsActivePort")) else { return Ok(None) };
        let Some(port) = written.lines().next() else { return Ok(None) };
        let pages = http_client()?.get(format!("http://127.0.0.1:{port}/json/list")).send().await?.text().await?;
        let pages: Value = serde_json::from_str(&pages)?;
        let page = pages.as_array().into_iter().flatten().find(|page| page["type"] == "page");
        Ok(page.and_then(|page| page["webSocketDebuggerUrl"].as_str()).map(str::to_owned))
    });
    found.await.with_context(|| format!("the browser's log:\n{}", process.log_tail()))
}
