//! `podlight-activator status`: a running activator's table in the terminal, and with `-w` each change as a new line. A
//! client like any other: what it may see, the API server decides.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args as ArgGroup;
use http::StatusCode;
use podlight_proto::Problem;
use reqwest::{Client, Response};
use serde::Deserialize;

mod columns;
mod events;

use columns::Columns;
use events::{EventReader, ServerEvent};

/// The activator behind a `kubectl port-forward`.
const SERVER: &str = "https://localhost:8443";

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest silence: the server says something every 15 s.
const READ_TIMEOUT: Duration = Duration::from_secs(45);

/// Pause before a lost watch is begun again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Flags of `podlight-activator status`.
#[derive(Debug, ArgGroup)]
pub struct StatusArgs {
    /// Go on and print each change as a new line.
    #[arg(long, short)]
    watch: bool,
    /// Base URL of an activator.
    #[arg(long, env = "PODLIGHT_SERVER", default_value = SERVER)]
    server: String,
    /// File with a token for the audience podlight, read for each connection.
    #[arg(long, env = "PODLIGHT_TOKEN_FILE")]
    token_file: PathBuf,
    /// CA certificates as PEM to trust instead of the system's.
    #[arg(long, env = "PODLIGHT_CA")]
    ca: Option<PathBuf>,
    /// Only this namespace.
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Why the table cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The activator cannot be reached, or the connection broke.
    #[error("cannot ask {server}")]
    Call {
        /// Which activator.
        server: String,
        /// Why.
        source: reqwest::Error,
    },
    /// It says no.
    #[error("the activator answers {status}: {description}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// Its words.
        description: String,
    },
    /// It says something that makes no sense.
    #[error("the answer is not an activator's")]
    Answer(#[from] serde_json::Error),
    /// The terminal takes nothing.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// A list of targets.
#[derive(Debug, Deserialize)]
struct Targets {
    targets: Vec<Target>,
}

/// One Service and its endpoints, or some of them.
#[derive(Debug, Deserialize)]
struct Target {
    namespace: String,
    service: String,
    endpoints: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Debug, Clone, Deserialize)]
struct Endpoint {
    pod: Option<Pod>,
    /// What an endpoint without a pod goes by.
    id: Option<String>,
    state: String,
    source: String,
    since_ms: u64,
    age_ms: Option<u64>,
    addresses: Vec<String>,
    ports: Vec<Port>,
    revision: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Pod {
    name: String,
    uid: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Port {
    name: String,
    port: u16,
}

/// Ages grow by themselves: they make no difference.
impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        let told = |e: &Self| (e.state.clone(), e.source.clone(), e.since_ms, e.revision.clone());
        told(self) == told(other)
            && (&self.pod, &self.id) == (&other.pod, &other.id)
            && (&self.addresses, &self.ports) == (&other.addresses, &other.ports)
    }
}

/// Namespace, Service, and what the endpoint goes by in it.
type Key = (String, String, String);

impl Target {
    fn into_rows(self) -> impl Iterator<Item = (Key, Endpoint)> {
        let Self { namespace, service, endpoints } = self;
        endpoints.into_iter().map(move |endpoint| ((namespace.clone(), service.clone(), endpoint.key()), endpoint))
    }
}

impl Endpoint {
    fn key(&self) -> String {
        self.pod.as_ref().map(|pod| pod.uid.clone()).or_else(|| self.id.clone()).unwrap_or_default()
    }
}

