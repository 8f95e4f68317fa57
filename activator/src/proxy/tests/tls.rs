use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::*;

/// A CA that makes certificates.
struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signs").pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A certificate for a name, and its key, as PEM.
    fn certify(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
        (params.signed_by(&key, &self.issuer).expect("signs").pem(), key.serialize_pem())
    }

    fn files(&self, folder: &Path, name: &str) -> Files {
        let (certificate, key) = self.certify(name);
        let files = Files { certificate: folder.join(format!("{name}.crt")), key: folder.join(format!("{name}.key")) };
        std::fs::write(&files.certificate, certificate).expect("writes");
        std::fs::write(&files.key, key).expect("writes");
        files
    }

    fn server(&self, name: &str, protocols: &[&[u8]]) -> Arc<ServerConfig> {
        let (certificate, key) = self.certify(name);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("fits");
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")).expect("a CA");
        roots
    }

    /// With the CA in a file.
    fn config(&self, folder: &Path) -> ProxyConfig {
        let path = folder.join("ca.crt");
        std::fs::write(&path, &self.pem).expect("writes");
        ProxyConfig { upstream_ca: Some(path), ..config() }
    }
}

#[tokio::test]
async fn a_pod_is_verified_by_the_name_of_its_service() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    for (protocols, version) in
        [(&[b"h2".as_slice(), b"http/1.1"][..], "HTTP/2.0"), (&[b"http/1.1".as_slice()], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let mut pod = Echo::tls(authority.server("web.test.svc", protocols)).await;
        let scene = Scene::start(authority.config(folder.path()), https(), &[pod.address]);
        for _ in 0..3 {
            let answer = scene.ask(GET).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(version), "{answer}");
        }
        assert_eq!(pod.connections(), 1);
    }
}

#[tokio::test]
async fn a_pod_with_another_name_or_authority_gets_no_request() {
    let (authority, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().expect("a folder");
    for server in [authority.server("other.test.svc", &[]), other.server("web.test.svc", &[])] {
        let pod = Echo::tls(server).await;
        let settings = Settings { hold_timeout: Duration::from_millis(50), ..https() };
        let scene = Scene::start(authority.config(folder.path()), settings, &[pod.address]);
        let answer = scene.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
        assert!(!answer.contains("GET /a?b"), "{answer}");
    }
}

#[tokio::test]
async fn without_a_ca_nothing_is_sent() {
    let authority = Authority::new();
    let mut pod = Echo::tls(authority.server("web.test.svc", &[])).await;
    let scene = Scene::of(https(), &[pod.address]);
    let answer = scene.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("podlight-error: tls\r\n"), "{answer}");
    assert_eq!(pod.connections(), 0);
}

