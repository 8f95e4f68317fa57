//! All actors and simulated time: takes what is next from the queue and lets it happen.

use podlight_activator::table::ListEpoch;
use podlight_sidecar::publisher::Reply;

use super::cluster::Cluster;
use super::history::{heard, told};
use super::mutant::Mutant;
use super::pods::Pod;
use super::queue::{Happening, Queue};
use super::replica::{Answer, Got, Message, Replica};
use super::scenario::{Command, NODES, REPLICAS, Scenario};
use super::{Activity, Violation};

/// From the last fault to the end: a refused sidecar speaks again after 300 s, a lease ends after 360 s.
const QUIET_MS: u64 = 800_000;
/// From the last fault until no attempt of before is under way.
const SETTLED_AFTER_MS: u64 = 30_000;
/// The furthest that a node's clock is off when all is well: within the 30 s of an event's freshness.
const TOLERABLE_MS: i64 = 25_000;
/// Time zero, since the epoch.
pub(super) const EPOCH_MS: u64 = 1_700_000_000_000;
/// More steps than any history needs; beyond, something talks in circles.
const STEPS_MAX: u64 = 200_000;

/// The true time.
pub(super) fn wall_ms(now: u64) -> u64 {
    EPOCH_MS + now
}

#[derive(Clone, Copy, Default)]
pub(super) struct Noise {
    pub(super) until: u64,
    pub(super) lost_percent: u64,
    pub(super) repeated_percent: u64,
    pub(super) delay_ms: u64,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) now: u64,
    pub(super) pods: Vec<Pod>,
    pub(super) cluster: Cluster,
    pub(super) replicas: Vec<Replica>,
    pub(super) partitioned_until: [u64; REPLICAS],
    /// Until when, and how slow.
    pub(super) slow_watch: [(u64, u64); REPLICAS],
    pub(super) noise: Noise,
    pub(super) silent: [bool; NODES],
    clocks: [i64; NODES],
    /// When a replica will be told that time has passed.
    pub(super) expiries: [Option<u64>; REPLICAS],
    mutant: Mutant,
    quiet_at: u64,
    queue: Queue,
    steps: u64,
    trace: Option<Vec<String>>,
}

/// Runs a scenario to its end. The trace is what replicas were told, when it is asked for.
pub(super) fn run(scenario: &Scenario, mutant: Mutant, traced: bool) -> (Result<Activity, Violation>, Vec<String>) {
    let mut world = World::new(scenario, mutant, traced);
    let result = world.run_to_end();
    (result, world.trace.unwrap_or_default())
}

impl World {
    fn new(scenario: &Scenario, mutant: Mutant, traced: bool) -> Self {
        let Scenario { seed, pods, commands, quiet_at } = scenario.clone();
        let mut world = Self {
            seed,
            now: 0,
            cluster: Cluster::new(seed, pods.len()),
            pods: pods.into_iter().enumerate().map(|(index, spec)| Pod::new(index, spec, seed)).collect(),
            replicas: (0..REPLICAS).map(|_| Replica::new(mutant, 0)).collect(),
            partitioned_until: [0; REPLICAS],
            slow_watch: [(0, 0); REPLICAS],
            noise: Noise::default(),
            silent: [false; NODES],
            clocks: [0; NODES],
            expiries: [None; REPLICAS],
            mutant,
            quiet_at,
            queue: Queue::default(),
            steps: 0,
            trace: traced.then(Vec::new),
        };
        (0..REPLICAS).for_each(|replica| world.cut(replica, 0, true));
        commands.into_iter().for_each(|(at, command)| world.schedule(at, Happening::Command(command)));
        world.schedule(quiet_at, Happening::Quiet);
        world
    }

