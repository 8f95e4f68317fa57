//! TCP segments as frames, in both families, with tags, and what is in a frame that came back.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use etherparse::{
    LinkExtSlice, NetSlice, PacketBuilder, SingleVlanHeader, SlicedPacket, TcpHeader, TransportSlice, VlanHeader,
    VlanId,
};

use super::pair::{CLIENT_MAC, SERVER_MAC};

/// Hops that frames have left.
const HOPS: u8 = 64;

/// A segment before it is sent.
#[derive(Clone, Debug)]
#[must_use]
pub struct Segment {
    from: IpAddr,
    to: IpAddr,
    header: TcpHeader,
    payload: Vec<u8>,
    tags: Vec<u16>,
}

impl Segment {
    /// One without flags.
    pub fn new(from: SocketAddr, to: SocketAddr, sequence: u32) -> Self {
        let header = TcpHeader::new(from.port(), to.port(), sequence, u16::MAX);
        Self { from: from.ip(), to: to.ip(), header, payload: Vec::new(), tags: Vec::new() }
    }

    /// A SYN with the option that every one has: the most that a segment may hold.
    pub fn syn(from: SocketAddr, to: SocketAddr, sequence: u32) -> Self {
        let mut segment = Self::new(from, to, sequence);
        segment.header.syn = true;
        segment.options(&[2, 4, 0x05, 0xb4])
    }

    /// Acknowledges everything before.
    pub fn ack(mut self, number: u32) -> Self {
        self.header.ack = true;
        self.header.acknowledgment_number = number;
        self
    }

    /// With data.
    pub fn data(mut self, bytes: &[u8]) -> Self {
        self.header.psh = true;
        bytes.clone_into(&mut self.payload);
        self
    }

    /// Changes the header.
    pub fn with(mut self, change: impl FnOnce(&mut TcpHeader)) -> Self {
        change(&mut self.header);
        self
    }

    /// With these options, padded to a multiple of four.
    pub fn options(mut self, bytes: &[u8]) -> Self {
        // Longer than a header has room for: none are set, and a test that looks sees none.
        let _ = self.header.set_options_raw(bytes);
        self
    }

    /// Behind this VLAN tag, outside those that are there.
    pub fn tag(mut self, vlan: u16) -> Self {
        self.tags.insert(0, vlan);
        self
    }

    /// As it goes out on the cable, with all its checksums.
    ///
    /// # Errors
    /// When the families differ, or there are more than two tags.
    pub fn frame(&self) -> Result<Vec<u8>> {
        let mut frame = Vec::new();
        let link = PacketBuilder::ethernet2(CLIENT_MAC, SERVER_MAC);
        let vlan = |tag: &u16| -> Result<SingleVlanHeader> {
            let vlan_id = VlanId::try_new(*tag)?;
            Ok(SingleVlanHeader { vlan_id, ..SingleVlanHeader::default() })
        };
        let tag = match self.tags.as_slice() {
            [] => None,
            [one] => Some(VlanHeader::Single(vlan(one)?)),
            [outer, inner] => {
                Some(VlanHeader::Double(etherparse::DoubleVlanHeader { outer: vlan(outer)?, inner: vlan(inner)? }))
            }
            more => bail!("{} tags", more.len()),
        };
        let ip = match (self.from, self.to, tag) {
            (IpAddr::V4(from), IpAddr::V4(to), None) => link.ipv4(from.octets(), to.octets(), HOPS),
            (IpAddr::V6(from), IpAddr::V6(to), None) => link.ipv6(from.octets(), to.octets(), HOPS),
            (IpAddr::V4(from), IpAddr::V4(to), Some(tag)) => link.vlan(tag).ipv4(from.octets(), to.octets(), HOPS),
            (IpAddr::V6(from), IpAddr::V6(to), Some(tag)) => link.vlan(tag).ipv6(from.octets(), to.octets(), HOPS),
            (from, to, _) => bail!("{from} and {to} are of two families"),
        };
        ip.tcp_header(self.header.clone()).write(&mut frame, &self.payload)?;
        Ok(frame)
    }
}

/// A TCP segment that was received.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its sender.
    pub from: SocketAddr,
    /// Whom it is for.
    pub to: SocketAddr,
    /// Its header; the checksum is as it came.
    pub header: TcpHeader,
    /// Its data.
    pub payload: Vec<u8>,
    /// Whether the TCP checksum is right.
    pub intact: bool,
    /// Tags that are in the frame itself.
    pub tags: Vec<u16>,
}

impl Seen {
    /// Takes a frame apart. None when it holds no TCP segment.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
        let (from, to, right) = match packet.net? {
            NetSlice::Ipv4(ip) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                (IpAddr::from(from), IpAddr::from(to), tcp.calc_checksum_ipv4(from, to).ok()?)
            }
            NetSlice::Ipv6(ip) => {
                let (from, to) = (ip.header().source(), ip.header().destination());
                (IpAddr::from(from), IpAddr::from(to), tcp.calc_checksum_ipv6(from, to).ok()?)
            }
            NetSlice::Arp(_) => return None,
        };
        let tags = packet.link_exts.iter().filter_map(|ext| match ext {
            LinkExtSlice::Vlan(vlan) => Some(vlan.vlan_identifier().value()),
            LinkExtSlice::Macsec(_) => None,
        });
        Some(Self {
            from: SocketAddr::new(from, tcp.source_port()),
            to: SocketAddr::new(to, tcp.destination_port()),
            header: tcp.to_header(),
            payload: tcp.payload().to_vec(),
            intact: tcp.checksum() == right,
            tags: tags.collect(),
        })
    }

    /// The status of an answer that begins in here.
    pub fn status(&self) -> Option<u16> {
        let line = std::str::from_utf8(self.payload.get(..12)?).ok()?;
        line.strip_prefix("HTTP/1.1 ")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_what_its_frame_holds() -> Result<()> {
        for (from, to) in [("10.0.0.1:4000", "10.0.0.2:80"), ("[fd00::1]:4000", "[fd00::2]:80")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse()?, to.parse()?);
            let segment = Segment::new(from, to, 7).ack(9).data(b"HTTP/1.1 503 No\r\n").tag(3).tag(4);
            let seen = Seen::parse(&segment.frame()?).ok_or_else(|| anyhow::anyhow!("no segment"))?;
            assert_eq!((seen.from, seen.to, seen.status()), (from, to, Some(503)));
            assert_eq!((seen.header.sequence_number, seen.header.acknowledgment_number), (7, 9));
            assert!(seen.intact && seen.header.ack && !seen.header.syn);
            assert_eq!(seen.tags, [4, 3]);
        }
        Ok(())
    }
}
