//! Everything that keeps a request from being answered by a pod, and what its sender is told: a status, a label in
//! `Podlight-Error`, one line of text, and for gRPC a status of its own. The only place that words these answers.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::route::RouteError;
use super::target::Refusal;

/// The header that says which failure an answer of ours is about.
pub const PODLIGHT_ERROR: HeaderName = HeaderName::from_static("podlight-error");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Seconds after which a request that found the queue full may come again.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// Why a request was not answered by a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The framing or the headers of the request are not what HTTP says.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The request's head is larger than anything legitimate.
    #[error("the request's headers are larger than {0} bytes")]
    TooLarge(usize),
    /// The request's head has more lines than anything legitimate.
    #[error("the request has more than {0} headers")]
    TooMany(usize),
    /// The request's head did not arrive in time.
    #[error("the request's headers did not arrive in time")]
    SlowHead,
    /// There is no usable `Host`.
    #[error("the request has no usable Host: {0}")]
    Host(&'static str),
    /// `CONNECT`: this is no forward proxy.
    #[error("CONNECT is not served")]
    Connect,
    /// The cluster has not been listed yet.
    #[error("the cluster has not been listed yet")]
    NotListed,
    /// No Service has this host.
    #[error("no Service takes requests for {0}")]
    Unknown(String),
    /// A Service has this host, but cannot be sent requests.
    #[error("{0}")]
    Unusable(String),
    /// As many requests are held as may be.
    #[error("too many requests wait for a ready pod")]
    Full,
    /// No pod was ready in time.
    #[error("no pod was ready in time")]
    Deadline,
    /// The target could not be woken up.
    #[error("the target cannot be scaled up: {0}")]
    Scale(Arc<str>),
    /// The target went away while the request was held.
    #[error("the Service went away")]
    Gone,
    /// This process ends.
    #[error("the proxy is shutting down")]
    ShuttingDown,
    /// No connection to a pod could be made.
    #[error("cannot connect to a pod of the Service")]
    Refused,
    /// There are as many connections to pods as there may be.
    #[error("too many connections to pods are open")]
    TooManyConnections,
    /// No connection to a pod was made in time.
    #[error("connecting to a pod of the Service took too long")]
    ConnectTimeout,
    /// The pod's certificate was not accepted, or TLS failed otherwise.
    #[error("no TLS connection to a pod of the Service: {0}")]
    Tls(String),
    /// The pod closed the connection instead of answering.
    #[error("the connection to the pod ended before it answered")]
    Reset,
    /// What the pod answered is no HTTP.
    #[error("the pod's answer cannot be understood")]
    Protocol,
    /// The request's body broke off.
    #[error("the request's body ended early")]
    Body,
    /// The pod did not answer in time.
    #[error("the pod did not answer in time")]
    ResponseTimeout,
}

