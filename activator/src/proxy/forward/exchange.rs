//! One request and the head of its answer on one connection, and what may be done when that fails.

use std::error::Error as _;

use futures::future::Either;
use http::header::EXPECT;
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;

use super::meters::Retry;
use super::outgoing::{Keeper, Outgoing};
use super::{Plan, Worker};
use crate::proxy::fault::Fault;
use crate::proxy::headers;
use crate::proxy::upstream::Link;

/// Why a backend did not answer a request.
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// What the request would be sent again for; none where that would not help.
    pub(super) retry: Option<Retry>,
}

/// An exchange that ended before an answer began.
pub(super) struct Lost {
    pub(super) fault: Fault,
    /// The backend says that it did nothing for it.
    pub(super) unprocessed: bool,
}

type Begun = (Response<Incoming>, Option<Keeper>);

/// A request without its body, as it was before it was sent.
pub(super) struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    version: http::Version,
}

impl Head {
    /// None when there is a body, which is not kept.
    pub(super) fn of(request: &Request<Outgoing>) -> Option<Self> {
        request.body().is_empty().then(|| Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
            version: request.version(),
        })
    }

    pub(super) fn request(self) -> Request<Outgoing> {
        let mut request = Request::new(Outgoing::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        *request.version_mut() = self.version;
        request
    }
}

/// Whether a request may be sent twice: to do so does what sending it once does (RFC 9110 §9.2.2), and all of it is
/// there.
pub(super) fn is_resendable(request: &Request<Outgoing>) -> bool {
    request.method().is_idempotent() && request.body().is_empty()
}

impl Worker {
    /// Sends a request and waits for the head of its answer. The request is there again if none of it was sent.
    pub(super) async fn exchange(
        &self,
        link: &mut Link,
        request: &mut Option<Request<Outgoing>>,
        plan: &Plan,
    ) -> Result<Begun, Lost> {
        let Some(patience) = self.response_timeout else { return send(link, request, plan).await };
        let timed_out = |_| Err(Lost { fault: Fault::ResponseTimeout, unprocessed: false });
        tokio::time::timeout(patience, Box::pin(send(link, request, plan))).await.unwrap_or_else(timed_out)
    }
}

async fn send(link: &mut Link, unsent: &mut Option<Request<Outgoing>>, plan: &Plan) -> Result<Begun, Lost> {
    let Some(mut request) = unsent.take() else { return Err(Lost { fault: Fault::Reset, unprocessed: false }) };
    let (answer, keeper) = match link {
        Link::Http1(link) => {
            headers::into_http1(&mut request);
            let keeper = if plan.expects { Outgoing::gate(&mut request) } else { None };
            (Either::Left(link.sender.try_send_request(request)), keeper)
        }
        Link::Http2(link) => {
            headers::into_http2(&mut request, if link.is_tls() { Scheme::HTTPS } else { Scheme::HTTP });
            request.headers_mut().remove(EXPECT);
            (Either::Right(link.sender.try_send_request(request)), None)
        }
    };
    match answer.await {
        Ok(response) => Ok((response, keeper.and_then(Keeper::answered))),
        Err(mut error) => {
            *unsent = error.take_message();
            Err(lost(&error.into_error()))
        }
    }
}

fn lost(error: &hyper::Error) -> Lost {
    let fault = if error.is_user() {
        Fault::Body
    } else if error.is_parse() {
        Fault::Protocol
    } else {
        Fault::Reset
    };
    Lost { fault, unprocessed: was_unprocessed(error) }
}

/// Whether a backend said that it had not begun with a request (RFC 9113 §8.7). A stream learns of `GOAWAY` only when
/// it is beyond the last one that the backend will look at.
fn was_unprocessed(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    let says_so = |error: &h2::Error| error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM);
    h2.is_some_and(|error| error.is_remote() && says_so(error))
}
