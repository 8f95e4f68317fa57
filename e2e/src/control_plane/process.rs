//! Child processes that cannot outlive this one: killed on drop, and by the kernel when this process dies in any other way.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::lock;

/// Lines of a log that an error quotes.
const LOG_TAIL_LINES: usize = 30;

/// A running child whose output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `program`, with arguments and environment as `configure` sets them, appending its output to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be started. A program that does not exist ends at once with status
    /// 127 and says so in the log: setpriv finds it, not we.
    pub fn start(program: &Path, log: &Path, configure: impl FnOnce(&mut Command)) -> Result<Self> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let output = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        configure(&mut command);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command).with_context(|| format!("cannot start {name} through setpriv (util-linux)"))?;
        Ok(Self { child: Mutex::new(child), name, log: log.to_owned() })
    }

    /// The program's file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's id of the process.
    pub fn id(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        matches!(self.exit_status(), Ok(None))
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn exit_status(&self) -> io::Result<Option<ExitStatus>> {
        lock(&self.child).try_wait()
    }

    /// Stops it from running on until [`Process::resume`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it run on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end (SIGTERM) and does not wait.
    ///
    /// # Errors
    /// When it has ended.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// The last 30 lines of the log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let mut child = lock(&self.child);
        // Once waited for, the id may be another process's.
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("{} has ended with {status}", self.name);
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Fails only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

type Spawn = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Starts `command` from a thread that lives as long as this process: a parent-death signal is sent when the parent *thread*
/// ends, and the thread of a test ends with the test while others may still use the child.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<Spawn>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::channel::<Spawn>();
        std::thread::spawn(move || {
            for (mut command, reply) in requests {
                // The asker waits for it.
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let gone = || io::Error::other("the spawning thread has ended");
    let (reply, child) = mpsc::sync_channel(1);
    SPAWNER.send((command, reply)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

/// A loopback port that nobody listens on, below the range that the kernel hands out to clients: there, a client that keeps
/// dialling a stopped server's port would sooner or later connect to itself, or take the port for another connection.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        // Far apart for test processes that start together; distinct ports within one come from counting.
        AtomicU16::new((now ^ std::process::id().wrapping_mul(7919)) as u16)
    });
    (0..COUNT)
        .map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("no free loopback port")
}
