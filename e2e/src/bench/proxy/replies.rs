//! The backend of every proxy that is measured: the same fourteen bytes to whatever request, over kept connections, at next to
//! no cost. It reads heads only: nobody sends it a body.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What it answers.
pub(super) const REPLY: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 14\r\n\r\nHello, world!\n";

/// Of one read: more than any request with what proxies add to it.
const READ_BYTES: usize = 4096;

/// Answers on all these addresses. Returns only when it cannot.
pub(super) async fn serve(addresses: Vec<SocketAddr>) -> Result<()> {
    let mut listeners = JoinSet::new();
    for address in addresses {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        listeners.spawn(accept(listener));
    }
    listeners.join_next().await.context("no address")??;
    Ok(())
}

async fn accept(listener: TcpListener) {
    loop {
        // One that is gone before it is accepted is no reason to end.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(answer(stream));
    }
}

/// Answers each head, pipelined ones together. Ends when the other end does.
async fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut replies = Vec::new();
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut done = 0;
        while let Some(end) = head_end(&buffer[done..]) {
            done += end;
            replies.extend_from_slice(REPLY);
        }
        if done > 0 {
            buffer.drain(..done);
            stream.write_all(&replies).await?;
            replies.clear();
        }
    }
}

/// The length of the head that `bytes` begin with.
pub(super) fn head_end(bytes: &[u8]) -> Option<usize> {
    // Most reads end with the head that they bring.
    if bytes.ends_with(b"\r\n\r\n") && !bytes[..bytes.len() - 4].windows(4).any(|end| end == b"\r\n\r\n") {
        return Some(bytes.len());
    }
    bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4)
}
