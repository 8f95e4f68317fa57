//! A connection's bytes under deadlines. hyper's own header timeout also closes kept connections that merely
//! rest, and closes slow ones without an answer; here a head that has begun must end in time, else it is answered 408, while a
//! connection between requests may rest for long, and a peer that does not read is let go.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use metrics::counter;
use podlight_proto::{ErrorCode, Problem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connections::Connection;
use super::head::HeadScan;

/// How long a connection may take for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From a head's first byte to its last.
    pub(super) head: Duration,
    /// Between requests.
    pub(super) idle: Duration,
    /// Until the peer takes some of what was written.
    pub(super) write: Duration,
}

/// A stream that keeps to its [`Patience`].
pub(super) struct Watched<S> {
    stream: S,
    connection: Arc<Connection>,
    patience: Patience,
    scan: HeadScan,
    head_since: Instant,
    read_at: Instant,
    stalled_since: Option<Instant>,
    /// Wakes the connection's task; may go off early, never late.
    timer: Pin<Box<Sleep>>,
    /// The rest of the answer to a head that came too slowly.
    refusal: Option<Vec<u8>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>, patience: Patience) -> Self {
        let now = Instant::now();
        Self {
            stream,
            connection,
            patience,
            scan: HeadScan::new(),
            head_since: now,
            read_at: now,
            stalled_since: None,
            timer: Box::pin(sleep_until(now + patience.idle)),
            refusal: None,
        }
    }

    fn took(&mut self, bytes: &[u8]) {
        let (mid_head, heads) = (self.scan.mid_head(), self.scan.heads());
        if self.scan.take(bytes) {
            self.connection.conflicting.store(true, Ordering::Release);
        }
        self.read_at = Instant::now();
        if !mid_head || heads != self.scan.heads() {
            self.head_since = self.read_at;
        }
    }

    /// Polls until `deadline`; the waker is kept for it.
    fn poll_deadline(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.deadline() > deadline {
            self.timer.as_mut().reset(deadline);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    /// Counts how long a write has been waiting.
    fn watch_write<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled_since = None;
            return polled;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        ready!(self.poll_deadline(since + self.patience.write, cx));
        counter!("podlight_request_timeouts_total", "stage" => "write").increment(1);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// What is left to do while nothing can be read: ends the stream once it has taken too long.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.scan.mid_head() {
            ready!(self.poll_deadline(self.head_since + self.patience.head, cx));
            counter!("podlight_request_timeouts_total", "stage" => "head").increment(1);
            if !self.connection.is_idle() {
                // An answer is under way; another one must not go between.
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.refusal = Some(slow_head_answer());
            return self.poll_refuse(cx);
        }
        if self.connection.is_idle() {
            ready!(self.poll_deadline(self.read_at + self.patience.idle, cx));
            return Poll::Ready(Ok(()));
        }
        // A request is under way: it has its own deadlines. Look again when it may be over.
        let look = Instant::now() + self.patience.idle;
        self.poll_deadline(look, cx).map(Ok)
    }

    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.refusal.as_mut().filter(|rest| !rest.is_empty()) {
            let polled = Pin::new(&mut self.stream).poll_write(cx, rest);
            let polled = match polled {
                Poll::Ready(Ok(written)) => {
                    rest.drain(..written);
                    continue;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            };
            return self.watch_write(polled, cx);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

fn slow_head_answer() -> Vec<u8> {
    let problem =
        Problem { err: ErrorCode::Timeout, description: "the request's headers did not arrive in time".to_owned() };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refusal.is_some() {
            return this.poll_refuse(cx);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Ready(result) => {
                this.took(&buffer.filled()[before..]);
                Poll::Ready(result)
            }
            Poll::Pending => this.poll_overdue(cx),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch_write(polled, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bytes);
        this.watch_write(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.watch_write(polled, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.watch_write(polled, cx)
    }
}
