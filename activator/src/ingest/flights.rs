//! One call at a time for one question, few calls at a time in all, and a bound on how many wait. Whoever asks
//! what is being asked already waits for that answer. A call runs in a task of its own, so that a caller who
//! leaves takes nothing from the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::Shared;
use tokio::sync::{Semaphore, oneshot};

use super::locked;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// As many calls as may wait do.
    Full,
    /// The call broke off.
    Lost,
}

struct Air<K, V> {
    under_way: Mutex<HashMap<K, Shared<oneshot::Receiver<V>>>>,
    running: Semaphore,
    most: usize,
}

/// Calls under way, by question.
pub(super) struct Flights<K, V>(Arc<Air<K, V>>);

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// At most `running` calls at once and `waiting` more in the queue.
    pub(super) fn new(running: usize, waiting: usize) -> Self {
        let running = running.max(1);
        let most = running.saturating_add(waiting);
        Self(Arc::new(Air { under_way: Mutex::default(), running: Semaphore::new(running), most }))
    }

    /// The answer to `key`: of the call under way, else of the one that `call` makes.
    pub(super) async fn join<F>(&self, key: K, call: impl FnOnce() -> F) -> Result<V, NoAnswer>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let answer = self.board(key, call)?;
        answer.await.map_err(|_| NoAnswer::Lost)
    }

    /// How many calls are made or wait to be.
    pub(super) fn len(&self) -> usize {
        locked(&self.0.under_way).len()
    }

    fn board<F>(&self, key: K, call: impl FnOnce() -> F) -> Result<Shared<oneshot::Receiver<V>>, NoAnswer>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut under_way = locked(&self.0.under_way);
        if let Some(answer) = under_way.get(&key) {
            return Ok(answer.clone());
        }
        if under_way.len() >= self.0.most {
            return Err(NoAnswer::Full);
        }
        let (sender, answer) = oneshot::channel();
        let answer = answer.shared();
        under_way.insert(key.clone(), answer.clone());
        let (landing, call) = (Landing { air: Arc::clone(&self.0), key }, call());
        tokio::spawn(async move {
            let value = {
                // The semaphore is never closed; if it were, the call would only be less bounded.
                let _turn = landing.air.running.acquire().await;
                call.await
            };
            drop(landing);
            // Whoever asked may have left.
            let _ = sender.send(value);
        });
        Ok(answer)
    }
}

/// Takes the call off the board, also when it panics.
struct Landing<K: Eq + Hash, V> {
    air: Arc<Air<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        locked(&self.air.under_way).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn the_same_question_is_asked_once() {
        let flights = Flights::new(4, 4);
        let calls = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let calls = Arc::clone(&calls);
            flights.join("k", move || async move { calls.fetch_add(1, Ordering::SeqCst) })
        };
        assert_eq!(futures::join!(ask(), ask(), ask()), (Ok(0), Ok(0), Ok(0)));
        assert_eq!(ask().await, Ok(1), "an answer is not kept");
        assert_eq!(flights.len(), 0);
    }

    #[tokio::test]
    async fn calls_run_few_at_a_time_and_the_queue_has_an_end() {
        let flights: Flights<u32, ()> = Flights::new(2, 1);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let ask = |key| {
            let (running, most, gate) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&gate));
            flights.join(key, move || async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _turn = gate.acquire().await;
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        let refused = async {
            let fourth = ask(4).await;
            while most.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
            gate.add_permits(1);
            fourth
        };
        assert_eq!(futures::join!(ask(1), ask(2), ask(3), refused), (Ok(()), Ok(()), Ok(()), Err(NoAnswer::Full)));
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_caller_that_leaves_takes_nothing_from_the_others() {
        let flights: Flights<&str, u32> = Flights::new(1, 1);
        let go = Arc::new(Notify::new());
        let call = |go: Arc<Notify>| {
            move || async move {
                go.notified().await;
                7
            }
        };
        let mut first = Box::pin(flights.join("k", call(Arc::clone(&go))));
        assert!(futures::poll!(&mut first).is_pending());
        let second = flights.join("k", call(Arc::clone(&go)));
        drop(first);
        go.notify_one();
        assert_eq!(second.await, Ok(7));
    }

    #[tokio::test]
    async fn a_call_that_panics_is_lost_and_makes_room() {
        let flights: Flights<&str, u32> = Flights::new(1, 0);
        let broken = flights.join("k", || async { panic!("on purpose") }).await;
        assert_eq!(broken, Err(NoAnswer::Lost));
        assert_eq!(flights.join("k", || async { 1 }).await, Ok(1));
    }
}
