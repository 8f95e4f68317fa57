use std::collections::HashSet;

use super::*;
use crate::proxy::fixtures::*;
use crate::proxy::target::backend::{Backend, BackendId, Way};
use crate::table::entry::{Protocol, Source, State};
use crate::table::group::Family;

const BOUNDS: Bounds = Bounds { held: 2000, cluster_ip_lag: Duration::from_secs(10), workers: 1 };

/// A target, the time, and what its requests got.
struct World {
    service: Service,
    state: TargetState<u32>,
    now: Duration,
    out: Vec<Delivery<u32>>,
    comes: u32,
}

/// A request that was told something.
#[derive(Debug)]
struct Told {
    who: u32,
    outcome: Result<Grant, Refusal>,
}

impl Told {
    fn grant(self) -> Grant {
        self.outcome.expect("a place")
    }
}

impl World {
    fn new(service: Service) -> Self {
        let settings = settings(&service);
        Self::with(service, settings)
    }

    fn with(service: Service, settings: Settings) -> Self {
        let state = TargetState::new(BOUNDS, Arc::new(settings), &service, 7);
        Self { service, state, now: Duration::from_secs(100), out: Vec::new(), comes: 0 }
    }

    fn configure(&mut self, settings: Settings) {
        self.state.configure(Arc::new(settings), &self.service, self.now, &mut self.out);
    }

    fn put(&mut self, endpoint: Endpoint) {
        self.state.update(&endpoint.id.clone(), Some(endpoint), self.now, &mut self.out);
    }

    fn remove(&mut self, endpoint: &Endpoint) {
        self.state.update(&endpoint.id, None, self.now, &mut self.out);
    }

    fn after(&mut self, span: Duration) {
        self.now += span;
        self.state.tick(self.now, &mut self.out);
    }

    /// A request comes: what it gets at once; none when it is held.
    fn request(&mut self) -> Option<Grant> {
        self.retry(&[]).expect("not refused")
    }

    fn retry(&mut self, tried: &[BackendId]) -> Result<Option<Grant>, Refusal> {
        self.comes += 1;
        let avoid = Avoid::new(tried);
        match self.state.admit(&avoid, self.now)? {
            Admission::Granted(grant) => Ok(Some(grant)),
            Admission::Wait => {
                self.state.hold(self.comes, avoid, self.now);
                Ok(None)
            }
        }
    }

    fn hold(&mut self, avoid: &[BackendId]) -> Ticket {
        self.comes += 1;
        self.state.hold(self.comes, Avoid::new(avoid), self.now)
    }

    fn told(&mut self) -> Vec<Told> {
        self.out.drain(..).map(|d| Told { who: d.held.waiter, outcome: d.outcome }).collect()
    }

    fn end(&mut self, grant: &Grant) {
        self.state.release(grant.place, None, || self.now, &mut self.out);
    }

    fn answered(&mut self, grant: &Grant) {
        self.state.answered(grant.place, grant.epoch, self.now, &mut self.out);
    }

    fn refused(&mut self, grant: &Grant) -> bool {
        let shut = self.state.failed(grant.place, grant.epoch, Reason::Refused, self.now);
        self.end(grant);
        shut
    }

    fn errands(&mut self) -> Errands {
        self.state.errands(self.now)
    }
}

fn address(grant: &Grant) -> String {
    grant.backend.address().to_string()
}

fn ids(grants: &[&Grant]) -> Vec<BackendId> {
    grants.iter().map(|grant| *grant.backend.id()).collect()
}

#[test]
fn a_ready_endpoint_takes_a_request_at_once() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let grant = world.request().expect("ready");
    assert_eq!((address(&grant).as_str(), grant.backend.way()), ("10.0.0.1:8080", Way::Direct));
}

#[test]
fn one_ready_event_releases_a_thousand_held_requests_in_their_order() {
    let mut world = World::new(service("web"));
    world.put(in_state(&pushed("a", "10.0.0.1"), State::NotReady));
    assert!((0..1000).all(|_| world.request().is_none()));
    world.put(pushed("a", "10.0.0.1"));
    let told = world.told();
    assert!(told.iter().map(|t| t.who).eq(1..=1000));
    assert!(told.into_iter().all(|t| address(&t.grant()) == "10.0.0.1:8080"));
    assert_eq!(world.state.held(), 0);
}

