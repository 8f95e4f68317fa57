//! The listeners: TCP, TLS, HTTP/1.1 and HTTP/2, with a bound on everything a peer can make grow or wait, and an
//! end within a deadline. Knows nothing of what the router behind it answers; how large and how slow a body may
//! be is for whoever reads it.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metrics::counter;
use podlight_proto::{ErrorCode, Problem};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

mod accept;
pub(crate) mod connections;
mod head;
pub(crate) mod paced;
mod service;
pub(crate) mod stream;
pub mod tls;
pub(crate) mod validity;

pub(crate) use accept::{accept, drain};
use connections::{Admitted, Connection, Connections};
use service::Requests;
use stream::{Conflicts, Patience, Version, Watched};
use tls::Tls;

/// Connections that the kernel completes before they are accepted: a rollout's worth of sidecars at once.
pub(crate) const BACKLOG: u32 = 4096;

/// How long a TLS handshake may take, as long as headers may.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may take none of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may rest. Beyond the longest pause between heartbeats (600 s), so that a kept
/// connection serves them all.
const IDLE_TIMEOUT: Duration = Duration::from_secs(900);

/// Most bytes of request line and headers: an 8 KiB token fits twice. 431 beyond.
const HEAD_BYTES: usize = 16 * 1024;

/// Most requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;

/// What an HTTP/2 peer may send ahead of being read: four events a stream, sixteen a connection.
const STREAM_WINDOW: u32 = 65_536;
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// What is kept for an HTTP/2 stream whose peer does not read.
const SEND_BUFFER: usize = 64 * 1024;

/// How often an HTTP/2 connection is asked whether its peer is still there, and how long it may take to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The TCP peer of a request, among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Bounds of one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most connections.
    pub connections: usize,
    /// Most connections of one source address.
    pub connections_per_source: usize,
    /// How long requests under way may still take once the end has begun.
    pub grace: Duration,
    /// Deadlines of single requests.
    pub timeouts: Timeouts,
}

/// How long a peer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For a request's headers, from their first byte.
    pub head: Duration,
    /// To take some of an answer.
    pub write: Duration,
    /// Between requests.
    pub idle: Duration,
}

impl Timeouts {
    /// How long a request's headers may take (wire rules: 408 after that).
    pub const HEAD: Duration = Duration::from_secs(10);
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { handshake: HANDSHAKE_TIMEOUT, head: Self::HEAD, write: WRITE_TIMEOUT, idle: IDLE_TIMEOUT }
    }
}

/// Begins the end of everything that holds the [`Shutdown`] that came with it.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Begins it.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

/// Tells when the end has begun.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A shutdown that has not begun, and what begins it.
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// The same as a plain channel, for those who know no servers.
    pub fn signal(&self) -> watch::Receiver<bool> {
        self.0.clone()
    }

    /// Returns once the end has begun, or can no longer be begun by anyone.
    pub async fn begun(&self) {
        let _ = self.0.clone().wait_for(|begun| *begun).await;
    }
}

/// An answer that tells what is wrong, in the words of the wire protocol.
pub fn problem(err: ErrorCode, description: impl Into<String>) -> Response {
    let status = StatusCode::from_u16(err.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(Problem { err, description: description.into() })).into_response()
}

/// Adds the answers for paths and methods that a router does not have.
pub fn with_fallbacks(router: Router) -> Router {
    router
        .fallback(async || problem(ErrorCode::NotFound, "there is no such path"))
        .method_not_allowed_fallback(async || problem(ErrorCode::MethodNotAllowed, "this path has no such method"))
}

/// Binds an address.
///
/// # Errors
/// The operating system's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// One listener and what it serves.
#[derive(Debug)]
pub struct Server {
    /// Its name in metrics and logs.
    pub name: &'static str,
    /// Where connections come from.
    pub listener: TcpListener,
    /// The certificate; plain HTTP without.
    pub tls: Option<Tls>,
    /// What answers.
    pub router: Router,
    /// The bounds.
    pub limits: Limits,
}

impl Server {
    /// Serves until the end begins, then stops accepting, lets requests under way finish within the grace, and
    /// closes what is left. Returns how many connections that were.
    pub async fn serve(self, shutdown: Shutdown) -> usize {
        let connections =
            Arc::new(Connections::new(self.name, self.limits.connections, self.limits.connections_per_source));
        let Self { name, listener, tls, router, limits } = self;
        let (http1, http2, shutdown_of_all) = (http1(), http2(), shutdown.clone());
        let context = Arc::new(Context { name, tls, router, limits, http1, http2, shutdown: shutdown_of_all });
        let connect = |stream, peer, admitted| Arc::clone(&context).connect(stream, peer, admitted);
        let tasks = accept(name, &listener, &connections, &shutdown, connect).await;
        drop(listener);
        drain(name, tasks, limits.grace).await
    }
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // No header timeout of hyper's: it would close kept connections that rest, and slow ones without an
    // answer. `Watched` has both deadlines.
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES);
    builder
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEAD_BYTES as u32)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

/// What every connection of a listener needs.
struct Context {
    name: &'static str,
    tls: Option<Tls>,
    router: Router,
    limits: Limits,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    shutdown: Shutdown,
}

