//! The one writer of the answers: follows the table's log, and writes what differs, here and into the kernel's map. It
//! rewrites nothing: what keeps answers alive is one sign of life, which says up to when the table is in them.
//!
//! Invariants: no sign of life before the log was applied up to it, nor while the kernel's map may still say ready where
//! it should not; what goes is written before what comes.

use std::collections::HashSet;
use std::sync::Arc;

use metrics::{Histogram, counter, gauge, histogram};

use super::answers::{Answer, Answers, Difference};
use super::held::Held;
use super::place::Place;
use crate::table::group::GroupKey;
use crate::table::snapshot::{Feed, FeedItem, FeedWhat, Groups, Moment};

/// Most entries of the log applied before what they came to is written.
const BATCH: usize = 1024;

/// Where answers are written besides [`Held`]: the kernel's maps. A place that has no answer is 404 there, one whose
/// sign of life is too old is not answered.
pub trait Map: Send {
    /// Has a place answered from now on.
    ///
    /// # Errors
    /// What the kernel says; the place is then as it was.
    fn put(&mut self, place: &Place, answer: &Answer) -> Result<(), MapError>;

    /// Has a place not answered any more.
    ///
    /// # Errors
    /// What the kernel says; the place is then as it was.
    fn remove(&mut self, place: &Place) -> Result<(), MapError>;

    /// Gives a sign of life; none takes all of them back.
    ///
    /// # Errors
    /// What the kernel says; the sign of life is then the one before.
    fn beat(&mut self, alive: Option<Moment>) -> Result<(), MapError>;
}

/// Why the kernel's map did not take something.
#[derive(Debug, thiserror::Error)]
#[error("the kernel's readiness map cannot be written")]
pub struct MapError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The writer. Plain but for [`Writer::run`]: tests call the rest step by step.
pub struct Writer {
    groups: Groups,
    feed: Feed,
    /// Number of the last entry of the log that was applied.
    applied: u64,
    /// The last sign of life, or when the first could come.
    alive: Moment,
    answers: Answers,
    held: Arc<Held>,
    map: Option<Box<dyn Map>>,
    most: usize,
    /// Places for which there is no room. Those that have it keep it.
    left_out: HashSet<Arc<Place>>,
    /// Places where the kernel's map did not take what it should hold.
    owed: HashSet<Arc<Place>>,
    /// From a change of the table to what it came to here and in the kernel's map.
    lag_seconds: Histogram,
}

impl Writer {
    /// A writer that has written the table as it is now, and given no sign of life.
    pub fn new(
        (groups, feed): (Groups, Feed),
        answers: Answers,
        held: Arc<Held>,
        map: Option<Box<dyn Map>>,
        most: usize,
    ) -> Self {
        let (left_out, owed) = (HashSet::new(), HashSet::new());
        let alive = Moment::default();
        let lag_seconds = histogram!("podlight_xdp_lag_seconds");
        let mut writer =
            Self { groups, feed, applied: 0, alive, answers, held, map, most, left_out, owed, lag_seconds };
        writer.resync();
        writer
    }

    /// Follows the table until `withdrawn`, and gives signs of life from `synced` on: before, the table does not know the
    /// cluster. Then takes everything back, and returns the kernel's map, which says 503 from then on.
    pub async fn run(
        mut self,
        synced: impl Future<Output = ()>,
        withdrawn: impl Future<Output = ()>,
    ) -> Option<Box<dyn Map>> {
        tokio::pin!(synced, withdrawn);
        let mut complete = false;
        loop {
            let alive = self.feed.complete();
            if complete && alive > self.alive {
                self.beat(alive);
            }
            tokio::select! {
                () = &mut withdrawn => break,
                () = &mut synced, if !complete => {
                    complete = true;
                    // Whatever was listed was told before now.
                    self.alive = Moment::now();
                }
                () = self.feed.wait_beyond(self.applied) => self.catch_up(),
                () = self.feed.wait_complete(self.alive), if complete => {}
            }
        }
        self.withdraw();
        self.map
    }

    /// Applies what the log has beyond what is applied, up to a bound.
    pub fn catch_up(&mut self) {
        match self.feed.since(self.applied, BATCH) {
            Ok(items) => {
                for item in &items {
                    self.apply(item);
                    self.applied = item.id;
                }
                self.write();
                let written = Moment::now();
                items.iter().for_each(|item| self.lag_seconds.record(item.at.until(written)));
            }
            Err(lagged) => {
                tracing::debug!(%lagged, "following the table from a picture of all of it");
                self.resync();
            }
        }
    }

