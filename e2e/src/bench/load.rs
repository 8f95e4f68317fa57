//! A sender that costs little beside what it measures: events over TLS and HTTP/1.1, written by hand. One connection has
//! one request under way at a time, as a sidecar's has; each can come from a loopback address of its own, as pods do.
//! The client's half of the handshake checks no certificate: that cost is the sidecar's and not what is measured here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podlight_proto::{EVENT_MEDIA_TYPE, EVENTS_PATH};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest wait for a connection or an answer. Beyond what any answer of a loaded activator takes, so that a hang fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Room for an answer's head and body.
const READ_BYTES: usize = 2048;

/// Where events go.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    connector: TlsConnector,
}

impl Target {
    /// The activator on this loopback port.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(port: u16) -> Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
            .with_no_client_auth();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { address, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Opens a connection from `source`.
    ///
    /// # Errors
    /// When it cannot be made in time.
    pub async fn connect(&self, source: IpAddr) -> Result<Connection> {
        let open = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(source, 0)).with_context(|| format!("cannot bind {source}"))?;
            let stream = socket.connect(self.address).await.context("cannot connect")?;
            stream.set_nodelay(true)?;
            let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));
            let stream = self.connector.connect(name, stream).await.context("no TLS handshake")?;
            Ok(Connection { stream, buffer: Vec::with_capacity(READ_BYTES) })
        };
        tokio::time::timeout(PATIENCE, open).await.context("no connection in time")?
    }
}

/// A request's bytes, ready to be written at once.
pub fn request(event: &str, token: Option<&str>) -> Vec<u8> {
    let authorization = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    let length = event.len();
    format!(
        "POST {EVENTS_PATH} HTTP/1.1\r\nhost: activator\r\ncontent-type: {EVENT_MEDIA_TYPE}\r\n\
         {authorization}content-length: {length}\r\n\r\n{event}"
    )
    .into_bytes()
}

/// A kept connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Sends a request and reads its answer. After an error the connection is of no more use.
    ///
    /// # Errors
    /// When no answer of the expected shape comes in time.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        let exchange = async {
            self.stream.write_all(request).await?;
            self.stream.flush().await?;
            self.buffer.clear();
            loop {
                if let Some(answer) = Answer::parse(&self.buffer)? {
                    return Ok(answer);
                }
                let read = self.stream.read_buf(&mut self.buffer).await?;
                ensure!(read > 0, "the connection was closed before an answer");
            }
        };
        tokio::time::timeout(PATIENCE, exchange).await.context("no answer in time")?
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its `Retry-After`.
    pub retry_after: Option<Duration>,
    /// Whether the connection ends with it.
    pub closes: bool,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// Reads an answer with a length from the start of `bytes`; none when it is not complete.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(head_len) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&bytes[..head_len])?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?.parse()?;
        let (mut length, mut retry_after, mut closes) = (None, None, false);
        for line in lines {
            let (name, value) = line.split_once(':').context("a header without a colon")?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = Some(value.parse::<usize>()?),
                "retry-after" => retry_after = Some(Duration::from_secs(value.parse()?)),
                "connection" => closes = value.eq_ignore_ascii_case("close"),
                "transfer-encoding" => bail!("an answer without a length"),
                _ => {}
            }
        }
        let length = length.context("an answer without a length")?;
        let Some(body) = bytes.get(head_len + 4..head_len + 4 + length) else { return Ok(None) };
        Ok(Some(Self { status, retry_after, closes, body: String::from_utf8(body.to_vec())? }))
    }

    /// Whether the event is in the table because of it.
    pub fn is_applied(&self) -> bool {
        self.status == 202 && self.body.contains(r#""result":"applied""#)
    }
}

/// Takes any certificate; the handshake's signature is not checked either.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_it_is_complete() -> Result<()> {
        let text =
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
        for cut in 0..text.len() {
            assert_eq!(Answer::parse(&text.as_bytes()[..cut])?, None);
        }
        let answer = Answer::parse(text.as_bytes())?.context("complete")?;
        assert_eq!((answer.status, answer.retry_after, answer.closes), (503, Some(Duration::from_secs(2)), true));
        assert_eq!(answer.body, "hello");
        assert!(Answer::parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        Ok(())
    }
}
