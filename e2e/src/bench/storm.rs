//! All pods of a cluster make first contact at once, as after an activator's restart: each over a TLS connection of its own,
//! from an address of its own, that stays open. A pod that is put off tries again as a sidecar does. Beside it stands the
//! [`floor`](super::floor): the same connections and requests at a process that does nothing but TLS. What it takes for
//! connections alone leaves nothing of the memory that the bound grants, so that is held against a storm over kept ones.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use podlight_proto::Kind;

use super::fleet::{Fleet, Member, Voice};
use super::floor::Floor;
use super::load::{Answer, Connection, Target, request};
use super::replica::Replica;
use super::report::Row;
use super::usage::{CpuMeter, memory_mib, millis, percentile};

/// Pods.
pub const PODS: usize = 10_000;

/// Kept connections, where pods share them.
const KEPT: usize = 256;

/// Threads that play the sidecars. They and the activator share the machine.
const THREADS: usize = 2;

/// Attempts of one pod before it counts as lost.
const ATTEMPTS: usize = 100;

/// First pause after a failure to connect; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at the API server's count, which has the maximum of each second.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// Longest such pause.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Over which connections the pods are heard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// So many that were opened before.
    Kept,
    /// One for each pod, opened in the storm.
    Own,
}

/// How a storm went.
struct Storm {
    /// From the first request, or connection, to the last acknowledgement.
    took: Duration,
    /// When each pod's event was acknowledged, in milliseconds from the start.
    applied_ms: Vec<f64>,
    /// Answers 429 and 503.
    put_off: usize,
    /// Connections that could not be made or broke.
    broken: usize,
    /// CPU that the activator has used for it.
    cpu: Duration,
    /// The most memory the activator has ever had, in MiB.
    peak_mib: f64,
    /// What it had before the storm.
    before_mib: f64,
}

/// What a storm is let loose on.
#[derive(Clone, Copy)]
struct Subject {
    /// The kernel's id of the process.
    process: u32,
    /// Where it takes events.
    port: u16,
}

impl Subject {
    fn of(replica: &Replica) -> Self {
        Self { process: replica.id(), port: replica.events_port() }
    }
}

/// The storms in `jwks` mode.
///
/// # Errors
/// When a pod is lost, or something does not run.
pub async fn measure_jwks(fleet: &Fleet) -> Result<Vec<Row>> {
    let floor = Floor::start().await?;
    let floor = storm(fleet, Subject { process: floor.id(), port: floor.port }, Over::Own).await?;
    let own = storm_of_replica(fleet, "jwks", Over::Own).await?;
    let kept = storm_of_replica(fleet, "jwks", Over::Kept).await?;
    let name = format!("storm of {PODS} first contacts, jwks, a new TLS connection for each pod");
    let mut rows = vec![
        Row::new(format!("{name}: all applied"), "s", own.took.as_secs_f64())
            .above("TLS alone", floor.took.as_secs_f64())
            .bounds(3.0, 2.0),
        Row::new(format!("{name}: most resident, from the start on"), "MiB", own.peak_mib)
            .above("TLS alone", floor.peak_mib),
        Row::new("↳ resident before it, all pods listed", "MiB", own.before_mib),
    ];
    rows.extend(details(&own, &floor));
    let name = format!("the same over {KEPT} kept connections");
    rows.push(Row::new(format!("{name}: all applied"), "s", kept.took.as_secs_f64()).bounds(3.0, 2.0));
    rows.push(Row::new(format!("{name}: most resident, from the start on"), "MiB", kept.peak_mib).bounds(120.0, 80.0));
    Ok(rows)
}

async fn storm_of_replica(fleet: &Fleet, auth: &str, over: Over) -> Result<Storm> {
    let replica = Replica::start(fleet, auth).await?;
    let storm = storm(fleet, Subject::of(&replica), over).await?;
    ensure!(lost(&replica).await? == 0.0, "the table does not hold every pod");
    Ok(storm)
}

