//! Tells every activator replica what the pod's readiness is: one delivery task a replica over one HTTP client.
//! What a task does is decided by [`Delivery`]. Replicas come from the configuration or DNS and from the peers that
//! replies name; a task ends when nothing names its replica.

mod attempt;
mod board;
mod client;
mod delivery;
mod discovery;
mod replica;
mod replicas;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use podlight_proto::SigningKey;
use reqwest::Url;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tracing::{error, info};

pub use attempt::Identity;
pub use board::{Board, Newest, Status, measure};
pub use delivery::{Delivery, EARLY_EVERY, REFUSED_HEARTBEAT, Reply, Settled, Step};
pub use replicas::{Activator, MAX_REPLICAS, base_url};

use crate::announcer::{Announcer, wall_ms};
use crate::token::Tokens;
use attempt::Sender;
use client::Client;
use replica::Replica;

/// Besides at every use, the token is looked at this often, so that its rotation renews the bindings.
const TOKEN_EVERY: Duration = Duration::from_secs(10);

/// What the publisher needs to know.
#[derive(Debug, Clone)]
pub struct Settings<'a> {
    /// Whose statements are told.
    pub identity: Identity,
    /// To whom.
    pub activator: Activator,
    /// The token file.
    pub token: &'a Path,
    /// The CA file.
    pub ca: &'a Path,
    /// Time for one attempt, connecting included.
    pub timeout: Duration,
}

/// Tells the replicas. Made with a new key, which is in memory alone.
pub struct Publisher {
    activator: Activator,
    announcer: Announcer,
    sender: Arc<Sender>,
    board: watch::Sender<Board>,
}

impl Publisher {
    /// Prepares to tell what `announcer` says. Opens and connects nothing.
    pub fn new(settings: Settings<'_>, announcer: Announcer) -> Self {
        let Settings { identity, activator, token, ca, timeout } = settings;
        let client = Client::new(activator.tls().then_some(ca), timeout);
        let tokens = Tokens::new(token);
        // Read before anybody follows it: the first token is not a rotation.
        tokens.current(wall_ms() / 1000);
        let sender = Sender { identity, key: SigningKey::generate(), tokens, client };
        Self { activator, announcer, sender: Arc::new(sender), board: watch::Sender::default() }
    }

    /// Follows how the replicas stand.
    pub fn board(&self) -> watch::Receiver<Board> {
        self.board.subscribe()
    }

    /// Tells the replicas, as long as it is polled.
    pub async fn run(self) {
        let roots = watch::Sender::new(BTreeSet::new());
        let mut found = roots.subscribe();
        let mut board = self.board.subscribe();
        let mut tasks = JoinSet::new();
        let mut running = BTreeMap::new();
        tokio::pin! {
            let discovery = discovery::run(self.activator.clone(), roots, discovery::resolver, discovery::RESOLVE_EVERY);
            let tokens = watch_tokens(&self.sender.tokens);
        }
        loop {
            self.keep_running(&found.borrow_and_update(), &mut running, &mut tasks);
            tokio::select! {
                () = &mut discovery => return,
                () = &mut tokens => return,
                _ = found.changed() => {}
                _ = board.changed() => {}
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        error!(%error, "a delivery task failed and is started again");
                        running.retain(|_, task: &mut AbortHandle| !task.is_finished());
                    }
                }
            }
        }
    }

    /// Starts a task for each replica that has none and ends those of replicas that nothing leads to.
    fn keep_running(&self, roots: &BTreeSet<Url>, running: &mut BTreeMap<Url, AbortHandle>, tasks: &mut JoinSet<()>) {
        let peers = self.board.borrow().iter().map(|(url, status)| (url.clone(), status.peers.clone())).collect();
        let (wanted, left_out) = replicas::reachable(roots, &peers);
        gauge!("podlight_sidecar_replicas_left_out").set(left_out as f64);
        running.retain(|url, task| {
            let keep = wanted.contains(url);
            if !keep {
                info!(replica = %url, "replica is gone");
                task.abort();
                self.board.send_modify(|board| drop(board.remove(url)));
            }
            keep
        });
        for url in wanted {
            if running.contains_key(&url) {
                continue;
            }
            info!(replica = %url, "replica found");
            self.board.send_modify(|board| drop(board.insert(url.clone(), Status::default())));
            let (activator, announcer) = (self.activator.clone(), self.announcer.clone());
            let (sender, board) = (Arc::clone(&self.sender), self.board.clone());
            let replica = Replica::new(url.clone(), activator, announcer, sender, board);
            running.insert(url, tasks.spawn(replica.run()));
        }
    }
}

async fn watch_tokens(tokens: &Tokens) {
    loop {
        tokens.current(wall_ms() / 1000);
        sleep(TOKEN_EVERY).await;
    }
}
