//! Podlight in a box: a node, its sidecars, an API server, three replicas and a bad network, all driven by one
//! seed and simulated time. The decisions are the product's own ([`Readiness`](podlight_sidecar::readiness::Readiness),
//! [`Delivery`](podlight_sidecar::publisher::Delivery), [`Session`](podlight_activator::ingest::Session),
//! [`Claim`](podlight_activator::ingest::Claim), [`Table`](podlight_activator::table::Table)); what is around
//! them is small and says what it leaves out. No clock, thread, lock or runtime: a seed always gives the same history.
//!
//! After every step the published snapshots of a replica are held against an oracle written from DESIGN §5's
//! text; after a quiet time all replicas are held against each other and against the truth.

mod checks;
mod cluster;
mod history;
mod mutant;
mod oracle;
mod pods;
mod queue;
pub mod random;
mod replica;
mod scenario;
mod sidecars;
mod world;

use std::fmt;

pub use mutant::Mutant;
pub use random::Random;
pub use scenario::Scenario;

/// Something that must never be seen.
#[derive(Debug, Clone)]
pub struct Violation {
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// Which promise is broken: a closed set, one word each.
    pub rule: &'static str,
    /// Where and how.
    pub detail: String,
}

/// What a history without violation did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Activity {
    /// Steps of the simulation.
    pub steps: u64,
    /// Events that tables took.
    pub pushes: u64,
    /// Updates that tables took.
    pub updates: u64,
}

/// A failing seed with the shortest history that still fails.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What is broken.
    pub violation: Violation,
    /// Who takes part, what is done to them, and what the replicas were told.
    pub history: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { at_ms, rule, detail } = &self.violation;
        writeln!(f, "seed {}: {rule} at {at_ms} ms: {detail}", self.seed)?;
        f.write_str(&self.history)
    }
}

/// Runs one seed.
///
/// # Errors
/// The first [`Violation`].
pub fn run(seed: u64, mutant: Mutant) -> Result<Activity, Violation> {
    world::run(&Scenario::of(seed), mutant, false).0
}

/// Runs seeds until one fails, and makes its history as short as it can be.
pub fn explore(seeds: impl IntoIterator<Item = u64>, mutant: Mutant) -> (Activity, Option<Failure>) {
    let mut total = Activity::default();
    for seed in seeds {
        match run(seed, mutant) {
            Ok(activity) => {
                total.steps += activity.steps;
                total.pushes += activity.pushes;
                total.updates += activity.updates;
            }
            Err(violation) => return (total, Some(history::shorten(seed, mutant, violation))),
        }
    }
    (total, None)
}
