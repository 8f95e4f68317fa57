use std::collections::BTreeSet;

use super::*;
use crate::proxy::fixtures::*;
use crate::proxy::target::{HoldConfig, Hub};

struct World {
    hub: Arc<Hub>,
    table: RouteTable,
}

impl World {
    fn new() -> Self {
        let table = RouteTable::new("cluster.local");
        table.routes().complete();
        Self { hub: Hub::new(&HoldConfig::default()).0, table }
    }

    fn put(&mut self, service: Service, hosts: &[&str]) -> BTreeSet<GroupKey> {
        let taker = Taker::Target(Target::new(&service, settings(&service), &self.hub));
        let hosts: Vec<HostPattern> = hosts.iter().filter_map(|host| HostPattern::parse(host)).collect();
        let concerned = self.table.put(&Arc::new(service), taker, &hosts, Vec::new());
        self.table.publish();
        concerned
    }

    fn remove(&mut self, name: &str) {
        self.table.remove(&GroupKey::new("default", name));
        self.table.publish();
    }

    fn find(&self, host: &str) -> Result<String, RouteError> {
        self.table.routes().find(host).map(|target| target.key().service.as_ref().to_owned())
    }

    fn faults(&self, name: &str) -> Vec<String> {
        let listed = self.table.get(&GroupKey::new("default", name)).expect("listed");
        listed.faults.iter().map(ToString::to_string).collect()
    }
}

fn created(service: Service, created_seconds: u64) -> Service {
    Service { created_seconds, ..service }
}

#[test]
fn a_service_has_its_own_name_in_every_form() {
    let mut world = World::new();
    world.put(service("web"), &[]);
    for host in ["web.default", "WEB.default.svc:80", "web.default.svc.cluster.local.", "web.default.svc.Cluster.Local"]
    {
        assert_eq!(world.find(host), Ok("web".to_owned()), "{host}");
    }
    for host in ["web", "web.other", "web.default.svc.cluster", "x.web.default.svc", "web.default.svc.example.com"] {
        assert_eq!(world.find(host), Err(RouteError::Unknown(host.to_owned())), "{host}");
    }
}

#[test]
fn an_unknown_host_is_named_and_a_malformed_one_is_told_apart() {
    let world = World::new();
    assert_eq!(world.find("Nobody.Example.com:80"), Err(RouteError::Unknown("nobody.example.com".to_owned())));
    assert_eq!(world.find("user@web.default"), Err(RouteError::Malformed));
}

#[test]
fn an_exact_host_wins_over_a_suffix_and_the_longest_suffix_over_shorter_ones() {
    let mut world = World::new();
    world.put(service("all"), &["*.example.com"]);
    world.put(service("team"), &["*.team.example.com"]);
    world.put(service("one"), &["one.team.example.com"]);
    assert_eq!(world.find("one.team.example.com"), Ok("one".to_owned()));
    assert_eq!(world.find("x.one.team.example.com"), Ok("team".to_owned()));
    assert_eq!(world.find("other.example.com"), Ok("all".to_owned()));
    assert!(world.find("example.com").is_err() && world.find("notexample.com").is_err());
}

#[test]
fn of_two_services_with_one_host_the_older_keeps_it_and_the_other_is_told() {
    let mut world = World::new();
    world.put(created(service("young"), 200), &["web.example.com"]);
    assert_eq!(world.find("web.example.com"), Ok("young".to_owned()));
    let concerned = world.put(created(service("old"), 100), &["web.example.com"]);
    assert_eq!(concerned.len(), 2);
    assert_eq!(world.find("web.example.com"), Ok("old".to_owned()));
    assert_eq!(world.faults("young"), ["podlight.dev/hosts: web.example.com belongs to default/old"]);
    assert!(world.faults("old").is_empty());
    world.remove("old");
    assert_eq!(world.find("web.example.com"), Ok("young".to_owned()));
    assert!(world.faults("young").is_empty());
    world.remove("young");
    assert!(world.find("web.example.com").is_err());
}

#[test]
fn of_two_equally_old_services_the_first_by_name_keeps_the_host() {
    let mut world = World::new();
    world.put(service("b"), &["web.example.com"]);
    world.put(service("a"), &["web.example.com"]);
    assert_eq!(world.find("web.example.com"), Ok("a".to_owned()));
}

#[test]
fn a_host_that_is_given_up_goes_to_the_next() {
    let mut world = World::new();
    world.put(created(service("old"), 100), &["web.example.com", "*.example.org"]);
    world.put(created(service("young"), 200), &["web.example.com", "*.example.org"]);
    world.put(created(service("old"), 100), &[]);
    assert_eq!(world.find("web.example.com"), Ok("young".to_owned()));
    assert_eq!(world.find("x.example.org"), Ok("young".to_owned()));
    assert!(world.faults("young").is_empty());
}

#[test]
fn nobody_answers_in_another_services_name() {
    let mut world = World::new();
    let claims = ["web.default", "api.default.svc", "*.svc", "*.cluster.local", "thief.default.svc"];
    world.put(created(service("thief"), 1), &claims);
    assert_eq!(world.find("thief.default.svc"), Ok("thief".to_owned()));
    assert!(world.find("api.default.svc").is_err() && world.find("x.default.svc.cluster.local").is_err());
    assert_eq!(world.faults("thief").len(), 3);
    world.put(created(service("web"), 900), &[]);
    assert_eq!(world.find("web.default"), Ok("web".to_owned()));
    assert_eq!(world.faults("thief").len(), 4);
}

#[test]
fn case_28_services_of_one_name_in_two_namespaces_are_two() {
    let mut world = World::new();
    let other = Service { key: GroupKey::new("other", "web"), ..service("web") };
    world.put(service("web"), &[]);
    world.put(other, &[]);
    let namespace = |host| world.table.routes().find(host).map(|target| target.key().namespace.as_ref().to_owned());
    assert_eq!(namespace("web.default.svc"), Ok("default".to_owned()));
    assert_eq!(namespace("web.other.svc"), Ok("other".to_owned()));
}

#[test]
fn a_service_that_takes_no_requests_says_why() {
    let mut world = World::new();
    world.table.put(&Arc::new(service("alias")), Taker::Nobody("an ExternalName".into()), &[], Vec::new());
    world.table.publish();
    let error = world.find("alias.default").expect_err("nobody");
    assert_eq!(error.to_string(), "Service default/alias takes no requests: an ExternalName");
    assert_eq!(world.faults("alias"), ["an ExternalName"]);
}

#[test]
fn ten_thousand_services_come_one_by_one() {
    let mut world = World::new();
    for n in 0..10_000 {
        world.put(service(&format!("s{n}")), &[&format!("s{n}.example.com")]);
    }
    assert_eq!(world.find("s9999.example.com"), Ok("s9999".to_owned()));
    assert_eq!(world.find("s77.default.svc"), Ok("s77".to_owned()));
}
