use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::table::snapshot::FeedWhat;
use crate::table::{Change, Update};
use crate::xdp::fixtures::{Pod, World, ip, place, service, slice};

const LONGEST: usize = 200;

/// Answers that have followed a world's log so far.
struct Follower {
    answers: Answers,
    applied: u64,
    /// What they have told, put together.
    told: BTreeMap<Place, Answer>,
}

impl Follower {
    fn new(probes: &[Probe]) -> Self {
        Self { answers: Answers::new(probes, LONGEST), applied: 0, told: BTreeMap::new() }
    }

    fn follow(&mut self, world: &World) -> Vec<Difference> {
        for item in world.feed.since(self.applied, usize::MAX).expect("all of it is held") {
            self.applied = item.id;
            let picture = world.groups.get(&item.group().namespace, &item.group().service);
            match &item.what {
                FeedWhat::Service(_) | FeedWhat::ServiceGone(_) => self.answers.group(item.group(), picture.as_deref()),
                FeedWhat::Endpoint(e) => self.answers.endpoint(item.group(), &e.id, picture.as_deref()),
                FeedWhat::EndpointGone(key, id) => self.answers.endpoint(key, id, picture.as_deref()),
            }
        }
        let differences = self.answers.differences();
        for (place, answer) in &differences {
            match answer {
                Some(answer) => drop(self.told.insert(Place::clone(place), *answer)),
                None => drop(self.told.remove(place)),
            }
        }
        differences
    }

    fn status(&self, path: &str) -> Option<bool> {
        self.told.get(&place(path)).map(|answer| answer.ready)
    }
}

fn probe(service: &str, port: u16, path: &str) -> Probe {
    Probe { group: GroupKey::new("shop", service), port, path: path.into() }
}

/// All of it from nothing: each Service's endpoints, added up by place.
fn oracle(world: &World, probes: &[Probe]) -> BTreeMap<Place, Answer> {
    let mut groups: BTreeMap<Place, (u32, u32)> = BTreeMap::new();
    let mut addresses: BTreeMap<Place, (u32, u32)> = BTreeMap::new();
    for picture in world.groups.all() {
        let GroupKey { namespace, service } = picture.key();
        let group = place(&format!("/ready/{namespace}/{service}"));
        let counts = groups.entry(group.clone()).or_default();
        for endpoint in picture.endpoints() {
            counts.0 += u32::from(endpoint.is_ready());
            counts.1 += 1;
            let mut places = Vec::new();
            for address in &endpoint.addresses {
                places.push(place(&format!("{}/{}", group.path, address.to_canonical())));
                let chosen = picture.service().is_some_and(|service| service.selector.is_some());
                for probe in probes.iter().filter(|probe| probe.group == *picture.key() && chosen) {
                    let at = Some((address.to_canonical(), probe.port).into());
                    places.push(Place { at, path: Arc::clone(&probe.path) });
                }
            }
            places.sort();
            places.dedup();
            for place in places {
                let counts = addresses.entry(place).or_default();
                counts.0 += u32::from(endpoint.is_ready());
                counts.1 += 1;
            }
        }
    }
    let any = groups.into_iter().map(|(place, (ready, total))| (place, ready > 0, ready, total));
    let all = addresses.into_iter().map(|(place, (ready, total))| (place, total > 0 && ready == total, ready, total));
    let answer = |(place, ready, ready_endpoints, endpoints)| (place, Answer { ready, ready_endpoints, endpoints });
    any.chain(all).filter(|(place, ..)| place.path.len() <= LONGEST).map(answer).collect()
}

#[test]
fn a_service_is_ready_when_any_endpoint_is_and_an_endpoint_when_it_is() {
    let (mut world, mut follower) = (World::new(), Follower::new(&[]));
    world.service("web", Some("web"));
    follower.follow(&world);
    assert_eq!(follower.status("/ready/shop/web"), Some(false), "nobody is there");
    assert_eq!(follower.status("/ready/shop/other"), None);
    world.pod(&Pod::new("a", "web", "10.0.0.1", false));
    world.pod(&Pod::new("b", "web", "10.0.0.2", true));
    follower.follow(&world);
    let answer = Answer { ready: true, ready_endpoints: 1, endpoints: 2 };
    assert_eq!(follower.told.get(&place("/ready/shop/web")), Some(&answer));
    assert_eq!(follower.status("/ready/shop/web/10.0.0.1"), Some(false));
    assert_eq!(follower.status("/ready/shop/web/10.0.0.2"), Some(true));
    world.pod(&Pod { terminating: true, ..Pod::new("b", "web", "10.0.0.2", true) });
    follower.follow(&world);
    assert_eq!(follower.status("/ready/shop/web/10.0.0.2"), Some(false), "it is leaving");
    assert_eq!(follower.status("/ready/shop/web"), Some(false));
}

