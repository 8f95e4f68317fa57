//! Room for one worker's connections to backends: each takes a descriptor for as long as it is open, tunnels included.
//! When there is none left, idle connections make room; whoever still finds none in time is told so.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::{Counter, counter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// How often idle connections are asked to make room while somebody waits for it.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Room for connections.
#[derive(Debug)]
pub(in crate::proxy) struct Slots {
    free: Arc<Semaphore>,
    tight: Notify,
    full: Counter,
}

/// Room for one connection.
#[derive(Debug)]
pub(in crate::proxy) struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// Room for so many.
    pub(in crate::proxy) fn new(most: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)));
        let full = counter!("podlight_proxy_upstream_full_total");
        Arc::new(Self { free, tight: Notify::new(), full })
    }

    /// Room for one more, if need be once another one makes it. None when none does in time.
    pub(super) async fn take(&self, patience: Duration) -> Option<Slot> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(Slot { _permit: permit });
        }
        self.full.increment(1);
        let deadline = Instant::now() + patience;
        let free = Arc::clone(&self.free).acquire_owned();
        tokio::pin!(free);
        while Instant::now() < deadline {
            self.tight.notify_one();
            if let Ok(permit) = timeout_at(deadline.min(Instant::now() + ASK_EVERY), &mut free).await {
                return permit.ok().map(|permit| Slot { _permit: permit });
            }
        }
        None
    }

    /// Returns once idle connections are to make room.
    pub(in crate::proxy) async fn tight(&self) {
        self.tight.notified().await;
    }
}

/// A connection with its slot.
#[derive(Debug)]
pub(super) struct Slotted {
    stream: TcpStream,
    _slot: Slot,
}

impl Slotted {
    pub(super) fn new(stream: TcpStream, slot: Slot) -> Self {
        Self { stream, _slot: slot }
    }
}

impl AsyncRead for Slotted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Slotted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
