//! What a backend answers, by path:
//! `/ready` as its handle says; `/close` and `/reset` end the connection before an answer, `/close-midway` and `/reset-midway`
//! within one; `/never` does not answer, `/gate` when its handle says, `/slow/<ms>` after that long; `/early` before it reads the
//! body; `/duplex` with the body as it comes; `/status/<n>`, `/bytes/<n>`, `/chunks/<n>`, `/trailers`, `/hops` as they are
//! called; `/events` server-sent events, the second when the gate is opened; `/ws` WebSocket and `/upgrade` any other protocol,
//! echoing; [`grpc`]; and anything else with what was asked.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::wire::End;
use super::{Seen, SeenTls, State, grpc};
use crate::control_plane::lock;

/// A body of ours, sent or received.
pub type Body = UnsyncBoxBody<Bytes, anyhow::Error>;

/// What `/bytes`, `/chunks` and interrupted answers are made of.
const CHUNK: &[u8] = b"0123456789abcdef";

/// Where a request came in.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) connection: u64,
    pub(super) tls: Option<SeenTls>,
    /// Ends the connection.
    pub(super) broken: Arc<watch::Sender<End>>,
}

/// A body that is there at once.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that comes frame by frame from the other end of a channel; an error breaks it off.
pub fn channel() -> (mpsc::Sender<Result<Frame<Bytes>>>, Body) {
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>>>(1);
    let frames = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    (sender, BodyExt::boxed_unsync(StreamBody::new(frames)))
}

/// Answers a request.
pub(super) async fn answer(
    state: Arc<State>,
    place: Place,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let head = request.method() == Method::HEAD;
    let answered = match request.uri().path() {
        "/ready" => {
            let ready = state.ready.load(Ordering::SeqCst);
            status(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, empty())
        }
        path if path.starts_with(grpc::SERVICE) => {
            note(&state, &place, &request);
            Ok(grpc::answer(&state.pod, request).await)
        }
        _ => {
            let number = note(&state, &place, &request);
            scripted(&state, &place, number, request).await
        }
    };
    let answered = answered.unwrap_or_else(|error| {
        let mut failed = Response::new(full(format!("{error:#}")));
        *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        failed
    });
    Ok(if head { bodiless(answered) } else { answered })
}

