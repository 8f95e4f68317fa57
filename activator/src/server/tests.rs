use std::future::pending;

use axum::body::Bytes;
use axum::routing::{get, post};
use http::Version;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;

const QUICK: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    trigger: ShutdownTrigger,
    task: JoinHandle<usize>,
    gate: Arc<Semaphore>,
    entered: Arc<Semaphore>,
}

fn limits() -> Limits {
    let timeouts = Timeouts { handshake: LONG, head: LONG, write: LONG, idle: LONG };
    Limits { connections: 100, connections_per_source: 100, grace: LONG, timeouts }
}

/// `/` answers at once, `/echo` what it was sent, `/gate` when the gate has a permit.
fn start(limits: Limits, tls: Option<Tls>) -> Running {
    let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (inner_gate, inner_entered) = (Arc::clone(&gate), Arc::clone(&entered));
    let gated = move || async move {
        inner_entered.add_permits(1);
        inner_gate.acquire().await.expect("never closed").forget();
        "through"
    };
    let peer = async |axum::Extension(Peer(peer)): axum::Extension<Peer>| peer.ip().to_string();
    let router =
        Router::new().route("/", get(peer)).route("/echo", post(async |body: Bytes| body)).route("/gate", get(gated));
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let address = listener.local_addr().expect("is bound");
    let (trigger, shutdown) = Shutdown::new();
    let server = Server { name: "test", listener, tls, router: with_fallbacks(router), limits };
    Running { address, trigger, task: tokio::spawn(server.serve(shutdown)), gate, entered }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }

    /// Sends bytes on a connection of their own and returns all that comes until the server closes it.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("writes");
        until_closed(&mut stream).await
    }
}

async fn until_closed(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    let read = tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.expect("the server closes in time");
    // A reset counts as closed.
    let _ = read;
    answer
}

/// Asks on a kept connection and returns the head and the body of the answer.
async fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.expect("writes");
    answer(stream).await
}

async fn answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let read = tokio::time::timeout(LONG, stream.read_buf(&mut answer)).await.expect("an answer").expect("reads");
        let text = String::from_utf8_lossy(&answer);
        if read == 0 {
            return text.into_owned();
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if let (Some((_, body)), Some(length)) = (text.split_once("\r\n\r\n"), length)
            && body.len() >= length
        {
            return text.into_owned();
        }
    }
}

#[tokio::test]
async fn a_request_is_answered_and_knows_its_peer() {
    let server = start(limits(), None);
    let mut stream = server.connect().await;
    let answer = ask(&mut stream, "/").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("127.0.0.1"), "{answer}");
}

