//! The status page in a real browser, on a real activator whose cluster is a folder of manifests.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use http::header::HOST;
use k8s_openapi::api::core::v1::Pod;
use podlight_activator::cluster::standalone::pod_uid;
use podlight_e2e::activator::{Activator, ActivatorSpec};
use podlight_e2e::app::App;
use podlight_e2e::browser::Browser;
use podlight_e2e::control_plane::process::free_port;
use podlight_e2e::sender::Sender;
use podlight_e2e::{binary, http_client};
use podlight_proto::Kind;
use serde_json::json;
use tempfile::TempDir;

/// Whoever writes annotations may not write the page.
const NASTY: &str = "<img src=x onerror=alert(1)>";

/// One Service that takes requests, `shop/web`, with one pod, and one that takes none.
struct World {
    folder: TempDir,
    pod: Pod,
    app: App,
}

impl World {
    fn new() -> Result<Self> {
        let (folder, app) = (tempfile::tempdir()?, App::new()?);
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "shop",
                "name": "web-0",
                "uid": pod_uid("shop", "web-0").as_str(),
                "labels": { "app": "web", "podlight.dev/revision": "v1" },
            },
            "spec": {
                "serviceAccountName": "web",
                "containers": [{
                    "name": "app",
                    "image": "example.invalid/app",
                    "ports": [{ "name": "http", "containerPort": app.port() }],
                    "readinessProbe": { "httpGet": { "path": "/ready", "port": "http" } },
                }],
            },
            "status": { "phase": "Running", "podIP": "127.0.0.1", "podIPs": [{ "ip": "127.0.0.1" }] },
        });
        let service = |name: &str, annotations| {
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "namespace": "shop", "name": name, "annotations": annotations },
                "spec": {
                    "selector": { "app": name },
                    "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
                },
            })
        };
        let routed = json!({
            "podlight.dev/route": "always",
            "podlight.dev/hosts": "web.example.com",
            "podlight.dev/concurrency": NASTY,
        });
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": { "namespace": "shop", "name": "web" },
        });
        let items = json!([service("web", routed), service("other", json!({})), account, pod]);
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        fs::create_dir(folder.path().join("manifests"))?;
        fs::write(folder.path().join("manifests/cluster.json"), list.to_string())?;
        Ok(Self { folder, pod: serde_json::from_value(pod)?, app })
    }

    fn activator(&self) -> ActivatorSpec {
        ActivatorSpec::standalone(&self.folder.path().join("manifests"), &self.issuer_key())
    }

    fn issuer_key(&self) -> PathBuf {
        self.folder.path().join("issuer.key")
    }

    /// The pod's sidecar, as the activator has heard it once.
    async fn sidecar(&self, activator: &Activator) -> Result<Sender> {
        let mut command = Command::new(binary("podlight-activator")?);
        command.arg("token").arg("--issuer-key").arg(self.issuer_key());
        command.args(["--namespace", "shop", "--pod", "web-0", "--service-account", "web"]);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let sender = Sender::for_pod(&self.pod)?;
        sender.introduce(&activator.url(), String::from_utf8(output.stdout)?.trim()).await?;
        Ok(sender)
    }
}

/// What stands in a column of the only endpoint of `shop/web`.
fn column(name: &str, text: &str) -> String {
    format!(
        r#"document.querySelector('[data-target="shop/web"] tbody [data-column={name}]')?.textContent === "{text}""#
    )
}

/// For how long the only endpoint of `shop/web` is said to be what it is, as a regular expression.
fn is_so_for(pattern: &str) -> String {
    format!(
        r#"(() => {{
            const table = document.querySelector('[data-target="shop/web"] table');
            const column = [...(table?.tHead.rows[0].cells ?? [])].findIndex((cell) => cell.textContent === "For");
            return /^{pattern}$/.test(table?.tBodies[0].rows[0].cells[column]?.textContent ?? "");
        }})()"#
    )
}

