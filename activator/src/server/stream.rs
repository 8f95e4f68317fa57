//! A connection's bytes under deadlines. hyper's own header timeout also closes kept connections that merely
//! rest, and closes slow ones without an answer; here a head that has begun must end in time, else it is answered 408, while a
//! connection between requests may rest for long, and a peer that does not read is let go. What is read is shown to a
//! [`Scan`] first, which may refuse it before HTTP sees any of it.

use std::future::{Future as _, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use metrics::counter;
use podlight_proto::{ErrorCode, Problem};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::connections::Connection;
use super::head::HeadScan;

/// How long a connection may take for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From a head's first byte to its last.
    pub(crate) head: Duration,
    /// Between requests.
    pub(crate) idle: Duration,
    /// Until the peer takes some of what was written.
    pub(crate) write: Duration,
}

/// After an answer that refuses, this much more is read and thrown away, for no longer than this: closing with
/// something unread would reset the connection and might destroy the answer on its way.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(2);

/// What an HTTP/2 connection begins with.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is read at once while a connection rests: usually a whole request.
const FIRST_BYTES: usize = 4096;

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// Looks at what is read before HTTP does.
pub(crate) trait Scan {
    /// Takes the next bytes. How many of them HTTP may see now; the rest is kept, and given again when HTTP asks for
    /// more.
    fn take(&mut self, bytes: &[u8]) -> usize;

    /// Whether a head has begun and not ended.
    fn mid_head(&self) -> bool;

    /// How many heads have ended.
    fn heads(&self) -> u64;

    /// Whether the next byte begins a request of HTTP/1. A scan that cannot tell says no.
    fn between_requests(&self) -> bool {
        false
    }

    /// The answer to a request that is refused; nothing is read behind it.
    fn refusal(&self) -> Option<Vec<u8>>;

    /// Whether what is refused is the body of the request under way.
    fn body_broke(&self) -> bool;

    /// The answer to a head that comes too slowly.
    fn too_slow(&self) -> Vec<u8>;
}

/// Tells the connection of a head that has both kinds of length.
#[derive(Debug)]
pub(crate) struct Conflicts {
    scan: HeadScan,
    connection: Arc<Connection>,
}

impl Conflicts {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self { scan: HeadScan::new(), connection }
    }
}

impl Scan for Conflicts {
    fn take(&mut self, bytes: &[u8]) -> usize {
        if self.scan.take(bytes) {
            self.connection.conflicting.store(true, Ordering::Release);
        }
        bytes.len()
    }

    fn mid_head(&self) -> bool {
        self.scan.mid_head()
    }

    fn heads(&self) -> u64 {
        self.scan.heads()
    }

    fn between_requests(&self) -> bool {
        self.scan.between_requests()
    }

    fn refusal(&self) -> Option<Vec<u8>> {
        None
    }

    fn body_broke(&self) -> bool {
        false
    }

    fn too_slow(&self) -> Vec<u8> {
        slow_head_answer()
    }
}

/// The last words to a peer.
struct Refusal {
    answer: Vec<u8>,
    written: usize,
    /// Since when what the peer still sends is thrown away, and how much has been.
    lingers: Option<(Instant, usize)>,
}

/// A stream that keeps to its [`Patience`].
pub(crate) struct Watched<S, G> {
    stream: S,
    connection: Arc<Connection>,
    patience: Patience,
    scan: G,
    /// Read, and not yet for HTTP to see.
    ahead: Vec<u8>,
    /// Read and scanned, for HTTP to see next.
    seen: Bytes,
    head_since: Instant,
    read_at: Instant,
    stalled_since: Option<Instant>,
    /// Wakes the connection's task; may go off early, never late.
    timer: Pin<Box<Sleep>>,
    refusal: Option<Refusal>,
}

impl<S, G: Scan> Watched<S, G> {
    pub(crate) fn new(stream: S, scan: G, connection: Arc<Connection>, patience: Patience) -> Self {
        let now = Instant::now();
        Self {
            stream,
            connection,
            patience,
            scan,
            ahead: Vec::new(),
            seen: Bytes::new(),
            head_since: now,
            read_at: now,
            stalled_since: None,
            timer: Box::pin(sleep_until(now + patience.idle)),
            refusal: None,
        }
    }

    /// The same, with bytes that have been read already.
    pub(crate) fn with_ahead(self, ahead: Vec<u8>) -> Self {
        Self { ahead, ..self }
    }

    /// The same, with bytes that HTTP has given back.
    pub(crate) fn with_seen(self, seen: Bytes) -> Self {
        Self { seen, ..self }
    }

    /// Which version the bytes that HTTP is to see are of; none while they may be of either.
    pub(crate) fn version(&self) -> Option<Version> {
        if self.seen.starts_with(HTTP2_PREFACE) {
            return Some(Version::Http2);
        }
        (!HTTP2_PREFACE.starts_with(&self.seen)).then_some(Version::Http1)
    }

    /// How many of the bytes just read may go on.
    fn took(&mut self, bytes: &[u8]) -> usize {
        let (mid_head, heads) = (self.scan.mid_head(), self.scan.heads());
        let passed = self.scan.take(bytes);
        self.read_at = Instant::now();
        if !mid_head || heads != self.scan.heads() {
            self.head_since = self.read_at;
        }
        passed
    }

