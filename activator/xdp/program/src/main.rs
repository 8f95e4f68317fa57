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
        xdp_md,
    },
    macros::{map, xdp},
    maps::{Array, HashMap, PerCpuArray},
    programs::XdpContext,
};
use podlight_xdp::{Beat, Counter, Entry, Key, ListenKey, Ports, Settings, ShortKey};

use crate::{
    frame::{Scratch, Segment, forget},
    packet::{Carrier, Packet},
};

/// The answers to short paths. The loader sets the size; without preallocation memory grows with use.
#[map]
static ANSWERS: HashMap<ShortKey, Entry> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

/// The answers to the other paths.
#[map]
static LONG: HashMap<Key, Entry> = HashMap::with_max_entries(1, BPF_F_NO_PREALLOC);

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
    Reply(Counter, Segment),
}

/// The entry point.
#[xdp(frags)]
pub fn podlight(ctx: XdpContext) -> u32 {
    match packet::carrier(ctx.ctx) {
        Carrier::V4 => podlight_v4(ctx.ctx),
        Carrier::V6 => podlight_v6(ctx.ctx),
        Carrier::Tagged => podlight_tagged(ctx.ctx),
        Carrier::Other => XDP_PASS,
    }
}

/// Packets without tags, where everything up to TCP's options has its place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn podlight_v4(ctx: *mut xdp_md) -> u32 {
    packet::plain::<false>(ctx).map_or(XDP_PASS, |packet| act(ctx, packet))
}

/// As [`podlight_v4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn podlight_v6(ctx: *mut xdp_md) -> u32 {
    packet::plain::<true>(ctx).map_or(XDP_PASS, |packet| act(ctx, packet))
}

/// Packets with tags, once for all of them.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn podlight_tagged(ctx: *mut xdp_md) -> u32 {
    packet::behind_tags(ctx).map_or(XDP_PASS, |packet| act(ctx, packet))
}

/// Does with a packet to a port that may be taken what is to be done with it.
#[inline(always)]
fn act(ctx: *mut xdp_md, mut packet: Packet) -> u32 {
    let ctx = XdpContext::new(ctx);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return XDP_PASS };
    // SAFETY: the element is this CPU's own and programs do not interrupt each other on it.
    let scratch = unsafe { &mut *scratch };
    if !packet.is_near {
        packet.link = forget(&mut scratch.forgotten, packet.link);
    }
    let Some(fate) = flow::run(&ctx, &mut packet, scratch) else { return XDP_PASS };
    let (action, counter) = match fate {
        Fate::Pass(counter) => (XDP_PASS, counter as u32),
        Fate::Drop(counter) => (XDP_DROP, counter as u32),
        Fate::Reply(counter, segment) => {
            // Once for all replies.
            let small = [counter as u8, segment.flags, segment.options as u8, segment.words as u8];
            let small = forget(&mut scratch.forgotten, u32::from_ne_bytes(small));
            let [counter, flags, options, words] = small.to_ne_bytes();
            let segment = Segment { flags, options: options.into(), words: words.into(), ..segment };
            if scratch.send(&ctx, packet, &segment) {
                (XDP_TX, counter.into())
            } else {
                (XDP_DROP, Counter::Failed as u32)
            }
        }
    };
    if let Some(count) = COUNTERS.get_ptr_mut(counter) {
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
