//! TLS to the pod: its address is dialled, its Service's name is asked for and verified, and a connection that was verified for one
//! name is never used for another.

use std::path::Path;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use podlight_e2e::activator::ActivatorSpec;
use podlight_e2e::backend::{Backend, fresh_loopback};
use podlight_e2e::proxy::client::Connection;
use podlight_e2e::proxy::client::get;
use podlight_e2e::proxy::pki::{ALPN, Authority};
use podlight_e2e::proxy::stage::{Stage, Web};

use crate::authority;

const TLS: &str = "podlight.dev/upstream-tls";
const NAME: &str = "podlight.dev/upstream-server-name";
const CA_SECRET: &str = "podlight.dev/upstream-ca-secret";

/// A stage that trusts `authority` upstream.
async fn stage(
    folder: &Path,
    authority: &Authority,
    differ: impl FnOnce(ActivatorSpec) -> ActivatorSpec,
) -> Result<Stage<'static>> {
    let ca = folder.join("upstream-ca.crt");
    std::fs::write(&ca, authority.pem())?;
    Stage::standalone_with(|spec| differ(spec.flag("upstream-ca", &ca.display().to_string()))).await
}

/// A ready pod whose app speaks TLS with a certificate for `names`.
async fn pod(
    stage: &Stage<'_>,
    service: &str,
    name: &str,
    authority: &Authority,
    names: &[&str],
    alpn: &[&str],
) -> Result<Web> {
    let app = Backend::at(name, fresh_loopback()).tls(authority.issue(names)?.server(alpn, None)?);
    app.listen()?;
    stage.ready_with(service, name, app).await
}

#[tokio::test]
async fn an_https_port_is_dialled_by_address_and_verified_by_the_services_name() -> Result<()> {
    let (folder, authority) = (tempfile::tempdir()?, authority("pods"));
    let stage = stage(folder.path(), &authority, |spec| spec).await?;
    stage.create_service(stage.service("web").app_protocol("https")).await?;
    let name = "web.shop.svc";
    let _web = pod(&stage, "web", "web-1", &authority, &[name], &ALPN).await?;
    let seen = stage.until(&stage.host("web"), |answer| answer.status == 200).await?.seen()?;
    let tls = seen.tls.unwrap_or_default();
    assert_eq!(tls.server_name.as_deref(), Some(name));
    ensure!(!tls.client_certificate, "a certificate that nobody configured");
    assert_eq!(seen.authority, stage.host("web"), "the host stays the client's");
    Ok(())
}

#[tokio::test]
async fn an_annotation_turns_tls_on_and_off_live() -> Result<()> {
    let (folder, authority) = (tempfile::tempdir()?, authority("pods"));
    let stage = stage(folder.path(), &authority, |spec| spec).await?;
    stage.create_service(stage.service("web").annotation(TLS, "true")).await?;
    let web = pod(&stage, "web", "web-1", &authority, &["web.shop.svc"], &ALPN).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    stage.annotate("web", TLS, Some("false")).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 502).await?;
    stage.annotate("web", TLS, Some("true")).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    drop(web);
    Ok(())
}

