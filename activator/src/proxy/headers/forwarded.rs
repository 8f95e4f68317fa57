//! Whom the pod speaks with: `Forwarded` and `X-Forwarded-For`, `-Proto` and `-Host`. What a client says about itself
//! counts only where it is trusted.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What to say of the requests of one connection.
#[derive(Debug)]
pub(in crate::proxy) struct Forwarding {
    address: IpAddr,
    trusted: bool,
    proto: &'static str,
    forwarded_for: HeaderValue,
    /// The host that the connection asked for last, and the values made for it.
    last: Mutex<Option<Last>>,
}

#[derive(Debug, Clone)]
struct Last {
    host: HeaderValue,
    forwarded: HeaderValue,
}

impl Forwarding {
    /// For a connection from this address.
    pub(in crate::proxy) fn new(address: IpAddr, tls: bool, trusted: &[IpNet]) -> Self {
        Self {
            address,
            trusted: trusted.iter().any(|net| net.contains(&address)),
            proto: if tls { "https" } else { "http" },
            forwarded_for: value(&address.to_string()),
            last: Mutex::new(None),
        }
    }

    /// Says it in a request for `host`: beside what a trusted client said, instead of what another said.
    pub(in crate::proxy) fn apply(&self, headers: &mut HeaderMap, host: HeaderValue) {
        let Last { host, forwarded } = self.values(host);
        let proto = HeaderValue::from_static(self.proto);
        if self.trusted {
            append(headers, FOR, &self.forwarded_for);
            append(headers, FORWARDED, &forwarded);
            headers.entry(PROTO).or_insert(proto);
            headers.entry(HOST).or_insert(host);
        } else {
            headers.insert(FOR, self.forwarded_for.clone());
            headers.insert(FORWARDED, forwarded);
            headers.insert(PROTO, proto);
            headers.insert(HOST, host);
        }
    }

    fn values(&self, host: HeaderValue) -> Last {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| last.host == host) {
            return last.clone();
        }
        let forwarded = value(&self.element(host.to_str().unwrap_or_default()));
        last.insert(Last { host, forwarded }).clone()
    }

    /// One element of `Forwarded`. A colon or bracket needs quotes.
    fn element(&self, host: &str) -> String {
        let quoted = |text: &str| if text.contains([':', '[']) { format!("\"{text}\"") } else { text.to_owned() };
        let address = match self.address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        format!("for={};host={};proto={}", quoted(&address), quoted(host), self.proto)
    }
}

/// Adds to the list that a header is, in one line.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    let mut list: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    list.push(element.as_bytes());
    let joined = HeaderValue::from_bytes(&list.join(&b", "[..]));
    headers.insert(name, joined.unwrap_or_else(|_| element.clone()));
}

/// A header's value of what was one before or is an address.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
