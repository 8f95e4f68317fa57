//! The least that a proxy on hyper can be: an HTTP/1.1 server that hands each request to a pooled client, one backend or several in
//! turn, no decision of any kind. What a proxy on hyper costs beyond this is its own doing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Either;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpListener;

type Forwarder = Client<HttpConnector, Incoming>;

/// Forwards everything to these addresses in turn. Returns only when it cannot.
pub(super) async fn serve(listen: SocketAddr, to: &[SocketAddr]) -> Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Forwarder = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
    let authorities = to.iter().map(|to| Ok(to.to_string().parse()?)).collect::<Result<Arc<[Authority]>>>()?;
    ensure!(!authorities.is_empty(), "nowhere to forward to");
    let next = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true)?;
        let (client, authorities, next) = (client.clone(), Arc::clone(&authorities), Arc::clone(&next));
        let service = service_fn(move |request| {
            let at = next.fetch_add(1, Ordering::Relaxed) % authorities.len();
            forward(client.clone(), authorities[at].clone(), request)
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn forward(
    client: Forwarder,
    authority: Authority,
    mut request: Request<Incoming>,
) -> Result<Response<Either<Incoming, Empty<Bytes>>>, Infallible> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    (parts.scheme, parts.authority) = (Some(Scheme::HTTP), Some(authority));
    let answer = match Uri::from_parts(parts) {
        Ok(uri) => {
            *request.uri_mut() = uri;
            client.request(request).await.ok()
        }
        Err(_) => None,
    };
    Ok(answer.map_or_else(
        || {
            let mut failed = Response::new(Either::Right(Empty::new()));
            *failed.status_mut() = StatusCode::BAD_GATEWAY;
            failed
        },
        |answer| answer.map(Either::Left),
    ))
}
