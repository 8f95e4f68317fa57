//! The parser of requests. It reads the request line and nothing behind it: the answer depends on the method and the path
//! alone, and the connection ends with it. The work is bounded by [`HEAD_BYTES`] whatever the peer sends.

use crate::map::{MAX_PATH, PATH_WORDS};

/// How many bytes of a request are looked at: method, longest path, version, line end, and what fills the last word.
pub const HEAD_BYTES: usize = 196;

/// Bytes of `GET `.
const METHOD: usize = 4;
/// Bytes of ` HTTP/1.1\r\n`.
const VERSION: usize = 11;
/// Where the request starts, so that its path is aligned.
const START: usize = 4;
const _: () =
    assert!(START + METHOD == 8 && METHOD + MAX_PATH + VERSION <= HEAD_BYTES && (START + HEAD_BYTES).is_multiple_of(8));

/// The first bytes of a request, with zeros behind them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Head {
    bytes: [u8; START + HEAD_BYTES],
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
    /// The first bytes of `request`.
    pub fn new(request: &[u8]) -> Self {
        let mut head = Self::empty();
        for (byte, from) in head.bytes.iter_mut().skip(START).zip(request) {
            *byte = *from;
        }
        head
    }

    /// No bytes.
    #[inline(always)]
    pub const fn empty() -> Self {
        Self { bytes: [0; START + HEAD_BYTES] }
    }

    /// Where the program has the kernel copy the request to: [`HEAD_BYTES`].
    #[inline(always)]
    pub fn space(&mut self) -> &mut [u8] {
        let (_, space) = self.bytes.split_at_mut(START);
        space
    }

    /// What the request asks, of which `available` bytes have come. Bytes that have not come are zero in the head.
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
        let length = forget(self.path_length());
        if length > MAX_PATH || self.byte(METHOD) != b'/' {
            // Without a first byte the path may still begin as it should.
            return if available == METHOD { Request::Incomplete } else { Request::Malformed };
        }
        self.version(METHOD + length, available).unwrap_or(Request::Get(length))
    }

    /// `None` for `GET `, otherwise what the request is without it.
    #[inline(always)]
    fn method(&self, available: usize) -> Option<Request> {
        let method = [self.byte(0), self.byte(1), self.byte(2), self.byte(3)];
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

    /// How many bytes the path has up to the first space or control character, or up to the first zero, which stands for what
    /// has not come; more than [`MAX_PATH`] if it has too many.
    #[inline(always)]
    fn path_length(&self) -> usize {
        for place in 0..=PATH_WORDS {
            let below = bytes_below_0x21(self.word(place));
            if below != 0 {
                return place * 8 + below.trailing_zeros() as usize / 8;
            }
        }
        MAX_PATH + 1
    }

    /// `None` if the line ends in ` HTTP/1.x` and a line break from `at`, otherwise what the request is.
    #[inline(always)]
    fn version(&self, at: usize, available: usize) -> Option<Request> {
        const EXPECTED: [u8; VERSION] = *b" HTTP/1.1\r\n";
        /// Where the minor version stands: any digit.
        const MINOR: usize = 8;
        let mut place = 0;
        while place < VERSION {
            if at + place >= available {
                return Some(Request::Incomplete);
            }
            let byte = self.byte(at + place);
            if !(byte == EXPECTED[place] || (place == MINOR && byte.is_ascii_digit())) {
                return Some(Request::Malformed);
            }
            place += 1;
        }
        None
    }

    /// The request's byte at `place`; 0 behind the head.
    #[inline(always)]
    fn byte(&self, place: usize) -> u8 {
        self.bytes.get(START + place).copied().unwrap_or(0)
    }

    /// Eight bytes of the path.
    #[inline(always)]
    fn word(&self, place: usize) -> u64 {
        let start = START + METHOD + place * 8;
        match self.bytes.get(start..start + 8) {
            Some(&[a, b, c, d, e, f, g, h]) => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        }
    }
}

/// A word with the high bit set in its first byte below 0x21 (a space or a control character), and perhaps in later ones.
#[inline(always)]
const fn bytes_below_0x21(word: u64) -> u64 {
    word.wrapping_sub(0x2121_2121_2121_2121) & !word & 0x8080_8080_8080_8080
}

#[cfg(test)]
mod tests;
