//! An activator that checks what it gets and answers as it is told to.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use podlight_proto::{Accepted, Boot, Event, Kind, Outcome, UnverifiedEvent};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What to answer to a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// 202 with this result, naming a boot other than the event's.
    Accepted(Outcome, Option<u64>),
    /// A status, header fields and a body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Nothing, ever.
    Hang,
    /// The end of the connection.
    Close,
    /// Something that is not HTTP.
    Garbage,
}

impl Answer {
    pub(crate) const APPLIED: Self = Self::Accepted(Outcome::Applied, None);

    pub(crate) fn status(status: u16) -> Self {
        Self::Status(status, Vec::new(), r#"{"err":"pending","description":"as the test wants it"}"#.into())
    }

    pub(crate) fn retry_after(status: u16, seconds: u64) -> Self {
        Self::Status(status, vec![("retry-after", seconds.to_string())], String::new())
    }
}

/// One event that arrived, its signature and its token's hash verified.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) event: Event,
    pub(crate) token: Option<String>,
    pub(crate) at: tokio::time::Instant,
    pub(crate) jws: Bytes,
}

#[derive(Default)]
struct Inner {
    received: Vec<Received>,
    script: VecDeque<Answer>,
    always: Option<Answer>,
    heartbeat_after_seconds: u32,
    peers: Vec<String>,
}

/// The activator. Answers follow the script and then are 202 applied.
#[derive(Clone)]
pub(crate) struct Activator {
    inner: Arc<Mutex<Inner>>,
    pub(crate) url: String,
}

impl Activator {
    pub(crate) async fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        Self::start_with(None, script).await
    }

    pub(crate) async fn start_with(tls: Option<TlsAcceptor>, script: impl IntoIterator<Item = Answer>) -> Self {
        let script = script.into_iter().collect();
        let inner = Arc::new(Mutex::new(Inner { script, heartbeat_after_seconds: 600, ..Inner::default() }));
        let takes = Arc::clone(&inner);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let port = serve(tls, move |request| takes.lock().expect("not poisoned").take(request)).await;
        Self { inner, url: format!("{scheme}://localhost:{port}") }
    }

    pub(crate) fn flag(&self) -> String {
        format!("--activator={}", self.url)
    }

    /// From now on, and before the rest of the script.
    pub(crate) fn always(&self, answer: Option<Answer>) {
        self.inner.lock().expect("not poisoned").always = answer;
    }

    /// To the next event, once the script is at its end.
    pub(crate) fn next(&self, answer: Answer) {
        self.inner.lock().expect("not poisoned").script.push_back(answer);
    }

    pub(crate) fn ask_for_heartbeats(&self, after_seconds: u32) {
        self.inner.lock().expect("not poisoned").heartbeat_after_seconds = after_seconds;
    }

    pub(crate) fn name_peers(&self, peers: &[&str]) {
        self.inner.lock().expect("not poisoned").peers = peers.iter().map(|&peer| peer.to_owned()).collect();
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.inner.lock().expect("not poisoned").received.clone()
    }

    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.received().iter().map(|received| received.event.kind).collect()
    }

    /// Waits until so many events have arrived.
    pub(crate) async fn count(&self, count: usize) -> Vec<Received> {
        super::eventually(&format!("{count} events at {}: {:?}", self.url, self.kinds()), || {
            Some(self.received()).filter(|received| received.len() >= count)
        })
        .await
    }

    /// Waits until something can be made of what has arrived.
    pub(crate) async fn until<T>(&self, what: &str, made: impl Fn(&[Received]) -> Option<T>) -> T {
        super::eventually(&format!("{what} at {}", self.url), || made(&self.received())).await
    }

    /// Waits for an event of a kind.
    pub(crate) async fn kind(&self, kind: Kind) -> Received {
        let found = |received: &[Received]| received.iter().find(|received| received.event.kind == kind).cloned();
        self.until(kind.as_str(), found).await
    }
}

impl Inner {
    fn take(&mut self, Asked { method, path, headers, body }: Asked) -> Answer {
        assert_eq!((method, path.as_str()), (Method::POST, podlight_proto::EVENTS_PATH));
        assert_eq!(headers["content-type"], podlight_proto::EVENT_MEDIA_TYPE);
        let token = headers.get("authorization").map(|value| value.to_str().expect("text"));
        let token = token.map(|value| value.strip_prefix("Bearer ").expect("a bearer").to_owned());
        let event = UnverifiedEvent::parse(&body).expect("an event");
        if let Some(token) = &token {
            event.check_token(token).expect("its hash");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
        let event = event.verify().expect("signed").fresh(now).expect("fresh").into_event();
        let boot = event.order.boot;
        self.received.push(Received { event, token, at: tokio::time::Instant::now(), jws: body });
        let answer = self.always.clone().or_else(|| self.script.pop_front()).unwrap_or(Answer::APPLIED);
        let Answer::Accepted(result, held) = answer else { return answer };
        let accepted = Accepted {
            result,
            boot: held.map_or(boot, |held| Boot::try_from(held).expect("a boot")),
            replica: "fake-0".into(),
            heartbeat_after_seconds: self.heartbeat_after_seconds,
            lease_seconds: 30,
            peers: self.peers.clone(),
        };
        Answer::Status(202, Vec::new(), serde_json::to_string(&accepted).expect("serializes"))
    }
}

/// A request as it came.
pub(crate) struct Asked {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// Serves every request with what `answer` makes of it; returns the port.
pub(crate) async fn serve(tls: Option<TlsAcceptor>, answer: impl FnMut(Asked) -> Answer + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let answer = Arc::new(Mutex::new(answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answer, tls) = (Arc::clone(&answer), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => connection(stream, answer).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            connection(stream, answer).await;
                        }
                    }
                }
            });
        }
    });
    port
}

async fn connection<A>(stream: impl AsyncRead + AsyncWrite + Unpin, answer: Arc<Mutex<A>>)
where
    A: FnMut(Asked) -> Answer + Send + 'static,
{
    let garbage = Arc::new(Mutex::new(false));
    let spoils = Arc::clone(&garbage);
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, spoils) = (Arc::clone(&answer), Arc::clone(&spoils));
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            let asked = Asked { method: head.method, path: head.uri.path().into(), headers: head.headers, body };
            let answer = (answer.lock().expect("not poisoned"))(asked);
            match answer {
                Answer::Status(status, headers, body) => {
                    let response = Response::builder().status(status);
                    let response = headers.into_iter().fold(response, |r, (name, value)| r.header(name, value));
                    Ok(response.body(Full::new(Bytes::from(body))).expect("a response"))
                }
                Answer::Hang => std::future::pending().await,
                Answer::Garbage => {
                    *spoils.lock().expect("not poisoned") = true;
                    Err(io::Error::other("garbage"))
                }
                Answer::Close | Answer::Accepted(..) => Err(io::Error::other("closed")),
            }
        })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    if *garbage.lock().expect("not poisoned") {
        let mut stream = connection.into_parts().io.into_inner();
        let _ = stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await;
        let _ = stream.shutdown().await;
    }
}