#[test]
fn an_address_with_two_pods_is_ready_only_when_both_are() {
    let (mut world, mut follower) = (World::new(), Follower::new(&[]));
    world.service("web", Some("web"));
    world.pod(&Pod::new("old", "web", "10.0.0.1", true));
    world.pod(&Pod::new("new", "web", "10.0.0.1", false));
    follower.follow(&world);
    assert_eq!(follower.status("/ready/shop/web/10.0.0.1"), Some(false), "either may be the one that is there");
    world.pod(&Pod::new("new", "web", "10.0.0.1", true));
    follower.follow(&world);
    assert_eq!(follower.status("/ready/shop/web/10.0.0.1"), Some(true));
    world.pod(&Pod { ended: true, ..Pod::new("old", "web", "10.0.0.1", false) });
    follower.follow(&world);
    assert_eq!(follower.status("/ready/shop/web/10.0.0.1"), Some(true), "one that has ended has no address");
}

#[test]
fn addresses_are_written_in_their_canonical_form() {
    let (mut world, mut follower) = (World::new(), Follower::new(&[]));
    world.service("web", Some("web"));
    let addresses = vec![ip("2001:DB8:0:0:0:0:0:1"), ip("::ffff:10.0.0.1")];
    world.pod(&Pod { addresses, ..Pod::new("a", "web", "10.0.0.9", true) });
    follower.follow(&world);
    let paths: Vec<&str> = follower.told.keys().map(|place| &*place.path).collect();
    assert_eq!(paths, ["/ready/shop/web", "/ready/shop/web/10.0.0.1", "/ready/shop/web/2001:db8::1"]);
}

#[test]
fn probes_are_answered_for_pods_that_the_service_chooses_itself() {
    let probes = [probe("web", 8080, "/healthz"), probe("loose", 8080, "/healthz")];
    let (mut world, mut follower) = (World::new(), Follower::new(&probes));
    world.service("web", Some("web"));
    world.service("loose", None);
    world.update(slice("loose", "s", &[("10.0.0.2", true)]));
    world.pod(&Pod::new("a", "web", "10.0.0.1", true));
    follower.follow(&world);
    let probed: Vec<String> = follower.told.keys().filter(|p| p.at.is_some()).map(ToString::to_string).collect();
    assert_eq!(probed, ["10.0.0.1:8080/healthz"]);
    assert_eq!(follower.status("/ready/shop/loose/10.0.0.2"), Some(true));
    // The same Service that chooses its pods from now on: what was written down for it no longer counts.
    world.service("loose", Some("web"));
    follower.follow(&world);
    assert_eq!(follower.told, oracle(&world, &probes));
    let twice = Place { at: Some((ip("10.0.0.1"), 8080).into()), path: "/healthz".into() };
    assert_eq!(follower.told[&twice].endpoints, 2, "both Services speak for the pod");
}

#[test]
fn what_ceases_to_be_ready_is_written_before_what_is() {
    let (mut world, mut follower) = (World::new(), Follower::new(&[]));
    world.service("web", Some("web"));
    world.pod(&Pod::new("a", "web", "10.0.0.1", true));
    world.pod(&Pod::new("c", "web", "10.0.0.3", true));
    follower.follow(&world);
    world.pod(&Pod::new("b", "web", "10.0.0.2", true));
    world.pod(&Pod::new("a", "web", "10.0.0.1", false));
    let gone = Update::Pod(Change::Gone(*Pod::new("c", "web", "10.0.0.3", true).reference().uid()));
    world.update(gone);
    let order: Vec<Option<bool>> = follower.follow(&world).iter().map(|(_, a)| a.map(|answer| answer.ready)).collect();
    assert_eq!(order, [None, Some(false), Some(true), Some(true)]);
}

