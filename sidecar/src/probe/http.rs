//! The http and https probes. As the kubelet does: no certificate is checked, a redirect on the same host is
//! followed ten times, one to another host is a success, at most 10 KiB of the body are read.

use std::pin::pin;
use std::sync::{Arc, LazyLock};

use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Failure;

/// How often a redirect on the same host is followed.
const MAX_REDIRECTS: usize = 10;

/// How much of a body is read.
const MAX_BODY_BYTES: usize = 10 * 1024;

pub(super) async fn ask(mut url: Url, headers: &[(HeaderName, HeaderValue)]) -> Result<(), Failure> {
    for _ in 0..=MAX_REDIRECTS {
        let (status, location) = get(&url, headers).await?;
        if !(200..400).contains(&status.as_u16()) {
            return Err(Failure::Status(status.as_u16()));
        }
        let followed = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
        let Some(next) = location.filter(|_| followed) else { return Ok(()) };
        if next.host() != url.host() {
            return Ok(());
        }
        url = next;
    }
    Err(Failure::Redirects)
}

async fn get(url: &Url, headers: &[(HeaderName, HeaderValue)]) -> Result<(StatusCode, Option<Url>), Failure> {
    let [address] = url.socket_addrs(|| None)?[..] else {
        return Err(std::io::Error::other("a redirect to a name").into());
    };
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    if url.scheme() != "https" {
        return exchange(stream, url, headers).await;
    }
    let name = ServerName::IpAddress(address.ip().into());
    exchange(TlsConnector::from(TLS.clone()).connect(name, stream).await?, url, headers).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    url: &Url,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<(StatusCode, Option<Url>), Failure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asked = async {
        let response = sender.send_request(request(url, headers)?).await?;
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.and_then(|location| url.join(location).ok());
        read(response.into_body()).await?;
        Ok((status, location))
    };
    let mut asked = pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // What the connection had received is still to be read.
        _ = connection => asked.await,
    }
}

fn request(url: &Url, headers: &[(HeaderName, HeaderValue)]) -> Result<Request<Empty<Bytes>>, Failure> {
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    let mut request = Request::get(path).body(Empty::new())?;
    let fields = request.headers_mut();
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let host = format!("{}{port}", url.host_str().unwrap_or_default());
    fields.insert(HOST, HeaderValue::from_str(&host).map_err(http::Error::from)?);
    fields.insert(USER_AGENT, HeaderValue::from_static(concat!("podlight-probe/", env!("CARGO_PKG_VERSION"))));
    fields.insert(ACCEPT, HeaderValue::from_static("*/*"));
    fields.insert(CONNECTION, HeaderValue::from_static("close"));
    for (name, value) in headers {
        fields.insert(name, value.clone());
    }
    Ok(request)
}

async fn read(mut body: Incoming) -> Result<(), Failure> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame?.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_BODY_BYTES {
            break;
        }
    }
    Ok(())
}

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let mut config =
        ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Unchecked)).with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
});

/// Takes every certificate: a probe asks whether the app answers, not who it is.
#[derive(Debug)]
struct Unchecked;

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
