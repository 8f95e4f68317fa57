//! A packet's headers, taken apart in memory of this CPU's own, and the reply built in the same place.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    helpers::{
        bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
    },
    programs::XdpContext,
};
use podlight_xdp::{Beat, HEAD_BYTES, Head, Key, ListenKey};

use crate::packet::{Packet, bounds};

/// Memory for one packet. The IP header ends where TCP's begins, whichever version it has, so that one copy takes both in
/// and one puts them back; words are as they stand in the packet.
#[repr(C, align(8))]
pub struct Scratch {
    /// The Ethernet header, when it has to move.
    link: [u8; 24],
    /// IPv6, or IPv4 in the last five words.
    pub ip: [u32; 10],
    /// TCP's fixed header.
    pub tcp: Tcp,
    /// TCP's options and, in a reply, the data behind them.
    pub rest: [u32; REST],
    /// The first bytes of the request.
    pub head: Head,
    /// The question. It lies behind the head, see [`Scratch::load_head`].
    pub key: Key,
    /// See [`forget`].
    pub forgotten: u32,
    /// The address and port that are asked.
    pub listen: ListenKey,
    /// Addresses that a port was found taken on, each at a place that it hashes to.
    pub known: [Known; KNOWN],
    /// The last heartbeat that was found fresh, and in which of the kernel's ticks.
    pub fresh: (Beat, u64),
}

/// A power of two.
pub const KNOWN: usize = 8;

/// A port that is taken on an address, and what the map of listeners said of it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Known {
    pub address: [u32; 4],
    pub port: u32,
    pub is_shared: u32,
    /// [`podlight_xdp::Ports::version`] when it was looked up.
    pub version: u64,
}

/// Where parts of [`Scratch`] begin, in words.
const IP: usize = offset_of!(Scratch, ip) / 4;
const REST_AT: usize = offset_of!(Scratch, rest) / 4;
const HEAD: usize = (offset_of!(Scratch, head) + Head::START) / 4;

/// Bytes of a request that are read in place. They hold the line of one for a short path, and no usual request is shorter.
pub const NEAR: u32 = 64;

/// Options of 12 bytes, the reply, and a word that fills up.
const REST: usize = 12 / 4 + podlight_xdp::REPLY_BYTES / 4 + 1;

/// TCP's fixed header, in network order.
#[repr(C)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    /// The header's length in words in the upper half.
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

const TCP_BYTES: u32 = 20;
const V4_BYTES: u32 = 20;
const V6_BYTES: u32 = 40;
/// Least length of an Ethernet frame without its checksum: what is shorter may not leave every device.
const LEAST: u32 = 60;
/// Hops that replies may take, as Linux has it.
const HOPS: u32 = 64;

impl Scratch {
    /// Copies the IP header and TCP's fixed header; `false` if the packet is too short.
    #[inline(always)]
    pub fn load(&mut self, ctx: &XdpContext, packet: Packet) -> bool {
        if packet.is_near {
            let is_read = if packet.is_v6 {
                self.read::<15>(ctx, packet.link, IP)
            } else {
                self.read::<10>(ctx, packet.link, IP + 5)
            };
            if is_read {
                return true;
            }
        }
        // SAFETY: the destination is as long as what is copied, which the verifier checks.
        let result = unsafe {
            if packet.is_v6 {
                bpf_xdp_load_bytes(ctx.ctx, packet.link, self.ip.as_mut_ptr().cast(), V6_BYTES + TCP_BYTES)
            } else {
                bpf_xdp_load_bytes(ctx.ctx, packet.link, self.ip.as_mut_ptr().add(5).cast(), V4_BYTES + TCP_BYTES)
            }
        };
        result == 0
    }

    /// Copies `length` bytes of TCP's options, at most 40.
    #[inline(always)]
    pub fn load_options(&mut self, ctx: &XdpContext, packet: Packet, length: u32) -> bool {
        let start = fixed_bytes(packet);
        if length == 0
            || (packet.is_near && length == 12 && self.read::<3>(ctx, start, REST_AT))
            || (packet.is_near && length == 20 && self.read::<5>(ctx, start, REST_AT))
        {
            return true;
        }
        // SAFETY: 64 bytes fit, which the verifier checks.
        unsafe { bpf_xdp_load_bytes(ctx.ctx, start, self.rest.as_mut_ptr().cast(), within::<64>(length)) == 0 }
    }

    /// Copies the first [`NEAR`] bytes of the data, if there are so many and it begins behind the usual options.
    #[inline(always)]
    pub fn read_head(&mut self, ctx: &XdpContext, packet: Packet, start: u32, length: u32) -> bool {
        packet.is_near
            && start == fixed_bytes(packet) + 12
            && length >= NEAR
            && self.read::<{ NEAR as usize / 4 }>(ctx, fixed_bytes(packet) + 12, HEAD)
    }

