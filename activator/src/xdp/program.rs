//! The XDP program in the kernel: loading it, attaching it to interfaces, and what is missing where that cannot be. It is
//! attached by links of this process, so that it goes when the process goes, however that ends. A program of somebody else
//! is never replaced. Nothing here decides what is answered.

use std::error::Error;
use std::fmt;

use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};

use super::Mode;
use super::capabilities;
use super::interface::{Interface, InterfaceError};
use super::maps::{Counters, LONG, Maps, SHORT};

/// The name of the program in the kernel.
pub const NAME: &str = "podlight";

/// The object that `make xdp` builds and the repository keeps.
static OBJECT: &[u8] = include_bytes_aligned!("../../xdp/podlight.o");

/// How the program runs at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In the driver, before the kernel makes a packet of its own of it.
    Native,
    /// In the kernel's own receive path, behind any driver.
    Generic,
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel wants more than this process may.
    #[error("the XDP program cannot be loaded without {missing}")]
    Capabilities {
        /// Names of capabilities.
        missing: String,
        /// What the kernel said.
        #[source]
        source: Box<EbpfError>,
    },
    /// The kernel does not take the program or its maps: it lacks what they use, or was built without it.
    #[error("this kernel does not take the XDP program: {reason}")]
    Refused {
        /// The verifier's last words, or the system's.
        reason: String,
        /// What the kernel said.
        #[source]
        source: Box<EbpfError>,
    },
    /// The maps could not be filled at first.
    #[error("the XDP program's maps cannot be used")]
    Maps(#[source] super::maps::MapFault),
}

/// Why the program is not attached to an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It is not there, or nothing can be learnt about it.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// A program is there already.
    #[error("{interface} has an XDP program already, number {id}{name}: it is not replaced")]
    Taken {
        /// The interface.
        interface: String,
        /// The program's number, as `bpftool prog` shows it.
        id: u32,
        /// Its name in brackets, where this process may know it.
        name: String,
    },
    /// The kernel or the driver refuses.
    #[error("{interface} does not take the XDP program ({way}): {reason}")]
    Refused {
        /// The interface.
        interface: String,
        /// How it was to run there.
        way: Way,
        /// What the system says, and what it means where that is known.
        reason: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
}

/// The program in the kernel. It is attached for as long as this lives.
pub struct Program {
    ebpf: Ebpf,
    id: u32,
}

impl Program {
    /// Loads the program with room for `max_entries` answers and as many listeners; it is attached to nothing yet and takes
    /// no port.
    ///
    /// # Errors
    /// When the kernel refuses; the error says what is missing.
    pub fn load(max_entries: u32) -> Result<(Self, Maps, Counters), LoadError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(SHORT, max_entries)
            .map_max_entries(LONG, max_entries)
            .map_max_entries("LISTENING", max_entries)
            .load(OBJECT)
            .map_err(refused)?;
        let xdp = program(&mut ebpf).map_err(|source| refused(source.into()))?;
        xdp.load().map_err(|source| refused(source.into()))?;
        let id = xdp.info().map_err(|source| refused(source.into()))?.id();
        let maps = Maps::take(&mut ebpf, max_entries).map_err(LoadError::Maps)?;
        let counters = Counters::take(&mut ebpf).map_err(LoadError::Maps)?;
        Ok((Self { ebpf, id }, maps, counters))
    }

    /// The program's number, as `bpftool prog` shows it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Attaches the program to an interface of this thread's network namespace. Tells how it runs there and, where that is
    /// not the driver although it was left open, why. [`Mode::Off`] attaches nothing.
    ///
    /// # Errors
    /// When there is no such interface, it has another program, or it does not take this one.
    pub fn attach(&mut self, name: &str, mode: Mode) -> Result<Option<(Way, Option<String>)>, AttachError> {
        if mode == Mode::Off {
            return Ok(None);
        }
        let interface = Interface::find(name)?;
        if let Some(id) = interface.program {
            let name = program_name(id).map(|name| format!(" ({name})")).unwrap_or_default();
            return Err(AttachError::Taken { interface: interface.name, id, name });
        }
        match mode {
            Mode::Off => Ok(None),
            Mode::Native => self.attach_as(&interface, Way::Native).map(|()| Some((Way::Native, None))),
            Mode::Generic => self.attach_as(&interface, Way::Generic).map(|()| Some((Way::Generic, None))),
            Mode::Auto if interface.kind.as_deref() == Some("veth") => {
                self.attach_as(&interface, Way::Generic)?;
                Ok(Some((Way::Generic, Some(VETH.to_owned()))))
            }
            Mode::Auto => match self.attach_as(&interface, Way::Native) {
                Ok(()) => Ok(Some((Way::Native, None))),
                Err(native) => {
                    self.attach_as(&interface, Way::Generic)?;
                    Ok(Some((Way::Generic, Some(native.to_string()))))
                }
            },
        }
    }

    fn attach_as(&mut self, interface: &Interface, way: Way) -> Result<(), AttachError> {
        let mode = match way {
            Way::Native => XdpMode::Driver,
            Way::Generic => XdpMode::Skb,
        };
        let attached = program(&mut self.ebpf).and_then(|xdp| xdp.attach_to_if_index(interface.index, mode));
        attached.map(drop).map_err(|source| AttachError::Refused {
            interface: interface.name.clone(),
            way,
            reason: attach_reason(&source),
            source: Box::new(source),
        })
    }
}

/// Why `auto` takes the generic way on a veth pair.
const VETH: &str = "a veth pair: native would need a program at its other end too, and slow the traffic that passes";

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, ProgramError> {
    ebpf.program_mut(NAME).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// The name of another program, which takes CAP_SYS_ADMIN to learn.
fn program_name(id: u32) -> Option<String> {
    let programs = aya::programs::loaded_programs();
    programs.filter_map(Result::ok).find(|program| program.id() == id)?.name_as_str().map(str::to_owned)
}

fn refused(source: EbpfError) -> LoadError {
    let missing = capabilities::missing();
    let source = Box::new(source);
    if missing.is_empty() {
        LoadError::Refused { reason: load_reason(&source), source }
    } else {
        LoadError::Capabilities { missing: missing.join(", "), source }
    }
}

/// The verifier's verdict stands before its statistics, behind thousands of lines.
fn load_reason(error: &EbpfError) -> String {
    if let EbpfError::ProgramError(ProgramError::LoadError { io_error, verifier_log }) = error {
        let log = verifier_log.to_string();
        let verdict = log.lines().rev().find(|line| {
            let is_statistics = ["verification time", "stack depth", "processed "].iter().any(|s| line.starts_with(s));
            !line.trim().is_empty() && !is_statistics
        });
        return verdict.map_or_else(|| io_error.to_string(), |verdict| format!("{verdict} ({io_error})"));
    }
    let mut deepest: &dyn Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// What a refusal means, as far as the kernel's codes tell.
fn attach_reason(error: &ProgramError) -> String {
    let ProgramError::SyscallError(error) = error else { return error.to_string() };
    let meaning = match error.io_error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::OPNOTSUPP) => "its driver has no XDP",
        Some(rustix::io::Errno::RANGE) => "its MTU, or its peer's, is too large",
        Some(rustix::io::Errno::NOSPC) => "it has fewer receive queues than its peer has for sending",
        Some(rustix::io::Errno::BUSY | rustix::io::Errno::EXIST) => "another program came first",
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => "CAP_NET_ADMIN is missing",
        _ => return error.io_error.to_string(),
    };
    format!("{meaning} ({})", error.io_error)
}
