//! A TCP stream that ends as it is told when it is dropped: by FIN or by RST.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How connections end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// They do not.
    Never,
    /// After the answer that is under way.
    Graceful,
    /// Now, by FIN.
    Fin,
    /// Now, by RST.
    Reset,
}

/// How a [`Wire`] is to end.
#[derive(Clone, Debug, Default)]
pub(super) struct How(Arc<AtomicBool>);

impl How {
    pub(super) fn set(&self, end: End) {
        self.0.store(end == End::Reset, Ordering::SeqCst);
    }
}

/// The stream.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Option<TcpStream>,
    how: How,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> (Self, How) {
        let how = How::default();
        (Self { stream: Some(stream), how: how.clone() }, how)
    }

    /// The stream itself, which then ends by FIN.
    pub(super) fn into_inner(mut self) -> io::Result<TcpStream> {
        self.stream.take().ok_or_else(gone)
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(gone)
    }
}

fn gone() -> io::Error {
    io::Error::other("the stream was taken")
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take()
            && self.how.0.load(Ordering::SeqCst)
        {
            // A connection that is gone already needs no reset.
            let _ = stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}