#[tokio::test]
async fn both_protocols_are_spoken_inside_tls() -> Result<()> {
    let (folder, authority) = (tempfile::tempdir()?, authority("pods"));
    let stage = stage(folder.path(), &authority, |spec| spec).await?;
    for (service, alpn) in [("one", &["http/1.1"] as &[&str]), ("two", &["h2"]), ("any", &ALPN)] {
        stage.create_service(stage.service(service).app_protocol("https")).await?;
        let name = format!("{service}.shop.svc");
        let _web = pod(&stage, service, &format!("{service}-1"), &authority, &[&name], alpn).await?;
        let seen = stage.until(&stage.host(service), |answer| answer.status == 200).await?.seen()?;
        let expected = if service == "one" { "HTTP/1.1" } else { &seen.version };
        assert_eq!(seen.version, expected, "{service}");
        if service == "two" {
            assert_eq!(seen.version, "HTTP/2.0");
        }
        let mut two = Connection::http2(stage.proxy()?).await?;
        two.ask(get(&stage.host(service), "/")).await?.seen()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_certificate_for_another_name_or_of_another_authority_is_502_and_nothing_is_sent() -> Result<()> {
    let (folder, authority, stranger) = (tempfile::tempdir()?, authority("pods"), authority("strangers"));
    let stage = stage(folder.path(), &authority, |spec| spec).await?;
    for (service, issuer, name) in [("wrong", &authority, "other.shop.svc"), ("foreign", &stranger, "foreign.shop.svc")]
    {
        stage.create_service(stage.service(service).app_protocol("https")).await?;
        let web = pod(&stage, service, &format!("{service}-1"), issuer, &[name], &ALPN).await?;
        let answer = stage.until(&stage.host(service), |answer| answer.status == 502).await?;
        answer.refused(502)?;
        assert_eq!(answer.error(), "tls", "{service}");
        assert_eq!(web.app.requests(), 0, "{service}");
    }
    Ok(())
}

#[tokio::test]
async fn without_an_authority_nothing_is_trusted() -> Result<()> {
    let authority = authority("pods");
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web").app_protocol("https")).await?;
    let web = pod(&stage, "web", "web-1", &authority, &["web.shop.svc"], &ALPN).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 502).await?.refused(502)?;
    assert_eq!(web.app.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn the_authority_of_a_secret_is_read_from_the_api_server_once_it_may_be_and_is_there() -> Result<()> {
    let (authority, stranger) = (authority("pods"), crate::authority("strangers"));
    let scene = crate::scene().await;
    let stage = Stage::on(scene, |spec| spec).await?;
    let name = format!("web.{}.svc", stage.namespace);
    stage.create_service(stage.service("web").app_protocol("https").annotation(CA_SECRET, "pods-ca")).await?;
    let web = pod(&stage, "web", "web-1", &authority, &[&name], &ALPN).await?;
    let answer = stage.until(&stage.host("web"), |answer| answer.status == 502).await?;
    assert_eq!(answer.error(), "tls");
    ensure!(answer.text().contains("Secret pods-ca"), "{}", answer.text());
    let rules = serde_json::json!([{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"] }]);
    scene.control_plane.grant("default", "activator", &format!("{}-secrets", stage.namespace), rules).await?;
    let secret: Secret = serde_json::from_value(serde_json::json!({
        "metadata": { "namespace": stage.namespace, "name": "pods-ca" }, "stringData": { "ca.crt": authority.pem() },
    }))?;
    scene.control_plane.create(secret).await?;
    let seen = stage.until(&stage.host("web"), |answer| answer.status == 200).await?.seen()?;
    assert_eq!(seen.tls.unwrap_or_default().server_name, Some(name.clone()));
    drop(web);
    // It vouches for whom it signed, and for nobody else.
    stage.delete_pod("web-1", 0).await?;
    stage.wait_endpoints("web", 0).await?;
    let strange = pod(&stage, "web", "web-2", &stranger, &[&name], &ALPN).await?;
    stage.until(&stage.host("web"), |answer| answer.error() == "tls").await?;
    assert_eq!(strange.app.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn a_connection_verified_for_one_name_is_never_used_for_another() -> Result<()> {
    let (folder, authority) = (tempfile::tempdir()?, authority("pods"));
    let stage = stage(folder.path(), &authority, |spec| spec).await?;
    // One pod, two Services, and a certificate for one of them only.
    let app = Backend::at("shared-1", fresh_loopback());
    let app = app.tls(authority.issue(&["good.shop.svc"])?.server(&ALPN, None)?);
    app.listen()?;
    for service in ["good", "bad"] {
        stage
            .create_service(
                stage.open_service(service).selector("app", "shared").port("https", 443, "http").app_protocol("https"),
            )
            .await?;
    }
    let web = stage.ready_with("shared", "shared-1", app).await?;
    stage.until(&stage.host("good"), |answer| answer.status == 200).await?;
    ensure!(web.app.open_connections() > 0, "nothing is pooled: the case proves nothing");
    stage.until(&stage.host("bad"), |answer| answer.status == 502).await?;
    for _ in 0..10 {
        stage.get("bad", "/").await?.refused(502)?;
        stage.get("good", "/").await?.seen()?;
    }
    // Named, it is verified anew.
    stage.annotate("bad", NAME, Some("good.shop.svc")).await?;
    let seen = stage.until(&stage.host("bad"), |answer| answer.status == 200).await?.seen()?;
    assert_eq!(seen.tls.unwrap_or_default().server_name.as_deref(), Some("good.shop.svc"));
    stage.annotate("bad", NAME, None).await?;
    stage.until(&stage.host("bad"), |answer| answer.status == 502).await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_that_asks_for_a_client_certificate_is_shown_the_configured_one() -> Result<()> {
    let (folder, authority) = (tempfile::tempdir()?, authority("pods"));
    let clients = crate::authority("clients");
    let (certificate, key) = clients.issue(&["podlight"])?.write(folder.path(), "client")?;
    let pair = format!("{}:{}", certificate.display(), key.display());
    let stage = stage(folder.path(), &authority, |spec| spec.flag("upstream-certificate", &pair)).await?;
    stage.create_service(stage.service("web").app_protocol("https")).await?;
    let server = authority.issue(&["web.shop.svc"])?.server(&ALPN, Some(&clients))?;
    let app = Backend::at("web-1", fresh_loopback()).tls(server);
    app.listen()?;
    let _web = stage.ready_with("web", "web-1", app).await?;
    let seen = stage.until(&stage.host("web"), |answer| answer.status == 200).await?.seen()?;
    ensure!(seen.tls.unwrap_or_default().client_certificate, "none was shown");
    Ok(())
}

#[tokio::test]
async fn a_new_pod_at_a_reused_address_is_verified_anew() -> Result<()> {
    let (folder, authority, stranger) = (tempfile::tempdir()?, authority("pods"), crate::authority("strangers"));
    let stage = stage(folder.path(), &authority, |spec| spec).await?;
    stage.create_service(stage.service("web").app_protocol("https")).await?;
    let old = pod(&stage, "web", "old", &authority, &["web.shop.svc"], &ALPN).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let address = old.pod.address;
    old.app.refuse().await;
    stage.delete_pod("old", 0).await?;
    stage.wait_endpoints("web", 0).await?;
    let app = Backend::at("new", address).tls(stranger.issue(&["web.shop.svc"])?.server(&ALPN, None)?);
    app.listen()?;
    let new = stage.pod_at("web", "new", address).await?;
    new.ready().await?;
    stage.wait("web", "new", "ready pushed").await?;
    stage.until(&stage.host("web"), |answer| answer.status == 502).await?;
    assert_eq!(app.requests(), 0);
    Ok(())
}

#[tokio::test]
async fn grpc_and_websockets_pass_over_tls_to_the_pod() -> Result<()> {
    let (folder, authority) = (tempfile::tempdir()?, authority("pods"));
    let stage = stage(folder.path(), &authority, |spec| spec).await?;
    stage.create_service(stage.service("web").app_protocol("https")).await?;
    let _web = pod(&stage, "web", "web-1", &authority, &["web.shop.svc"], &["h2"]).await?;
    stage.until(&stage.host("web"), |answer| answer.status == 200).await?;
    let mut client = podlight_e2e::backend::grpc::EchoClient::connect(stage.proxy()?, &stage.host("web")).await?;
    assert_eq!(client.say("hello").await?.into_inner().pod, "web-1");
    stage.create_service(stage.service("old").app_protocol("https")).await?;
    let _old = pod(&stage, "old", "old-1", &authority, &["old.shop.svc"], &["http/1.1"]).await?;
    stage.until(&stage.host("old"), |answer| answer.status == 200).await?;
    let stream = tokio::net::TcpStream::connect(stage.proxy()?).await?;
    let (_, response) = tokio_tungstenite::client_async(format!("ws://{}/ws", stage.host("old")), stream).await?;
    assert_eq!(response.status(), 101);
    Ok(())
}
