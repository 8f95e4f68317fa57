//! What is done to the headers of a request and of its answer between client and pod: hop-by-hop ones end here
//! (RFC 9110 §7.6.1), and the pod learns whom it speaks with (RFC 7239 and its older `X-Forwarded-*`). Nothing else is
//! touched. Pure; where there is nothing to do, it costs a few look-ups.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, Entry, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version};

use super::fault::Fault;

mod forwarded;

pub(super) use forwarded::Forwarding;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Headers that `Connection` cannot take away, since they say where a message ends and whom it is for.
const KEPT: [HeaderName; 2] = [HOST, CONTENT_LENGTH];

/// The host that a request is for, as it was sent.
///
/// # Errors
/// [`Fault::Host`] when there is none, or more than one, or the request line names another.
pub(super) fn host<B>(request: &Request<B>) -> Result<&str, Fault> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Fault::Host("there are several"));
    }
    let header = header.map(HeaderValue::to_str).transpose().map_err(|_| Fault::Host("it is not ASCII"))?;
    let host = match (request.uri().authority().map(Authority::as_str), header) {
        (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(header) => {
            return Err(Fault::Host("the request's target names another"));
        }
        // HTTP/1.1 requires the header even beside an absolute form (RFC 9112 §3.2).
        (Some(_), None) if request.version() == Version::HTTP_11 => return Err(Fault::Host("there is none")),
        (Some(host), _) | (None, Some(host)) if !host.is_empty() => host,
        _ => return Err(Fault::Host("there is none")),
    };
    if host.contains('@') { Err(Fault::Host("it names a user")) } else { Ok(host) }
}

/// The host of a request that [`host`] has found one in.
pub(super) fn host_value<B>(request: &Request<B>) -> HeaderValue {
    let from_target = || request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    let header = request.headers().get(HOST).cloned();
    header.or_else(from_target).unwrap_or_else(|| HeaderValue::from_static(""))
}

/// Whether a message has several values of `Content-Length`, which HTTP/2 lets through.
pub(super) fn has_several_lengths(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some()
}

/// Whether a request or an answer is of gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(http::header::CONTENT_TYPE) else { return false };
    content_type.as_bytes().strip_prefix(b"application/grpc").is_some_and(|rest| !rest.starts_with(b"-web"))
}

/// The protocol that a message changes to, where `Connection` says that it does. `h2c` is none: HTTP/2 begins with its
/// preface (RFC 9113 §3.1), and a pod that took the offer would speak behind the proxy's back.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let asked =
        headers.get_all(CONNECTION).iter().any(|value| tokens(value).any(|t| t.eq_ignore_ascii_case(b"upgrade")));
    let names_h2c = || tokens(protocol).any(|token| token.eq_ignore_ascii_case(b"h2c"));
    (asked && !names_h2c()).then(|| protocol.clone())
}

/// Says that a message changes the protocol, on a connection of its own kind.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Takes away what concerns one connection only. `TE: trailers` stays, since trailers are passed on.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        strip_named(headers);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
    if let Entry::Occupied(mut entry) = headers.entry(TE) {
        let keeps = entry.iter().any(|value| tokens(value).any(|token| token.eq_ignore_ascii_case(b"trailers")));
        if keeps {
            entry.insert(TRAILERS);
        } else {
            entry.remove_entry_mult();
        }
    }
}

/// Takes away the headers that `Connection` names, and itself.
fn strip_named(headers: &mut HeaderMap) {
    let Entry::Occupied(entry) = headers.entry(CONNECTION) else { return };
    let values: Vec<HeaderValue> = entry.remove_entry_mult().1.collect();
    for name in values.iter().flat_map(tokens) {
        if let Ok(name) = HeaderName::from_bytes(name)
            && name != TE
            && !KEPT.contains(&name)
        {
            headers.remove(name);
        }
    }
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Makes a request one of HTTP/1.1: its target without scheme and authority, `Host` from the authority, one `Cookie`
/// (RFC 9113 §8.2.3).
pub(super) fn into_http1<B>(request: &mut Request<B>) {
    let from_http2 = request.version() == Version::HTTP_2;
    *request.version_mut() = Version::HTTP_11;
    if request.headers().contains_key(TE) {
        // It concerns this connection only, and has to say so (RFC 9110 §10.1.4).
        let upgrades = request.headers().contains_key(UPGRADE);
        let options = HeaderValue::from_static(if upgrades { "upgrade, te" } else { "te" });
        request.headers_mut().insert(CONNECTION, options);
    }
    if let Some(authority) = request.uri().authority() {
        let host = HeaderValue::from_str(authority.as_str());
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        if let (Ok(host), Entry::Vacant(vacant)) = (host, request.headers_mut().entry(HOST)) {
            vacant.insert(host);
        }
        *request.uri_mut() = Uri::from(path);
    }
    if from_http2 && request.headers().get_all(COOKIE).iter().nth(1).is_some() {
        join_cookies(request.headers_mut());
    }
}

fn join_cookies(headers: &mut HeaderMap) {
    let joined = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// Makes a request one of HTTP/2: its target with scheme and authority, no `Host`.
pub(super) fn into_http2<B>(request: &mut Request<B>, scheme: Scheme) {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(CONNECTION);
    let host = request.headers_mut().remove(HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if parts.authority.is_none() {
        parts.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    }
    parts.scheme = Some(scheme);
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests;
