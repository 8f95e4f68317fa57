//! Pods' addresses in a network namespace of this process's own, whose packets can be dropped and passed again: what a node looks like
//! that is gone, or cut off for a while. Sockets that are open stay open, and nobody is told. Needs root and `ip` (iproute2), and the
//! kernel takes all of it away with this process, however that ends.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, anyhow, bail, ensure};

use crate::net::namespace;
use crate::net::tools::output;

/// Numbers of islands that one process tries: others may have theirs.
const NUMBERS: u8 = 64;

/// A namespace, joined to this one by a pair of devices.
#[derive(Debug)]
pub struct Island {
    namespace: Arc<Namespace>,
    number: u8,
    next: AtomicU8,
}

/// A network namespace for the sockets of this runtime.
#[derive(Debug)]
pub struct Namespace(namespace::Namespace);

impl Namespace {
    /// Does something on a thread that is in here. Sockets made there stay in here.
    ///
    /// # Errors
    /// When it fails.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let runtime = tokio::runtime::Handle::current();
        self.0.within(|| {
            let _runtime = runtime.enter();
            act()
        })
    }

    async fn ip(&self, arguments: &str) -> Result<()> {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        self.0.run("ip", &arguments).await.map(drop)
    }
}

impl Island {
    /// Makes one.
    ///
    /// # Errors
    /// When this process may not: it takes root, and a test that cannot have it has failed.
    pub async fn new() -> Result<Self> {
        let namespace = Arc::new(Namespace(namespace::Namespace::new().await?));
        // What is for no address of it is to be dropped, not sent back.
        namespace.0.sysctl("ipv4/ip_forward", "0")?;
        let first = u8::try_from(std::process::id() % 256)?;
        for number in (0..NUMBERS).map(|n| first.wrapping_add(n)) {
            let device = device(number);
            let pair = format!("link add {device} type veth peer name eth0 netns {}", namespace.0.id());
            if ip(&pair).await.is_err() {
                // Somebody else's.
                continue;
            }
            let (near, far) = (format!("198.19.{number}.1"), format!("198.19.{number}.2"));
            namespace.ip(&format!("addr add {far}/30 dev eth0")).await?;
            namespace.ip("link set eth0 up").await?;
            ip(&format!("addr add {near}/30 dev {device}")).await?;
            ip(&format!("link set {device} up")).await?;
            ip(&format!("route add 198.18.{number}.0/24 via {far}")).await?;
            namespace.ip(&format!("route add default via {near}")).await?;
            return Ok(Self { namespace, number, next: AtomicU8::new(1) });
        }
        bail!(
            "no island is free, or this process may make none: {:#}",
            ip("link show").await.err().unwrap_or_else(|| anyhow!("`ip` works"))
        )
    }

    /// An address that no other pod of it has.
    ///
    /// # Errors
    /// When there are no more.
    pub async fn address(&self) -> Result<IpAddr> {
        let host = self.next.fetch_add(1, Ordering::Relaxed);
        ensure!((1..255).contains(&host), "an island has 254 addresses");
        let address = Ipv4Addr::new(198, 18, self.number, host).into();
        self.pass(address).await?;
        Ok(address)
    }

    /// The namespace, for whoever listens there.
    pub fn namespace(&self) -> Arc<Namespace> {
        Arc::clone(&self.namespace)
    }

    /// Drops every packet for an address from now on, and all that would come from it.
    ///
    /// # Errors
    /// When they were dropped before.
    pub async fn drop_packets(&self, address: IpAddr) -> Result<()> {
        self.namespace.ip(&format!("addr del {address}/32 dev lo")).await
    }

    /// Passes packets for an address again.
    ///
    /// # Errors
    /// When they were not dropped.
    pub async fn pass(&self, address: IpAddr) -> Result<()> {
        self.namespace.ip(&format!("addr add {address}/32 dev lo")).await
    }
}

impl Drop for Island {
    fn drop(&mut self) {
        // The kernel would do so once the last connection in there has given up.
        let _ = Command::new("ip").args(["link", "del", &device(self.number)]).status();
    }
}

fn device(number: u8) -> String {
    format!("plisland{number}")
}

async fn ip(arguments: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    output(command).await.map(drop)
}
