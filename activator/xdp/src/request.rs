//! The parser of requests. It reads the request line and nothing behind it: the answer depends on the method and the path
//! alone, and the connection ends with it. The work is bounded by [`HEAD_BYTES`] whatever the peer sends.

use crate::map::{MAX_PATH, PATH_WORDS};

/// How many bytes of a request are looked at: method, longest path, version, line end, and what fills the last word.
pub const HEAD_BYTES: usize = 196;

/// Bytes of `GET `.
const METHOD: usize = 4;
/// See [`Head::START`].
const START: usize = 4;
/// Bytes of ` HTTP/1.1\r\n`.
const VERSION: usize = 11;
const _: () =
    assert!(START + METHOD == 8 && METHOD + MAX_PATH + VERSION <= HEAD_BYTES && (START + HEAD_BYTES).is_multiple_of(8));

/// The first bytes of a request. What lies behind those that have come does not matter.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Head {
    /// Little-endian words: the program has no cheaper way to eight bytes.
    words: [u64; (START + HEAD_BYTES) / 8],
}

/// What a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The request line has not ended yet.
    Incomplete,
    /// `GET` for a path of this many bytes.
    Get(usize),
    /// Another method.
    Method,
    /// Not a request of HTTP/1, or a path that is too long for any answer.
    Malformed,
}

impl Head {
    /// Where the request starts in memory, so that its path is aligned.
    pub const START: usize = START;

    /// The first bytes of `request`.
    pub fn new(request: &[u8]) -> Self {
        let mut head = Self { words: [0; (START + HEAD_BYTES) / 8] };
        for (place, byte) in request.iter().take(HEAD_BYTES).enumerate() {
            let at = START + place;
            head.words[at / 8] |= u64::from(*byte) << (at % 8 * 8);
        }
        head
    }

    /// What the request asks, of which `available` bytes have come.
    pub fn parse(&self, available: usize) -> Request {
        self.parse_with(available, |length| length)
    }

    /// [`Self::parse`], where the path's length goes through `forget`: the program hides there from the verifier how the
    /// length was found, which otherwise follows the rest of the program for each length that there is.
    #[inline(always)]
    pub fn parse_with(&self, available: usize, forget: impl FnOnce(usize) -> usize) -> Request {
        match self.method(available) {
            None => {}
            Some(other) => return other,
        }
        let come = available.saturating_sub(METHOD);
        let path = self.path();
        let length = forget(if path.length < come { path.length } else { come });
        // Without a first byte the path may still begin as it should.
        if come > 0 && (length > MAX_PATH || self.word(0) as u8 != b'/') {
            return Request::Malformed;
        }
        path.version(come.saturating_sub(length)).unwrap_or(Request::Get(length))
    }

    /// `None` for `GET `, otherwise what the request is without it.
    #[inline(always)]
    fn method(&self, available: usize) -> Option<Request> {
        let [_, _, _, _, method @ ..] = self.words[0].to_le_bytes();
        if method == *b"GET " {
            return None;
        }
        let mut place = 0;
        while place < METHOD {
            if place >= available {
                return Some(Request::Incomplete);
            }
            let byte = method[place];
            if !(byte.is_ascii_uppercase() || (byte == b' ' && place > 0)) {
                return Some(Request::Malformed);
            }
            place += 1;
        }
        Some(Request::Method)
    }

    /// The path, up to the first space or control character, whether or not so much has come.
    #[inline(always)]
    fn path(&self) -> Path {
        for place in 0..=PATH_WORDS {
            let below = bytes_below_0x21(self.word(place));
            if below != 0 {
                let shift = below.trailing_zeros() & !7;
                // In two steps, because a shift by all 64 bits is none.
                let from = |place| self.word(place) >> shift | self.word(place + 1) << 1 << (63 - shift);
                return Path { length: place * 8 + shift as usize / 8, behind: [from(place), from(place + 1)] };
            }
        }
        Path { length: MAX_PATH + 1, behind: [0; 2] }
    }

    /// Eight bytes of a path of `length` bytes, with zeros behind it, as a [`crate::Key`] has them.
    #[inline(always)]
    pub fn path_word(&self, place: usize, length: usize) -> u64 {
        self.word(place) & first_bytes(length.saturating_sub(place * 8))
    }

    /// Eight bytes of the path.
    #[inline(always)]
    fn word(&self, place: usize) -> u64 {
        self.words.get(place + (START + METHOD) / 8).copied().unwrap_or(0)
    }
}

/// A path that was found in a request.
struct Path {
    /// In bytes; more than [`MAX_PATH`] if it has too many.
    length: usize,
    /// What stands behind it.
    behind: [u64; 2],
}

impl Path {
    /// `None` if ` HTTP/1.x` and a line break stand behind the path, otherwise what the request is. So many bytes of that have
    /// come.
    #[inline(always)]
    fn version(&self, come: usize) -> Option<Request> {
        const NAME: u64 = u64::from_le_bytes(*b" HTTP/1.");
        const END: u64 = u64::from_le_bytes(*b"\r\n\0\0\0\0\0\0");
        /// Where the minor version stands, which is any digit.
        const MINOR: usize = 8;
        let [name, rest] = self.behind;
        let is_right = (name ^ NAME) & first_bytes(come) == 0
            && (come <= MINOR || (rest as u8).is_ascii_digit())
            && (rest >> 8 ^ END) & 0xffff & first_bytes(come.saturating_sub(MINOR + 1)) == 0;
        match is_right {
            false => Some(Request::Malformed),
            true if come < VERSION => Some(Request::Incomplete),
            true => None,
        }
    }
}

/// The first `count` bytes of a word.
#[inline(always)]
const fn first_bytes(count: usize) -> u64 {
    if count < 8 { (1 << (count * 8)) - 1 } else { u64::MAX }
}

/// A word with the high bit set in its first byte below 0x21 (a space or a control character), and perhaps in later ones.
#[inline(always)]
const fn bytes_below_0x21(word: u64) -> u64 {
    word.wrapping_sub(0x2121_2121_2121_2121) & !word & 0x8080_8080_8080_8080
}

#[cfg(test)]
mod tests;
