//! The framing of one chunked body (RFC 9112 §7.1), followed as strictly as it is written: a size is hexadecimal
//! digits, every line ends with CRLF, and a trailer section is as small as a head.

use memchr::memchr;

use crate::proxy::fault::Fault;

/// Longest line with a chunk's size and its extensions, which nobody needs.
const SIZE_LINE: usize = 256;

/// Most digits of a size: 2^60 bytes.
const DIGITS: usize = 15;

/// Where in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the line with a chunk's size.
    Size,
    /// In a chunk with this many bytes to come, the two of its line end included.
    Data(u64),
    /// Behind the last chunk.
    Trailers,
    Ended,
}

/// A chunked body on its way.
#[derive(Debug)]
pub(super) struct Chunks {
    place: Place,
    line: Vec<u8>,
    trailer_bytes: usize,
    most_trailer_bytes: usize,
}

impl Chunks {
    pub(super) fn new(most_trailer_bytes: usize) -> Self {
        Self { place: Place::Size, line: Vec::new(), trailer_bytes: 0, most_trailer_bytes }
    }

    pub(super) fn ended(&self) -> bool {
        self.place == Place::Ended
    }

    /// Takes some bytes: how many.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        match &mut self.place {
            Place::Data(left) => {
                // The chunk, then CR, then LF.
                let data = usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX).min(bytes.len());
                *left -= data as u64;
                let end = match (*left, bytes.get(data)) {
                    (_, None) | (3.., _) => 0,
                    (2, Some(b'\r')) | (1, Some(b'\n')) => 1,
                    _ => return Err(Fault::Malformed("a chunk longer than it says")),
                };
                *left -= end as u64;
                if *left == 0 {
                    self.place = Place::Size;
                }
                Ok(data + end)
            }
            Place::Size | Place::Trailers => self.take_line(bytes),
            Place::Ended => Ok(0),
        }
    }

    fn take_line(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let (taken, whole) = memchr(b'\n', bytes).map_or((bytes.len(), false), |end| (end + 1, true));
        self.line.extend_from_slice(&bytes[..taken]);
        let trailers = self.place == Place::Trailers;
        let bound = if trailers { self.most_trailer_bytes - self.trailer_bytes } else { SIZE_LINE };
        if self.line.len() > bound {
            return Err(if trailers { Fault::TooLarge(self.most_trailer_bytes) } else { malformed_size() });
        }
        if !whole {
            return Ok(taken);
        }
        let mut line = std::mem::take(&mut self.line);
        self.trailer_bytes += if trailers { line.len() } else { 0 };
        let content = line.strip_suffix(b"\r\n").filter(|content| memchr(b'\r', content).is_none());
        let content = content.ok_or(Fault::Malformed("a line of a chunked body that does not end with CRLF"))?;
        self.place = match (trailers, content) {
            (true, []) => Place::Ended,
            (true, [b' ' | b'\t', ..]) => return Err(Fault::Malformed("a folded trailer line")),
            (true, _) => Place::Trailers,
            (false, line) => match size(line).ok_or_else(malformed_size)? {
                0 => Place::Trailers,
                size => Place::Data(size + 2),
            },
        };
        line.clear();
        self.line = line;
        Ok(taken)
    }
}

fn malformed_size() -> Fault {
    Fault::Malformed("a chunk's size cannot be read")
}

/// The size that a line says. Extensions are left alone, but nothing else may follow the digits.
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    if !(1..=DIGITS).contains(&digits.len()) || !matches!(rest, [] | [b';', ..]) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
