//! The one place that says what every failure of the pipeline is to the sender (status, words, Retry-After) and
//! to the operator (metric label, log level).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use metrics::counter;
use podlight_proto::{EVENT_MEDIA_TYPE, ErrorCode, EventError, MAX_EVENT_BYTES, Problem};
use tracing::{debug, warn};

use super::authenticate::AuthError;
use super::limits::Shed;
use super::ownership::OwnershipError;
use super::session::SessionError;

/// Shortest time between warnings of one process about its own trouble; what lies between is logged at debug.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// When a sender may try again after something that passes within moments.
const SOON_SECONDS: u64 = 1;

/// When a sender may try again while the Kubernetes side is not to be had.
const OUTAGE_SECONDS: u64 = 2;

/// When a sender may try again while there is no room for its session.
const FULL_SECONDS: u64 = 30;

/// Spread of `Retry-After`, so that those turned away together do not come back together.
const SPREAD_SECONDS: u64 = 3;

/// Why an event was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Content-Type must be {EVENT_MEDIA_TYPE}")]
    MediaType,
    #[error("an event has at most {MAX_EVENT_BYTES} bytes")]
    TooLarge,
    #[error("the body did not arrive within {} s", .0.as_secs_f64())]
    SlowBody(Duration),
    #[error("the body broke off")]
    BrokenBody,
    #[error("there must be one Authorization header at most")]
    Authorizations,
    #[error("Authorization must be \"Bearer\" and the pod's token")]
    NotBearer,
    #[error(transparent)]
    Event(#[from] EventError),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Shed(#[from] Shed),
    #[error("the activator has not yet seen the whole cluster")]
    NotSynced,
    #[error("the Kubernetes API does not answer, so no new key can be admitted")]
    Closed,
    #[error("the pod has been deleted")]
    Gone,
    #[error("the table has no room for another event now")]
    TableOverloaded,
    #[error("the event was lost inside the activator")]
    Lost,
}

impl Refusal {
    /// The word on the wire, from which the status follows.
    pub(super) fn code(&self) -> ErrorCode {
        match self {
            Self::MediaType => ErrorCode::UnsupportedMediaType,
            Self::TooLarge => ErrorCode::TooLarge,
            Self::SlowBody(_) => ErrorCode::Timeout,
            Self::BrokenBody | Self::Authorizations => ErrorCode::InvalidRequest,
            Self::NotBearer => ErrorCode::AuthenticationFailed,
            Self::Event(error) => error.code(),
            Self::Auth(error) if error.is_undecided() => ErrorCode::Pending,
            Self::Auth(_) => ErrorCode::AuthenticationFailed,
            Self::Ownership(error) if error.is_undecided() => ErrorCode::Pending,
            Self::Ownership(_) | Self::Gone | Self::Session(SessionError::OtherPod) => ErrorCode::AccessDenied,
            Self::Session(SessionError::Full) | Self::Shed(Shed::Rate(_) | Shed::SourceRate(_)) => {
                ErrorCode::RateLimited
            }
            Self::Session(SessionError::UnknownKey | SessionError::OtherKey | SessionError::BindingExpired) => {
                ErrorCode::AuthenticationFailed
            }
            Self::Shed(Shed::InFlight | Shed::Waiting)
            | Self::NotSynced
            | Self::Closed
            | Self::TableOverloaded
            | Self::Lost => ErrorCode::Pending,
        }
    }

