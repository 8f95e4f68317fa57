//! A proxy in front of small backends, over real sockets, for the tests of the data plane.

use std::net::IpAddr;
use std::num::NonZeroU32;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use podlight_proto::PodUid;

use super::route::{RouteTable, Taker};
use super::target::{AppProtocol, Errands, HoldConfig, Hub, Mode, Settings, Target, UpstreamTls};
use super::*;
use crate::server::Timeouts;
use crate::table::entry::{Protocol, Source, State, Verdict};
use crate::table::group::{Endpoint, EndpointFacts, EndpointId, EndpointPort, GroupKey, Service};

/// Long enough for anything that happens at all.
pub(in crate::proxy) const LONG: Duration = Duration::from_secs(20);

pub(in crate::proxy) fn config() -> ProxyConfig {
    let timeouts = Timeouts { handshake: LONG, head: LONG, write: LONG, idle: LONG };
    ProxyConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: None,
        workers: 1,
        limits: Limits { connections: 100, connections_per_source: 100, grace: LONG, timeouts },
        upstream_connections: 100,
        connect_timeout: Duration::from_secs(1),
        response_timeout: None,
        trusted: Vec::new(),
        upstream_ca: None,
        upstream_identity: None,
        access_log: false,
    }
}

pub(in crate::proxy) fn settings() -> Settings {
    Settings {
        mode: Mode::Always,
        port_name: "http".into(),
        service_port: 80,
        pod_port: None,
        protocol: AppProtocol::Http1,
        tls: None,
        concurrency: None,
        scale_target: None,
        server_name: "web.test.svc".into(),
        hold_timeout: LONG,
    }
}

pub(in crate::proxy) fn h2c() -> Settings {
    Settings { protocol: AppProtocol::H2c, ..settings() }
}

pub(in crate::proxy) fn https() -> Settings {
    let tls = UpstreamTls { server_name: "web.test.svc".into(), ca_secret: None };
    Settings { protocol: AppProtocol::Https, tls: Some(tls), ..settings() }
}

pub(in crate::proxy) fn one_at_a_time() -> Settings {
    Settings { concurrency: NonZeroU32::new(1), ..settings() }
}

/// A proxy with one target, which goes by `web.test`.
pub(in crate::proxy) struct Scene {
    pub(in crate::proxy) proxy: Proxy,
    pub(in crate::proxy) target: Arc<Target>,
    endpoints: usize,
}

impl Scene {
    pub(in crate::proxy) fn start(config: ProxyConfig, settings: Settings, backends: &[SocketAddr]) -> Self {
        let hold = HoldConfig { workers: config.workers, ..HoldConfig::default() };
        let (hub, Errands { mut alarms, scale }) = Hub::new(&hold);
        tokio::spawn(async move {
            let _scale = scale;
            while let Some(alarm) = alarms.recv().await {
                tokio::time::sleep_until(alarm.at).await;
                alarm.target.tick();
            }
        });
        let service = Arc::new(Service::new(GroupKey::new("test", "web")));
        let target = Target::new(&service, settings, &hub);
        let mut table = RouteTable::new("cluster.local");
        table.routes().complete();
        table.put(&service, Taker::Target(Arc::clone(&target)), &[], Vec::new());
        table.publish();
        let proxy = Proxy::start(config, table.routes().clone()).expect("starts");
        let mut scene = Self { proxy, target, endpoints: 0 };
        backends.iter().for_each(|backend| scene.ready(*backend));
        scene
    }

    /// With usual bounds.
    pub(in crate::proxy) fn of(settings: Settings, backends: &[SocketAddr]) -> Self {
        Self::start(config(), settings, backends)
    }

    /// A pod becomes ready.
    pub(in crate::proxy) fn ready(&mut self, address: SocketAddr) {
        self.endpoints += 1;
        self.set(self.endpoints, address, State::Ready);
    }

    /// The first pod drains.
    pub(in crate::proxy) fn drain(&mut self, address: SocketAddr) {
        self.set(1, address, State::Draining);
    }

    /// A pod is gone.
    pub(in crate::proxy) fn remove(&self, number: usize) {
        self.target.endpoint(&id(number), None);
    }

    /// A pod has these addresses, its app a port that it listens on at some of them.
    pub(in crate::proxy) fn dual_stack(&mut self, addresses: [IpAddr; 2], port: u16) {
        self.endpoints += 1;
        self.put(self.endpoints, &addresses, port, State::Ready);
    }

    fn set(&self, number: usize, address: SocketAddr, state: State) {
        self.put(number, &[address.ip()], address.port(), state);
    }

    fn put(&self, number: usize, addresses: &[IpAddr], port: u16, state: State) {
        let id = id(number);
        let port = EndpointPort { name: "http".into(), port, protocol: Protocol::Tcp };
        let facts = EndpointFacts {
            group: self.target.key().clone(),
            id: id.clone(),
            pod: None,
            addresses: addresses.to_vec(),
            ports: vec![port],
            revision: "".into(),
        };
        let verdict = Verdict { state, source: Source::Pushed, since_ms: 1, serving: false };
        self.target.endpoint(&id, Some(Endpoint::new(Arc::new(facts), verdict)));
    }

