//! Answers that are written while they are read: a task makes the pieces, a short queue holds them, and a reader
//! that takes none for too long is given up. What one reader can make the process hold is therefore bounded.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Pieces that wait for a reader; each is at most about [`PIECE_BYTES`].
const PIECES: usize = 4;

/// When a piece is large enough to be sent.
pub(crate) const PIECE_BYTES: usize = 32 * 1024;

/// How long a reader may take no piece.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an answer ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    /// The reader takes nothing.
    #[error("the reader takes nothing")]
    Stalled,
    /// The reader is so far behind that the changes it needs are gone.
    #[error("the reader is too far behind")]
    Lagged,
    /// The reader has gone.
    #[error("the reader has gone")]
    Left,
}

impl Cut {
    /// As in metric labels.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Lagged => "lagged",
            Self::Left => "left",
        }
    }
}

/// The writing end of an answer. The answer ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Pieces {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

/// Both ends of an answer. The permit is held until hyper lets go of the body.
pub(crate) fn answer(permit: OwnedSemaphorePermit) -> (Pieces, Body) {
    let (sender, mut receiver) = mpsc::channel(PIECES);
    let pieces = futures::stream::poll_fn(move |cx| {
        let _held = &permit;
        receiver.poll_recv(cx).map(|piece| piece.map(Ok::<_, Infallible>))
    });
    (Pieces { sender, buffer: Vec::new() }, Body::from_stream(pieces))
}

impl Pieces {
    /// Where to write; goes out at the next [`Pieces::pace`] or [`Pieces::flush`].
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Sends what is written if it is enough for a piece.
    ///
    /// # Errors
    /// [`Cut::Stalled`], [`Cut::Left`].
    pub(crate) async fn pace(&mut self) -> Result<(), Cut> {
        if self.buffer.len() < PIECE_BYTES { Ok(()) } else { self.flush().await }
    }

    /// Sends what is written.
    ///
    /// # Errors
    /// [`Cut::Stalled`], [`Cut::Left`].
    pub(crate) async fn flush(&mut self) -> Result<(), Cut> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        self.send(piece).await
    }

    /// Sends what is written, and then bytes that others send too: not copied, a piece at a time.
    ///
    /// # Errors
    /// [`Cut::Stalled`], [`Cut::Left`].
    pub(crate) async fn share(&mut self, bytes: &Bytes) -> Result<(), Cut> {
        self.flush().await?;
        for start in (0..bytes.len()).step_by(PIECE_BYTES) {
            self.send(bytes.slice(start..bytes.len().min(start + PIECE_BYTES))).await?;
        }
        Ok(())
    }

    async fn send(&self, piece: Bytes) -> Result<(), Cut> {
        match tokio::time::timeout(PATIENCE, self.sender.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Cut::Left),
            Err(_) => Err(Cut::Stalled),
        }
    }

    /// Returns when the reader has gone.
    pub(crate) async fn left(&self) {
        self.sender.closed().await;
    }
}
