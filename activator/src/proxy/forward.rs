//! One request's way: from its Host to a target, from there to a place on a backend, over a connection that is there or
//! is opened, and the answer back as it comes. Tried again elsewhere only where nothing was sent, or where sending it
//! twice does what sending it once does and its body is empty. The place on the backend lasts as long as the answer's
//! body, or the tunnel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::sync::mpsc::UnboundedSender;

mod access;
mod answer;
mod exchange;
mod meters;
mod outgoing;
mod tunnel;

use access::Entry;
pub(super) use answer::Answer;
use answer::Carrier;
use exchange::{Failure, Head};
pub(super) use meters::Meters;
use meters::Retry;
pub(super) use outgoing::Outgoing;
pub(super) use tunnel::Tunnel;

use super::fault::Fault;
use super::headers::{self, Forwarding};
use super::route::Routes;
use super::target::{AppProtocol, Backend, BackendId, Lease, Refusal, Settings, Target, Way};
use super::upstream::trust::Trust;
use super::upstream::{ACCEPTED_AFTER, ConnectError, Dialer, Expected, Key, Link, Protocol, SURELY_OPEN, Turn};
use crate::server::connections::Connection;

/// How often a request is tried, each time with another backend if there is one.
const TRIES: usize = 3;

/// What all requests of one connection have in common.
#[derive(Debug)]
pub(super) struct Client {
    /// Its place among the connections.
    pub(super) connection: Arc<Connection>,
    /// What pods are told of it.
    pub(super) forwarding: Forwarding,
    /// The connection carries another protocol from now on.
    pub(super) tunnelled: Arc<AtomicBool>,
    /// A request of HTTP/1.1 has no answer yet.
    pub(super) unanswered: AtomicBool,
    /// What is to run on the connection once HTTP is over.
    pub(super) tunnel: Mutex<Option<Tunnel>>,
}

/// What one worker needs to answer requests.
#[derive(Debug)]
pub(super) struct Worker {
    /// Which of each backend's pools is its own.
    pub(super) index: usize,
    pub(super) routes: Routes,
    pub(super) trust: Arc<Trust>,
    pub(super) dialer: Dialer,
    pub(super) meters: Meters,
    /// How long a pod may take until its answer begins.
    pub(super) response_timeout: Option<Duration>,
    pub(super) access_log: bool,
    /// Takes backends whose pools have begun to hold something.
    pub(super) sweeps: UnboundedSender<Weak<Backend>>,
}

/// What is decided about a request before it goes anywhere.
struct Plan {
    target: Arc<Target>,
    settings: Arc<Settings>,
    /// Whom it is for, until pods are told.
    host: Option<HeaderValue>,
    /// The protocol to change to, and the client's side of it.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    /// The client sends its body only once it is told to.
    expects: bool,
    /// Bytes of its body that may be in memory before it is read.
    ahead: u32,
}

