//! An app in this process, on an address of its own, that does what a test tells it: by the path of a request
//! ([`answers`]), or for all of them by its handle. It notes whatever it is asked, so that a test can tell who got what
//! how often, and it can die in every way that a pod can.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::control_plane::lock;
use crate::eventually::eventually;
use crate::proxy::island::{Island, Namespace};

pub mod answers;
mod connection;
pub mod grpc;
mod wire;

#[cfg(test)]
mod tests;

use connection::serve;
use wire::End;

/// The port of every backend, as [`crate::scene::app_container`] declares it: the address tells them apart.
pub const PORT: u16 = 8080;

/// Of [`Backend::blackhole`]: enough to fill the accept queue of a listener with the least backlog.
const STUCK_CONNECTIONS: usize = 4;

/// One request as a backend saw it, and what it answers to an unremarkable path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// The backend that it came to.
    pub pod: String,
    /// Its method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// `Host` or `:authority`.
    pub authority: String,
    /// All its headers, in order.
    pub headers: Vec<(String, String)>,
    /// The length of its body; 0 in what [`Backend::seen`] returns of a request whose body was not read.
    pub body_bytes: usize,
    /// SHA-256 of its body, hexadecimal.
    pub body_sha256: String,
    /// Number of the connection that it came on, from 1.
    pub connection: u64,
    /// What TLS told, if it came over TLS.
    pub tls: Option<SeenTls>,
}

/// What a handshake told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SeenTls {
    /// The name asked for.
    pub server_name: Option<String>,
    /// The application protocol agreed on.
    pub alpn: Option<String>,
    /// Whether the client showed a certificate.
    pub client_certificate: bool,
}

impl Seen {
    /// All values of a header, joined as RFC 9110 §5.3 allows; none when it is not there.
    pub fn header(&self, name: &str) -> Option<String> {
        let values = self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
        if values.is_empty() { None } else { Some(values.join(", ")) }
    }
}

/// What handlers and the handle share.
pub(crate) struct State {
    pod: String,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicU64,
    open: AtomicUsize,
    end: watch::Sender<End>,
    /// Ends the connections that are open now.
    cuts: broadcast::Sender<End>,
    /// Whether `/gate` answers.
    gate: watch::Sender<bool>,
    /// How many wait at `/gate`.
    at_gate: AtomicUsize,
    most_at_gate: AtomicUsize,
    /// What `/ready` answers.
    ready: AtomicBool,
}

/// What a connection is handled by.
type Script = Arc<dyn Fn(TcpStream) -> BoxFuture<'static, ()> + Send + Sync>;

#[derive(Clone)]
enum Speaks {
    Http,
    Tls(Arc<ServerConfig>),
    Script(Script),
}

/// A running app. Its connections end with it, by FIN.
pub struct Backend {
    address: SocketAddr,
    /// Where its address is, when that is not here.
    namespace: Option<Arc<Namespace>>,
    speaks: Speaks,
    state: Arc<State>,
    server: Mutex<Option<JoinHandle<()>>>,
    stuck: Mutex<Vec<TcpStream>>,
}

