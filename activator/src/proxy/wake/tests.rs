use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use super::*;
use crate::proxy::fixtures::*;
use crate::proxy::target::{HoldConfig, Hub, Refusal};

/// Answers what it was given, the first first, and then that all is up.
#[derive(Default)]
struct Scripted {
    answers: Mutex<Vec<Result<Scaled, ScaleError>>>,
    asked: Mutex<Vec<String>>,
}

impl Scaler for Scripted {
    fn scale_up<'a>(
        &'a self,
        namespace: &'a str,
        kind: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Scaled, ScaleError>> {
        self.asked.lock().expect("no panic").push(format!("{namespace}/{kind}/{name}"));
        let mut answers = self.answers.lock().expect("no panic");
        let answer = if answers.is_empty() { Ok(Scaled::Already) } else { answers.remove(0) };
        async move { answer }.boxed()
    }
}

fn start(answers: Vec<Result<Scaled, ScaleError>>) -> (Arc<Scripted>, Arc<Target>) {
    let scaler = Arc::new(Scripted { answers: Mutex::new(answers), asked: Mutex::default() });
    let web = headless("web");
    let (hub, mut errands) = Hub::new(&HoldConfig::default());
    let target = Target::new(&web, scaled(settings(&web)), &hub);
    tokio::spawn(run(Arc::clone(&scaler) as Arc<dyn Scaler>, errands.scale));
    tokio::spawn(async move {
        while let Some(alarm) = errands.alarms.recv().await {
            tokio::time::sleep_until(alarm.at).await;
            alarm.target.tick();
        }
    });
    (scaler, target)
}

#[tokio::test(start_paused = true)]
async fn held_requests_have_their_target_scaled_up_with_backoff() {
    let again = || Err(ScaleError::Again("busy".into()));
    let (scaler, target) = start(vec![again(), again(), Ok(Scaled::Raised)]);
    let held = target.admit(&[], Instant::now() + Duration::from_secs(1), 0);
    assert_eq!(held.await.err(), Some(Refusal::Deadline));
    assert_eq!(*scaler.asked.lock().expect("no panic"), ["default/Deployment/web"; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_final_failure_is_told_at_once() {
    let (scaler, target) = start(vec![Err(ScaleError::Final("forbidden".into()))]);
    let begun = Instant::now();
    let refused = target.admit(&[], begun + Duration::from_secs(60), 0).await.expect_err("it cannot be woken");
    assert_eq!(refused, Refusal::ScaleFailed("forbidden".into()));
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(target.admit(&[], begun + Duration::from_secs(60), 0).await.is_err());
    assert_eq!(scaler.asked.lock().expect("no panic").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_while_nothing_is_held() {
    let (scaler, target) = start(Vec::new());
    let held = target.admit(&[], Instant::now() + Duration::from_millis(10), 0);
    assert_eq!(held.await.err(), Some(Refusal::Deadline));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(scaler.asked.lock().expect("no panic").len(), 1);
}
