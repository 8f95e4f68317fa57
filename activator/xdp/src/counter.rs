//! What became of each packet on a taken port.

/// The index of a packet's fate in the per-CPU array of counters. Each packet to a port that is taken is counted once and
/// under one of these, so that their sum is the number of such packets. Packets that the program cannot read a port from
/// (fragments, IPv4 options, IPv6 extension headers) and packets to other ports pass uncounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Counter {
    /// A SYN, answered with a SYN-ACK that carries a cookie.
    Syn = 0,
    /// A request, answered 200.
    Ready,
    /// A request, answered 503 because the map says so.
    Unready,
    /// A request, answered 503 because the entry or the heartbeat was too old, or the entry changed hands meanwhile.
    Stale,
    /// A request for a path that is not in the map, answered 404.
    Unknown,
    /// A first segment that is not an HTTP/1 request, answered 400.
    Malformed,
    /// A request with another method than GET, answered 405.
    Method,
    /// A first segment without a whole request line: not acknowledged, so that the peer sends it again with what follows.
    Incomplete,
    /// A request from a peer whose window has no room for the reply: not acknowledged, so that the peer asks again.
    Window,
    /// Data after the first segment, acknowledged once the reply has been, otherwise left for the peer to repeat.
    Later,
    /// A bare acknowledgement of a flow of ours: nothing to do.
    Ack,
    /// A FIN of a flow of ours, acknowledged.
    Fin,
    /// A RST: nothing is left to forget.
    Reset,
    /// A SYN that passed to userspace because the heartbeat is too old.
    PassedStale,
    /// A SYN that passed to userspace because it asks for what cannot be given here: a segment size below the reply's.
    PassedSyn,
    /// A packet without a valid cookie, passed to the kernel: a flow of a socket, or a forgery that the kernel resets.
    PassedCookie,
    /// A packet whose flags or lengths are no TCP peer's, passed to the kernel.
    PassedShape,
    /// A packet that could not be answered because a helper failed (no room to grow, no cookie), dropped.
    Failed,
}

impl Counter {
    /// Each counter, in the order of the array.
    pub const ALL: [Self; 18] = [
        Self::Syn,
        Self::Ready,
        Self::Unready,
        Self::Stale,
        Self::Unknown,
        Self::Malformed,
        Self::Method,
        Self::Incomplete,
        Self::Window,
        Self::Later,
        Self::Ack,
        Self::Fin,
        Self::Reset,
        Self::PassedStale,
        Self::PassedSyn,
        Self::PassedCookie,
        Self::PassedShape,
        Self::Failed,
    ];

    /// The counter's name as a metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
            Self::Malformed => "malformed",
            Self::Method => "method",
            Self::Incomplete => "incomplete",
            Self::Window => "window",
            Self::Later => "later",
            Self::Ack => "ack",
            Self::Fin => "fin",
            Self::Reset => "reset",
            Self::PassedStale => "passed_stale",
            Self::PassedSyn => "passed_syn",
            Self::PassedCookie => "passed_cookie",
            Self::PassedShape => "passed_shape",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_its_own_place_and_label() {
        for (place, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, place);
        }
        let labels: std::collections::HashSet<_> = Counter::ALL.map(Counter::label).into_iter().collect();
        assert_eq!(labels.len(), Counter::ALL.len());
    }
}