/// Shows the table, and with `-w` goes on until the output is closed.
///
/// # Errors
/// [`StatusError`].
pub async fn run(args: &StatusArgs, mut out: impl Write) -> Result<(), StatusError> {
    let server = Server::new(args)?;
    let shown = if args.watch { server.watch(&mut out).await } else { server.show(&mut out).await };
    match shown {
        // As `head` does it: nobody wants to see more.
        Err(StatusError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        shown => shown,
    }
}

struct Server {
    client: Client,
    base: String,
    token_file: PathBuf,
    namespace: Option<String>,
}

impl Server {
    fn new(args: &StatusArgs) -> Result<Self, StatusError> {
        let base = args.server.trim_end_matches('/').to_owned();
        let failed = |source| StatusError::Call { server: base.clone(), source };
        // The token goes nowhere but to the server that was named.
        let mut builder = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        if let Some(path) = &args.ca {
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(&read(path)?).map_err(failed)?);
        }
        let client = builder.build().map_err(failed)?;
        Ok(Self { client, base, token_file: args.token_file.clone(), namespace: args.namespace.clone() })
    }

    async fn get(&self, path: &str, last_event_id: Option<&str>) -> Result<Response, StatusError> {
        let token = String::from_utf8_lossy(&read(&self.token_file)?).trim().to_owned();
        let mut request = self.client.get(format!("{}{path}", self.base)).bearer_auth(token);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await.map_err(|e| self.failed(e))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let problem = answer.bytes().await.ok().and_then(|body| serde_json::from_slice::<Problem>(&body).ok());
        let description = problem.map_or_else(|| "no reason given".to_owned(), |problem| problem.description);
        Err(StatusError::Refused { status, description })
    }

    fn failed(&self, source: reqwest::Error) -> StatusError {
        StatusError::Call { server: self.base.clone(), source: source.without_url() }
    }

    async fn show(&self, out: &mut impl Write) -> Result<(), StatusError> {
        let answer = self.get("/v1/targets", None).await?;
        let body = answer.bytes().await.map_err(|e| self.failed(e))?;
        let targets: Targets = serde_json::from_slice(&body)?;
        let wanted = |target: &Target| self.namespace.as_ref().is_none_or(|namespace| *namespace == target.namespace);
        let rows: Vec<_> = targets.targets.into_iter().filter(wanted).flat_map(Target::into_rows).collect();
        let cells: Vec<_> = rows.iter().map(|(key, endpoint)| columns::cells(key, endpoint)).collect();
        Columns::fitting(&cells).print_all(&cells, out).map_err(StatusError::Print)
    }

    /// Begins again whenever the connection is lost, but not before it has ever held.
    async fn watch(&self, out: &mut impl Write) -> Result<(), StatusError> {
        let mut screen = Screen::new(out);
        let mut last_event_id: Option<String> = None;
        loop {
            let lost = self.follow(&mut screen, &mut last_event_id).await;
            match lost {
                Err(error @ (StatusError::Print(_) | StatusError::Answer(_) | StatusError::File { .. })) => {
                    return Err(error);
                }
                Err(error) if last_event_id.is_none() => return Err(error),
                Err(StatusError::Refused { status, description }) if status.is_client_error() && status != 429 => {
                    return Err(StatusError::Refused { status, description });
                }
                Ok(()) | Err(StatusError::Refused { .. } | StatusError::Call { .. }) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn follow<W: Write>(&self, screen: &mut Screen<'_, W>, last: &mut Option<String>) -> Result<(), StatusError> {
        let filter = self.namespace.as_ref().map_or(String::new(), |namespace| format!("?namespace={namespace}"));
        let mut answer = self.get(&format!("/v1/watch{filter}"), last.as_deref()).await?;
        let mut reader = EventReader::default();
        screen.restart();
        while let Some(bytes) = answer.chunk().await.map_err(|e| self.failed(e))? {
            reader.push(&bytes);
            while let Some(event) = reader.next_event() {
                screen.take(&event)?;
                *last = event.id.or(last.take());
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StatusError> {
    std::fs::read(path).map_err(|source| StatusError::File { path: path.to_owned(), source })
}

/// What is on the terminal, and what is known.
struct Screen<'a, W> {
    out: &'a mut W,
    columns: Option<Columns>,
    known: BTreeMap<Key, Endpoint>,
    /// A full state that is still coming in.
    coming: BTreeMap<Key, Endpoint>,
}

#[derive(Deserialize)]
struct Synced {
    resumed: bool,
}

#[derive(Deserialize)]
struct EndpointChange {
    namespace: String,
    service: String,
    #[serde(default)]
    id: String,
    endpoint: Option<Endpoint>,
}

impl<'a, W: Write> Screen<'a, W> {
    fn new(out: &'a mut W) -> Self {
        Self { out, columns: None, known: BTreeMap::new(), coming: BTreeMap::new() }
    }

    fn restart(&mut self) {
        self.coming.clear();
    }

    fn take(&mut self, event: &ServerEvent) -> Result<(), StatusError> {
        match event.name.as_str() {
            "state" => {
                let target: Target = serde_json::from_str(&event.data)?;
                self.coming.extend(target.into_rows());
                Ok(())
            }
            "synced" => {
                let synced: Synced = serde_json::from_str(&event.data)?;
                if synced.resumed { Ok(()) } else { self.replace().map_err(StatusError::Print) }
            }
            "endpoint" | "endpoint-gone" => {
                let change: EndpointChange = serde_json::from_str(&event.data)?;
                let key = (change.namespace, change.service, change.id);
                self.change(key, change.endpoint).map_err(StatusError::Print)
            }
            "target-gone" => {
                let gone: EndpointChange = serde_json::from_str(&event.data)?;
                let of_target = |key: &&Key| key.0 == gone.namespace && key.1 == gone.service;
                let keys: Vec<Key> = self.known.keys().filter(of_target).cloned().collect();
                keys.into_iter().try_for_each(|key| self.change(key, None)).map_err(StatusError::Print)
            }
            // A newer server may say more.
            _ => Ok(()),
        }
    }

    /// A full state is complete: the first is the table, a later one is compared with what is known.
    fn replace(&mut self) -> io::Result<()> {
        let coming = std::mem::take(&mut self.coming);
        if self.columns.is_none() {
            let cells: Vec<_> = coming.iter().map(|(key, endpoint)| columns::cells(key, endpoint)).collect();
            let columns = Columns::fitting(&cells);
            columns.print_all(&cells, self.out)?;
            self.columns = Some(columns);
            self.known = coming;
            return self.out.flush();
        }
        let gone: Vec<Key> = self.known.keys().filter(|key| !coming.contains_key(*key)).cloned().collect();
        gone.into_iter().try_for_each(|key| self.change(key, None))?;
        coming.into_iter().try_for_each(|(key, endpoint)| self.change(key, Some(endpoint)))
    }

    /// Prints a line if there is something new in it.
    fn change(&mut self, key: Key, endpoint: Option<Endpoint>) -> io::Result<()> {
        let Some(columns) = &self.columns else { return Ok(()) };
        let line = match endpoint {
            Some(endpoint) if self.known.get(&key) == Some(&endpoint) => return Ok(()),
            Some(endpoint) => {
                let line = columns::cells(&key, &endpoint);
                self.known.insert(key, endpoint);
                line
            }
            None => {
                let Some(gone) = self.known.remove(&key) else { return Ok(()) };
                columns::cells(&key, &Endpoint { state: "gone".to_owned(), age_ms: None, ..gone })
            }
        };
        columns.print(&line, self.out)?;
        self.out.flush()
    }
}

/// Reads server-sent events and prints them, for the fuzz target.
#[cfg(feature = "fuzzing")]
pub fn fuzz_events(bytes: &[u8]) {
    let (mut reader, mut out) = (EventReader::default(), Vec::new());
    let mut screen = Screen::new(&mut out);
    reader.push(bytes);
    while let Some(event) = reader.next_event() {
        if screen.take(&event).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
