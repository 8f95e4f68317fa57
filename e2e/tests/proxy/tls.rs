//! Listening over TLS: certificates by the name that a client asks for, read again when they change, both protocols.

use anyhow::{Context, Result, ensure};
use http::Version;
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{Connection, get};
use podlight_e2e::proxy::pki::ALPN;
use podlight_e2e::proxy::stage::Stage;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::authority;

fn der(pem: &str) -> Result<Vec<u8>> {
    Ok(CertificateDer::from_pem_slice(pem.as_bytes()).context("no certificate")?.to_vec())
}

/// A stage that listens over TLS with certificates for `a.example` and `*.b.example`, whose one Service has both.
async fn stage() -> Result<(Stage<'static>, tempfile::TempDir, podlight_e2e::proxy::pki::Authority)> {
    let authority = authority("clients trust this");
    let folder = tempfile::tempdir()?;
    let pair = |name: &str, names: &[&str]| {
        let (certificate, key) = authority.issue(names)?.write(folder.path(), name)?;
        Ok::<_, anyhow::Error>(format!("{}:{}", certificate.display(), key.display()))
    };
    let (first, second) = (pair("a", &["a.example"])?, pair("b", &["b.example", "*.b.example"])?);
    let stage = Stage::standalone_with(|spec| {
        let spec = spec.also("proxy-certificate", &first).also("proxy-certificate", &second);
        spec.proxy_tls().unwrap_or_else(|error| panic!("no port: {error}"))
    })
    .await?;
    let hosts = "a.example, b.example, *.b.example";
    stage.create_service(stage.service("web").annotation("podlight.dev/hosts", hosts)).await?;
    Ok((stage, folder, authority))
}

#[tokio::test]
async fn each_name_is_answered_with_its_own_certificate() -> Result<()> {
    let (stage, folder, authority) = stage().await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until("a.example", |answer| answer.status == 200).await?;
    let address = stage.activator().proxy_tls_address()?;
    for (name, file) in [("a.example", "a.crt"), ("b.example", "b.crt"), ("x.b.example", "b.crt")] {
        for (alpn, version) in [(&ALPN[..], Version::HTTP_2), (&["http/1.1"], Version::HTTP_11)] {
            let mut connection = Connection::tls(address, name, &authority.client(alpn)?).await?;
            let expected = der(&std::fs::read_to_string(folder.path().join(file))?)?;
            assert_eq!(connection.certificate, Some(expected), "{name}");
            let answer = connection.ask(get(name, "/")).await?;
            assert_eq!(answer.version, version, "{name}");
            assert_eq!(answer.seen()?.header("x-forwarded-proto").as_deref(), Some("https"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_name_without_certificate_gets_none_that_is_for_it() -> Result<()> {
    let (stage, _folder, authority) = stage().await?;
    let address = stage.activator().proxy_tls_address()?;
    let connected = Connection::tls(address, "c.example", &authority.client(&ALPN)?).await;
    ensure!(connected.is_err(), "a certificate for another name was taken");
    // And nothing else is disturbed.
    Connection::tls(address, "a.example", &authority.client(&ALPN)?).await?;
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_changes_is_read_again_and_open_connections_stay() -> Result<()> {
    let (stage, folder, authority) = stage().await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until("a.example", |answer| answer.status == 200).await?;
    let (address, client) = (stage.activator().proxy_tls_address()?, authority.client(&ALPN)?);
    let mut before = Connection::tls(address, "a.example", &client).await?;
    before.ask(get("a.example", "/")).await?.seen()?;
    let renewed = authority.issue(&["a.example"])?;
    renewed.write(folder.path(), "a")?;
    let expected = der(&renewed.certificate)?;
    eventually("the new certificate is shown", async || {
        let connection = Connection::tls(address, "a.example", &client).await?;
        Ok((connection.certificate.as_ref() == Some(&expected)).then_some(()))
    })
    .await?;
    before.ask(get("a.example", "/")).await?.seen()?;
    // The other's is as it was.
    let other = Connection::tls(address, "b.example", &client).await?;
    assert_eq!(other.certificate, Some(der(&std::fs::read_to_string(folder.path().join("b.crt"))?)?));
    Ok(())
}

#[tokio::test]
async fn a_certificate_file_that_becomes_unusable_leaves_the_last_good_one() -> Result<()> {
    let (stage, folder, authority) = stage().await?;
    let (address, client) = (stage.activator().proxy_tls_address()?, authority.client(&ALPN)?);
    let expected = der(&std::fs::read_to_string(folder.path().join("a.crt"))?)?;
    std::fs::write(folder.path().join("a.crt"), "no certificate")?;
    // Long enough for several looks at the file.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(Connection::tls(address, "a.example", &client).await?.certificate, Some(expected));
    Ok(())
}

#[tokio::test]
async fn plain_text_at_the_tls_port_and_tls_at_the_plain_one_disturb_nobody() -> Result<()> {
    let (stage, _folder, authority) = stage().await?;
    let _web = stage.ready_web("web", "web-1").await?;
    stage.until("a.example", |answer| answer.status == 200).await?;
    let (tls, plain) = (stage.activator().proxy_tls_address()?, stage.proxy()?);
    let answer = podlight_e2e::raw::exchange(tls.port(), "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await?;
    ensure!(answer.status != Some(200), "{answer:?}");
    ensure!(Connection::tls(plain, "a.example", &authority.client(&ALPN)?).await.is_err(), "TLS at the plain port");
    Connection::tls(tls, "a.example", &authority.client(&ALPN)?).await?.ask(get("a.example", "/")).await?.seen()?;
    stage.until("a.example", |answer| answer.status == 200).await?;
    Ok(())
}
