//! From a request to its reply.

use aya_ebpf::programs::XdpContext;
use podlight_xdp::{ANY_ADDRESS, Counter, REPLY_BYTES, Reply, Request, TEXT_BYTES, Verdict, is_fresh, path_tag};

use crate::{
    ANSWERS, Fate, SETTINGS,
    flow::{Arrival, LAST, address, beat, now, sent, write_timestamp},
    frame::{Scratch, forget},
    packet::Packet,
};

/// Bytes of `GET `.
const METHOD: u32 = 4;
const WORDS: usize = REPLY_BYTES / 4;
/// Words of a reply that are the same each time; the entry's text follows.
const FIXED: usize = (REPLY_BYTES - TEXT_BYTES) / 4;

/// A reply's words, and the sum of the fixed ones.
#[repr(C)]
struct Template {
    sum: u64,
    words: [u32; WORDS],
}

/// Under a name that does not depend on where it is built.
#[unsafe(no_mangle)]
static TEMPLATES: [Template; 6] = [
    Template::new(Reply::Ready),
    Template::new(Reply::Unready),
    Template::new(Reply::Stale),
    Template::new(Reply::Unknown),
    Template::new(Reply::Malformed),
    Template::new(Reply::Method),
];

impl Template {
    const fn new(reply: Reply) -> Self {
        let bytes = reply.bytes(None);
        let mut template = Self { sum: 0, words: [0; WORDS] };
        let mut place = 0;
        while place < WORDS {
            let at = place * 4;
            let word = u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            template.words[place] = word;
            if place < FIXED {
                template.sum += word as u64;
            }
            place += 1;
        }
        template
    }
}

/// What is said, and the entry's text if there is an entry.
struct Decision {
    reply: Reply,
    text: Option<[u32; TEXT_BYTES / 4]>,
}

/// Answers the first segment of a connection.
#[inline(always)]
pub fn answer(ctx: &XdpContext, packet: Packet, scratch: &mut Scratch, arrival: &Arrival) -> Fate {
    if usize::from(u16::from_be(scratch.tcp.window)) < REPLY_BYTES {
        return Fate::Drop(Counter::Window);
    }
    if !scratch.load_head(ctx, arrival.start, arrival.length) {
        return Fate::Drop(Counter::Failed);
    }
    let none = |reply| Decision { reply, text: None };
    let through = &mut scratch.forgotten;
    let request = scratch.head.parse_with(arrival.length as usize, |length| forget(through, length as u32) as usize);
    let decision = match request {
        Request::Incomplete => return Fate::Drop(Counter::Incomplete),
        Request::Method => none(Reply::Method),
        Request::Malformed => none(Reply::Malformed),
        Request::Get(length) => decide(ctx, packet, scratch, arrival, length as u32),
    };
    let (options, sum) = write_timestamp(scratch, arrival);
    let Some(template) = TEMPLATES.get(decision.reply as usize) else { return Fate::Drop(Counter::Failed) };
    let start = options as usize;
    let sum = sum
        + if start == 3 { write::<3>(scratch, template, &decision) } else { write::<0>(scratch, template, &decision) };
    let segment = arrival.reply(LAST, options, options + WORDS as u32, sum);
    let counter = match decision.reply {
        Reply::Ready => Counter::Ready,
        Reply::Unready => Counter::Unready,
        Reply::Stale => Counter::Stale,
        Reply::Unknown => Counter::Unknown,
        Reply::Malformed => Counter::Malformed,
        Reply::Method => Counter::Method,
    };
    sent(scratch.send(ctx, packet, &segment), counter)
}

/// Looks the path up. A 200 comes from [`Verdict::new`] only.
#[inline(always)]
fn decide(ctx: &XdpContext, packet: Packet, scratch: &mut Scratch, arrival: &Arrival, length: u32) -> Decision {
    if !scratch.load_path(ctx, arrival.start + METHOD, length) {
        return Decision { reply: Reply::Stale, text: None };
    }
    scratch.key.address = if arrival.is_shared { ANY_ADDRESS } else { address(packet, scratch) };
    scratch.key.port = u32::from(u16::from_be(scratch.tcp.destination));
    let now = now();
    let is_alive = beat().is_fresh(now);
    let Some(entry) = ANSWERS.get_ptr(&scratch.key) else {
        let reply = if is_alive { Reply::Unknown } else { Reply::Stale };
        return Decision { reply, text: None };
    };
    let Some(settings) = SETTINGS.get(0) else { return Decision { reply: Reply::Stale, text: None } };
    let tag = path_tag(settings.seed, &scratch.key);
    // SAFETY: the memory is an entry's, if perhaps another's by now. The word with tag and status is read once; times and
    // text of another entry do no harm.
    let (word, is_fresh, text) = unsafe {
        let word = core::ptr::read_volatile(&raw const (*entry).verdict);
        let text = (&raw const (*entry).text).cast::<[u32; TEXT_BYTES / 4]>();
        (word, is_fresh((*entry).updated_ns, (*entry).ttl_ns, now), *text)
    };
    let reply = match Verdict::new(word, tag, is_fresh && is_alive) {
        Verdict::Ready => Reply::Ready,
        Verdict::Unready => Reply::Unready,
        Verdict::Stale => return Decision { reply: Reply::Stale, text: None },
    };
    Decision { reply, text: Some(text) }
}

/// Writes the reply behind `START` words of options; its sum.
#[inline(always)]
fn write<const START: usize>(scratch: &mut Scratch, template: &Template, decision: &Decision) -> u64 {
    for place in 0..WORDS {
        scratch.rest[START + place] = template.words[place];
    }
    if let Some(text) = decision.text {
        for place in 0..TEXT_BYTES / 4 {
            scratch.rest[START + FIXED + place] = text[place];
        }
    }
    let mut sum = template.sum;
    for place in FIXED..WORDS {
        sum += u64::from(scratch.rest[START + place]);
    }
    sum
}
