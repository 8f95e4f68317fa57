//! One connection of a backend, from accept to whichever end it is told to have.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::answers::{self, Place};
use super::wire::{End, Wire};
use super::{SeenTls, Speaks, State};

/// Takes connections until it is aborted; those that are open go on.
pub(super) async fn serve(listener: TcpListener, speaks: Speaks, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let number = state.connections.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::spawn(connection(stream, number, speaks.clone(), Arc::clone(&state)));
    }
}

/// Serves one connection to its end, in whichever way that comes. What goes wrong is the client's to notice.
async fn connection(stream: TcpStream, number: u64, speaks: Speaks, state: Arc<State>) {
    let _open = Open::new(&state);
    // A connection that is gone already has no options.
    let _ = stream.set_nodelay(true);
    let mut cuts = state.cuts.subscribe();
    let (wire, how) = Wire::new(stream);
    let broken = Arc::new(watch::Sender::new(End::Never));
    let mut breaks = broken.subscribe();
    let place = |tls| Place { connection: number, tls, broken };
    let served = async {
        match speaks {
            Speaks::Http => http(wire, place(None), &state).await,
            Speaks::Tls(config) => {
                let stream = TlsAcceptor::from(config).accept(wire).await?;
                let seen = seen_tls(stream.get_ref().1);
                http(stream, place(Some(seen)), &state).await
            }
            Speaks::Script(script) => {
                script(wire.into_inner()?).await;
                Ok(())
            }
        }
    };
    let now = |end: &End| matches!(end, End::Fin | End::Reset);
    tokio::select! {
        _ = served => {}
        Ok(end) = cuts.recv() => how.set(end),
        Ok(end) = breaks.wait_for(now) => how.set(*end),
    }
}

/// Counts a connection as long as it is open.
struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(state))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn http<S>(stream: S, place: Place, state: &Arc<State>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = {
        let state = Arc::clone(state);
        service_fn(move |request| answers::answer(Arc::clone(&state), place.clone(), request))
    };
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut ends = state.end.subscribe();
    let mut leaving = false;
    loop {
        tokio::select! {
            served = connection.as_mut() => return served.map_err(|error| anyhow::anyhow!(error)),
            ended = ends.wait_for(|end| *end == End::Graceful), if !leaving => {
                ended?;
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn seen_tls(connection: &rustls::ServerConnection) -> SeenTls {
    SeenTls {
        server_name: connection.server_name().map(str::to_owned),
        alpn: connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        client_certificate: connection.peer_certificates().is_some_and(|chain| !chain.is_empty()),
    }
}