#[test]
fn what_changed_and_changed_back_is_not_written() {
    let (mut world, mut follower) = (World::new(), Follower::new(&[]));
    world.service("web", Some("web"));
    world.pod(&Pod::new("a", "web", "10.0.0.1", true));
    follower.follow(&world);
    world.pod(&Pod::new("a", "web", "10.0.0.1", false));
    world.pod(&Pod::new("a", "web", "10.0.0.1", true));
    assert_eq!(follower.follow(&world), []);
}

#[test]
fn a_path_beyond_the_bound_is_no_place() {
    let (mut world, mut follower) = (World::new(), Follower::new(&[]));
    let name = "n".repeat(LONGEST - "/ready/shop/".len());
    world.service(&name, Some("web"));
    world.service(&format!("{name}n"), Some("web"));
    world.service("a/b", Some("web"));
    world.pod(&Pod::new("a", "web", "10.0.0.1", true));
    follower.follow(&world);
    let paths: Vec<&str> = follower.told.keys().map(|place| &*place.path).collect();
    assert_eq!(paths, [format!("/ready/shop/{name}")]);
}

/// Something that happens to a cluster of few names, so that they meet.
fn update() -> impl Strategy<Value = Step> {
    let address = || prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "fd00::1", "::ffff:10.0.0.2"]);
    let addresses = prop::collection::vec(address(), 0..3);
    let pod = (0..4_u8, 0..2_u8, addresses, any::<[bool; 2]>(), 0..8_u8);
    let pod = pod.prop_map(|(name, app, addresses, [ready, terminating], ended)| {
        Step::Pod(Pod {
            name: format!("p{name}"),
            app: format!("a{app}"),
            addresses: addresses.into_iter().map(ip).collect(),
            ready,
            terminating: terminating && ready,
            ended: ended == 0,
        })
    });
    let gone = (0..4_u8).prop_map(|name| Step::PodGone(format!("p{name}")));
    let service = (0..3_u8, prop::option::of(0..2_u8)).prop_map(|(name, app)| Step::Service(name, app));
    let service_gone = (0..3_u8).prop_map(Step::ServiceGone);
    let slice = (0..3_u8, prop::collection::vec((address(), any::<bool>()), 0..3));
    let slice = slice.prop_map(|(service, endpoints)| Step::Slice(service, endpoints));
    prop_oneof![6 => pod, 2 => gone, 2 => service, 1 => service_gone, 2 => slice]
}

#[derive(Debug, Clone)]
enum Step {
    Pod(Pod),
    PodGone(String),
    Service(u8, Option<u8>),
    ServiceGone(u8),
    Slice(u8, Vec<(&'static str, bool)>),
}

impl Step {
    fn take(self, world: &mut World) {
        let update = match self {
            Self::Pod(pod) => world.observed(&pod),
            Self::PodGone(name) => Update::Pod(Change::Gone(*Pod::new(&name, "", "10.0.0.1", false).reference().uid())),
            Self::Service(name, app) => service(&format!("s{name}"), app.map(|app| format!("a{app}")).as_deref()),
            Self::ServiceGone(name) => Update::Service(Change::Gone(GroupKey::new("shop", &format!("s{name}")))),
            Self::Slice(name, endpoints) => slice(&format!("s{name}"), &format!("slice-{name}"), &endpoints),
        };
        world.update(update);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn differences_add_up_to_what_the_table_shows(
        steps in prop::collection::vec((update(), any::<bool>()), 1..60),
    ) {
        let probes = [probe("s0", 8080, "/healthz"), probe("s1", 8080, "/healthz"), probe("s1", 81, "/")];
        let (mut world, mut follower) = (World::new(), Follower::new(&probes));
        for (step, look) in steps {
            step.take(&mut world);
            if look {
                let before = follower.told.clone();
                let differences = follower.follow(&world);
                prop_assert_eq!(&follower.told, &oracle(&world, &probes));
                for (place, answer) in &differences {
                    prop_assert_ne!(before.get(&**place), answer.as_ref(), "{} is written as it was", place);
                }
                prop_assert!(differences.is_sorted_by_key(|(_, answer)| answer.map(|answer| answer.ready)));
            }
        }
    }
}
