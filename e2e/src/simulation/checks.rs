//! When the promises are looked at: the ones about each replica after each of its steps, the ones about all of them
//! together after the quiet.

use podlight_activator::table::entry::State;
use podlight_activator::table::group::EndpointId;
use podlight_proto::Boot;
use podlight_sidecar::readiness::State as Said;

use super::Violation;
use super::oracle::{Word, effective};
use super::pods::service_key;
use super::queue::Happening;
use super::scenario::APPS;
use super::world::World;

impl World {
    /// After a step: what readers see of a replica.
    pub(super) fn check_replica(&mut self, index: usize) -> Result<(), Violation> {
        let replica = &self.replicas[index];
        if let Err((rule, detail)) = replica.knowledge.check(&replica.published, self.now) {
            return Err(self.violation(rule, format!("replica {index}: {detail}")));
        }
        if replica.deceived {
            return Err(self.violation("forgery", format!("replica {index} took an event in another pod's name")));
        }
        if !replica.feed_is_whole() {
            return Err(
                self.violation("feed", format!("replica {index}: the changes do not lead to what is published"))
            );
        }
        let expiry = replica.next_expiry();
        if let Some(at) = expiry
            && self.expiries[index].is_none_or(|held| at < held || held <= self.now)
        {
            self.expiries[index] = expiry;
            self.schedule(at.saturating_sub(self.now), Happening::Expire { replica: index });
        }
        Ok(())
    }

    /// After the quiet: every replica says the same, and it is what the API server and the sidecars say.
    pub(super) fn check_agreement(&self) -> Result<(), Violation> {
        for (index, chosen) in self.cluster.services.iter().enumerate() {
            for pod in 0..self.pods.len() {
                let id = EndpointId::Pod(*self.pods[pod].identity.uid());
                let object = self.cluster.objects[pod].as_deref().filter(|object| chosen.selects(&object.labels));
                let expected = object.map(|object| effective(object, self.word(pod), self.drained(pod)));
                let mut first = None;
                for (at, replica) in self.replicas.iter().enumerate() {
                    let seen = replica.published.get(&service_key(index)).and_then(|group| group.endpoint(&id));
                    let state = seen.as_ref().map(|endpoint| (endpoint.verdict.state, endpoint.verdict.source));
                    let fits = match (state, expected) {
                        (Some((state, source)), Some((wanted, by))) => {
                            state == wanted && by.is_none_or(|by| by == source)
                        }
                        (None, None) => true,
                        (Some(_), None) | (None, Some(_)) => false,
                    };
                    if !fits {
                        let detail =
                            format!("replica {at} has {id:?} of {} as {state:?}, true is {expected:?}", APPS[index]);
                        return Err(self.violation("truth", detail));
                    }
                    // Since when a pod drains is told once, and a clock that was stepped may tell it differently.
                    let drains = state.is_some_and(|(state, _)| state == State::Draining);
                    // Where a pod is that nobody calls ready may be known from a push that came to one replica only.
                    let seen = seen
                        .filter(|_| !drains)
                        .map(|endpoint| (endpoint.verdict, endpoint.is_ready().then(|| endpoint.addresses.clone())));
                    if *first.get_or_insert_with(|| seen.clone()) != seen {
                        let detail = format!("replica {at} has {seen:?}, replica 0 has {:?}", first.flatten());
                        return Err(self.violation("agreement", detail));
                    }
                }
            }
        }
        Ok(())
    }

    fn word(&self, pod: usize) -> Option<Word> {
        let readiness = &self.pods[pod].sidecar.as_ref()?.readiness;
        let statement = readiness.statement();
        let (boot, since_ms) = (statement.order.boot, statement.observed_at_ms);
        Some(Word { boot, ready: statement.ready, since_ms, live: true })
    }

    fn drained(&self, pod: usize) -> Option<Boot> {
        let readiness = &self.pods[pod].sidecar.as_ref()?.readiness;
        (readiness.state() == Said::Draining).then(|| readiness.statement().order.boot)
    }
}
