//! The life of a connection without a memory of it. Each segment is judged by itself: the acknowledgement number is the
//! cookie plus what of the reply has arrived, and the echoed timestamp is the peer's initial sequence number, which the
//! cookie is made of.

use aya_ebpf::{
    bindings::bpf_sock_tuple,
    helpers::{
        bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_check_syncookie_ipv4,
        bpf_tcp_raw_check_syncookie_ipv6, bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6,
    },
    programs::XdpContext,
};
use podlight_xdp::{Beat, Counter, REPLY_BYTES, v4_mapped};

use crate::{
    BEAT, Fate, LISTENING, PORTS, SETTINGS, answer,
    frame::{ACK, FIN, KNOWN, Known, PSH, RST, SYN, Scratch, Segment, first_bytes, fixed_bytes, forget, has},
    options::{self, NO_SEGMENT, Options},
    packet::Packet,
};

/// The segment that a peer may send us, in bytes: what Ethernet's 1 500 leave. It is also the first window, so that a peer
/// sends no second full segment before it has the reply to the first, which is the only one that is read.
const V4_SEGMENT: u16 = 1_460;
const V6_SEGMENT: u16 = 1_440;
/// Words of a TCP header without options. A cookie is made of one: it is then that of the least segment size, which nothing
/// here asks the cookie about. The kernel takes as many sequence numbers for right as it knows segment sizes, and those are
/// the first segment's own and numbers *before* it, where no peer has data. Of another size, bytes behind the first pass too.
const BARE: u8 = 5;
/// The window once the reply is under way. What comes then is acknowledged and forgotten.
const WINDOW: u16 = u16::MAX;

/// A segment with data, a FIN or an acknowledgement.
pub struct Arrival {
    /// Where the data begins in the packet, and how long it is.
    pub start: u32,
    pub length: u32,
    /// It ends the peer's half.
    pub is_fin: bool,
    /// Sequence and acknowledgement number.
    pub sequence: u32,
    pub acknowledged: u32,
    /// The timestamps to send, as they stand in a packet.
    pub timestamp: Option<(u32, u32)>,
    /// Whether the answers are those of any address.
    pub is_shared: bool,
}

/// How far the peer is, according to a cookie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It has our SYN-ACK and nothing else.
    Begun,
    /// So it is, and this is not what comes next.
    Gap,
    /// It has the reply, or at least our FIN.
    Replied,
    /// There is no valid cookie.
    Foreign,
}

/// What becomes of the packet; `None` if its port is not taken on its address.
#[inline(always)]
pub fn run(ctx: &XdpContext, packet: &mut Packet, scratch: &mut Scratch) -> Option<Fate> {
    if !scratch.load(ctx, *packet) {
        return packet.is_any.then_some(Fate::Pass(Counter::PassedShape));
    }
    let (length, end) = scratch.segment(*packet);
    let may_be_near = packet.is_near;
    packet.is_near = may_be_near && first_bytes(ctx) >= end;
    let header = u32::from(scratch.tcp.offset >> 4) * 4;
    let bytes = header.saturating_sub(20);
    let is_whole =
        header >= 20 && length >= header && has(ctx, *packet, end) && scratch.load_options(ctx, *packet, bytes);
    let found = forget(&mut scratch.forgotten, u32::from(is_whole) | u32::from(packet.is_near) << 1);
    let is_whole = found & 1 != 0;
    packet.is_near = may_be_near && found & 2 != 0;
    let bytes = forget(&mut scratch.forgotten, bytes);
    let options = options(scratch, bytes);
    let flags = scratch.tcp.flags & (FIN | SYN | RST | ACK);
    let is_later = is_whole && (flags == ACK || flags == ACK | FIN);
    let mut arrival = Arrival {
        start: fixed_bytes(*packet) + bytes,
        length: length.wrapping_sub(header),
        is_fin: flags & FIN != 0,
        sequence: u32::from_be(scratch.tcp.sequence),
        acknowledged: u32::from_be(scratch.tcp.acknowledged),
        timestamp: options.timestamp.filter(|_| is_later).map(|(theirs, ours)| (ours, theirs)),
        is_shared: false,
    };
    let echoed = arrival.timestamp.and_then(|(ours, _)| echoed(*packet, scratch, ours));
    let carries = arrival.length > 0 || arrival.is_fin;
    // The address need not be looked up: a flow of others that has such a timestamp for a moment, by chance, misses an
    // acknowledgement as if the network had lost it.
    if echoed.is_some() && !carries {
        return Some(Fate::Drop(Counter::Ack));
    }
    let is_shared = packet.is_any || listens(*packet, scratch)?;
    arrival.is_shared = forget(&mut scratch.forgotten, u32::from(is_shared)) != 0;
    let fate = match flags {
        _ if !is_whole => Fate::Pass(Counter::PassedShape),
        SYN => syn(*packet, scratch, &options),
        // A flow of ours echoes what we sent, so this is none.
        _ if arrival.timestamp.is_some() && echoed.is_none() => Fate::Pass(Counter::PassedCookie),
        _ if is_later => {
            let progress = match echoed {
                Some(Echoed::Reply) => Progress::Replied,
                _ if is_first(*packet, scratch) => Progress::Begun,
                Some(Echoed::SynAck) => Progress::Gap,
                None => Progress::Foreign,
            };
            segment(ctx, *packet, scratch, &arrival, progress)
        }
        // A RST ends nothing here, and may end a flow of a socket.
        flags if flags & RST != 0 && flags & SYN == 0 => Fate::Pass(Counter::Reset),
        _ => Fate::Pass(Counter::PassedShape),
    };
    Some(fate)
}

