//! The API server and the kubelets. Objects have resourceVersions from one counter; each replica follows a log of
//! pods and one of Services, each in order and with its own delay; what a cut watch has missed comes by resuming or,
//! after compaction, by a list. The kubelet probes in whole periods and writes its status when the API lets it.

use std::sync::Arc;

use podlight_activator::table::entry::{Observation, Phase, ReadyCondition};
use podlight_activator::table::group::Service;
use podlight_activator::table::{Change, Update};

use super::pods::{app_label, service};
use super::queue::Happening;
use super::random::Random;
use super::replica::{Got, Message};
use super::scenario::{APPS, REPLICAS};
use super::world::{World, wall_ms};

/// What is watched: an index into logs and streams.
pub(super) const PODS: usize = 0;
pub(super) const SERVICES: usize = 1;

/// The API server.
pub(super) struct Cluster {
    pub(super) objects: Vec<Option<Arc<Observation>>>,
    pub(super) services: Vec<Arc<Service>>,
    version: u64,
    logs: [Vec<Update>; 2],
    streams: Vec<[Stream; 2]>,
    pub(super) down_until: u64,
}

struct Stream {
    random: Random,
    /// Counts openings, so that nothing of a closed one arrives.
    opening: u64,
    open: bool,
    /// Whether a list has come to its end: before that nothing can be resumed.
    listed: bool,
    sent: usize,
    delivered: usize,
    last_at: u64,
}

impl Cluster {
    pub(super) fn new(seed: u64, pods: usize) -> Self {
        let stream = |replica: usize, kind: usize| Stream {
            random: Random::new(seed, 100 + (replica * 2 + kind) as u64),
            opening: 0,
            open: false,
            listed: false,
            sent: 0,
            delivered: 0,
            last_at: 0,
        };
        Self {
            objects: vec![None; pods],
            services: (0..APPS.len()).map(|index| service(index, index)).collect(),
            version: 0,
            logs: [Vec::new(), Vec::new()],
            streams: (0..REPLICAS).map(|replica| [stream(replica, PODS), stream(replica, SERVICES)]).collect(),
            down_until: 0,
        }
    }
}

impl World {
    pub(super) fn create(&mut self, pod: usize) {
        let actor = &mut self.pods[pod];
        let name_is_free =
            self.cluster.objects.iter().flatten().all(|object| object.pod.name() != actor.identity.name());
        if name_is_free && actor.generation == 0 {
            actor.generation = 1;
            let (object, start_in) = (actor.created(), actor.random.between(20, 900));
            self.write(pod, object);
            self.schedule(start_in, Happening::Start { pod });
        }
    }

    /// The kubelet starts the containers.
    pub(super) fn start(&mut self, pod: usize) {
        if self.cluster.objects[pod].as_ref().is_none_or(|object| object.terminating_since_ms.is_some()) {
            return;
        }
        self.pods[pod].running = true;
        if self.pods[pod].spec.sidecar {
            self.start_sidecar(pod);
        }
        self.app_changed(pod);
        self.sync(pod, true);
    }

    /// Both who probe will find out, each in its time.
    pub(super) fn app_changed(&mut self, pod: usize) {
        let now = self.now;
        let actor = &mut self.pods[pod];
        let period = actor.spec.kubelet_period_ms;
        let phase = pod as u64 * 377 % period;
        let (sidecar_in, generation) = (actor.random.between(1, 100), actor.generation);
        self.schedule(period - (now + phase) % period, Happening::KubeletProbe { pod });
        self.schedule(sidecar_in, Happening::SidecarProbe { pod, generation });
    }

    pub(super) fn kubelet_probe(&mut self, pod: usize) {
        self.pods[pod].probed = self.pods[pod].outside;
        self.sync(pod, false);
    }

    /// The kubelet makes the Ready condition anew and writes it when it differs.
    pub(super) fn sync(&mut self, pod: usize, first: bool) {
        let since_seconds = self.node_ms(self.pods[pod].spec.node) / 1_000;
        let Some(object) = &self.cluster.objects[pod] else { return };
        let actor = &mut self.pods[pod];
        if !actor.running || object.phase == Phase::Ended {
            return;
        }
        let ready = (actor.probed || !actor.spec.readiness_probe) && object.gates_open;
        if first || actor.condition.is_some_and(|condition| condition.ready != ready) {
            actor.condition = Some(ReadyCondition { ready, since_seconds });
            let write_in = actor.random.between(5, 400);
            self.schedule(write_in, Happening::WriteStatus { pod });
        }
    }

