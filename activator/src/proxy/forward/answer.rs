//! The body of an answer. While it streams, the request has its place on the backend; at its end the connection goes
//! back to the pool, and only then: one whose answer was cut short may have the rest of it still to come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::Worker;
use super::outgoing::Keeper;
use crate::proxy::target::Lease;
use crate::proxy::upstream::Link;
use crate::server::connections::InFlight;

/// The connection that an answer comes on.
pub(super) struct Carrier {
    /// As one of HTTP/2 it counts as one of the connection's requests until it is dropped.
    pub(super) link: Link,
    /// Whoever has the request's body wait, where it was not asked for: then the connection is not used again.
    pub(super) keeper: Option<Keeper>,
}

impl Carrier {
    pub(super) fn is_http1(&self) -> bool {
        matches!(self.link, Link::Http1(_))
    }
}

/// What an answer needs until its end.
struct Used {
    worker: Arc<Worker>,
    lease: Lease,
    carrier: Carrier,
}

enum Source {
    Whole(Bytes),
    Streamed(Incoming),
}

/// The body of an answer.
pub(in crate::proxy) struct Answer {
    source: Source,
    used: Option<Box<Used>>,
    in_flight: Option<InFlight>,
}

impl Answer {
    /// One of our own.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self { source: Source::Whole(bytes), used: None, in_flight: None }
    }

    /// A pod's.
    pub(super) fn streamed(body: Incoming, worker: &Arc<Worker>, lease: Lease, carrier: Carrier) -> Self {
        let used = Some(Box::new(Used { worker: Arc::clone(worker), lease, carrier }));
        Self { source: Source::Streamed(body), used, in_flight: None }
    }

    /// The connection to the client is busy for as long.
    pub(super) fn during(mut self, in_flight: InFlight) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    /// All of it has come.
    fn finish(&mut self) {
        let Some(used) = self.used.take() else { return };
        let Used { worker, lease, carrier } = *used;
        if let Carrier { link: Link::Http1(link), keeper: None } = carrier {
            worker.give_back(&lease, link);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let body = match &mut self.source {
            Source::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            Source::Whole(bytes) => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Streamed(body) => body,
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        match &frame {
            Some(Err(_)) => self.used = None,
            Some(Ok(_)) if !body.is_end_stream() => {}
            Some(Ok(_)) | None => self.finish(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Streamed(body) => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.finish();
        }
    }
}
