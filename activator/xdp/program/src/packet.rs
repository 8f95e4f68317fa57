//! Is this packet for a port that is taken? The only code that most packets meet: a few loads at fixed places and one bit.
//! Each of the six layouts is a function of its own so that the compiler does not fold them into one with variable places.

use aya_ebpf::bindings::xdp_md;

use crate::PORTS;

/// Where a packet's parts are.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Length of the Ethernet header with its VLAN tags: 14, 18 or 22.
    pub link: u32,
    /// IPv6 rather than IPv4.
    pub is_v6: bool,
    /// The port is taken on any address.
    pub is_any: bool,
    /// What is read and written is at places that are known when this is compiled, as it is without tags, and in the packet's
    /// first buffer. Then it is read and written there. Otherwise the kernel's helpers do it; each call takes as long as
    /// fifty instructions.
    pub is_near: bool,
}

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const CUSTOMER_TAG: u16 = 0x8100_u16.to_be();
const SERVICE_TAG: u16 = 0x88a8_u16.to_be();
const TCP: u8 = 6;
/// More fragments, or an offset.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// What carries a packet.
pub enum Carrier {
    V4,
    V6,
    Tagged,
    Other,
}

/// What the Ethernet header says that it carries.
#[inline(always)]
pub fn carrier(ctx: *mut xdp_md) -> Carrier {
    match kind(ctx, ETHERNET) {
        IPV4 => Carrier::V4,
        IPV6 => Carrier::V6,
        CUSTOMER_TAG | SERVICE_TAG => Carrier::Tagged,
        _ => Carrier::Other,
    }
}

/// The layout of a packet without tags, if it is a TCP packet in one piece to a port that may be taken.
#[inline(always)]
pub fn plain<const IS_V6: bool>(ctx: *mut xdp_md) -> Option<Packet> {
    let found = if IS_V6 { v6::<ETHERNET>(ctx) } else { v4::<ETHERNET>(ctx) };
    let is_any = found & IS_ANY != 0;
    (found != 0).then_some(Packet { link: ETHERNET as u32, is_v6: IS_V6, is_any, is_near: true })
}

/// The same of a packet with tags.
#[inline(always)]
pub fn behind_tags(ctx: *mut xdp_md) -> Option<Packet> {
    let found = tagged(ctx);
    let (is_v6, is_any) = (found & self::IS_V6 != 0, found & IS_ANY != 0);
    (found != 0).then_some(Packet { link: found & 0xff, is_v6, is_any, is_near: false })
}

const IS_V6: u32 = 1 << 8;
const IS_ANY: u32 = 1 << 9;

const ONE: usize = ETHERNET + TAG;
const TWO: usize = ONE + TAG;

/// Functions that are not folded into their callers, under names that do not depend on where they are built.
macro_rules! functions {
    ($($name:ident = $body:path;)+) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(ctx: *mut xdp_md) -> u32 {
            $body(ctx)
        }
    )+};
}

functions! {
    packet_v4_tag = v4::<ONE>;
    packet_v6_tag = v6::<ONE>;
    packet_v4_tags = v4::<TWO>;
    packet_v6_tags = v6::<TWO>;
}

#[inline(always)]
fn tagged(ctx: *mut xdp_md) -> u32 {
    match kind(ctx, ONE) {
        IPV4 => packet_v4_tag(ctx),
        IPV6 => packet_v6_tag(ctx),
        CUSTOMER_TAG => match kind(ctx, TWO) {
            IPV4 => packet_v4_tags(ctx),
            IPV6 => packet_v6_tags(ctx),
            _ => 0,
        },
        _ => 0,
    }
}

#[inline(always)]
fn v4<const LINK: usize>(ctx: *mut xdp_md) -> u32 {
    let (start, end) = bounds(ctx);
    if start + LINK + 24 > end {
        return 0;
    }
    // SAFETY: the bounds were compared.
    let (version, fragment, protocol, port) = unsafe {
        (at::<u8>(start, LINK), at::<u16>(start, LINK + 6), at::<u8>(start, LINK + 9), at::<u16>(start, LINK + 22))
    };
    if version != 0x45 || fragment & FRAGMENT != 0 || protocol != TCP {
        return 0;
    }
    taken(port, LINK as u32)
}

#[inline(always)]
fn v6<const LINK: usize>(ctx: *mut xdp_md) -> u32 {
    let (start, end) = bounds(ctx);
    if start + LINK + 44 > end {
        return 0;
    }
    // SAFETY: the bounds were compared.
    let (version, next, port) =
        unsafe { (at::<u8>(start, LINK), at::<u8>(start, LINK + 6), at::<u16>(start, LINK + 42)) };
    if version >> 4 != 6 || next != TCP {
        return 0;
    }
    taken(port, LINK as u32 | IS_V6)
}

/// `layout` with what is known of the port, or 0 if it is not taken.
#[inline(always)]
fn taken(port: u16, layout: u32) -> u32 {
    let port = u16::from_be(port);
    let Some(ports) = PORTS.get(u32::from(port >> 6)) else { return 0 };
    let bit = 1 << (port & 63);
    if ports.any & bit != 0 {
        layout | IS_ANY
    } else if ports.some & bit != 0 {
        layout
    } else {
        0
    }
}

/// The type of what the Ethernet header or tag that ends at `place` carries; 0 if the packet is shorter.
#[inline(always)]
fn kind(ctx: *mut xdp_md, place: usize) -> u16 {
    let (start, end) = bounds(ctx);
    if start + place > end {
        return 0;
    }
    // SAFETY: the bounds were compared.
    unsafe { at(start, place - 2) }
}

/// What lies at a fixed place of the packet.
///
/// # Safety
/// The packet is long enough, and was compared with its end where the verifier sees it. The kernel aligns IP headers, and
/// the architectures that it compiles programs for read what is not aligned.
#[inline(always)]
unsafe fn at<T: Copy>(start: usize, place: usize) -> T {
    // SAFETY: as above; integers may have any bytes.
    unsafe { *((start + place) as *const T) }
}

/// Where the packet begins and ends. Volatile, so that the two stay loads from the context, which the verifier knows, rather
/// than arguments of functions, which would be numbers to it.
#[inline(always)]
pub fn bounds(ctx: *mut xdp_md) -> (usize, usize) {
    // SAFETY: the context is the kernel's.
    unsafe {
        let start = core::ptr::read_volatile(&raw const (*ctx).data);
        let end = core::ptr::read_volatile(&raw const (*ctx).data_end);
        (start as usize, end as usize)
    }
}
