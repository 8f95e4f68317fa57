//! `make simulate`: seeds without a violation, and a violation for every rule that is left out. `SEEDS=n` says how
//! many, `SEED=n` runs one.

use std::time::Instant;

use podlight_e2e::simulation::{Activity, Failure, Mutant, explore};

/// Seeds of an ordinary run.
const SEEDS: u64 = 10_000;

/// Within so many seeds every mutant must be caught.
const MUTANT_SEEDS: u64 = 500;

fn setting(name: &str) -> Option<u64> {
    // Make passes on what is not set as empty.
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

/// Spreads seeds over the machine's cores; each history stays on one.
fn explore_on_all_cores(seeds: u64) -> (Activity, Option<Failure>) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let results: Vec<_> = std::thread::scope(|scope| {
        let run = |core: usize| move || explore((core as u64..seeds).step_by(cores), Mutant::None);
        let runs: Vec<_> = (0..cores).map(|core| scope.spawn(run(core))).collect();
        runs.into_iter().map(|run| run.join().expect("a simulation panicked")).collect()
    });
    let mut total = Activity::default();
    let mut failures = Vec::new();
    for (activity, failure) in results {
        total.steps += activity.steps;
        total.pushes += activity.pushes;
        total.updates += activity.updates;
        failures.extend(failure);
    }
    (total, failures.into_iter().min_by_key(|failure| failure.seed))
}

#[test]
fn no_replica_believes_what_it_must_not_and_after_quiet_all_agree() {
    let begun = Instant::now();
    let (activity, failure) = match setting("SEED") {
        Some(seed) => explore([seed], Mutant::None),
        None => explore_on_all_cores(setting("SEEDS").unwrap_or(SEEDS)),
    };
    if let Some(failure) = failure {
        panic!("{failure}\nagain with SEED={}", failure.seed);
    }
    println!("{:?} in {:.1} s", activity, begun.elapsed().as_secs_f64());
}

#[test]
fn a_seed_always_gives_the_same_history() {
    let once = explore([7], Mutant::None).0;
    let again = explore([7], Mutant::None).0;
    assert_eq!(format!("{once:?}"), format!("{again:?}"));
    assert!(once.pushes > 0 && once.updates > 0, "nothing happened: {once:?}");
}

#[expect(clippy::print_stdout, reason = "how soon a mutant is caught is worth reading with --nocapture")]
fn caught(mutant: Mutant) {
    if setting("SEED").is_some() {
        return;
    }
    let (_, failure) = explore(0..MUTANT_SEEDS, mutant);
    let failure = failure.unwrap_or_else(|| panic!("{mutant:?} was not noticed in {MUTANT_SEEDS} seeds"));
    println!("{mutant:?}: {} after {} seeds", failure.violation.rule, failure.seed + 1);
}

macro_rules! caught {
    ($($test:ident: $mutant:ident,)*) => { $( #[test] fn $test() { caught(Mutant::$mutant); } )* };
}

caught! {
    a_deletion_timestamp_that_is_ignored_is_caught: DeletionTimestampIgnored,
    an_end_that_is_ignored_is_caught: EndIgnored,
    a_deletion_that_is_ignored_is_caught: DeletionIgnored,
    a_drain_that_is_ignored_is_caught: DrainIgnored,
    a_late_drain_that_is_lost_is_caught: LateDrainLost,
    a_drain_against_newer_boots_is_caught: DrainForEver,
    gates_that_are_ignored_are_caught: GatesIgnored,
    a_lease_without_end_is_caught: LeaseEndless,
    a_lease_that_is_too_short_is_caught: LeaseTooShort,
    a_drain_that_ends_with_its_lease_is_caught: DrainEndsWithLease,
    exec_probes_that_are_ignored_are_caught: ExecIgnored,
    a_push_that_always_holds_is_caught: PushAlwaysHolds,
    an_api_that_always_holds_is_caught: ApiAlwaysHolds,
    a_tie_that_goes_to_the_api_is_caught: TieToApi,
    a_tie_that_is_too_wide_is_caught: TieTooWide,
    a_pod_without_probe_treated_as_any_other_is_caught: NoProbeRuleIgnored,
    a_heartbeat_that_counts_as_a_transition_is_caught: HeartbeatIsTransition,
    a_heartbeat_that_renews_nothing_is_caught: HeartbeatIgnored,
    pushes_merged_by_arrival_are_caught: PushesByArrival,
    observations_merged_by_arrival_are_caught: ObservationsByArrival,
    a_relist_that_removes_nothing_is_caught: RelistRemovesNothing,
    a_fetched_pod_without_guard_is_caught: FetchUnguarded,
    labels_that_are_frozen_are_caught: LabelsFrozen,
    uids_that_are_ignored_are_caught: UidIgnored,
    ownership_that_is_ignored_is_caught: OwnershipIgnored,
    keys_that_are_ignored_are_caught: KeyIgnored,
    subjects_that_are_ignored_are_caught: SubjectIgnored,
    addresses_that_are_ignored_are_caught: AddressesIgnored,
}
