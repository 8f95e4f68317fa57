//! Opening a connection to a backend: TCP, TLS where the target says so, and the version of HTTP.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{Either, select};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::slots::{Slots, Slotted};
use super::trust::ALPN_HTTP2;
use super::{Http1, Http2, Key, Link};

/// How long data may stay without acknowledgement before the connection counts as dead, as it does when a node goes: as
/// long as it takes to find that out on HTTP/2.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may be silent before the kernel asks, and how often it does until [`USER_TIMEOUT`]: a request that
/// has arrived and waits for its answer would not notice otherwise that its node went.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// How long the first address of a pod may take before the other one is tried beside it (RFC 8305 §8).
const STAGGER: Duration = Duration::from_millis(250);

/// How often an HTTP/2 connection with requests on it is asked whether the backend is still there, and how long that
/// may take.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What a backend may send ahead of being read.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Most bytes of the headers of an answer in HTTP/2.
const HEADER_LIST_BYTES: u32 = 64 * 1024;

/// Why there is no connection. Nothing has been sent.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::proxy) enum ConnectError {
    #[error("cannot connect")]
    Refused(#[source] Arc<io::Error>),
    #[error("connecting takes too long")]
    TimedOut,
    #[error("no TLS connection")]
    Tls(#[source] Arc<io::Error>),
    #[error("no HTTP connection")]
    Http(#[source] Arc<hyper::Error>),
    #[error("there are too many connections")]
    Full,
    #[error("the connection that others opened failed")]
    Others(#[source] Box<Self>),
}

/// Which version of HTTP the clear text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Protocol {
    Http1,
    Http2,
}

/// Opens connections.
#[derive(Debug)]
pub(in crate::proxy) struct Dialer {
    timeout: Duration,
    slots: Arc<Slots>,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Dialer {
    /// One that gives each of TCP and TLS this much time, and has room for so many connections.
    pub(in crate::proxy) fn new(timeout: Duration, slots: Arc<Slots>) -> Self {
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST_BYTES)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        Self { timeout, slots, http1: http1::Builder::new(), http2 }
    }

    /// Opens one; in the clear it speaks `protocol`, with TLS what is agreed.
    pub(in crate::proxy) async fn open(&self, key: &Key, protocol: Protocol) -> Result<Link, ConnectError> {
        let slot = self.slots.take(self.timeout).await.ok_or(ConnectError::Full)?;
        let connected = match key.other {
            None => self.in_time(TcpStream::connect(key.address)).await?,
            Some(other) => self.in_time(either(key.address, other)).await?,
        };
        let stream = connected.map_err(ConnectError::refused)?;
        // Without these it is slower, or learns later that the backend is gone; not wrong.
        let _ = stream.set_nodelay(true);
        let socket = SockRef::from(&stream);
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
        let _ =
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY));
        let stream = Slotted::new(stream, slot);
        let Some(name) = &key.name else { return self.shake(stream, key, protocol).await };
        let server_name = ServerName::try_from(name.name.to_string())
            .map_err(|error| ConnectError::tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let connector = TlsConnector::from(Arc::clone(&name.config));
        let stream = self.in_time(connector.connect(server_name, stream)).await?.map_err(ConnectError::tls)?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
        self.shake(stream, key, if http2 { Protocol::Http2 } else { Protocol::Http1 }).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, ConnectError> {
        tokio::time::timeout(self.timeout, work).await.map_err(|_| ConnectError::TimedOut)
    }

    async fn shake<S>(&self, stream: S, key: &Key, protocol: Protocol) -> Result<Link, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(stream);
        let (key, failed) = (key.clone(), |error| ConnectError::Http(Arc::new(error)));
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = self.http1.handshake(stream).await.map_err(failed)?;
                drive(connection.with_upgrades());
                Ok(Link::Http1(Http1 { key, sender }))
            }
            Protocol::Http2 => {
                let (sender, mut connection) = self.http2.handshake(stream).await.map_err(failed)?;
                let streams = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
                let told = Arc::clone(&streams);
                drive(poll_fn(move |cx| {
                    let polled = Pin::new(&mut connection).poll(cx);
                    told.store(connection.current_max_send_streams(), Ordering::Relaxed);
                    polled
                }));
                Ok(Link::Http2(Http2 { key, sender, streams }))
            }
        }
    }
}

impl ConnectError {
    fn refused(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut {
            Self::TimedOut
        } else if is_ours(&error) {
            Self::Full
        } else {
            Self::Refused(Arc::new(error))
        }
    }

    fn tls(error: io::Error) -> Self {
        Self::Tls(Arc::new(error))
    }
}

/// Whether a connection was not even tried, since this process or machine has no descriptor, port or memory for it.
fn is_ours(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| ours.contains(&error))
}

/// Connects to the first of two addresses of one pod, or else to the other. What is told of is the first one's failure.
async fn either(first: SocketAddr, other: SocketAddr) -> io::Result<TcpStream> {
    let mut connecting = Box::pin(TcpStream::connect(first));
    match tokio::time::timeout(STAGGER, &mut connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => TcpStream::connect(other).await.map_err(|_| error),
        Err(_) => {
            let beside = Box::pin(TcpStream::connect(other));
            match select(connecting, beside).await {
                Either::Left((Ok(stream), _)) | Either::Right((Ok(stream), _)) => Ok(stream),
                Either::Left((Err(error), beside)) => beside.await.map_err(|_| error),
                Either::Right((Err(_), connecting)) => connecting.await,
            }
        }
    }
}

/// Has a connection's bytes moved until it ends. What goes wrong is told to the request on it.
fn drive(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::trace!(%error, "a connection to a backend ended early");
        }
    });
}