    /// Applies what the log has had at a moment, which is told to those who answer: their answers are good from then on
    /// for as long as they live.
    pub fn beat(&mut self, alive: Moment) {
        let newest = self.feed.newest();
        while self.applied < newest {
            self.catch_up();
        }
        self.alive = alive;
        self.held.beat(Some(alive));
        self.settle();
        // Where the map should say ready and does not, nobody is misled.
        let misleads = |place: &Arc<Place>| self.held.get(place).is_none_or(|answer| !answer.ready);
        if self.owed.iter().any(misleads) {
            return;
        }
        if let Some(map) = &mut self.map
            && let Err(error) = map.beat(Some(alive))
        {
            report("beat", &error);
        }
    }

    /// Takes all signs of life back.
    pub fn withdraw(&mut self) {
        self.held.beat(None);
        if let Some(map) = &mut self.map
            && let Err(error) = map.beat(None)
        {
            // The last one runs out by itself.
            report("withdraw", &error);
        }
    }

    /// Applies all there is. Whatever comes meanwhile is in the log, beyond the number that is read first.
    fn resync(&mut self) {
        self.applied = self.feed.newest();
        let all = self.groups.all();
        let there: HashSet<&GroupKey> = all.iter().map(|picture| picture.key()).collect();
        let gone: Vec<GroupKey> = self.answers.groups().filter(|key| !there.contains(key)).cloned().collect();
        gone.iter().for_each(|key| self.answers.group(key, None));
        all.iter().for_each(|picture| self.answers.group(picture.key(), Some(picture)));
        self.write();
    }

    /// Entries of the log only say where to look; what is applied is the picture as it is now, so that nothing ever goes
    /// backwards.
    fn apply(&mut self, item: &FeedItem) {
        let key = item.group();
        let picture = self.groups.get(&key.namespace, &key.service);
        match &item.what {
            FeedWhat::Service(_) | FeedWhat::ServiceGone(_) => self.answers.group(key, picture.as_deref()),
            FeedWhat::Endpoint(endpoint) => self.answers.endpoint(key, &endpoint.id, picture.as_deref()),
            FeedWhat::EndpointGone(_, id) => self.answers.endpoint(key, id, picture.as_deref()),
        }
    }

    fn write(&mut self) {
        for (place, answer) in self.answers.differences() {
            self.difference((place, answer));
        }
        self.fill();
        let (answers, left_out) = (self.held.sizes().0, self.left_out.len());
        self.held.leave_out(left_out);
        gauge!("podlight_xdp_answers").set(as_gauge(answers));
        gauge!("podlight_xdp_answers_left_out").set(as_gauge(left_out));
    }

    fn difference(&mut self, (place, answer): Difference) {
        match answer {
            None => {
                if !self.left_out.remove(&place) {
                    self.held.remove(&place);
                    self.mirror(place);
                }
            }
            Some(answer) if self.held.get(&place).is_some() || self.held.sizes().0 < self.most => {
                self.left_out.remove(&place);
                self.held.put(Arc::clone(&place), answer);
                self.mirror(place);
            }
            Some(_) => {
                if self.left_out.is_empty() {
                    tracing::warn!(most = self.most, "there are more answers than have room; the others are 404");
                }
                self.left_out.insert(place);
            }
        }
    }

    /// Gives room that has come to those who had none.
    fn fill(&mut self) {
        while self.held.sizes().0 < self.most
            && let Some(place) = self.left_out.iter().next().cloned()
        {
            self.left_out.remove(&place);
            if let Some(answer) = self.answers.at(&place) {
                self.held.put(Arc::clone(&place), answer);
                self.mirror(place);
            }
        }
    }

    /// Writes into the kernel's map what is held at a place.
    fn mirror(&mut self, place: Arc<Place>) {
        let Some(map) = &mut self.map else { return };
        let written = match self.held.get(&place) {
            Some(answer) => map.put(&place, &answer),
            None => map.remove(&place),
        };
        match written {
            Ok(()) => drop(self.owed.remove(&place)),
            Err(error) => {
                if self.owed.is_empty() {
                    report("write", &error);
                }
                counter!("podlight_xdp_map_errors_total").increment(1);
                self.owed.insert(place);
            }
        }
    }

    /// Writes again what the kernel's map did not take.
    fn settle(&mut self) {
        let owed: Vec<Arc<Place>> = self.owed.iter().cloned().collect();
        owed.into_iter().for_each(|place| self.mirror(place));
    }
}

fn report(what: &'static str, error: &MapError) {
    tracing::warn!(what, error = error as &dyn std::error::Error, "the kernel does not take what it should answer");
}

fn as_gauge(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
