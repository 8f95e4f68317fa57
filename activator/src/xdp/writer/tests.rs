use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::table::snapshot::Moment;
use crate::table::{Change, Update};
use crate::xdp::fixtures::{Pod, World, place, service};
use crate::xdp::held::Found;

const TTL: Duration = Duration::from_secs(2);

/// A kernel's map that can be looked into, and that fails when it is told to.
#[derive(Debug, Default, Clone)]
struct Kernel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answers: HashMap<Place, Answer>,
    alive: Option<Moment>,
    fails: bool,
    writes: usize,
}

impl Kernel {
    fn fail(&self, fails: bool) {
        self.0.lock().expect("no panic").fails = fails;
    }

    fn writes(&self) -> usize {
        std::mem::take(&mut self.0.lock().expect("no panic").writes)
    }

    /// What the program answers.
    fn ask(&self, place: &Place, now: Moment) -> Found {
        let state = self.0.lock().expect("no panic");
        if state.alive.is_none_or(|alive| alive.until(now) >= TTL) {
            return Found::Stale;
        }
        state.answers.get(place).map_or(Found::Unknown, |answer| Found::Answer(*answer))
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Result<(), MapError> {
        let mut state = self.0.lock().expect("no panic");
        if state.fails {
            return Err(MapError("told to fail".into()));
        }
        state.writes += 1;
        change(&mut state);
        Ok(())
    }
}

impl Map for Kernel {
    fn put(&mut self, place: &Place, answer: &Answer) -> Result<(), MapError> {
        self.change(|state| _ = state.answers.insert(place.clone(), *answer))
    }

    fn remove(&mut self, place: &Place) -> Result<(), MapError> {
        self.change(|state| _ = state.answers.remove(place))
    }

    fn beat(&mut self, alive: Option<Moment>) -> Result<(), MapError> {
        self.change(|state| state.alive = alive)
    }
}

struct Scene {
    world: World,
    held: Arc<Held>,
    kernel: Kernel,
    writer: Writer,
}

impl Scene {
    fn new(world: World, most: usize) -> Self {
        let (held, kernel) = (Arc::new(Held::new(TTL)), Kernel::default());
        let writer = writer(&world, &held, &kernel, most);
        Self { world, held, kernel, writer }
    }

    /// Another process with the table as it is now: its maps are new.
    fn restart(&mut self, most: usize) {
        (self.held, self.kernel) = (Arc::new(Held::new(TTL)), Kernel::default());
        self.writer = writer(&self.world, &self.held, &self.kernel, most);
    }

    fn beat(&mut self) {
        self.writer.beat(self.world.feed.complete());
    }

