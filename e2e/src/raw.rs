//! HTTP by hand: bytes that no client would send, at a pace that no client would keep.

use std::time::Duration;

use anyhow::{Context, Result};
use podlight_proto::Problem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take: longer than any deadline of an activator's own.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// One connection.
#[derive(Debug)]
pub struct RawConnection(TcpStream);

/// What came back before the connection ended, or its first answer.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    /// Its status; none when the connection ended without one.
    pub status: Option<u16>,
    /// Everything behind the headers.
    pub body: String,
}

impl RawAnswer {
    /// The body as a problem.
    ///
    /// # Errors
    /// When it is none.
    pub fn problem(&self) -> Result<Problem> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }
}

impl RawConnection {
    /// Connects to a loopback port.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn open(port: u16) -> Result<Self> {
        Ok(Self(TcpStream::connect(("127.0.0.1", port)).await?))
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// When the other end has closed.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.0.write_all(bytes.as_ref()).await?)
    }

    /// Whether the other end has closed, as far as is known now.
    pub fn is_closed(&self) -> bool {
        let mut byte = [0];
        match self.0.try_read(&mut byte) {
            Ok(n) => n == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    /// Reads until the answer is whole or the connection has ended.
    ///
    /// # Errors
    /// When neither happens in time.
    pub async fn answer(&mut self) -> Result<RawAnswer> {
        let read = async {
            let mut bytes = Vec::new();
            loop {
                match self.0.read_buf(&mut bytes).await {
                    Ok(0) | Err(_) => return parse(&bytes),
                    Ok(_) if is_whole(&bytes) => return parse(&bytes),
                    Ok(_) => {}
                }
            }
        };
        timeout(ANSWER_DEADLINE, read).await.context("no answer")
    }
}

/// Sends a request and reads the answer.
///
/// # Errors
/// When there is none.
pub async fn exchange(port: u16, request: impl AsRef<[u8]>) -> Result<RawAnswer> {
    let mut connection = RawConnection::open(port).await?;
    // An answer may come, and the connection end, before all is sent.
    let _ = connection.send(request).await;
    connection.answer().await
}

fn split(bytes: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.to_ascii_lowercase(), body.to_owned()))
}

fn is_whole(bytes: &[u8]) -> bool {
    let Some((head, body)) = split(bytes) else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

fn parse(bytes: &[u8]) -> RawAnswer {
    let Some((head, body)) = split(bytes) else { return RawAnswer { status: None, body: String::new() } };
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    RawAnswer { status, body }
}
