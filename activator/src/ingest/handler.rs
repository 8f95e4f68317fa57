//! One request: what may be read of it, in which order the steps come, and the answer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use bytes::Bytes;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError};
use metrics::{counter, histogram};
use podlight_proto::{
    Accepted, EVENT_MEDIA_TYPE, ErrorCode, FreshEvent, Kind, MAX_EVENT_BYTES, Outcome, PodUid, UnverifiedEvent,
};

use super::limits::{Place, Shed};
use super::ownership::{Claim, Owned, OwnershipError};
use super::refusal::{self, Refusal};
use super::session::{Admission, Moment, SessionError, Voucher};
use super::{AuthMode, Ingest};
use crate::server::Peer;
use crate::table::owner::PushError;
use crate::table::{Pacing, Transition};

/// The address of a request that the server has not marked: equal to no pod's.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Answers `POST /v1/events`.
pub(super) async fn post(State(ingest): State<Arc<Ingest>>, request: Request) -> Response<Body> {
    let started = Instant::now();
    let peer = request.extensions().get::<Peer>().map_or(NOBODY, |Peer(address)| address.ip());
    let (kind, taken) = ingest.take(request, peer).await;
    let result = match &taken {
        Ok(accepted) => accepted.result.as_str(),
        Err(refusal) => refusal.code().as_str(),
    };
    let kind = kind.map_or("unknown", Kind::as_str);
    counter!("podlight_events_total", "kind" => kind, "result" => result).increment(1);
    histogram!("podlight_event_duration_seconds").record(started.elapsed().as_secs_f64());
    match taken {
        Ok(accepted) => refusal::json(StatusCode::ACCEPTED, &accepted),
        Err(refusal) => {
            let uptime = ingest.clock.now().uptime;
            refusal::record(&refusal, peer, uptime);
            refusal::response(&refusal, uptime.subsec_nanos().into())
        }
    }
}

/// Answers every other method.
pub(super) async fn method_not_allowed() -> Response<Body> {
    let mut response = refusal::problem(ErrorCode::MethodNotAllowed, "events are posted".into());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

/// A request within its bounds that holds an event of the right shape.
struct Received {
    event: UnverifiedEvent,
    token: Option<HeaderValue>,
    peer: IpAddr,
    _place: Place,
}

impl Ingest {
    async fn take(self: &Arc<Self>, request: Request, peer: IpAddr) -> (Option<Kind>, Result<Accepted, Refusal>) {
        match self.receive(request, peer).await {
            Ok(received) => (Some(received.event.unverified_event().kind), self.process(received).await),
            Err(refusal) => (None, Err(refusal)),
        }
    }

    /// Steps 1 and 2: bounds, then shape.
    async fn receive(&self, request: Request, peer: IpAddr) -> Result<Received, Refusal> {
        self.limits.take(peer, self.clock.now().uptime)?;
        let place = self.in_flight.enter().ok_or(Shed::InFlight)?;
        check_head(request.headers())?;
        let (parts, body) = request.into_parts();
        let body = tokio::time::timeout(self.body_timeout, read(body))
            .await
            .map_err(|_| Refusal::SlowBody(self.body_timeout))??;
        let event = UnverifiedEvent::parse(&body)?;
        Ok(Received { event, token: authorization(&parts.headers)?, peer, _place: place })
    }

    /// Takes an event as far as it gets. Up to the first wait that happens right here; from then on in a task,
    /// because a sender that leaves before the answer has still told us.
    async fn process(self: &Arc<Self>, received: Received) -> Result<Accepted, Refusal> {
        let mut admission = Box::pin(Arc::clone(self).admit(received));
        if let Poll::Ready(admission) = futures::poll!(&mut admission) {
            // The event is in the table's channel before this waits.
            return self.apply(admission?).await;
        }
        let place = self.waiting.enter().ok_or(Shed::Waiting)?;
        let ingest = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _place = place;
            let admission = admission.await?;
            ingest.apply(admission).await
        });
        task.await.map_err(|_| Refusal::Lost)?
    }

    async fn admit(self: Arc<Self>, received: Received) -> Result<(Admission, PodUid), Refusal> {
        if !self.kubernetes.synced() {
            return Err(Refusal::NotSynced);
        }
        let Received { event, token, peer, _place } = received;
        let pod = *event.unverified_pod().uid();
        let admission = match &token {
            None => self.admit_by_key(event, peer).await?,
            Some(header) => self.admit_by_token(event, bearer(header)?, peer).await?,
        };
        Ok((admission, pod))
    }

    /// An event that its key vouches for: the signature comes before anything that could cost a call.
    async fn admit_by_key(&self, event: UnverifiedEvent, peer: IpAddr) -> Result<Admission, Refusal> {
        self.sessions.recognise(event.unverified_pod().uid(), event.key())?;
        let event = self.check_signature(event)?;
        let owned = self.check_ownership(Claim { event: event.event(), subject: None, peer }).await?;
        self.decide(event, &owned, Voucher::Key)
    }

    /// An event that a token vouches for.
    async fn admit_by_token(&self, event: UnverifiedEvent, token: &str, peer: IpAddr) -> Result<Admission, Refusal> {
        let token = self.authenticator.read_of_pod(token)?;
        event.check_token(token.text())?;
        let pod = event.unverified_pod();
        if !token.unverified_subject().is_pod(pod) {
            return Err(OwnershipError::OtherPod.into());
        }
        let known = self.sessions.recognise(pod.uid(), event.key()).is_ok();
        if !known && !self.is_open_to(pod.uid()) {
            return Err(Refusal::Closed);
        }
        let token = match self.authenticator.verify(&token).await {
            Ok(token) => token,
            // Nobody can tell whether the token is good; what the key alone may say, it still may.
            Err(undecided) if known && undecided.is_undecided() => {
                let admitted = self.admit_by_key(event, peer).await;
                let in_vain = matches!(admitted, Err(Refusal::Session(SessionError::BindingExpired)));
                return if in_vain { Err(undecided.into()) } else { admitted };
            }
            Err(error) => return Err(error.into()),
        };
        let claim = Claim { event: event.unverified_event(), subject: Some(token.subject()), peer };
        let owned = self.check_ownership(claim).await?;
        let event = self.check_signature(event)?;
        self.decide(event, &owned, Voucher::Token(&token))
    }

    /// Whether a key that is not known may be bound now. While the API server does not answer, only the last
    /// watch state can vouch for a pod, and only where no review is wanted.
    fn is_open_to(&self, pod: &PodUid) -> bool {
        self.kubernetes.reachable() || (self.auth == AuthMode::Jwks && self.kubernetes.pod(pod).is_some())
    }

    async fn check_ownership(&self, claim: Claim<'_>) -> Result<Owned, Refusal> {
        let owned = self.ownership.check(claim).await;
        let pod = claim.event.pod.uid();
        if matches!(owned, Err(OwnershipError::NoSuchPod)) && self.kubernetes.pod(pod).is_none() {
            self.sessions.forget(pod);
        }
        Ok(owned?)
    }

    fn check_signature(&self, event: UnverifiedEvent) -> Result<FreshEvent, Refusal> {
        Ok(event.verify()?.fresh(self.clock.now().wall_ms)?)
    }

    fn decide(&self, event: FreshEvent, owned: &Owned, voucher: Voucher<'_>) -> Result<Admission, Refusal> {
        let now = self.clock.now();
        let now = Moment { wall_seconds: now.wall_ms / 1000, uptime: now.uptime };
        let is_alive = |pod: &PodUid| self.kubernetes.pod(pod).is_some();
        let admission = self.sessions.admit(event, owned, voucher, now, is_alive)?;
        if matches!(voucher, Voucher::Token(_)) {
            self.publish_sessions();
        }
        Ok(admission)
    }

    async fn apply(&self, (admission, pod): (Admission, PodUid)) -> Result<Accepted, Refusal> {
        let event = match admission {
            Admission::Admitted(event) => event.into_event(),
            Admission::Superseded(boot) => return Ok(self.accepted(superseded(boot, self.pacing))),
        };
        match self.table.push(event).await {
            Ok(transition) => Ok(self.accepted(transition)),
            Err(PushError::Gone(_)) => {
                self.sessions.forget(&pod);
                Err(Refusal::Gone)
            }
            Err(PushError::Overloaded) => Err(Refusal::TableOverloaded),
        }
    }

    fn accepted(&self, transition: Transition) -> Accepted {
        let Transition { outcome, boot, heartbeat_after_seconds, lease_seconds } = transition;
        let (replica, peers) = (self.replica.clone(), self.peers.clone());
        Accepted { result: outcome, boot, replica, heartbeat_after_seconds, lease_seconds, peers }
    }
}

