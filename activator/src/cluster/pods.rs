//! The pods that the watch shows, by uid: where ingest looks up whether a pod owns what it claims. Follows the
//! watch's stream exactly, so a list that is complete takes out what it did not name.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use podlight_proto::PodUid;

use crate::table::entry::Observation;
use crate::table::{Change, ListEpoch};

#[derive(Debug)]
struct Row {
    observation: Arc<Observation>,
    seen_in: ListEpoch,
}

#[derive(Debug, Default)]
struct Known {
    rows: HashMap<PodUid, Row>,
    begun: ListEpoch,
    complete: ListEpoch,
}

/// The pods of the last watch state. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pods(Arc<RwLock<Known>>);

impl Pods {
    /// The pod with this uid.
    pub fn get(&self, uid: &PodUid) -> Option<Arc<Observation>> {
        self.read().rows.get(uid).map(|row| Arc::clone(&row.observation))
    }

    /// The number of the last pod list that is complete; 0 before the first. Lists are numbered as they begin, here
    /// as in the table, so one that broke off leaves a gap.
    pub fn list_epoch(&self) -> ListEpoch {
        self.read().complete
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.read().rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks a pod up by name, in time linear in the number of pods.
    pub(super) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Observation>> {
        let named = |o: &&Arc<Observation>| **o.pod.namespace() == *namespace && **o.pod.name() == *name;
        self.read().rows.values().map(|row| &row.observation).find(named).cloned()
    }

    /// Follows the watch by one change.
    pub fn apply(&self, change: &Change<Arc<Observation>, PodUid>) {
        // Nothing in here panics half-way, so a poisoned lock still guards a whole state.
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *known;
        match change {
            Change::ListBegan => known.begun.0 += 1,
            Change::Present(observation) => {
                let row = Row { observation: Arc::clone(observation), seen_in: known.begun };
                known.rows.insert(*observation.pod.uid(), row);
            }
            Change::Gone(uid) => {
                known.rows.remove(uid);
            }
            Change::ListDone => {
                known.complete = known.begun;
                known.rows.retain(|_, row| row.seen_in >= known.complete);
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}
