use futures::StreamExt;
use tokio::net::TcpStream;

use super::grpc::EchoClient;
use super::*;
use crate::proxy::client::{Connection, ask, get, post};
use crate::proxy::pki::{ALPN, Authority};

#[tokio::test]
async fn it_answers_with_what_it_was_asked_in_both_protocols() -> Result<()> {
    let backend = Backend::start("pod")?;
    for (mut connection, version) in [
        (Connection::http1(backend.address()).await?, "HTTP/1.1"),
        (Connection::http2(backend.address()).await?, "HTTP/2.0"),
    ] {
        let seen = connection.ask(post("web.shop", "/a?b", "hello")).await?.seen()?;
        assert_eq!((seen.pod.as_str(), seen.version.as_str(), seen.body_bytes), ("pod", version, 5));
        assert_eq!((seen.authority.as_str(), seen.target.as_str()), ("web.shop", "/a?b"));
        assert_eq!(seen.body_sha256, answers::sha256(b"hello"));
    }
    assert_eq!((backend.requests(), backend.connections()), (2, 2));
    Ok(())
}

#[tokio::test]
async fn it_ends_connections_as_it_is_told() -> Result<()> {
    let backend = Backend::start("pod")?;
    for path in ["/close", "/reset", "/close-midway", "/reset-midway"] {
        assert!(ask(backend.address(), get("web", path)).await.is_err(), "{path}");
    }
    let mut kept = Connection::http1(backend.address()).await?;
    kept.ask(get("web", "/")).await?.seen()?;
    backend.leave().await;
    eventually("the idle connection is closed", async || Ok(kept.is_closed().then_some(()))).await?;
    assert!(TcpStream::connect(backend.address()).await.is_err());
    backend.blackhole().await?;
    let connect = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(backend.address()));
    assert!(connect.await.is_err(), "a connection was made");
    backend.refuse().await;
    assert!(TcpStream::connect(backend.address()).await.is_err());
    Ok(())
}

#[tokio::test]
async fn what_waits_at_the_gate_is_counted() -> Result<()> {
    let backend = Backend::start("pod")?;
    let waiting: Vec<_> = (0..3).map(|_| crate::proxy::client::start(backend.address(), get("web", "/gate"))).collect();
    backend.wait_at_gate(3).await?;
    waiting[0].abort();
    backend.wait_at_gate(2).await?;
    backend.open_gate(true);
    backend.wait_at_gate(0).await?;
    assert_eq!(backend.most_at_gate(), 3);
    Ok(())
}

#[tokio::test]
async fn it_speaks_grpc_and_websocket() -> Result<()> {
    let backend = Backend::start("pod")?;
    let mut client = EchoClient::connect(backend.address(), "web.shop").await?;
    assert_eq!(client.say("hello").await?.into_inner().pod, "pod");
    assert_eq!(client.say("fail:5").await.err().map(|status| status.code()), Some(tonic::Code::NotFound));
    assert_eq!(client.repeat("again", 5).await?.count().await, 5);
    let stream = TcpStream::connect(backend.address()).await?;
    let (mut socket, _) = tokio_tungstenite::client_async("ws://web.shop/ws", stream).await?;
    let message = tokio_tungstenite::tungstenite::Message::text("hello");
    futures::SinkExt::send(&mut socket, message.clone()).await?;
    assert_eq!(socket.next().await.context("closed")??, message);
    Ok(())
}

#[tokio::test]
async fn it_speaks_tls_and_tells_what_was_asked_for() -> Result<()> {
    let (pods, clients) = (Authority::new("pods")?, Authority::new("clients")?);
    let config = pods.issue(&["web.shop.svc"])?.server(&ALPN, None)?;
    let backend = Backend::at("pod", fresh_loopback()).tls(config);
    backend.listen()?;
    let mut connection = Connection::tls(backend.address(), "web.shop.svc", &pods.client(&ALPN)?).await?;
    let tls = connection.ask(get("web.shop", "/")).await?.seen()?.tls.context("no TLS")?;
    assert_eq!((tls.server_name.as_deref(), tls.alpn.as_deref()), (Some("web.shop.svc"), Some("h2")));
    assert!(Connection::tls(backend.address(), "other.shop.svc", &pods.client(&ALPN)?).await.is_err());
    assert!(Connection::tls(backend.address(), "web.shop.svc", &clients.client(&ALPN)?).await.is_err());
    Ok(())
}
