//! A peer that writes its frames by hand.

use std::net::IpAddr;

use etherparse::{
    DoubleVlanHeader, LinkExtSlice, LinkSlice, NetSlice, PacketBuilder, SingleVlanHeader, SlicedPacket, TcpHeader,
    TransportSlice, VlanHeader, VlanId,
};

pub(crate) const PORT: u16 = 9_000;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The sequence number before a peer's first byte: one that wraps soon.
pub(crate) const INITIAL: u32 = 0xffff_fff0;

/// Where a peer is, and what it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) is_v6: bool,
    pub(crate) tags: usize,
    pub(crate) has_timestamps: bool,
}

impl Peer {
    /// One of each kind.
    pub(crate) fn all() -> Vec<Self> {
        let mut peers = Vec::new();
        for is_v6 in [false, true] {
            for tags in 0..3 {
                peers.extend([false, true].map(|has_timestamps| Self { is_v6, tags, has_timestamps }));
            }
        }
        peers
    }

    pub(crate) fn addresses(&self) -> (IpAddr, IpAddr) {
        if self.is_v6 {
            ([0xfd, 0, 0, 0, 0, 0, 0, 1].into(), [0xfd, 0, 0, 0, 0, 0, 0, 2].into())
        } else {
            ([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
        }
    }

    /// Length of the link's and IP's headers.
    pub(crate) fn before_tcp(&self) -> usize {
        14 + 4 * self.tags + if self.is_v6 { 40 } else { 20 }
    }

    /// A frame with this header and data.
    pub(crate) fn frame(&self, header: TcpHeader, data: &[u8]) -> Vec<u8> {
        let id = |number| SingleVlanHeader { vlan_id: VlanId::try_new(number).expect("small"), ..Default::default() };
        let link = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC);
        let tag = match self.tags {
            0 => None,
            1 => Some(VlanHeader::Single(id(7))),
            _ => Some(VlanHeader::Double(DoubleVlanHeader { outer: id(7), inner: id(8) })),
        };
        let ip = match (self.addresses(), tag) {
            ((IpAddr::V4(from), IpAddr::V4(to)), None) => link.ipv4(from.octets(), to.octets(), 64),
            ((IpAddr::V4(from), IpAddr::V4(to)), Some(tag)) => link.vlan(tag).ipv4(from.octets(), to.octets(), 64),
            ((IpAddr::V6(from), IpAddr::V6(to)), None) => link.ipv6(from.octets(), to.octets(), 64),
            ((IpAddr::V6(from), IpAddr::V6(to)), Some(tag)) => link.vlan(tag).ipv6(from.octets(), to.octets(), 64),
            _ => unreachable!("one family"),
        };
        let mut frame = Vec::new();
        ip.tcp_header(header).write(&mut frame, data).expect("memory");
        // Half of a checksum, as a local sender leaves it.
        let place = self.before_tcp() + 16;
        frame[place..place + 2].copy_from_slice(&[0x12, 0x34]);
        frame
    }

    /// A header with a timestamp, if the peer has them, that echoes `echo`.
    pub(crate) fn header(&self, sequence: u32, echo: u32) -> TcpHeader {
        let mut header = TcpHeader::new(40_000, PORT, sequence, 64_240);
        if self.has_timestamps {
            let mut options = vec![1, 1, 8, 10];
            options.extend(0x0102_0304_u32.to_be_bytes());
            options.extend(echo.to_be_bytes());
            header.set_options_raw(&options).expect("it fits");
        }
        header
    }

    /// The SYN that Linux sends.
    pub(crate) fn syn(&self) -> Vec<u8> {
        let mut header = self.header(INITIAL, 0);
        header.syn = true;
        let mut options = vec![2, 4, 0x05, 0xb4, 4, 2];
        if self.has_timestamps {
            options.extend([8, 10, 1, 2, 3, 4, 0, 0, 0, 0]);
        } else {
            options.extend([1, 1]);
        }
        options.extend([1, 3, 3, 7]);
        header.set_options_raw(&options).expect("it fits");
        self.frame(header, b"")
    }

    /// A segment behind the handshake: `offset` bytes into what the peer says, with `number` acknowledged.
    pub(crate) fn segment(&self, offset: u32, number: u32, echo: u32) -> TcpHeader {
        let mut header = self.header(INITIAL.wrapping_add(1).wrapping_add(offset), echo);
        header.ack = true;
        header.acknowledgment_number = number;
        header
    }
}

/// A frame that came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) header: TcpHeader,
    pub(crate) data: Vec<u8>,
    /// What the timestamp option holds.
    pub(crate) timestamp: Option<(u32, u32)>,
    /// The segment size option.
    pub(crate) segment: Option<u16>,
}

impl Reply {
    /// Takes a frame apart and checks everything that every reply has to be.
    pub(crate) fn read(peer: &Peer, frame: &[u8]) -> Self {
        let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
        let Some(LinkSlice::Ethernet2(link)) = packet.link else { panic!("no Ethernet") };
        assert_eq!((link.source(), link.destination()), (SERVER_MAC, CLIENT_MAC));
        let tags: Vec<_> = packet.link_exts.iter().filter(|ext| matches!(ext, LinkExtSlice::Vlan(_))).collect();
        assert_eq!(tags.len(), peer.tags);
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
        let (client, server) = peer.addresses();
        let (from, to, checksum) = match packet.net.expect("IP") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                assert_eq!((header.ttl(), header.dont_fragment()), (64, true));
                let (from, to) = (header.source(), header.destination());
                (IpAddr::from(from), IpAddr::from(to), tcp.calc_checksum_ipv4(from, to).expect("short"))
            }
            NetSlice::Ipv6(ip) => {
                assert_eq!(ip.header().hop_limit(), 64);
                let (from, to) = (ip.header().source(), ip.header().destination());
                (IpAddr::from(from), IpAddr::from(to), tcp.calc_checksum_ipv6(from, to).expect("short"))
            }
            NetSlice::Arp(_) => panic!("ARP"),
        };
        assert_eq!((from, to), (server, client));
        assert_eq!((tcp.source_port(), tcp.destination_port()), (PORT, 40_000));
        assert_eq!(tcp.checksum(), checksum, "TCP checksum");
        let (mut timestamp, mut segment) = (None, None);
        for option in tcp.options_iterator() {
            let option = option.expect("a whole option");
            if let etherparse::TcpOptionElement::Timestamp(ours, theirs) = option {
                timestamp = Some((ours, theirs));
            } else if let etherparse::TcpOptionElement::MaximumSegmentSize(size) = option {
                segment = Some(size);
            } else {
                assert_eq!(option, etherparse::TcpOptionElement::Noop);
            }
        }
        assert_eq!(timestamp.is_some(), peer.has_timestamps);
        Self { header: tcp.to_header(), data: tcp.payload().to_vec(), timestamp, segment }
    }

    /// The status line and everything behind it.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.data).expect("ASCII")
    }
}