/// Whether the port is taken on this address, and if so whether its answers are shared.
#[inline(always)]
fn listens(packet: Packet, scratch: &mut Scratch) -> Option<bool> {
    let port = u32::from(u16::from_be(scratch.tcp.destination));
    let address = address(packet, scratch);
    let version = PORTS.get(port >> 6)?.version;
    // SAFETY: sixteen bytes are four words.
    let words = unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(address) };
    let place = (words[3] ^ words[3] >> 24 ^ port) as usize & (KNOWN - 1);
    let known = &scratch.known[place];
    // Word by word: the compiler's way would be a function.
    let differs = (0..4).fold(0, |differs, word| differs | (known.address[word] ^ words[word]));
    if known.version == version && known.port == port && differs == 0 {
        return Some(known.is_shared != 0);
    }
    scratch.listen.address = address;
    scratch.listen.port = port;
    // SAFETY: the value is read at once; a port that changes hands meanwhile is asked about under a key of its own.
    let is_shared = *unsafe { LISTENING.get(&scratch.listen) }?;
    scratch.known[place] = Known { address: words, port, is_shared, version };
    Some(is_shared != 0)
}

/// The address that is asked.
#[inline(always)]
pub fn address(packet: Packet, scratch: &Scratch) -> [u8; 16] {
    if packet.is_v6 {
        // SAFETY: four words are sixteen bytes.
        unsafe {
            core::mem::transmute::<[u32; 4], [u8; 16]>([scratch.ip[6], scratch.ip[7], scratch.ip[8], scratch.ip[9]])
        }
    } else {
        v4_mapped(scratch.ip[9].to_ne_bytes())
    }
}

/// The heartbeat.
#[inline(always)]
pub fn beat() -> Beat {
    match BEAT.get(0) {
        Some(beat) => *beat,
        None => Beat::default(),
    }
}

/// The time since boot.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Whether the heartbeat was fresh when the kernel's present tick began, or later: near enough for what promises nothing yet, and
/// cheaper than a clock.
#[inline(always)]
fn is_alive(scratch: &mut Scratch) -> bool {
    let beat = beat();
    // SAFETY: the helper reads a count.
    let tick = unsafe { bpf_jiffies64() };
    if scratch.fresh == (beat, tick) {
        return true;
    }
    let is_fresh = beat.is_fresh(now());
    if is_fresh {
        scratch.fresh = (beat, tick);
    }
    is_fresh
}

