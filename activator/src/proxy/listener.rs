//! The listeners of one worker: HTTP/1.1 and HTTP/2 on one port in the clear, told apart by their first bytes, and by
//! the handshake on the port with TLS. A connection stays with the worker that accepted it. Everything that a client
//! can make grow or wait has a bound.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ipnet::IpNet;
use socket2::{Domain, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

mod connection;
mod socket;

use super::forward::Worker;
use crate::server::connections::Connections;
use crate::server::stream::Patience;
use crate::server::tls::Tls;
use crate::server::{BACKLOG, Limits, Shutdown, accept, drain};
use connection::{MOST_HEAD_BYTES, serve};

/// Most bytes that hyper reads ahead of whoever takes a body. More than a head may have, so that it is never hyper that
/// finds a head too large.
pub(super) const READ_BUFFER: usize = 2 * MOST_HEAD_BYTES;

/// Most requests at once on one HTTP/2 connection.
const STREAMS: u32 = 256;

/// What an HTTP/2 client may send ahead of being read: the protocol's own default, since it is what each held request
/// may take.
pub(super) const STREAM_WINDOW: u32 = 65_535;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What is kept for an HTTP/2 stream whose client does not read.
const SEND_BUFFER: usize = 64 * 1024;

/// Most streams of an HTTP/2 connection that the client has reset before they were looked at, and most that were reset
/// for an error of the client's, before the connection is closed (CVE-2023-44487).
const RESET_STREAMS: usize = 64;
const ERROR_STREAMS: usize = 256;

/// How often an HTTP/2 connection is asked whether its client is still there, and how long that may take.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may be silent before the kernel asks, and how often and how many times it does. A client that
/// went without a trace during a long answer is noticed so.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVES: u32 = 3;

/// Binds an address for one of several workers. Accepted sockets have the options of the listening one.
pub(super) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
    socket.set_tcp_keepalive(&keepalive.with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVES))?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// One port of one worker.
pub(super) struct Door {
    /// Its name in metrics and logs.
    pub(super) name: &'static str,
    pub(super) listener: std::net::TcpListener,
    pub(super) tls: Option<Tls>,
    /// The connections of all workers.
    pub(super) connections: Arc<Connections>,
}

/// What every connection of a port needs.
pub(super) struct Context {
    name: &'static str,
    tls: Option<Tls>,
    worker: Arc<Worker>,
    limits: Limits,
    patience: Patience,
    trusted: Arc<[IpNet]>,
    shutdown: Shutdown,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

/// Serves a port until the end begins, then lets requests under way finish within the grace. Returns how many
/// connections were cut.
pub(super) async fn run(
    door: Door,
    worker: Arc<Worker>,
    limits: Limits,
    trusted: Arc<[IpNet]>,
    shutdown: Shutdown,
) -> io::Result<usize> {
    let Door { name, listener, tls, connections } = door;
    let listener = TcpListener::from_std(listener)?;
    let patience = Patience { head: limits.timeouts.head, idle: limits.timeouts.idle, write: limits.timeouts.write };
    let (http1, http2) = (http1(), http2());
    let context = Context { name, tls, worker, limits, patience, trusted, shutdown: shutdown.clone(), http1, http2 };
    let context = Arc::new(context);
    let connect = |stream, peer, admitted| serve(Arc::clone(&context), stream, peer, admitted);
    let mut tasks = accept(name, &listener, &connections, &shutdown, connect).await;
    // Whoever has connected already may have sent a request, which closing would lose. The kernel itself is asked: what
    // the runtime knows of it may be older.
    let listener = listener.into_std()?;
    while let Ok((stream, peer)) = listener.accept() {
        stream.set_nonblocking(true)?;
        if let Ok(admitted) = connections.admit(peer.ip()) {
            tasks.spawn(connect(TcpStream::from_std(stream)?, peer, admitted));
        }
    }
    drop(listener);
    Ok(drain(name, tasks, limits.grace).await)
}

fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // A client may end its side behind a request. Whether it has gone is found out by the connection's task.
    builder.half_close(true).header_read_timeout(None).max_buf_size(READ_BUFFER);
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
        .max_header_list_size(MOST_HEAD_BYTES as u32)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(ERROR_STREAMS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
