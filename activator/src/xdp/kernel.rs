//! Places as the kernel's maps have them: addresses and ports as bytes, and which of the ports the program takes. Of a pod's
//! port that is probed it takes SYNs only while there is an answer for it.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use metrics::counter;
use podlight_xdp::{ANY_ADDRESS, Beat, Key, Listen, NEVER, Store};

use super::answers::Answer;
use super::place::Place;
use super::writer::{Map, MapError};
use crate::table::snapshot::Moment;

/// How often the machine's addresses are looked up, which come and go. Until one that came is noticed, this process answers.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Tells where the readiness port is to be taken. The program does it address by address: on a machine that forwards for
/// others, the same port of theirs is not ours.
pub type Addresses = Box<dyn Fn() -> io::Result<Vec<IpAddr>> + Send>;

/// The address that the readiness port is bound to, or when that is none in particular, all those of these interfaces.
pub fn addresses(bound: IpAddr, interfaces: Vec<String>) -> Addresses {
    Box::new(move || {
        if !bound.is_unspecified() {
            return Ok(vec![bound]);
        }
        let known = if_addrs::get_if_addrs()?;
        let ours = known.iter().filter(|known| interfaces.contains(&known.name)).map(|known| known.ip());
        // What is bound to the IPv6 one takes both.
        Ok(ours.filter(|ip| ip.is_ipv4() || bound.is_ipv6()).collect())
    })
}

/// The kernel's maps, or others of their kind.
pub struct Kernel<S> {
    store: S,
    /// The readiness port, where it is to be taken and where it is.
    port: u16,
    addresses: Addresses,
    taken: HashSet<IpAddr>,
    looked: Moment,
    ttl_ns: u64,
    /// What is in the map, each by a number that no other place has had.
    numbers: HashMap<Place, u64>,
    next_number: u64,
    /// Probed ports of pods.
    probed: HashMap<SocketAddr, Probed>,
}

/// A port that has places, and whether the program takes it.
#[derive(Debug, Default)]
struct Probed {
    places: usize,
    taken: bool,
}

impl<S: Store<Fault: Error + Send + Sync + 'static>> Kernel<S> {
    /// Has the program take the readiness port from now on. It answers nothing yet.
    pub fn new(store: S, port: u16, addresses: Addresses, ttl: Duration) -> Self {
        let ttl_ns = u64::try_from(ttl.as_nanos()).unwrap_or(NEVER);
        let (taken, looked, numbers, probed) = (HashSet::new(), Moment::now(), HashMap::new(), HashMap::new());
        let mut kernel = Self { store, port, addresses, taken, looked, ttl_ns, numbers, next_number: 1, probed };
        kernel.look();
        kernel
    }

    /// Has the program take the readiness port at the addresses that there are now, and leave the others alone.
    fn look(&mut self) {
        let wanted: HashSet<IpAddr> = match (self.addresses)() {
            Ok(addresses) => addresses.into_iter().collect(),
            Err(error) => {
                return tracing::warn!(%error, "the machine does not tell its addresses; those of before are kept");
            }
        };
        let port = self.port;
        let shared = |address: &IpAddr| Listen { address: octets(*address), port, is_shared: true };
        let (gone, come) = (self.taken.difference(&wanted), wanted.difference(&self.taken));
        let mut taken = self.taken.clone();
        for (address, result) in gone.map(|address| (address, self.store.unlisten(&shared(address)))) {
            if tell(address, result) {
                taken.remove(address);
            }
        }
        for (address, result) in come.map(|address| (address, self.store.listen(&shared(address)))) {
            if tell(address, result) {
                taken.insert(*address);
            }
        }
        self.taken = taken;
    }

    fn key(&self, place: &Place) -> Result<Key, MapError> {
        let (address, port) = place.at.map_or((ANY_ADDRESS, self.port), |at| (octets(at.ip()), at.port()));
        Key::new(address, port, place.path.as_bytes()).ok_or_else(|| MapError("the path is too long".into()))
    }

    /// Has the program take a probed port of a pod, if it has room for one more. Without, requests go to the pod as ever.
    fn take(&mut self, at: SocketAddr, another: bool) {
        let probed = self.probed.entry(at).or_default();
        probed.places += usize::from(another);
        if probed.taken {
            return;
        }
        match self.store.listen(&listen(at)) {
            Ok(()) => probed.taken = true,
            Err(error) => {
                counter!("podlight_xdp_probes_left_out_total").increment(1);
                tracing::warn!(%at, error = &error as &dyn Error, "a probe goes to its pod, not to the map");
            }
        }
    }

    /// Has the program leave a pod's port alone when the last of its places goes.
    fn leave(&mut self, at: SocketAddr) -> Result<(), MapError> {
        let Some(probed) = self.probed.get_mut(&at) else { return Ok(()) };
        if probed.places == 1 {
            if probed.taken {
                self.store.unlisten(&listen(at)).map_err(fault)?;
            }
            self.probed.remove(&at);
        } else {
            probed.places -= 1;
        }
        Ok(())
    }
}

impl<S: Store<Fault: Error + Send + Sync + 'static> + Send> Map for Kernel<S> {
    fn put(&mut self, place: &Place, answer: &Answer) -> Result<(), MapError> {
        let known = self.numbers.get(place).copied();
        let answer = podlight_xdp::Answer {
            is_ready: answer.ready,
            ready: answer.ready_endpoints,
            total: answer.endpoints,
            updated_ns: Moment::now().nanos,
            // What is not true any more is rewritten; whether somebody is there to do so, the sign of life tells.
            ttl_ns: NEVER,
            backend: known.unwrap_or(self.next_number),
        };
        self.store.insert(&self.key(place)?, &answer).map_err(fault)?;
        if known.is_none() {
            self.numbers.insert(place.clone(), self.next_number);
            self.next_number += 1;
        }
        place.at.into_iter().for_each(|at| self.take(at, known.is_none()));
        Ok(())
    }

    fn remove(&mut self, place: &Place) -> Result<(), MapError> {
        if !self.numbers.contains_key(place) {
            return Ok(());
        }
        place.at.into_iter().try_for_each(|at| self.leave(at))?;
        self.store.remove(&self.key(place)?).map_err(fault)?;
        self.numbers.remove(place);
        Ok(())
    }

    fn beat(&mut self, alive: Option<Moment>) -> Result<(), MapError> {
        if let Some(alive) = alive
            && self.looked.until(alive) >= LOOK_EVERY
        {
            self.looked = alive;
            self.look();
        }
        let beat = alive.map_or(Beat::default(), |alive| Beat { updated_ns: alive.nanos, ttl_ns: self.ttl_ns });
        self.store.beat(beat).map_err(fault)
    }
}

fn tell(address: &IpAddr, result: Result<(), impl Error + 'static>) -> bool {
    if let Err(error) = &result {
        tracing::warn!(%address, error = error as &dyn Error, "the program does not follow a change of addresses");
    }
    result.is_ok()
}

fn listen(at: SocketAddr) -> Listen {
    Listen { address: octets(at.ip()), port: at.port(), is_shared: false }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
    .octets()
}

fn fault(error: impl Error + Send + Sync + 'static) -> MapError {
    MapError(Box::new(error))
}

#[cfg(test)]
mod tests;
