//! One request and the head of its answer on one connection, and what may be done when that fails.

use std::error::Error as _;

use http::header::EXPECT;
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::answer::Carrier;
use super::meters::Retry;
use super::outgoing::Outgoing;
use super::{Plan, Worker};
use crate::proxy::fault::Fault;
use crate::proxy::headers;
use crate::proxy::upstream::{Http1, Http2, Link};

/// Why a backend did not answer a request.
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// The request, where it may be sent to another one.
    pub(super) again: Option<Box<Request<Outgoing>>>,
    /// What it would be sent again for.
    pub(super) retry: Retry,
}

impl Failure {
    pub(super) fn new(fault: Fault, again: Option<Request<Outgoing>>, retry: Retry) -> Self {
        Self { fault, again: again.map(Box::new), retry }
    }
}

/// An exchange that ended before an answer began.
pub(super) struct Lost {
    pub(super) fault: Fault,
    /// The request, where none of it was sent.
    pub(super) unsent: Option<Request<Outgoing>>,
    /// The backend says that it did nothing for it.
    pub(super) unprocessed: bool,
}

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
    /// Sends a request and waits for the head of its answer.
    pub(super) async fn exchange(
        &self,
        link: Link,
        request: Request<Outgoing>,
        plan: &Plan,
    ) -> Result<(Response<Incoming>, Carrier), Lost> {
        let exchange = async {
            match link {
                Link::Http1(link) => over_http1(link, request, plan).await,
                Link::Http2(link) => over_http2(link, request).await,
            }
        };
        let Some(patience) = self.response_timeout else { return exchange.await };
        match tokio::time::timeout(patience, exchange).await {
            Ok(ended) => ended,
            Err(_) => Err(Lost { fault: Fault::ResponseTimeout, unsent: None, unprocessed: false }),
        }
    }
}

async fn over_http1(
    mut link: Http1,
    mut request: Request<Outgoing>,
    plan: &Plan,
) -> Result<(Response<Incoming>, Carrier), Lost> {
    headers::into_http1(&mut request);
    let keeper = if plan.expects { Outgoing::gate(&mut request) } else { None };
    match link.sender.try_send_request(request).await {
        Ok(response) => Ok((response, Carrier::Http1(link, keeper.and_then(super::outgoing::Keeper::answered)))),
        Err(error) => Err(lost(error)),
    }
}

async fn over_http2(mut link: Http2, mut request: Request<Outgoing>) -> Result<(Response<Incoming>, Carrier), Lost> {
    let scheme = if link.is_tls() { Scheme::HTTPS } else { Scheme::HTTP };
    headers::into_http2(&mut request, scheme);
    request.headers_mut().remove(EXPECT);
    match link.sender.try_send_request(request).await {
        Ok(response) => Ok((response, Carrier::Http2(link))),
        Err(error) => Err(lost(error)),
    }
}

fn lost(mut error: TrySendError<Request<Outgoing>>) -> Lost {
    let unsent = error.take_message();
    let error = error.into_error();
    let fault = if error.is_user() {
        Fault::Body
    } else if error.is_parse() {
        Fault::Protocol
    } else {
        Fault::Reset
    };
    Lost { fault, unsent, unprocessed: was_unprocessed(&error) }
}

/// Whether a backend said that it had not begun with a request (RFC 9113 §8.7).
fn was_unprocessed(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
}
