//! What is done to the actors: a list of commands drawn from a seed. A command that makes no sense when its time
//! comes (a pod that does not exist yet) does nothing, so that any sublist of a scenario is a scenario.

use super::random::Random;

/// Replicas of the activator.
pub(super) const REPLICAS: usize = 3;
/// Nodes, each with a clock of its own.
pub(super) const NODES: usize = 2;
/// Services and the values of the label that they choose by.
pub(super) const APPS: [&str; 2] = ["blue", "green"];

/// How a pod is made.
#[derive(Debug, Clone)]
pub(super) struct PodSpec {
    /// Pods of one slot have one name and one address, one after the other.
    pub(super) slot: usize,
    pub(super) node: usize,
    pub(super) app: usize,
    pub(super) readiness_probe: bool,
    pub(super) exec_probe: bool,
    pub(super) gate: bool,
    pub(super) sidecar: bool,
    pub(super) kubelet_period_ms: u64,
    pub(super) failure_threshold: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Command {
    Create {
        pod: usize,
    },
    /// What the app answers to the sidecar, and what it answers to the kubelet.
    Flap {
        pod: usize,
        inside: Option<bool>,
        outside: Option<bool>,
    },
    Gate {
        pod: usize,
        open: bool,
    },
    Relabel {
        pod: usize,
        app: usize,
    },
    Reselect {
        service: usize,
        app: usize,
    },
    Delete {
        pod: usize,
        grace_ms: u64,
    },
    /// The pod's containers end by themselves.
    Complete {
        pod: usize,
    },
    /// preStop runs for the sidecar's container alone.
    Drain {
        pod: usize,
    },
    /// A confused sidecar says `ready` in a boot that has drained.
    LateReady {
        pod: usize,
        replica: usize,
    },
    RestartSidecar {
        pod: usize,
    },
    KillSidecar {
        pod: usize,
    },
    /// A pod speaks in another pod's name, with its own token or none.
    Forge {
        by: usize,
        victim: usize,
        token: bool,
    },
    StepClock {
        node: usize,
        by_ms: i64,
    },
    /// The kubelet writes no status from now on.
    SilenceKubelet {
        node: usize,
    },
    Partition {
        replica: usize,
        for_ms: u64,
    },
    Noise {
        for_ms: u64,
        lost_percent: u64,
        repeated_percent: u64,
        delay_ms: u64,
    },
    SlowWatch {
        replica: usize,
        for_ms: u64,
        delay_ms: u64,
    },
    CutWatch {
        replica: usize,
        for_ms: u64,
        compacted: bool,
    },
    ApiOutage {
        for_ms: u64,
        compacted: bool,
    },
    RestartReplica {
        replica: usize,
    },
}

/// One history before it happens.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub(super) seed: u64,
    pub(super) pods: Vec<PodSpec>,
    /// By time in milliseconds.
    pub(super) commands: Vec<(u64, Command)>,
    /// When the faults end.
    pub(super) quiet_at: u64,
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut draw = Draw { random: Random::new(seed, 1), pods: Vec::new(), commands: Vec::new(), end: 0 };
        draw.end = draw.random.between(8_000, 60_000);
        for slot in 0..draw.random.index(3) + 1 {
            draw.slot(slot);
        }
        for _ in 0..draw.random.between(0, 10) {
            draw.fault();
        }
        let mut commands = draw.commands;
        commands.sort_by_key(|(at, _)| *at);
        Self { seed, pods: draw.pods, commands, quiet_at: draw.end + 1_000 }
    }
}

struct Draw {
    random: Random,
    pods: Vec<PodSpec>,
    commands: Vec<(u64, Command)>,
    end: u64,
}