/// The storm in `hybrid` mode: every token is reviewed by the API server.
///
/// # Errors
/// When a pod is lost, or something does not run.
pub async fn measure_hybrid(fleet: &Fleet) -> Result<Vec<Row>> {
    let floor = Floor::start().await?;
    let floor = storm(fleet, Subject { process: floor.id(), port: floor.port }, Over::Own).await?;
    let replica = Replica::start(fleet, "hybrid").await?;
    let reviews_before = fleet.control_plane.token_reviews()?;
    let watching = Arc::new(AtomicBool::new(true));
    let watched = Arc::clone(&watching);
    let client = fleet.control_plane.client()?;
    let in_flight = tokio::spawn(async move {
        let mut most: f64 = 0.0;
        while watched.load(Ordering::Relaxed) {
            most = most.max(reviews_in_flight(&client).await?);
            tokio::time::sleep(LOOK_EVERY).await;
        }
        anyhow::Ok(most.max(reviews_in_flight(&client).await?))
    });
    let storm = storm(fleet, Subject::of(&replica), Over::Own).await?;
    watching.store(false, Ordering::Relaxed);
    let in_flight = in_flight.await??;
    let reviews = fleet.control_plane.token_reviews()? - reviews_before;
    ensure!(in_flight >= 1.0 && reviews >= 1, "the API server tells of no review: nothing was measured");
    let unanswered = replica.metrics().await?.sum("podlight_token_reviews_total", &[("result", "unavailable")]);
    let name = format!("storm of {PODS} first contacts, hybrid, a new TLS connection for each pod");
    let pods = PODS as f64;
    let mut rows = vec![
        Row::new(format!("{name}: all applied"), "s", storm.took.as_secs_f64()).bounds(12.0, 6.0),
        Row::new(format!("↳ TokenReviews for the {PODS} pods"), "", reviews as f64).bounds(pods, pods),
        Row::new("↳ of these not answered, by the activator's count", "", unanswered),
        Row::new("↳ most TokenReviews at once, by the API server's count", "", in_flight).bounds(16.0, 16.0),
        Row::new("↳ pods lost", "", lost(&replica).await?).bounds(0.0, 0.0),
        Row::new("↳ most resident", "MiB", storm.peak_mib),
    ];
    rows.extend(details(&storm, &floor));
    Ok(rows)
}

fn details(storm: &Storm, floor: &Storm) -> [Row; 4] {
    [
        Row::new("↳ half of them applied", "s", percentile(&storm.applied_ms, 50) / 1e3),
        Row::new("↳ CPU that the activator used", "s", storm.cpu.as_secs_f64())
            .above("TLS alone", floor.cpu.as_secs_f64()),
        Row::new("↳ answers that put a pod off", "", storm.put_off as f64),
        Row::new("↳ connections that failed", "", storm.broken as f64),
    ]
}

async fn storm(fleet: &Fleet, Subject { process, port }: Subject, over: Over) -> Result<Storm> {
    let members = fleet.members.get(..PODS).context("the fleet is too small")?;
    let before_mib = memory_mib(process, "VmRSS")?;
    let mut meter = CpuMeter::new(process);
    let counts = Arc::new(Counts { put_off: 0.into(), broken: 0.into(), start: Barrier::new(THREADS) });
    let workers: Vec<_> = members
        .chunks(PODS.div_ceil(THREADS))
        .map(|members| {
            let (members, counts) = (members.to_vec(), Arc::clone(&counts));
            tokio::task::spawn_blocking(move || play(&members, port, over, &counts))
        })
        .collect();
    let cpu_before = meter.total()?;
    let parts = try_join_all(workers).await?.into_iter().collect::<Result<Vec<Part>>>()?;
    let cpu = meter.total()?.saturating_sub(cpu_before);
    let began = parts.iter().map(|part| part.began).min().context("no part")?;
    let applied = parts.iter().flat_map(|part| part.applied.iter().map(|at| at.saturating_duration_since(began)));
    let applied: Vec<Duration> = applied.collect();
    Ok(Storm {
        took: applied.iter().max().copied().unwrap_or_default(),
        applied_ms: applied.into_iter().map(millis).collect(),
        put_off: counts.put_off.load(Ordering::Relaxed),
        broken: counts.broken.load(Ordering::Relaxed),
        cpu,
        peak_mib: memory_mib(process, "VmHWM")?,
        before_mib,
    })
}

/// Pods whose event is not in the table, by the activator's metrics.
async fn lost(replica: &Replica) -> Result<f64> {
    Ok(PODS as f64 - replica.metrics().await?.sum("podlight_table_leased_pods", &[]))
}

