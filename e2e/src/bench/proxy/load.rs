//! The load that every proxy gets: GET requests over kept HTTP/1.1 connections, written by hand so that it costs little beside
//! what it measures. Either each connection asks again as soon as it is answered, or requests are due at fixed times and timed
//! from when they were due: a proxy that stalls makes the next ones late, and that counts.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::bench::usage::percentile;

/// Of one read: the whole answer.
const READ_BYTES: usize = 4096;

/// Longest wait for an answer: beyond any hold.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to ask for, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// The proxy.
    pub address: SocketAddr,
    /// What is in `Host`, one after the other.
    pub hosts: Vec<String>,
    /// Each connection asks for one of them only, instead of all connections together for one after the other.
    pub kept: bool,
    /// Kept connections.
    pub connections: usize,
    /// How long.
    pub seconds: f64,
    /// Requests a second, due at fixed times; without it as many as are answered.
    pub rate: Option<f64>,
    /// Ends when this many have been asked, if that is sooner.
    pub requests: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were answered with status 200.
    pub answered: u64,
    /// How many ended how otherwise.
    pub failures: BTreeMap<String, u64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// From when a request was due (or sent, without a rate) to its whole answer, in microseconds.
    pub p50_us: f64,
    /// As `p50_us`.
    pub p99_us: f64,
    /// As `p50_us`.
    pub worst_us: f64,
}

impl Report {
    /// Requests that were not answered with status 200.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    /// Fails unless every request was answered.
    ///
    /// # Errors
    /// When one was not.
    pub fn whole(self) -> Result<Self> {
        ensure!(
            self.failures.is_empty() && self.answered > 0,
            "{} answered, failed: {:?}",
            self.answered,
            self.failures
        );
        Ok(self)
    }
}

/// What connections share: the requests to come and what came of those that were.
struct Desk {
    address: SocketAddr,
    requests: Vec<Vec<u8>>,
    kept: bool,
    next: RefCell<usize>,
    /// When requests were due that no connection has taken yet.
    due: RefCell<VecDeque<Instant>>,
    wake: Notify,
    latencies_us: RefCell<Vec<f64>>,
    failures: RefCell<BTreeMap<String, u64>>,
}

/// Runs a load to its end.
pub(super) async fn run(load: Load) -> Result<Report> {
    ensure!(!load.hosts.is_empty() && load.connections > 0, "nothing to ask");
    let head = |host: &String| format!("GET /hello HTTP/1.1\r\nhost: {host}\r\nuser-agent: podlight-bench\r\n\r\n");
    let desk = Rc::new(Desk {
        address: load.address,
        requests: load.hosts.iter().map(|host| head(host).into_bytes()).collect(),
        kept: load.kept,
        next: RefCell::default(),
        due: RefCell::default(),
        wake: Notify::new(),
        latencies_us: RefCell::default(),
        failures: RefCell::default(),
    });
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        connections.push(Connection::open(load.address).await.context("the proxy does not accept")?);
    }
    let begun = Instant::now();
    let local = LocalSet::new();
    let pace = Pace { end: begun + Duration::from_secs_f64(load.seconds), most: load.requests.unwrap_or(u64::MAX) };
    local
        .run_until(async {
            if let Some(rate) = load.rate {
                open(&desk, connections, rate, pace).await
            } else {
                closed(&desk, connections, pace).await
            }
        })
        .await?;
    let seconds = begun.elapsed().as_secs_f64();
    let latencies = desk.latencies_us.take();
    Ok(Report {
        answered: latencies.len() as u64,
        failures: desk.failures.take(),
        seconds,
        p50_us: percentile(&latencies, 50),
        p99_us: percentile(&latencies, 99),
        worst_us: percentile(&latencies, 100),
    })
}

#[derive(Clone, Copy)]
struct Pace {
    end: Instant,
    most: u64,
}

