//! The figures of `make bench`: a module a group of rows. Each measures real processes (the table group: the real table)
//! beside a reference in the same run, and nothing here is a number that was not measured.

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

pub mod cluster;
pub mod events;
pub mod fleet;
pub mod floor;
pub mod latency;
pub mod load;
pub mod proxy;
pub mod replica;
pub mod report;
pub mod sidecar;
pub mod standalone;
pub mod storm;
pub mod table;
pub mod usage;
pub mod xdp;

use fleet::Fleet;
use report::Row;

/// A group of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The table, in this process.
    Table,
    /// From an app or a preStop hook to every replica.
    Latency,
    /// What a sidecar takes.
    Sidecar,
    /// CPU per event.
    Events,
    /// First contact of a whole cluster.
    Storm,
    /// Warm requests.
    Proxy,
    /// Held requests.
    Held,
    /// A rolling update under load.
    Rollout,
    /// Probes that the kernel answers. Takes root, so that it is measured when it is named.
    Xdp,
    /// A whole cluster, which KUBECONFIG names. Measured when it is named.
    Cluster,
}

impl Group {
    /// All of them, in the order in which they run: those that need many pods on a real API server last, together.
    pub const ALL: [Self; 10] = [
        Self::Table,
        Self::Latency,
        Self::Sidecar,
        Self::Proxy,
        Self::Held,
        Self::Rollout,
        Self::Xdp,
        Self::Cluster,
        Self::Events,
        Self::Storm,
    ];

    /// Its name on the command line, in the printed table and in `target/bench`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Latency => "latency",
            Self::Sidecar => "sidecar",
            Self::Events => "events",
            Self::Storm => "storm",
            Self::Proxy => "proxy",
            Self::Held => "held",
            Self::Rollout => "rollout",
            Self::Xdp => "xdp",
            Self::Cluster => "cluster",
        }
    }

    /// The group of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|group| group.name() == name)
            .with_context(|| format!("no group {name:?}: {}", known()))
    }

    /// Pods on a real API server that it needs.
    const fn pods(self) -> usize {
        match self {
            Self::Table
            | Self::Latency
            | Self::Sidecar
            | Self::Proxy
            | Self::Held
            | Self::Rollout
            | Self::Xdp
            | Self::Cluster => 0,
            Self::Events => events::PODS,
            Self::Storm => storm::PODS,
        }
    }

    async fn measure(self, fleet: Option<&Fleet>) -> Result<Vec<Row>> {
        let fleet = || fleet.context("this group needs pods on an API server");
        match self {
            Self::Table => tokio::task::spawn_blocking(table::measure).await?,
            Self::Latency => latency::measure().await,
            Self::Sidecar => sidecar::measure().await,
            Self::Proxy => proxy::measure_warm().await,
            Self::Held => proxy::measure_held().await,
            Self::Rollout => proxy::measure_rollout().await,
            Self::Xdp => xdp::measure().await,
            Self::Cluster => cluster::measure().await,
            Self::Events => events::measure(fleet()?).await,
            Self::Storm => {
                let mut rows = storm::measure_jwks(fleet()?).await?;
                rows.extend(storm::measure_hybrid(fleet()?).await?);
                Ok(rows)
            }
        }
    }
}

/// Measures groups, prints and keeps their figures. A group that cannot be measured does not keep the others from it.
///
/// # Errors
/// When a group could not be measured.
pub async fn run(groups: &[Group]) -> Result<()> {
    let begun = Instant::now();
    let pods = groups.iter().map(|group| group.pods()).max().unwrap_or(0);
    let mut fleet = None;
    let mut failed = Vec::new();
    for group in Group::ALL.into_iter().filter(|group| groups.contains(group)) {
        if group.pods() > 0 && fleet.is_none() {
            progress("starting a real API server and creating pods");
            fleet = Some(Fleet::start(pods).await?);
        }
        progress(&format!("measuring {}", group.name()));
        let measured = match group.measure(fleet.as_ref()).await {
            Ok(rows) if rows.iter().all(|row| row.ours.is_finite()) => Ok(rows),
            Ok(_) => Err(anyhow::anyhow!("a figure is no number")),
            Err(error) => Err(error),
        };
        match measured {
            Ok(rows) => {
                report::save(group.name(), &rows)?;
                report::print(group.name(), &rows)?;
            }
            Err(error) => {
                progress(&format!("{} could not be measured: {error:#}", group.name()));
                failed.push(group.name());
            }
        }
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "\n{}took {:.0?}", report::LEGEND, begun.elapsed())?;
    ensure!(failed.is_empty(), "could not be measured: {}", failed.join(", "));
    Ok(())
}

/// The groups that a command line names; all that need neither root nor a cluster when it names none.
///
/// # Errors
/// When a name is unknown.
pub fn groups(arguments: impl Iterator<Item = String>) -> Result<Vec<Group>> {
    let named: Vec<Group> = arguments.map(|name| Group::named(&name)).collect::<Result<_>>()?;
    let every = || Group::ALL.into_iter().filter(|group| !matches!(group, Group::Xdp | Group::Cluster)).collect();
    Ok(if named.is_empty() { every() } else { named })
}

/// Says on stderr what is going on, so that stdout holds the tables alone.
pub(crate) fn progress(text: &str) {
    // A closed stderr is no reason to measure nothing.
    let _ = writeln!(std::io::stderr(), "podlight-bench: {text}");
}

/// Fails when a child process is not there, before minutes are spent.
///
/// # Errors
/// When a binary is missing.
pub fn check_binaries() -> Result<()> {
    for name in ["podlight-activator", "podlight-sidecar"] {
        if let Err(error) = crate::binary(name) {
            bail!("{error:#}");
        }
    }
    Ok(())
}