impl Backend {
    /// An app that listens at an address of its own and speaks HTTP/1.1 and h2c.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(pod: &str) -> Result<Self> {
        let backend = Self::at(pod, fresh_loopback());
        backend.listen()?;
        Ok(backend)
    }

    /// An app at this address that does not listen yet: its port refuses.
    pub fn at(pod: &str, address: IpAddr) -> Self {
        Self::new(pod, SocketAddr::new(address, PORT), Speaks::Http)
    }

    /// The same at any port.
    pub fn at_port(pod: &str, address: SocketAddr) -> Self {
        Self::new(pod, address, Speaks::Http)
    }

    /// Speaks TLS instead.
    #[must_use]
    pub fn tls(self, config: Arc<ServerConfig>) -> Self {
        Self::new(&self.state.pod, self.address, Speaks::Tls(config))
    }

    /// Listens in another network namespace, which has its address.
    #[must_use]
    pub fn on(mut self, island: &Island) -> Self {
        self.namespace = Some(island.namespace());
        self
    }

    /// An app at an address of its own that handles each connection by hand: what no server would send.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn scripted<F, T>(pod: &str, script: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> T + Send + Sync + 'static,
        T: Future<Output = Result<()>> + Send + 'static,
    {
        let script: Script = Arc::new(move |stream| {
            let handled = script(stream);
            // What goes wrong on the wire is what the client is to notice.
            Box::pin(async move { drop(handled.await) })
        });
        let backend = Self::new(pod, SocketAddr::new(fresh_loopback(), PORT), Speaks::Script(script));
        backend.listen()?;
        Ok(backend)
    }

    fn new(pod: &str, address: SocketAddr, speaks: Speaks) -> Self {
        let state = State {
            pod: pod.to_owned(),
            seen: Mutex::default(),
            connections: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            end: watch::Sender::new(End::Never),
            cuts: broadcast::Sender::new(4),
            gate: watch::Sender::new(false),
            at_gate: AtomicUsize::new(0),
            most_at_gate: AtomicUsize::new(0),
            ready: AtomicBool::new(true),
        };
        let (server, stuck) = (Mutex::default(), Mutex::default());
        Self { address, namespace: None, speaks, state: Arc::new(state), server, stuck }
    }

    /// Begins to listen.
    ///
    /// # Errors
    /// When the address is taken, or not this machine's.
    pub fn listen(&self) -> Result<()> {
        let listener = match &self.namespace {
            None => bind(self.address, 1024)?,
            Some(namespace) => namespace.within(|| bind(self.address, 1024))?,
        };
        let (speaks, state) = (self.speaks.clone(), Arc::clone(&self.state));
        *lock(&self.server) = Some(tokio::spawn(serve(listener, speaks, state)));
        Ok(())
    }

    /// Stops listening, so that its port refuses; open connections stay.
    pub async fn refuse(&self) {
        let server = lock(&self.server).take();
        if let Some(server) = server {
            server.abort();
            // It ends by being aborted.
            let _ = server.await;
        }
        lock(&self.stuck).clear();
    }

    /// Closes every open connection by FIN, whatever was under way.
    pub fn close_connections(&self) {
        self.end_connections(End::Fin);
    }

    /// Resets every open connection, as the kernel does for a process that was killed with bytes unread.
    pub fn reset_connections(&self) {
        self.end_connections(End::Reset);
    }

    /// Dies: connections are reset, the port refuses.
    pub async fn die(&self) {
        self.refuse().await;
        self.reset_connections();
        while self.open_connections() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Leaves as a well-behaved app does at SIGTERM: no new connection is taken, each open one ends after the answer that is
    /// under way on it.
    pub async fn leave(&self) {
        self.refuse().await;
        self.state.end.send_replace(End::Graceful);
    }

    /// Takes no packet for a new connection any more, as a node that is gone: connecting times out. Open ones stay.
    ///
    /// # Errors
    /// When it cannot listen again.
    pub async fn blackhole(&self) -> Result<()> {
        self.refuse().await;
        let listener = bind(self.address, 0)?;
        // Once the queue of unaccepted connections is full, the kernel drops what asks for another.
        let mut stuck = Vec::new();
        for _ in 0..STUCK_CONNECTIONS {
            let connect = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(self.address));
            match connect.await {
                Ok(stream) => stuck.push(stream?),
                Err(_) => break,
            }
        }
        *lock(&self.stuck) = stuck;
        *lock(&self.server) = Some(tokio::spawn(async move {
            let _open = listener;
            std::future::pending::<()>().await;
        }));
        Ok(())
    }

    fn end_connections(&self, end: End) {
        // Without any connection there is nobody to hear it.
        let _ = self.state.cuts.send(end);
    }

    /// Its pod's name.
    pub fn pod(&self) -> &str {
        &self.state.pod
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that it was asked so far; `/ready` is not counted.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// How many of them.
    pub fn requests(&self) -> usize {
        lock(&self.state.seen).len()
    }

    /// Connections that it took so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Lets every request to `/gate` be answered, those that wait and those to come, or holds those to come.
    pub fn open_gate(&self, open: bool) {
        self.state.gate.send_replace(open);
    }

    /// Waits until so many requests wait at `/gate`.
    ///
    /// # Errors
    /// When they do not come.
    pub async fn wait_at_gate(&self, count: usize) -> Result<()> {
        let what = format!("{count} requests wait at the gate of {}", self.pod());
        eventually(&what, async || {
            let waiting = self.state.at_gate.load(Ordering::SeqCst);
            anyhow::ensure!(waiting == count, "there are {waiting}");
            Ok(Some(()))
        })
        .await
    }

    /// The most that ever waited at `/gate` at once.
    pub fn most_at_gate(&self) -> usize {
        self.state.most_at_gate.load(Ordering::SeqCst)
    }

    /// What `/ready` answers, which a sidecar may probe.
    pub fn set_ready(&self, ready: bool) {
        self.state.ready.store(ready, Ordering::SeqCst);
    }

    /// A sidecar's flag value to probe it.
    pub fn probe(&self) -> String {
        format!("http://{}/ready?period=100ms&failure=1", self.address)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(server) = lock(&self.server).take() {
            server.abort();
        }
        self.close_connections();
    }
}

/// A loopback address that no other backend of this process has, and hardly one of another process.
pub fn fresh_loopback() -> IpAddr {
    // 127.64.0.0/10, whose halves other fixtures do not use.
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(std::process::id().wrapping_mul(40_503)));
    let offset = NEXT.fetch_add(1, Ordering::Relaxed) % (1 << 21);
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 1).to_bits() + offset).into()
}

fn bind(address: SocketAddr, backlog: u32) -> Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("cannot bind {address}"))?;
    Ok(socket.listen(backlog)?)
}
