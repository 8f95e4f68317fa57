use std::task::Poll;

use futures::FutureExt as _;
use futures::future::join_all;
use futures::poll;

use super::*;
use crate::proxy::fixtures::*;
use crate::table::entry::State;

const LONG: Duration = Duration::from_secs(3600);

fn deadline() -> Instant {
    Instant::now() + LONG
}

fn target_with(config: &HoldConfig, service: &Service, settings: Settings) -> (Arc<Target>, Errands) {
    let (hub, errands) = Hub::new(config);
    (Target::new(service, settings, &hub), errands)
}

fn target(limit: u32) -> (Arc<Target>, Errands) {
    let web = service("web");
    let settings = limited(settings(&web), limit);
    target_with(&HoldConfig::default(), &web, settings)
}

async fn wait(target: Arc<Target>) -> Result<Lease, Refusal> {
    target.admit(&[], deadline(), 0).await
}

fn put(target: &Arc<Target>, endpoint: Endpoint) {
    target.endpoint(&endpoint.id.clone(), Some(endpoint));
}

#[tokio::test]
async fn a_held_request_gets_the_endpoint_itself_when_it_is_ready() {
    let (target, _errands) = target(0);
    let mut held = Box::pin(target.admit(&[], deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    put(&target, pushed("a", "10.0.0.1"));
    let lease = held.await.expect("ready");
    assert_eq!(lease.address().to_string(), "10.0.0.1:8080");
    assert!(lease.held().is_some() && lease.way() == Way::Direct);
    assert!(target.admit(&[], deadline(), 0).await.expect("ready").held().is_none());
}

#[tokio::test]
async fn a_lease_that_ends_lets_the_next_one_go() {
    let (target, _errands) = target(1);
    put(&target, pushed("a", "10.0.0.1"));
    let first = target.admit(&[], deadline(), 0).await.expect("free");
    let mut second = Box::pin(target.admit(&[], deadline(), 0));
    let mut third = Box::pin(target.admit(&[], deadline(), 0));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    drop(first);
    assert!(poll!(&mut third).is_pending());
    drop(second.await.expect("its turn"));
    assert!(third.await.is_ok());
    assert_eq!(target.load(1).in_flight, 0);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_told_gives_its_place_to_the_next() {
    let (target, _errands) = target(1);
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(target.admit(&[], deadline(), 0))).collect();
    for held in &mut waiting {
        assert!(poll!(held).is_pending());
    }
    put(&target, pushed("a", "10.0.0.1"));
    // Told, but never polled again.
    drop(waiting.remove(0));
    let lease = waiting.remove(0).now_or_never().expect("at once").expect("its turn");
    assert_eq!((target.held(), target.load(1).in_flight), (1, 1));
    drop(lease);
    assert!(waiting.remove(0).now_or_never().expect("at once").is_ok());
    assert_eq!((target.held(), target.load(1).in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_hold_and_frees_the_place() {
    let (target, _errands) = target(0);
    let refused = target.admit(&[], Instant::now() + Duration::from_secs(5), 0).await.expect_err("nobody is there");
    assert_eq!(refused, Refusal::Deadline);
    assert_eq!((target.held(), target.hub.held()), (0, 0));
}

#[tokio::test]
async fn case_31_the_bounds_hold_for_each_target_and_in_total_and_whoever_leaves_makes_room() {
    let (one, other) = (service("one"), service("other"));
    let config = HoldConfig { max_held_per_target: 3, max_held: 6, ..HoldConfig::default() };
    let (hub, _errands) = Hub::new(&config);
    let (one, other) = (Target::new(&one, settings(&one), &hub), Target::new(&other, settings(&other), &hub));
    let mut held: Vec<_> = (0..3).map(|_| Box::pin(one.admit(&[], deadline(), 0))).collect();
    held.push(Box::pin(other.admit(&[], deadline(), 0)));
    for held in &mut held {
        assert!(poll!(held).is_pending());
    }
    assert_eq!(one.admit(&[], deadline(), 0).await.err(), Some(Refusal::Full));
    held.push(Box::pin(other.admit(&[], deadline(), 0)));
    assert!(poll!(&mut held[4]).is_pending());
    assert_eq!(other.admit(&[], deadline(), 0).await.err(), Some(Refusal::Full));
    drop(held.remove(0));
    drop(held.remove(0));
    assert_eq!(hub.held(), 3);
    assert!(poll!(Box::pin(other.admit(&[], deadline(), 0))).is_pending());
    drop(held);
    assert_eq!(hub.held(), 0);
}

#[tokio::test]
async fn the_room_for_held_requests_is_shared_fairly_between_targets() {
    let config = HoldConfig { max_held_per_target: 1000, max_held: 120, ..HoldConfig::default() };
    let (hub, _errands) = Hub::new(&config);
    let targets: Vec<_> = ["rush", "second", "third", "late"]
        .map(|name| Target::new(&service(name), settings(&service(name)), &hub))
        .to_vec();
    let mut held = Vec::new();
    // Each asks for all there is, the first of them before the others come.
    for target in &targets {
        for _ in 0..200 {
            let mut admission = Box::pin(wait(Arc::clone(target)));
            if poll!(&mut admission).is_pending() {
                held.push(admission);
            }
        }
    }
    let shares: Vec<usize> = targets.iter().map(|target| target.held()).collect();
    assert_eq!(shares, [60, 30, 15, 8]);
    // Whoever has more than an equal share gets no more before the others have caught up.
    drop(held.drain(..60).collect::<Vec<_>>());
    let mut late = Vec::new();
    for target in targets.iter().rev() {
        for _ in 0..200 {
            let mut admission = Box::pin(wait(Arc::clone(target)));
            if poll!(&mut admission).is_pending() {
                late.push(admission);
            }
        }
    }
    assert!(targets[3].held() >= 24, "{}", targets[3].held());
    assert!(hub.held() < 120);
    drop((held, late));
    assert_eq!(hub.held(), 0);
}

#[tokio::test]
async fn bodies_of_held_requests_are_bounded_in_bytes_and_bodiless_ones_are_not_concerned() {
    let config = HoldConfig { max_held_body: 1000, ..HoldConfig::default() };
    let (hub, _errands) = Hub::new(&config);
    let web = service("web");
    let target = Target::new(&web, settings(&web), &hub);
    let (mut first, mut second) =
        (Box::pin(target.admit(&[], deadline(), 600)), Box::pin(target.admit(&[], deadline(), 400)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert_eq!(target.admit(&[], deadline(), 1).await.err(), Some(Refusal::Full));
    assert_eq!(hub.held(), 2, "who is refused leaves nothing");
    assert!(poll!(Box::pin(target.admit(&[], deadline(), 0))).is_pending());
    drop(first);
    assert!(poll!(Box::pin(target.admit(&[], deadline(), 600))).is_pending());
    // A warm one waits for nothing, whatever its body.
    put(&target, pushed("a", "10.0.0.1"));
    assert!(target.admit(&[], deadline(), u32::MAX).await.is_ok());
}

#[tokio::test]
async fn waking_one_target_touches_no_other() {
    let (hub, _errands) = Hub::new(&HoldConfig::default());
    let [one, other] = ["one", "other"].map(|name| Target::new(&service(name), settings(&service(name)), &hub));
    let (mut first, mut second) = (Box::pin(one.admit(&[], deadline(), 0)), Box::pin(other.admit(&[], deadline(), 0)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    put(&one, pushed("a", "10.0.0.1"));
    assert!(poll!(&mut first).is_ready() && poll!(&mut second).is_pending());
}

#[tokio::test]
async fn a_closed_target_tells_the_held_and_the_new() {
    let (target, _errands) = target(0);
    let mut held = Box::pin(target.admit(&[], deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    target.close(Refusal::ShuttingDown);
    assert_eq!(held.await.err(), Some(Refusal::ShuttingDown));
    assert_eq!(target.admit(&[], deadline(), 0).await.err(), Some(Refusal::ShuttingDown));
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_that_ends_wakes_the_held_by_an_alarm() {
    let (target, mut errands) = target(0);
    put(&target, pushed("a", "10.0.0.1"));
    let lease = target.admit(&[], deadline(), 0).await.expect("ready");
    let tried = [*lease.backend().id()];
    lease.refused();
    drop(lease);
    let mut held = Box::pin(target.admit(&tried, deadline(), 0));
    assert!(poll!(&mut held).is_pending());
    let alarm = errands.alarms.try_recv().expect("there is something to wait for");
    assert!(alarm.at <= Instant::now() + Duration::from_secs(1));
    tokio::time::sleep_until(alarm.at).await;
    alarm.target.tick();
    let lease = held.await.expect("tried again");
    lease.answered();
    assert!(target.admit(&[], deadline(), 0).now_or_never().expect("open again").is_ok());
}

#[tokio::test]
async fn an_answer_that_comes_late_in_a_lease_counts_at_its_end() {
    let (target, _errands) = target(0);
    put(&target, pushed("a", "10.0.0.1"));
    for _ in 0..10 {
        for _ in 0..2 {
            target.admit(&[], deadline(), 0).await.expect("never shut").timed_out();
        }
        target.admit(&[], deadline(), 0).await.expect("never shut").answered();
    }
    assert!(target.load(1).backends.iter().all(|backend| backend.quarantine_seconds.is_none()));
}

#[test]
fn requests_of_many_threads_keep_the_limit_and_leave_nothing_behind() {
    let (target, _errands) = target(4);
    for n in 1..=3 {
        put(&target, pushed(&format!("p{n}"), &format!("10.0.0.{n}")));
    }
    let work = |seed: u64| {
        let target = Arc::clone(&target);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(join_all((0..500).map(|n| {
                let target = Arc::clone(&target);
                async move {
                    let patience = if (n + seed).is_multiple_of(7) { Duration::ZERO } else { LONG };
                    if let Ok(lease) = target.admit(&[], Instant::now() + patience, 0).await {
                        assert!(target.load(9).backends.iter().all(|b| b.way == Way::ClusterIp || b.in_flight <= 4));
                        tokio::task::yield_now().await;
                        lease.answered();
                    }
                }
            })));
        }
    };
    let threads: Vec<_> = (0..4).map(|seed| std::thread::spawn(work(seed))).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!((target.held(), target.load(1).in_flight, target.hub.held()), (0, 0, 0));
}

#[tokio::test]
async fn pools_are_the_workers_own() {
    let web = service("web");
    let (target, _errands) = target_with(&HoldConfig { workers: 2, ..HoldConfig::default() }, &web, settings(&web));
    put(&target, pushed("a", "10.0.0.1"));
    let lease = target.admit(&[], deadline(), 0).await.expect("ready");
    let backend = lease.backend();
    assert!(!std::ptr::eq(backend.pool(0), backend.pool(1)) || size_of_val(backend.pool(0)) == 0);
    assert!(std::ptr::eq(backend.pool(0), backend.pool(2)));
}

#[tokio::test]
async fn a_thousand_held_requests_go_in_one_step() {
    let (target, _errands) = target(0);
    put(&target, in_state(&pushed("a", "10.0.0.1"), State::NotReady));
    let mut held: Vec<_> = (0..1000).map(|_| Box::pin(target.admit(&[], deadline(), 0))).collect();
    for held in &mut held {
        assert!(poll!(held).is_pending());
    }
    put(&target, pushed("a", "10.0.0.1"));
    for held in &mut held {
        let held = tokio::task::unconstrained(held.as_mut());
        assert!(matches!(poll!(held), Poll::Ready(Ok(_))));
    }
}
