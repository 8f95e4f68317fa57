//! From a request to its reply.

use aya_ebpf::programs::XdpContext;
use podlight_xdp::{
    ANY_ADDRESS, Counter, PATH_WORDS, REPLY_BYTES, Reply, Request, SHORT_PATH, SHORT_WORDS, ShortKey, TEXT_BYTES,
    Verdict, is_fresh, path_tag,
};

use crate::{
    ANSWERS, Fate, LONG, SETTINGS,
    flow::{Arrival, LAST, address, beat, now, write_timestamp},
    frame::{NEAR, Scratch, forget},
    packet::Packet,
};

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

/// What is said, and the text of the entry, if there is one.
struct Decision {
    reply: Reply,
    has_text: bool,
    text: [u32; TEXT_BYTES / 4],
}

impl Decision {
    /// Without an entry.
    #[inline(always)]
    const fn bare(reply: Reply) -> Self {
        Self { reply, has_text: false, text: [0; TEXT_BYTES / 4] }
    }
}

/// Answers the first segment of a connection.
#[inline(always)]
pub fn answer(ctx: &XdpContext, packet: Packet, scratch: &mut Scratch, arrival: &Arrival) -> Fate {
    if usize::from(u16::from_be(scratch.tcp.window)) < REPLY_BYTES {
        return Fate::Drop(Counter::Window);
    }
    let Some(request) = request(ctx, packet, scratch, arrival) else { return Fate::Drop(Counter::Failed) };
    let decision = match forget(&mut scratch.forgotten, request) {
        INCOMPLETE => return Fate::Drop(Counter::Incomplete),
        METHOD => Decision::bare(Reply::Method),
        MALFORMED => Decision::bare(Reply::Malformed),
        length => decide(packet, scratch, arrival, length as usize),
    };
    let (options, sum) = write_timestamp(scratch, arrival);
    let Some(template) = TEMPLATES.get(decision.reply as usize) else { return Fate::Drop(Counter::Failed) };
    let sum = sum
        + if options == 3 {
            write::<3>(scratch, template, &decision)
        } else {
            write::<0>(scratch, template, &decision)
        };
    let counter = match decision.reply {
        Reply::Ready => Counter::Ready,
        Reply::Unready => Counter::Unready,
        Reply::Stale => Counter::Stale,
        Reply::Unknown => Counter::Unknown,
        Reply::Malformed => Counter::Malformed,
        Reply::Method => Counter::Method,
    };
    Fate::Reply(counter, arrival.reply(LAST, options, options + WORDS as u32, sum))
}

/// What is asked, as a path's length or one of the numbers below; the request's beginning is in the head then. `None` if it could
/// not be read.
#[inline(always)]
fn request(ctx: &XdpContext, packet: Packet, scratch: &mut Scratch, arrival: &Arrival) -> Option<u32> {
    // As long as the data is, which the verifier is not to learn more about: the reply acknowledges it.
    let length = forget(&mut scratch.forgotten, arrival.length);
    if scratch.read_head(ctx, packet, arrival.start, length) {
        let request = parse(scratch, NEAR);
        if request != INCOMPLETE {
            return Some(request);
        }
    }
    scratch.load_head(ctx, arrival.start, length).then(|| parse(scratch, length))
}

#[inline(always)]
fn parse(scratch: &mut Scratch, available: u32) -> u32 {
    let through = &mut scratch.forgotten;
    match scratch.head.parse_with(available as usize, |length| forget(through, length as u32) as usize) {
        Request::Incomplete => INCOMPLETE,
        Request::Method => METHOD,
        Request::Malformed => MALFORMED,
        Request::Get(length) => length as u32,
    }
}

/// No path has no byte, nor so many.
const INCOMPLETE: u32 = 0;
const METHOD: u32 = u32::MAX;
const MALFORMED: u32 = u32::MAX - 1;

/// Looks the path up. A 200 comes from [`Verdict::new`] only.
#[inline(always)]
fn decide(packet: Packet, scratch: &mut Scratch, arrival: &Arrival, length: usize) -> Decision {
    for place in 0..SHORT_WORDS {
        scratch.key.path[place] = scratch.head.path_word(place, length);
    }
    if length > SHORT_PATH {
        for place in SHORT_WORDS..PATH_WORDS {
            scratch.key.path[place] = scratch.head.path_word(place, length);
        }
    }
    // Forgotten, because each word has told the verifier more about it.
    let length = forget(&mut scratch.forgotten, length as u32);
    scratch.key.length = length;
    scratch.key.address = if arrival.is_shared { ANY_ADDRESS } else { address(packet, scratch) };
    scratch.key.port = u32::from(u16::from_be(scratch.tcp.destination));
    let now = now();
    let is_alive = beat().is_fresh(now);
    let found = if length <= SHORT_PATH as u32 {
        // SAFETY: the short key is the beginning of the whole one.
        ANSWERS.get_ptr(unsafe { &*(&raw const scratch.key).cast::<ShortKey>() })
    } else {
        LONG.get_ptr(&scratch.key)
    };
    let Some(entry) = found else {
        let reply = if is_alive { Reply::Unknown } else { Reply::Stale };
        return Decision::bare(reply);
    };
    let Some(settings) = SETTINGS.get(0) else { return Decision::bare(Reply::Stale) };
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
        Verdict::Stale => return Decision::bare(Reply::Stale),
    };
    Decision { reply, has_text: true, text }
}

/// Writes the reply behind `START` words of options; its sum.
#[inline(always)]
fn write<const START: usize>(scratch: &mut Scratch, template: &Template, decision: &Decision) -> u64 {
    for place in 0..WORDS {
        scratch.rest[START + place] = template.words[place];
    }
    if decision.has_text {
        for place in 0..TEXT_BYTES / 4 {
            scratch.rest[START + FIXED + place] = decision.text[place];
        }
    }
    let mut sum = template.sum;
    for place in FIXED..WORDS {
        sum += u64::from(scratch.rest[START + place]);
    }
    sum
}
