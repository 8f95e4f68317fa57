//! Random histories against what must always hold, and against a naive count of the same history.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Come,
    Retry,
    Leave(usize),
    End(usize),
    Answer(usize),
    Refuse(usize),
    TimeOut(usize),
    Put(u8, u8, u64),
    Remove(u8),
    Limit(Option<u32>),
    Mode(Mode),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let modes = prop_oneof![Just(Mode::Always), Just(Mode::ColdStartOnly), Just(Mode::Disabled)];
    prop_oneof![
        8 => Just(Step::Come),
        2 => Just(Step::Retry),
        2 => any::<usize>().prop_map(Step::Leave),
        6 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::Answer),
        2 => any::<usize>().prop_map(Step::Refuse),
        1 => any::<usize>().prop_map(Step::TimeOut),
        5 => (0..5_u8, 0..5_u8, 1..4_u64).prop_map(|(pod, state, since)| Step::Put(pod, state, since)),
        1 => (0..5_u8).prop_map(Step::Remove),
        1 => prop::option::of(1..4_u32).prop_map(Step::Limit),
        1 => modes.prop_map(Step::Mode),
        3 => (0..3000_u64).prop_map(Step::Pass),
    ]
}

/// What a naive reader of the same history knows.
#[derive(Default)]
struct Naive {
    waiting: VecDeque<(u32, Ticket)>,
    running: Vec<Grant>,
    states: HashMap<u8, State>,
    limit: Option<u32>,
    /// Requests under way when the limit was last changed may be more than it allows.
    excused: HashMap<String, usize>,
}

impl Naive {
    fn on(&self, address: &str) -> usize {
        self.running.iter().filter(|grant| super::address(grant) == address).count()
    }

    /// The pods that may have what went through a ClusterIP.
    fn usable(&self) -> Vec<u8> {
        self.states.iter().filter(|(_, state)| **state != State::NotReady).map(|(pod, _)| *pod).collect()
    }

    /// Once the ClusterIP has requests or gets one, only the sum over all pods can be bounded: it counts both ways.
    fn check_sum(&self, grant: &Grant) {
        let is_through = |grant: &&Grant| grant.backend.way() == Way::ClusterIp;
        let through = self.running.iter().filter(is_through).count();
        let Some(limit) = self.limit.filter(|_| through > 0 || is_through(&grant)) else { return };
        let usable = self.usable();
        let direct = self.running.iter().filter(|grant| !is_through(grant) && usable.contains(&pod_of(grant))).count();
        let most = limit as usize * usable.len().max(1);
        assert!(direct + through < most, "{direct} directly and {through} by the ClusterIP, of {most}");
    }

    fn granted(&mut self, grant: Grant, mode: Mode) {
        self.check_sum(&grant);
        if grant.backend.way() == Way::Direct {
            let pod = pod_of(&grant);
            let state = self.states.get(&pod).copied().expect("only endpoints that are there");
            assert_ne!(state, State::NotReady, "nothing is sent to a pod that is not ready");
            let any_ready = self.states.values().any(|state| *state == State::Ready);
            if state != State::Ready && !any_ready {
                assert!(matches!(state, State::Draining | State::Terminating));
            }
            if mode == Mode::Disabled {
                panic!("disabled never goes straight to a pod");
            }
            let address = super::address(&grant);
            if let Some(limit) = self.limit {
                let allowed = (limit as usize).max(self.excused.get(&address).copied().unwrap_or(0));
                assert!(self.on(&address) < allowed, "more than {limit} on {address}");
            }
        }
        self.running.push(grant);
    }
}

fn pod_of(grant: &Grant) -> u8 {
    let std::net::IpAddr::V4(ip) = grant.backend.address().ip() else { panic!("IPv4") };
    ip.octets()[3]
}

