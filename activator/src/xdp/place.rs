//! What can be asked, as names: paths on the readiness port, and configured probes of pods.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::table::group::GroupKey;

/// What every path on the readiness port begins with.
const ROOT: &str = "/ready";

/// Something that can be asked for: a path, exactly as it stands in the request line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Whose address and port the request goes to; none is the readiness port itself, at whatever address.
    pub at: Option<SocketAddr>,
    /// The path.
    pub path: Arc<str>,
}

impl Place {
    /// Whether any endpoint of a Service is ready: `/ready/<namespace>/<service>`. None when a name cannot stand in a
    /// path as it is, which none does that the API server has accepted.
    pub fn of_group(group: &GroupKey) -> Option<Self> {
        let GroupKey { namespace, service } = group;
        let plain =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        (plain(namespace) && plain(service))
            .then(|| Self { at: None, path: format!("{ROOT}/{namespace}/{service}").into() })
    }

    /// Whether a Service's endpoint is ready: the path of the Service, `/` and the address in its canonical form, which
    /// is the only one that is answered (RFC 5952 for IPv6; an IPv4 address within IPv6 is written as IPv4).
    pub fn of_address(&self, address: IpAddr) -> Self {
        Self { at: None, path: format!("{}/{}", self.path, address.to_canonical()).into() }
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = self.at {
            write!(f, "{at}")?;
        }
        f.write_str(&self.path)
    }
}

/// A probe that somebody else makes of a Service's pods, to be answered before it reaches them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Whose pods.
    pub group: GroupKey,
    /// The port on the pod, which serves nothing else.
    pub port: u16,
    /// The path.
    pub path: Arc<str>,
}

impl Probe {
    /// The same for one address of a pod.
    pub fn of_address(&self, address: IpAddr) -> Place {
        Place { at: Some(SocketAddr::new(address.to_canonical(), self.port)), path: Arc::clone(&self.path) }
    }
}
