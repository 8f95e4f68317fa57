//! The body of a request on its way to a pod. Where the client waits to be told to send it, it is not read before the
//! pod says so: reading is what has hyper tell the client.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use http::{Request, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::proxy::listener::{READ_BUFFER, STREAM_WINDOW};

/// How long a pod may take to say whether it wants the body; then it is sent anyway (RFC 9110 §10.1.1).
const UNDECIDED_FOR: Duration = Duration::from_secs(1);

/// Nothing has been said yet.
const WAITING: u8 = 0;
/// The pod wants the body.
const OPEN: u8 = 1;
/// The pod answers without the body.
const ANSWERED: u8 = 2;
/// The answer is over, and with it the connection.
const OVER: u8 = 3;

/// Why a body ends early.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum BodyError {
    #[error("the client's connection failed")]
    Client(#[from] hyper::Error),
    #[error("the pod has answered without the body")]
    Unwanted,
}

/// The body of a request on its way to a pod.
#[derive(Debug)]
pub(in crate::proxy) enum Outgoing {
    Empty,
    Body(Incoming),
    Gated(Box<Gated>),
}

/// A body behind a gate.
#[derive(Debug)]
pub(in crate::proxy) struct Gated {
    body: Incoming,
    gate: Arc<Gate>,
    patience: Pin<Box<Sleep>>,
}

#[derive(Debug, Default)]
struct Gate {
    state: AtomicU8,
    waker: AtomicWaker,
}

impl Gate {
    /// Moves on from one state to another; false when it was not in it.
    fn pass(&self, from: u8, to: u8) -> bool {
        let passed = self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok();
        self.waker.wake();
        passed
    }
}

/// Whoever knows what the pod says.
pub(super) struct Keeper(Arc<Gate>);

impl Keeper {
    /// The answer has come. None when the body is on its way: then the connection goes on as any other.
    pub(super) fn answered(self) -> Option<Self> {
        (self.0.pass(WAITING, ANSWERED) || self.0.state.load(Ordering::Acquire) != OPEN).then_some(self)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.pass(ANSWERED, OVER);
    }
}

impl Outgoing {
    pub(super) fn new(body: Incoming) -> Self {
        if body.is_end_stream() { Self::Empty } else { Self::Body(body) }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// How many bytes of it may be in memory although nobody has read any: what the client may send unasked.
    pub(super) fn ahead(&self, version: Version) -> u32 {
        let most = if version == Version::HTTP_2 { STREAM_WINDOW } else { READ_BUFFER as u32 };
        let length = self.size_hint().upper().unwrap_or(u64::MAX);
        u32::try_from(length).map_or(most, |length| length.min(most))
    }

    /// Has a request's body wait for the pod's `100 Continue`.
    pub(super) fn gate(request: &mut Request<Self>) -> Option<Keeper> {
        let body = match std::mem::replace(request.body_mut(), Self::Empty) {
            Self::Empty => return None,
            Self::Body(body) => body,
            Self::Gated(gated) => gated.body,
        };
        let gate = Arc::<Gate>::default();
        let opened = Arc::clone(&gate);
        hyper::ext::on_informational(request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                opened.pass(WAITING, OPEN);
            }
        });
        let keeper = Keeper(Arc::clone(&gate));
        *request.body_mut() = Self::Gated(Box::new(Gated { body, gate, patience: Box::pin(sleep(UNDECIDED_FOR)) }));
        Some(keeper)
    }
}

impl Gated {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.gate.waker.register(cx.waker());
        if self.gate.state.load(Ordering::Acquire) == WAITING && self.patience.as_mut().poll(cx).is_ready() {
            self.gate.pass(WAITING, OPEN);
        }
        match self.gate.state.load(Ordering::Acquire) {
            OPEN => Pin::new(&mut self.body).poll_frame(cx).map_err(BodyError::Client),
            OVER => Poll::Ready(Some(Err(BodyError::Unwanted))),
            _ => Poll::Pending,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Body(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Client),
            Self::Gated(gated) => gated.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Body(body) => body.is_end_stream(),
            Self::Gated(gated) => gated.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Body(body) => body.size_hint(),
            Self::Gated(gated) => gated.body.size_hint(),
        }
    }
}
