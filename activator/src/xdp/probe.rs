//! `podlight-activator xdp probe`: asks once, as a kubelet does: a connection of its own, one request, no redirects, nothing
//! but the status decides.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args as ArgGroup;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use podlight_xdp::Reply;
use tokio::net::{TcpStream, lookup_host};

use super::server::SERVER;

/// What a kubelet waits when the probe does not say (`timeoutSeconds`).
const TIMEOUT_SECONDS: &str = "1";

/// Most of an answer's body that is read, as a kubelet does.
const MOST_BYTES: usize = 10 * 1024;

/// Flags of `podlight-activator xdp probe`.
#[derive(Debug, ArgGroup)]
pub struct ProbeArgs {
    /// What to ask: `http://<address>:<port>/<path>`.
    url: Uri,
    /// Seconds that the whole may take.
    #[arg(long, default_value = TIMEOUT_SECONDS, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The URL cannot be asked.
    #[error("{0} must be http://<address>[:<port>]/<path>")]
    Url(Uri),
    /// There is no connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// There is no answer.
    #[error("there is no answer")]
    Ask(#[source] hyper::Error),
    /// The body broke off.
    #[error("the answer breaks off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("there is no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is bad: what a kubelet calls a failure.
    #[error("not ready: {0}")]
    Unready(StatusCode),
    /// The terminal takes nothing.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// Who answered, as far as the answer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Kernel,
    Userspace,
    Other,
}

impl Answered {
    /// The program's answers have one length each and no `Server`, in which this process names itself.
    fn of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let server = headers.get(header::SERVER).map(|server| server.as_bytes());
        let like = |reply: &Reply| {
            let bytes = reply.bytes(None);
            let head = memchr::memmem::find(&bytes, b"\r\n\r\n").map_or(0, |end| end + 4);
            reply.status() == status.as_u16() && bytes.len() - head == body.len()
        };
        match server {
            Some(server) if server == SERVER.as_bytes() => Self::Userspace,
            None if Reply::ALL.iter().any(like) => Self::Kernel,
            Some(_) | None => Self::Other,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "the kernel",
            Self::Userspace => "the activator's process",
            Self::Other => "somebody else",
        }
    }
}

/// Asks, and prints the status, how long it took and who answered.
///
/// # Errors
/// [`ProbeError`], an answer that is not 200 to 399 among them.
pub async fn run(args: &ProbeArgs, mut out: impl Write) -> Result<(), ProbeError> {
    let patience = Duration::from_secs(args.timeout);
    let asked = tokio::time::timeout(patience, ask(&args.url)).await;
    let Asked { status, connected, answered, by, body } = asked.map_err(|_| ProbeError::Timeout(patience))??;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let words: Vec<&str> = body.split_ascii_whitespace().collect();
    writeln!(
        out,
        "{status} in {:.3} ms (connected after {:.3} ms), answered by {}: {}",
        ms(answered),
        ms(connected),
        by.as_str(),
        words.join(" "),
    )
    .map_err(ProbeError::Print)?;
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(ProbeError::Unready(status)) }
}

struct Asked {
    status: StatusCode,
    connected: Duration,
    answered: Duration,
    by: Answered,
    body: String,
}

async fn ask(url: &Uri) -> Result<Asked, ProbeError> {
    let wrong = || ProbeError::Url(url.clone());
    let authority = url.authority().filter(|_| url.scheme_str() == Some("http")).ok_or_else(wrong)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(80);
    let failed = |source| ProbeError::Connect { address: authority.to_string(), source };
    let addresses: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(failed)?.collect();

    let began = Instant::now();
    let stream = TcpStream::connect(&*addresses).await.map_err(failed)?;
    let connected = began.elapsed();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ProbeError::Ask)?;
    let connection = tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority.as_str())
        .header(header::USER_AGENT, concat!("podlight-probe/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| wrong())?;
    let response = sender.send_request(request).await.map_err(ProbeError::Ask)?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MOST_BYTES).collect().await.map_err(ProbeError::Body)?.to_bytes();
    let answered = began.elapsed();
    connection.abort();
    let by = Answered::of(head.status, &head.headers, &body);
    Ok(Asked { status: head.status, connected, answered, by, body: String::from_utf8_lossy(&body).into_owned() })
}
