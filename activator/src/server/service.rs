//! From hyper's requests to the router and back: who asks goes in with the request, contradictory framing is
//! answered 400, and a connection counts as busy until its answer has been taken.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Request, Version, header};
use hyper::body::{Frame, Incoming, SizeHint};
use podlight_proto::ErrorCode;
use tower::ServiceExt as _;

use super::connections::{Connection, InFlight};
use super::{Peer, problem};

/// Answers the requests of one connection.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) router: Router,
    pub(super) connection: Arc<Connection>,
    pub(super) peer: SocketAddr,
}

impl Requests {
    pub(super) async fn answer(self, mut request: Request<Incoming>) -> Result<Response<Guarded>, Infallible> {
        let in_flight = self.connection.begin();
        let http1 = request.version() < Version::HTTP_2;
        let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
        if http1 && self.connection.conflicting.load(Ordering::Acquire) {
            let answer =
                problem(ErrorCode::InvalidRequest, "a request has Content-Length or Transfer-Encoding, not both");
            return Ok(Guarded::new(closing(answer), in_flight));
        }
        request.extensions_mut().insert(Peer(self.peer));
        let answer = match self.router.oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        };
        let answer = if http1 && chunked { closing(answer) } else { answer };
        Ok(Guarded::new(answer, in_flight))
    }
}

/// Has the connection closed behind an HTTP/1 answer.
fn closing(mut answer: Response) -> Response {
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// An answer's body. The request is over when hyper lets go of it.
pub(super) struct Guarded {
    body: Body,
    _in_flight: InFlight,
}

impl Guarded {
    fn new(answer: Response, in_flight: InFlight) -> Response<Self> {
        answer.map(|body| Self { body, _in_flight: in_flight })
    }
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