#[test]
fn a_queue_is_released_into_the_pods_limit_and_no_further() {
    let web = service("web");
    let mut world = World::with(web.clone(), limited(settings(&web), 3));
    assert!((0..20).all(|_| world.request().is_none()));
    world.put(pushed("a", "10.0.0.1"));
    world.put(pushed("b", "10.0.0.2"));
    let first: Vec<Grant> = world.told().into_iter().map(Told::grant).collect();
    assert_eq!(first.len(), 6);
    for place in [first[0].place, first[3].place] {
        assert_eq!(first.iter().filter(|grant| grant.place == place).count(), 3);
    }
    world.end(&first[4]);
    let next = world.told();
    assert_eq!(next.iter().map(|t| t.who).collect::<Vec<_>>(), [7]);
    assert_eq!(next.into_iter().map(Told::grant).next().map(|g| g.place), Some(first[4].place));
}

#[test]
fn nobody_overtakes_the_queue() {
    let web = service("web");
    let mut world = World::with(web.clone(), limited(settings(&web), 1));
    world.put(pushed("a", "10.0.0.1"));
    let running = world.request().expect("free");
    assert!(world.request().is_none());
    world.end(&running);
    let told = world.told();
    assert_eq!(told.iter().map(|t| t.who).collect::<Vec<_>>(), [2]);
    assert!(world.request().is_none());
}