#[tokio::test]
async fn a_ca_may_come_from_a_secret() {
    let authority = Authority::new();
    let pod = Echo::tls(authority.server("web.test.svc", &[])).await;
    let tls = UpstreamTls { server_name: "web.test.svc".into(), ca_secret: Some("ca".into()) };
    let scene = Scene::of(Settings { tls: Some(tls), ..https() }, &[pod.address]);
    assert!(scene.ask(GET).await.contains("the Secret ca with the CA is not there"));
    let trust = scene.proxy.trust();
    assert!(trust.set_secret("test", "ca", Some(b"nonsense")).is_err());
    trust.set_secret("test", "ca", Some(authority.pem.as_bytes())).expect("a CA");
    assert!(scene.ask(GET).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_websocket_goes_over_http1_to_a_pod_that_prefers_http2() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let pod = Echo::tls(authority.server("web.test.svc", &[b"h2", b"http/1.1"])).await;
    let scene = Scene::start(authority.config(folder.path()), https(), &[pod.address]);
    assert!(scene.ask(GET).await.contains("HTTP/2.0"));
    let answer =
        scene.ask("GET / HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert!(answer.contains("HTTP/1.1\n") && answer.contains("upgrade: websocket\n"), "{answer}");
}

#[tokio::test]
async fn the_certificate_is_that_of_the_name_asked_for() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["first.test", "second.test"];
    let files = names.map(|name| authority.files(folder.path(), name)).to_vec();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let pod = Echo::http1().await;
    let scene = Scene::start(ProxyConfig { tls: Some((any, files)), ..config() }, settings(), &[pod.address]);
    for protocol in [b"h2".as_slice(), b"http/1.1"] {
        for name in names {
            let mut client = ClientConfig::builder().with_root_certificates(authority.roots()).with_no_client_auth();
            client.alpn_protocols = vec![protocol.to_vec()];
            let stream = TcpStream::connect(scene.proxy.tls_address().expect("listens")).await.expect("connects");
            let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
            let server_name = ServerName::try_from(name).expect("a name");
            let stream = connector.connect(server_name, stream).await.expect("the certificate has the name");
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
            let request = Request::get("https://web.test/").header("host", "web.test").body(Full::<Bytes>::default());
            let (request, stream) = (request.expect("a request"), TokioIo::new(stream));
            let answer = if protocol == b"h2" {
                let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
                let (mut client, connection) = builder.handshake(stream).await.expect("HTTP/2");
                tokio::spawn(connection);
                client.send_request(request).await.expect("an answer")
            } else {
                let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.expect("HTTP/1.1");
                tokio::spawn(connection);
                client.send_request(request).await.expect("an answer")
            };
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            assert!(String::from_utf8_lossy(&body).contains("x-forwarded-proto: https\n"));
        }
    }
}

/// Requests that wait, each on a connection of its own.
async fn held_burst(scene: &Scene) -> Vec<Peer> {
    let mut peers = Vec::new();
    for _ in 0..50 {
        let mut peer = scene.connect().await;
        peer.send(GET).await;
        peers.push(peer);
    }
    scene.held(50).await;
    peers
}

#[tokio::test]
async fn a_burst_to_a_pod_without_connections_shares_one_of_http2_over_tls() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let mut pod = Echo::tls(authority.server("web.test.svc", &[b"h2", b"http/1.1"])).await;
    let mut scene = Scene::start(authority.config(folder.path()), https(), &[]);
    let peers = held_burst(&scene).await;
    scene.ready(pod.address);
    for mut peer in peers {
        let answer = peer.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/2.0"), "{answer}");
    }
    assert_eq!(pod.connections(), 1);
}

#[tokio::test]
async fn a_burst_waits_for_the_first_handshake_and_its_failure_is_told_to_all() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let pod = Pod::new().await;
    let mut scene = Scene::start(
        ProxyConfig { connect_timeout: LONG, ..authority.config(folder.path()) },
        Settings { hold_timeout: LONG, ..https() },
        &[],
    );
    let peers = held_burst(&scene).await;
    scene.ready(pod.address);
    // Whoever comes when the first failure has been told tries for itself.
    let opened = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&opened);
    tokio::spawn(async move {
        loop {
            let mut there = pod.accept().await;
            counted.fetch_add(1, Ordering::Relaxed);
            there.send("this is no TLS").await;
        }
    });
    let asked = peers.len();
    for mut peer in peers {
        let answer = peer.answer().await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("podlight-error: tls\r\n"), "{answer}");
    }
    let opened = opened.load(Ordering::Relaxed);
    assert!(opened < asked, "{opened} connections for {asked} requests");
}

#[tokio::test]
async fn nothing_is_sent_to_a_pod_that_was_replaced_while_the_connection_to_it_was_made() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("a folder");
    let server = authority.server("web.test.svc", &[]);
    let (old, new) = (Pod::new().await, Echo::tls(Arc::clone(&server)).await);
    let mut scene = Scene::start(authority.config(folder.path()), https(), &[old.address]);
    let mut peer = scene.connect().await;
    peer.send("POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 3\r\n\r\nabc").await;
    let there = old.accept().await;
    // The address may be another pod's from now on, even of another Service: one that has the name all the same.
    scene.remove(1);
    scene.ready(new.address);
    let accepted = tokio_rustls::TlsAcceptor::from(server).accept(there.0).await;
    if let Ok(mut stranger) = accepted {
        let mut sent = Vec::new();
        let _ = stranger.read_to_end(&mut sent).await;
        assert!(sent.is_empty(), "{:?}", String::from_utf8_lossy(&sent));
    }
    let answer = peer.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("abc"), "{answer}");
}
