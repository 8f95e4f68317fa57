//! Which activator replicas there are, as URLs. Each replica gets an authority of its own, so that one HTTP client
//! keeps one connection to each: a replica found by its address is written `<address-with-dashes>.<service>`, the
//! form of Kubernetes' own pod DNS names. The name resolves to the address written in it without a lookup, and a
//! certificate for `*.<service>` verifies.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

/// Most replicas that are told. A reply or a DNS answer that names more is cut off, and that is counted.
pub const MAX_REPLICAS: usize = 64;

/// Where the activator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activator {
    /// These replicas and the peers that they name.
    Fixed(Vec<Url>),
    /// The replicas behind a headless Service, and the peers that they name.
    Service(Url),
}

impl Activator {
    /// Whether it is reached over TLS.
    pub fn tls(&self) -> bool {
        match self {
            Self::Fixed(urls) => urls.iter().any(|url| url.scheme() == "https"),
            Self::Service(url) => url.scheme() == "https",
        }
    }

    /// The base URL of the replica at an address.
    pub fn replica_at(&self, address: IpAddr) -> Option<Url> {
        let Self::Service(service) = self else { return None };
        let mut url = service.clone();
        let host = format!("{}.{}", label(address.to_canonical()), service.host_str()?);
        url.set_host(Some(&host)).ok()?;
        Some(url)
    }

    /// A peer as a reply names it, if it may be one: the scheme configured, no path, no user; plain HTTP on the
    /// loopback interface alone, as in the configuration.
    pub fn peer(&self, named: &str) -> Option<Url> {
        let url = base_url(named)?;
        if (url.scheme() == "https") != self.tls() {
            return None;
        }
        let address = host_address(&url);
        Some(address.and_then(|address| self.replica_at(address)).unwrap_or(url))
    }
}

/// A base URL: http or https, a host, nothing after it. Plain HTTP is for loopback addresses, since the token
/// goes over it.
pub fn base_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let anonymous = url.username().is_empty() && url.password().is_none();
    let loopback = url.host_str() == Some("localhost") || host_address(&url).is_some_and(|ip| ip.is_loopback());
    let scheme = url.scheme() == "https" || (url.scheme() == "http" && loopback);
    (bare && anonymous && scheme && url.host_str().is_some()).then_some(url)
}

/// The address that a URL's host is, if it is one.
pub(super) fn host_address(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// An address as a DNS label: `10-0-0-7`, `fd00-0-0-0-0-0-0-7`.
fn label(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.octets().map(|n| n.to_string()).join("-"),
        IpAddr::V6(v6) => v6.segments().map(|n| format!("{n:x}")).join("-"),
    }
}

/// The address that the first label of a host name spells, the inverse of [`Activator::replica_at`].
pub(super) fn pinned_address(host: &str) -> Option<IpAddr> {
    let (label, _) = host.split_once('.')?;
    let parts: Vec<&str> = label.split('-').collect();
    if let Ok(v4) = <[&str; 4]>::try_from(parts.as_slice()) {
        let octets = v4.map(|n| n.parse::<u8>().ok());
        let [Some(a), Some(b), Some(c), Some(d)] = octets else { return None };
        return Some(Ipv4Addr::new(a, b, c, d).into());
    }
    let segments: Option<Vec<u16>> = parts.iter().map(|n| u16::from_str_radix(n, 16).ok()).collect();
    Some(Ipv6Addr::from(<[u16; 8]>::try_from(segments?).ok()?).into())
}

/// The replicas to tell: the roots and whoever they name as peers, those ones' peers, and so on. What no root
/// leads to any more is gone. Returns them with the number of those left out for [`MAX_REPLICAS`].
pub(super) fn reachable(roots: &BTreeSet<Url>, peers: &BTreeMap<Url, Vec<Url>>) -> (BTreeSet<Url>, usize) {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Url> = roots.iter().rev().collect();
    let mut left_out = BTreeSet::new();
    while let Some(url) = open.pop() {
        if found.contains(url) {
            continue;
        }
        if found.len() == MAX_REPLICAS {
            left_out.insert(url);
            continue;
        }
        found.insert(url.clone());
        open.splice(0..0, peers.get(url).into_iter().flatten());
    }
    (found, left_out.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    fn service() -> Activator {
        Activator::Service(url("https://podlight-activator-events.podlight-system.svc:8443"))
    }

    #[test]
    fn a_replica_is_named_by_its_address_below_the_service() {
        for (address, host) in [
            ("10.0.0.7", "10-0-0-7.podlight-activator-events.podlight-system.svc"),
            ("::ffff:10.0.0.7", "10-0-0-7.podlight-activator-events.podlight-system.svc"),
            ("fd00::7", "fd00-0-0-0-0-0-0-7.podlight-activator-events.podlight-system.svc"),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            let replica = service().replica_at(address).expect("a service");
            assert_eq!(replica.as_str(), format!("https://{host}:8443/"));
            assert_eq!(pinned_address(host), Some(address.to_canonical()));
        }
        for other in ["10-0-0-7", "10-0-0-256.svc", "podlight-activator-events.podlight-system.svc", "a-b-c-d.svc"] {
            assert_eq!(pinned_address(other), None, "{other}");
        }
    }

    #[test]
    fn peers_have_the_configured_scheme_and_are_bare() {
        let pinned = service().replica_at([10, 0, 0, 2].into());
        assert_eq!(service().peer("https://10.0.0.2:8443"), pinned, "the same replica has one name");
        assert_eq!(service().peer("https://other.example:8443"), Some(url("https://other.example:8443")));
        for bad in [
            "http://127.0.0.1:1",
            "https://10.0.0.2:8443/path",
            "https://a@b:1",
            "https://b:1?q",
            "ftp://b",
            "unix:/x",
            "",
        ] {
            assert_eq!(service().peer(bad), None, "{bad}");
        }
        let plain = Activator::Fixed(vec![url("http://127.0.0.1:1")]);
        assert_eq!(plain.peer("http://127.0.0.1:2"), Some(url("http://127.0.0.1:2")));
        assert_eq!(plain.peer("http://10.0.0.2:2"), None, "the token does not leave the machine in the clear");
        assert_eq!(plain.peer("https://127.0.0.1:2"), None);
    }

    #[test]
    fn peers_count_while_a_root_leads_to_them() {
        let [a, b, c, d] = ["https://a", "https://b", "https://c", "https://d"].map(url);
        let peers = BTreeMap::from([
            (a.clone(), vec![b.clone()]),
            (b.clone(), vec![a.clone(), c.clone()]),
            (d.clone(), vec![c.clone()]),
        ]);
        assert_eq!(reachable(&[a.clone()].into(), &peers), ([a.clone(), b.clone(), c.clone()].into(), 0));
        assert_eq!(reachable(&[d.clone()].into(), &peers), ([c, d].into(), 0));
    }

    #[test]
    fn the_number_of_replicas_is_bounded_and_roots_come_first() {
        let root = url("https://root");
        let many: Vec<Url> = (0..100).map(|n| url(&format!("https://peer-{n}"))).collect();
        let (found, left_out) = reachable(&[root.clone()].into(), &BTreeMap::from([(root.clone(), many)]));
        assert_eq!((found.len(), left_out), (MAX_REPLICAS, 100 + 1 - MAX_REPLICAS));
        assert!(found.contains(&root));
    }
}
