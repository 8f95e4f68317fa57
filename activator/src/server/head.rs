//! Follows the framing of HTTP/1 requests in the raw bytes: enough to know whether a request head is on its
//! way, and whether one carries both `Content-Length` and `Transfer-Encoding`. hyper obeys the latter and hides
//! the former, as RFC 9112 §6.3 allows, so no layer above it can tell. Never changes a byte; after a
//! `Transfer-Encoding` it stops looking, because such a connection is closed after its answer.

/// Longest header name that matters, with its colon: `transfer-encoding:`.
const LONGEST_NAME: usize = 18;

/// What an HTTP/2 connection begins with.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Where in the stream of requests a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Between requests, or before the first.
    Between,
    /// In a request line or header.
    Head,
    /// In a body with this many bytes to come.
    Body(u64),
    /// HTTP/2, or behind a `Transfer-Encoding`: not looked at.
    Unseen,
}

/// The framing of one connection's requests.
#[derive(Debug)]
pub(super) struct HeadScan {
    place: Place,
    /// The beginning of the current line, in lower case.
    line: [u8; LONGEST_NAME],
    line_length: usize,
    /// The value of the current line's `Content-Length` so far, while it is one.
    digits: Option<u64>,
    content_length: Option<u64>,
    transfer_encoding: bool,
    /// How much of [`HTTP2_PREFACE`] the connection began with.
    preface: usize,
    heads: u64,
}

impl HeadScan {
    /// The beginning of a connection.
    pub(super) fn new() -> Self {
        Self {
            place: Place::Between,
            line: [0; LONGEST_NAME],
            line_length: 0,
            digits: None,
            content_length: None,
            transfer_encoding: false,
            preface: 0,
            heads: 0,
        }
    }

    /// Whether a head has begun and not ended.
    pub(super) fn mid_head(&self) -> bool {
        self.place == Place::Head
    }

    /// Whether the next byte begins a request.
    pub(super) fn between_requests(&self) -> bool {
        self.place == Place::Between
    }

    /// How many heads have ended.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Takes the next bytes. True when one of the heads in them has both kinds of length.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut conflict = false;
        while !bytes.is_empty() {
            match &mut self.place {
                Place::Unseen => return conflict,
                Place::Body(left) => {
                    let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= skipped as u64;
                    bytes = &bytes[skipped..];
                    if *left == 0 {
                        self.place = Place::Between;
                    }
                }
                Place::Between | Place::Head => {
                    let (byte, rest) = (bytes[0], &bytes[1..]);
                    bytes = rest;
                    conflict |= self.head_byte(byte);
                }
            }
        }
        conflict
    }

    fn head_byte(&mut self, byte: u8) -> bool {
        match byte {
            b'\r' => false,
            b'\n' if self.place == Place::Between => false,
            b'\n' if self.line_length == 0 => self.end_head(),
            b'\n' => {
                self.end_line();
                false
            }
            _ => {
                self.line_byte(byte);
                false
            }
        }
    }

    fn line_byte(&mut self, byte: u8) {
        if self.place == Place::Between {
            self.place = Place::Head;
            self.line_length = 0;
        }
        if self.preface < HTTP2_PREFACE.len() && byte == HTTP2_PREFACE[self.preface] {
            self.preface += 1;
            if self.preface == HTTP2_PREFACE.len() {
                self.place = Place::Unseen;
                return;
            }
        } else {
            // Not HTTP/2, now or ever.
            self.preface = usize::MAX;
        }
        if let Some(digits) = &mut self.digits
            && byte.is_ascii_digit()
        {
            *digits = digits.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
        }
        if self.line_length < LONGEST_NAME {
            self.line[self.line_length] = byte.to_ascii_lowercase();
            self.line_length += 1;
            if self.line[..self.line_length] == *b"content-length:" {
                self.digits = Some(0);
            }
        }
    }

    fn end_line(&mut self) {
        if let Some(digits) = self.digits.take() {
            self.content_length = Some(digits);
        }
        self.transfer_encoding |= self.line[..self.line_length] == *b"transfer-encoding:";
        self.line_length = 0;
    }

    fn end_head(&mut self) -> bool {
        self.heads += 1;
        let length = self.content_length.take();
        let conflict = self.transfer_encoding && length.is_some();
        self.place = match length {
            _ if self.transfer_encoding => Place::Unseen,
            None | Some(0) => Place::Between,
            Some(length) => Place::Body(length),
        };
        conflict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(pieces: &[&str]) -> (bool, HeadScan) {
        let mut scan = HeadScan::new();
        let conflict = pieces.iter().fold(false, |found, piece| found | scan.take(piece.as_bytes()));
        (conflict, scan)
    }

    #[test]
    fn both_lengths_conflict_in_either_order_and_however_cut() {
        let cl_te = "POST / HTTP/1.1\r\nContent-Length: 3\r\nTRANSFER-ENCODING: chunked\r\n\r\n";
        let te_cl = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
        for request in [cl_te, te_cl] {
            for cut in 0..request.len() {
                assert!(scan(&[&request[..cut], &request[cut..]]).0, "cut at {cut}");
            }
        }
    }

    #[test]
    fn one_length_alone_is_fine() {
        assert!(!scan(&["POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nContent-Length: 3\r\n\r\n"]).0);
        assert!(!scan(&["POST / HTTP/1.1\r\nX-Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"]).0);
    }

    #[test]
    fn a_body_is_no_head_and_the_request_behind_it_is_seen() {
        let body = "Content-Length: 1\r\nTransfer-Encoding: x\r\n\r\n";
        let first = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert!(!scan(&[&first]).0);
        let second = "\r\nPOST / HTTP/1.1\r\nContent-Length:1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(scan(&[&first, second]).0);
    }

    #[test]
    fn a_head_is_under_way_from_its_first_byte_to_its_empty_line() {
        assert!(!scan(&[]).1.mid_head());
        assert!(!scan(&["\r\n"]).1.mid_head());
        assert!(scan(&["G"]).1.mid_head());
        assert!(scan(&["GET / HTTP/1.1\r\nHost: a\r\n"]).1.mid_head());
        assert!(!scan(&["GET / HTTP/1.1\r\nHost: a\r\n\r\n"]).1.mid_head());
        assert!(!scan(&["POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc"]).1.mid_head());
        assert!(scan(&["GET / HTTP/1.1\r\n\r\n", "GET"]).1.mid_head());
    }

    #[test]
    fn http2_is_left_alone() {
        assert!(scan(&["PRI * HT"]).1.mid_head());
        assert!(!scan(&["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"]).1.mid_head());
    }
}
