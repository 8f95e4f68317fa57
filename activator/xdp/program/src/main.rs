//! The XDP program: a stateless responder that answers `GET` probes from the readiness map before a socket exists.
//!
//! A SYN to a port that is taken is answered with a SYN-ACK whose sequence number is one of the kernel's SYN cookies. The
//! first segment with data carries the same number back, so that the request is checked, parsed and answered in one packet
//! that also ends the connection; nothing is remembered between packets. What needs to be known later rides in the
//! timestamp that the peer echoes. Packets to other ports, and whatever is not ours, pass untouched.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answer;
mod flow;
mod frame;
mod options;
mod packet;

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    macros::{map, xdp},
    maps::{Array, HashMap, PerCpuArray},
    programs::XdpContext,
};
use podlight_xdp::{Beat, Counter, Entry, Key, ListenKey, Ports, Settings};

use crate::frame::{Scratch, forget};

/// The answers. The loader sets the size; without preallocation memory grows with use.
#[map]
static ANSWERS: HashMap<Key, Entry> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// The ports that are taken on some addresses, and whether their answers are shared.
#[map]
static LISTENING: HashMap<ListenKey, u32> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// A bit for each port.
#[map]
static PORTS: Array<Ports> = Array::with_max_entries(1024, 0);

/// The writer's heartbeat.
#[map]
static BEAT: Array<Beat> = Array::with_max_entries(1, 0);

/// What the loader says.
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// How many packets had which fate.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Where a packet is taken apart and its reply is built.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What to do with a packet, and how to count it.
enum Fate {
    Pass(Counter),
    Drop(Counter),
    Reply(Counter),
}

/// The entry point.
#[xdp(frags)]
pub fn podlight(ctx: XdpContext) -> u32 {
    let Some(mut packet) = packet::classify(&ctx) else { return XDP_PASS };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return XDP_PASS };
    // SAFETY: the element is this CPU's own and programs do not interrupt each other on it.
    let scratch = unsafe { &mut *scratch };
    packet.link = forget(&mut scratch.forgotten, packet.link);
    let Some(fate) = flow::run(&ctx, packet, scratch) else { return XDP_PASS };
    let (action, counter) = match fate {
        Fate::Pass(counter) => (XDP_PASS, counter),
        Fate::Drop(counter) => (XDP_DROP, counter),
        Fate::Reply(counter) => (XDP_TX, counter),
    };
    if let Some(count) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the element is this CPU's own.
        unsafe { *count += 1 };
    }
    action
}

/// Nothing here panics; the language wants a handler all the same.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The helpers for SYN cookies are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