/// Each connection asks again as soon as it is answered.
async fn closed(desk: &Rc<Desk>, connections: Vec<Connection>, pace: Pace) -> Result<()> {
    let share = pace.most.div_ceil(connections.len() as u64);
    let tasks: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(number, mut connection)| {
            let desk = Rc::clone(desk);
            tokio::task::spawn_local(async move {
                let mut asked = 0;
                while asked < share && Instant::now() < pace.end {
                    asked += 1;
                    if !desk.ask(&mut connection, number, Instant::now()).await {
                        connection = Connection::open(desk.address).await?;
                    }
                }
                Ok::<_, anyhow::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Requests are due at fixed times; a free connection takes each.
async fn open(desk: &Rc<Desk>, connections: Vec<Connection>, rate: f64, pace: Pace) -> Result<()> {
    let interval = Duration::from_secs_f64(1.0 / rate);
    let tasks: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(number, mut connection)| {
            let desk = Rc::clone(desk);
            tokio::task::spawn_local(async move {
                loop {
                    let Some(due) = desk.take_due() else {
                        desk.wake.notified().await;
                        continue;
                    };
                    if !desk.ask(&mut connection, number, due).await {
                        // The next one finds out when it still refuses.
                        while let Err(error) = Connection::open(desk.address).await.map(|fresh| connection = fresh) {
                            desk.fail(&format!("{error:#}"));
                            tokio::time::sleep(interval).await;
                        }
                    }
                }
            })
        })
        .collect();
    let timer = Timer::every(interval)?;
    let begun = Instant::now();
    let mut asked = 0_u64;
    while asked < pace.most && Instant::now() < pace.end {
        for _ in 0..timer.tick().await? {
            asked += 1;
            desk.due.borrow_mut().push_back(begun + interval.mul_f64(asked as f64));
            desk.wake.notify_one();
        }
    }
    let finished = || desk.latencies_us.borrow().len() as u64 + desk.failures.borrow().values().sum::<u64>() >= asked;
    let last = Instant::now();
    while !finished() && last.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

impl Desk {
    fn take_due(&self) -> Option<Instant> {
        self.due.borrow_mut().pop_front()
    }

    /// Asks once. False when the connection is of no more use.
    async fn ask(&self, connection: &mut Connection, number: usize, due: Instant) -> bool {
        let all = self.requests.len();
        let at = if self.kept { number % all } else { self.next.replace_with(|next| (*next + 1) % all) };
        let answer = tokio::time::timeout(PATIENCE, connection.exchange(&self.requests[at])).await;
        match answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time"))) {
            Ok(200) => {
                self.latencies_us.borrow_mut().push(due.elapsed().as_secs_f64() * 1e6);
                true
            }
            Ok(status) => {
                self.fail(&format!("status {status}"));
                true
            }
            Err(error) => {
                self.fail(&format!("{error:#}"));
                false
            }
        }
    }

    fn fail(&self, how: &str) {
        *self.failures.borrow_mut().entry(how.to_owned()).or_default() += 1;
    }
}

/// A kept connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens one.
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(READ_BYTES) })
    }

    /// Sends a request and reads its answer, which has a length. Returns its status.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await?;
        self.answer().await
    }

    /// Sends without waiting for the answer.
    pub(super) async fn send(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(request).await?)
    }

    /// Reads an answer that has a length. Returns its status.
    pub(super) async fn answer(&mut self) -> Result<u16> {
        self.buffer.clear();
        loop {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "closed before an answer");
            let Some(end) = self.buffer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4) else {
                continue;
            };
            let head = &self.buffer[..end];
            if self.buffer.len() - end >= length(head).context("an answer without a length")? {
                let digits = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
                return Ok(digits.context("no status")?.parse()?);
            }
        }
    }
}

/// The content length of a head.
fn length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\ncontent-length:";
    let at = head.windows(NAME.len()).position(|name| name.eq_ignore_ascii_case(NAME))? + NAME.len();
    let digits = head[at..].iter().skip_while(|byte| **byte == b' ').take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0')))
}

/// A timer without the millisecond of the runtime's own.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn every(interval: Duration) -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let each = Timespec { tv_sec: interval.as_secs().try_into()?, tv_nsec: interval.subsec_nanos().into() };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: each, it_value: each })?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, which this crate forbids; an OwnedFd is what both ask for"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(Self(timer))
    }

    /// How often it has expired since the last call, at least once.
    async fn tick(&self) -> Result<u64> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?));
            if let Ok(read) = read {
                read?;
                return Ok(u64::from_ne_bytes(count));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_found_in_any_case() {
        assert_eq!(length(b"HTTP/1.1 200 OK\r\nContent-Length:  14\r\n\r\n"), Some(14));
        assert_eq!(length(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx: y\r\n\r\n"), Some(0));
        assert_eq!(length(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    }
}