    /// Copies the first bytes of the data, which begins `start` bytes into the packet and is `length` long.
    #[inline(always)]
    pub fn load_head(&mut self, ctx: &XdpContext, start: u32, length: u32) -> bool {
        let most = HEAD_BYTES as u32;
        let length = if length > most { most } else { length };
        // SAFETY: no more is copied than there is space; the verifier sees that the copy ends in this memory.
        length == 0
            || unsafe {
                let space = (&raw mut self.head).cast::<u8>().add(Head::START);
                bpf_xdp_load_bytes(ctx.ctx, start, space.cast(), within::<256>(length)) == 0
            }
    }

    /// Copies `N` words that begin `from` bytes into the packet to those that begin at the word `to` of this; `false` if they are
    /// not all in the packet's first buffer.
    #[inline(always)]
    fn read<const N: usize>(&mut self, ctx: &XdpContext, from: u32, to: usize) -> bool {
        let (start, end) = bounds(ctx.ctx);
        let from = start + from as usize;
        if from + N * 4 > end {
            return false;
        }
        let words = (&raw mut *self).cast::<u32>();
        for place in 0..N {
            // SAFETY: the bounds were compared; callers name places of this. Volatile, lest it become a call of `memcpy`.
            unsafe { *words.add(to + place) = core::ptr::read_volatile((from + place * 4) as *const u32) };
        }
        true
    }

    /// The other way round.
    #[inline(always)]
    fn write<const N: usize>(&self, ctx: &XdpContext, from: usize, to: u32) -> bool {
        let (start, end) = bounds(ctx.ctx);
        let to = start + to as usize;
        if to + N * 4 > end {
            return false;
        }
        let words = (&raw const *self).cast::<u32>();
        for place in 0..N {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile((to + place * 4) as *mut u32, *words.add(from + place)) };
        }
        true
    }

    /// Length of TCP segment with its header in bytes, as IP has it, and of the whole packet up to there.
    #[inline(always)]
    pub fn segment(&self, packet: Packet) -> (u32, u32) {
        if packet.is_v6 {
            let length = u32::from_be(self.ip[1]) >> 16;
            (length, packet.link + V6_BYTES + length)
        } else {
            let length = u32::from_be(self.ip[5]) & 0xffff;
            (length.saturating_sub(V4_BYTES), packet.link + length)
        }
    }

    /// Turns the headers around and sends them back with `options` and `data` words of what is in `rest`. The checksums are
    /// new and whole: the sender's may be one that its device was to finish. `sum` is that of the words in `rest`.
    #[inline(always)]
    pub fn send(&mut self, ctx: &XdpContext, packet: Packet, reply: &Segment) -> bool {
        let length = TCP_BYTES + reply.words * 4;
        self.tcp.offset = ((TCP_BYTES / 4 + reply.options) << 4) as u8;
        self.tcp.flags = reply.flags;
        self.tcp.sequence = reply.sequence.to_be();
        self.tcp.acknowledged = reply.acknowledged.to_be();
        self.tcp.window = reply.window.to_be();
        self.tcp.checksum = 0;
        self.tcp.urgent = 0;
        core::mem::swap(&mut self.tcp.source, &mut self.tcp.destination);
        let mut sum = reply.sum
            + u64::from(self.tcp.source)
            + u64::from(self.tcp.destination)
            + u64::from(self.tcp.sequence)
            + u64::from(self.tcp.acknowledged)
            + u64::from(u16::from_ne_bytes([self.tcp.offset, self.tcp.flags]))
            + u64::from(self.tcp.window)
            + u64::from(((6 << 16) | length).to_be());
        if packet.is_v6 {
            self.ip[0] = (6_u32 << 28).to_be();
            self.ip[1] = (length << 16 | 6 << 8 | HOPS).to_be();
            for place in 2..6 {
                sum += u64::from(self.ip[place]) + u64::from(self.ip[place + 4]);
                self.ip.swap(place, place + 4);
            }
        } else {
            self.ip[5] = ((0x45 << 24) | (V4_BYTES + length)).to_be();
            // No identity, not to be fragmented (RFC 6864).
            self.ip[6] = 0x4000_u32.to_be();
            self.ip[7] = (HOPS << 24 | 6 << 16).to_be();
            self.ip.swap(8, 9);
            let addresses = u64::from(self.ip[8]) + u64::from(self.ip[9]);
            sum += addresses;
            let header = u64::from(self.ip[5]) + u64::from(self.ip[6]) + u64::from(self.ip[7]) + addresses;
            self.ip[7] |= u32::from_ne_bytes(two(fold(header)));
        }
        self.tcp.checksum = fold(sum);
        self.store(ctx, packet, ip_bytes(packet) + length, reply.words)
    }

    /// Makes the packet as long as the reply and writes it: `length` bytes from IP's header on, of which `words` are options
    /// and data.
    #[inline(always)]
    fn store(&mut self, ctx: &XdpContext, packet: Packet, length: u32, words: u32) -> bool {
        let now = if packet.is_near { first_bytes(ctx) } else { whole_bytes(ctx) };
        let wanted = packet.link + length;
        let least = if now < LEAST { now } else { LEAST };
        let wanted = if wanted < least { least } else { wanted };
        let grows = wanted as i32 - now as i32;
        // SAFETY: helpers on this packet; each checks its own arguments.
        unsafe {
            if grows != 0 && bpf_xdp_adjust_tail(ctx.ctx, grows) != 0 {
                // No room behind: there is always some in front.
                let link = within::<32>(packet.link);
                if bpf_xdp_load_bytes(ctx.ctx, 0, self.link.as_mut_ptr().cast(), link) != 0
                    || bpf_xdp_adjust_head(ctx.ctx, -grows) != 0
                    || bpf_xdp_store_bytes(ctx.ctx, 0, self.link.as_mut_ptr().cast(), link) != 0
                {
                    return false;
                }
            }
            if packet.is_near && self.write_all(ctx, packet, words) {
                return swap_link(ctx);
            }
            let ip = self.ip.as_mut_ptr();
            let ip = if packet.is_v6 { ip } else { ip.add(5) };
            bpf_xdp_store_bytes(ctx.ctx, packet.link, ip.cast(), within::<256>(length)) == 0 && swap_link(ctx)
        }
    }

    /// Writes headers and `words` of options and data to their places, if replies have so many words.
    #[inline(always)]
    fn write_all(&mut self, ctx: &XdpContext, packet: Packet, words: u32) -> bool {
        let start = fixed_bytes(packet);
        let are_written = match words {
            0 => true,
            3 => self.write::<3>(ctx, REST_AT, start),
            5 => self.write::<5>(ctx, REST_AT, start),
            28 => self.write::<28>(ctx, REST_AT, start),
            _ => false,
        };
        are_written
            && if packet.is_v6 {
                self.write::<15>(ctx, IP, packet.link)
            } else {
                self.write::<10>(ctx, IP + 5, packet.link)
            }
    }
}

