//! Connections that leave HTTP: WebSockets and any other protocol.

use anyhow::{Context, Result, ensure};
use futures::{SinkExt, StreamExt};
use podlight_e2e::eventually::eventually;
use podlight_e2e::proxy::client::{Connection, get, with};
use podlight_e2e::proxy::stage::Stage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::{PATIENCE, plain, read_head};

#[tokio::test]
async fn a_websocket_echoes_text_and_binary_and_closes() -> Result<()> {
    let (stage, _web) = plain().await?;
    let stream = TcpStream::connect(stage.proxy()?).await?;
    let url = format!("ws://{}/ws", stage.host("web"));
    let (mut socket, response) = tokio_tungstenite::client_async(url, stream).await?;
    assert_eq!(response.status(), 101);
    for message in [Message::text("hello"), Message::binary(vec![7; 100_000]), Message::text("again")] {
        socket.send(message.clone()).await?;
        let echoed = timeout(PATIENCE, socket.next()).await?.context("closed")??;
        assert_eq!(echoed, message);
    }
    socket.close(None).await?;
    timeout(PATIENCE, async { while socket.next().await.is_some_and(|message| message.is_ok()) {} }).await?;
    Ok(())
}

#[tokio::test]
async fn a_websocket_that_is_held_opens_when_its_pod_is_ready() -> Result<()> {
    let stage = Stage::standalone().await?;
    stage.create_service(stage.service("web")).await?;
    let web = stage.web("web", "web-1").await?;
    web.pod.introduce().await?;
    stage.wait("web", "web-1", "not-ready pushed").await?;
    let stream = TcpStream::connect(stage.proxy()?).await?;
    let url = format!("ws://{}/ws", stage.host("web"));
    let open = tokio::spawn(tokio_tungstenite::client_async(url, stream));
    podlight_e2e::proxy::counts::wait_held(stage.activator(), 1).await?;
    web.pod.say(podlight_proto::Kind::Ready).await?;
    let (mut socket, _) = timeout(PATIENCE, open).await???;
    socket.send(Message::text("hello")).await?;
    assert_eq!(socket.next().await.context("closed")??, Message::text("hello"));
    Ok(())
}

#[tokio::test]
async fn any_other_upgrade_is_a_tunnel_that_each_side_may_close_by_half() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut stream = TcpStream::connect(stage.proxy()?).await?;
    let host = stage.host("web");
    let head = format!("GET /upgrade HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: echo/1\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let head = String::from_utf8(read_head(&mut stream).await?)?.to_lowercase();
    ensure!(head.starts_with("http/1.1 101") && head.contains("upgrade: echo/1"), "{head}");
    stream.write_all(b"ping").await?;
    let mut echo = [0; 4];
    timeout(PATIENCE, stream.read_exact(&mut echo)).await??;
    assert_eq!(&echo, b"ping");
    // The client has said all; what the pod says then still arrives.
    stream.shutdown().await?;
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await??;
    assert_eq!(rest, b"bye");
    eventually("the tunnel is gone", async || {
        let open = stage.activator().metrics().await?.sum(podlight_e2e::proxy::counts::TUNNELS, &[]);
        Ok((open == 0.0).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn an_upgrade_that_the_pod_does_not_take_is_an_answer_like_any_other() -> Result<()> {
    let (stage, _web) = plain().await?;
    let mut connection = Connection::http1(stage.proxy()?).await?;
    let asked = with(with(get(&stage.host("web"), "/"), "connection", "upgrade"), "upgrade", "nobody/1");
    connection.ask(asked).await?.seen()?;
    connection.ask(get(&stage.host("web"), "/")).await?.seen()?;
    Ok(())
}
