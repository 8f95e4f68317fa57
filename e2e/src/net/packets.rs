//! Whole frames from and to the one device of a namespace, by a packet socket.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, recvfrom, sendto,
    socket_with,
};

use super::frame::Seen;
use super::pair::CLIENT_MAC;

/// Longest frame: the largest MTU, its Ethernet header and two tags.
const FRAME_BYTES: usize = 9000 + 14 + 8;

/// `ETH_P_ALL` in the byte order of the wire, of `if_ether.h`.
const EVERYTHING: u32 = (0x0003_u16).to_be() as u32;

/// Longest wait for a frame that is wanted.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends and receives frames.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
    /// The device, as the kernel names it to whoever receives from it.
    device: SocketAddrAny,
}

impl PacketSocket {
    /// Opens one in the calling thread's namespace, which must be a client's. It learns the device from a frame that it makes go
    /// out there.
    ///
    /// # Errors
    /// When it may not.
    pub fn here() -> Result<Self> {
        let protocol = Protocol::from_raw(EVERYTHING.try_into().context("no protocol")?);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol))
            .context("no packet socket: it takes CAP_NET_RAW")?;
        // To the discard port of the far end: nobody answers there, and the frame tells its device.
        let probe = std::net::UdpSocket::bind("0.0.0.0:0")?;
        probe.send_to(b"which device is this?", (super::pair::SERVER, 9))?;
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; FRAME_BYTES];
        loop {
            ensure!(readable(&socket, deadline)?, "no frame goes out");
            let (frame, _, from) = recvfrom(&socket, &mut buffer[..], RecvFlags::empty())?;
            if buffer[..frame][6..].starts_with(&CLIENT_MAC) {
                return Ok(Self { socket, device: from.context("a frame from nowhere")? });
            }
        }
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// When the device does not take it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(&self.socket, frame, SendFlags::empty(), &self.device)?;
        Ok(())
    }

    /// The next frame from the far end that `wanted` takes something from. None when none comes within `patience`.
    ///
    /// # Errors
    /// When the device has gone.
    pub fn receive<T>(&self, patience: Duration, mut wanted: impl FnMut(&Seen) -> Option<T>) -> Result<Option<T>> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; FRAME_BYTES];
        while readable(&self.socket, deadline)? {
            let (frame, _, _) = match recvfrom(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::AGAIN) => continue,
                other => other?,
            };
            let frame = &buffer[..frame];
            // What we send comes by here, too.
            if frame.get(6..12) == Some(&CLIENT_MAC[..]) {
                continue;
            }
            if let Some(found) = Seen::parse(frame).as_ref().and_then(&mut wanted) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Waits for a frame that is wanted.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn expect<T>(&self, what: &str, wanted: impl FnMut(&Seen) -> Option<T>) -> Result<T> {
        self.receive(PATIENCE, wanted)?.with_context(|| format!("{what}: not within {PATIENCE:?}"))
    }

    /// The socket and the device, for whoever sends many frames at once.
    pub(super) fn parts(&self) -> (&OwnedFd, &SocketAddrAny) {
        (&self.socket, &self.device)
    }
}

fn readable(socket: &OwnedFd, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: left.subsec_nanos().into() };
        let mut wanted = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
        match poll(&mut wanted, Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
