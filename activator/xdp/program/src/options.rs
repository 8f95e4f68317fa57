//! TCP options.

use crate::frame::forget;

/// What of a peer's options matters here.
#[derive(Clone, Copy)]
pub struct Options {
    /// The greatest segment that the peer takes, in bytes.
    pub segment: u16,
    /// The peer's timestamp, and what it echoes, as they stand in the packet.
    pub timestamp: Option<(u32, u32)>,
}

/// The greatest segment of a peer that says nothing (RFC 9293, 3.7.1).
pub const NO_SEGMENT: u16 = 536;

/// How many options are looked at: a peer's SYN has five to nine.
const MOST: u32 = 12;

/// Segment size, `SACK permitted` and timestamp, in this order, as Linux's SYNs begin: what matters of them, without a loop.
#[inline(always)]
pub fn parse_usual(words: [u32; 4]) -> Option<Options> {
    /// What stands before the timestamp itself.
    const HEADS: u32 = u32::from_ne_bytes([4, 2, 8, 10]);
    let [size, heads, theirs, ours] = words;
    let [kind, length, high, low] = size.to_ne_bytes();
    let segment = u16::from_be_bytes([high, low]);
    ((kind, length) == (2, 4) && heads == HEADS).then_some(Options { segment, timestamp: Some((theirs, ours)) })
}

/// Reads the first `length` bytes of `bytes`; an option that is cut ends the list.
#[inline(always)]
pub fn parse(bytes: &[u8; 40], length: u32, through: &mut u32) -> Options {
    let mut segment = NO_SEGMENT;
    let (mut is_stamped, mut theirs, mut ours) = (0, 0, 0);
    let length = length as usize;
    let at = |place: usize| bytes.get(place).copied().unwrap_or(0);
    let mut place = 0;
    for _ in 0..MOST {
        if place >= length {
            break;
        }
        match at(place) {
            0 => break,
            1 => place += 1,
            kind => {
                let size = usize::from(at(place + 1));
                if size < 2 || place + size > length {
                    break;
                }
                if kind == 2 && size == 4 {
                    segment = u16::from_be_bytes([at(place + 2), at(place + 3)]);
                } else if kind == 8 && size == 10 {
                    let word = |from: usize| u32::from_ne_bytes([at(from), at(from + 1), at(from + 2), at(from + 3)]);
                    theirs = forget(through, word(place + 2));
                    ours = forget(through, word(place + 6));
                    is_stamped = 1;
                }
                place += size;
            }
        }
        place = forget(through, place as u32) as usize;
    }
    let segment = forget(through, u32::from(segment)) as u16;
    let stamps = (forget(through, theirs), forget(through, ours));
    Options { segment, timestamp: (is_stamped != 0).then_some(stamps) }
}