impl Fault {
    /// As in metrics and in `Podlight-Error`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::TooLarge(_) | Self::TooMany(_) => "headers-too-large",
            Self::SlowHead => "headers-timeout",
            Self::Host(_) => "host",
            Self::Connect => "connect-method",
            Self::NotListed => "not-listed",
            Self::Unknown(_) => "unknown-host",
            Self::Unusable(_) => "unusable-target",
            Self::Full => "queue-full",
            Self::Deadline => "hold-timeout",
            Self::Scale(_) => "scale",
            Self::Gone => "target-gone",
            Self::ShuttingDown => "shutting-down",
            Self::Refused => "connect",
            Self::TooManyConnections => "connections",
            Self::ConnectTimeout => "connect-timeout",
            Self::Tls(_) => "tls",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::Body => "body",
            Self::ResponseTimeout => "response-timeout",
        }
    }

    /// The status of the answer.
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Host(_) | Self::Body => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) | Self::TooMany(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::SlowHead => StatusCode::REQUEST_TIMEOUT,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::NotListed
            | Self::Full
            | Self::Scale(_)
            | Self::Gone
            | Self::ShuttingDown
            | Self::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unusable(_) | Self::Refused | Self::Tls(_) | Self::Reset | Self::Protocol => StatusCode::BAD_GATEWAY,
            Self::Deadline | Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The status of the answer in gRPC (its `doc/statuscodes.md` and `doc/http-grpc-status-mapping.md`).
    pub const fn grpc_status(&self) -> u8 {
        /// Codes of gRPC.
        const DEADLINE_EXCEEDED: u8 = 4;
        const UNIMPLEMENTED: u8 = 12;
        const INTERNAL: u8 = 13;
        const UNAVAILABLE: u8 = 14;
        match self {
            Self::Unknown(_) => UNIMPLEMENTED,
            Self::Deadline | Self::ResponseTimeout => DEADLINE_EXCEEDED,
            Self::Malformed(_)
            | Self::TooLarge(_)
            | Self::TooMany(_)
            | Self::SlowHead
            | Self::Host(_)
            | Self::Connect
            | Self::Body => INTERNAL,
            Self::NotListed
            | Self::Unusable(_)
            | Self::Full
            | Self::Scale(_)
            | Self::Gone
            | Self::ShuttingDown
            | Self::Refused
            | Self::TooManyConnections
            | Self::ConnectTimeout
            | Self::Tls(_)
            | Self::Reset
            | Self::Protocol => UNAVAILABLE,
        }
    }

    /// Whether the connection is to be closed behind the answer, because where the next request begins is unknown.
    const fn closes(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::TooLarge(_) | Self::TooMany(_) | Self::SlowHead)
    }

    /// The answer. For gRPC it has no body: its status is in the headers.
    pub fn response(&self, grpc: bool) -> Response<Bytes> {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(PODLIGHT_ERROR, HeaderValue::from_static(self.label()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        let (status, body) = if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(self.grpc_status())));
            if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.to_string())) {
                headers.insert(GRPC_MESSAGE, message);
            }
            (StatusCode::OK, Bytes::new())
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            (self.status(), Bytes::from(format!("{self}\n")))
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The answer as bytes, for a request that HTTP has not seen.
    pub(super) fn raw_response(&self) -> Vec<u8> {
        let (status, label, text) = (self.status(), self.label(), format!("{self}\n"));
        let close = if self.closes() { "connection: close\r\n" } else { "" };
        format!(
            "HTTP/1.1 {status}\r\npodlight-error: {label}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\n{close}\r\n{text}",
            text.len()
        )
        .into_bytes()
    }
}

/// The form of a `grpc-message`: bytes other than printable ASCII, and `%`, as hexadecimal.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | ..=0x1f | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            printable => encoded.push(char::from(printable)),
        }
    }
    encoded
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => Self::Full,
            Refusal::Deadline => Self::Deadline,
            Refusal::ScaleFailed(why) => Self::Scale(why),
            Refusal::Gone => Self::Gone,
            Refusal::ShuttingDown => Self::ShuttingDown,
        }
    }
}

impl From<RouteError> for Fault {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::Malformed => Self::Host("it is not a name with an optional port"),
            RouteError::NotListed => Self::NotListed,
            RouteError::Unknown(host) => Self::Unknown(host),
            unusable @ RouteError::Unusable(..) => Self::Unusable(unusable.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_when_to_come_again() {
        let response = Fault::Full.response(false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        assert_eq!(response.headers()[PODLIGHT_ERROR], "queue-full");
        assert_eq!(&response.body()[..], b"too many requests wait for a ready pod\n");
    }

    #[test]
    fn grpc_gets_its_own_status_and_no_body() {
        for (fault, status) in [(Fault::Refused, "14"), (Fault::Deadline, "4"), (Fault::Unknown("a".to_owned()), "12")]
        {
            let response = fault.response(true);
            assert_eq!((response.status().as_u16(), response.body().len()), (200, 0));
            assert_eq!(response.headers()[GRPC_STATUS], status);
        }
    }

    #[test]
    fn a_grpc_message_is_printable_ascii() {
        let response = Fault::Unknown("bücher 100%\n".to_owned()).response(true);
        let message = response.headers()[GRPC_MESSAGE].to_str().expect("ASCII");
        assert!(message.ends_with("b%C3%BCcher 100%25%0A"), "{message}");
    }

    #[test]
    fn an_answer_before_http_is_whole_and_closes() {
        let answer = String::from_utf8(Fault::Malformed("obsolete line folding").raw_response()).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.ends_with("connection: close"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    }
}
