//! The one task that owns the table: takes pushes and updates from a bounded channel, applies them in batches,
//! publishes what changed, and only then answers. An answer therefore means that every reader sees the event.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{counter, gauge, histogram};
use podlight_proto::Event;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::entry::Now;
use super::snapshot::{Feed, Groups, Moment, Publisher};
use super::{PodGone, Table, Timing, Transition, Update};

/// Most messages applied before their changes are published: bounds how long the first of them waits.
const BATCH: usize = 256;

/// How often the owner says how far it has come while nothing happens. Whoever tells others what the table says lets
/// his word run out after some of these.
pub const PULSE: Duration = Duration::from_millis(250);

/// This process's clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts counting.
    pub fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Both clocks now. A wall clock before 1970 counts as 1970.
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { uptime: self.started.elapsed(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// Why a push did not reach the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The pod's deletion has been applied.
    #[error(transparent)]
    Gone(#[from] PodGone),
    /// The owner is behind by a whole channel, or has ended.
    #[error("the table has no room for another event")]
    Overloaded,
}

#[derive(Debug)]
enum Message {
    Push(Box<Event>, oneshot::Sender<Result<Transition, PodGone>>),
    Update(Update),
}

/// The way in.
#[derive(Debug, Clone)]
pub struct TableHandle {
    messages: mpsc::Sender<Message>,
}

impl TableHandle {
    /// Applies an event and returns when readers see it.
    ///
    /// # Errors
    /// [`PushError`]: nothing was applied.
    pub async fn push(&self, event: Event) -> Result<Transition, PushError> {
        let (reply, answer) = oneshot::channel();
        if self.messages.try_send(Message::Push(Box::new(event), reply)).is_err() {
            counter!("podlight_table_overloaded_total").increment(1);
            return Err(PushError::Overloaded);
        }
        Ok(answer.await.map_err(|_| PushError::Overloaded)??)
    }

    /// Hands over an update; waits for room, so that a watch is read no faster than it is applied.
    pub async fn update(&self, update: Update) {
        // An owner that has ended needs no more updates.
        let _ = self.messages.send(Message::Update(update)).await;
    }
}

/// Starts the owner. It ends when the last handle is gone.
pub fn spawn(table: Table, clock: Clock, capacity: usize) -> (TableHandle, Groups, Feed, JoinHandle<()>) {
    let (sender, messages) = mpsc::channel(capacity);
    let (publisher, groups, feed) = Publisher::new();
    let task = tokio::spawn(run(table, clock, messages, publisher));
    (TableHandle { messages: sender }, groups, feed, task)
}

async fn run(mut table: Table, clock: Clock, mut messages: mpsc::Receiver<Message>, mut publisher: Publisher) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut answers = Vec::with_capacity(BATCH);
    let mut told = Moment::default();
    loop {
        let expiry = table.next_expiry();
        let wait = expiry.map_or(PULSE, |at| at.saturating_sub(clock.now().uptime).min(PULSE));
        let mut asked = Moment::now();
        let received = tokio::select! {
            biased;
            received = messages.recv_many(&mut batch, BATCH) => {
                if received == 0 {
                    return;
                }
                received
            }
            () = tokio::time::sleep(wait) => {
                let woken = Moment::now();
                if messages.is_empty() {
                    asked = woken;
                }
                0
            }
        };
        let now = clock.now();
        for message in batch.drain(..) {
            match message {
                Message::Push(event, reply) => answers.push((reply, table.push(&event, now))),
                Message::Update(update) => table.apply(update, now),
            }
        }
        if expiry.is_some_and(|at| at <= now.uptime) {
            table.expire(now.uptime);
        }
        let changes = table.take_changes();
        record(&table, &changes.timings);
        publisher.publish(changes);
        // A batch that is not full has everything that had been sent when it was asked for.
        if received < BATCH && told.until(asked) >= PULSE / 2 {
            publisher.complete(asked);
            told = asked;
        }
        for (reply, answer) in answers.drain(..) {
            // A sender that has left has still told us.
            let _ = reply.send(answer);
        }
    }
}

fn record(table: &Table, timings: &[Timing]) {
    for timing in timings {
        match timing {
            Timing::Lag(source, lag) => {
                histogram!("podlight_discovery_lag_seconds", "source" => source.as_str()).record(lag.as_secs_f64());
            }
            Timing::Lead(lead) => histogram!("podlight_push_lead_seconds").record(lead.as_secs_f64()),
        }
    }
    let sizes = table.sizes();
    gauge!("podlight_table_pods").set(as_gauge(sizes.pods));
    gauge!("podlight_table_leased_pods").set(as_gauge(sizes.leased));
    gauge!("podlight_table_services").set(as_gauge(sizes.services));
    gauge!("podlight_table_gone_pods").set(as_gauge(sizes.gone));
    counter!("podlight_table_gone_evicted_total").absolute(sizes.gone_evicted);
}

fn as_gauge(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::group::{GroupKey, Service};
    use crate::table::{Change, Pacing};

    #[tokio::test]
    async fn the_owner_says_how_far_it_has_come_whether_or_not_something_happens() {
        let (table, groups, feed, _owner) = spawn(Table::new(Pacing::default()), Clock::start(), 64);
        feed.wait_complete(Moment::default()).await;
        let first = feed.complete();
        assert!(first <= Moment::now());
        table.update(Update::Service(Change::Present(Service::new(GroupKey::new("shop", "web")).into()))).await;
        let sent = Moment::now();
        feed.wait_complete(first).await;
        while feed.complete() < sent {
            feed.wait_complete(feed.complete()).await;
        }
        assert!(groups.get("shop", "web").is_some(), "what was sent before is there");
        feed.wait_complete(feed.complete()).await;
    }
}
