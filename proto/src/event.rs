//! The event as a value: who speaks, in which order, and what it says. Every type here holds only what its
//! constructor has checked.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Most addresses an event may carry. A dual-stack pod has two; more exist only with several networks.
pub const MAX_ADDRESSES: usize = 16;

/// Most ports an event may carry.
pub const MAX_PORTS: usize = 64;

/// Largest integer that every JSON reader holds exactly (RFC 8259 §6): 2^53 − 1.
const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A value that does not have the shape its name demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// `iss` is not `/namespaces/<namespace>/pods/<name>/<uid>` with valid names.
    #[error("iss must be /namespaces/<namespace>/pods/<name>/<uid>")]
    Issuer,
    /// A boot or sequence number outside 1 ..= 2^53 − 1.
    #[error("boot and seq must be integers from 1 to 2^53-1")]
    Integer,
    /// No address, or more than [`MAX_ADDRESSES`], or one that is not an IP address without zone.
    #[error("addresses must be 1 to 16 IP addresses without zone")]
    Addresses,
    /// More than [`MAX_PORTS`] ports, a port number 0, or a name that is not a port name.
    #[error("ports must be at most 64 pairs of a name of up to 63 characters and a number from 1 to 65535")]
    Ports,
    /// The revision is not a label value.
    #[error("revision must be a label value of up to 63 characters, or empty")]
    Revision,
    /// `ready` in the body contradicts the event's kind.
    #[error("ready must agree with the kind of the event")]
    Contradiction,
}

/// A pod's uid as the API server gave it: 1 to 39 letters, digits and dashes; in practice a UUID of 36. Held in
/// place, so that looking a pod up follows no pointer and copying a uid touches no shared counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid {
    bytes: [u8; Self::MAX_LEN],
    len: u8,
}

impl PodUid {
    const MAX_LEN: usize = 39;

    /// Takes a uid as text; `None` when it cannot be one.
    pub fn new(uid: &str) -> Option<Self> {
        let valid = !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let mut bytes = [0; Self::MAX_LEN];
        bytes.get_mut(..uid.len()).filter(|_| valid)?.copy_from_slice(uid.as_bytes());
        Some(Self { bytes, len: u8::try_from(uid.len()).ok()? })
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        let text = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(text).unwrap_or_default()
    }
}

impl Serialize for PodUid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One life of one pod: namespace, name and uid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    namespace: Arc<str>,
    name: Arc<str>,
    uid: PodUid,
}

impl PodRef {
    /// Checks the three parts against Kubernetes' rules for names (RFC 1123 label and subdomain).
    ///
    /// # Errors
    /// [`ShapeError::Issuer`] when a part cannot be what it is said to be.
    pub fn new(namespace: &str, name: &str, uid: &str) -> Result<Self, ShapeError> {
        let valid = is_label(namespace) && is_subdomain(name);
        let uid = PodUid::new(uid).filter(|_| valid).ok_or(ShapeError::Issuer)?;
        Ok(Self { namespace: namespace.into(), name: name.into(), uid })
    }

    /// Reads the issuer of an event, the inverse of [`PodRef::issuer`].
    ///
    /// # Errors
    /// [`ShapeError::Issuer`] when it is not one.
    pub fn from_issuer(issuer: &str) -> Result<Self, ShapeError> {
        let parts: Vec<&str> = issuer.split('/').collect();
        match parts.as_slice() {
            ["", "namespaces", namespace, "pods", name, uid] => Self::new(namespace, name, uid),
            _ => Err(ShapeError::Issuer),
        }
    }

    /// The issuer of this pod's events.
    pub fn issuer(&self) -> String {
        format!("/namespaces/{}/pods/{}/{}", self.namespace, self.name, self.uid)
    }

    /// The pod's namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The pod's uid: what identifies it, since names and addresses are used again.
    pub fn uid(&self) -> &PodUid {
        &self.uid
    }
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| alphanumeric(b) || b == b'-')
        && alphanumeric(bytes[0])
        && alphanumeric(bytes[bytes.len() - 1])
}

