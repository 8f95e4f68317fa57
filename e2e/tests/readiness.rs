//! The readiness port of a real activator whose cluster is a folder of manifests, served by its own process: what health
//! checks hear as pods come and go, and what its commands tell of it. Needs no root.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use podlight_activator::cluster::standalone::pod_uid;
use podlight_e2e::activator::{Activator, ActivatorSpec};
use podlight_e2e::binary;
use podlight_e2e::control_plane::process::free_port;
use podlight_e2e::eventually::eventually;
use podlight_e2e::raw::RawConnection;
use podlight_e2e::sender::Sender;
use podlight_proto::{EVENT_MEDIA_TYPE, EVENTS_PATH, Kind};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A Service `shop/web` with one pod, and an activator that answers for it.
struct World {
    // Dropped before the folder that it reads.
    activator: Activator,
    port: u16,
    pod: Pod,
    folder: TempDir,
}

impl World {
    async fn start(flags: &[(&str, &str)]) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        let meta = |name: &str| json!({ "namespace": "shop", "name": name });
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "shop",
                "name": "web-0",
                "uid": pod_uid("shop", "web-0").as_str(),
                "labels": { "app": "web" },
            },
            "spec": {
                "serviceAccountName": "web",
                "containers": [{ "name": "app", "image": "a", "readinessProbe": { "tcpSocket": { "port": 1 } } }],
            },
            "status": { "phase": "Running", "podIPs": [{ "ip": "127.0.0.1" }, { "ip": "::1" }] },
        });
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta("web"),
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
        });
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("web") });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [service, account, pod] });
        let manifests = folder.path().join("manifests");
        fs::create_dir(&manifests)?;
        fs::write(manifests.join("cluster.json"), list.to_string())?;
        let spec = ActivatorSpec::standalone(&manifests, &folder.path().join("issuer.key"))
            .flag("xdp-listen", &format!("127.0.0.1:{port}"));
        let spec = flags.iter().fold(spec, |spec, (name, value)| spec.flag(name, value));
        let activator = spec.start().await?;
        Ok(Self { activator, port, pod: serde_json::from_value(pod)?, folder })
    }

    /// The pod's sidecar, as the activator has heard it once.
    async fn sidecar(&self) -> Result<Sender> {
        let issuer_key = self.folder.path().join("issuer.key").display().to_string();
        let pod = ["--namespace", "shop", "--pod", "web-0", "--service-account", "web"];
        let (status, token) = run(&[&["token", "--issuer-key", &issuer_key], &pod[..]].concat()).await?;
        ensure!(status.success(), "{token}");
        let sender = Sender::for_pod(&self.pod)?;
        sender.introduce(&self.activator.url(), token.trim()).await?;
        Ok(sender)
    }

    async fn ask(&self, path: &str) -> Result<(u16, String)> {
        let mut connection = RawConnection::open(self.port).await?;
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await?;
        let answer = connection.answer().await?;
        let body = answer.body.split_whitespace().collect::<Vec<_>>().join(" ");
        Ok((answer.status.context("no answer")?, body))
    }

    /// Waits until a path is answered so: an acknowledged event is in the table, and in the map a moment later.
    async fn answered(&self, path: &str, status: u16, body: &str) -> Result<()> {
        let wanted = (status, body.to_owned());
        eventually(&format!("{path} is answered {wanted:?}"), async || {
            Ok((self.ask(path).await? == wanted).then_some(()))
        })
        .await
    }

    async fn probe(&self, path: &str) -> Result<(ExitStatus, String)> {
        run(&["xdp", "probe", &format!("http://127.0.0.1:{}{path}", self.port)]).await
    }
}

/// Runs the activator's command, and returns how it ended and what it said.
async fn run(arguments: &[&str]) -> Result<(ExitStatus, String)> {
    let mut command = Command::new(binary("podlight-activator")?);
    command.args(arguments).env_clear();
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    Ok((output.status, String::from_utf8([output.stdout, output.stderr].concat())?))
}

#[tokio::test]
async fn health_checks_hear_what_the_table_says() -> Result<()> {
    let world = World::start(&[]).await?;
    world.answered("/ready/shop/web", 503, "not ready 0 of 1").await?;
    let sidecar = world.sidecar().await?;
    sidecar.tell(&world.activator.url(), Kind::Ready).await?;
    for path in ["/ready/shop/web", "/ready/shop/web/127.0.0.1", "/ready/shop/web/::1"] {
        world.answered(path, 200, "ready 1 of 1").await?;
    }
    for path in ["/ready/shop/other", "/ready/shop/web/127.0.0.2", "/ready/shop/web/0:0:0:0:0:0:0:1", "/healthz"] {
        assert_eq!(world.ask(path).await?, (404, "unknown path".to_owned()), "{path}");
    }
    sidecar.tell(&world.activator.url(), Kind::Draining).await?;
    for path in ["/ready/shop/web", "/ready/shop/web/127.0.0.1", "/ready/shop/web/::1"] {
        world.answered(path, 503, "not ready 0 of 1").await?;
    }
    let metrics = world.activator.metrics().await?;
    assert!(metrics.sum("podlight_xdp_userspace_answers_total", &[("answer", "ready")]) >= 3.0);
    assert_eq!(metrics.sum("podlight_xdp_userspace_answers_total", &[("answer", "unknown")]), 4.0);
    assert_eq!(metrics.sum("podlight_xdp_answers", &[]), 3.0);
    Ok(())
}

