//! A client's and a server's namespace with one cable between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::namespace::Namespace;
use super::object::{SECTION, write_pass};
use super::packets::PacketSocket;
use super::tools::install;

/// The device at either end: each is the only one in its namespace.
pub const DEVICE: &str = "health0";

/// Where the server is.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 2);
/// Where the client is.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 1);
/// Where the server is, too.
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 2);
/// Where the client is, too.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, 1);
/// Whom nobody is: the server's end knows the way there, the client's end takes nothing for it.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 203, 7, 7);
/// As [`STRANGER`].
pub const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 7, 7);
/// The server's hardware address.
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The client's.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A cable with something at either end.
#[derive(Debug)]
pub struct Pair {
    /// Where probes come from.
    pub client: Namespace,
    /// Where they are answered.
    pub server: Namespace,
}

impl Pair {
    /// Lays a cable of this MTU. Both ends know each other's hardware address, so that no packet is about that.
    ///
    /// # Errors
    /// When this process may not, or a program is missing that could not be installed.
    pub async fn new(mtu: u32) -> Result<Self> {
        install().await?;
        let pair = Self { client: Namespace::new().await?, server: Namespace::new().await? };
        let (mtu, peer) = (mtu.to_string(), pair.server.id().to_string());
        let (here, there) = (mac(CLIENT_MAC), mac(SERVER_MAC));
        let ours = ["link", "add", DEVICE, "mtu", &mtu, "address", &here, "type", "veth"];
        let theirs = ["peer", "name", DEVICE, "mtu", &mtu, "address", &there, "netns", &peer];
        pair.client.run("ip", &[&ours[..], &theirs[..]].concat()).await?;
        let ends = [
            (&pair.client, CLIENT, CLIENT6, &there, vec![IpAddr::from(SERVER), SERVER6.into()]),
            (
                &pair.server,
                SERVER,
                SERVER6,
                &here,
                vec![IpAddr::from(CLIENT), CLIENT6.into(), STRANGER.into(), STRANGER6.into()],
            ),
        ];
        for (namespace, v4, v6, far, known) in ends {
            // No router or multicast chatter: every packet on the cable is the test's.
            namespace.sysctl(&format!("ipv6/conf/{DEVICE}/router_solicitations"), "0")?;
            namespace.run("ip", &["address", "add", &format!("{v4}/16"), "dev", DEVICE]).await?;
            namespace.run("ip", &["address", "add", &format!("{v6}/64"), "dev", DEVICE, "nodad"]).await?;
            namespace.run("ip", &["link", "set", DEVICE, "up"]).await?;
            for address in known {
                let address = address.to_string();
                let neighbour = ["neigh", "replace", &address, "lladdr", far, "dev", DEVICE, "nud", "permanent"];
                namespace.run("ip", &neighbour).await?;
            }
        }
        // Whoever else there is, the client's end has sent it.
        pair.server.run("ip", &["route", "add", "default", "via", &CLIENT.to_string()]).await?;
        Ok(pair)
    }

    /// Gives the client's end its own program, which passes everything, in native mode.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub async fn pass_at_client(&self) -> Result<()> {
        pass_at(&self.client, "xdpdrv").await
    }

    /// The kernel's number of the program that [`Self::pass_at_client`] has put there.
    ///
    /// # Errors
    /// When there is none.
    pub async fn client_program(&self) -> Result<u32> {
        let said = self.client.run("ip", &["-details", "-json", "link", "show", DEVICE]).await?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let id = said[0]["xdp"]["prog"]["id"].as_u64().context("no program at the client's end")?;
        Ok(id.try_into()?)
    }

    /// The same at the server's end in this mode (`xdpdrv`, `xdpgeneric`): a program of somebody else's.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub async fn pass_at_server(&self, mode: &str) -> Result<()> {
        pass_at(&self.server, mode).await
    }

    /// Switches offloads of both ends, as `ethtool -K` takes them: `["tx", "off"]`.
    ///
    /// # Errors
    /// When a device cannot.
    pub async fn offload(&self, switches: &[&str]) -> Result<()> {
        for end in [&self.client, &self.server] {
            end.run("ethtool", &[&["-K", DEVICE], switches].concat()).await?;
        }
        Ok(())
    }

    /// Packets that either end has not taken, for want of room.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub async fn dropped(&self) -> Result<u64> {
        let mut dropped = 0;
        for end in [&self.client, &self.server] {
            let said = end.run("ip", &["-statistics", "-json", "link", "show", DEVICE]).await?;
            let said: serde_json::Value = serde_json::from_str(&said)?;
            for way in ["rx", "tx"] {
                dropped += said[0]["stats64"][way]["dropped"].as_u64().context("no count")?;
            }
        }
        Ok(dropped)
    }

    /// Connects from the client's namespace. Whatever is done with the connection, it does not take longer than `patience` either.
    ///
    /// # Errors
    /// When nobody accepts.
    pub fn connect(&self, to: SocketAddr, patience: Duration) -> Result<TcpStream> {
        let stream = self.client.within(|| Ok(TcpStream::connect_timeout(&to, patience)?));
        let stream = stream.with_context(|| format!("no connection to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(stream)
    }

    /// Frames to and from the client's device.
    ///
    /// # Errors
    /// When it may not.
    pub fn packets(&self) -> Result<PacketSocket> {
        self.client.within(PacketSocket::here)
    }
}

/// Both families' addresses of the server at a port.
pub fn servers(port: u16) -> [SocketAddr; 2] {
    [IpAddr::from(SERVER), IpAddr::from(SERVER6)].map(|address| SocketAddr::new(address, port))
}

async fn pass_at(namespace: &Namespace, mode: &str) -> Result<()> {
    let path = namespace.folder().join("pass.o");
    write_pass(&path)?;
    let path = path.to_str().context("a path that is no text")?;
    namespace.run("ip", &["link", "set", "dev", DEVICE, mode, "object", path, "section", SECTION]).await.map(drop)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