/// Answers a SYN, unless nobody keeps the map: then whoever listens in userspace may.
#[inline(always)]
fn syn(packet: Packet, scratch: &mut Scratch, options: &Options) -> Fate {
    if !is_alive(scratch) {
        return Fate::Pass(Counter::PassedStale);
    }
    if usize::from(options.segment) < REPLY_BYTES {
        return Fate::Pass(Counter::PassedSyn);
    }
    let tcp = (&raw mut scratch.tcp).cast();
    scratch.tcp.offset = BARE << 4;
    // SAFETY: both headers are whole.
    let cookie = unsafe {
        if packet.is_v6 {
            bpf_tcp_raw_gen_syncookie_ipv6(scratch.ip.as_mut_ptr().cast(), tcp, u32::from(BARE) * 4)
        } else {
            bpf_tcp_raw_gen_syncookie_ipv4(scratch.ip.as_mut_ptr().add(5).cast(), tcp, u32::from(BARE) * 4)
        }
    };
    if cookie < 0 {
        return Fate::Pass(Counter::PassedSyn);
    }
    let segment = if packet.is_v6 { V6_SEGMENT } else { V4_SEGMENT };
    let sequence = u32::from_be(scratch.tcp.sequence);
    scratch.rest[0] = (2 << 24 | 4 << 16 | u32::from(segment)).to_be();
    let mut sum = u64::from(scratch.rest[0]);
    let mut words = 1;
    if let Some((theirs, _)) = options.timestamp {
        let mark = mark(packet, scratch).to_be();
        scratch.rest[1] = TIMESTAMP;
        scratch.rest[2] = mark;
        scratch.rest[3] = theirs;
        // As many as Linux's SYN has, so that the packet keeps its length.
        scratch.rest[4] = FILLERS;
        sum += u64::from(TIMESTAMP) + u64::from(mark) + u64::from(theirs) + u64::from(FILLERS);
        words = 5;
    }
    let reply = Segment {
        flags: SYN | ACK,
        sequence: cookie as u32,
        acknowledged: sequence.wrapping_add(1),
        window: segment,
        options: words,
        words,
        sum,
    };
    Fate::Reply(Counter::Syn, reply)
}

/// Four fillers.
const FILLERS: u32 = u32::from_ne_bytes([1; 4]);

/// Two fillers and the head of a timestamp option.
const TIMESTAMP: u32 = u32::from_ne_bytes([1, 1, 8, 10]);

/// What the first `length` bytes of options say. Most segments have a timestamp and nothing else.
#[inline(always)]
fn options(scratch: &mut Scratch, length: u32) -> Options {
    let rest = &scratch.rest;
    let options = if length == 12 && rest[0] == TIMESTAMP {
        Options { segment: NO_SEGMENT, timestamp: Some((rest[1], rest[2])) }
    } else if length >= 16
        && let Some(usual) = options::parse_usual([rest[0], rest[1], rest[2], rest[3]])
    {
        usual
    } else {
        // SAFETY: the words are at least as many bytes.
        options::parse(unsafe { &*rest.as_ptr().cast::<[u8; 40]>() }, length, &mut scratch.forgotten)
    };
    let (theirs, ours) = options.timestamp.unwrap_or((0, 0));
    let is_stamped = forget(&mut scratch.forgotten, u32::from(options.timestamp.is_some())) != 0;
    Options { timestamp: is_stamped.then_some((theirs, ours)), ..options }
}

/// Judges a segment of what may be a connection of ours.
#[inline(always)]
fn segment(ctx: &XdpContext, packet: Packet, scratch: &mut Scratch, arrival: &Arrival, progress: Progress) -> Fate {
    let carries = arrival.length > 0 || arrival.is_fin;
    match progress {
        Progress::Begun | Progress::Replied if !carries => Fate::Drop(Counter::Ack),
        Progress::Begun if arrival.length > 0 => answer::answer(ctx, packet, scratch, arrival),
        // The peer leaves without a question, and so do we.
        Progress::Begun => acknowledge(scratch, arrival, ACK | FIN, Counter::Fin),
        // Something before it is missing, or is unacknowledged because it was no whole request line.
        Progress::Gap => Fate::Drop(Counter::Later),
        Progress::Replied => {
            let counter = if arrival.is_fin { Counter::Fin } else { Counter::Later };
            acknowledge(scratch, arrival, ACK, counter)
        }
        // Without timestamps, what comes after the first segment cannot be told from a stranger's: the kernel knows its own.
        Progress::Foreign if has_socket(ctx, packet, scratch) => Fate::Pass(Counter::PassedCookie),
        Progress::Foreign if arrival.is_fin => acknowledge(scratch, arrival, ACK, Counter::Fin),
        Progress::Foreign if arrival.length > 0 => Fate::Drop(Counter::Later),
        Progress::Foreign => Fate::Drop(Counter::Ack),
    }
}

/// What of ours a peer has, as the timestamp that it echoes tells.
#[derive(Clone, Copy)]
enum Echoed {
    SynAck,
    /// The reply, or at least our FIN.
    Reply,
}