#[test]
fn a_request_that_leaves_is_passed_over() {
    let mut world = World::new(service("web"));
    let tickets = [world.hold(&[]), world.hold(&[]), world.hold(&[])];
    assert_eq!(world.state.cancel(tickets[1], world.now, &mut world.out).map(|held| held.waiter), Some(2));
    assert!(world.state.cancel(tickets[1], world.now, &mut world.out).is_none());
    world.put(pushed("a", "10.0.0.1"));
    assert_eq!(world.told().iter().map(|t| t.who).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn a_full_queue_takes_no_more() {
    let mut world = World::new(service("web"));
    assert!((0..BOUNDS.held).all(|_| world.request().is_none()));
    assert_eq!(world.retry(&[]).expect_err("full"), Refusal::Full);
}

#[test]
fn requests_spread_over_the_endpoints_by_what_they_have() {
    let mut world = World::new(service("web"));
    for n in 1..=10 {
        world.put(pushed(&format!("p{n}"), &format!("10.0.0.{n}")));
    }
    let grants: Vec<Grant> = (0..1000).map(|_| world.request().expect("ready")).collect();
    for place in grants.iter().map(|grant| grant.place) {
        let share = grants.iter().filter(|grant| grant.place == place).count();
        assert!((90..=110).contains(&share), "{share}");
    }
}

#[test]
fn a_new_endpoint_gets_no_herd() {
    let mut world = World::new(service("web"));
    for n in 1..=9 {
        world.put(pushed(&format!("p{n}"), &format!("10.0.0.{n}")));
    }
    let _running: Vec<Grant> = (0..90).map(|_| world.request().expect("ready")).collect();
    world.put(pushed("new", "10.0.0.99"));
    let next: Vec<Grant> = (0..20).map(|_| world.request().expect("ready")).collect();
    let share = next.iter().filter(|grant| address(grant) == "10.0.0.99:8080").count();
    assert!(share <= 12, "{share}");
}

#[test]
fn case_5_a_named_port_may_be_another_number_on_each_pod() {
    let mut world = World::new(service("web"));
    world.put(on_port(pushed("a", "10.0.0.1"), "http", 8080, Protocol::Tcp));
    world.put(on_port(pushed("b", "10.0.0.2"), "http", 9090, Protocol::Tcp));
    let grants: Vec<Grant> = (0..2).map(|_| world.request().expect("ready")).collect();
    let seen: HashSet<String> = grants.iter().map(address).collect();
    assert_eq!(seen, ["10.0.0.1:8080", "10.0.0.2:9090"].map(str::to_owned).into());
}

#[test]
fn case_6_a_ready_pod_without_the_named_port_is_no_candidate() {
    let mut world = World::new(headless("web"));
    world.put(on_port(pushed("a", "10.0.0.1"), "metrics", 9090, Protocol::Tcp));
    assert!(world.request().is_none());
    world.put(pushed("b", "10.0.0.2"));
    assert_eq!(world.told().into_iter().map(|t| address(&t.grant())).collect::<Vec<_>>(), ["10.0.0.2:8080"]);
}

#[test]
fn case_7_a_udp_port_of_the_same_name_is_not_it() {
    let mut world = World::new(headless("web"));
    world.put(on_port(pushed("a", "10.0.0.1"), "http", 8080, Protocol::Udp));
    assert!(world.request().is_none());
}

#[test]
fn case_8_two_services_over_one_pod_share_neither_connections_nor_limits() {
    let (web, api) = (service("web"), service("api"));
    let mut first = World::with(web.clone(), limited(settings(&web), 1));
    let mut second = World::with(api.clone(), limited(settings(&api), 1));
    first.put(pushed("a", "10.0.0.1"));
    second.put(pushed("a", "10.0.0.1"));
    let (one, other) = (first.request().expect("free"), second.request().expect("free"));
    assert_eq!(address(&one), address(&other));
    assert_ne!(one.backend.id(), other.backend.id());
}

#[test]
fn case_9_a_headless_service_without_ports_is_reached_on_the_number_asked_for() {
    let web = annotated(Service { ports: Vec::new(), ..headless("web") }, &[("port", "9000")]);
    let mut world = World::new(web);
    world.put(with(&pushed("a", "10.0.0.1"), |facts| facts.ports.clear()));
    assert_eq!(world.request().map(|grant| address(&grant)).as_deref(), Some("10.0.0.1:9000"));
}

#[test]
fn case_10_a_port_renamed_at_run_time_leads_on() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    world.service.ports[0].name = "web".into();
    world.configure(settings(&world.service));
    world.put(on_port(pushed("a", "10.0.0.1"), "web", 8080, Protocol::Tcp));
    assert_eq!(world.request().map(|grant| address(&grant)).as_deref(), Some("10.0.0.1:8080"));
}

#[test]
fn case_13_families_are_preferred_in_the_services_order_and_a_dual_stack_pod_counts_once() {
    let dual = |families: &[Family]| Service { families: families.to_vec(), ..service("web") };
    for (families, expected) in [
        (&[Family::V4, Family::V6][..], "10.0.0.1:8080"),
        (&[Family::V6, Family::V4], "[fd00::1]:8080"),
        (&[Family::V6], "[fd00::1]:8080"),
        (&[], "[fd00::1]:8080"),
    ] {
        let mut world = World::new(dual(families));
        world.put(at(pushed("a", "10.0.0.1"), &["fd00::1", "10.0.0.1"]));
        world.put(at(pushed("b", "10.0.0.2"), &["10.0.0.2"]));
        let grants: Vec<Grant> = (0..2).map(|_| world.request().expect("ready")).collect();
        let seen: HashSet<String> = grants.iter().map(address).collect();
        assert_eq!(seen, [expected, "10.0.0.2:8080"].map(str::to_owned).into(), "{families:?}");
    }
}

#[test]
fn case_14_an_endpoint_without_address_is_no_candidate() {
    let mut world = World::new(headless("web"));
    world.put(at(pushed("a", "10.0.0.1"), &[]));
    assert!(world.request().is_none());
    world.put(pushed("a", "10.0.0.1"));
    assert_eq!(world.told().len(), 1);
}

#[test]
fn case_16_two_pods_on_one_nodes_address_are_two_endpoints() {
    let web = service("web");
    let mut world = World::with(web.clone(), limited(settings(&web), 1));
    world.put(on_port(pushed("a", "192.168.0.1"), "http", 8080, Protocol::Tcp));
    world.put(on_port(pushed("b", "192.168.0.1"), "http", 8081, Protocol::Tcp));
    let grants: Vec<Grant> = (0..2).map(|_| world.request().expect("free")).collect();
    assert_ne!(grants[0].place, grants[1].place);
    assert!(world.request().is_none());
}

#[test]
fn case_17_an_address_used_again_by_a_new_uid_is_another_backend_and_the_old_ones_connections_end() {
    let mut world = World::new(service("web"));
    let (old, new) = (pushed("old", "10.0.0.1"), pushed("new", "10.0.0.1"));
    world.put(old.clone());
    let before = world.request().expect("ready");
    world.remove(&old);
    assert!(!before.backend.usable());
    world.put(new);
    // A late word about the old one touches nothing.
    world.remove(&old);
    let after = world.request().expect("ready");
    assert_eq!(address(&before), address(&after));
    assert_ne!(before.backend.id(), after.backend.id());
    assert!(after.backend.usable());
    world.refused(&before);
    assert!(world.request().is_some_and(|grant| grant.place == after.place));
}

#[test]
fn case_18_a_sandbox_made_anew_moves_the_pod_to_its_new_address() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let before = world.request().expect("ready");
    world.put(pushed("a", "10.0.0.9"));
    let after = world.request().expect("ready");
    assert_eq!(address(&after), "10.0.0.9:8080");
    assert!(!before.backend.usable() && after.backend.usable());
}

