//! Many frames at once, into the namespaces of a test and nowhere else: SYNs from addresses that nobody has, as an attacker
//! sends them. Bounded in count and time, both named by whoever asks.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use serde::{Deserialize, Serialize};

use super::frame::Segment;
use super::packets::PacketSocket;

/// Frames that are made before the first is sent and go round: few enough for a cache, far more than a bucket of anything.
const FRAMES: u32 = 4096;

/// Frames of one system call.
const BATCH: usize = 64;

/// Longest flood: what is longer is a mistake.
const LONGEST: Duration = Duration::from_secs(60);

/// What was sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flooded {
    /// Frames that the device took.
    pub sent: u64,
    /// In this time.
    pub seconds: f64,
}

impl Flooded {
    /// Frames a second.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.seconds
    }
}

/// SYNs to `to` from 198.18.0.0/15, which nobody has (RFC 2544).
///
/// # Errors
/// When `to` is not of that family.
pub fn spoofed_syns(to: SocketAddr) -> Result<Vec<Vec<u8>>> {
    let frames = (0..FRAMES).map(|n| {
        // A step that is odd goes through all addresses.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n.wrapping_mul(40_503) % (1 << 17));
        let port = u16::try_from(1024 + n % 60_000).unwrap_or(1024);
        Segment::syn(SocketAddr::from((address, port)), to, n.wrapping_mul(2_654_435_761)).frame()
    });
    frames.collect()
}

/// Sends `frames` round and round until `count` have gone out or `time` is over, as fast as the device takes them.
///
/// # Errors
/// When it is asked for too much, or the device has gone.
pub fn flood(socket: &PacketSocket, frames: &[Vec<u8>], count: u64, time: Duration) -> Result<Flooded> {
    ensure!(time <= LONGEST, "a flood of {time:?}: {LONGEST:?} is the longest");
    ensure!(frames.len() >= BATCH, "too few frames");
    let (fd, device) = socket.parts();
    let slices: Vec<[IoSlice<'_>; 1]> = frames.iter().map(|frame| [IoSlice::new(frame)]).collect();
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
    let (begun, mut sent) = (Instant::now(), 0_u64);
    let mut batches = slices.chunks_exact(BATCH).cycle();
    while sent < count && begun.elapsed() < time {
        let batch = batches.next().context("no frames")?;
        let batch = batch.iter().zip(&mut controls);
        let mut messages: Vec<MMsgHdr<'_>> =
            batch.map(|(slice, control)| MMsgHdr::new_with_addr(device, slice, control)).collect();
        match sendmmsg(fd, &mut messages, SendFlags::empty()) {
            Ok(taken) => sent += taken as u64,
            // The device's queue is full: it takes more as soon as the other core has had its turn.
            Err(Errno::NOBUFS | Errno::AGAIN) => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Flooded { sent, seconds: begun.elapsed().as_secs_f64() })
}