    /// The metric label: one for each cause.
    pub(super) const fn label(&self) -> &'static str {
        match self {
            Self::MediaType => "media_type",
            Self::TooLarge => "too_large",
            Self::SlowBody(_) => "slow_body",
            Self::BrokenBody => "broken_body",
            Self::Authorizations => "authorizations",
            Self::NotBearer => "not_bearer",
            Self::Event(error) => error.label(),
            Self::Auth(error) => error.label(),
            Self::Ownership(error) => error.label(),
            Self::Session(error) => error.label(),
            Self::Shed(bound) => bound.label(),
            Self::NotSynced => "not_synced",
            Self::Closed => "api_unreachable",
            Self::Gone => "pod_deleted",
            Self::TableOverloaded => "table_overloaded",
            Self::Lost => "lost",
        }
    }

    /// Whether the trouble is on this side, and an operator should look.
    const fn is_ours(&self) -> bool {
        match self {
            Self::Auth(error) => error.is_undecided(),
            Self::Ownership(OwnershipError::Unavailable(_) | OwnershipError::Overloaded) => true,
            Self::Session(SessionError::Full | SessionError::OtherPod) => true,
            Self::Shed(Shed::Rate(_) | Shed::InFlight | Shed::Waiting) => true,
            Self::Closed | Self::TableOverloaded | Self::Lost => true,
            Self::Ownership(_) | Self::Session(_) | Self::Shed(Shed::SourceRate(_)) => false,
            Self::MediaType
            | Self::TooLarge
            | Self::SlowBody(_)
            | Self::BrokenBody
            | Self::Authorizations
            | Self::NotBearer
            | Self::Event(_)
            | Self::NotSynced
            | Self::Gone => false,
        }
    }

    /// Which bound it was, if it was one.
    const fn bound(&self) -> Option<&'static str> {
        match self {
            Self::Shed(bound) => Some(bound.label()),
            Self::Auth(AuthError::Overloaded) => Some("reviews"),
            Self::Ownership(OwnershipError::Overloaded) => Some("pod_lookups"),
            Self::Session(SessionError::Full) => Some("sessions"),
            Self::TableOverloaded => Some("table"),
            Self::MediaType
            | Self::TooLarge
            | Self::SlowBody(_)
            | Self::BrokenBody
            | Self::Authorizations
            | Self::NotBearer
            | Self::Event(_)
            | Self::Auth(_)
            | Self::Ownership(_)
            | Self::Session(_)
            | Self::NotSynced
            | Self::Closed
            | Self::Gone
            | Self::Lost => None,
        }
    }

    /// Whole seconds after which to try again, where that can help.
    fn retry_after(&self, spread: u64) -> Option<u64> {
        if !matches!(self.code(), ErrorCode::Pending | ErrorCode::RateLimited) {
            return None;
        }
        if matches!(self, Self::Ownership(OwnershipError::AddressNotPublished)) {
            // Whoever waits for the kubelet's status write is alone with it.
            return Some(SOON_SECONDS);
        }
        let seconds = if let Self::Shed(Shed::Rate(wait) | Shed::SourceRate(wait)) = self {
            wait.as_secs() + SOON_SECONDS
        } else if matches!(self, Self::Session(SessionError::Full)) {
            FULL_SECONDS
        } else if matches!(self, Self::NotSynced | Self::Closed) {
            OUTAGE_SECONDS
        } else {
            SOON_SECONDS
        };
        Some(seconds + spread % SPREAD_SECONDS)
    }
}

/// Counts a refusal and logs it, once.
pub(super) fn record(refusal: &Refusal, peer: std::net::IpAddr, uptime: Duration) {
    static WARNED_AT: AtomicU64 = AtomicU64::new(0);
    let reason = refusal.label();
    counter!("podlight_refusals_total", "reason" => reason).increment(1);
    if let Some(bound) = refusal.bound() {
        counter!("podlight_shed_total", "bound" => bound).increment(1);
    }
    let (now, last) = (uptime.as_secs() + 1, WARNED_AT.load(Ordering::Relaxed));
    let due = last == 0 || now.saturating_sub(last) >= WARN_INTERVAL.as_secs();
    if refusal.is_ours() && due && WARNED_AT.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        warn!(reason, error = %super::chain(refusal), "cannot take events");
    } else {
        debug!(reason, error = %super::chain(refusal), %peer, "refused an event");
    }
}

