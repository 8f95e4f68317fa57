//! The drain: the pod says that it leaves, and waits a bounded time until every replica has heard it. The running
//! sidecar does it ([`drain`]); `podlight-sidecar drain` asks it to ([`request`]).

pub mod request;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::announcer::Announcer;
use crate::publisher::{Board, Newest};

/// What came of a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Whether the sidecar pushes at all.
    pub push: bool,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// What each replica said.
    pub replicas: BTreeMap<String, ReplicaDrained>,
}

/// What one replica said, and how long after the request to drain, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaDrained {
    /// Its answer.
    pub result: Answer,
    /// When it came, or when it was no longer waited for.
    pub ms: u64,
}

/// A replica's answer to the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It holds the pod for draining.
    Acknowledged,
    /// It will not take the event.
    Refused,
    /// It had not answered when the deadline passed.
    Deadline,
}

impl Drained {
    /// What an inert sidecar answers.
    pub fn inert() -> Self {
        Self { push: false, ms: 0, replicas: BTreeMap::new() }
    }

    /// Whether every replica, and at least one, has acknowledged.
    pub fn complete(&self) -> bool {
        !self.replicas.is_empty() && self.replicas.values().all(|replica| replica.result == Answer::Acknowledged)
    }
}

/// Announces the drain and waits until every known replica has answered, at most for `deadline`. While no replica
/// is known the whole of it is waited.
pub async fn drain(announcer: &Announcer, mut board: watch::Receiver<Board>, deadline: Duration) -> Drained {
    let begun = Instant::now();
    announcer.drain();
    let mut answered = BTreeMap::new();
    loop {
        let waiting = note_answers(&board.borrow_and_update(), &mut answered, begun);
        if !waiting || !matches!(timeout_at(begun + deadline, board.changed()).await, Ok(Ok(()))) {
            break;
        }
    }
    let ms = millis(begun);
    let silent = |url: &Url| (url.to_string(), ReplicaDrained { result: Answer::Deadline, ms });
    let mut replicas: BTreeMap<_, _> = board.borrow().keys().map(silent).collect();
    replicas.extend(answered.into_iter().map(|(url, answer)| (url.to_string(), answer)));
    let drained = Drained { push: true, ms, replicas };
    if drained.complete() {
        info!(ms, replicas = drained.replicas.len(), "every replica has acknowledged the drain");
    } else {
        warn!(ms, replicas = ?drained.replicas, "the drain was not acknowledged by every replica");
    }
    drained
}

/// Returns whether somebody is still to answer.
fn note_answers(board: &Board, answered: &mut BTreeMap<Url, ReplicaDrained>, begun: Instant) -> bool {
    let mut waiting = board.is_empty();
    for (url, status) in board {
        let result = match status.newest {
            Newest::Drained => Answer::Acknowledged,
            Newest::DrainRefused => Answer::Refused,
            Newest::Refused | Newest::Undelivered | Newest::Acknowledged => {
                waiting = true;
                continue;
            }
        };
        answered.entry(url.clone()).or_insert_with(|| ReplicaDrained { result, ms: millis(begun) });
    }
    waiting
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
