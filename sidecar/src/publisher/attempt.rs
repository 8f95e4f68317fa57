//! One attempt to tell one replica one statement: signed anew, posted, its answer read within bounds and put into
//! the words that [`Delivery`](super::Delivery) knows.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use podlight_proto::{Accepted, EVENT_MEDIA_TYPE, EVENTS_PATH, Event, PodRef, Port, Problem, ShapeError, SigningKey};
use reqwest::{Response, Url};

use crate::announcer::wall_ms;
use crate::publisher::client::{Client, ClientError};
use crate::publisher::delivery::Reply;
use crate::publisher::replicas::{host_address, pinned_address};
use crate::readiness::Statement;
use crate::token::{Token, Tokens};

/// Longest body of a reply that is read: 64 URLs of peers fit several times over.
const MAX_REPLY_BYTES: usize = 16 * 1024;

/// Longest description that is repeated in a log, in bytes.
const MAX_DESCRIPTION_BYTES: usize = 300;

/// Whose statements these are.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The pod.
    pub pod: PodRef,
    /// Its revision label, or empty.
    pub revision: String,
    /// Its addresses. Empty when the downward API had none at the start: then the address that the way to the
    /// replica begins at is claimed.
    pub addresses: Vec<IpAddr>,
    /// Its declared ports.
    pub ports: Vec<Port>,
}

/// Why an attempt was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no reply in time")]
    Timeout(#[source] reqwest::Error),
    #[error("the activator cannot be reached")]
    Network(#[source] reqwest::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the event cannot be made")]
    Event(#[from] ShapeError),
    #[error("the activator wants a token: {0}")]
    TokenWanted(Words),
    #[error("refused with {0}: {1}")]
    Refused(StatusCode, Words),
    #[error("told to slow down: {1}")]
    RateLimited(Option<Duration>, Words),
    #[error("the activator failed with {0}: {2}")]
    Server(StatusCode, Option<Duration>, Words),
    #[error("an activator does not answer with {0}: is this its address?")]
    Unexpected(StatusCode),
    #[error("the reply is not an activator's: {0}")]
    Unreadable(&'static str),
}

/// What a problem says, fit for a log.
#[derive(Debug)]
pub(crate) struct Words(Option<Problem>);

impl std::fmt::Display for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(Problem { err, description }) = &self.0 else { return f.write_str("without a reason") };
        let end = description.floor_char_boundary(MAX_DESCRIPTION_BYTES);
        write!(f, "{err}, {}", description[..end].escape_default())
    }
}

impl Failure {
    /// What the delivery makes of it.
    pub(crate) fn reply(&self) -> Reply {
        match self {
            Self::TokenWanted(_) => Reply::TokenWanted,
            Self::Refused(..) | Self::Event(_) => Reply::Refused,
            Self::RateLimited(retry_after, _) | Self::Server(_, retry_after, _) => {
                Reply::TryAgain { retry_after: *retry_after }
            }
            Self::Timeout(_) | Self::Network(_) | Self::Client(_) | Self::Unexpected(_) | Self::Unreadable(_) => {
                Reply::TryAgain { retry_after: None }
            }
        }
    }

    /// Whether it passes by itself more often than not: a warning, not an error.
    pub(crate) fn is_warning(&self) -> bool {
        matches!(self, Self::Timeout(_) | Self::RateLimited(..))
    }

    /// The metric label.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Network(_) => "network",
            Self::Client(_) => "client",
            Self::Event(_) => "event",
            Self::TokenWanted(_) => "token_wanted",
            Self::Refused(..) => "refused",
            Self::RateLimited(..) => "rate_limited",
            Self::Server(..) => "server_error",
            Self::Unexpected(_) => "unexpected_status",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

/// Everything an attempt needs besides the statement.
pub(crate) struct Sender {
    pub(crate) identity: Identity,
    pub(crate) key: SigningKey,
    pub(crate) tokens: Tokens,
    pub(crate) client: Client,
}

impl Sender {
    /// Sends a statement and waits for the answer, at most for the client's time-out.
    pub(crate) async fn attempt(
        &self,
        replica: &Url,
        statement: Statement,
        with_token: bool,
    ) -> Result<Accepted, Failure> {
        let client = self.client.current()?;
        let now = wall_ms() / 1000;
        let token = self.tokens.current(now).filter(|_| with_token);
        let jws = self.key.sign(&self.event(replica, statement)?, now, token.as_deref().map(Token::as_str));
        let mut url = replica.clone();
        url.set_path(EVENTS_PATH);
        let mut request = client.post(url).header(CONTENT_TYPE, EVENT_MEDIA_TYPE).body(jws);
        if let Some(bearer) = token.as_deref().and_then(bearer) {
            request = request.header(AUTHORIZATION, bearer);
        }
        read(request.send().await.map_err(network)?).await
    }

    fn event(&self, replica: &Url, statement: Statement) -> Result<Event, ShapeError> {
        let Identity { pod, revision, addresses, ports } = self.identity.clone();
        let addresses = if addresses.is_empty() { source_address(replica).into_iter().collect() } else { addresses };
        let Statement { order, kind, ready, observed_at_ms } = statement;
        Event { pod, order, kind, revision, addresses, ports, ready, observed_at_ms }.normalized()
    }
}

fn bearer(token: &Token) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.as_str())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn network(error: reqwest::Error) -> Failure {
    if error.is_timeout() { Failure::Timeout(error) } else { Failure::Network(error) }
}

async fn read(mut response: Response) -> Result<Accepted, Failure> {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(network)? {
        if body.len() + chunk.len() > MAX_REPLY_BYTES {
            return Err(Failure::Unreadable("it is longer than 16 KiB"));
        }
        body.extend_from_slice(&chunk);
    }
    let words = || Words(serde_json::from_slice(&body).ok());
    Err(match status.as_u16() {
        202 => return serde_json::from_slice(&body).map_err(|_| Failure::Unreadable("202 without its body")),
        401 => Failure::TokenWanted(words()),
        400 | 403 | 413 | 415 => Failure::Refused(status, words()),
        429 => Failure::RateLimited(retry_after, words()),
        408 | 500..=599 => Failure::Server(status, retry_after, words()),
        _ => Failure::Unexpected(status),
    })
}

/// The address that packets to a replica leave from. Asking the kernel sends nothing.
fn source_address(replica: &Url) -> Option<IpAddr> {
    let host = replica.host_str().unwrap_or_default();
    // Any address outside the machine chooses the default route.
    let elsewhere = if host == "localhost" { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(192, 0, 2, 1) };
    let to = host_address(replica).or_else(|| pinned_address(host)).unwrap_or(elsewhere.into());
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, replica.port_or_known_default().unwrap_or(443))).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