    fn both(&self, path: &str) -> [Found; 2] {
        let place = place(path);
        [self.held.ask(&place, self.world.now()), self.kernel.ask(&place, self.world.now())]
    }
}

fn writer(world: &World, held: &Arc<Held>, kernel: &Kernel, most: usize) -> Writer {
    let (answers, map) = (Answers::new(&[], 200), Box::new(kernel.clone()));
    Writer::new((world.groups.clone(), world.feed.clone()), answers, Arc::clone(held), Some(map), most)
}

fn web(ready: bool) -> Scene {
    let mut world = World::new();
    world.service("web", Some("web"));
    world.pod(&Pod::new("a", "web", "10.0.0.1", ready));
    Scene::new(world, 100)
}

fn said(ready: bool) -> Found {
    Found::Answer(Answer { ready, ready_endpoints: u32::from(ready), endpoints: 1 })
}

#[test]
fn nothing_is_answered_before_the_first_sign_of_life_nor_after_the_last() {
    let mut scene = web(true);
    assert_eq!(scene.both("/ready/shop/web"), [Found::Stale; 2]);
    scene.beat();
    assert_eq!(scene.both("/ready/shop/web"), [said(true); 2]);
    assert_eq!(scene.both("/ready/shop/none"), [Found::Unknown; 2]);
    scene.world.pass(TTL - Duration::from_nanos(1));
    assert_eq!(scene.both("/ready/shop/web"), [said(true); 2]);
    scene.world.pass(Duration::from_nanos(1));
    assert_eq!(scene.both("/ready/shop/web"), [Found::Stale; 2], "nobody vouches for it any more");
    assert_eq!(scene.both("/ready/shop/none"), [Found::Stale; 2]);
    scene.world.complete();
    scene.beat();
    assert_eq!(scene.both("/ready/shop/web"), [said(true); 2]);
    scene.writer.withdraw();
    assert_eq!(scene.both("/ready/shop/web"), [Found::Stale; 2]);
}

#[test]
fn a_sign_of_life_says_what_the_log_had_before_it() {
    let mut scene = web(true);
    scene.beat();
    scene.world.pod(&Pod::new("a", "web", "10.0.0.1", false));
    assert_eq!(scene.both("/ready/shop/web"), [said(true); 2], "not written yet");
    scene.beat();
    assert_eq!(scene.both("/ready/shop/web"), [said(false); 2]);
}

#[test]
fn signs_of_life_and_what_did_not_change_are_not_rewritten() {
    let mut scene = web(true);
    scene.beat();
    scene.kernel.writes();
    scene.beat();
    assert_eq!(scene.kernel.writes(), 1, "the sign of life alone");
    scene.world.pod(&Pod::new("b", "web", "10.0.0.2", true));
    scene.writer.catch_up();
    assert_eq!(scene.kernel.writes(), 2, "the new address, and the Service's counts");
}

#[test]
fn a_kernel_that_refuses_what_must_go_hears_no_sign_of_life() {
    let mut scene = web(true);
    scene.beat();
    scene.kernel.fail(true);
    scene.world.pod(&Pod::new("a", "web", "10.0.0.1", false));
    scene.world.pass(TTL);
    scene.world.complete();
    scene.beat();
    scene.kernel.fail(false);
    let place = place("/ready/shop/web");
    assert_eq!(scene.kernel.ask(&place, scene.world.now()), Found::Stale);
    assert_eq!(scene.held.ask(&place, scene.world.now()), said(false), "who asks this process is answered");
    scene.beat();
    assert_eq!(scene.both("/ready/shop/web"), [said(false); 2]);
}

#[test]
fn answers_beyond_the_bound_are_404_until_there_is_room() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.service(name, Some(name));
    }
    let mut scene = Scene::new(world, 2);
    scene.beat();
    let known = |scene: &Scene| {
        let found = ["a", "b", "c"].map(|name| scene.both(&format!("/ready/shop/{name}")));
        assert!(found.iter().all(|[held, kernel]| held == kernel), "{found:?}");
        found.iter().filter(|[held, _]| *held != Found::Unknown).count()
    };
    assert_eq!((known(&scene), scene.held.sizes()), (2, (2, 1)));
    let gone = (["a", "b"]).into_iter().find(|name| scene.held.get(&place(&format!("/ready/shop/{name}"))).is_some());
    scene.world.update(Update::Service(Change::Gone(GroupKey::new("shop", gone.expect("two of three")))));
    scene.beat();
    assert_eq!((known(&scene), scene.held.sizes()), (2, (2, 0)));
}

#[test]
fn a_log_that_was_outrun_costs_one_look_at_everything() {
    let mut scene = web(true);
    scene.world.service("gone", Some("none"));
    scene.beat();
    assert_ne!(scene.both("/ready/shop/gone"), [Found::Unknown; 2]);
    scene.world.update(Update::Service(Change::Gone(GroupKey::new("shop", "gone"))));
    for n in 0..20_000_u32 {
        scene.world.pod(&Pod::new("a", "web", "10.0.0.1", n % 2 == 0));
    }
    assert!(scene.world.feed.since(scene.writer.applied, 1).is_err());
    scene.beat();
    assert_eq!(scene.both("/ready/shop/web"), [said(false); 2]);
    assert_eq!(scene.both("/ready/shop/gone"), [Found::Unknown; 2]);
}

#[tokio::test]
async fn follows_by_itself_from_the_cluster_being_listed_until_it_is_withdrawn() {
    let Scene { mut world, held, kernel, writer } = web(false);
    let (list, listed) = tokio::sync::oneshot::channel::<()>();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(writer.run(async { drop(listed.await) }, async { drop(ended.await) }));
    let settle = async || {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    };
    // The world's clock stands still; the writer's own says that the cluster was listed later than that.
    settle().await;
    assert_eq!(held.alive(), None, "the cluster has not been listed");
    list.send(()).expect("heard");
    settle().await;
    assert_eq!(held.alive(), None, "what was listed may not be in the table");
    world.set(Moment::now());
    world.complete();
    settle().await;
    assert_eq!([held.alive(), kernel.0.lock().expect("no panic").alive], [Some(world.now()); 2]);
    world.pod(&Pod::new("a", "web", "10.0.0.1", true));
    settle().await;
    assert_eq!(held.ask(&place("/ready/shop/web"), world.now()), said(true));
    end.send(()).expect("heard");
    assert!(task.await.expect("ends well").is_some(), "the map is given back");
    assert_eq!([held.alive(), kernel.0.lock().expect("no panic").alive], [None; 2]);
}

