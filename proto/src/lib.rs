//! What the sidecar and the activator agree on: the readiness event, its signature and the replies to it.
//! No I/O, no clock, no async runtime. Nothing that comes from the network is trusted before
//! [`UnverifiedEvent::verify`] and [`VerifiedEvent::fresh`] have returned it, and nothing here panics on input.

mod event;
mod reply;
mod signed;
mod strict_json;

pub use event::{Boot, Event, Kind, MAX_ADDRESSES, MAX_PORTS, Order, PodRef, PodUid, Port, Sequence, ShapeError};
pub use reply::{Accepted, ErrorCode, Outcome, Problem};
pub use signed::{
    EventError, FreshEvent, PublicKey, SigningKey, Thumbprint, UnverifiedEvent, VerifiedEvent, token_hash,
};

/// The audience of events and of the ServiceAccount tokens that vouch for them.
pub const AUDIENCE: &str = "podlight";

/// Where events are posted.
pub const EVENTS_PATH: &str = "/v1/events";

/// Media type of an event (RFC 8417 §2.3).
pub const EVENT_MEDIA_TYPE: &str = "application/secevent+jwt";

/// Longest event in bytes; a longer body is answered 413.
pub const MAX_EVENT_BYTES: usize = 16 * 1024;

/// How far `iat` may be from the receiver's clock, in seconds, either way. Together with "a repeat changes
/// nothing" it bounds what a captured event is good for.
pub const FRESHNESS_SECONDS: u64 = 30;

/// How far a boot may lie ahead of the receiver's clock, in milliseconds: a boot in the far future would lock
/// the pod out, because only a newer boot can follow it.
pub const BOOT_AHEAD_MS: u64 = 24 * 60 * 60 * 1000;