/// What HEAD is answered: hyper leaves the body away over HTTP/1.1 only.
fn bodiless(mut answer: Response<Body>) -> Response<Body> {
    if let Some(length) = hyper::body::Body::size_hint(answer.body()).exact() {
        answer.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    answer.map(|_| empty())
}

async fn scripted(
    state: &Arc<State>,
    place: &Place,
    number: usize,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    let (what, argument) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    match what {
        "close" => end(place, End::Fin).await,
        "reset" => end(place, End::Reset).await,
        "close-midway" => Ok(midway(place, End::Fin)),
        "reset-midway" => Ok(midway(place, End::Reset)),
        "never" => std::future::pending().await,
        "early" => status(StatusCode::OK, full("early")),
        "status" => {
            let code: StatusCode = argument.parse()?;
            let body = if matches!(code.as_u16(), 204 | 304) { empty() } else { full("Hello, world!\n") };
            status(code, body)
        }
        "bytes" => status(StatusCode::OK, full(CHUNK.repeat(argument.parse::<usize>()?.div_ceil(CHUNK.len())))),
        "chunks" => {
            let chunks =
                stream::iter(0..argument.parse::<usize>()?).map(|_| Ok(Frame::data(Bytes::from_static(CHUNK))));
            status(StatusCode::OK, BodyExt::boxed_unsync(StreamBody::new(chunks)))
        }
        "duplex" => status(StatusCode::OK, request.into_body().map_err(anyhow::Error::from).boxed_unsync()),
        "trailers" => trailers(request).await,
        "hops" => hops(),
        "events" => events(state),
        "ws" => web_socket(state, request),
        "upgrade" => upgrade(state, request),
        "gate" => {
            gate(state).await?;
            echo(state, number, request).await
        }
        "slow" => {
            tokio::time::sleep(Duration::from_millis(argument.parse()?)).await;
            echo(state, number, request).await
        }
        _ => echo(state, number, request).await,
    }
}

/// Notes a request as it comes, before its body.
fn note(state: &State, place: &Place, request: &Request<Incoming>) -> usize {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = request.headers();
    let authority = request.uri().authority().map(ToString::to_string);
    let seen = Seen {
        pod: state.pod.clone(),
        method: request.method().to_string(),
        target: request.uri().path_and_query().map_or_else(|| "*".to_owned(), ToString::to_string),
        version: format!("{:?}", request.version()),
        authority: headers.get(HOST).map(text).or(authority).unwrap_or_default(),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body_bytes: 0,
        body_sha256: String::new(),
        connection: place.connection,
        tls: place.tls.clone(),
    };
    let mut all = lock(&state.seen);
    all.push(seen);
    all.len() - 1
}

/// Answers with what was asked, body and all.
async fn echo(state: &State, number: usize, request: Request<Incoming>) -> Result<Response<Body>> {
    let body = request.into_body().collect().await?.to_bytes();
    let seen = {
        let mut all = lock(&state.seen);
        let seen = all.get_mut(number).context("not noted")?;
        seen.body_bytes = body.len();
        seen.body_sha256 = sha256(&body);
        seen.clone()
    };
    let mut response = status(StatusCode::OK, full(serde_json::to_vec(&seen)?))?;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// SHA-256, hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().fold(String::new(), |mut text, byte| {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn status(status: StatusCode, body: Body) -> Result<Response<Body>> {
    Ok(Response::builder().status(status).body(body)?)
}

async fn end(place: &Place, how: End) -> Result<Response<Body>> {
    place.broken.send_replace(how);
    std::future::pending().await
}

/// Ends the connection once the first of a hundred bytes are on their way.
fn midway(place: &Place, how: End) -> Response<Body> {
    let broken = Arc::clone(&place.broken);
    let frames = stream::unfold(0, move |step| {
        let broken = Arc::clone(&broken);
        async move {
            if step > 0 {
                // The answer's head goes out before this is polled again, or with it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                broken.send_replace(how);
                std::future::pending::<()>().await;
            }
            Some((Ok(Frame::data(Bytes::from_static(CHUNK))), step + 1))
        }
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
    response.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from_static("100"));
    response
}

/// Waits for the gate.
async fn gate(state: &Arc<State>) -> Result<()> {
    struct Waiting(Arc<State>);
    impl Drop for Waiting {
        fn drop(&mut self) {
            self.0.at_gate.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let waiting = state.at_gate.fetch_add(1, Ordering::SeqCst) + 1;
    let _waiting = Waiting(Arc::clone(state));
    state.most_at_gate.fetch_max(waiting, Ordering::SeqCst);
    state.gate.subscribe().wait_for(|open| *open).await?;
    Ok(())
}

/// Echoes the body, and its trailers behind it with one of its own.
async fn trailers(request: Request<Incoming>) -> Result<Response<Body>> {
    let collected = request.into_body().collect().await?;
    let mut trailers = collected.trailers().cloned().unwrap_or_default();
    trailers.insert("x-checksum", HeaderValue::from_str(&sha256(&collected.to_bytes()))?);
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    let announced = names.join(", ");
    let frames = [Ok(Frame::data(Bytes::from_static(CHUNK))), Ok(Frame::trailers(trailers))];
    let body = BodyExt::boxed_unsync(StreamBody::new(stream::iter(frames)));
    Ok(Response::builder().header("trailer", announced).body(body)?)
}

/// Answers with headers that are for one hop, and one that is not.
fn hops() -> Result<Response<Body>> {
    let response = Response::builder()
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("x-kept", "1");
    Ok(response.body(full("hops"))?)
}

/// One event now, another when the gate is opened.
fn events(state: &Arc<State>) -> Result<Response<Body>> {
    let state = Arc::clone(state);
    let frames = stream::unfold(0, move |n| {
        let state = Arc::clone(&state);
        async move {
            match n {
                0 => {}
                1 => gate(&state).await.ok()?,
                _ => return None,
            }
            Some((Ok(Frame::data(Bytes::from(format!("data: {n}\n\n")))), n + 1))
        }
    });
    let response = Response::builder().header(CONTENT_TYPE, "text/event-stream");
    Ok(response.body(BodyExt::boxed_unsync(StreamBody::new(frames)))?)
}

fn switching(protocol: &HeaderValue, more: Option<(HeaderName, String)>) -> Result<Response<Body>> {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
    if let Some((name, value)) = more {
        headers.insert(name, value.parse()?);
    }
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS, empty())?;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Echoes the messages of a WebSocket.
fn web_socket(state: &Arc<State>, mut request: Request<Incoming>) -> Result<Response<Body>> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).context("no Sec-WebSocket-Key")?;
    let accept = derive_accept_key(key.as_bytes());
    let (upgraded, mut ends) = (hyper::upgrade::on(&mut request), state.end.subscribe());
    let mut cuts = state.cuts.subscribe();
    tokio::spawn(async move {
        let socket = TokioIo::new(upgraded.await?);
        let mut socket = WebSocketStream::from_raw_socket(socket, Role::Server, None).await;
        loop {
            let message = tokio::select! {
                message = socket.next() => message.context("closed")??,
                _ = ends.wait_for(|end| *end != End::Never) => return Ok::<_, anyhow::Error>(()),
                _ = cuts.recv() => return Ok::<_, anyhow::Error>(()),
            };
            if message.is_text() || message.is_binary() {
                socket.send(message).await?;
            }
        }
    });
    let name = HeaderName::from_static("sec-websocket-accept");
    switching(&HeaderValue::from_static("websocket"), Some((name, accept)))
}

/// Echoes bytes after a switch to whatever was asked for, until the client has said all.
fn upgrade(state: &Arc<State>, mut request: Request<Incoming>) -> Result<Response<Body>> {
    let protocol = request.headers().get(UPGRADE).cloned().ok_or_else(|| anyhow!("no Upgrade"))?;
    let (upgraded, mut ends) = (hyper::upgrade::on(&mut request), state.end.subscribe());
    let mut cuts = state.cuts.subscribe();
    tokio::spawn(async move {
        let mut wire = TokioIo::new(upgraded.await?);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = tokio::select! {
                read = wire.read_buf(&mut bytes) => read?,
                _ = ends.wait_for(|end| *end != End::Never) => 0,
                _ = cuts.recv() => return Ok::<_, anyhow::Error>(()),
            };
            if read == 0 {
                // What is said at the end still arrives after the client's half is closed.
                wire.write_all(b"bye").await?;
                return Ok::<_, anyhow::Error>(wire.shutdown().await?);
            }
            wire.write_all(&bytes).await?;
        }
    });
    switching(&protocol, None)
}
