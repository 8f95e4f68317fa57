//! A client's socket that HTTP reads and writes while the connection's task sees whether its other end is still there.
//! tokio's own stream can do one or the other.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A share of a socket.
#[derive(Debug, Clone)]
pub(super) struct Socket(Arc<TcpStream>);

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Returns once there may be something to read.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await
    }

    /// Returns once the peer has ended its side, or the connection is broken: true when it is broken.
    pub(super) async fn ended(&self) -> bool {
        // What is called priority includes the end of what can be read, and leaves out that something can be read.
        match self.0.ready(Interest::PRIORITY | Interest::ERROR).await {
            Ok(ready) => ready.is_error(),
            Err(_) => true,
        }
    }

    /// Returns once the connection is broken.
    pub(super) async fn broken(&self) {
        let _ = self.0.ready(Interest::ERROR).await;
    }

    /// Writes a few bytes if there is room for them.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let room = buffer.remaining();
            // A read that leaves room has emptied the socket: the next one waits for the kernel to say that there is
            // more, instead of asking in vain. `WouldBlock` is what has tokio wait.
            let mut short = None;
            let read = self.0.try_io(Interest::READABLE, || match self.0.try_read_buf(buffer) {
                Ok(read) if 0 < read && read < room => {
                    short = Some(read);
                    Err(ErrorKind::WouldBlock.into())
                }
                read => read,
            });
            match (read, short) {
                (_, Some(_)) | (Ok(_), _) => return Poll::Ready(Ok(())),
                (Err(error), _) if error.kind() == ErrorKind::WouldBlock => {}
                (Err(error), _) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_written(cx, || self.0.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(cx, || self.0.try_write_vectored(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}

impl Socket {
    fn poll_written(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}
