//! Looks at the raw bytes of HTTP/1 requests before hyper does, and refuses what two parsers might read in two ways
//! (RFC 9112 §11.2): both kinds of length, several lengths, a coding other than `chunked`, folded lines, line ends
//! that are not CRLF, a space before a colon. Follows bodies of either framing so that it always knows where the
//! next head begins; a head that it refuses never reaches hyper. Never changes a byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memchr::{memchr, memchr2};

use super::fault::Fault;
use crate::server::stream::Scan;

mod chunks;

use chunks::Chunks;

/// Most header lines of a head: hyper takes no more, and would say so in its own words.
const MOST_LINES: usize = 100;

/// Where in the stream of requests a connection is.
#[derive(Debug)]
enum Place {
    /// Between requests, or before the first.
    Between,
    /// In a request line or header.
    Head,
    /// In a body with this many bytes to come.
    Body(u64),
    /// In a chunked body.
    Chunks(Chunks),
    /// Behind a head that asks for another protocol; what follows is of it, if the answer agrees.
    Upgrade,
    /// HTTP/2, or a tunnel: not looked at.
    Unseen,
    /// Behind something that is refused.
    Refused(Fault),
}

/// What the head being read has said so far.
#[derive(Debug, Default)]
struct Head {
    /// A request line has come.
    begun: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    lines: usize,
    bytes: usize,
}

/// The framing of one connection's requests.
#[derive(Debug)]
pub(super) struct Guard {
    place: Place,
    head: Head,
    /// A line, or the beginning of one, that came in several reads.
    line: Vec<u8>,
    heads: u64,
    /// What is refused is a body.
    body_broke: bool,
    most_bytes: usize,
    tunnelled: Arc<AtomicBool>,
}

impl Guard {
    /// The beginning of a connection. Heads have at most so many bytes; what follows an upgrade is left alone once
    /// `tunnelled` is set.
    pub(super) fn new(most_bytes: usize, tunnelled: Arc<AtomicBool>) -> Self {
        let (place, head, line) = (Place::Between, Head::default(), Vec::new());
        Self { place, head, line, heads: 0, body_broke: false, most_bytes, tunnelled }
    }

    /// For a connection of HTTP/2, whose framing cannot be read in two ways.
    pub(super) fn unseeing() -> Self {
        Self { place: Place::Unseen, ..Self::new(0, Arc::default()) }
    }

    /// Takes bytes of a head up to the end of a line. How many, and whether the head is over.
    fn take_line(&mut self, bytes: &[u8]) -> Result<(usize, bool), Fault> {
        let Some(end) = memchr(b'\n', bytes) else {
            self.count(bytes.len())?;
            self.line.extend_from_slice(bytes);
            return Ok((bytes.len(), false));
        };
        self.count(end + 1)?;
        let ended = if self.line.is_empty() {
            self.end_line(&bytes[..end])?
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(&bytes[..end]);
            self.end_line(&line)?
        };
        Ok((end + 1, ended))
    }

    fn count(&mut self, bytes: usize) -> Result<(), Fault> {
        self.head.bytes += bytes;
        if self.head.bytes > self.most_bytes { Err(Fault::TooLarge(self.most_bytes)) } else { Ok(()) }
    }

