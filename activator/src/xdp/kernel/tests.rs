use std::sync::{Arc, Mutex};

use super::*;
use crate::xdp::fixtures::place;

const TTL: Duration = Duration::from_secs(2);
const PORT: u16 = 9000;

#[derive(Debug, thiserror::Error)]
#[error("no room")]
struct NoRoom;

/// Maps that keep what is done to them in order, and have room for so many ports.
#[derive(Debug, Clone)]
struct Store(Arc<Mutex<Vec<Done>>>, usize);

#[derive(Debug, Clone, PartialEq)]
enum Done {
    Insert(Key, podlight_xdp::Answer),
    Remove(Key),
    Beat(Beat),
    Listen(Listen),
    Unlisten(Listen),
}

impl Store {
    fn push(&self, done: Done) {
        self.0.lock().expect("no panic").push(done);
    }

    fn done(&self) -> Vec<Done> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

impl podlight_xdp::Store for Store {
    type Fault = NoRoom;

    fn insert(&mut self, key: &Key, answer: &podlight_xdp::Answer) -> Result<(), NoRoom> {
        self.push(Done::Insert(*key, *answer));
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> Result<(), NoRoom> {
        self.push(Done::Remove(*key));
        Ok(())
    }

    fn beat(&mut self, beat: Beat) -> Result<(), NoRoom> {
        self.push(Done::Beat(beat));
        Ok(())
    }

    fn listen(&mut self, at: &Listen) -> Result<(), NoRoom> {
        self.1 = self.1.checked_sub(1).ok_or(NoRoom)?;
        self.push(Done::Listen(*at));
        Ok(())
    }

    fn unlisten(&mut self, at: &Listen) -> Result<(), NoRoom> {
        self.1 += 1;
        self.push(Done::Unlisten(*at));
        Ok(())
    }
}

fn ours() -> Vec<IpAddr> {
    vec![crate::xdp::fixtures::ip("10.0.0.9")]
}

fn kernel(ports: usize) -> (Kernel<Store>, Store) {
    let store = Store(Arc::default(), ports);
    (Kernel::new(store.clone(), PORT, Box::new(|| Ok(ours())), TTL), store)
}

fn probe(address: &str, path: &str) -> Place {
    Place { at: Some(address.parse().expect("an address")), path: path.into() }
}

const READY: Answer = Answer { ready: true, ready_endpoints: 1, endpoints: 2 };

fn shared(address: [u8; 4]) -> Listen {
    Listen { address: podlight_xdp::v4_mapped(address), port: PORT, is_shared: true }
}

#[test]
fn the_readiness_port_is_taken_at_each_address_and_follows_them() {
    let (told, store) = (Arc::new(Mutex::new(ours())), Store(Arc::default(), 2));
    let source = Arc::clone(&told);
    let addresses = Box::new(move || Ok(source.lock().expect("no panic").clone()));
    let mut kernel = Kernel::new(store.clone(), PORT, addresses, TTL);
    assert_eq!(store.done(), [Done::Listen(shared([10, 0, 0, 9]))]);
    *told.lock().expect("no panic") = vec![crate::xdp::fixtures::ip("10.0.0.8")];
    let mut now = Moment::now();
    kernel.beat(Some(now)).expect("works");
    assert!(matches!(store.done()[..], [Done::Beat(_)]), "not yet");
    now.nanos += u64::try_from(LOOK_EVERY.as_nanos()).expect("short");
    kernel.beat(Some(now)).expect("works");
    let done = store.done();
    assert_eq!(done[..2], [Done::Unlisten(shared([10, 0, 0, 9])), Done::Listen(shared([10, 0, 0, 8]))]);
}

#[test]
fn addresses_are_those_that_the_port_is_bound_to() {
    let ip = crate::xdp::fixtures::ip;
    let of = |bound: &str, interface: &str| addresses(ip(bound), vec![interface.to_owned()])().expect("is told");
    assert_eq!(of("10.1.2.3", "lo"), [ip("10.1.2.3")]);
    assert!(of("0.0.0.0", "lo").contains(&ip("127.0.0.1")));
    assert!(of("0.0.0.0", "lo").iter().all(IpAddr::is_ipv4));
    assert!(of("::", "lo").contains(&ip("127.0.0.1")));
    assert!(of("::", "no-such-one").is_empty());
}

#[test]
fn answers_live_as_long_as_the_sign_of_life() {
    let (mut kernel, store) = kernel(1);
    store.done();
    kernel.put(&place("/ready/shop/web"), &READY).expect("there is room");
    kernel.beat(Some(Moment { nanos: 7 })).expect("works");
    kernel.beat(None).expect("works");
    let done = store.done();
    let Done::Insert(key, answer) = done[0] else { panic!("{done:?}") };
    assert_eq!(Some(key), Key::new(ANY_ADDRESS, PORT, b"/ready/shop/web"));
    let podlight_xdp::Answer { is_ready, ready, total, ttl_ns, .. } = answer;
    assert_eq!((is_ready, ready, total, ttl_ns), (true, 1, 2, NEVER));
    assert_eq!(done[1..], [Done::Beat(Beat { updated_ns: 7, ttl_ns: 2_000_000_000 }), Done::Beat(Beat::default())]);
    assert!(!Beat::default().is_fresh(1), "what takes all signs of life back");
}

#[test]
fn a_probed_port_is_taken_after_its_first_answer_and_left_before_its_last_goes() {
    let (mut kernel, store) = kernel(9);
    store.done();
    let [one, two] = [probe("10.0.0.1:80", "/a"), probe("10.0.0.1:80", "/b")];
    let steps = |store: &Store| {
        let name = |done: &Done| match done {
            Done::Insert(..) => "insert",
            Done::Remove(_) => "remove",
            Done::Beat(_) => "beat",
            Done::Listen(at) if at.is_shared => "listen everywhere",
            Done::Listen(_) => "listen",
            Done::Unlisten(_) => "unlisten",
        };
        store.done().iter().map(name).collect::<Vec<_>>()
    };
    kernel.put(&one, &READY).expect("there is room");
    kernel.put(&one, &READY).expect("there is room");
    kernel.put(&two, &READY).expect("there is room");
    assert_eq!(steps(&store), ["insert", "listen", "insert", "insert"]);
    kernel.remove(&one).expect("works");
    kernel.remove(&one).expect("is not there any more");
    kernel.remove(&two).expect("works");
    assert_eq!(steps(&store), ["remove", "unlisten", "remove"]);
}

#[test]
fn a_probe_without_room_for_its_port_goes_to_its_pod_until_there_is() {
    let (mut kernel, store) = kernel(2);
    store.done();
    let [one, two] = [probe("10.0.0.1:80", "/a"), probe("[fd00::1]:80", "/a")];
    kernel.put(&one, &READY).expect("there is room");
    kernel.put(&two, &READY).expect("the answer is there, and nobody asks for it");
    assert!(!store.done().iter().any(|done| matches!(done, Done::Listen(at) if at.address[..2] == [0xfd, 0])));
    kernel.remove(&one).expect("works");
    kernel.put(&two, &READY).expect("there is room");
    assert!(store.done().iter().any(|done| matches!(done, Done::Listen(at) if at.address[..2] == [0xfd, 0])));
}

#[test]
fn no_two_places_have_had_one_number() {
    let (mut kernel, store) = kernel(1);
    store.done();
    kernel.put(&place("/a"), &READY).expect("there is room");
    kernel.put(&place("/b"), &READY).expect("there is room");
    kernel.put(&place("/a"), &READY).expect("there is room");
    kernel.remove(&place("/a")).expect("works");
    kernel.put(&place("/a"), &READY).expect("there is room");
    let number = |done: &Done| if let Done::Insert(_, answer) = done { Some(answer.backend) } else { None };
    assert_eq!(store.done().iter().filter_map(number).collect::<Vec<_>>(), [1, 2, 1, 3]);
}
