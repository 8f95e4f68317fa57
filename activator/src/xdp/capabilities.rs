//! The capabilities that loading takes, which of them are missing, and giving them back.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What loading and attaching take. Before any of these there was CAP_SYS_ADMIN, which implies the first and the last.
const NEEDED: [(CapabilitySet, &str); 3] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
];

/// Names of the capabilities that this thread lacks. None, where the kernel does not tell.
pub fn missing() -> Vec<&'static str> {
    let Ok(sets) = capabilities(None) else { return Vec::new() };
    let lacks = |needed: CapabilitySet| {
        let implied = needed != CapabilitySet::NET_ADMIN && sets.effective.contains(CapabilitySet::SYS_ADMIN);
        !implied && !sets.effective.contains(needed)
    };
    NEEDED.into_iter().filter(|(needed, _)| lacks(*needed)).map(|(_, name)| name).collect()
}

/// Gives up what was needed to load the program: maps that are open stay writable, and a link closes without. Capabilities
/// belong to threads, so this is to be called before there are others; those that begin later inherit what is left.
///
/// # Errors
/// When the kernel refuses.
pub fn give_up() -> io::Result<()> {
    let needless = NEEDED.into_iter().fold(CapabilitySet::SYS_ADMIN, |all, (needed, _)| all | needed);
    let CapabilitySets { effective, permitted, inheritable } = capabilities(None)?;
    let left = CapabilitySets {
        effective: effective - needless,
        permitted: permitted - needless,
        inheritable: inheritable - needless,
    };
    set_capabilities(None, left)?;
    Ok(())
}