#[tokio::test]
async fn the_probe_command_fails_as_a_kubelets_probe_would() -> Result<()> {
    let world = World::start(&[]).await?;
    world.answered("/ready/shop/web", 503, "not ready 0 of 1").await?;
    let (status, said) = world.probe("/ready/shop/web").await?;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("503 Service Unavailable in ") && said.contains("not ready 0 of 1"), "{said}");
    world.sidecar().await?.tell(&world.activator.url(), Kind::Ready).await?;
    world.answered("/ready/shop/web", 200, "ready 1 of 1").await?;
    let (status, said) = world.probe("/ready/shop/web").await?;
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("200 OK in ") && said.contains("answered by the activator's process"), "{said}");
    assert_eq!(world.probe("/ready/shop/other").await?.0.code(), Some(1));
    // An HTTP server that is no readiness port.
    let (status, said) = run(&["xdp", "probe", &format!("{}/healthz", world.activator.admin_url())]).await?;
    assert!(status.success() && said.contains("answered by somebody else"), "{said}");
    let (status, said) = run(&["xdp", "probe", &format!("http://127.0.0.1:{}/", free_port()?)]).await?;
    assert!(!status.success() && said.contains("cannot connect"), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_map_is_shown_with_who_serves_it() -> Result<()> {
    let world = World::start(&[("xdp", "off")]).await?;
    world.answered("/ready/shop/web", 503, "not ready 0 of 1").await?;
    let admin = world.activator.admin_url();
    let (status, said) = run(&["xdp", "--admin", &admin]).await?;
    assert!(status.success(), "{said}");
    for line in
        ["served by       userspace", "answers         3 of at most 262144", "503       0 of 1  /ready/shop/web/::1"]
    {
        assert!(said.lines().any(|shown| shown.starts_with(line)), "{line:?} is missing:\n{said}");
    }
    let (_, said) = run(&["xdp", "--admin", &admin, "--beginning", "/ready/shop/web/1", "--limit", "1"]).await?;
    assert!(said.contains("/ready/shop/web/127.0.0.1") && !said.contains("::1"), "{said}");
    let status: Value = serde_json::from_str(&world.activator.admin("/status").await?.body)?;
    assert_eq!(status["state"]["xdp"]["serving"], "userspace");
    assert_eq!(status["state"]["xdp"]["answers"], 3);
    Ok(())
}

#[tokio::test]
async fn an_activator_without_a_readiness_port_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifests: PathBuf = folder.path().join("manifests");
    fs::create_dir(&manifests)?;
    let activator = ActivatorSpec::standalone(&manifests, &folder.path().join("issuer.key")).start().await?;
    let (status, said) = run(&["xdp", "--admin", &activator.admin_url()]).await?;
    assert!(!status.success() && said.contains("--xdp-listen"), "{said}");
    let status: Value = serde_json::from_str(&activator.admin("/status").await?.body)?;
    assert!(status["state"]["xdp"].is_null(), "{status}");
    Ok(())
}

#[tokio::test]
async fn answers_become_503_before_the_process_goes() -> Result<()> {
    let world = World::start(&[]).await?;
    world.sidecar().await?.tell(&world.activator.url(), Kind::Ready).await?;
    world.answered("/ready/shop/web", 200, "ready 1 of 1").await?;
    // An event that is under way keeps the process until it has been read.
    let head = format!("POST {EVENTS_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\n");
    let mut under_way = RawConnection::open(world.activator.port()).await?;
    under_way.send(format!("{head}content-length: 4\r\n\r\nab")).await?;
    eventually("the event is under way", async || {
        let metrics = world.activator.metrics().await?;
        Ok((metrics.sum("podlight_connections", &[("listener", "events")]) >= 1.0).then_some(()))
    })
    .await?;
    world.activator.terminate()?;
    world.answered("/ready/shop/web", 503, "stale").await?;
    assert_eq!(world.ask("/ready/shop/other").await?, (503, "stale".to_owned()));
    under_way.send("cd").await?;
    under_way.answer().await?;
    assert_eq!(world.activator.ended().await?.code(), Some(0), "{}", world.activator.log_tail());
    assert!(RawConnection::open(world.port).await.is_err(), "nobody listens any more");
    Ok(())
}