    pub(super) fn write_status(&mut self, pod: usize) {
        let Some(object) = &self.cluster.objects[pod] else { return };
        let actor = &mut self.pods[pod];
        if self.silent[actor.spec.node] {
            return;
        }
        if self.cluster.down_until > self.now {
            let again_in = self.cluster.down_until - self.now + actor.random.between(1, 200);
            self.schedule(again_in, Happening::WriteStatus { pod });
            return;
        }
        let mut object = Observation::clone(object);
        object.addresses = vec![actor.address];
        object.ready = actor.condition;
        self.write(pod, object);
    }

    pub(super) fn set_gate(&mut self, pod: usize, open: bool) {
        if self.pods[pod].spec.gate {
            self.change(pod, |object| object.gates_open = open);
            self.sync(pod, false);
        }
    }

    pub(super) fn relabel(&mut self, pod: usize, app: usize) {
        self.change(pod, |object| object.labels = app_label(app));
    }

    pub(super) fn complete(&mut self, pod: usize) {
        let actor = &self.pods[pod];
        if !actor.running || self.silent[actor.spec.node] {
            return;
        }
        let addresses = vec![actor.address];
        self.change(pod, |object| (object.phase, object.addresses) = (Phase::Ended, addresses));
        let stop_in = self.pods[pod].random.between(10, 20_000);
        self.schedule(stop_in, Happening::Stop { pod });
    }

    pub(super) fn delete(&mut self, pod: usize, grace_ms: u64) {
        let now = self.now;
        let random = &mut self.pods[pod].random;
        let (notice_in, late) = (random.between(10, 200), random.between(100, 6_000));
        if grace_ms == 0 {
            self.schedule(late, Happening::Stop { pod });
            return self.remove(pod);
        }
        self.change(pod, |object| object.terminating_since_ms = Some(wall_ms(now)));
        self.schedule(notice_in, Happening::NoticeDeletion { pod });
        self.schedule(grace_ms + notice_in, Happening::Stop { pod });
        self.schedule(grace_ms + notice_in * 2, Happening::Remove { pod });
    }

    pub(super) fn remove(&mut self, pod: usize) {
        if let Some(object) = self.cluster.objects[pod].take() {
            self.cluster.version += 1;
            self.log(PODS, Update::Pod(Change::Gone(*object.pod.uid())));
        }
    }

    pub(super) fn stop(&mut self, pod: usize) {
        self.pods[pod].running = false;
        self.pods[pod].sidecar = None;
    }

    pub(super) fn reselect(&mut self, index: usize, app: usize) {
        self.cluster.services[index] = service(index, app);
        self.log(SERVICES, Update::Service(Change::Present(Arc::clone(&self.cluster.services[index]))));
    }

    fn change(&mut self, pod: usize, change: impl FnOnce(&mut Observation)) {
        if let Some(object) = &self.cluster.objects[pod] {
            let mut object = Observation::clone(object);
            change(&mut object);
            self.write(pod, object);
        }
    }

    fn write(&mut self, pod: usize, mut object: Observation) {
        self.cluster.version += 1;
        object.resource_version = self.cluster.version;
        let object = Arc::new(object);
        self.cluster.objects[pod] = Some(Arc::clone(&object));
        self.log(PODS, Update::Pod(Change::Present(object)));
    }

    fn log(&mut self, kind: usize, update: Update) {
        self.cluster.logs[kind].push(update);
        (0..REPLICAS).for_each(|replica| self.pump(replica, kind));
    }

    /// Sends what a replica's open stream has not carried yet.
    fn pump(&mut self, replica: usize, kind: usize) {
        let slow = self.slow_watch[replica];
        while self.cluster.streams[replica][kind].open {
            let stream = &mut self.cluster.streams[replica][kind];
            let Some(update) = self.cluster.logs[kind].get(stream.sent).cloned() else { return };
            stream.sent += 1;
            let entry = Some(stream.sent);
            let delay = if slow.0 > self.now { stream.random.between(1, slow.1) } else { stream.random.between(2, 30) };
            self.deliver(replica, kind, update, delay, entry);
        }
    }