struct Counts {
    put_off: AtomicUsize,
    broken: AtomicUsize,
    start: Barrier,
}

/// What one thread has seen.
struct Part {
    began: Instant,
    applied: Vec<Instant>,
}

/// Plays some of the sidecars on a runtime of this thread's own.
fn play(members: &[Member], port: u16, over: Over, counts: &Arc<Counts>) -> Result<Part> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let target = Target::new(port)?;
        match over {
            Over::Kept => play_over_kept(members, &target, counts).await,
            Over::Own => play_over_own(members, &target, counts).await,
        }
    })
}

async fn play_over_kept(members: &[Member], target: &Target, counts: &Arc<Counts>) -> Result<Part> {
    let connections = KEPT / THREADS;
    let open = members.iter().take(connections).map(|member| target.connect(member.address));
    let open = try_join_all(open).await?;
    counts.start.wait();
    let began = Instant::now();
    let senders = open.into_iter().enumerate().map(async |(n, connection)| {
        let (mut open, mut applied) = (connection, Vec::new());
        for member in members.iter().skip(n).step_by(connections) {
            open = contact(target, member, Some(open), counts).await?;
            applied.push(Instant::now());
        }
        anyhow::Ok(applied)
    });
    let applied = try_join_all(senders).await?.into_iter().flatten().collect();
    Ok(Part { began, applied })
}

async fn play_over_own(members: &[Member], target: &Target, counts: &Arc<Counts>) -> Result<Part> {
    counts.start.wait();
    let began = Instant::now();
    let sidecars = members.iter().map(|member| {
        let (target, member, counts) = (target.clone(), member.clone(), Arc::clone(counts));
        tokio::spawn(async move {
            let connection = contact(&target, &member, None, &counts).await?;
            anyhow::Ok((Instant::now(), connection))
        })
    });
    let sidecars: Vec<_> = sidecars.collect();
    // The connections stay open until all are done, as sidecars keep theirs.
    let mut done = Vec::with_capacity(members.len());
    for sidecar in sidecars {
        done.push(sidecar.await??);
    }
    Ok(Part { began, applied: done.into_iter().map(|(at, _connection)| at).collect() })
}

/// One sidecar's first contact, until it is applied.
async fn contact(
    target: &Target,
    member: &Member,
    mut open: Option<Connection>,
    counts: &Counts,
) -> Result<Connection> {
    let mut voice = Voice::start(member)?;
    let mut pause = FIRST_PAUSE;
    for _ in 0..ATTEMPTS {
        // Signed anew for each attempt, as a sidecar does.
        let event = voice.say(Kind::NotReady, false, true);
        match attempt(target, member.address, open.take(), &request(&event, Some(&member.token))).await {
            Ok((connection, answer)) if answer.is_applied() => return Ok(connection),
            Ok((connection, answer)) if matches!(answer.status, 429 | 503) => {
                counts.put_off.fetch_add(1, Ordering::Relaxed);
                open = (!answer.closes).then_some(connection);
                tokio::time::sleep(answer.retry_after.unwrap_or(LAST_PAUSE)).await;
            }
            Ok((_, answer)) => bail!("refused: {} {}", answer.status, answer.body),
            Err(_) => {
                counts.broken.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
                pause = LAST_PAUSE.min(pause * 2);
            }
        }
    }
    bail!("{} was not applied in {ATTEMPTS} attempts", member.pod.name())
}

async fn attempt(
    target: &Target,
    source: IpAddr,
    open: Option<Connection>,
    request: &[u8],
) -> Result<(Connection, Answer)> {
    let mut connection = match open {
        Some(connection) => connection,
        None => target.connect(source).await?,
    };
    let answer = connection.exchange(request).await?;
    Ok((connection, answer))
}

/// The most mutating requests that the API server had at once within the last second: during a storm, TokenReviews.
async fn reviews_in_flight(client: &kube::Client) -> Result<f64> {
    let metrics = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
    let line = r#"apiserver_current_inflight_requests{request_kind="mutating"} "#;
    let value =
        metrics.lines().find_map(|l| l.strip_prefix(line)).context("the API server tells no requests in flight")?;
    Ok(value.trim().parse()?)
}
