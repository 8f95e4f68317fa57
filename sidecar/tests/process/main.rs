//! The real binary over real sockets, against an activator that answers in every way there is.

mod activator;
mod delivery;
mod drain;
mod lifecycle;
mod process;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Longest that a condition is waited for: far above what anything here takes, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a condition that a task elsewhere brings about.
async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// An app whose health the test decides.
struct App {
    port: u16,
    status: Arc<std::sync::atomic::AtomicU16>,
}

impl App {
    async fn start() -> Self {
        let status = Arc::new(std::sync::atomic::AtomicU16::new(503));
        let says = Arc::clone(&status);
        let port = activator::serve(None, move |_| {
            let status = says.load(std::sync::atomic::Ordering::SeqCst);
            activator::Answer::Status(status, Vec::new(), String::new())
        });
        Self { port: port.await, status }
    }

    fn ready(&self, ready: bool) {
        self.status.store(if ready { 200 } else { 503 }, std::sync::atomic::Ordering::SeqCst);
    }

    fn probe(&self) -> String {
        format!("--probe=http://127.0.0.1:{}/?period=20ms&failure=1", self.port)
    }
}
