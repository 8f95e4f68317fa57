//! One request to the running sidecar, over its unix socket or the loopback side of its admin address: for the commands
//! that a kubelet runs in the container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;

use http::header::HOST;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Running;

/// Longest answer that is read: every replica has a line.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody listens.
    #[error("no sidecar answers")]
    Connect(#[source] std::io::Error),
    /// The connection broke.
    #[error("the exchange with the sidecar failed")]
    Exchange(#[from] hyper::Error),
    /// It could not be asked.
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    /// It said no.
    #[error("the sidecar answered {0}")]
    Status(http::StatusCode),
    /// Its answer is too long.
    #[error("what answers is no sidecar")]
    NoSidecar,
}

/// Returns the body of a good answer.
pub(crate) async fn request(running: &Running, method: Method, path: &str) -> Result<Bytes, LocalError> {
    if let Some(path_of_socket) = &running.socket {
        let stream = UnixStream::connect(path_of_socket).await.map_err(LocalError::Connect)?;
        return exchange(stream, method, path).await;
    }
    let mut refused = None;
    for ip in loopback(running.admin.ip()) {
        match TcpStream::connect(SocketAddr::new(ip, running.admin.port())).await {
            Ok(stream) => return exchange(stream, method, path).await,
            Err(error) => refused = Some(error),
        }
    }
    Err(LocalError::Connect(refused.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into())))
}

/// Where a listener on this address is reached from within the pod.
fn loopback(listens_on: IpAddr) -> Vec<IpAddr> {
    match listens_on {
        ip if !ip.is_unspecified() => vec![ip],
        _ => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    method: Method,
    path: &str,
) -> Result<Bytes, LocalError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder().method(method).uri(path).header(HOST, "localhost").body(Empty::<Bytes>::new())?;
    let asked = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        if !head.status.is_success() {
            return Err(LocalError::Status(head.status));
        }
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|_| LocalError::NoSidecar)?;
        Ok(body.to_bytes())
    };
    let mut asked = pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // What the connection had received is still to be read.
        _ = connection => asked.await,
    }
}
