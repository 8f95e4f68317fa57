//! HTTP/2 by hand: frames that no client would send, at a pace that no client would keep (RFC 9113).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the other end may take to say or close something.
const PATIENCE: Duration = Duration::from_secs(20);

/// Frame types.
pub mod kind {
    /// A body.
    pub const DATA: u8 = 0;
    /// A head, or its beginning.
    pub const HEADERS: u8 = 1;
    /// The end of a stream.
    pub const RST_STREAM: u8 = 3;
    /// Settings.
    pub const SETTINGS: u8 = 4;
    /// A liveness check.
    pub const PING: u8 = 6;
    /// The end of a connection.
    pub const GOAWAY: u8 = 7;
    /// More of a head.
    pub const CONTINUATION: u8 = 9;
}

/// `END_STREAM` of `HEADERS` and `DATA`.
pub const END_STREAM: u8 = 1;

/// `END_HEADERS`.
pub const END_HEADERS: u8 = 4;

/// A connection whose preface is sent.
#[derive(Debug)]
pub struct Frames(TcpStream);

/// A frame as it was received.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Frames {
    /// Opens a connection.
    ///
    /// # Errors
    /// When nobody accepts.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let mut frames = Self(stream);
        frames.send(&frame(kind::SETTINGS, 0, 0, &[])).await?;
        Ok(frames)
    }

    /// Sends bytes, [`frame`]s most of the time.
    ///
    /// # Errors
    /// When the other end has closed, or does not read.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(timeout(PATIENCE, self.0.write_all(bytes)).await.context("it does not read")??)
    }

    /// Receives a frame; none at the end of the connection, in whatever way that ends.
    ///
    /// # Errors
    /// When neither comes in time.
    pub async fn receive(&mut self) -> Result<Option<Frame>> {
        let read = async {
            let mut head = [0; 9];
            if self.0.read_exact(&mut head).await.is_err() {
                return None;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).ok()?];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        timeout(PATIENCE, read).await.context("neither a frame nor the end")
    }

    /// Receives until the connection ends, or says that it will, or refuses this stream. Returns the frame that says so; none at
    /// a bare end.
    ///
    /// # Errors
    /// When none of it comes in time.
    pub async fn refusal(&mut self, stream: u32) -> Result<Option<Frame>> {
        let wait = async {
            while let Some(frame) = self.receive().await? {
                if frame.kind == kind::GOAWAY || frame.kind == kind::RST_STREAM && frame.stream == stream {
                    return Ok(Some(frame));
                }
                // A status of 4xx is a refusal as well; its beginning is in HPACK's static table or a literal.
                if frame.kind == kind::HEADERS && frame.stream == stream {
                    return Ok(Some(frame));
                }
            }
            Ok(None)
        };
        timeout(PATIENCE, wait).await.context("it is not refused")?
    }
}

/// A frame's bytes.
///
/// # Panics
/// When the payload is longer than a frame's can be.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).ok().filter(|length| *length < 1 << 24).expect("a frame's length");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The head of `GET /` for a host, in HPACK without the dynamic table.
///
/// # Errors
/// When the host is too long for this.
pub fn get_head(host: &str) -> Result<Vec<u8>> {
    ensure!(host.len() < 127, "too long");
    // :method GET, :scheme http, :path /, :authority
    let mut block = vec![0x82, 0x86, 0x84, 0x01, u8::try_from(host.len())?];
    block.extend(host.as_bytes());
    Ok(block)
}

/// A header field in HPACK that is not remembered.
///
/// # Errors
/// When name or value are too long for this.
pub fn field(name: &str, value: &str) -> Result<Vec<u8>> {
    ensure!(name.len() < 127 && value.len() < 127, "too long");
    let mut field = vec![0x00, u8::try_from(name.len())?];
    field.extend(name.as_bytes());
    field.push(u8::try_from(value.len())?);
    field.extend(value.as_bytes());
    Ok(field)
}
