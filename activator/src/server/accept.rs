//! Accepting connections, each with a task of its own, and the end of those tasks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};

use super::Shutdown;
use super::connections::{Admitted, Connections};

/// Pause after a failure to accept that is not the peer's (no descriptors left, say): nothing else to wait for.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until the end begins, and has each that is within the bounds served by what `connect` makes.
/// Returns the tasks that are left.
pub(crate) async fn accept<F: Future<Output = ()> + Send + 'static>(
    name: &'static str,
    listener: &TcpListener,
    connections: &Arc<Connections>,
    shutdown: &Shutdown,
    connect: impl Fn(TcpStream, SocketAddr, Admitted) -> F,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let begun = shutdown.begun();
    tokio::pin!(begun);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut begun => return tasks,
            Some(ended) = tasks.join_next() => {
                look_at(name, ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match connections.admit(peer.ip()) {
                Ok(admitted) => {
                    tasks.spawn(connect(stream, peer, admitted));
                }
                Err(bound) => {
                    counter!("podlight_connections_refused_total", "listener" => name, "bound" => bound.label())
                        .increment(1);
                }
            },
            Err(error) if is_peers_fault(&error) => {}
            Err(error) => {
                tracing::warn!(listener = name, %error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits for the connections' tasks, and ends those that take too long.
pub(crate) async fn drain(name: &'static str, mut tasks: JoinSet<()>, grace: Duration) -> usize {
    let all_ended = async {
        while let Some(ended) = tasks.join_next().await {
            look_at(name, ended);
        }
    };
    if tokio::time::timeout(grace, all_ended).await.is_ok() {
        return 0;
    }
    let left = tasks.len();
    tracing::warn!(listener = name, connections = left, "the grace is over; closing what is left");
    tasks.shutdown().await;
    left
}

fn look_at(listener: &'static str, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        counter!("podlight_connection_panics_total", "listener" => listener).increment(1);
        tracing::error!(listener, %error, "a connection's task panicked");
    }
}

/// Whether accepting failed for one connection only.
fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