impl Worker {
    /// Answers a request. Not an `async fn`, which would keep room for the request twice.
    pub(super) fn answer(
        self: Arc<Self>,
        client: Arc<Client>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Answer>> + Send {
        let in_flight = client.connection.begin();
        let grpc = headers::is_grpc(request.headers());
        let entry = self.access_log.then(|| Box::new(Entry::new(&request)));
        client.unanswered.store(request.version() == Version::HTTP_11, Ordering::Release);
        let mut request = Some(request.map(Outgoing::new));
        async move {
            let answered = self.forward(&client, &mut request).await;
            client.unanswered.store(false, Ordering::Release);
            let response = answered.unwrap_or_else(|fault| {
                self.meters.fault(&fault);
                tracing::debug!(fault = fault.label(), %fault, "a request was not answered by a pod");
                fault.response(grpc).map(Answer::whole)
            });
            if let Some(entry) = entry {
                entry.write(&response);
            }
            response.map(|answer| answer.during(in_flight))
        }
    }

    async fn forward(
        self: &Arc<Self>,
        client: &Arc<Client>,
        request: &mut Option<Request<Outgoing>>,
    ) -> Result<Response<Answer>, Fault> {
        let mut plan = match request {
            Some(request) => self.plan(request)?,
            None => return Err(Fault::Gone),
        };
        let mut deadline = tokio::time::Instant::now() + plan.settings.hold_timeout;
        let mut tried: Vec<BackendId> = Vec::new();
        let mut failed: Option<Fault> = None;
        let mut planned_now = true;
        loop {
            let lease = match plan.target.admit(&tried, deadline, plan.ahead).await {
                Ok(lease) => lease,
                // What went wrong before says more than that nothing came of waiting.
                Err(Refusal::Deadline) if failed.is_some() => return Err(failed.unwrap_or(Fault::Deadline)),
                Err(refusal) => return Err(refusal.into()),
            };
            // Not before: a held request's headers are not to grow.
            if let (Some(request), Some(host)) = (request.as_mut(), plan.host.take()) {
                client.forwarding.apply(request.headers_mut(), host);
            }
            if !std::mem::take(&mut planned_now) || lease.held().is_some() {
                // The backend is there under the settings of now.
                plan.settings = plan.target.settings();
            }
            let (backend, guess) = (*lease.backend().id(), lease.is_guess());
            // Boxed: a held request is not to take the room that one under way does.
            match Box::pin(self.attempt(client, &mut plan, lease, request)).await {
                Ok(response) => return Ok(response),
                // Nobody said that it was there: it is held for whatever comes first. Or it is there no more.
                Err(Failure { retry: Some(retry), .. }) if request.is_some() && retry.is_no_try(guess) => {
                    self.meters.retried(retry, plan.settings.mode);
                }
                Err(Failure { fault, retry: Some(retry) }) if request.is_some() && tried.len() + 1 < TRIES => {
                    if matches!(fault, Fault::Tls(_)) {
                        // No time mends a certificate: another pod at once, or none.
                        deadline = tokio::time::Instant::now();
                    }
                    self.meters.retried(retry, plan.settings.mode);
                    tried.push(backend);
                    failed = Some(fault);
                }
                Err(Failure { fault, .. }) => return Err(fault),
            }
        }
    }

    /// Decides where a request goes, and makes its headers those of the proxy.
    fn plan(&self, request: &mut Request<Outgoing>) -> Result<Plan, Fault> {
        if request.method() == Method::CONNECT {
            return Err(Fault::Connect);
        }
        let host = headers::host(request)?;
        let target = self.routes.find(host)?;
        let settings = target.settings();
        let bodiless = request.body().is_empty();
        if !bodiless && headers::has_several_lengths(request.headers()) {
            return Err(Fault::Malformed("several Content-Length"));
        }
        let changes = request.version() == Version::HTTP_11 && bodiless && settings.protocol != AppProtocol::H2c;
        let protocol = changes.then(|| headers::upgrade(request.headers())).flatten();
        let ahead = request.body().ahead(request.version());
        let host = headers::host_value(request);
        let headers = request.headers_mut();
        headers::strip_hop_by_hop(headers);
        let expects = !bodiless && headers.contains_key(EXPECT);
        let upgrade = protocol.map(|protocol| {
            headers::set_upgrade(request.headers_mut(), protocol.clone());
            (protocol, hyper::upgrade::on(request))
        });
        Ok(Plan { target, settings, host: Some(host), upgrade, expects, ahead })
    }

    /// Tries one backend. The request is there again afterwards if it may be sent to another.
    async fn attempt(
        self: &Arc<Self>,
        client: &Arc<Client>,
        plan: &mut Plan,
        lease: Lease,
        request: &mut Option<Request<Outgoing>>,
    ) -> Result<Response<Answer>, Failure> {
        let key = self.key(plan, &lease).map_err(|why| unverifiable(why, request))?;
        let resendable = request.as_ref().is_some_and(exchange::is_resendable);
        let within = if resendable { Duration::MAX } else { SURELY_OPEN };
        let mut reused = lease.backend().pool(self.index).reuse(&key, within);
        loop {
            let (mut link, was_there) = match reused.take() {
                Some(link) => {
                    self.meters.reused();
                    (link, true)
                }
                // Rare, and large: apart from what every request waits with.
                None => match Box::pin(self.open(&lease, &key)).await {
                    Ok(opened) => opened,
                    Err(error) => return Err(not_opened(&lease, &error)),
                },
            };
            if lease.backend().is_gone() {
                return Err(Failure { fault: Fault::Refused, retry: Some(Retry::Replaced) });
            }
            let head = request.as_ref().and_then(Head::of);
            let bodiless = head.is_some();
            let begun = Instant::now();
            let lost = match self.exchange(&mut link, request, plan).await {
                Ok((response, keeper)) => {
                    lease.answered();
                    self.meters.answered(response.status(), lease.way(), plan.settings.mode, begun.elapsed());
                    return self.pass_on(client, plan, lease, response, Carrier { link, keeper });
                }
                Err(lost) => lost,
            };
            let unsent = request.is_some();
            if !unsent && (resendable || lost.unprocessed) {
                *request = head.map(Head::request);
            }
            let timed_out = lost.fault == Fault::ResponseTimeout;
            if was_there && request.is_some() && !timed_out {
                // Its other end had been closed: that says nothing about the backend.
                self.meters.retried(Retry::Stale, plan.settings.mode);
                continue;
            }
            if unsent {
                lease.refused();
            } else if timed_out && bodiless && lease.way() == Way::Direct {
                // With a body it may have been the client that was waited for, behind a ClusterIP any of its pods.
                lease.timed_out();
            }
            let retry = if timed_out { Retry::ResponseTimeout } else { Retry::Reset };
            return Err(Failure { fault: lost.fault, retry: Some(retry) });
        }
    }

    /// What a connection for this request must be good for.
    fn key(&self, plan: &Plan, lease: &Lease) -> Result<Key, String> {
        let tls = plan.settings.tls.as_ref();
        let name = tls.map(|tls| {
            let namespace = &plan.target.key().namespace;
            self.trust.name(namespace, &tls.server_name, tls.ca_secret.as_ref(), plan.upgrade.is_some())
        });
        let (address, other) = lease.backend().addresses();
        Ok(Key { address, other, name: name.transpose()?, expected: expected(plan) })
    }

    /// A connection to a backend that has none to spare: one is opened, or another request's comes first. True where it
    /// had been used before.
    async fn open(self: &Arc<Self>, lease: &Lease, key: &Key) -> Result<(Link, bool), ConnectError> {
        let pool = lease.backend().pool(self.index);
        let opening = loop {
            match pool.turn(key).await {
                Turn::Open(opening) => break opening,
                Turn::Failed(error) => return Err(error),
                Turn::Take(Link::Http2(link)) => {
                    self.meters.reused();
                    return Ok((Link::Http2(link), false));
                }
                Turn::Take(Link::Http1(mut link)) => {
                    // What it carried before is over, but it may not have noticed yet.
                    if link.sender.ready().await.is_ok() {
                        self.meters.reused();
                        return Ok((Link::Http1(link), true));
                    }
                }
            }
        };
        let protocol = if key.expected == Expected::Http2 { Protocol::Http2 } else { Protocol::Http1 };
        let begun = Instant::now();
        let opened = self.dialer.open(key, protocol).await;
        self.meters.opened(begun.elapsed(), opened.is_ok());
        match opened {
            // Without TLS it is the kernel that has taken it, and nobody else yet.
            Ok(Link::Http1(link)) if key.name.is_none() => {
                opening.linger();
                let (backend, index) = (Arc::clone(lease.backend()), self.index);
                tokio::spawn(async move {
                    tokio::time::sleep(ACCEPTED_AFTER).await;
                    backend.pool(index).accepted();
                });
                Ok((Link::Http1(link), false))
            }
            Ok(link) => {
                if opening.done(&link) {
                    self.sweep(lease);
                }
                Ok((link, false))
            }
            Err(error) => {
                opening.failed(&error);
                Err(error)
            }
        }
    }

    /// Has a backend's pool swept from now on.
    fn sweep(&self, lease: &Lease) {
        let _ = self.sweeps.send(Arc::downgrade(lease.backend()));
    }

    /// Keeps a connection whose answer has been read to its end.
    fn give_back(&self, lease: &Lease, link: super::upstream::Http1) {
        if lease.backend().usable() && lease.backend().pool(self.index).put(link) {
            self.sweep(lease);
        }
    }

    /// Makes a pod's answer the proxy's.
    fn pass_on(
        self: &Arc<Self>,
        client: &Arc<Client>,
        plan: &mut Plan,
        lease: Lease,
        mut response: Response<Incoming>,
        carrier: Carrier,
    ) -> Result<Response<Answer>, Failure> {
        let protocol = headers::upgrade(response.headers());
        headers::strip_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        match (response.status(), protocol) {
            (StatusCode::SWITCHING_PROTOCOLS, protocol) => {
                let (Some((asked, theirs)), true) = (plan.upgrade.take(), carrier.is_http1()) else {
                    return Err(Failure { fault: Fault::Protocol, retry: Some(Retry::Reset) });
                };
                headers::set_upgrade(response.headers_mut(), protocol.unwrap_or(asked));
                let tunnel = Tunnel::new(client, theirs, hyper::upgrade::on(&mut response), lease, &self.meters);
                *client.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
                client.tunnelled.store(true, Ordering::Release);
                Ok(response.map(|_| Answer::whole(Bytes::new())))
            }
            (StatusCode::UPGRADE_REQUIRED, Some(protocol)) => {
                headers::set_upgrade(response.headers_mut(), protocol);
                Ok(response.map(|body| Answer::streamed(body, self, lease, carrier)))
            }
            _ => Ok(response.map(|body| Answer::streamed(body, self, lease, carrier))),
        }
    }
}

/// Which version of HTTP a connection for this request will speak.
fn expected(plan: &Plan) -> Expected {
    match (&plan.settings.tls, plan.settings.protocol) {
        (Some(_), _) if plan.upgrade.is_none() => Expected::Either,
        (None, AppProtocol::H2c) => Expected::Http2,
        (Some(_), _) | (None, AppProtocol::Http1 | AppProtocol::Https) => Expected::Http1,
    }
}

/// There is nothing to verify a backend with; there will not be for another.
fn unverifiable(why: String, request: &mut Option<Request<Outgoing>>) -> Failure {
    *request = None;
    Failure { fault: Fault::Tls(why), retry: None }
}

/// A connection was not opened: nothing was sent. Whoever tried is the one to tell on the backend.
fn not_opened(lease: &Lease, error: &ConnectError) -> Failure {
    tracing::debug!(address = %lease.address(), error = error as &dyn std::error::Error, "no connection to a backend");
    let (error, tried) = if let ConnectError::Others(theirs) = error { (&**theirs, false) } else { (error, true) };
    let (fault, retry) = match error {
        // No other backend would be better off.
        ConnectError::Full => return Failure { fault: Fault::TooManyConnections, retry: None },
        ConnectError::TimedOut => (Fault::ConnectTimeout, Retry::ConnectTimeout),
        ConnectError::Tls(why) => (Fault::Tls(why.to_string()), Retry::Tls),
        ConnectError::Refused(_) | ConnectError::Http(_) | ConnectError::Others(_) => (Fault::Refused, Retry::Connect),
    };
    if tried && retry == Retry::ConnectTimeout {
        lease.timed_out();
    } else if tried {
        lease.refused();
    }
    Failure { fault, retry: Some(retry) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_request_takes_little_memory() {
        let request = size(Worker::answer);
        assert!(request <= 1280, "{request} bytes");
    }
}