/// Whether the first `end` bytes of the packet are there.
#[inline(always)]
pub fn has(ctx: &XdpContext, packet: Packet, end: u32) -> bool {
    packet.is_near || whole_bytes(ctx) >= end
}

/// Length of the packet's first buffer.
#[inline(always)]
pub fn first_bytes(ctx: &XdpContext) -> u32 {
    let (start, end) = bounds(ctx.ctx);
    (end - start) as u32
}

/// Length of the packet.
#[inline(always)]
fn whole_bytes(ctx: &XdpContext) -> u32 {
    // SAFETY: the helper reads the packet's length.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 }
}

/// A reply's TCP part.
pub struct Segment {
    /// Flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledged: u32,
    /// How much the peer may send, in bytes.
    pub window: u16,
    /// Words of options.
    pub options: u32,
    /// Words of options and data.
    pub words: u32,
    /// Sum of these words.
    pub sum: u64,
}

/// `value`, of which the verifier knows nothing any more: it does not follow what goes through a map's memory. Otherwise it
/// would walk the rest of the program once for each way in which the value was found.
#[inline(always)]
pub fn forget(through: &mut u32, value: u32) -> u32 {
    // SAFETY: references are valid; volatile keeps both accesses.
    unsafe {
        core::ptr::write_volatile(through, value);
        core::ptr::read_volatile(through)
    }
}

/// `length`, which is 1 to `MOST`, in a form that shows this to the verifier. `MOST` is a power of two.
#[inline(always)]
fn within<const MOST: u32>(length: u32) -> u32 {
    let mut less = length.wrapping_sub(1);
    // SAFETY: nothing is executed. The compiler knows the bounds already and would drop the mask.
    unsafe { asm!("/* {0} */", inout(wreg) less, options(nomem, nostack, preserves_flags)) };
    (less & (MOST - 1)) + 1
}

/// Length of the IP header.
#[inline(always)]
pub fn ip_bytes(packet: Packet) -> u32 {
    if packet.is_v6 { V6_BYTES } else { V4_BYTES }
}

/// Where TCP's data would begin without options.
#[inline(always)]
pub fn fixed_bytes(packet: Packet) -> u32 {
    packet.link + ip_bytes(packet) + TCP_BYTES
}

/// Sender and receiver change places.
#[inline(always)]
fn swap_link(ctx: &XdpContext) -> bool {
    let (start, end) = bounds(ctx.ctx);
    if start + 12 > end {
        return false;
    }
    // SAFETY: the bounds were compared, which the verifier sees again.
    unsafe {
        let words = start as *mut u16;
        for place in 0..3 {
            core::ptr::swap(words.add(place), words.add(place + 3));
        }
    }
    true
}

/// The Internet checksum of a sum of words (RFC 1071), in the order of the words.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

/// The lower half of a word.
#[inline(always)]
fn two(half: u16) -> [u8; 4] {
    let [a, b] = half.to_ne_bytes();
    [0, 0, a, b]
}
