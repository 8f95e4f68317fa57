//! The grpc probe: `grpc.health.v1.Health/Check` over h2 without TLS. One string goes out and one number comes
//! back, so the messages are written and read here, by hand.

use std::net::SocketAddr;
use std::pin::pin;

use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Failure;

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u8 = 1;

/// Longest answer that is read; one with a status has 7 bytes.
const MAX_ANSWER_BYTES: usize = 1024;

pub(super) async fn ask(to: SocketAddr, service: &str) -> Result<(), Failure> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    ask_over(stream, to, service).await
}

async fn ask_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    to: SocketAddr,
    service: &str,
) -> Result<(), Failure> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let asked = async move {
        let response = sender.send_request(request(to, service)?).await?;
        let (head, body) = response.into_parts();
        if head.status != 200 {
            return Err(Failure::Status(head.status.as_u16()));
        }
        check_status(&head.headers)?;
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| Failure::NotServing(error.to_string()))?;
        if let Some(trailers) = body.trailers() {
            check_status(trailers)?;
        }
        match serving_status(&body.to_bytes()) {
            Some(SERVING) => Ok(()),
            status => Err(Failure::NotServing(format!("status {status:?}"))),
        }
    };
    let mut asked = pin!(asked);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // What the connection had received is still to be read.
        _ = connection => asked.await,
    }
}

fn request(to: SocketAddr, service: &str) -> Result<Request<Full<Bytes>>, Failure> {
    let request = Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, concat!("podlight-probe/", env!("CARGO_PKG_VERSION")))
        .body(Full::from(message(service)))?;
    Ok(request)
}

/// A length-prefixed `HealthCheckRequest { service = 1 }`.
fn message(service: &str) -> Vec<u8> {
    let mut field = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        field.push(0x0a);
        let mut len = service.len();
        while len > 0x7f {
            field.push((len & 0x7f) as u8 | 0x80);
            len >>= 7;
        }
        field.push(len as u8);
        field.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&field);
    framed
}

/// The status in a length-prefixed `HealthCheckResponse { status = 1 }`. An empty message is status 0.
fn serving_status(answer: &[u8]) -> Option<u8> {
    match answer {
        [0, 0, 0, 0, 0] => Some(0),
        [0, 0, 0, 0, 2, 0x08, status] => Some(*status),
        _ => None,
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get("grpc-status").map(|status| status.as_bytes()) {
        None | Some(b"0") => Ok(()),
        Some(other) => Err(Failure::NotServing(format!("grpc-status {}", String::from_utf8_lossy(other)))),
    }
}

/// Asks a server that sends these bytes whatever it is asked: whether it counts as serving.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) async fn ask_bytes(answer: &[u8]) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// The empty message as the DATA frame that ends stream 1.
    const REQUEST_END: &[u8] = &[0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (mut asked, mut answers) = tokio::io::split(theirs);
    let answer = async {
        let mut request = Vec::new();
        while !request.ends_with(REQUEST_END) && asked.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
        // Who is not heard out has said something wrong.
        let _ = answers.write_all(answer).await;
        let _ = answers.shutdown().await;
        let _ = asked.read_to_end(&mut request).await;
    };
    let to = SocketAddr::from(([127, 0, 0, 1], 1));
    let (result, ()) = tokio::join!(ask_over(ours, to, ""), answer);
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_protobuf_has_them() {
        assert_eq!(message(""), [0, 0, 0, 0, 0]);
        assert_eq!(message("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = message(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0), "a default is not written");
        for bad in [&[][..], &[0, 0, 0, 0, 2, 8], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 2, 16, 1]] {
            assert_eq!(serving_status(bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_server_counts_as_serving_only_when_it_says_so_to_the_end() {
        let serving = include_bytes!("../../../e2e/fuzz/seeds/grpc_probe/serving");
        assert!(ask_bytes(serving).await);
        assert!(!ask_bytes(include_bytes!("../../../e2e/fuzz/seeds/grpc_probe/unimplemented")).await);
        for end in 0..serving.len() {
            assert!(!ask_bytes(&serving[..end]).await, "{end} of {} bytes", serving.len());
        }
    }
}