#[tokio::test]
async fn requests_that_come_all_together_or_byte_by_byte_are_all_answered() {
    const TOGETHER: usize = 40;
    let server = start(limits(), None);
    let mut stream = server.connect().await;
    stream.set_nodelay(true).expect("sets");
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for _ in 0..2 {
        // Empty lines between requests are nothing (RFC 9112 §2.2).
        stream.write_all(format!("{request}\r\n").repeat(TOGETHER).as_bytes()).await.expect("writes");
        let mut answers = Vec::new();
        while String::from_utf8_lossy(&answers).matches("HTTP/1.1 200 ").count() < TOGETHER {
            let read = tokio::time::timeout(LONG, stream.read_buf(&mut answers)).await.expect("an answer");
            assert!(read.expect("reads") > 0, "{} bytes of answers", answers.len());
        }
    }
    for byte in request.bytes() {
        stream.write_all(&[byte]).await.expect("writes");
        tokio::task::yield_now().await;
    }
    // What the last of the answers above has not brought yet is no answer to this.
    assert!(answer(&mut stream).await.contains("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_resting_connection_takes_little_memory() {
    let router = Router::new();
    let (_trigger, shutdown) = Shutdown::new();
    let context = Arc::new(Context {
        name: "test",
        tls: None,
        router,
        limits: limits(),
        http1: http1(),
        http2: http2(),
        shutdown,
    });
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let stream = TcpStream::connect(listener.local_addr().expect("is bound")).await.expect("connects");
    let peer = stream.peer_addr().expect("is connected");
    let admitted = Arc::new(Connections::new("test", 1, 1)).admit(peer.ip()).expect("room");
    let task = size_of_val(&context.connect(stream, peer, admitted));
    assert!(task <= 1536, "{task} bytes");
}

#[tokio::test]
async fn http2_is_answered() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = start(limits(), None);
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().expect("builds");
    let answer = client.get(format!("http://{}/", server.address)).send().await.expect("an answer");
    assert_eq!((answer.version(), answer.status()), (Version::HTTP_2, StatusCode::OK));
}

#[tokio::test]
async fn slow_headers_are_answered_408_and_a_resting_connection_is_kept() {
    let server = start(Limits { timeouts: Timeouts { head: QUICK, ..limits().timeouts }, ..limits() }, None);
    let mut resting = server.connect().await;
    ask(&mut resting, "/").await;
    let silent = server.connect().await;

    let answer = server.exchange("GET / HTTP/1.1\r\nhost: a").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(r#""err":"timeout""#), "{answer}");

    assert!(ask(&mut resting, "/").await.starts_with("HTTP/1.1 200 "));
    let mut silent = silent;
    assert!(ask(&mut silent, "/").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn slow_headers_of_a_later_request_are_answered_408() {
    let server = start(Limits { timeouts: Timeouts { head: QUICK, ..limits().timeouts }, ..limits() }, None);
    let answer = server.exchange("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HT").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn a_connection_that_rests_too_long_is_closed() {
    let server = start(Limits { timeouts: Timeouts { idle: QUICK, ..limits().timeouts }, ..limits() }, None);
    let mut stream = server.connect().await;
    ask(&mut stream, "/").await;
    assert_eq!(until_closed(&mut stream).await, "");
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_let_go() {
    let timeouts = Timeouts { write: QUICK, ..limits().timeouts };
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let address = listener.local_addr().expect("is bound");
    let (_trigger, shutdown) = Shutdown::new();
    let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
    let alive = Arc::new(std::sync::Mutex::new(Some(alive)));
    let endless = async move || {
        let alive = alive.lock().expect("no panic").take();
        let chunks = std::iter::repeat_with(move || {
            let _ = &alive;
            Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 65_536]))
        });
        axum::body::Body::from_stream(futures::stream::iter(chunks))
    };
    let router = Router::new().route("/", get(endless));
    let server = Server { name: "test", listener, tls: None, router, limits: Limits { timeouts, ..limits() } };
    tokio::spawn(server.serve(shutdown));
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writes");
    // The answer's source is dropped although nothing was ever read.
    tokio::time::timeout(LONG, dropped).await.expect("the server lets go").expect_err("dropped");
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room() {
    let server = start(Limits { connections: 2, ..limits() }, None);
    let mut first = server.connect().await;
    ask(&mut first, "/").await;
    let mut second = server.connect().await;
    second.write_all(b"GET /gate HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writes");
    server.entered.acquire().await.expect("never closed").forget();

    let mut third = server.connect().await;
    assert!(ask(&mut third, "/").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(until_closed(&mut first).await, "");
    server.gate.add_permits(1);
    assert!(answer(&mut second).await.ends_with("through"));
}

#[tokio::test]
async fn a_newcomer_is_closed_when_all_are_busy() {
    let server = start(Limits { connections_per_source: 1, ..limits() }, None);
    let mut busy = server.connect().await;
    busy.write_all(b"GET /gate HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writes");
    server.entered.acquire().await.expect("never closed").forget();
    assert_eq!(until_closed(&mut server.connect().await).await, "");
    server.gate.add_permits(1);
    assert!(answer(&mut busy).await.ends_with("through"));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told() {
    let server = start(limits(), None);
    let mut stream = server.connect().await;
    let answer = ask(&mut stream, "/nowhere").await;
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains(r#""err":"not_found""#), "{answer}");
    let answer = ask(&mut stream, "/echo").await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains(r#""err":"method_not_allowed""#), "{answer}");
    assert!(answer.contains("allow: POST"), "{answer}");
}

#[tokio::test]
async fn two_kinds_of_length_are_refused_and_one_is_not() {
    let server = start(limits(), None);
    for lengths in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 3",
        "Transfer-Encoding: chunked\r\nX: y\r\nCONTENT-LENGTH:3",
    ] {
        let answer =
            server.exchange(&format!("POST /echo HTTP/1.1\r\nhost: a\r\n{lengths}\r\n\r\n3\r\nabc\r\n0\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(r#""err":"invalid_request""#), "{answer}");
    }
    let chunked = "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let answer = server.exchange(chunked).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("abc"), "{answer}");
}

#[tokio::test]
async fn large_headers_are_refused() {
    let server = start(limits(), None);
    let answer = server.exchange(&format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(HEAD_BYTES))).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn a_request_under_way_is_finished_and_nothing_new_is_taken() {
    let server = start(limits(), None);
    let mut resting = server.connect().await;
    ask(&mut resting, "/").await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /gate HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writes");
    server.entered.acquire().await.expect("never closed").forget();

    server.trigger.begin();
    assert_eq!(until_closed(&mut resting).await, "");
    assert!(TcpStream::connect(server.address).await.is_err());
    server.gate.add_permits(1);
    assert!(answer(&mut busy).await.ends_with("through"));
    assert_eq!(server.task.await.expect("ends"), 0);
}

#[tokio::test]
async fn what_outlasts_the_grace_is_closed() {
    let server = start(Limits { grace: QUICK, ..limits() }, None);
    let mut busy = server.connect().await;
    busy.write_all(b"GET /gate HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writes");
    server.entered.acquire().await.expect("never closed").forget();
    server.trigger.begin();
    assert_eq!(server.task.await.expect("ends"), 1);
    assert_eq!(until_closed(&mut busy).await, "");
}

/// Shakes hands without judging, and returns the certificate that the server shows.
async fn certificate(address: SocketAddr) -> CertificateDer<'static> {
    let verifier = Arc::new(Unjudging);
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from("a.test").expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("shakes hands");
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone()
}

#[tokio::test]
async fn a_new_certificate_is_shown_soon_after_its_files_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let (files, first) = tls::tests::write_pair(folder.path(), "a.test");
    let tls = Tls::from_files(&files).expect("loads");
    let server = start(limits(), Some(tls.clone()));
    tokio::spawn(tls.follow(vec![files]));
    assert_eq!(certificate(server.address).await, first);

    let (_, second) = tls::tests::write_pair(folder.path(), "a.test");
    let shown = async { while certificate(server.address).await != second {} };
    tokio::time::timeout(LONG, shown).await.expect("the new certificate is shown");
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let tls = Tls::from_files(&tls::tests::write_pair(folder.path(), "a.test").0).expect("loads");
    let server = start(Limits { timeouts: Timeouts { handshake: QUICK, ..limits().timeouts }, ..limits() }, Some(tls));
    assert_eq!(until_closed(&mut server.connect().await).await, "");
}

#[tokio::test]
async fn a_client_that_trusts_the_ca_made_at_start_accepts_the_server() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.crt");
    let tls = Tls::self_signed(&["127.0.0.1".to_owned()], Some(&ca)).expect("makes");
    let server = start(limits(), Some(tls));
    let ca = reqwest::Certificate::from_pem(&std::fs::read(ca).expect("reads")).expect("parses");
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().expect("builds");
    let answer = client.get(format!("https://{}/", server.address)).send().await.expect("an answer");
    assert_eq!((answer.version(), answer.status()), (Version::HTTP_2, StatusCode::OK));
}

#[tokio::test]
async fn a_panic_ends_one_connection_only() {
    let listener = bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let address = listener.local_addr().expect("is bound");
    let (_trigger, shutdown) = Shutdown::new();
    let router = Router::new()
        .route("/", get(async || "fine"))
        .route("/panic", get(async || -> &'static str { panic!("a test panics") }))
        .route("/never", get(async || pending::<&'static str>().await));
    let server = Server { name: "test", listener, tls: None, router, limits: limits() };
    tokio::spawn(server.serve(shutdown));
    let mut broken = TcpStream::connect(address).await.expect("connects");
    broken.write_all(b"GET /panic HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("writes");
    assert_eq!(until_closed(&mut broken).await, "");
    let mut fine = TcpStream::connect(address).await.expect("connects");
    assert!(ask(&mut fine, "/").await.ends_with("fine"));
}

/// Accepts any certificate: what is shown is compared by the test.
#[derive(Debug)]
struct Unjudging;

impl rustls::client::danger::ServerCertVerifier for Unjudging {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
