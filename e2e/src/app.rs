//! An app for sidecars to probe: an HTTP server on a loopback port that answers 200 or 503 as told, or refuses connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::control_plane::process::free_port;

/// An app. Not listening until [`App::listen`].
#[derive(Debug)]
pub struct App {
    port: u16,
    ready: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl App {
    /// An app that has not started: its port refuses.
    ///
    /// # Errors
    /// When there is no free port.
    pub fn new() -> Result<Self> {
        Ok(Self { port: free_port()?, ready: Arc::default(), server: None })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The sidecar's flag value to probe it.
    pub fn probe(&self) -> String {
        format!("http://127.0.0.1:{}/ready?period=100ms&failure=1", self.port)
    }

    /// Begins to listen, answering 503.
    ///
    /// # Errors
    /// When the port was taken meanwhile.
    pub async fn listen(&mut self) -> Result<()> {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], self.port))).await?;
        self.server = Some(tokio::spawn(serve(listener, Arc::clone(&self.ready))));
        Ok(())
    }

    /// Answers 200 from now on, or 503 again.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::SeqCst);
    }

    /// Closes its port, as a crash would.
    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve(listener: TcpListener, ready: Arc<AtomicBool>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, Arc::clone(&ready)));
    }
}

/// Answers one request and closes. What goes wrong is the prober's to notice.
async fn answer(mut stream: TcpStream, ready: Arc<AtomicBool>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read_buf(&mut request).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let status = if ready.load(Ordering::SeqCst) { "200 OK" } else { "503 Service Unavailable" };
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        // Nobody is left to tell.
        let _ = stream.shutdown().await;
    }
}