/// What the echo tells, if it is of one of our timestamps.
#[inline(always)]
fn echoed(packet: Packet, scratch: &Scratch, ours: u32) -> Option<Echoed> {
    let echo = u32::from_be(ours);
    let is_ours = echo & !REPLIED == mark(packet, scratch);
    is_ours.then_some(if echo & REPLIED != 0 { Echoed::Reply } else { Echoed::SynAck })
}

/// What a connection's timestamps are, save for [`REPLIED`]: a number that only this machine can know.
#[inline(always)]
fn mark(packet: Packet, scratch: &Scratch) -> u32 {
    let Some(settings) = SETTINGS.get(0) else {
        return 0;
    };
    let mix = |hash: u64, low: u32, high: u32| {
        let product = (hash ^ (u64::from(high) << 32 | u64::from(low))).wrapping_mul(0x5851_f42d_4c95_7f2d);
        product ^ (product >> 29)
    };
    let ip = &scratch.ip;
    let mut hash = mix(settings.mark, u32::from(scratch.tcp.source), u32::from(scratch.tcp.destination));
    if packet.is_v6 {
        hash = mix(hash, ip[2], ip[3]);
        hash = mix(hash, ip[4], ip[5]);
        hash = mix(hash, ip[6], ip[7]);
    }
    hash = mix(hash, ip[8], ip[9]);
    (hash >> 32) as u32 & !REPLIED
}

/// The bit of a timestamp that says that the reply is in the same segment, or was in an earlier one.
const REPLIED: u32 = 1;

/// Whether the segment is the first behind our SYN-ACK: it acknowledges a cookie that its sequence number fits.
#[inline(always)]
fn is_first(packet: Packet, scratch: &mut Scratch) -> bool {
    let tcp = (&raw mut scratch.tcp).cast();
    // SAFETY: both headers are whole.
    unsafe {
        if packet.is_v6 {
            bpf_tcp_raw_check_syncookie_ipv6(scratch.ip.as_mut_ptr().cast(), tcp) == 0
        } else {
            bpf_tcp_raw_check_syncookie_ipv4(scratch.ip.as_mut_ptr().add(5).cast(), tcp) == 0
        }
    }
}

/// Whether the kernel has a connection with these addresses and ports.
#[inline(always)]
fn has_socket(ctx: &XdpContext, packet: Packet, scratch: &mut Scratch) -> bool {
    const LISTEN: u32 = 10;
    /// This packet's network namespace.
    const CURRENT: u64 = u64::MAX;
    // SAFETY: addresses and ports lie behind each other as the helper wants them; what it returns is released.
    unsafe {
        let context = ctx.ctx.cast();
        let socket = if packet.is_v6 {
            let tuple = scratch.ip.as_mut_ptr().add(2).cast::<bpf_sock_tuple>();
            bpf_skc_lookup_tcp(context, tuple, 36, CURRENT, 0)
        } else {
            let tuple = scratch.ip.as_mut_ptr().add(8).cast::<bpf_sock_tuple>();
            bpf_skc_lookup_tcp(context, tuple, 12, CURRENT, 0)
        };
        if socket.is_null() {
            return false;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state != LISTEN
    }
}

/// Acknowledges everything that has come.
#[inline(always)]
fn acknowledge(scratch: &mut Scratch, arrival: &Arrival, flags: u8, counter: Counter) -> Fate {
    let (options, sum) = write_timestamp(scratch, arrival);
    Fate::Reply(counter, arrival.reply(flags, options, options, sum))
}

/// Writes the timestamp option of a reply; its words and their sum.
#[inline(always)]
pub fn write_timestamp(scratch: &mut Scratch, arrival: &Arrival) -> (u32, u64) {
    let Some((ours, theirs)) = arrival.timestamp else {
        return (0, 0);
    };
    scratch.rest[0] = TIMESTAMP;
    let ours = ours | REPLIED.to_be();
    scratch.rest[1] = ours;
    scratch.rest[2] = theirs;
    (3, u64::from(TIMESTAMP) + u64::from(ours) + u64::from(theirs))
}

impl Arrival {
    /// The segment that acknowledges this one.
    #[inline(always)]
    pub fn reply(&self, flags: u8, options: u32, words: u32, sum: u64) -> Segment {
        Segment {
            flags,
            sequence: self.acknowledged,
            acknowledged: self.sequence.wrapping_add(self.length).wrapping_add(u32::from(self.is_fin)),
            window: WINDOW,
            options,
            words,
            sum,
        }
    }
}

/// The flags of a reply with data: everything is said.
pub const LAST: u8 = ACK | PSH | FIN;
