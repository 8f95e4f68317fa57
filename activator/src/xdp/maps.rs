//! The kernel's maps, typed. One writer fills them; a full map is an error of its own.

use std::collections::{HashMap as Ports, HashSet};
use std::hash::{BuildHasher, RandomState};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use podlight_xdp::{
    ANY_ADDRESS, Answer, Beat, Counter, Entry, Key, Listen, ListenKey, Settings, Shelf, ShortKey, Store,
};
use rustix::io::Errno;

/// Why a map was not changed or read.
#[derive(Debug, thiserror::Error)]
pub enum MapFault {
    /// There is no room.
    #[error("the map has room for {limit} entries and no more")]
    Full {
        /// Its size.
        limit: u32,
    },
    /// The object that was built in has no such map.
    #[error("the XDP program has no map {0}")]
    Missing(&'static str),
    /// The kernel refused.
    #[error("the kernel refused a change of the map {map}")]
    Kernel {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
}

/// The map of answers to short paths.
pub(super) const SHORT: &str = "ANSWERS";
/// That of the others.
pub(super) const LONG: &str = "LONG";

/// The maps that the writer fills.
pub struct Maps {
    short: HashMap<MapData, ShortKey, Entry>,
    long: HashMap<MapData, Key, Entry>,
    listening: HashMap<MapData, ListenKey, u32>,
    ports: Array<MapData, podlight_xdp::Ports>,
    beat: Array<MapData, Beat>,
    seed: u64,
    limit: u32,
    /// On which addresses each port is taken.
    taken: Ports<u16, HashSet<[u8; 16]>>,
}

impl Maps {
    /// Takes the maps out of what was loaded and gives the program its seed.
    pub(super) fn take(ebpf: &mut Ebpf, limit: u32) -> Result<Self, MapFault> {
        // The hasher's keys are the system's random numbers.
        let [seed, mark] = [(); 2].map(|()| RandomState::new().hash_one(std::process::id()));
        let mut settings: Array<MapData, Settings> = typed(ebpf, "SETTINGS")?;
        settings.set(0, Settings { seed, mark }, 0).map_err(|source| kernel("SETTINGS", source))?;
        Ok(Self {
            short: typed(ebpf, SHORT)?,
            long: typed(ebpf, LONG)?,
            listening: typed(ebpf, "LISTENING")?,
            ports: typed(ebpf, "PORTS")?,
            beat: typed(ebpf, "BEAT")?,
            seed,
            limit,
            taken: Ports::new(),
        })
    }

    /// What is in the map, one entry after the other; an entry that changes meanwhile may be missed or come twice.
    pub fn answers(&self) -> impl Iterator<Item = Result<(Key, Answer), MapFault>> {
        let short = self.short.iter().map(|entry| entry.map(|(key, entry)| (Key::from(key), entry)));
        let short = short.map(|entry| entry.map_err(|source| kernel(SHORT, source)));
        let long = self.long.iter().map(|entry| entry.map_err(|source| kernel(LONG, source)));
        short.chain(long).map(|entry| entry.map(|(key, entry)| (key, entry.answer())))
    }

    /// Writes the port's bits as `taken` has them, as a new version.
    fn mark(&mut self, port: u16) -> Result<(), MapFault> {
        let place = u32::from(port >> 6);
        let bit = 1 << (port & 63);
        let mut bits = self.ports.get(&place, 0).map_err(|source| kernel("PORTS", source))?;
        let addresses = self.taken.get(&port);
        let is_any = addresses.is_some_and(|addresses| addresses.contains(&ANY_ADDRESS));
        let is_some = addresses.is_some_and(|addresses| addresses.iter().any(|address| *address != ANY_ADDRESS));
        bits.any = if is_any { bits.any | bit } else { bits.any & !bit };
        bits.some = if is_some { bits.some | bit } else { bits.some & !bit };
        bits.version = bits.version.wrapping_add(1);
        self.ports.set(place, bits, 0).map_err(|source| kernel("PORTS", source))
    }
}

impl Store for Maps {
    type Fault = MapFault;

    fn insert(&mut self, key: &Key, answer: &Answer) -> Result<(), MapFault> {
        let entry = Entry::new(self.seed, key, answer);
        match key.shelf() {
            Shelf::Short(key) => self.short.insert(key, entry, 0).map_err(|source| full_or(self.limit, SHORT, source)),
            Shelf::Long(key) => self.long.insert(key, entry, 0).map_err(|source| full_or(self.limit, LONG, source)),
        }
    }

    fn remove(&mut self, key: &Key) -> Result<(), MapFault> {
        match key.shelf() {
            Shelf::Short(key) => removed(SHORT, self.short.remove(&key)),
            Shelf::Long(key) => removed(LONG, self.long.remove(&key)),
        }
    }

    fn beat(&mut self, beat: Beat) -> Result<(), MapFault> {
        self.beat.set(0, beat, 0).map_err(|source| kernel("BEAT", source))
    }

    fn listen(&mut self, at: &Listen) -> Result<(), MapFault> {
        if at.address != ANY_ADDRESS {
            let key = ListenKey { address: at.address, port: u32::from(at.port) };
            let inserted = self.listening.insert(key, u32::from(at.is_shared), 0);
            inserted.map_err(|source| full_or(self.limit, "LISTENING", source))?;
        }
        self.taken.entry(at.port).or_default().insert(at.address);
        self.mark(at.port)
    }

    fn unlisten(&mut self, at: &Listen) -> Result<(), MapFault> {
        if let Some(addresses) = self.taken.get_mut(&at.port) {
            addresses.remove(&at.address);
            if addresses.is_empty() {
                self.taken.remove(&at.port);
            }
        }
        self.mark(at.port)?;
        if at.address == ANY_ADDRESS {
            return Ok(());
        }
        let key = ListenKey { address: at.address, port: u32::from(at.port) };
        removed("LISTENING", self.listening.remove(&key))?;
        // Once more: the program may have looked the address up in between.
        self.mark(at.port)
    }
}

/// What became of packets, summed over the CPUs.
pub struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, MapFault> {
        typed(ebpf, "COUNTERS").map(Self)
    }

    /// Each counter's value.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self) -> Result<[(Counter, u64); Counter::ALL.len()], MapFault> {
        let mut counts = Counter::ALL.map(|counter| (counter, 0));
        for (counter, count) in &mut counts {
            let values = self.0.get(&(*counter as u32), 0).map_err(|source| kernel("COUNTERS", source))?;
            *count = values.iter().sum();
        }
        Ok(counts)
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

fn typed<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, MapFault> {
    let map = ebpf.take_map(name).ok_or(MapFault::Missing(name))?;
    T::try_from(map).map_err(|source| kernel(name, source))
}

fn kernel(map: &'static str, source: MapError) -> MapFault {
    MapFault::Kernel { map, source }
}

/// The kernel says E2BIG when a map is full.
fn full_or(limit: u32, map: &'static str, source: MapError) -> MapFault {
    if errno(&source) == Some(Errno::TOOBIG) { MapFault::Full { limit } } else { kernel(map, source) }
}

/// What is not there need not be removed.
fn removed(map: &'static str, result: Result<(), MapError>) -> Result<(), MapFault> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(source) if errno(&source) == Some(Errno::NOENT) => Ok(()),
        result => result.map_err(|source| kernel(map, source)),
    }
}

fn errno(error: &MapError) -> Option<Errno> {
    let error = if let MapError::SyscallError(error) = error {
        &error.io_error
    } else if let MapError::IoError(error) = error {
        error
    } else {
        return None;
    };
    error.raw_os_error().map(Errno::from_raw_os_error)
}