fn endpoint_of(pod: u8, state: u8, since_ms: u64) -> Endpoint {
    let ready = pushed(&format!("p{pod}"), &format!("10.0.0.{pod}"));
    let endpoint = match state {
        0 => in_state(&ready, State::NotReady),
        1 => serving(in_state(&ready, State::Terminating)),
        2 => serving(in_state(&ready, State::Draining)),
        3 => serving(ready),
        _ => ready,
    };
    since(&endpoint, since_ms)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn limits_order_and_places_hold_in_every_history(steps in prop::collection::vec(step(), 1..200)) {
        let web = service("web");
        let mut mode = Mode::Always;
        let mut world = World::new(web.clone());
        let mut naive = Naive::default();
        for step in steps {
            match step {
                Step::Come | Step::Retry => {
                    world.comes += 1;
                    let tries = if matches!(step, Step::Retry) { 2 } else { 0 };
                    let tried = naive.running.iter().rev().take(tries).map(|grant| *grant.backend.id());
                    let tried: Vec<BackendId> = tried.collect();
                    let avoid = Avoid::new(&tried);
                    match world.state.admit(&avoid, world.now).expect("neither full nor closed") {
                        Admission::Granted(grant) => {
                            prop_assert!(naive.waiting.is_empty(), "somebody overtook the queue");
                            naive.granted(grant, mode);
                        }
                        Admission::Wait => {
                            let ticket = world.state.hold(world.comes, avoid, world.now);
                            naive.waiting.push_back((world.comes, ticket));
                        }
                    }
                }
                Step::Leave(which) if !naive.waiting.is_empty() => {
                    let which = which % naive.waiting.len();
                    let (who, ticket) = naive.waiting.remove(which).expect("there");
                    let held = world.state.cancel(ticket, world.now, &mut world.out).expect("held");
                    prop_assert_eq!(held.waiter, who);
                }
                Step::End(which) if !naive.running.is_empty() => {
                    let grant = naive.running.swap_remove(which % naive.running.len());
                    world.end(&grant);
                }
                Step::Answer(which) if !naive.running.is_empty() => {
                    let grant = &naive.running[which % naive.running.len()];
                    world.state.answered(grant.place, grant.epoch, world.now, &mut world.out);
                }
                Step::Refuse(which) if !naive.running.is_empty() => {
                    let grant = naive.running.swap_remove(which % naive.running.len());
                    world.refused(&grant);
                }
                Step::TimeOut(which) if !naive.running.is_empty() => {
                    let grant = naive.running.swap_remove(which % naive.running.len());
                    world.state.failed(grant.place, grant.epoch, Reason::TimedOut, world.now);
                    world.end(&grant);
                }
                Step::Put(pod, state, since) => {
                    let endpoint = endpoint_of(pod, state, since);
                    naive.states.insert(pod, endpoint.verdict.state);
                    world.put(endpoint);
                }
                Step::Remove(pod) => {
                    naive.states.remove(&pod);
                    world.remove(&endpoint_of(pod, 3, 1));
                }
                Step::Limit(limit) => {
                    naive.limit = limit;
                    naive.excused =
                        (0..5).map(|pod| format!("10.0.0.{pod}:8080")).map(|a| (a.clone(), naive.on(&a))).collect();
                    world.configure(Settings { mode, concurrency: limit.and_then(std::num::NonZeroU32::new), ..settings(&web) });
                }
                Step::Mode(other) => {
                    mode = other;
                    world.configure(Settings { mode, concurrency: naive.limit.and_then(std::num::NonZeroU32::new), ..settings(&web) });
                }
                Step::Pass(ms) => world.after(Duration::from_millis(ms)),
                Step::Leave(_) | Step::End(_) | Step::Answer(_) | Step::Refuse(_) | Step::TimeOut(_) => {}
            }
            for told in world.told() {
                let (who, _) = naive.waiting.pop_front().expect("somebody waits");
                prop_assert_eq!(told.who, who, "first come, first served");
                naive.granted(told.grant(), mode);
            }
            prop_assert_eq!(world.state.held(), naive.waiting.len());
            prop_assert_eq!(world.state.load(world.now, 0).in_flight, naive.running.len() as u64);
            if !naive.waiting.is_empty() {
                // Whoever waits waits for something: a change, or a time that somebody has been told of.
                world.state.errands(world.now);
                let stuck = naive.states.values().any(|state| *state == State::Ready)
                    && naive.running.is_empty()
                    && world.state.armed.is_none();
                prop_assert!(!stuck, "requests wait although nothing is under way and no time was set");
            }
        }
        // Everything ends: no place is left behind.
        while let Some(grant) = naive.running.pop() {
            world.end(&grant);
            for told in world.told() {
                prop_assert_eq!(naive.waiting.pop_front().map(|(who, _)| who), Some(told.who));
                naive.running.push(told.grant());
            }
        }
        prop_assert_eq!(world.state.load(world.now, 0).in_flight, 0);
        // A newly ready pod lets all go that still wait.
        world.configure(settings(&web));
        world.put(since(&pushed("fresh", "10.0.0.200"), 9));
        let left = naive.waiting.len() - world.told().len();
        prop_assert_eq!(left, 0);
    }
}