/// The answer to an event that does not reach the table: another key's boot holds. To be followed up at once.
fn superseded(boot: podlight_proto::Boot, pacing: Pacing) -> Transition {
    let heartbeat_after_seconds = pacing.unconfirmed_seconds;
    let lease_seconds = Pacing::lease_seconds(heartbeat_after_seconds);
    Transition { outcome: Outcome::Superseded, boot, heartbeat_after_seconds, lease_seconds }
}

/// Checks what the headers already tell of the body.
fn check_head(headers: &HeaderMap) -> Result<(), Refusal> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(EVENT_MEDIA_TYPE) {
        return Err(Refusal::MediaType);
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_EVENT_BYTES as u64) {
        return Err(Refusal::TooLarge);
    }
    Ok(())
}

/// Reads a body of at most [`MAX_EVENT_BYTES`]. What comes in one piece is not copied.
async fn read(mut body: Body) -> Result<Bytes, Refusal> {
    let (mut first, mut joined) = (Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let too_long = error.into_inner().downcast_ref::<LengthLimitError>().is_some();
            if too_long { Refusal::TooLarge } else { Refusal::BrokenBody }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len().max(joined.len()) + data.len() > MAX_EVENT_BYTES {
            return Err(Refusal::TooLarge);
        }
        if first.is_empty() {
            first = data;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok(if joined.is_empty() { first } else { joined.into() })
}

/// The Authorization header, if there is one.
fn authorization(headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value.cloned()),
        (_, Some(_)) => Err(Refusal::Authorizations),
    }
}

/// The token in an Authorization header (RFC 6750 §2.1); the scheme in any case (RFC 9110 §11.1).
pub(super) fn bearer(header: &HeaderValue) -> Result<&str, Refusal> {
    let text = header.to_str().map_err(|_| Refusal::NotBearer)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refusal::NotBearer)?;
    let token = token.trim_start_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() { Ok(token) } else { Err(Refusal::NotBearer) }
}

#[cfg(test)]
mod tests;
