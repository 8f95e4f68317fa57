//! Signals to processes in pods, from the node: what happens to an app happens without its help.

use std::fs;

use anyhow::{Context, Result, ensure};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// A program's only process in a pod. Kubernetes names the pod's host after the pod.
///
/// # Errors
/// When there is none, or more than one, or none can be seen: the suite does not run on the node.
pub fn process(pod: &str, program: &str) -> Result<Pid> {
    let host = format!("HOSTNAME={pod}");
    let what = format!("{program} of pod {pod}");
    only(&what, |process| process.program == program && process.environment.contains(&host))
}

/// Sends a signal to [`process`].
///
/// # Errors
/// As there.
pub fn signal(pod: &str, program: &str, signal: Signal) -> Result<()> {
    Ok(kill_process(process(pod, program)?, signal)?)
}

/// Sends a signal to the cluster's API server, which listens where real ones do.
///
/// # Errors
/// As [`process`].
pub fn signal_api_server(signal: Signal) -> Result<()> {
    let server = only("kube-apiserver", |process| {
        process.program.ends_with("kube-apiserver") && process.arguments.iter().any(|flag| flag == "--secure-port=6443")
    })?;
    Ok(kill_process(server, signal)?)
}

struct Process {
    program: String,
    arguments: Vec<String>,
    environment: Vec<String>,
}

fn only(what: &str, is_wanted: impl Fn(&Process) -> bool) -> Result<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        // One that ends meanwhile is none of ours.
        let words = |name: &str| -> Vec<String> {
            let bytes = fs::read(format!("/proc/{id}/{name}")).unwrap_or_default();
            bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
        };
        let mut arguments = words("cmdline").into_iter();
        let Some(program) = arguments.next() else { continue };
        let process = Process { program, arguments: arguments.collect(), environment: words("environ") };
        if is_wanted(&process) {
            found.push(id);
        }
    }
    ensure!(found.len() == 1, "{} processes {what} can be seen from here", found.len());
    found.first().copied().and_then(Pid::from_raw).context("a process without id")
}
