//! The binaries as processes: how they start, what they say of themselves, how they end.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podlight_e2e::activator::ActivatorSpec;
use podlight_e2e::api::Reader;
use podlight_e2e::control_plane::PodState;
use podlight_e2e::eventually::eventually;
use podlight_e2e::raw::RawConnection;
use podlight_e2e::scene::seconds_ago;
use podlight_e2e::sender::Sender;
use podlight_e2e::{binary, https_client};
use podlight_proto::{EVENT_MEDIA_TYPE, EVENTS_PATH, Kind, Outcome};
use serde_json::json;

use crate::scene;

async fn run(name: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary(name)?);
    command.args(arguments).env_clear();
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

#[tokio::test]
async fn faults_of_the_configuration_are_all_told_before_anything_is_bound() -> Result<()> {
    // Ours: whoever bound before it checked would complain of this first.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let listen = format!("--listen={}", taken.local_addr()?);
    let arguments = ["--plaintext", "--tls-self-signed", "--auth=magic", "--max-sessions=0", "--rate=fast", &listen];
    let output = run("podlight-activator", &arguments).await?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(64), "{said}");
    for flag in ["--tls-cert", "--auth", "--max-sessions", "--rate"] {
        assert!(said.contains(flag), "{flag} is not told of:\n{said}");
    }
    let admin = format!("--admin-listen={}", taken.local_addr()?);
    let arguments = ["--probe=ftp://x", "--timeout=0s", "--revision=a b", "--activator=http://10.0.0.1:1", &admin];
    let output = run("podlight-sidecar", &arguments).await?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(64), "{said}");
    for flag in ["--probe", "--timeout", "--revision", "--activator", "--namespace", "--pod", "--uid"] {
        assert!(said.contains(flag), "{flag} is not told of:\n{said}");
    }
    for name in ["podlight-activator", "podlight-sidecar"] {
        assert_eq!(run(name, &["--no-such-flag"]).await?.status.code(), Some(64));
        let version = run(name, &["--version"]).await?;
        assert_eq!(version.status.code(), Some(0));
        assert!(String::from_utf8(version.stdout)?.starts_with(name));
    }
    Ok(())
}

#[tokio::test]
async fn files_that_cannot_be_used_are_all_told_before_anything_is_bound() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let listen = format!("--listen={}", taken.local_addr()?);
    let folder = tempfile::tempdir()?;
    let no = |name: &str| folder.path().join(name).display().to_string();
    let files = [
        format!("--tls-cert={}", no("tls.crt")),
        format!("--tls-key={}", no("tls.key")),
        format!("--kubeconfig={}", no("kubeconfig")),
        format!("--proxy-certificate={}:{}", no("proxy.crt"), no("proxy.key")),
        format!("--upstream-ca={}", no("ca.crt")),
    ];
    let mut arguments = vec!["--proxy-listen=127.0.0.1:0", "--proxy-tls-listen=127.0.0.1:0", &listen];
    arguments.extend(files.iter().map(String::as_str));
    let output = run("podlight-activator", &arguments).await?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(64), "{said}");
    for file in ["tls.crt", "kubeconfig", "proxy.crt", "ca.crt"] {
        assert!(said.contains(&no(file)), "{file} is not told of:\n{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_ends_the_process_with_a_reason() -> Result<()> {
    let scene = scene().await;
    let taken = scene.activators[0].port();
    let kubeconfig = scene.kubeconfig().display().to_string();
    let listen = format!("--listen=127.0.0.1:{taken}");
    let arguments = ["--plaintext", "--replica=x", "--kubeconfig", &kubeconfig, "--admin-listen=127.0.0.1:0", &listen];
    let output = run("podlight-activator", &arguments).await?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&taken.to_string()), "{said}");
    Ok(())
}

