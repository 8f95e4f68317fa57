//! TCP options.

use crate::frame::forget;

/// What of a peer's options matters here.
#[derive(Clone, Copy)]
pub struct Options {
    /// The greatest segment that the peer takes, in bytes. RFC 9293 has 536 for a peer that says nothing.
    pub segment: u16,
    /// The peer's timestamp, and what it echoes, as they stand in the packet.
    pub timestamp: Option<(u32, u32)>,
}

/// How many options are looked at: a peer's SYN has five to nine.
const MOST: u32 = 12;

/// Reads the first `length` bytes of `bytes`; an option that is cut ends the list.
#[inline(always)]
pub fn parse(bytes: &[u8; 40], length: u32, through: &mut u32) -> Options {
    let mut options = Options { segment: 536, timestamp: None };
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
                    options.segment = u16::from_be_bytes([at(place + 2), at(place + 3)]);
                } else if kind == 8 && size == 10 {
                    let word = |from: usize| u32::from_ne_bytes([at(from), at(from + 1), at(from + 2), at(from + 3)]);
                    options.timestamp = Some((word(place + 2), word(place + 6)));
                }
                place += size;
            }
        }
        place = forget(through, place as u32) as usize;
    }
    options
}