#[test]
fn case_19_serving_and_terminating_pods_are_the_last_resort_and_those_not_serving_are_none() {
    let mut world = World::new(headless("web"));
    let ready = pushed("a", "10.0.0.1");
    world.put(in_state(&pushed("dead", "10.0.0.3"), State::Terminating));
    assert!(world.request().is_none());
    world.put(serving(in_state(&pushed("b", "10.0.0.2"), State::Terminating)));
    assert_eq!(world.told().into_iter().map(|t| address(&t.grant())).collect::<Vec<_>>(), ["10.0.0.2:8080"]);
    world.put(ready);
    assert!((0..20).all(|_| address(&world.request().expect("ready")) == "10.0.0.1:8080"));
}

#[test]
fn case_19_a_draining_pod_is_used_only_while_nothing_else_is_there_and_keeps_no_connection() {
    let mut world = World::new(service("web"));
    world.put(serving(pushed("a", "10.0.0.1")));
    let before = world.request().expect("ready");
    world.put(serving(in_state(&pushed("a", "10.0.0.1"), State::Draining)));
    let last = world.request().expect("serving");
    assert_eq!(before.backend.id(), last.backend.id());
    assert!(!last.backend.usable());
    // A container that started anew speaks for itself.
    world.put(since(&pushed("a", "10.0.0.1"), 5000));
    let anew = world.request().expect("ready");
    assert!(anew.backend.usable());
    assert_ne!(anew.backend.id(), last.backend.id());
}

#[test]
fn case_20_publish_not_ready_reaches_pods_that_are_not_ready_but_prefers_those_that_are() {
    let mut world = World::new(Service { publish_not_ready: true, ..headless("web") });
    world.put(in_state(&watched("a", "10.0.0.1"), State::NotReady));
    assert_eq!(world.request().map(|grant| address(&grant)).as_deref(), Some("10.0.0.1:8080"));
    world.put(pushed("b", "10.0.0.2"));
    assert!((0..20).all(|_| address(&world.request().expect("ready")) == "10.0.0.2:8080"));
}

#[test]
fn case_20_publish_not_ready_does_not_make_a_terminating_pod_ready() {
    let mut world = World::new(Service { publish_not_ready: true, ..headless("web") });
    world.put(serving(in_state(&pushed("old", "10.0.0.1"), State::Terminating)));
    world.put(in_state(&pushed("new", "10.0.0.2"), State::NotReady));
    assert!((0..20).all(|_| address(&world.request().expect("published")) == "10.0.0.2:8080"));
}

#[test]
fn case_24_a_headless_service_has_no_cluster_ip_to_fall_back_to_in_any_mode() {
    for mode in [Mode::Always, Mode::ColdStartOnly, Mode::Disabled] {
        let web = headless("web");
        let mut world = World::with(web.clone(), Settings { mode, ..settings(&web) });
        world.put(in_state(&watched("a", "10.0.0.1"), State::NotReady));
        assert!(world.request().is_none());
        world.put(watched("a", "10.0.0.1"));
        world.after(Duration::from_secs(60));
        assert_eq!(world.told().pop().map(Told::grant).map(|g| g.backend.way()), Some(Way::Direct), "{mode:?}");
    }
}

#[test]
fn case_29_ready_drain_and_ready_of_a_newer_boot_are_followed_in_their_order() {
    let mut world = World::new(headless("web"));
    world.put(pushed("a", "10.0.0.1"));
    assert!(world.request().is_some());
    world.put(in_state(&pushed("a", "10.0.0.1"), State::Draining));
    assert!(world.request().is_none());
    world.put(since(&pushed("a", "10.0.0.1"), 2000));
    assert_eq!(world.told().len(), 1);
}

