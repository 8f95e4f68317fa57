//! One side of a TCP connection, by hand: every segment is the test's. Its address is nobody's, so that no kernel at the client's
//! end takes part.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::frame::{Seen, Segment};
use super::packets::PacketSocket;
use super::pair::{STRANGER, STRANGER6};

/// How long a silence is listened to before it counts as one: beyond what two kernels on one machine take.
const SILENCE: Duration = Duration::from_millis(200);

/// A connection that the test speaks for.
pub struct Flow<'a> {
    packets: &'a PacketSocket,
    /// Us.
    pub from: SocketAddr,
    /// Them.
    pub to: SocketAddr,
    /// What we send next.
    pub sequence: u32,
    /// What we expect next.
    pub expected: u32,
}

impl<'a> Flow<'a> {
    /// One that nothing was sent on, from a port of its own.
    pub fn new(packets: &'a PacketSocket, to: SocketAddr) -> Self {
        static PORTS: AtomicU16 = AtomicU16::new(0);
        let port = 20_000 + PORTS.fetch_add(1, Ordering::Relaxed) % 40_000;
        let address = if to.is_ipv4() { IpAddr::from(STRANGER) } else { IpAddr::from(STRANGER6) };
        let sequence = 0x1000_0000 + u32::from(port);
        Self { packets, from: SocketAddr::new(address, port), to, sequence, expected: 0 }
    }

    /// One that is established, or would be if the other end kept state.
    ///
    /// # Errors
    /// When the other end does not accept it, or not as a TCP peer does.
    pub fn open(packets: &'a PacketSocket, to: SocketAddr) -> Result<Self> {
        let mut flow = Self::new(packets, to);
        flow.packets.send(&Segment::syn(flow.from, to, flow.sequence).frame()?)?;
        let seen = flow.expect("a SYN-ACK")?;
        flow.accept(&seen)?;
        Ok(flow)
    }

    /// Takes a SYN-ACK.
    ///
    /// # Errors
    /// When it is none that a TCP peer would send.
    pub fn accept(&mut self, seen: &Seen) -> Result<()> {
        let header = &seen.header;
        ensure!(header.syn && header.ack && !header.rst && !header.fin && seen.intact, "no SYN-ACK: {seen:?}");
        ensure!(header.acknowledgment_number == self.sequence.wrapping_add(1), "of another SYN: {seen:?}");
        ensure!(header.window_size > 0 && seen.payload.is_empty(), "no room for a request: {seen:?}");
        self.sequence = self.sequence.wrapping_add(1);
        self.expected = header.sequence_number.wrapping_add(1);
        Ok(())
    }

    /// A segment from here and now.
    pub fn segment(&self) -> Segment {
        Segment::new(self.from, self.to, self.sequence).ack(self.expected)
    }

    /// Sends a segment.
    ///
    /// # Errors
    /// When the device does not take it.
    pub fn send(&self, segment: &Segment) -> Result<()> {
        self.packets.send(&segment.frame()?)
    }

    /// The next segment of this flow.
    ///
    /// # Errors
    /// When none comes.
    pub fn expect(&self, what: &str) -> Result<Seen> {
        self.packets.expect(what, |seen| self.is_mine(seen).then(|| seen.clone()))
    }

    /// The next segment of this flow, if one comes before it is silent.
    ///
    /// # Errors
    /// When the device has gone.
    pub fn heard(&self) -> Result<Option<Seen>> {
        self.packets.receive(SILENCE, |seen| self.is_mine(seen).then(|| seen.clone()))
    }

    fn is_mine(&self, seen: &Seen) -> bool {
        (seen.from, seen.to) == (self.to, self.from)
    }
}