    fn refuse(&mut self, answer: Vec<u8>) {
        self.refusal = Some(Refusal { answer, written: 0, lingers: None });
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
            if self.stalled_since.take().is_some() {
                self.connection.stalled.store(false, Ordering::Release);
            }
            return polled;
        }
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        self.connection.stalled.store(true, Ordering::Release);
        ready!(self.poll_deadline(since + self.patience.write, cx));
        counter!("podlight_request_timeouts_total", "stage" => "write").increment(1);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, G: Scan> Watched<S, G> {
    /// What is left to do while nothing can be read: ends the stream once it has taken too long.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.scan.mid_head() {
            ready!(self.poll_deadline(self.head_since + self.patience.head, cx));
            counter!("podlight_request_timeouts_total", "stage" => "head").increment(1);
            if !self.connection.is_idle() {
                // An answer is under way; another one must not go between.
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.refuse(self.scan.too_slow());
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

    /// Writes the last answer, ends the writing side, and lets the peer finish what it is sending.
    fn poll_refuse(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(mut refusal) = self.refusal.take() else { return Poll::Ready(Ok(())) };
        let polled = self.poll_refuse_with(&mut refusal, cx);
        self.refusal = Some(refusal);
        polled
    }

    fn poll_refuse_with(&mut self, refusal: &mut Refusal, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while refusal.written < refusal.answer.len() {
            let polled = Pin::new(&mut self.stream).poll_write(cx, &refusal.answer[refusal.written..]);
            refusal.written += ready!(self.watch_write(polled, cx))?;
        }
        if refusal.lingers.is_none() {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        let (since, thrown) = refusal.lingers.get_or_insert_with(|| (Instant::now(), 0));
        let mut waste = [MaybeUninit::uninit(); 4096];
        loop {
            let mut waste = ReadBuf::uninit(&mut waste);
            match Pin::new(&mut self.stream).poll_read(cx, &mut waste) {
                Poll::Ready(Ok(())) if !waste.filled().is_empty() && *thrown < LINGER_BYTES => {
                    *thrown += waste.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.poll_deadline(*since + LINGER, cx).map(Ok),
            }
        }
    }

    /// Hands on what was read ahead, as far as it may be seen.
    fn take_ahead(&mut self, buffer: &mut ReadBuf<'_>) {
        let ahead = std::mem::take(&mut self.ahead);
        let offered = &ahead[..ahead.len().min(buffer.remaining())];
        let passed = self.took(offered);
        buffer.put_slice(&offered[..passed]);
        if passed < ahead.len() {
            self.ahead = ahead[passed..].to_vec();
        }
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

impl<S: AsyncRead + AsyncWrite + Unpin, G: Scan> Watched<S, G> {
    /// Waits for the next request to begin, and keeps what has come of it for HTTP. False when none comes: the peer
    /// has gone, rests for too long, or begins too slowly.
    pub(crate) async fn begun(&mut self) -> bool {
        let bytes = poll_fn(|cx| {
            let mut bytes = [MaybeUninit::uninit(); FIRST_BYTES];
            let mut buffer = ReadBuf::uninit(&mut bytes);
            ready!(self.poll_unseen(cx, &mut buffer))?;
            Poll::Ready(io::Result::Ok(Bytes::copy_from_slice(buffer.filled())))
        });
        let bytes = bytes.await.unwrap_or_default();
        let begun = !bytes.is_empty();
        if self.seen.is_empty() {
            self.seen = bytes;
        } else {
            let mut joined = BytesMut::from(std::mem::take(&mut self.seen));
            joined.extend_from_slice(&bytes);
            self.seen = joined.freeze();
        }
        begun
    }

    /// Reads what HTTP has not seen and the scan lets through.
    fn poll_unseen(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.refusal.is_some() {
            return self.poll_refuse(cx);
        }
        let before = buffer.filled().len();
        if !self.ahead.is_empty() {
            self.take_ahead(buffer);
        } else if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            result?;
            let read = &buffer.filled()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let passed = self.took(read);
            if passed < read.len() {
                self.ahead = read[passed..].to_vec();
                buffer.set_filled(before + passed);
            }
        } else {
            return self.poll_overdue(cx);
        }
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        match self.scan.refusal() {
            Some(answer) if self.connection.is_idle() => {
                self.refuse(answer);
                self.poll_refuse(cx)
            }
            Some(_) if self.scan.body_broke() => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            // HTTP asks again once the request before has been answered.
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, G: Scan + Unpin> AsyncRead for Watched<S, G> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.is_empty() {
            let polled = this.poll_unseen(cx, buffer);
            let resting = polled.is_pending() && this.scan.between_requests() && this.refusal.is_none();
            this.connection.resting.store(resting, Ordering::Release);
            return polled;
        }
        let next = this.seen.split_to(this.seen.len().min(buffer.remaining()));
        buffer.put_slice(&next);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, G: Scan + Unpin> AsyncWrite for Watched<S, G> {
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