impl Context {
    async fn connect(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, admitted: Admitted) {
        // A small answer is not to wait for an acknowledgement. Without the option it comes later, not wrong.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return self.serve(stream, peer, &admitted.connection).await;
        };
        // Boxed, as is what is served below: a connection holds only what it needs while it rests.
        if let Some(stream) = Box::pin(self.shake(TlsAcceptor::from(tls.current()), stream, peer, &admitted)).await {
            self.serve(stream, peer, &admitted.connection).await;
        }
    }

    async fn shake(
        &self,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        peer: SocketAddr,
        admitted: &Admitted,
    ) -> Option<Box<TlsStream<TcpStream>>> {
        let handshake = tokio::select! {
            biased;
            () = self.asked_to_end(&admitted.connection) => return None,
            handshake = tokio::time::timeout(self.limits.timeouts.handshake, acceptor.accept(stream)) => handshake,
        };
        let reason = match handshake {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "no TLS handshake");
                "failed"
            }
            Err(_) => "timeout",
        };
        counter!("podlight_tls_handshake_failures_total", "listener" => self.name, "reason" => reason).increment(1);
        None
    }

    /// Serves a connection to its end. Between requests of HTTP/1 it has neither buffers nor HTTP's state: most
    /// connections are sidecars' that say something every two minutes.
    async fn serve<S>(&self, stream: S, peer: SocketAddr, connection: &Arc<Connection>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Timeouts { head, write, idle, .. } = self.limits.timeouts;
        let (conflicts, patience) = (Conflicts::new(Arc::clone(connection)), Patience { head, idle, write });
        let mut stream = Watched::new(stream, conflicts, Arc::clone(connection), patience);
        let mut version = None;
        loop {
            let begun = tokio::select! {
                biased;
                begun = stream.begun() => begun,
                () = self.asked_to_end(connection) => false,
            };
            if !begun {
                // It ends here, whether the peer takes note or not.
                let _ = stream.shutdown().await;
                return;
            }
            version = version.or_else(|| stream.version());
            let Some(version) = version else { continue };
            let requests =
                Requests { router: self.router.clone(), connection: Arc::clone(connection), peer: canonical(peer) };
            let served = match version {
                Version::Http1 => Box::pin(self.serve_http1(stream, requests)).await,
                Version::Http2 => Box::pin(self.serve_http2(stream, requests)).await.map(|()| None),
            };
            match served {
                Ok(Some(resting)) => stream = resting,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%peer, error = &error as &dyn std::error::Error, "the connection ended early");
                    return;
                }
            }
        }
    }

    /// Answers requests until the connection rests, and gives it back then; none when it has ended.
    async fn serve_http1<S>(&self, stream: Requested<S>, requests: Requests) -> hyper::Result<Option<Requested<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Arc::clone(&requests.connection);
        let service = service_fn(move |request| requests.clone().answer(request));
        let mut serving = self.http1.serve_connection(TokioIo::new(stream), service);
        let until_it_rests = poll_fn(|cx| {
            // What counts is that HTTP finds nothing more in this very poll: it may pause with requests in its buffer.
            connection.resting.store(false, Ordering::Release);
            match Pin::new(&mut serving).poll(cx) {
                Poll::Ready(result) => Poll::Ready(Some(result)),
                Poll::Pending if connection.rests() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let ended = tokio::select! {
            biased;
            ended = until_it_rests => ended,
            () = self.asked_to_end(&connection) => {
                Pin::new(&mut serving).graceful_shutdown();
                Some((&mut serving).await)
            }
        };
        match ended {
            Some(result) => result.map(|()| None),
            None => {
                let http1::Parts { io, read_buf, .. } = serving.into_parts();
                Ok(Some(io.into_inner().with_seen(read_buf)))
            }
        }
    }

    async fn serve_http2<S>(&self, stream: Requested<S>, requests: Requests) -> hyper::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let connection = Arc::clone(&requests.connection);
        let service = service_fn(move |request| requests.clone().answer(request));
        let mut serving = self.http2.serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            biased;
            result = Pin::new(&mut serving) => result,
            () = self.asked_to_end(&connection) => {
                Pin::new(&mut serving).graceful_shutdown();
                serving.await
            }
        }
    }

    async fn asked_to_end(&self, connection: &Connection) {
        tokio::select! {
            () = connection.close.notified() => {}
            () = self.shutdown.begun() => {}
        }
    }
}

/// A connection's stream on which a request has begun.
type Requested<S> = Watched<S, Conflicts>;

/// An IPv4 peer of an IPv6 socket as what it is.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, peer.port()),
        IpAddr::V6(_) => peer,
    }
}

/// Looks at the requests of a connection in one piece and in two, cut anywhere, for the fuzz target: whether the
/// two disagree.
#[cfg(feature = "fuzzing")]
pub fn fuzz_heads(bytes: &[u8], cut: usize) -> bool {
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let (mut whole, mut pieces) = (head::HeadScan::new(), head::HeadScan::new());
    let conflict = whole.take(bytes);
    let in_pieces = [pieces.take(first), pieces.take(second)].contains(&true);
    (conflict, whole.mid_head(), whole.heads()) != (in_pieces, pieces.mid_head(), pieces.heads())
}

#[cfg(test)]
mod tests;