    /// Judges a line without its line feed. True when it ends the head.
    fn end_line(&mut self, line: &[u8]) -> Result<bool, Fault> {
        let line = match memchr(b'\r', line) {
            Some(at) if at + 1 == line.len() => &line[..at],
            Some(_) => return Err(Fault::Malformed("a carriage return inside a line")),
            None => return Err(Fault::Malformed("a line that ends without a carriage return")),
        };
        if !self.head.begun {
            // Empty lines before a request are nothing (RFC 9112 §2.2).
            self.head.begun = !line.is_empty();
            return Ok(false);
        }
        if line.is_empty() {
            return Ok(true);
        }
        self.header(line)?;
        Ok(false)
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Fault> {
        self.head.lines += 1;
        if self.head.lines > MOST_LINES {
            return Err(Fault::TooMany(MOST_LINES));
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(Fault::Malformed("a folded header line"));
        }
        let Some(colon) = memchr(b':', line) else { return Err(Fault::Malformed("a header line without a colon")) };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.is_empty() || memchr2(b' ', b'\t', name).is_some() {
            return Err(Fault::Malformed("a space in or after a header's name"));
        }
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => self.head.upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = length(value.trim_ascii()).ok_or(Fault::Malformed("Content-Length is not a number"))?;
                if self.head.length.replace(length).is_some() {
                    return Err(Fault::Malformed("several Content-Length"));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.head.chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Fault::Malformed("a Transfer-Encoding other than chunked"));
                }
                self.head.chunked = true;
            }
            _ => {}
        }
        if self.head.chunked && self.head.length.is_some() {
            return Err(Fault::Malformed("Content-Length and Transfer-Encoding in one request"));
        }
        Ok(())
    }

    fn end_head(&mut self) {
        self.heads += 1;
        let head = std::mem::take(&mut self.head);
        self.place = match head.length {
            _ if head.chunked => Place::Chunks(Chunks::new(self.most_bytes)),
            None | Some(0) if head.upgrade => Place::Upgrade,
            None | Some(0) => Place::Between,
            Some(length) => Place::Body(length),
        };
    }

    /// Takes some bytes: how many.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match &mut self.place {
            Place::Unseen => Ok(bytes.len()),
            Place::Body(left) => {
                let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= skipped as u64;
                if *left == 0 {
                    self.place = Place::Between;
                }
                Ok(skipped)
            }
            Place::Chunks(chunks) => {
                let taken = chunks.take(bytes)?;
                if chunks.ended() {
                    self.place = Place::Between;
                }
                Ok(taken)
            }
            Place::Between | Place::Head => {
                let (taken, ended) = self.take_line(bytes)?;
                self.place = if self.head.begun || !self.line.is_empty() { Place::Head } else { Place::Between };
                if ended {
                    self.end_head();
                }
                Ok(taken)
            }
            Place::Upgrade => {
                let tunnelled = self.tunnelled.load(Ordering::Acquire);
                self.place = if tunnelled { Place::Unseen } else { Place::Between };
                Ok(0)
            }
            Place::Refused(_) => Ok(0),
        }
    }
}

impl Scan for Guard {
    fn take(&mut self, bytes: &[u8]) -> usize {
        // Where the head begins that is being read: none of it is passed on once it is refused.
        let mut whole = 0;
        let mut taken = 0;
        while taken < bytes.len() {
            match self.step(&bytes[taken..]) {
                Ok(more) => taken += more,
                Err(fault) => {
                    self.body_broke = matches!(self.place, Place::Chunks(_));
                    self.place = Place::Refused(fault);
                    return whole;
                }
            }
            match &self.place {
                // Pieces of a head go on: hyper waits for its end as well.
                Place::Head => {}
                Place::Upgrade => return taken,
                Place::Refused(_) => return whole,
                Place::Between | Place::Body(_) | Place::Chunks(_) | Place::Unseen => whole = taken,
            }
        }
        taken
    }

    fn mid_head(&self) -> bool {
        matches!(self.place, Place::Head)
    }

    fn heads(&self) -> u64 {
        self.heads
    }

    fn refusal(&self) -> Option<Vec<u8>> {
        match &self.place {
            Place::Refused(fault) => Some(fault.raw_response()),
            Place::Between | Place::Head | Place::Body(_) | Place::Chunks(_) | Place::Upgrade | Place::Unseen => None,
        }
    }

    fn body_broke(&self) -> bool {
        self.body_broke
    }

    fn too_slow(&self) -> Vec<u8> {
        Fault::SlowHead.raw_response()
    }
}

/// The value of a `Content-Length`: digits and nothing else.
fn length(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(any(test, feature = "fuzzing"))]
impl Guard {
    /// What passes of these pieces, each taken as HTTP asks for it.
    fn pass(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        let (mut passed, mut ahead) = (Vec::new(), Vec::new());
        for piece in pieces {
            ahead.extend_from_slice(piece);
            while !ahead.is_empty() && self.refusal().is_none() {
                let taken = self.take(&ahead);
                passed.extend(ahead.drain(..taken));
            }
        }
        passed
    }
}

/// What a guard makes of a connection that comes in these pieces, for the fuzz target.
#[cfg(feature = "fuzzing")]
pub fn fuzz(pieces: &[&[u8]]) -> FuzzedGuard {
    let mut guard = Guard::new(FUZZED_HEAD_BYTES, Arc::default());
    let passed = guard.pass(pieces);
    let between = matches!(guard.place, Place::Between | Place::Upgrade);
    FuzzedGuard { passed, heads: guard.heads, refusal: guard.refusal(), between }
}

/// Most bytes of a head for the fuzz target, which is to come to the bound as well.
#[cfg(feature = "fuzzing")]
const FUZZED_HEAD_BYTES: usize = 4096;

/// What a guard has made of a connection.
#[cfg(feature = "fuzzing")]
#[derive(Debug, PartialEq, Eq)]
pub struct FuzzedGuard {
    /// What HTTP saw.
    pub passed: Vec<u8>,
    /// Heads that have ended.
    pub heads: u64,
    /// The answer to what is refused.
    pub refusal: Option<Vec<u8>>,
    /// No request is under way.
    pub between: bool,
}

#[cfg(test)]
mod tests;
