//! One line of the access log for each request, when it is on.

use std::time::Instant;

use http::{Method, Request, Response, Uri, header};

use crate::proxy::fault::PODLIGHT_ERROR;

/// What is kept of a request until its answer begins.
pub(super) struct Entry {
    method: Method,
    uri: Uri,
    host: Option<header::HeaderValue>,
    begun: Instant,
}

impl Entry {
    pub(super) fn new<B>(request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: request.headers().get(header::HOST).cloned(),
            begun: Instant::now(),
        }
    }

    /// Writes it. A query may hold secrets and stays out.
    pub(super) fn write<B>(self, response: &Response<B>) {
        let authority = self.uri.authority().map(http::uri::Authority::as_str);
        let host = authority.or_else(|| self.host.as_ref()?.to_str().ok()).unwrap_or_default();
        let fault = response.headers().get(PODLIGHT_ERROR).and_then(|label| label.to_str().ok());
        tracing::info!(
            method = %self.method,
            host,
            path = self.uri.path(),
            status = response.status().as_u16(),
            fault,
            seconds = self.begun.elapsed().as_secs_f64(),
            "request"
        );
    }
}