#[test]
fn case_30_a_refused_connection_quarantines_at_once_and_another_endpoint_is_tried() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    world.put(pushed("b", "10.0.0.2"));
    let refused = world.request().expect("ready");
    assert!(world.refused(&refused));
    assert!((0..20).all(|_| world.request().expect("ready").place != refused.place));
}

#[test]
fn case_30_a_single_pod_that_refuses_is_tried_again_as_its_quarantine_ends() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let first = world.request().expect("ready");
    world.refused(&first);
    assert!(world.retry(&ids(&[&first])).expect("held").is_none());
    assert_eq!(world.errands().wake_at, Some(world.now + Duration::from_secs(1)));
    world.after(Duration::from_millis(999));
    assert!(world.told().is_empty());
    world.after(Duration::from_millis(1));
    assert_eq!(world.told().len(), 1);
}

#[test]
fn case_30_time_outs_are_soft_three_of_them_quarantine() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let slow: Vec<Grant> = (0..3).map(|_| world.request().expect("ready")).collect();
    let mut shut = Vec::new();
    for grant in &slow {
        shut.push(world.state.failed(grant.place, grant.epoch, Reason::TimedOut, world.now));
        world.end(grant);
    }
    assert_eq!(shut, [false, false, true]);
}

#[test]
fn when_all_are_in_quarantine_the_one_shut_longest_ago_is_tried() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    world.put(pushed("b", "10.0.0.2"));
    let first = world.request().expect("ready");
    world.refused(&first);
    world.after(Duration::from_millis(10));
    let second = world.request().expect("the other");
    world.refused(&second);
    let tried = world.request().expect("rather than fail");
    assert_eq!(tried.place, first.place);
    let tried = world.request().expect("rather than fail");
    assert_eq!(tried.place, second.place);
    assert!(world.request().is_none(), "both are being tried");
}

#[test]
fn many_refusals_of_one_moment_count_once_and_the_next_counts_double() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let grants: Vec<Grant> = (0..100).map(|_| world.request().expect("ready")).collect();
    assert_eq!(grants.iter().filter(|grant| world.refused(grant)).count(), 1);
    let probe = world.request().expect("rather than fail");
    assert!(world.refused(&probe));
    assert!(world.retry(&ids(&[&probe])).expect("held").is_none());
    assert_eq!(world.errands().wake_at, Some(world.now + Duration::from_secs(2)));
}

#[test]
fn after_a_quarantine_one_request_goes_first_and_the_others_follow_its_answer() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let first = world.request().expect("ready");
    world.refused(&first);
    for _ in 0..10 {
        world.hold(&ids(&[&first]));
    }
    world.after(Duration::from_secs(1));
    let probe = world.told().pop().expect("one goes").grant();
    assert_eq!(world.state.held(), 9);
    world.answered(&probe);
    assert_eq!(world.told().len(), 9);
}

#[test]
fn a_probe_that_is_long_in_answering_does_not_keep_others_waiting() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let first = world.request().expect("ready");
    world.refused(&first);
    let _poll = world.request().expect("the probe");
    assert!(world.request().is_none());
    assert_eq!(world.errands().wake_at, Some(world.now + Duration::from_millis(1500)));
    world.after(Duration::from_millis(1500));
    assert_eq!(world.told().len(), 1);
}

#[test]
fn a_new_ready_event_lifts_a_quarantine_and_the_same_one_again_does_not() {
    let mut world = World::new(service("web"));
    world.put(pushed("a", "10.0.0.1"));
    let first = world.request().expect("ready");
    world.refused(&first);
    assert!(world.retry(&ids(&[&first])).expect("held").is_none());
    world.put(pushed("a", "10.0.0.1"));
    assert!(world.told().is_empty());
    world.put(since(&pushed("a", "10.0.0.1"), 2000));
    assert_eq!(world.told().len(), 1);
}

#[test]
fn a_limit_holds_for_a_pod_that_goes_and_comes_back() {
    let web = service("web");
    let mut world = World::with(web.clone(), limited(settings(&web), 1));
    let a = pushed("a", "10.0.0.1");
    world.put(a.clone());
    let running = world.request().expect("free");
    world.remove(&a);
    world.put(a);
    assert!(world.request().is_none());
    world.end(&running);
    assert_eq!(world.told().len(), 1);
}

