//! Probes as fast as they are answered, or at fixed times: each a connection of its own, timed from its SYN to the end of the
//! answer. Written by hand so that it costs little; `podlight-bench child probes` in the client's namespace.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::bench::usage::percentile;
use crate::net::ask::{request, status};

/// Longest probe: as the kubelet's `timeoutSeconds` is unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Of one read: the whole answer.
const READ_BYTES: usize = 1024;

/// What to ask for, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Probes {
    /// Whom.
    pub(super) to: SocketAddr,
    /// For what.
    pub(super) path: String,
    /// How many at once.
    pub(super) at_once: usize,
    /// How many in all, if time allows.
    pub(super) count: u64,
    /// How long at most.
    pub(super) seconds: f64,
    /// How many a second; without it, as many as are answered.
    pub(super) rate: Option<f64>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Probed {
    /// Probes that were answered with 200.
    pub(super) answered: u64,
    /// How many ended how otherwise.
    pub(super) failures: BTreeMap<String, u64>,
    /// All of it.
    pub(super) seconds: f64,
    /// The middle of those that were answered, in microseconds.
    pub(super) p50_us: f64,
    /// As `p50_us`.
    pub(super) p99_us: f64,
}

impl Probed {
    /// Probes that were asked.
    pub(super) fn asked(&self) -> u64 {
        self.answered + self.failures.values().sum::<u64>()
    }

    /// Fails unless every probe was answered.
    pub(super) fn whole(self) -> Result<Self> {
        ensure!(
            self.failures.is_empty() && self.answered > 0,
            "{} answered, failed: {:?}",
            self.answered,
            self.failures
        );
        Ok(self)
    }
}

#[derive(Default)]
struct Sheet {
    asked: u64,
    latencies_us: Vec<f64>,
    failures: BTreeMap<String, u64>,
}

/// Probes to the end.
pub(super) async fn run(probes: Probes) -> Result<Probed> {
    let begun = Instant::now();
    let sheet = Rc::new(RefCell::new(Sheet::default()));
    let request = Rc::new(request(&probes.path));
    let probes = Rc::new(probes);
    let lanes: Vec<_> = (0..probes.at_once.max(1))
        .map(|lane| {
            let (sheet, probes, request) = (Rc::clone(&sheet), Rc::clone(&probes), Rc::clone(&request));
            async move {
                // Each lane has every n-th time.
                let interval = probes.rate.map(|rate| Duration::from_secs_f64(probes.at_once as f64 / rate));
                let first = probes.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(lane as f64 / rate));
                let mut due = begun + first;
                while begun.elapsed().as_secs_f64() < probes.seconds && sheet.borrow().asked < probes.count {
                    sheet.borrow_mut().asked += 1;
                    if interval.is_some() {
                        tokio::time::sleep_until(due.into()).await;
                    }
                    let asked = Instant::now();
                    let answered = tokio::time::timeout(TIMEOUT, probe(probes.to, &request)).await;
                    let mut sheet = sheet.borrow_mut();
                    match answered.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time"))) {
                        Ok(200) => sheet.latencies_us.push(asked.elapsed().as_secs_f64() * 1e6),
                        Ok(status) => *sheet.failures.entry(format!("status {status}")).or_default() += 1,
                        Err(error) => *sheet.failures.entry(format!("{error:#}")).or_default() += 1,
                    }
                    due += interval.unwrap_or_default();
                }
            }
        })
        .collect();
    let local = LocalSet::new();
    let tasks: Vec<_> = lanes.into_iter().map(|lane| local.spawn_local(lane)).collect();
    local
        .run_until(async {
            for task in tasks {
                task.await?;
            }
            Ok::<_, anyhow::Error>(())
        })
        .await?;
    let sheet = sheet.take();
    Ok(Probed {
        answered: sheet.latencies_us.len() as u64,
        failures: sheet.failures,
        seconds: begun.elapsed().as_secs_f64(),
        p50_us: percentile(&sheet.latencies_us, 50),
        p99_us: percentile(&sheet.latencies_us, 99),
    })
}

async fn probe(to: SocketAddr, request: &[u8]) -> Result<u16> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(request).await?;
    let mut answer = [0; READ_BYTES];
    let mut length = 0;
    loop {
        match stream.read(&mut answer[length..]).await? {
            0 => return status(&answer[..length]),
            read => length += read,
        }
        ensure!(length < READ_BYTES, "an answer longer than any");
    }
}
