use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use ::http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn parse(text: &str) -> Probe {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

async fn ask(text: &str) -> Result<(), Failure> {
    parse(text).ask(Ipv4Addr::LOCALHOST.into()).await
}

async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, location) = match request.uri().path() {
        "/ok" => (200, None),
        "/status" => (request.uri().query().unwrap_or_default().parse().expect("a status"), None),
        "/moved" => (302, Some("/ok")),
        "/moved-to-failure" => (307, Some("/status?500")),
        "/circle" => (301, Some("/circle")),
        "/elsewhere" => (302, Some("http://192.0.2.1:1/")),
        "/header" => (if request.headers().get("x-a").is_some_and(|v| v == "b") { 200 } else { 400 }, None),
        "/closing" => (if request.headers()["connection"] == "close" { 200 } else { 400 }, None),
        "/large" => return Ok(Response::new(Full::from(vec![b'x'; 1 << 20]))),
        _ => (404, None),
    };
    let mut response = Response::builder().status(status);
    if let Some(location) = location {
        response = response.header("location", location);
    }
    Ok(response.body(Full::default()).expect("a response"))
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let server = hyper::server::conn::http1::Builder::new();
    let _ = server.serve_connection(TokioIo::new(stream), service_fn(respond)).await;
}

async fn http_app() -> u16 {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_http(stream));
        }
    });
    port
}

#[tokio::test]
async fn http_succeeds_as_the_kubelets_probe_does() {
    let port = http_app().await;
    for (path, passes) in [
        ("ok", true),
        ("status?204", true),
        ("status?304", true),
        ("status?302", true),
        ("status?400", false),
        ("status?500", false),
        ("nowhere", false),
        ("moved", true),
        ("moved-to-failure", false),
        ("circle", false),
        ("elsewhere", true),
        ("header", false),
        ("header?header=X-A:b", true),
        ("header?header=X%2DA:%62", true),
        ("closing", true),
        ("large", true),
    ] {
        let result = ask(&format!("http://:{port}/{path}")).await;
        assert_eq!(result.is_ok(), passes, "{path}: {result:?}");
    }
}

#[tokio::test]
async fn https_does_not_check_the_certificate() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve_http(stream).await;
            }
        }
    });
    assert!(ask(&format!("https://:{port}/ok")).await.is_ok());
    assert!(ask(&format!("https://:{port}/status?500")).await.is_err());
    assert!(ask(&format!("http://:{port}/ok")).await.is_err(), "TLS is not plain text");
}

#[tokio::test]
async fn tcp_succeeds_when_a_connection_opens() {
    let (listener, port) = listener().await;
    assert!(ask(&format!("tcp://:{port}")).await.is_ok());
    drop(listener);
    assert!(matches!(ask(&format!("tcp://:{port}")).await, Err(Failure::Io(_))));
}

#[tokio::test]
async fn an_app_that_hangs_or_closes_or_talks_garbage_fails() {
    let (listener, port) = listener().await;
    let mode = Arc::new(Mutex::new("hang"));
    let says = Arc::clone(&mode);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mode = *says.lock().expect("not poisoned");
            match mode {
                "hang" => kept.push(stream),
                "close" => drop(stream),
                _ => stream.write_all(b"220 mail.example ESMTP\r\n").await.expect("written"),
            }
        }
    });
    for scheme in ["http", "https", "grpc"] {
        for now in ["hang", "close", "garbage"] {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            *mode.lock().expect("not poisoned") = now;
            let result = ask(&format!("{scheme}://:{port}?timeout=200ms")).await;
            assert!(result.is_err(), "{scheme}, {now}");
            assert_eq!(matches!(result, Err(Failure::Timeout)), now == "hang", "{scheme}, {now}: {result:?}");
        }
    }
}

async fn health(
    request: Request<Incoming>,
) -> Result<Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    let asked = request.into_body().collect().await.expect("a body").to_bytes();
    let (status, grpc_status) = match &asked[5..] {
        [] => (1, "0"),
        [0x0a, _, service @ ..] if service == b"serving" => (1, "0"),
        [0x0a, _, service @ ..] if service == b"stopped" => (2, "0"),
        _ => (1, "5"),
    };
    let trailers =
        HeaderMap::from_iter([("grpc-status".parse().expect("a name"), grpc_status.parse().expect("a value"))]);
    let body = Full::from(vec![0, 0, 0, 0, 2, 8, status]).with_trailers(async { Some(Ok(trailers)) });
    Ok(Response::new(body.boxed()))
}

#[tokio::test]
async fn grpc_succeeds_when_the_service_is_serving() {
    let (listener, port) = listener().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(health)));
        }
    });
    for (service, passes) in [("", true), ("/serving", true), ("/stopped", false), ("/unknown", false)] {
        let result = ask(&format!("grpc://:{port}{service}")).await;
        assert_eq!(result.is_ok(), passes, "{service}: {result:?}");
    }
}

#[test]
fn a_probe_is_read_from_one_line() {
    let probe = parse("http://10.0.0.1:8080/health?deep=1&period=5s&timeout=2s&failure=4&success=2&header=X-A:b");
    assert_eq!((probe.host, probe.port), (Some([10, 0, 0, 1].into()), 8080));
    assert_eq!((probe.period, probe.timeout), (Duration::from_secs(5), Duration::from_secs(2)));
    assert_eq!((probe.thresholds.failure.get(), probe.thresholds.success.get()), (4, 2));
    let Target::Http { tls: false, path, headers } = &probe.target else { panic!("http") };
    assert_eq!((path.as_str(), headers.len()), ("/health?deep=1", 1));

    let probe = parse("https://[::1]:8443");
    assert_eq!(probe.host, Some(std::net::Ipv6Addr::LOCALHOST.into()));
    assert_eq!(probe.target, Target::Http { tls: true, path: "/".into(), headers: Vec::new() });
    assert_eq!(parse("grpc://localhost:9000/a.B").target, Target::Grpc { service: "a.B".into() });
    assert_eq!(parse("tcp://:5432").host, None, "the pod's address");

    let probe = parse("http://:1/?header=Authorization:Basic%20YTpi%26&once");
    let Target::Http { headers, .. } = &probe.target else { panic!("http") };
    assert_eq!(headers[0].1, "Basic YTpi&", "headers are percent-decoded");
    assert!(probe.once);
}

#[test]
fn what_is_no_probe_is_told_why() {
    for text in [
        "",
        "8080",
        "http://",
        "http://:0",
        "http://:99999",
        "http://name:80",
        "tcp://:1/x",
        "exec://:1",
        "http://:1/ü b",
    ] {
        assert_eq!(text.parse::<Probe>(), Err(ProbeError::Target), "{text}");
    }
    for option in ["period=0s", "timeout=x", "failure=0", "success=-1", "header=x", "once=1", "other=1"] {
        let text = format!("grpc://:1?{option}");
        assert_eq!(text.parse::<Probe>(), Err(ProbeError::Option(option.into())));
    }
}

proptest! {
    #[test]
    fn any_text_is_a_probe_or_an_error(scheme in "(http|https|tcp|grpc|.*)", rest in ".*") {
        let _ = format!("{scheme}://{rest}").parse::<Probe>();
    }
}