#[test]
fn a_limit_that_is_lifted_lets_held_requests_go() {
    let web = service("web");
    let mut world = World::with(web.clone(), limited(settings(&web), 1));
    world.put(pushed("a", "10.0.0.1"));
    let _running = world.request().expect("free");
    assert!((0..5).all(|_| world.request().is_none()));
    world.configure(limited(settings(&web), 3));
    assert_eq!(world.told().len(), 2);
    world.configure(settings(&web));
    assert_eq!(world.told().len(), 3);
}

#[test]
fn other_tls_settings_make_other_connections() {
    let web = service("web");
    let mut world = World::new(web.clone());
    world.put(pushed("a", "10.0.0.1"));
    let before = world.request().expect("ready");
    world.configure(settings(&annotated(web.clone(), &[("upstream-tls", "true")])));
    let tls = world.request().expect("ready");
    assert!(!before.backend.usable() && tls.backend.usable());
    let named = [("upstream-tls", "true"), ("upstream-server-name", "web.example")];
    world.configure(settings(&annotated(web, &named)));
    assert!(!tls.backend.usable());
}

#[test]
fn the_cluster_ip_is_tried_where_no_sidecar_speaks_and_something_is_known() {
    let mut world = World::new(service("web"));
    assert!(world.request().is_none(), "nothing is known");
    world.put(in_state(&watched("a", "10.0.0.1"), State::NotReady));
    let through = world.told().pop().expect("it is worth a try").grant();
    assert_eq!((address(&through).as_str(), through.backend.way()), ("10.96.0.1:80", Way::ClusterIp));
    world.put(in_state(&pushed("b", "10.0.0.2"), State::NotReady));
    assert!(world.request().is_none(), "a sidecar says that its pod is not ready");
}

#[test]
fn a_request_that_the_cluster_ip_refused_is_held_for_an_endpoint() {
    let mut world = World::new(service("web"));
    world.put(in_state(&watched("a", "10.0.0.1"), State::NotReady));
    let through = world.request().expect("a try");
    assert!(through.guess && world.refused(&through));
    assert!(world.retry(&ids(&[&through])).expect("held").is_none());
    world.put(watched("a", "10.0.0.1"));
    let grant = world.told().pop().expect("ready").grant();
    assert_eq!((address(&grant).as_str(), grant.guess), ("10.0.0.1:8080", false));
}

#[test]
fn a_request_that_the_cluster_ip_refused_is_sent_there_once_it_accepts_and_keeps_nobody_behind_it_waiting() {
    let mut world = World::new(service("web"));
    world.put(in_state(&watched("a", "10.0.0.1"), State::NotReady));
    let first = world.request().expect("a try");
    assert!(world.refused(&first));
    assert!(world.retry(&ids(&[&first])).expect("held").is_none());
    assert!((0..5).all(|_| world.request().is_none()));
    for _ in 0..10 {
        assert_eq!(world.errands().wake_at, Some(world.now + Duration::from_secs(1)));
        world.after(Duration::from_secs(1));
        let probe = world.told();
        assert_eq!(probe.len(), 1, "one at a time while it refuses");
        let probe = probe.into_iter().map(Told::grant).next().expect("one");
        assert!(world.refused(&probe));
        assert!(world.retry(&ids(&[&probe])).expect("held").is_none());
    }
    world.after(Duration::from_secs(1));
    let probe = world.told().pop().expect("one").grant();
    world.answered(&probe);
    assert_eq!(world.told().len(), 5, "all others at once, now that it answers");
}

#[test]
fn disabled_goes_through_the_cluster_ip_once_any_endpoint_is_ready() {
    let web = annotated(service("web"), &[("route", "disabled")]);
    let mut world = World::new(web);
    world.put(in_state(&pushed("a", "10.0.0.1"), State::NotReady));
    assert!(world.request().is_none());
    world.put(pushed("a", "10.0.0.1"));
    let through = world.told().pop().expect("ready").grant();
    assert_eq!(through.backend.way(), Way::ClusterIp);
    // The ClusterIP may lag: it refuses, and is tried again one request at a time.
    assert!(world.refused(&through));
    assert!((0..5).all(|_| world.request().is_none()));
    assert_eq!(world.errands().wake_at, Some(world.now + Duration::from_secs(1)));
    world.after(Duration::from_secs(1));
    let probe = world.told();
    assert_eq!(probe.len(), 1);
    world.answered(&probe.into_iter().map(Told::grant).next().expect("one"));
    assert_eq!(world.told().len(), 4);
}

