//! What the kernel tells of a network interface: its number, its kind, and whose XDP program is there.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Why nothing is known about an interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// There is none of that name.
    #[error("there is no network interface {0}")]
    Unknown(String),
    /// The kernel does not tell.
    #[error("cannot ask the kernel about the interface {name}")]
    Netlink {
        /// The interface.
        name: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// An interface of this thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    /// What it is, if it is not hardware: `veth`, `bridge`.
    pub kind: Option<String>,
    /// The number of the XDP program that is attached to it.
    pub program: Option<u32>,
}

impl Interface {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When there is no such interface, or no answer.
    pub fn find(name: &str) -> Result<Self, InterfaceError> {
        let netlink = |source| InterfaceError::Netlink { name: name.to_owned(), source };
        match ask(name).map_err(netlink)? {
            Some(message) => Ok(Self::read(name, message)),
            None => Err(InterfaceError::Unknown(name.to_owned())),
        }
    }

    fn read(name: &str, message: LinkMessage) -> Self {
        let mut interface = Self { name: name.to_owned(), index: message.header.index, kind: None, program: None };
        for attribute in message.attributes {
            if let LinkAttribute::LinkInfo(infos) = attribute {
                let kind =
                    infos.iter().find_map(|info| if let LinkInfo::Kind(kind) = info { Some(kind) } else { None });
                interface.kind = kind.map(InfoKind::to_string);
            } else if let LinkAttribute::Xdp(parts) = attribute {
                // One program has its number under this name, several (native and generic) each under its own.
                interface.program = parts.iter().find_map(|part| {
                    if let LinkXdp::ProgId(id)
                    | LinkXdp::DrvProgId(id)
                    | LinkXdp::SkbProgId(id)
                    | LinkXdp::HwProgId(id) = part
                    {
                        Some(*id).filter(|id| *id != 0)
                    } else {
                        None
                    }
                });
            }
        }
        interface
    }
}

/// Sends one question and reads one answer; `None` if there is no such interface.
fn ask(name: &str) -> io::Result<Option<LinkMessage>> {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, RouteNetlinkMessage::GetLink(question).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    let payload = answer.payload;
    if let NetlinkPayload::Error(error) = &payload {
        let error = error.to_io();
        let is_unknown = error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error());
        return if is_unknown { Ok(None) } else { Err(error) };
    }
    if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = payload {
        Ok(Some(link))
    } else {
        Err(io::Error::other("an answer to another question"))
    }
}
