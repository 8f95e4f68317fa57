//! A client that does no more than it is told: one connection, no redirect, no retry, any `Host`. It sees an answer as it came,
//! trailers included.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::header::{HOST, HeaderMap};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, Uri, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::backend::Seen;
pub use crate::backend::answers::{Body, channel, empty, full};

/// How long an answer may take: longer than any hold of a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// The header in which the proxy says that an answer is its own, and why.
pub const ERROR_HEADER: &str = "podlight-error";

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its version.
    pub version: Version,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// When it breaks off.
    pub async fn read(response: Response<Incoming>) -> Result<Self> {
        let (parts, body) = response.into_parts();
        let collected = timeout(PATIENCE, body.collect()).await.context("the answer does not end")??;
        let trailers = collected.trailers().cloned();
        let (status, version, headers) = (parts.status.as_u16(), parts.version, parts.headers);
        Ok(Self { status, version, headers, body: collected.to_bytes(), trailers })
    }

    /// What a backend saw of the request.
    ///
    /// # Errors
    /// When it is not a backend's answer.
    pub fn seen(&self) -> Result<Seen> {
        ensure!(self.status == 200, "{self:?}");
        serde_json::from_slice(&self.body).with_context(|| format!("{self:?}"))
    }

    /// The pod that answered.
    ///
    /// # Errors
    /// When none did.
    pub fn pod(&self) -> Result<String> {
        Ok(self.seen()?.pod)
    }

    /// Why the proxy itself answered; empty when it did not.
    pub fn error(&self) -> &str {
        self.header(ERROR_HEADER)
    }

    /// A header; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Checks that the proxy itself answered with this status, and says why in a header and in a line of text.
    ///
    /// # Errors
    /// When it did not.
    pub fn refused(&self, status: u16) -> Result<&Self> {
        ensure!(self.status == status, "{} instead of {status}: {self:?}", self.status);
        ensure!(!self.error().is_empty(), "it does not say why: {self:?}");
        ensure!(self.body.len() > 10 || status == 400, "no text: {self:?}");
        Ok(self)
    }
}

/// A request without body.
///
/// # Panics
/// When `host` or `path` can be none.
pub fn get(host: &str, path: &str) -> Request<Body> {
    request(Method::GET, host, path, empty())
}

/// A request with a body of known length.
///
/// # Panics
/// When `host` or `path` can be none.
pub fn post(host: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    request(Method::POST, host, path, full(body))
}

/// Any request.
///
/// # Panics
/// When `host` or `path` can be none.
pub fn request(method: Method, host: &str, path: &str, body: Body) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header(HOST, host);
    request.body(body).expect("a request")
}

/// The same request with a header more.
///
/// # Panics
/// When it can be none.
#[must_use]
pub fn with(mut request: Request<Body>, name: &'static str, value: &str) -> Request<Body> {
    request.headers_mut().append(name, value.parse().expect("a header value"));
    request
}

enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

/// A connection.
pub struct Connection {
    sender: Sender,
    scheme: Scheme,
    task: JoinHandle<Result<(), hyper::Error>>,
    /// The certificate that the other end showed, DER.
    pub certificate: Option<Vec<u8>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// HTTP/1.1.
    ///
    /// # Errors
    /// When nobody accepts.
    pub async fn http1(address: SocketAddr) -> Result<Self> {
        Self::one(connect(address).await?, Scheme::HTTP, None).await
    }

    /// HTTP/2 without TLS, by prior knowledge.
    ///
    /// # Errors
    /// When nobody accepts.
    pub async fn http2(address: SocketAddr) -> Result<Self> {
        Self::two(connect(address).await?, Scheme::HTTP, None).await
    }

    /// Over TLS, as this name, in whatever protocol is agreed on.
    ///
    /// # Errors
    /// When nobody accepts, or the certificate is not for this name.
    pub async fn tls(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Result<Self> {
        let name = ServerName::try_from(name.to_owned())?;
        let connect = TlsConnector::from(Arc::clone(config)).connect(name, connect(address).await?);
        let stream = timeout(PATIENCE, connect).await.context("no handshake")??;
        let session = stream.get_ref().1;
        let certificate = session.peer_certificates().and_then(|chain| Some(chain.first()?.to_vec()));
        if session.alpn_protocol() == Some(b"h2") {
            Self::two(stream, Scheme::HTTPS, certificate).await
        } else {
            Self::one(stream, Scheme::HTTPS, certificate).await
        }
    }

    async fn one<S>(stream: S, scheme: Scheme, certificate: Option<Vec<u8>>) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(connection.with_upgrades());
        Ok(Self { sender: Sender::One(sender), scheme, task, certificate })
    }

    async fn two<S>(stream: S, scheme: Scheme, certificate: Option<Vec<u8>>) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        Ok(Self { sender: Sender::Two(sender), scheme, task: tokio::spawn(connection), certificate })
    }

    /// Sends a request and returns the answer's head.
    ///
    /// # Errors
    /// When none comes.
    pub async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>> {
        let answer = async {
            match &mut self.sender {
                Sender::One(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::Two(sender) => {
                    move_host(&mut request, &self.scheme);
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        Ok(timeout(PATIENCE, answer).await.context("no answer in time")??)
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// When none comes.
    pub async fn ask(&mut self, request: Request<Body>) -> Result<Answer> {
        Answer::read(self.send(request).await?).await
    }

    /// Sends a request that is answered while others of this connection are under way. HTTP/2 only.
    ///
    /// # Errors
    /// When this is not HTTP/2.
    pub fn start(&self, mut request: Request<Body>) -> Result<JoinHandle<Result<Answer>>> {
        let Sender::Two(sender) = &self.sender else { anyhow::bail!("HTTP/1.1 has one request under way") };
        let mut sender = sender.clone();
        move_host(&mut request, &self.scheme);
        Ok(tokio::spawn(async move {
            sender.ready().await?;
            let answer = timeout(PATIENCE, sender.send_request(request)).await.context("no answer in time")?;
            Answer::read(answer?).await
        }))
    }

    /// Whether the other end has ended it.
    pub fn is_closed(&self) -> bool {
        self.task.is_finished()
            || match &self.sender {
                Sender::One(sender) => sender.is_closed(),
                Sender::Two(sender) => sender.is_closed(),
            }
    }
}

/// HTTP/2 has no `Host` but `:authority`.
fn move_host(request: &mut Request<Body>, scheme: &Scheme) {
    let host = request.headers_mut().remove(HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if authority.is_some() {
        (parts.scheme, parts.authority) = (Some(scheme.clone()), authority);
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await.context("no connection")??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Asks over HTTP/1.1 and a connection of its own.
///
/// # Errors
/// When no answer comes.
pub async fn ask(address: SocketAddr, request: Request<Body>) -> Result<Answer> {
    Connection::http1(address).await?.ask(request).await
}

/// As [`ask`], going on beside the test.
pub fn start(address: SocketAddr, request: Request<Body>) -> JoinHandle<Result<Answer>> {
    tokio::spawn(ask(address, request))
}