#[test]
fn cold_start_only_goes_straight_to_the_pod_while_the_cluster_ip_may_lag() {
    let web = annotated(service("web"), &[("route", "cold-start-only")]);
    let mut world = World::new(web);
    world.put(pushed("a", "10.0.0.1"));
    let way = |world: &mut World| world.request().expect("ready").backend.way();
    assert_eq!(way(&mut world), Way::Direct);
    world.after(Duration::from_secs(60));
    assert_eq!(way(&mut world), Way::Direct, "the API server has not said anything yet");
    world.put(serving(pushed("a", "10.0.0.1")));
    world.after(Duration::from_secs(9));
    assert_eq!(way(&mut world), Way::Direct);
    world.after(Duration::from_secs(1));
    assert_eq!(way(&mut world), Way::ClusterIp);
    let through = world.request().expect("ready");
    world.refused(&through);
    assert_eq!(way(&mut world), Way::Direct, "rather than hold");
}

#[test]
fn a_cluster_ip_that_has_all_it_may_has_others_wait_and_nobody_goes_around_it() {
    let web = annotated(service("web"), &[("route", "cold-start-only")]);
    let mut world = World::with(web.clone(), limited(settings(&web), 1));
    world.put(serving(pushed("a", "10.0.0.1")));
    world.after(Duration::from_secs(10));
    let through = world.request().expect("free");
    assert_eq!(through.backend.way(), Way::ClusterIp);
    assert!(world.request().is_none());
    world.end(&through);
    assert_eq!(world.told().pop().map(Told::grant).map(|grant| grant.backend.way()), Some(Way::ClusterIp));
}

#[test]
fn requests_of_both_ways_count_among_what_the_pods_may_have_together() {
    let web = annotated(service("web"), &[("route", "cold-start-only")]);
    let mut world = World::with(web.clone(), limited(settings(&web), 2));
    world.put(serving(pushed("a", "10.0.0.1")));
    world.put(serving(pushed("b", "10.0.0.2")));
    let direct: Vec<Grant> = (0..3).map(|_| world.request().expect("free")).collect();
    assert!(direct.iter().all(|grant| grant.backend.way() == Way::Direct));
    world.after(Duration::from_secs(10));
    let through = world.request().expect("the fourth");
    assert_eq!(through.backend.way(), Way::ClusterIp);
    assert!(world.request().is_none());
    world.configure(limited(settings(&service("web")), 2));
    assert!(world.told().is_empty(), "straight to a pod it would be the fifth as well");
    world.end(&through);
    assert_eq!(world.told().pop().map(Told::grant).map(|grant| grant.backend.way()), Some(Way::Direct));
}

#[test]
fn what_a_pod_that_is_gone_had_is_not_counted_against_those_that_are_there() {
    let web = annotated(service("web"), &[("route", "disabled")]);
    let mut world = World::with(web.clone(), limited(settings(&service("web")), 1));
    let old = pushed("old", "10.0.0.1");
    world.put(old.clone());
    let _running = world.request().expect("free");
    world.configure(limited(settings(&web), 1));
    assert!(world.request().is_none());
    world.remove(&old);
    world.put(pushed("new", "10.0.0.2"));
    assert_eq!(world.told().pop().map(Told::grant).map(|grant| grant.backend.way()), Some(Way::ClusterIp));
    assert!(world.request().is_none());
}

#[test]
fn switching_the_mode_is_live() {
    let web = service("web");
    let mut world = World::new(web.clone());
    world.put(pushed("a", "10.0.0.1"));
    assert_eq!(world.request().expect("ready").backend.way(), Way::Direct);
    world.configure(Settings { mode: Mode::Disabled, ..settings(&web) });
    assert_eq!(world.request().expect("ready").backend.way(), Way::ClusterIp);
    world.configure(settings(&web));
    assert_eq!(world.request().expect("ready").backend.way(), Way::Direct);
}