impl Draw {
    fn slot(&mut self, slot: usize) {
        let mut from = self.random.between(0, 3_000);
        for _ in 0..=u64::from(self.random.chance(40)) {
            let pod = self.pods.len();
            let r = &mut self.random;
            let readiness_probe = r.chance(80);
            let spec = PodSpec {
                slot,
                node: r.index(NODES),
                app: r.index(APPS.len()),
                readiness_probe,
                exec_probe: readiness_probe && r.chance(15),
                gate: r.chance(25),
                sidecar: r.chance(90),
                kubelet_period_ms: r.between(1, 10) * 1_000,
                failure_threshold: if r.chance(80) { 1 } else { 2 },
            };
            self.pods.push(spec);
            self.commands.push((from, Command::Create { pod }));
            from = self.life(pod, from) + self.random.between(100, 3_000);
        }
    }

    /// One pod from its creation on; returns when it is deleted, or the end.
    fn life(&mut self, pod: usize, from: u64) -> u64 {
        let until = self.random.between(from, self.end.max(from));
        let mut at = from + self.random.between(200, 2_000);
        for _ in 0..self.random.between(2, 9) {
            let command = self.happening(pod);
            self.commands.push((at, command));
            if matches!(command, Command::Drain { .. }) && self.random.chance(50) {
                let late = Command::LateReady { pod, replica: self.random.index(REPLICAS) };
                self.commands.push((at + self.random.between(0, 6), late));
            }
            // Bursts: whole seconds matter, so many things happen within one.
            at += if self.random.chance(60) { self.random.between(10, 900) } else { self.random.between(900, 12_000) };
            at = at.min(self.end);
        }
        match self.random.between(0, 9) {
            0..=3 => {
                let grace_ms = if self.random.chance(30) { 0 } else { self.random.between(500, 10_000) };
                self.commands.push((until, Command::Delete { pod, grace_ms }));
                until + grace_ms
            }
            4 => {
                self.commands.push((until, Command::Complete { pod }));
                self.end
            }
            _ => self.end,
        }
    }

    fn happening(&mut self, pod: usize) -> Command {
        let r = &mut self.random;
        match r.between(0, 99) {
            0..=29 => {
                let ready = r.chance(70);
                Command::Flap { pod, inside: Some(ready), outside: Some(ready) }
            }
            30..=44 => Command::Flap { pod, inside: Some(r.chance(50)), outside: None },
            45..=59 => Command::Flap { pod, inside: None, outside: Some(r.chance(50)) },
            60..=67 => Command::Gate { pod, open: r.chance(70) },
            68..=71 => Command::Relabel { pod, app: r.index(APPS.len()) },
            72..=77 => Command::Drain { pod },
            78..=83 => Command::LateReady { pod, replica: r.index(REPLICAS) },
            84..=91 => Command::RestartSidecar { pod },
            92..=95 => Command::KillSidecar { pod },
            _ => Command::Forge { by: pod, victim: r.index(pod + 1), token: r.chance(50) },
        }
    }

    fn fault(&mut self) {
        let at = self.random.between(0, self.end);
        let r = &mut self.random;
        let (replica, for_ms) = (r.index(REPLICAS), r.between(100, 15_000));
        let command = match r.between(0, 99) {
            0..=14 => Command::Partition { replica, for_ms },
            15..=34 => Command::Noise {
                for_ms,
                lost_percent: r.between(0, 40),
                repeated_percent: r.between(0, 50),
                delay_ms: r.between(50, 5_000),
            },
            35..=49 => Command::SlowWatch { replica, for_ms, delay_ms: r.between(200, 5_000) },
            50..=64 => Command::CutWatch { replica, for_ms, compacted: r.chance(60) },
            65..=69 => Command::ApiOutage { for_ms, compacted: r.chance(50) },
            70..=76 => Command::RestartReplica { replica },
            77..=90 => {
                let by = i64::try_from(r.between(0, 40_000)).expect("small") - 25_000;
                Command::StepClock { node: r.index(NODES), by_ms: by }
            }
            91..=95 => Command::SilenceKubelet { node: r.index(NODES) },
            _ => Command::Reselect { service: r.index(APPS.len()), app: r.index(APPS.len()) },
        };
        self.commands.push((at, command));
    }
}