    fn run_to_end(&mut self) -> Result<Activity, Violation> {
        let end = self.quiet_at + QUIET_MS;
        while let Some((at, what)) = self.queue.pop() {
            if at > end {
                break;
            }
            self.now = at;
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(self.violation("endless", "the actors do not come to rest".into()));
            }
            if let Some(replica) = self.happens(what) {
                self.check_replica(replica)?;
            }
        }
        self.now = end;
        self.check_agreement()?;
        let mut activity = Activity { steps: self.steps, ..Activity::default() };
        for replica in &self.replicas {
            activity.pushes += replica.pushes;
            activity.updates += replica.updates;
        }
        Ok(activity)
    }

    pub(super) fn schedule(&mut self, delay: u64, what: Happening) {
        self.queue.push(self.now + delay, what);
    }

    /// A node's clock, in milliseconds since the epoch.
    pub(super) fn node_ms(&self, node: usize) -> u64 {
        wall_ms(self.now).saturating_add_signed(self.clocks[node])
    }

    /// Does one thing. Returns the replica whose table it reached.
    fn happens(&mut self, what: Happening) -> Option<usize> {
        let current = |pod: usize, generation: u64| self.pods[pod].generation == generation;
        match what {
            Happening::Command(command) => self.command(command),
            Happening::Quiet => self.quieten(),
            Happening::Settle => self.settle(),
            Happening::Start { pod } => self.start(pod),
            Happening::Stop { pod } => self.stop(pod),
            Happening::Remove { pod } => self.remove(pod),
            Happening::NoticeDeletion { pod } => self.drain(pod),
            Happening::KubeletProbe { pod } => self.kubelet_probe(pod),
            Happening::WriteStatus { pod } => self.write_status(pod),
            Happening::SidecarProbe { pod, generation } if current(pod, generation) => self.sidecar_probe(pod),
            Happening::RotateToken { pod, generation } if current(pod, generation) => self.rotate_token(pod),
            Happening::Wake { pod, generation, replica } if current(pod, generation) => self.drive(pod, replica),
            Happening::Supersede { pod, generation, replica, attempt } if current(pod, generation) => {
                self.supersede(pod, replica, attempt);
            }
            Happening::Timeout { pod, generation, replica, attempt } if current(pod, generation) => {
                self.replied(pod, replica, attempt, &Reply::TryAgain { retry_after: None });
            }
            Happening::Replied { pod, generation, replica, attempt, reply } if current(pod, generation) => {
                self.replied(pod, replica, attempt, &reply);
            }
            Happening::SidecarProbe { .. }
            | Happening::RotateToken { .. }
            | Happening::Wake { .. }
            | Happening::Supersede { .. }
            | Happening::Timeout { .. }
            | Happening::Replied { .. } => {}
            Happening::Arrive { replica, message } => return self.arrive(replica, message, None),
            Happening::AskPod { replica, generation, message, asked_in } => {
                if self.replicas[replica].generation == generation {
                    self.answer_get(replica, message, asked_in);
                }
            }
            Happening::GotPod { replica, generation, message, got } => {
                if self.replicas[replica].generation == generation {
                    return self.arrive(replica, message, Some(got));
                }
            }
            Happening::Watched { replica, kind, opening, entry, update } => {
                if self.watched(replica, kind, opening, entry) {
                    self.note(|| format!("replica {replica}: {}", told(&update)));
                    self.replicas[replica].apply(update, self.now);
                    return Some(replica);
                }
            }
            Happening::Reopen { replica, kind, opening } => {
                if self.is_open(replica, kind, opening) {
                    self.reopen(replica, kind);
                }
            }
            Happening::ReadList { replica, kind, opening } => {
                if self.is_open(replica, kind, opening) {
                    self.read_list(replica, kind);
                }
            }
            Happening::Expire { replica } => {
                self.replicas[replica].expire(self.now);
                return Some(replica);
            }
        }
        None
    }

    fn arrive(&mut self, replica: usize, message: Box<Message>, got: Option<Got>) -> Option<usize> {
        match self.replicas[replica].judge(&message, got, self.now) {
            Answer::Reply(reply) => {
                self.note(|| heard(replica, &message, &reply));
                self.send_reply(replica, &message, reply);
                Some(replica)
            }
            Answer::AskForPod(asked_in) => {
                let generation = self.replicas[replica].generation;
                let there = self.pods[message.from].random.between(1, 20);
                self.schedule(there, Happening::AskPod { replica, generation, message, asked_in });
                None
            }
        }
    }

    fn answer_get(&mut self, replica: usize, message: Box<Message>, asked_in: ListEpoch) {
        let object = self.cluster.objects.iter().flatten().find(|object| object.pod == message.event.pod);
        let got = match object {
            _ if self.cluster.down_until > self.now => Got::Unavailable,
            Some(object) => Got::Pod(object.clone(), asked_in),
            None => Got::Missing,
        };
        self.ask_for_pod(replica, message, got);
    }

    fn command(&mut self, command: Command) {
        if self.cluster.down_until > self.now && needs_api(command) {
            return self.schedule(self.cluster.down_until - self.now, Happening::Command(command));
        }
        // A fault ends with the faults, whatever length was drawn for it.
        let within = |for_ms: u64| for_ms.min(self.quiet_at.saturating_sub(self.now));
        match command {
            Command::Create { pod } => self.create(pod),
            Command::Flap { pod, inside, outside } => {
                let actor = &mut self.pods[pod];
                actor.inside = inside.unwrap_or(actor.inside);
                actor.outside = outside.unwrap_or(actor.outside);
                self.app_changed(pod);
            }
            Command::Gate { pod, open } => self.set_gate(pod, open),
            Command::Relabel { pod, app } => self.relabel(pod, app),
            Command::Reselect { service, app } => self.reselect(service, app),
            Command::Delete { pod, grace_ms } => self.delete(pod, grace_ms),
            Command::Complete { pod } => self.complete(pod),
            Command::Drain { pod } => self.drain(pod),
            Command::LateReady { pod, replica } => self.late_ready(pod, replica),
            Command::RestartSidecar { pod } => self.restart_sidecar(pod),
            Command::KillSidecar { pod } => self.pods[pod].sidecar = None,
            Command::Forge { by, victim, token } => self.forge(by, victim, token),
            Command::StepClock { node, by_ms } => {
                self.clocks[node] = (self.clocks[node] + by_ms).clamp(-45_000, 45_000);
            }
            Command::SilenceKubelet { node } => self.silent[node] = true,
            Command::Partition { replica, for_ms } => self.partitioned_until[replica] = self.now + within(for_ms),
            Command::Noise { for_ms, lost_percent, repeated_percent, delay_ms } => {
                self.noise = Noise { until: self.now + within(for_ms), lost_percent, repeated_percent, delay_ms };
            }
            Command::SlowWatch { replica, for_ms, delay_ms } => {
                self.slow_watch[replica] = (self.now + within(for_ms), delay_ms);
            }
            Command::CutWatch { replica, for_ms, compacted } => self.cut(replica, within(for_ms), compacted),
            Command::ApiOutage { for_ms, compacted } => {
                let for_ms = within(for_ms);
                self.cluster.down_until = self.now + for_ms;
                (0..REPLICAS).for_each(|replica| self.cut(replica, for_ms, compacted));
            }
            Command::RestartReplica { replica } => {
                let generation = self.replicas[replica].generation + 1;
                self.replicas[replica] = Replica::new(self.mutant, generation);
                self.expiries[replica] = None;
                self.cut(replica, 0, true);
            }
        }
    }

    fn restart_sidecar(&mut self, pod: usize) {
        if self.pods[pod].running && self.pods[pod].spec.sidecar {
            self.start_sidecar(pod);
        }
    }

    /// The faults are over.
    fn quieten(&mut self) {
        for clock in &mut self.clocks {
            *clock = (*clock).clamp(-TOLERABLE_MS, TOLERABLE_MS);
        }
        self.schedule(SETTLED_AFTER_MS, Happening::Settle);
    }

    /// Where a sidecar has died, some replicas may have heard of its drain and others not, and only a newer boot says
    /// more: the kubelet starts the container again, as it does.
    fn settle(&mut self) {
        for pod in 0..self.pods.len() {
            if self.pods[pod].has_drained && self.pods[pod].sidecar.is_none() {
                self.restart_sidecar(pod);
            }
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>7} ms  {}", self.now, line()));
        }
    }

    pub(super) fn violation(&self, rule: &'static str, detail: String) -> Violation {
        Violation { at_ms: self.now, rule, detail }
    }
}

fn needs_api(command: Command) -> bool {
    matches!(
        command,
        Command::Create { .. }
            | Command::Gate { .. }
            | Command::Relabel { .. }
            | Command::Reselect { .. }
            | Command::Delete { .. }
            | Command::Complete { .. }
    )
}