#[test]
fn the_target_is_asked_for_once_while_requests_are_held() {
    let web = headless("web");
    let mut world = World::with(web.clone(), scaled(settings(&web)));
    assert!(world.request().is_none());
    assert!(world.errands().scale);
    assert!(world.request().is_none());
    assert!(!world.errands().scale, "somebody is asking");
    world.state.scaled(Ok(Scaled::Raised), world.now, &mut world.out);
    assert_eq!(world.errands(), Errands { wake_at: Some(world.now + Duration::from_secs(2)), scale: false });
    world.after(Duration::from_secs(2));
    assert!(world.errands().scale, "still nothing: somebody may have scaled it down");
}

#[test]
fn asking_again_takes_longer_each_time() {
    let web = headless("web");
    let mut world = World::with(web.clone(), scaled(settings(&web)));
    assert!(world.request().is_none());
    let mut pauses = Vec::new();
    for _ in 0..10 {
        assert!(world.errands().scale);
        world.state.scaled(Err(ScaleError::Again("busy".into())), world.now, &mut world.out);
        let at = world.errands().wake_at.expect("later");
        pauses.push(at - world.now);
        let span = at - world.now;
        world.after(span);
    }
    for (n, pause) in pauses.iter().enumerate() {
        let most = Duration::from_millis(100 << n).min(Duration::from_secs(10));
        assert!(*pause >= most / 2 && *pause <= most, "{n}: {pause:?}");
    }
    assert!(world.told().is_empty());
}

#[test]
fn a_final_failure_is_told_to_the_held_and_for_some_seconds_to_those_who_come() {
    let web = headless("web");
    let mut world = World::with(web.clone(), scaled(settings(&web)));
    assert!(world.request().is_none() && world.request().is_none());
    assert!(world.errands().scale);
    world.state.scaled(Err(ScaleError::Final("forbidden".into())), world.now, &mut world.out);
    let refusal = Refusal::ScaleFailed("forbidden".into());
    assert!(world.told().into_iter().all(|t| t.outcome.expect_err("refused") == refusal));
    world.after(Duration::from_millis(4999));
    assert_eq!(world.retry(&[]).expect_err("not yet"), refusal);
    world.after(Duration::from_millis(1));
    assert!(world.request().is_none());
    assert!(world.errands().scale);
}

#[test]
fn what_is_up_is_not_asked_for() {
    let web = service("web");
    let mut world = World::with(web.clone(), limited(scaled(settings(&web)), 1));
    world.put(pushed("a", "10.0.0.1"));
    let _running = world.request().expect("free");
    assert!(world.request().is_none());
    assert!(!world.errands().scale);
}

#[test]
fn a_closed_target_refuses_the_held_and_the_new_and_lets_the_running_finish() {
    let web = service("web");
    let mut world = World::with(web.clone(), limited(settings(&web), 1));
    world.put(pushed("a", "10.0.0.1"));
    let running = world.request().expect("free");
    assert!(world.request().is_none());
    world.state.close(Refusal::Gone, &mut world.out);
    assert_eq!(world.told().pop().map(|t| t.outcome.expect_err("gone")), Some(Refusal::Gone));
    assert_eq!(world.retry(&[]).expect_err("gone"), Refusal::Gone);
    assert!(!running.backend.usable());
    world.end(&running);
}

#[test]
fn a_hundred_thousand_endpoints_come_change_and_go() {
    let mut world = World::new(service("web"));
    let endpoint = |n: u32| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
        pushed(&format!("p{n}"), &address)
    };
    let all: Vec<Endpoint> = (0..100_000).map(endpoint).collect();
    all.iter().for_each(|endpoint| world.put(endpoint.clone()));
    let grants: Vec<Grant> = (0..10_000).map(|_| world.request().expect("ready")).collect();
    let distinct: HashSet<BackendId> = grants.iter().map(|grant| *grant.backend.id()).collect();
    assert!(distinct.len() > 9_000, "{}", distinct.len());
    all.iter().for_each(|endpoint| world.remove(endpoint));
    assert!(grants.iter().all(|grant| !grant.backend.usable()));
    grants.iter().for_each(|grant| world.end(grant));
    assert_eq!(world.state.load(world.now, 10).in_flight, 0);
    assert!(world.request().is_none());
}

#[test]
fn a_backend_is_told_apart_from_every_other() {
    let address = ("10.0.0.1:80".parse().expect("an address"), None);
    assert_ne!(Backend::new(address, None, 1).id(), Backend::new(address, None, 1).id());
    assert_eq!(watched("a", "10.0.0.1").verdict.source, Source::Observed);
}

mod oracle;