    fn deliver(&mut self, replica: usize, kind: usize, update: Update, delay: u64, entry: Option<usize>) {
        let stream = &mut self.cluster.streams[replica][kind];
        stream.last_at = stream.last_at.max(self.now + delay);
        let (opening, wait) = (stream.opening, stream.last_at - self.now);
        self.schedule(wait, Happening::Watched { replica, kind, opening, entry, update });
    }

    /// An update arrives; none when its stream has been cut.
    pub(super) fn watched(&mut self, replica: usize, kind: usize, opening: u64, entry: Option<usize>) -> bool {
        let stream = &mut self.cluster.streams[replica][kind];
        if stream.opening != opening {
            return false;
        }
        if let Some(entry) = entry {
            stream.delivered = entry;
            stream.listed = true;
        }
        true
    }

    /// Cuts a replica's streams for a while.
    pub(super) fn cut(&mut self, replica: usize, for_ms: u64, compacted: bool) {
        for kind in [PODS, SERVICES] {
            let stream = &mut self.cluster.streams[replica][kind];
            stream.opening += 1;
            stream.open = false;
            stream.listed &= !compacted;
            let (opening, reopen_in) = (stream.opening, for_ms + stream.random.between(1, 300));
            self.schedule(reopen_in, Happening::Reopen { replica, kind, opening });
        }
    }

    pub(super) fn reopen(&mut self, replica: usize, kind: usize) {
        if self.cluster.down_until > self.now {
            let opening = self.cluster.streams[replica][kind].opening;
            let wait = self.cluster.down_until - self.now;
            return self.schedule(wait, Happening::Reopen { replica, kind, opening });
        }
        if !self.cluster.streams[replica][kind].listed {
            let began = if kind == PODS { Update::Pod(Change::ListBegan) } else { Update::Service(Change::ListBegan) };
            let stream = &mut self.cluster.streams[replica][kind];
            let (delay, opening) = (stream.random.between(1, 400), stream.opening);
            self.deliver(replica, kind, began, 0, None);
            self.schedule(delay, Happening::ReadList { replica, kind, opening });
        } else {
            let stream = &mut self.cluster.streams[replica][kind];
            stream.sent = stream.delivered;
            stream.open = true;
            self.pump(replica, kind);
        }
    }

    /// The API server answers a list; what changes from now on follows it.
    pub(super) fn read_list(&mut self, replica: usize, kind: usize) {
        let (listed, done): (Vec<Update>, Update) = if kind == PODS {
            let pods = self.cluster.objects.iter().flatten().cloned();
            (pods.map(|pod| Update::Pod(Change::Present(pod))).collect(), Update::Pod(Change::ListDone))
        } else {
            let services = self.cluster.services.iter().cloned();
            (services.map(|s| Update::Service(Change::Present(s))).collect(), Update::Service(Change::ListDone))
        };
        let newest = self.cluster.logs[kind].len();
        for update in listed {
            let delay = self.cluster.streams[replica][kind].random.between(1, 300);
            self.deliver(replica, kind, update, delay, None);
        }
        self.deliver(replica, kind, done, 0, Some(newest));
        let stream = &mut self.cluster.streams[replica][kind];
        stream.sent = newest;
        stream.open = true;
        self.pump(replica, kind);
    }

    /// Whether the stream has not been cut since.
    pub(super) fn is_open(&self, replica: usize, kind: usize, opening: u64) -> bool {
        self.cluster.streams[replica][kind].opening == opening
    }

    /// The answer to a replica that asked for the pod of a message.
    pub(super) fn ask_for_pod(&mut self, replica: usize, message: Box<Message>, got: Got) {
        let (there, back) = (self.pods[message.from].random.between(1, 40), 1);
        let slow = self.slow_watch[replica].0 > self.now;
        let wait = if slow { there * 20 } else { there + back };
        let generation = self.replicas[replica].generation;
        self.schedule(wait, Happening::GotPod { replica, generation, message, got });
    }
}
