//! From a failing seed to its shortest history, by delta debugging over the commands (Zeller, Hildebrandt 2002),
//! and how a history is written.

use std::fmt::Write as _;

use podlight_activator::table::entry::{Observation, Phase};
use podlight_activator::table::{Change, Update};
use podlight_sidecar::publisher::Reply;

use super::mutant::Mutant;
use super::replica::Message;
use super::scenario::Scenario;
use super::world::EPOCH_MS;
use super::{Failure, Violation, world};

/// Leaves out whatever is not needed for the same promise to be broken.
pub(super) fn shorten(seed: u64, mutant: Mutant, violation: Violation) -> Failure {
    let mut scenario = Scenario::of(seed);
    let fails =
        |scenario: &Scenario| world::run(scenario, mutant, false).0.err().filter(|found| found.rule == violation.rule);
    let mut chunk = scenario.commands.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        let mut shortened = false;
        while at < scenario.commands.len() {
            let mut shorter = scenario.clone();
            shorter.commands.drain(at..(at + chunk).min(shorter.commands.len()));
            if fails(&shorter).is_some() {
                scenario = shorter;
                shortened = true;
            } else {
                at += chunk;
            }
        }
        chunk = if chunk == 1 && shortened { 1 } else { chunk / 2 };
    }
    let violation = fails(&scenario).unwrap_or(violation);
    let (_, trace) = world::run(&scenario, mutant, true);
    Failure { seed, history: written(&scenario, &trace), violation }
}

fn written(scenario: &Scenario, trace: &[String]) -> String {
    let mut text = String::from("pods:\n");
    for (pod, spec) in scenario.pods.iter().enumerate() {
        if scenario.commands.iter().any(|(_, command)| format!("{command:?}").contains(&format!("pod: {pod}"))) {
            let _ = writeln!(text, "  {pod}: {spec:?}");
        }
    }
    text.push_str("commands:\n");
    for (at, command) in &scenario.commands {
        let _ = writeln!(text, "  {at:>6} ms  {command:?}");
    }
    text.push_str("replicas were told:\n");
    for line in trace {
        let _ = writeln!(text, "  {line}");
    }
    text
}

/// An update in one line.
pub(super) fn told(update: &Update) -> String {
    match update {
        Update::Pod(Change::Present(pod)) => format!("watch: {}", pod_line(pod)),
        Update::Fetched(pod, asked_in) => format!("GET of list {}: {}", asked_in.0, pod_line(pod)),
        Update::Pod(Change::Gone(uid)) => format!("watch: {uid} deleted"),
        Update::Pod(Change::ListBegan) => "list of pods begins".into(),
        Update::Pod(Change::ListDone) => "list of pods is complete".into(),
        Update::Service(Change::Present(service)) => {
            format!("watch: Service {} selects {:?}", service.key.service, service.selector)
        }
        Update::Service(change) => format!("Services: {change:?}"),
        Update::Slice(change) => format!("slices: {change:?}"),
    }
}

fn pod_line(pod: &Observation) -> String {
    let ready =
        pod.ready.map_or("none".into(), |c| format!("{} since {} s", c.ready, c.since_seconds - EPOCH_MS / 1_000));
    let mut line = format!("{} version {}, Ready {ready}, {:?}", pod.pod.uid(), pod.resource_version, pod.labels);
    let marks = [
        (pod.terminating_since_ms.is_some(), ", terminating"),
        (pod.phase == Phase::Ended, ", ended"),
        (!pod.gates_open, ", gate closed"),
        (pod.has_exec_probe, ", exec probe"),
        (!pod.has_readiness_probe, ", no readiness probe"),
        (pod.addresses.is_empty(), ", no address"),
    ];
    marks.iter().filter(|(holds, _)| *holds).for_each(|(_, mark)| line.push_str(mark));
    line
}

/// A message and its answer in one line.
pub(super) fn heard(replica: usize, message: &Message, reply: &Reply) -> String {
    let event = &message.event;
    let (boot, seq) = (u64::from(event.order.boot).saturating_sub(EPOCH_MS), event.order.seq);
    let since = event.observed_at_ms.saturating_sub(EPOCH_MS);
    let token = if message.token.is_some() { ", token" } else { "" };
    let answer = match reply {
        Reply::Accepted(accepted) => accepted.result.as_str(),
        Reply::TokenWanted => "401",
        Reply::Refused => "refused",
        Reply::TryAgain { .. } => "503",
    };
    let (pod, kind, ready) = (event.pod.uid(), event.kind, event.ready);
    format!("replica {replica}: push: {pod} {boot}-{seq} {kind} ({ready} since {since} ms{token}) -> {answer}")
}
