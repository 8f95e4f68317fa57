//! A network namespace, which lives as long as the process that holds it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::control_plane::process::Process;
use crate::eventually::eventually;
use crate::net::tools::{output, program};

/// A namespace of its own, with nothing in it but a loopback device that is up.
#[derive(Debug)]
pub struct Namespace {
    // Ended before the folder that it logs into.
    holder: Process,
    folder: TempDir,
    /// Programs so far.
    started: AtomicU32,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// When this process may not: it takes root, and a test that cannot have it has failed.
    pub async fn new() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces take root: run this as root");
        let folder = tempfile::Builder::new().prefix("podlight-net.").tempdir()?;
        let holder = Process::start(Path::new("unshare"), &folder.path().join("holder.log"), |command| {
            command.args(["--net", "--", "sleep", "infinity"]);
        })?;
        let namespace = Self { holder, folder, started: AtomicU32::new(0) };
        let ours = fs::read_link("/proc/self/ns/net")?;
        eventually("the namespace is there", async || {
            ensure!(namespace.holder.is_running(), "no namespace: {}", namespace.holder.log_tail());
            let theirs = fs::read_link(namespace.path())?;
            let named = fs::read_to_string(format!("/proc/{}/comm", namespace.holder.id()))?;
            Ok((theirs != ours && named.trim() == "sleep").then_some(()))
        })
        .await?;
        namespace.run("ip", &["link", "set", "lo", "up"]).await?;
        Ok(namespace)
    }

    /// A folder that goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What `nsenter --net=` takes.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// The kernel's id of the process that holds it: what `ip link` takes for a namespace.
    pub fn id(&self) -> u32 {
        self.holder.id()
    }

    /// A program to be run in here.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program(name));
        command
    }

    /// Runs a program in here to its end and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be run or fails; the error has what it said.
    pub async fn run(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(name);
        command.args(arguments);
        output(command).await
    }

    /// Starts a program in here on these cores (`0`, `0,1`), ended on drop.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, arguments: &[&str], cores: Option<&str>) -> Result<Process> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.path().join(format!("{}-{number}.log", name.rsplit('/').next().unwrap_or(name)));
        let path = self.path();
        Process::start(Path::new("nsenter"), &log, |command| {
            command.arg(format!("--net={}", path.display())).arg("--");
            if let Some(cores) = cores {
                command.args(["taskset", "-c", cores]);
            }
            command.arg(program(name)).args(arguments);
        })
    }

    /// Does something on a thread that is in here. Sockets made there stay in here.
    ///
    /// # Errors
    /// When it fails.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                act()
            });
            thread.join().map_err(|_| anyhow!("a thread in a namespace panicked"))?
        })
    }

    /// Moves the calling thread in here, and with it every thread that it starts from now on.
    ///
    /// # Errors
    /// When it may not.
    pub fn enter(&self) -> Result<()> {
        let file = File::open(self.path()).context("the namespace has gone")?;
        Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Sets a value below `/proc/sys/net`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.within(|| fs::write(&path, value).with_context(|| format!("cannot set {path}")))
    }

    /// Reads a file below `/proc/net`.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn proc_net(&self, name: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{name}");
        self.within(|| fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))
    }

    /// Sockets in here that are in one of these states, as `/proc/net/tcp` has them (`06` is TIME_WAIT), of one local port.
    ///
    /// # Errors
    /// When the kernel's list cannot be read.
    pub fn sockets(&self, port: u16, states: &[&str]) -> Result<usize> {
        let mut count = 0;
        for list in ["tcp", "tcp6"] {
            for line in self.proc_net(list)?.lines().skip(1) {
                let mut fields = line.split_whitespace();
                let (Some(local), Some(state)) = (fields.nth(1), fields.nth(1)) else {
                    bail!("a line of {list} that is none: {line}");
                };
                count += usize::from(local.ends_with(&format!(":{port:04X}")) && states.contains(&state));
            }
        }
        Ok(count)
    }

    /// Writes a value to a file of a device in `/sys/class/net`, which shows the devices of whoever mounted it.
    ///
    /// # Errors
    /// When there is none of this name.
    pub async fn write_sys(&self, device: &str, file: &str, value: &str) -> Result<()> {
        let script = format!("mount -t sysfs sysfs /sys && echo {value} > /sys/class/net/{device}/{file}");
        self.run("unshare", &["--mount", "sh", "-ec", &script]).await.map(drop)
    }
}