fn is_subdomain(text: &str) -> bool {
    // Kubernetes bounds the whole name, not each label of it.
    let part = |p: &str| {
        !p.is_empty() && p.split('-').all(|s| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
    };
    let edges = |p: &str| !p.starts_with('-') && !p.ends_with('-');
    (1..=253).contains(&text.len()) && text.split('.').all(|p| part(p) && edges(p))
}

/// One start of a sidecar: its time in milliseconds since the epoch. A later boot holds against an earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Boot(u64);

/// Position of an event within its boot, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Sequence(u64);

macro_rules! wire_integer {
    ($type:ident) => {
        impl TryFrom<u64> for $type {
            type Error = ShapeError;

            fn try_from(n: u64) -> Result<Self, ShapeError> {
                if (1..=MAX_INTEGER).contains(&n) { Ok(Self(n)) } else { Err(ShapeError::Integer) }
            }
        }

        impl From<$type> for u64 {
            fn from(n: $type) -> u64 {
                n.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $type {
            /// The one that follows; the largest stays where it is.
            #[must_use]
            pub fn next(self) -> Self {
                Self((self.0 + 1).min(MAX_INTEGER))
            }
        }
    };
}

wire_integer!(Boot);
wire_integer!(Sequence);

impl Sequence {
    /// The first of a boot.
    pub const FIRST: Self = Self(1);
}

/// The order of events of one pod: boot first, then sequence; never a wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order {
    /// The sidecar's start.
    pub boot: Boot,
    /// The event's position since then.
    pub seq: Sequence,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.boot, self.seq)
    }
}

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Every probe passes: send traffic.
    Ready,
    /// A probe fails, or none has passed yet.
    NotReady,
    /// The pod is leaving. Final for its boot.
    Draining,
    /// Nothing new: the state is still what `ready` repeats, and the lease is renewed.
    Heartbeat,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ready, Self::NotReady, Self::Draining, Self::Heartbeat];

    /// As in the event URI and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not-ready",
            Self::Draining => "draining",
            Self::Heartbeat => "heartbeat",
        }
    }

    /// The event URI (RFC 8417 §2.2).
    pub const fn uri(self) -> &'static str {
        match self {
            Self::Ready => "https://podlight.dev/event/v1/ready",
            Self::NotReady => "https://podlight.dev/event/v1/not-ready",
            Self::Draining => "https://podlight.dev/event/v1/draining",
            Self::Heartbeat => "https://podlight.dev/event/v1/heartbeat",
        }
    }

    /// The kind that a URI names.
    pub fn from_uri(uri: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.uri() == uri)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A container port as the pod declares it. Informational: traffic goes where the Service says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Port {
    /// Name of the port, possibly empty.
    pub name: String,
    /// Its number.
    pub port: u16,
}

/// One statement of a sidecar about its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whose statement it is.
    pub pod: PodRef,
    /// Where it stands among the pod's events.
    pub order: Order,
    /// What it says.
    pub kind: Kind,
    /// The pod's revision label, or empty.
    pub revision: String,
    /// The pod's addresses: a set, IPv4-mapped IPv6 written as IPv4.
    pub addresses: Vec<IpAddr>,
    /// The pod's declared ports.
    pub ports: Vec<Port>,
    /// The state after this event. Free in heartbeats; elsewhere it follows from the kind.
    pub ready: bool,
    /// When that state began, in milliseconds since the epoch on the node's clock.
    pub observed_at_ms: u64,
}

impl Event {
    /// Puts the event into its one written form (addresses sorted and without repeats) and checks every field.
    ///
    /// # Errors
    /// The first [`ShapeError`] found.
    pub fn normalized(mut self) -> Result<Self, ShapeError> {
        for address in &mut self.addresses {
            *address = address.to_canonical();
        }
        self.addresses.sort_unstable();
        self.addresses.dedup();
        if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            return Err(ShapeError::Addresses);
        }
        let named =
            |port: &Port| port.name.len() <= 63 && port.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if self.ports.len() > MAX_PORTS || !self.ports.iter().all(|port| port.port != 0 && named(port)) {
            return Err(ShapeError::Ports);
        }
        if !is_label_value(&self.revision) {
            return Err(ShapeError::Revision);
        }
        match (self.kind, self.ready) {
            (Kind::Ready, true) | (Kind::NotReady | Kind::Draining, false) | (Kind::Heartbeat, _) => Ok(self),
            (Kind::Ready, false) | (Kind::NotReady | Kind::Draining, true) => Err(ShapeError::Contradiction),
        }
    }
}

fn is_label_value(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_names_namespace_pod_and_uid_and_nothing_else() {
        let pod = PodRef::from_issuer("/namespaces/default/pods/web-0.a/6f9d1b3e-0000").expect("valid");
        assert_eq!(pod.issuer(), "/namespaces/default/pods/web-0.a/6f9d1b3e-0000");
        for bad in [
            "",
            "namespaces/default/pods/web/u",
            "/namespaces/default/pods/web",
            "/namespaces/default/pods/web/u/",
            "/namespaces//pods/web/u",
            "/namespaces/Default/pods/web/u",
            "/namespaces/-a/pods/web/u",
            "/namespaces/a/pods/-web/u",
            "/namespaces/a/pods/web..x/u",
            "/namespaces/a/pods/web/u u",
            "/namespaces/a/pods/web/",
        ] {
            assert_eq!(PodRef::from_issuer(bad), Err(ShapeError::Issuer), "{bad}");
        }
    }

    #[test]
    fn integers_stop_where_json_readers_stop_being_exact() {
        assert!(Boot::try_from(0).is_err());
        assert!(Boot::try_from(MAX_INTEGER + 1).is_err());
        let last = Boot::try_from(MAX_INTEGER).expect("in range");
        assert_eq!(last.next(), last);
    }
}
