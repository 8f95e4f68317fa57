//! The bytes of replies. All have the same length, whatever they say, so that the program needs no arithmetic to size a
//! packet and knows from an acknowledgement alone that the reply has arrived.

/// Length of each reply in bytes: head and body.
pub const REPLY_BYTES: usize = 100;

/// Length in bytes of the end of a reply's body, which shows an entry's counts.
pub const TEXT_BYTES: usize = 16;

/// What a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reply {
    /// 200.
    Ready = 0,
    /// 503, because nothing is ready.
    Unready,
    /// 503, because the map is too old to tell.
    Stale,
    /// 404: the path is no answer's.
    Unknown,
    /// 400: not a request of HTTP/1.
    Malformed,
    /// 405: only GET is answered.
    Method,
}

impl Reply {
    /// Each reply, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Ready, Self::Unready, Self::Stale, Self::Unknown, Self::Malformed, Self::Method];

    /// The reply's bytes, with the counts of an [`crate::Entry`] at the end where there are some.
    pub const fn bytes(self, text: Option<[u8; TEXT_BYTES]>) -> [u8; REPLY_BYTES] {
        let (status, word) = match self {
            Self::Ready => ("200 OK", "ready"),
            Self::Unready => ("503 Service Unavailable", "not ready"),
            Self::Stale => ("503 Service Unavailable", "stale"),
            Self::Unknown => ("404 Not Found", "unknown path"),
            Self::Malformed => ("400 Bad Request", "bad request"),
            // A 405 names what is allowed (RFC 9110 §15.5.6).
            Self::Method => ("405 Method Not Allowed\r\nAllow: GET", "GET only"),
        };
        let mut bytes = [b' '; REPLY_BYTES];
        let mut place = put(&mut bytes, 0, "HTTP/1.1 ");
        place = put(&mut bytes, place, status);
        place = put(&mut bytes, place, "\r\nConnection: close\r\nContent-Length: ");
        let body = place + "00\r\n\r\n".len();
        let length = REPLY_BYTES - body;
        bytes[place] = b'0' + (length / 10) as u8;
        bytes[place + 1] = b'0' + (length % 10) as u8;
        put(&mut bytes, place + 2, "\r\n\r\n");
        put(&mut bytes, body, word);
        put(&mut bytes, REPLY_BYTES - 1, "\n");
        if let Some(text) = text {
            let mut place = 0;
            while place < TEXT_BYTES {
                bytes[REPLY_BYTES - TEXT_BYTES + place] = text[place];
                place += 1;
            }
        }
        bytes
    }

    /// The status code.
    pub const fn status(self) -> u16 {
        match self {
            Self::Ready => 200,
            Self::Unready | Self::Stale => 503,
            Self::Unknown => 404,
            Self::Malformed => 400,
            Self::Method => 405,
        }
    }
}

/// Writes `text` at `place` and returns where it ends.
const fn put(bytes: &mut [u8; REPLY_BYTES], place: usize, text: &str) -> usize {
    let mut letter = 0;
    while letter < text.len() {
        bytes[place + letter] = text.as_bytes()[letter];
        letter += 1;
    }
    place + letter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reply_is_a_response_of_the_length_that_it_names() {
        for reply in Reply::ALL {
            let bytes = reply.bytes(None);
            let text = std::str::from_utf8(&bytes).expect("ASCII");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
            let mut lines = head.split("\r\n");
            let status = lines.next().expect("a status line");
            assert!(status.starts_with(&format!("HTTP/1.1 {} ", reply.status())), "{status}");
            let fields: std::collections::HashMap<_, _> =
                lines.map(|line| line.split_once(": ").expect("a field")).collect();
            assert_eq!(fields["Content-Length"], body.len().to_string(), "{reply:?}");
            assert_eq!(fields["Connection"], "close");
            assert_eq!(fields.contains_key("Allow"), reply == Reply::Method);
            assert!(body.ends_with(" \n"), "{body:?}");
        }
    }

    #[test]
    fn counts_leave_the_words_before_them_whole() {
        let bytes = Reply::Unready.bytes(Some(*b" 99999 of 99999\n"));
        assert!(bytes.ends_with(b"\r\n\r\nnot ready 99999 of 99999\n"));
    }

    #[test]
    fn counts_end_the_body() {
        let bytes = Reply::Ready.bytes(Some(*b"         3 of 5\n"));
        assert!(bytes.ends_with(b"\r\n\r\nready                              3 of 5\n"));
    }
}
