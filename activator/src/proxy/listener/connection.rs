//! One client's connection, from the first byte to the last. It ends when the client has gone, which for HTTP/1.1 takes
//! finding out: whoever closes and whoever merely has nothing more to send look the same.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics::counter;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Context;
use super::socket::Socket;
use crate::proxy::forward::{Client, Tunnel};
use crate::proxy::guard::Guard;
use crate::proxy::headers::Forwarding;
use crate::server::canonical;
use crate::server::connections::Admitted;
use crate::server::stream::Watched;

/// Most bytes of request line and headers. 431 beyond.
pub(super) const MOST_HEAD_BYTES: usize = 64 * 1024;

/// What an HTTP/2 connection begins with.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is read before the version is known: usually a whole request.
const FIRST_BYTES: usize = 1024;

/// What a client that has just connected when the end begins gets to send its request.
const LAST_CHANCE: Duration = Duration::from_millis(100);

/// A client that has ended its side is asked this often whether it still waits for an answer.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How it is asked: every client of HTTP/1.1 passes over interim answers (RFC 9110 §15.2), and the kernel of one that
/// has gone refuses the bytes.
const ASK: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// Serves a connection.
pub(super) async fn serve(context: Arc<Context>, stream: TcpStream, peer: SocketAddr, admitted: Admitted) {
    let client = Arc::new(Client {
        connection: Arc::clone(&admitted.connection),
        forwarding: Forwarding::new(canonical(peer).ip(), context.tls.is_some(), &context.trusted),
        tunnelled: Arc::default(),
        unanswered: AtomicBool::new(false),
        tunnel: Mutex::new(None),
    });
    let socket = Socket::new(stream);
    let serving = context.begin(socket.clone(), &client);
    tokio::select! {
        biased;
        () = serving => {}
        () = context.gone(&socket, &client) => {}
    }
}

impl Context {
    async fn begin(&self, socket: Socket, client: &Arc<Client>) {
        let beginning = async {
            match &self.tls {
                Some(tls) => {
                    let acceptor = TlsAcceptor::from(tls.current());
                    Box::pin(self.shake(acceptor, socket.clone())).await.map(Begun::Tls)
                }
                None => self.first_bytes(socket.clone()).await.map(|(version, ahead)| Begun::Clear(version, ahead)),
            }
        };
        let begun = tokio::select! {
            biased;
            begun = beginning => begun,
            () = client.connection.close.notified() => None,
            () = async {
                self.shutdown.begun().await;
                tokio::time::sleep(LAST_CHANCE).await;
            } => None,
        };
        match begun {
            None => {}
            Some(Begun::Clear(version, ahead)) => self.drive(socket, version, ahead, client).await,
            Some(Begun::Tls(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let version = if http2 { Version::Http2 } else { Version::Http1 };
                Box::pin(self.drive(*stream, version, Vec::new(), client)).await;
            }
        }
    }

    async fn shake(
        &self,
        acceptor: TlsAcceptor,
        socket: Socket,
    ) -> Option<Box<tokio_rustls::server::TlsStream<Socket>>> {
        let reason = match tokio::time::timeout(self.limits.timeouts.handshake, acceptor.accept(socket)).await {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS handshake");
                "failed"
            }
            Err(_) => "timeout",
        };
        counter!("podlight_tls_handshake_failures_total", "listener" => self.name, "reason" => reason).increment(1);
        None
    }

    /// Reads until it is clear which version this is. None when the client closes or takes too long.
    async fn first_bytes(&self, mut socket: Socket) -> Option<(Version, Vec<u8>)> {
        let reading = async {
            // Whoever is silent takes no buffer.
            socket.readable().await.ok()?;
            let mut ahead = Vec::with_capacity(FIRST_BYTES);
            while socket.read_buf(&mut ahead).await.is_ok_and(|read| read > 0) {
                if let Some(version) = version(&ahead) {
                    return Some((version, ahead));
                }
            }
            None
        };
        tokio::time::timeout(self.limits.timeouts.idle, reading).await.ok().flatten()
    }

    async fn drive<S>(&self, stream: S, version: Version, ahead: Vec<u8>, client: &Arc<Client>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let guard = match version {
            Version::Http1 => Guard::new(MOST_HEAD_BYTES, Arc::clone(&client.tunnelled)),
            Version::Http2 => Guard::unseeing(),
        };
        let stream = Watched::new(stream, guard, Arc::clone(&client.connection), self.patience).with_ahead(ahead);
        let (worker, requests_of) = (Arc::clone(&self.worker), Arc::clone(client));
        let service = service_fn(move |request| {
            let answer = Arc::clone(&worker).answer(Arc::clone(&requests_of), request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let asked_to_end = async {
            tokio::select! {
                () = client.connection.close.notified() => {}
                () = self.shutdown.begun() => {}
            }
        };
        macro_rules! until_the_end {
            ($serving:expr) => {{
                let mut serving = $serving;
                tokio::select! {
                    biased;
                    result = std::pin::Pin::new(&mut serving) => result,
                    () = asked_to_end => {
                        std::pin::Pin::new(&mut serving).graceful_shutdown();
                        serving.await
                    }
                }
            }};
        }
        let stream = TokioIo::new(stream);
        // Boxed: what a connection of HTTP/1.1 takes is not to be as much as what one of HTTP/2 does.
        let result = match version {
            Version::Http1 => until_the_end!(self.http1.serve_connection(stream, service).with_upgrades()),
            Version::Http2 => {
                let serving = self.http2.serve_connection(stream, service);
                Box::pin(async move { until_the_end!(serving) }).await
            }
        };
        if let Err(error) = result {
            tracing::trace!(%error, "a connection ended early");
        }
        let tunnel = client.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tunnel) = tunnel {
            Box::pin(Tunnel::run(tunnel)).await;
        }
    }

    /// Returns once nobody can take an answer any more.
    async fn gone(&self, socket: &Socket, client: &Client) {
        if socket.ended().await {
            return;
        }
        loop {
            let broken = tokio::time::timeout(ASK_EVERY, socket.broken()).await.is_ok();
            let waits = client.unanswered.load(Ordering::Acquire) && !client.connection.stalled.load(Ordering::Acquire);
            if broken || (waits && (self.tls.is_some() || socket.write_now(ASK).is_err())) {
                return;
            }
        }
    }
}

enum Begun {
    Clear(Version, Vec<u8>),
    Tls(Box<tokio_rustls::server::TlsStream<Socket>>),
}

/// Which version the first bytes are of; none while they may be of either.
fn version(bytes: &[u8]) -> Option<Version> {
    if bytes.starts_with(HTTP2_PREFACE) {
        return Some(Version::Http2);
    }
    (!HTTP2_PREFACE.starts_with(bytes)).then_some(Version::Http1)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_takes_little_memory() {
        let task = size(serve);
        assert!(task <= 3072, "{task} bytes");
    }
}