/// How many requests `shop/web` is shown to hold.
fn held(requests: usize) -> String {
    format!(r#"document.querySelector('[data-target="shop/web"] [data-held]')?.dataset.held === "{requests}""#)
}

#[tokio::test]
async fn the_page_follows_a_target_from_its_held_requests_to_their_release() -> Result<()> {
    let mut world = World::new()?;
    world.app.listen().await?;
    world.app.set_ready(true);
    let port = free_port()?;
    let spec = world.activator().flag("proxy-listen", &format!("127.0.0.1:{port}"));
    let readiness = format!("127.0.0.1:{}", free_port()?);
    let activator = spec.flag("xdp-listen", &readiness).start().await?;
    let mut page = Browser::open(&format!("{}/", activator.admin_url())).await?;
    page.wait_for(r#"document.querySelector('[data-target="shop/web"]') !== null"#).await?;
    page.wait_for(&column("state", "not-ready")).await?;
    page.wait_for(&column("source", "observed")).await?;
    // Nobody has said since when.
    page.wait_for(&is_so_for("unknown")).await?;
    page.wait_for(&held(0)).await?;

    let client = http_client()?;
    let ask = || {
        let request = client.get(format!("http://127.0.0.1:{port}/")).header(HOST, "web.example.com");
        tokio::spawn(request.send())
    };
    let requests = [ask(), ask()];
    page.wait_for(&held(2)).await?;
    page.wait_for(r#"document.body.innerText.includes("2, the first for ")"#).await?;
    page.wait_for(r#"document.body.innerText.includes("2 requests are held.")"#).await?;

    let sidecar = world.sidecar(&activator).await?;
    page.wait_for(&column("source", "pushed")).await?;
    sidecar.tell(&activator.url(), Kind::Ready).await?;
    page.wait_for(&column("state", "ready")).await?;
    page.wait_for(&held(0)).await?;
    for answer in requests {
        assert_eq!(answer.await??.status(), 200);
    }
    // Once it is known it grows, also when nothing else changes.
    page.wait_for(&is_so_for(r"\d+(\.\d+)? (ms|s)")).await?;
    page.wait_for(&is_so_for(r"([3-9]|[1-9]\d)(\.\d+)? s")).await?;
    page.wait_for(&column("in-flight", "0")).await?;
    page.wait_for("document.querySelector('#lag caption')?.textContent.startsWith('pushed: ')").await?;

    // Names, hosts, settings and faults are there, as text.
    let text = page.evaluate("document.body.innerText").await?.as_str().unwrap_or_default().to_owned();
    let served = format!("Health checks at {readiness} are answered by this process");
    for part in ["web-0", "web.example.com", "always: straight to the pod", NASTY, "1 other does not", &served] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert_eq!(page.evaluate("document.querySelectorAll('img').length").await?, 0);
    assert!(!page.html().await?.contains("<img"));
    assert_eq!(page.complaints(), [""; 0]);

    // A page whose activator has gone says so.
    activator.kill();
    page.wait_for("document.getElementById('live').textContent.startsWith('The connection is lost')").await?;
    Ok(())
}

#[tokio::test]
async fn without_a_request_path_the_page_says_so_and_shows_the_rest() -> Result<()> {
    let world = World::new()?;
    let activator = world.activator().start().await?;
    let mut page = Browser::open(&format!("{}/", activator.admin_url())).await?;
    page.wait_for("document.body.innerText.includes('This activator takes no requests')").await?;
    page.wait_for(&column("state", "not-ready")).await?;
    page.wait_for(r#"document.querySelector('[data-target="shop/other"]') !== null"#).await?;
    assert_eq!(page.evaluate("document.querySelectorAll('[data-held]').length").await?, 0);
    assert_eq!(page.evaluate("document.getElementById('xdp').hidden").await?, true);
    assert_eq!(page.complaints(), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn the_page_can_be_turned_off() -> Result<()> {
    let world = World::new()?;
    let activator = world.activator().flag("status-page", "off").start().await?;
    for path in ["/", "/status", "/status/xdp", "/status/events", "/status/page.js", "/status/page.css"] {
        let status = activator.admin(path).await?.status;
        assert_eq!(status, 404, "{path}");
    }
    Ok(())
}
