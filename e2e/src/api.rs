//! A reader of the query API: what `/v1/targets` shows, and `/v1/watch` line by line. It shows failures as they are: no
//! retries, no reconnects.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::eventually::eventually;
use crate::sender::Reply;
use crate::{http_client, https_client};

/// How long one event of a watch may take.
const WATCH_DEADLINE: Duration = Duration::from_secs(20);

/// A caller of one replica's query API.
#[derive(Clone, Debug)]
pub struct Reader {
    base: String,
    token: Option<String>,
    http: reqwest::Client,
}

/// A Service with its endpoints.
#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Ready or not, all of them.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a Service.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Endpoint {
    /// Its pod; none in a Service whose slices somebody else makes.
    pub pod: Option<PodName>,
    /// `ready`, `not-ready`, `draining` or `terminating`.
    pub state: String,
    /// `pushed` or `observed`.
    pub source: String,
    /// When the state began, in milliseconds since the epoch.
    pub since_ms: u64,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Where the Service's ports lead on it.
    pub ports: Vec<EndpointPort>,
    /// Its revision.
    #[serde(default)]
    pub revision: String,
}

/// A pod's name and uid.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct PodName {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// A port of a Service, as it is on one endpoint.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct EndpointPort {
    /// The Service port's name.
    pub name: String,
    /// The number to dial.
    pub port: u16,
}

impl Endpoint {
    /// State and source, as in `ready pushed`.
    pub fn verdict(&self) -> String {
        format!("{} {}", self.state, self.source)
    }
}

impl Reader {
    /// A caller with this token.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(base: &str, token: &str) -> Result<Self> {
        Ok(Self { base: base.to_owned(), token: Some(token.to_owned()), http: http_client()? })
    }

    /// A caller over TLS that trusts the certificates of a PEM text.
    ///
    /// # Errors
    /// When there is none in it.
    pub fn over_tls(base: &str, token: &str, ca_pem: &str) -> Result<Self> {
        Ok(Self { base: base.to_owned(), token: Some(token.to_owned()), http: https_client(ca_pem)? })
    }

    /// A caller with this token, through a client of one's own.
    pub fn through(base: &str, token: &str, http: reqwest::Client) -> Self {
        Self { base: base.to_owned(), token: Some(token.to_owned()), http }
    }

    /// A caller without token.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn anonymous(base: &str) -> Result<Self> {
        Ok(Self { base: base.to_owned(), token: None, http: http_client()? })
    }

    /// Any path.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        Reply::read(self.request(path).send().await?).await
    }

    fn request(&self, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.get(format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Every Service.
    ///
    /// # Errors
    /// When the answer is not 200.
    pub async fn targets(&self) -> Result<Vec<Target>> {
        targets(&self.get("/v1/targets").await?)
    }

    /// The endpoints of one Service; none when it is unknown.
    ///
    /// # Errors
    /// When the answer is neither 200 nor 404.
    pub async fn endpoints(&self, namespace: &str, service: &str) -> Result<Vec<Endpoint>> {
        let reply = self.get(&format!("/v1/targets/{namespace}/{service}")).await?;
        if reply.status == 404 {
            return Ok(Vec::new());
        }
        let targets = targets(&reply)?;
        Ok(targets.into_iter().flat_map(|target| target.endpoints).collect())
    }

    /// One pod's endpoint.
    ///
    /// # Errors
    /// As [`Reader::endpoints`].
    pub async fn endpoint(&self, namespace: &str, service: &str, pod: &str) -> Result<Option<Endpoint>> {
        let mut endpoints = self.endpoints(namespace, service).await?.into_iter();
        Ok(endpoints.find(|endpoint| endpoint.pod.as_ref().is_some_and(|found| found.name == pod)))
    }

    /// Waits until a pod's endpoint has this verdict (`ready pushed`).
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn wait_verdict(&self, namespace: &str, service: &str, pod: &str, verdict: &str) -> Result<Endpoint> {
        let what = format!("{namespace}/{pod} is {verdict} at {}", self.base);
        eventually(&what, async || match self.endpoint(namespace, service, pod).await? {
            Some(endpoint) if endpoint.verdict() == verdict => Ok(Some(endpoint)),
            other => bail!("it is {other:?}"),
        })
        .await
    }

    /// Waits until a Service has no endpoint of a pod.
    ///
    /// # Errors
    /// When it keeps it.
    pub async fn wait_gone(&self, namespace: &str, service: &str, pod: &str) -> Result<()> {
        let what = format!("{namespace}/{pod} is gone at {}", self.base);
        eventually(&what, async || match self.endpoint(namespace, service, pod).await? {
            None => Ok(Some(())),
            Some(endpoint) => bail!("it is {endpoint:?}"),
        })
        .await
    }

    /// Follows `/v1/watch`, from behind the event `after` if one is given.
    ///
    /// # Errors
    /// When the answer is not a stream of events.
    pub async fn watch(&self, after: Option<&str>) -> Result<Watch> {
        // The client's own deadline would end it.
        let mut request = self.request("/v1/watch").timeout(Duration::from_secs(600));
        if let Some(id) = after {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await?;
        ensure!(response.status() == 200, "{}: {}", response.status(), response.text().await?);
        let media_type = response.headers().get(http::header::CONTENT_TYPE);
        let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        ensure!(media_type.starts_with("text/event-stream"), "{media_type}");
        Ok(Watch { response, text: String::new() })
    }
}

fn targets(reply: &Reply) -> Result<Vec<Target>> {
    #[derive(Deserialize)]
    struct Targets {
        targets: Vec<Target>,
    }
    ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
    let Targets { targets } = serde_json::from_str(&reply.body).with_context(|| reply.body.clone())?;
    Ok(targets)
}

/// A stream of server-sent events.
#[derive(Debug)]
pub struct Watch {
    response: reqwest::Response,
    text: String,
}

/// One server-sent event.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its type; `message` when it names none.
    pub kind: String,
    /// Its data, JSON.
    pub data: Value,
}

impl Watch {
    /// The next event; none at the stream's end. Comments are passed over.
    ///
    /// # Errors
    /// When none comes in time, or something else than an event.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = parse(block)?;
                self.text = rest.to_owned();
                if let Some(event) = event {
                    return Ok(Some(event));
                }
            }
            let chunk = timeout(WATCH_DEADLINE, self.response.chunk()).await.context("the watch is silent")??;
            let Some(chunk) = chunk else { return Ok(None) };
            self.text.push_str(std::str::from_utf8(&chunk)?);
        }
    }

    /// The next event for which `wanted` holds.
    ///
    /// # Errors
    /// When none comes in time, or the stream ends.
    pub async fn find(&mut self, wanted: impl Fn(&WatchEvent) -> bool) -> Result<WatchEvent> {
        let find = async {
            while let Some(event) = self.next().await? {
                if wanted(&event) {
                    return Ok(event);
                }
            }
            bail!("the watch ended")
        };
        timeout(WATCH_DEADLINE, find).await.context("the watch does not tell it")?
    }
}

fn parse(block: &str) -> Result<Option<WatchEvent>> {
    let mut event = WatchEvent { id: None, kind: "message".to_owned(), data: Value::Null };
    let mut data = String::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut event.kind),
            "data" => data.push_str(value),
            "" | "retry" => {}
            other => bail!("a field {other:?} in {block:?}"),
        }
    }
    if data.is_empty() {
        return Ok(None);
    }
    event.data = serde_json::from_str(&data).with_context(|| data.clone())?;
    Ok(Some(event))
}