/// What happens between two looks.
#[derive(Debug, Clone)]
enum Step {
    Pod(u8, bool, bool),
    PodGone(u8),
    Service(u8, bool),
    Silence,
    Complete,
    CatchUp,
    Beat,
    Fail(bool),
    Restart,
    Withdraw,
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_u8, any::<[bool; 2]>()).prop_map(|(pod, [ready, draining])| Step::Pod(pod, ready, draining && ready)),
        2 => (0..3_u8).prop_map(Step::PodGone),
        2 => (0..2_u8, any::<bool>()).prop_map(|(service, there)| Step::Service(service, there)),
        2 => Just(Step::Silence),
        4 => Just(Step::Complete),
        4 => Just(Step::CatchUp),
        8 => Just(Step::Beat),
        2 => any::<bool>().prop_map(Step::Fail),
        1 => Just(Step::Restart),
        1 => Just(Step::Withdraw),
        4 => (0..1500_u16).prop_map(Step::Pass),
    ]
}

/// The places that are asked: of two Services, of one that never is, of three pods of which two share an address.
const ASKED: [&str; 5] =
    ["/ready/shop/s0", "/ready/shop/s1", "/ready/shop/none", "/ready/shop/s0/10.0.0.1", "/ready/shop/s1/10.0.0.2"];

const APPS: [&str; 3] = ["s0", "s0", "s1"];
const ADDRESSES: [&str; 3] = ["10.0.0.1", "10.0.0.1", "10.0.0.2"];

/// What the table says of a path, told from its pictures alone.
fn is_ready(world: &World, path: &str) -> bool {
    let mut parts = path.split('/').skip(3);
    let (service, address) = (parts.next().expect("a Service"), parts.next());
    let Some(picture) = world.groups.get("shop", service) else { return false };
    let mut there = picture.endpoints().filter(|endpoint| match address {
        Some(address) => endpoint.addresses.iter().any(|known| known.to_string() == address),
        None => true,
    });
    match address {
        Some(_) => there.next().is_some_and(|first| first.is_ready()) && there.all(|endpoint| endpoint.is_ready()),
        None => there.any(|endpoint| endpoint.is_ready()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// However the table changes, the writer lags, the process hangs or starts again and the kernel refuses: whoever is
    /// told 200 is told what the table did say at some moment within the time to live.
    #[test]
    fn never_a_false_200(steps in prop::collection::vec(step(), 1..120), most in 2..12_usize) {
        let mut scene = Scene::new(World::new(), most);
        // Since when each path has not been ready; never while it is.
        let mut unready: HashMap<&str, Option<Moment>> = ASKED.map(|path| (path, Some(Moment::default()))).into();
        for step in steps {
            match step {
                Step::Pod(n, ready, terminating) => {
                    let n = usize::from(n);
                    let pod = Pod { terminating, ..Pod::new(&format!("p{n}"), APPS[n], ADDRESSES[n], ready) };
                    let update = scene.world.observed(&pod);
                    scene.world.apply(update);
                }
                Step::PodGone(n) => {
                    let pod = Pod::new(&format!("p{n}"), "", "10.0.0.9", false);
                    scene.world.apply(Update::Pod(Change::Gone(*pod.reference().uid())));
                }
                Step::Service(n, true) => scene.world.apply(service(&format!("s{n}"), Some(&format!("s{n}")))),
                Step::Service(n, false) => {
                    scene.world.apply(Update::Service(Change::Gone(GroupKey::new("shop", &format!("s{n}")))));
                }
                Step::Silence => scene.world.pass(TTL),
                Step::Complete => scene.world.complete(),
                Step::CatchUp => scene.writer.catch_up(),
                Step::Beat => scene.beat(),
                Step::Fail(fails) => scene.kernel.fail(fails),
                Step::Restart => scene.restart(most),
                Step::Withdraw => scene.writer.withdraw(),
                Step::Pass(ms) => scene.world.pass(Duration::from_millis(u64::from(ms))),
            }
            let now = scene.world.now();
            for path in ASKED {
                let since = match (is_ready(&scene.world, path), unready[path]) {
                    (true, _) => None,
                    (false, since) => since.or(Some(now)),
                };
                unready.insert(path, since);
                for found in scene.both(path) {
                    let lied = matches!(found, Found::Answer(answer) if answer.ready)
                        && since.is_some_and(|since| since.until(now) >= TTL);
                    prop_assert!(!lied, "{path} is {found:?} and has not been since {since:?}");
                    prop_assert!(path != ASKED[2] || !matches!(found, Found::Answer(_)), "{path} has never been");
                }
            }
        }
    }
}