#[tokio::test]
async fn sigterm_is_not_ready_first_then_ends_what_is_under_way() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let activator = scene.activator().flag("shutdown-delay", "2s").flag("shutdown-grace", "10s").start().await?;
    let base = activator.url();
    web.sender.introduce(&base, &web.token).await?;
    let mut watch = scene.reader_of(&activator)?.watch(None).await?;
    watch.find(|event| event.kind == "synced").await?;
    let body = String::from_utf8(web.sender.event(Kind::Ready).sign().body)?;
    let (first, rest) = body.split_at(100);
    let head = format!("POST {EVENTS_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\n");
    let mut under_way = RawConnection::open(activator.port()).await?;
    under_way.send(format!("{head}content-length: {}\r\n\r\n{first}", body.len())).await?;

    activator.terminate()?;
    eventually("it is not ready", async || Ok((activator.admin("/readyz").await?.status == 503).then_some(()))).await?;
    // During the delay others may not have noticed yet: they are served.
    assert_eq!(web.sender.tell(&base, Kind::Heartbeat).await?.result, Outcome::Applied);
    assert_eq!(activator.admin("/healthz").await?.status, 200);
    eventually("the watch ends", async || Ok(watch.next().await?.is_none().then_some(()))).await?;
    // Its connections go when they rest; the one with a request under way is waited for.
    assert!(activator.is_running());
    under_way.send(rest).await?;
    assert_eq!(under_way.answer().await?.status, Some(202));
    assert_eq!(activator.ended().await?.code(), Some(0), "{}", activator.log_tail());
    Ok(())
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_at_the_grace() -> Result<()> {
    let scene = scene().await;
    let activator = scene.activator().flag("shutdown-grace", "1s").start().await?;
    let head = format!("POST {EVENTS_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\n");
    let mut hanging = RawConnection::open(activator.port()).await?;
    hanging.send(format!("{head}content-length: 100\r\n\r\nabc")).await?;
    eventually("the request is under way", async || {
        Ok((activator.metrics().await?.sum("podlight_connections", &[("listener", "events")]) >= 1.0).then_some(()))
    })
    .await?;
    let begun = Instant::now();
    activator.terminate()?;
    assert_eq!(activator.ended().await?.code(), Some(0), "{}", activator.log_tail());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() -> Result<()> {
    let scene = scene().await;
    let activator = scene.activator().flag("shutdown-delay", "60s").start().await?;
    activator.terminate()?;
    eventually("it is not ready", async || Ok((activator.admin("/readyz").await?.status == 503).then_some(()))).await?;
    activator.terminate()?;
    let status = activator.ended().await?;
    assert_ne!(status.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn without_its_rights_an_activator_is_never_ready_and_says_which_it_needs() -> Result<()> {
    let scene = scene().await;
    scene.control_plane.create_service_account("default", "powerless").await?;
    let kubeconfig = scene.control_plane.kubeconfig_for("default", "powerless").await?;
    let activator = ActivatorSpec::new(&kubeconfig).flag("replica", "powerless").spawn()?;
    eventually("it complains", async || {
        let log = activator.log_text()?;
        Ok(["pods", "services", "endpointslices"].iter().all(|kind| log.contains(kind)).then_some(()))
    })
    .await
    .with_context(|| activator.log_tail())?;
    let ready = activator.admin("/readyz").await?;
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert!(ready.body.contains("not listed yet"), "{}", ready.body);
    assert_eq!(activator.admin("/healthz").await?.status, 200, "a restart would not help");
    Ok(())
}

#[tokio::test]
async fn lag_and_lead_are_measured_as_histograms() -> Result<()> {
    let scene = scene().await;
    let shop = scene.shop().await?;
    let web = shop.web("web-1").await?;
    let activator = scene.activator().start().await?;
    let reader = scene.reader_of(&activator)?;
    web.sender.introduce(&activator.url(), &web.token).await?;
    web.sender.tell(&activator.url(), Kind::Ready).await?;
    // The kubelet comes to the same a moment later, and the watch with it.
    shop.set("web-1", &PodState::new().ready(true, seconds_ago(0))).await?;
    let metrics = eventually("the lead is measured", async || {
        let metrics = activator.metrics().await?;
        Ok(metrics.has("podlight_push_lead_seconds_bucket", &[("le", "+Inf")]).then_some(metrics))
    })
    .await?;
    reader.wait_verdict(&shop.namespace, "web", "web-1", "ready pushed").await?;
    for source in ["pushed", "observed"] {
        let count = metrics.sum("podlight_discovery_lag_seconds_count", &[("source", source)]);
        assert!(count >= 1.0, "{source}\n{}", metrics.text());
        assert!(metrics.has("podlight_discovery_lag_seconds_bucket", &[("source", source), ("le", "0.005")]));
    }
    assert!(!metrics.text().contains("quantile="), "a histogram without buckets");
    for name in ["podlight_build_info", "podlight_table_pods", "podlight_sessions", "podlight_api_reachable"] {
        assert!(metrics.has(name, &[]), "{name}");
    }
    assert!(!metrics.text().contains(&shop.namespace), "no names in labels");
    assert!(!activator.log_text()?.contains(&web.token), "no token in the log");
    Ok(())
}

#[tokio::test]
async fn a_certificate_is_taken_anew_when_its_file_changes() -> Result<()> {
    let scene = scene().await;
    let folder = tempfile::tempdir()?;
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let issue = || -> Result<String> {
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        std::fs::write(&key, issued.signing_key.serialize_pem())?;
        std::fs::write(&certificate, issued.cert.pem())?;
        Ok(issued.cert.pem())
    };
    let first = issue()?;
    let activator = scene.activator().certificate(&certificate, &key).start().await?;
    let targets = format!("{}/v1/targets", activator.url());
    let trusts = async |pem: &str| Ok::<_, anyhow::Error>(https_client(pem)?.get(&targets).send().await.is_ok());
    assert!(trusts(&first).await?);
    // What cannot be used leaves the one before in place.
    std::fs::write(&certificate, "no certificate")?;
    eventually("the fault is counted", async || {
        let metrics = activator.metrics().await?;
        Ok((metrics.sum("podlight_tls_reload_total", &[("result", "failed")]) >= 1.0).then_some(()))
    })
    .await?;
    assert!(trusts(&first).await?);
    let second = issue()?;
    eventually("the new certificate is shown", async || Ok(trusts(&second).await?.then_some(()))).await?;
    assert!(!trusts(&first).await?);
    Ok(())
}

#[tokio::test]
async fn manifests_stand_in_for_a_cluster_and_are_followed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests)?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-1", "namespace": "default", "uid": "0000-1", "labels": { "app": "web" } },
        "spec": { "serviceAccountName": "default", "containers": [{ "name": "app", "image": "app" }] },
        "status": { "phase": "Running", "podIPs": [{ "ip": "127.0.0.1" }] },
    });
    std::fs::write(manifests.join("service.json"), service.to_string())?;
    std::fs::write(manifests.join("pod.json"), pod.to_string())?;
    let key = folder.path().join("issuer.pem");
    let activator = ActivatorSpec::standalone(&manifests, &key).start().await?;
    let arguments = ["token", "--pod=web-1", "--uid=0000-1", "--issuer-key", &key.display().to_string()];
    let minted = run("podlight-activator", &arguments).await?;
    let token = String::from_utf8(minted.stdout)?.trim().to_owned();

    let sender = Sender::for_pod(&serde_json::from_value(pod)?)?;
    sender.introduce(&activator.url(), &token).await?;
    sender.tell(&activator.url(), Kind::Ready).await?;
    let reader = Reader::new(&activator.url(), &token)?;
    let endpoint = reader.wait_verdict("default", "web", "web-1", "ready pushed").await?;
    assert_eq!(endpoint.ports[0].port, 8080);
    std::fs::remove_file(manifests.join("pod.json"))?;
    reader.wait_gone("default", "web", "web-1").await?;
    Ok(())
}