    pub(in crate::proxy) async fn connect(&self) -> Peer {
        Peer(TcpStream::connect(self.proxy.address()).await.expect("connects"), String::new())
    }

    /// Sends a request on a connection of its own, and returns the answer.
    pub(in crate::proxy) async fn ask(&self, request: &str) -> String {
        let mut peer = self.connect().await;
        peer.send(request).await;
        peer.answer().await
    }

    /// Waits until so many requests are held.
    pub(in crate::proxy) async fn held(&self, wanted: usize) {
        eventually(|| self.target.held() == wanted).await;
    }

    pub(in crate::proxy) async fn http2(&self) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.proxy.address()).await.expect("connects");
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }
}

fn id(number: usize) -> EndpointId {
    let uid = format!("00000000-0000-4000-8000-{number:012}");
    EndpointId::Pod(PodUid::new(&uid).expect("a uid"))
}

/// Lets others go on until it is so.
pub(in crate::proxy) async fn eventually(so: impl Fn() -> bool) {
    let looking = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, looking).await.expect("it comes to that");
}

/// A connection that the test speaks on by hand, and what was read beyond an answer.
pub(in crate::proxy) struct Peer(pub(in crate::proxy) TcpStream, String);

impl Peer {
    pub(in crate::proxy) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("writes");
    }

    /// Reads until there is this text. Returns all up to it.
    pub(in crate::proxy) async fn until(&mut self, wanted: &str) -> String {
        loop {
            if let Some(at) = self.1.find(wanted) {
                let rest = self.1.split_off(at + wanted.len());
                return std::mem::replace(&mut self.1, rest);
            }
            assert!(self.read().await > 0, "closed after {:?} without {wanted:?}", self.1);
        }
    }

    async fn read(&mut self) -> usize {
        let mut bytes = vec![0; 65_536];
        let read = tokio::time::timeout(LONG, self.0.read(&mut bytes)).await.expect("in time").unwrap_or(0);
        self.1.push_str(&String::from_utf8_lossy(&bytes[..read]));
        read
    }

    /// Reads a message of known length.
    pub(in crate::proxy) async fn answer(&mut self) -> String {
        let mut answer = self.until("\r\n\r\n").await;
        let length =
            answer.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        while self.1.len() < length.unwrap_or(0) {
            assert!(self.read().await > 0, "closed within {answer:?}");
        }
        let rest = self.1.split_off(length.unwrap_or(0));
        answer.push_str(&std::mem::replace(&mut self.1, rest));
        answer
    }

    /// Reads until it is closed.
    pub(in crate::proxy) async fn rest(&mut self) -> String {
        while self.read().await > 0 {}
        std::mem::take(&mut self.1)
    }
}

/// A backend whose connections the test speaks on by hand.
pub(in crate::proxy) struct Pod {
    pub(in crate::proxy) address: SocketAddr,
    listener: TcpListener,
}

impl Pod {
    pub(in crate::proxy) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        Self { address: listener.local_addr().expect("is bound"), listener }
    }

    /// Serves the next connection as a pod of HTTP/2 that echoes.
    pub(in crate::proxy) async fn serve_http2(&self) {
        let stream = TokioIo::new(self.accept().await.0);
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(async move { builder.serve_connection(stream, service_fn(echo)).await });
    }

    pub(in crate::proxy) async fn accept(&self) -> Peer {
        let (stream, _) = tokio::time::timeout(LONG, self.listener.accept()).await.expect("in time").expect("accepts");
        Peer(stream, String::new())
    }
}

/// An address where nobody listens.
pub(in crate::proxy) async fn nobody() -> SocketAddr {
    Pod::new().await.address
}

/// A backend that says what it was asked: the head of each request as the answer's body, then the request's own body.
pub(in crate::proxy) struct Echo {
    pub(in crate::proxy) address: SocketAddr,
    connections: UnboundedReceiver<()>,
}

impl Echo {
    pub(in crate::proxy) async fn http1() -> Self {
        Self::serve(|stream| async {
            let service = service_fn(echo);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        })
        .await
    }

    pub(in crate::proxy) async fn http2() -> Self {
        Self::serve(|stream| async {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
        })
        .await
    }

    pub(in crate::proxy) async fn tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::serve(move |stream| {
            let config = Arc::clone(&config);
            async move {
                let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else { return };
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let stream = TokioIo::new(stream);
                if http2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(stream, service_fn(echo)).await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(stream, service_fn(echo)).await;
                }
            }
        })
        .await
    }

    async fn serve<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("is bound");
        let (accepted, connections): (UnboundedSender<()>, _) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = accepted.send(());
                tokio::spawn(serve(stream));
            }
        });
        Self { address, connections }
    }

    /// How many connections were made since this was asked last.
    pub(in crate::proxy) fn connections(&mut self) -> usize {
        std::iter::from_fn(|| self.connections.try_recv().ok()).count()
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let mut said = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        said.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    said.push('\n');
    said.push_str(&String::from_utf8_lossy(&body.collect().await?.to_bytes()));
    Ok(Response::new(Full::new(Bytes::from(said))))
}

pub(in crate::proxy) const GET: &str = "GET /a?b HTTP/1.1\r\nhost: web.test\r\n\r\n";

mod held;
mod http1;
mod http2;
mod limits;
mod retries;
mod tls;