/// The answer for a refusal. `spread` is any number that differs between requests.
pub(super) fn response(refusal: &Refusal, spread: u64) -> Response<Body> {
    let code = refusal.code();
    let mut response = problem(code, refusal.to_string());
    if let Some(seconds) = refusal.retry_after(spread) {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if code == ErrorCode::AuthenticationFailed {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// An answer that is not 202.
pub(super) fn problem(err: ErrorCode, description: String) -> Response<Body> {
    let status = StatusCode::from_u16(err.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &Problem { err, description })
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, body: &impl serde::Serialize) -> Response<Body> {
    let body = serde_json::to_vec(body).expect("replies are plain data");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::ingest::jwks::KeyError;
    use crate::ingest::token::TokenError;

    /// Every cause there is, but for those inside of [`EventError::Shape`].
    fn all() -> Vec<Refusal> {
        let (text, wait) = (String::new, Duration::ZERO);
        let events = [
            EventError::NotCompact,
            EventError::Header(text()),
            EventError::Key(text()),
            EventError::Claims(text()),
            EventError::Audience,
            EventError::TokenHash,
            EventError::Signature,
            EventError::Stale(31),
            EventError::BootAhead,
        ];
        let tokens = [
            TokenError::TooLong,
            TokenError::NotCompact,
            TokenError::Header(text()),
            TokenError::Algorithm,
            TokenError::Claims(text()),
            TokenError::Audience,
            TokenError::Expired,
            TokenError::NotYetValid,
            TokenError::Issuer,
            TokenError::Subject,
            TokenError::NotOfAPod,
        ];
        let keys = [KeyError::Unavailable, KeyError::Unknown, KeyError::Algorithm, KeyError::Signature];
        let reviews = [AuthError::Rejected("".into()), AuthError::Unavailable(None), AuthError::Overloaded];
        let pods = [
            OwnershipError::NoSuchPod,
            OwnershipError::OtherPod,
            OwnershipError::OtherServiceAccount,
            OwnershipError::Ended,
            OwnershipError::Terminating,
            OwnershipError::Address,
            OwnershipError::Revision,
            OwnershipError::AddressNotPublished,
            OwnershipError::Unavailable(None),
            OwnershipError::Overloaded,
        ];
        let sessions = [
            SessionError::UnknownKey,
            SessionError::OtherKey,
            SessionError::BindingExpired,
            SessionError::OtherPod,
            SessionError::Full,
        ];
        let sheds = [Shed::Rate(wait), Shed::SourceRate(wait), Shed::InFlight, Shed::Waiting];
        let mut all = vec![
            Refusal::MediaType,
            Refusal::TooLarge,
            Refusal::SlowBody(wait),
            Refusal::BrokenBody,
            Refusal::Authorizations,
            Refusal::NotBearer,
            Refusal::NotSynced,
            Refusal::Closed,
            Refusal::Gone,
            Refusal::TableOverloaded,
            Refusal::Lost,
        ];
        all.extend(events.into_iter().map(Refusal::Event));
        all.extend(tokens.into_iter().map(|error| Refusal::Auth(error.into())));
        all.extend(keys.into_iter().map(|error| Refusal::Auth(error.into())));
        all.extend(reviews.into_iter().map(Refusal::Auth));
        all.extend(pods.into_iter().map(Refusal::Ownership));
        all.extend(sessions.into_iter().map(Refusal::Session));
        all.extend(sheds.into_iter().map(Refusal::Shed));
        all
    }

    #[test]
    fn every_cause_has_a_label_of_its_own() {
        let mut seen = HashMap::new();
        for refusal in all() {
            let text = format!("{refusal:?}");
            let other = seen.insert(refusal.label(), text.clone());
            assert_eq!(other, None, "{text} has the same label: {}", refusal.label());
        }
    }

    #[test]
    fn whoever_is_put_off_is_told_for_how_long_and_nobody_else_is() {
        for refusal in all() {
            let status = refusal.code().status();
            assert_eq!(refusal.retry_after(0).is_some(), matches!(status, 429 | 503), "{refusal:?}: {status}");
        }
    }
}
