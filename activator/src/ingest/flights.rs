//! One call at a time for one question, few calls at a time in all, and a bound on how many wait. Whoever asks
//! what is being asked already waits for that answer. A call runs in a task of its own, so that a caller who
//! leaves takes nothing from the others, and one that takes longer than anybody's patience is still the only one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::Shared;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Duration, Instant};

use super::locked;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// As many calls as may wait do.
    Full,
    /// The call broke off.
    Lost,
    /// The call takes long; it goes on.
    Late,
}

/// A call as those see it who wait for it.
#[derive(Clone)]
struct Flight<V> {
    began: Shared<oneshot::Receiver<Instant>>,
    answer: Shared<oneshot::Receiver<V>>,
}

struct Air<K, V> {
    under_way: Mutex<HashMap<K, Flight<V>>>,
    running: Semaphore,
    most: usize,
    patience: Duration,
}

/// Calls under way, by question.
pub(super) struct Flights<K, V>(Arc<Air<K, V>>);

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// At most `running` calls at once and `waiting` more in the queue. Nobody waits for longer than `patience` after
    /// the call has begun.
    pub(super) fn new(running: usize, waiting: usize, patience: Duration) -> Self {
        let running = running.max(1);
        let most = running.saturating_add(waiting);
        Self(Arc::new(Air { under_way: Mutex::default(), running: Semaphore::new(running), most, patience }))
    }

    /// The answer to `key`: of the call under way, else of the one that `call` makes.
    pub(super) async fn join<F>(&self, key: K, call: impl FnOnce() -> F) -> Result<V, NoAnswer>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let Flight { began, answer } = self.board(key, call)?;
        let patience = async {
            match began.await {
                Ok(at) => tokio::time::sleep_until(at + self.0.patience).await,
                // It broke off before it began.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| NoAnswer::Lost),
            () = patience => Err(NoAnswer::Late),
        }
    }

    /// How many calls are made or wait to be.
    pub(super) fn len(&self) -> usize {
        locked(&self.0.under_way).len()
    }

    fn board<F>(&self, key: K, call: impl FnOnce() -> F) -> Result<Flight<V>, NoAnswer>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut under_way = locked(&self.0.under_way);
        if let Some(flight) = under_way.get(&key) {
            return Ok(flight.clone());
        }
        if under_way.len() >= self.0.most {
            return Err(NoAnswer::Full);
        }
        let (begin, began) = oneshot::channel();
        let (sender, answer) = oneshot::channel();
        let flight = Flight { began: began.shared(), answer: answer.shared() };
        under_way.insert(key.clone(), flight.clone());
        let (landing, call) = (Landing { air: Arc::clone(&self.0), key }, call());
        tokio::spawn(async move {
            let value = {
                // The semaphore is never closed; if it were, the call would only be less bounded.
                let _turn = landing.air.running.acquire().await;
                // Whoever asked may have left; so below.
                let _ = begin.send(Instant::now());
                call.await
            };
            drop(landing);
            let _ = sender.send(value);
        });
        Ok(flight)
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

    const PATIENCE: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn the_same_question_is_asked_once() {
        let flights = Flights::new(4, 4, PATIENCE);
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
        let flights: Flights<u32, ()> = Flights::new(2, 1, PATIENCE);
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
        let flights: Flights<&str, u32> = Flights::new(1, 1, PATIENCE);
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
        let flights: Flights<&str, u32> = Flights::new(1, 0, PATIENCE);
        let broken = flights.join("k", || async { panic!("on purpose") }).await;
        assert_eq!(broken, Err(NoAnswer::Lost));
        assert_eq!(flights.join("k", || async { 1 }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_beyond_everybodys_patience_goes_on_and_is_not_made_again() {
        let flights: Flights<&str, u32> = Flights::new(1, 1, PATIENCE);
        let calls = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let calls = Arc::clone(&calls);
            flights.join("k", move || async move {
                calls.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(PATIENCE * 3).await;
                7
            })
        };
        let started = Instant::now();
        assert_eq!(ask().await, Err(NoAnswer::Late));
        assert_eq!(started.elapsed(), PATIENCE);
        assert_eq!(ask().await, Err(NoAnswer::Late));
        assert_eq!(started.elapsed(), PATIENCE, "who comes later waits no longer");
        // Another question waits for its turn, and only then does its patience begin.
        let second = flights.join("l", || async {
            tokio::time::sleep(PATIENCE / 2).await;
            8
        });
        assert_eq!(second.await, Ok(8));
        assert_eq!((calls.load(Ordering::SeqCst), flights.len()), (1, 0));
    }
}
