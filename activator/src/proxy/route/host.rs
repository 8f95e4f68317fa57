//! Hosts as clients send them and as annotations name them, in one normal form: lower case, no port, no trailing dot,
//! addresses as the standard library writes them. What is no host is refused, so that no two readers of one request
//! take it for two targets.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// Longest name in DNS (RFC 1035 §2.3.4).
const LONGEST: usize = 253;

/// Longest label of a name.
const LONGEST_LABEL: usize = 63;

/// Takes the value of a Host field or an authority apart and returns the host's normal form; none when it is malformed.
/// Copies it only when it has upper case letters or is an IPv6 address.
pub(super) fn normal(sent: &str) -> Option<Cow<'_, str>> {
    if let Some(bracketed) = sent.strip_prefix('[') {
        // A zone (`fe80::1%eth0`) means something only to the one who sent it: it does not parse.
        let (address, port) = bracketed.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return is_port(port).then(|| IpAddr::V6(address).to_canonical().to_string().into());
    }
    let (name, port) = sent.split_at(sent.find(':').unwrap_or(sent.len()));
    if !is_port(port) {
        return None;
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let upper = check_name(name)?;
    Some(if upper { name.to_ascii_lowercase().into() } else { name.into() })
}

/// Nothing, or a colon and a number from 1 to 65535.
fn is_port(text: &str) -> bool {
    let Some(digits) = text.strip_prefix(':') else { return text.is_empty() };
    digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok_and(|n| n > 0)
}

/// Whether a name has upper case letters; none when it is no name. Underscores are no letters of host names, but many
/// have them.
fn check_name(name: &str) -> Option<bool> {
    let mut upper = false;
    let mut label = 0;
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            b'A'..=b'Z' => {
                label += 1;
                upper = true;
            }
            b'.' if label > 0 => label = 0,
            _ => return None,
        }
        if label > LONGEST_LABEL {
            return None;
        }
    }
    (label > 0 && name.len() <= LONGEST).then_some(upper)
}

/// A host that an annotation names: itself, or all below a suffix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This host.
    Exact(Arc<str>),
    /// Every host that ends in a dot and this.
    Below(Arc<str>),
}

impl HostPattern {
    /// Parses `host` or `*.suffix`, without a port.
    pub fn parse(text: &str) -> Option<Self> {
        // An IPv6 address is written here as in URLs or bare.
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Some(Self::Exact(IpAddr::V6(address).to_canonical().to_string().into()));
        }
        let (below, host) = text.strip_prefix("*.").map_or((false, text), |suffix| (true, suffix));
        let normal = normal(host).filter(|_| !host.contains(':') || host.ends_with(']'))?;
        let normal: Arc<str> = normal.into();
        Some(if below { Self::Below(normal) } else { Self::Exact(normal) })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests;
