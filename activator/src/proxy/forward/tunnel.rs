//! A connection that has left HTTP: bytes both ways until both sides have ended. It has its place on the backend and
//! among the client's connections for as long.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use metrics::Gauge;
use tokio::io::copy_bidirectional;

use super::Client;
use super::meters::Meters;
use crate::proxy::target::Lease;
use crate::server::connections::InFlight;

/// Both sides of a connection that changes its protocol.
pub(in crate::proxy) struct Tunnel {
    client: OnUpgrade,
    backend: OnUpgrade,
    _lease: Lease,
    _in_flight: InFlight,
    _open: Open,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

/// Counts as an open tunnel.
struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl Tunnel {
    pub(super) fn new(
        client: &Arc<Client>,
        theirs: OnUpgrade,
        backend: OnUpgrade,
        lease: Lease,
        meters: &Meters,
    ) -> Self {
        meters.tunnels.increment(1.0);
        let open = Open(meters.tunnels.clone());
        Self { client: theirs, backend, _lease: lease, _in_flight: client.connection.begin(), _open: open }
    }

    /// Carries bytes until both sides have ended, or one fails.
    pub(in crate::proxy) async fn run(self) {
        let Ok((client, backend)) = tokio::try_join!(self.client, self.backend) else { return };
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        if let Err(error) = copy_bidirectional(&mut client, &mut backend).await {
            tracing::trace!(%error, "a tunnel ended early");
        }
    }
}
