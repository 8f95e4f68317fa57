//! What an activator answers: [`Accepted`] with 202, [`Problem`] with everything else.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event::Boot;

/// What became of an event that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is the newest of its pod and in the table now.
    Applied,
    /// It was there already; nothing changed.
    Duplicate,
    /// A newer event holds; nothing changed. [`Accepted::boot`] names the boot that holds.
    Superseded,
}

impl Outcome {
    /// As in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Superseded => "superseded",
        }
    }
}

/// The body of a 202.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// What became of the event.
    pub result: Outcome,
    /// The boot that holds now. A sidecar whose own boot is older takes this one plus one.
    pub boot: Boot,
    /// Name of the replica that answers.
    pub replica: String,
    /// When the replica wants to hear again, in seconds.
    pub heartbeat_after_seconds: u32,
    /// How long what it heard counts, in seconds.
    pub lease_seconds: u32,
    /// Base URLs of the other replicas, as far as this one knows.
    #[serde(default)]
    pub peers: Vec<String>,
}

/// Why an event was not taken, as a word for programs: RFC 8935 §2.4 where that has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: malformed, stale or contradicting itself.
    InvalidRequest,
    /// 400: the key is not an Ed25519 key to be trusted, or the signature is not by it.
    InvalidKey,
    /// 400: `iss` is not a pod.
    InvalidIssuer,
    /// 400: `aud` is not ours.
    InvalidAudience,
    /// 401: a token is needed, or the one given is not accepted.
    AuthenticationFailed,
    /// 403: what the event claims is not the caller's.
    AccessDenied,
    /// 404: no such path.
    NotFound,
    /// 405: no such method here.
    MethodNotAllowed,
    /// 408: the request came too slowly.
    Timeout,
    /// 413: the body is longer than [`crate::MAX_EVENT_BYTES`].
    TooLarge,
    /// 415: the media type is not [`crate::EVENT_MEDIA_TYPE`].
    UnsupportedMediaType,
    /// 429: a rate or a size is at its bound.
    RateLimited,
    /// 503: cannot be decided yet; to be sent again.
    Pending,
}

impl ErrorCode {
    /// The word on the wire and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidKey => "invalid_key",
            Self::InvalidIssuer => "invalid_issuer",
            Self::InvalidAudience => "invalid_audience",
            Self::AuthenticationFailed => "authentication_failed",
            Self::AccessDenied => "access_denied",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RateLimited => "rate_limited",
            Self::Pending => "pending",
        }
    }

    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::InvalidKey | Self::InvalidIssuer | Self::InvalidAudience => 400,
            Self::AuthenticationFailed => 401,
            Self::AccessDenied => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RateLimited => 429,
            Self::Pending => 503,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The body of an answer that is not 202.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Why, for programs.
    pub err: ErrorCode,
    /// Why, and what to mend, for people.
    pub description: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_have_one_written_form() {
        let accepted = Accepted {
            result: Outcome::Superseded,
            boot: Boot::try_from(7).expect("in range"),
            replica: "a-0".into(),
            heartbeat_after_seconds: 5,
            lease_seconds: 15,
            peers: vec!["https://10.0.0.2:8443".into()],
        };
        let json = r#"{"result":"superseded","boot":7,"replica":"a-0","heartbeat_after_seconds":5,"lease_seconds":15,"peers":["https://10.0.0.2:8443"]}"#;
        assert_eq!(serde_json::to_string(&accepted).expect("serializes"), json);
        assert_eq!(serde_json::from_str::<Accepted>(json).expect("parses"), accepted);

        let problem = Problem { err: ErrorCode::AccessDenied, description: "no".into() };
        assert_eq!(
            serde_json::to_string(&problem).expect("serializes"),
            r#"{"err":"access_denied","description":"no"}"#
        );
    }
}
