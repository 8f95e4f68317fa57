//! Podlight in a whole cluster, as its users meet it: installed by its chart, with real kubelets. Cases run one after another
//! in the order of the list, on one installation: the first makes it, the last removes it. Run by `make e2e` and
//! `make e2e-fast`; arguments choose cases by parts of their names. What a failed case left is kept in `target/e2e`.

use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use podlight_e2e::cluster::Cluster;

mod failures;
mod injection;
mod installation;
mod readiness;
mod requests;

/// Longest that a case may take: what hangs ends as a failure, with evidence.
const CASE_DEADLINE: Duration = Duration::from_secs(300);

type Run = fn(&'static Cluster) -> LocalBoxFuture<'static, Result<()>>;

macro_rules! cases {
    ($($module:ident::$case:ident,)*) => {
        [$((stringify!($case), |cluster| Box::pin($module::$case(cluster)))),*]
    };
}

const CASES: &[(&str, Run)] = &cases![
    installation::the_chart_installs_and_everything_gets_ready,
    injection::a_pod_of_a_labelled_namespace_gets_the_sidecar_and_is_ready_in_every_table_first,
    injection::the_policy_injects_as_the_webhook_does,
    injection::a_namespace_of_the_restricted_level_accepts_injected_pods,
    injection::a_pod_with_an_exec_probe_is_left_to_the_api_servers_word,
    injection::a_job_completes_with_the_sidecar_in_it,
    readiness::a_pod_with_two_probed_containers_is_ready_when_both_are,
    readiness::a_pod_with_a_readiness_gate_is_ready_when_the_gate_opens,
    readiness::a_pod_without_probes_is_not_routed_before_it_accepts,
    readiness::a_pod_on_the_nodes_network_is_ready_in_every_table,
    readiness::pods_of_a_stateful_set_are_ready_in_every_table,
    readiness::an_app_that_turns_not_ready_is_out_of_every_table_first,
    readiness::an_app_that_crashes_is_out_of_every_table_until_it_is_back,
    readiness::an_app_that_is_stopped_is_out_of_every_table_until_it_goes_on,
    readiness::a_deleted_pod_is_out_of_every_table_when_the_slices_tell_it,
    readiness::a_pod_deleted_by_force_is_out_of_every_table,
    requests::a_request_to_a_deployment_at_zero_scales_it_and_is_answered,
    requests::a_rolling_update_under_load_fails_no_request,
    requests::a_rollout_that_never_gets_ready_fails_no_request,
    failures::an_activator_that_is_killed_comes_back_to_the_same_table,
    failures::while_the_api_server_hangs_requests_go_on,
    failures::a_sidecar_that_is_killed_comes_back_and_its_pod_stays_in,
    installation::an_upgrade_and_its_rollback_keep_what_is_ready,
    readiness::ninety_pods_at_once_are_ready_in_every_table,
    installation::what_is_uninstalled_leaves_pods_running_and_nothing_behind,
];

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let chosen: Vec<&(&str, Run)> = CASES.iter().filter(|(name, _)| is_wanted(name)).collect();
    ensure!(!chosen.is_empty(), "no case is called anything like {wanted:?}");
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::reach().await?));
    let begun = Instant::now();
    let mut failed = Vec::new();
    for (name, case) in chosen.iter().copied() {
        let started = Instant::now();
        // A panic is the case's alone.
        let case = AssertUnwindSafe(case(cluster)).catch_unwind();
        let ended = match tokio::time::timeout(CASE_DEADLINE, case).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(anyhow!("the case panicked: see above")),
            Err(elapsed) => Err(elapsed).context("the case takes too long"),
        };
        let took = started.elapsed().as_secs_f64();
        let notes: String = cluster.take_notes().iter().map(|note| format!("\n    {note}")).collect();
        match ended {
            Ok(()) => tell(&format!("test {name} ... ok ({took:.1} s){notes}")),
            Err(error) => {
                tell(&format!("test {name} ... FAILED ({took:.1} s){notes}\n{error:?}"));
                let kept = cluster.keep_evidence(name, &format!("{error:?}")).await;
                tell(
                    &kept.map_or_else(|error| format!("no evidence: {error:#}"), |at| format!("see {}", at.display())),
                );
                failed.push(*name);
            }
        }
    }
    let took = begun.elapsed().as_secs_f64();
    tell(&format!("{} cases, {} failed, {took:.0} s", chosen.len(), failed.len()));
    if failed.is_empty() { Ok(()) } else { Err(anyhow!("failed: {}", failed.join(", "))) }
}

fn tell(text: &str) {
    // Nobody is left to tell when stdout is closed.
    let _ = writeln!(std::io::stdout(), "{text}");
}
