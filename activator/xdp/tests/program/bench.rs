//! The program in the kernel with maps of its own, run on frames by `BPF_PROG_TEST_RUN`: no interface is involved.

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use podlight_xdp::{Answer, Beat, Counter, Entry, Key, ListenKey, Ports, Settings, Shelf, ShortKey};

static OBJECT: &[u8] = include_bytes_aligned!("../../podlight.o");

const SEED: u64 = 0x5eed;

/// What the program does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Drop,
    Pass,
    Send,
}

pub(crate) struct Bench {
    ebpf: Ebpf,
    short: HashMap<MapData, ShortKey, Entry>,
    long: HashMap<MapData, Key, Entry>,
    listening: HashMap<MapData, ListenKey, u32>,
    ports: Array<MapData, Ports>,
    beat: Array<MapData, Beat>,
    counters: PerCpuArray<MapData, u64>,
}

impl Bench {
    /// A program that takes no port, under a fresh heartbeat.
    pub(crate) fn new() -> Self {
        let mut loader = EbpfLoader::new();
        for map in ["ANSWERS", "LONG", "LISTENING"] {
            loader.map_max_entries(map, 512);
        }
        let mut ebpf = loader.load(OBJECT).expect("the object loads: these tests take root");
        program(&mut ebpf).load().expect("the verifier takes the program");
        let mut settings: Array<MapData, Settings> = take(&mut ebpf, "SETTINGS");
        settings.set(0, Settings { seed: SEED, mark: 0x1234_5678_9abc_def1 }, 0).expect("one element");
        let (short, long, listening) =
            (take(&mut ebpf, "ANSWERS"), take(&mut ebpf, "LONG"), take(&mut ebpf, "LISTENING"));
        let (ports, beat, counters) = (take(&mut ebpf, "PORTS"), take(&mut ebpf, "BEAT"), take(&mut ebpf, "COUNTERS"));
        let mut bench = Self { ebpf, short, long, listening, ports, beat, counters };
        bench.beat(Beat { updated_ns: now(), ttl_ns: u64::MAX });
        bench
    }

    pub(crate) fn beat(&mut self, beat: Beat) {
        self.beat.set(0, beat, 0).expect("one element");
    }

    pub(crate) fn put(&mut self, key: &Key, answer: &Answer) {
        self.put_entry(key, Entry::new(SEED, key, answer));
    }

    pub(crate) fn put_entry(&mut self, key: &Key, entry: Entry) {
        let inserted = match key.shelf() {
            Shelf::Short(key) => self.short.insert(key, entry, 0),
            Shelf::Long(key) => self.long.insert(key, entry, 0),
        };
        inserted.expect("there is room");
    }

    /// Takes a port, on any address or on one whose answers are its own.
    pub(crate) fn listen(&mut self, port: u16, address: Option<[u8; 16]>) {
        let place = u32::from(port >> 6);
        let mut bits = self.ports.get(&place, 0).expect("an element");
        match address {
            None => bits.any |= 1 << (port & 63),
            Some(address) => {
                bits.some |= 1 << (port & 63);
                self.listening.insert(ListenKey { address, port: u32::from(port) }, 0, 0).expect("there is room");
            }
        }
        bits.version += 1;
        self.ports.set(place, bits, 0).expect("an element");
    }

    /// Gives back a port that was taken on one address.
    pub(crate) fn unlisten(&mut self, port: u16, address: [u8; 16]) {
        self.listening.remove(&ListenKey { address, port: u32::from(port) }).expect("it is there");
        let place = u32::from(port >> 6);
        let mut bits = self.ports.get(&place, 0).expect("an element");
        bits.version += 1;
        self.ports.set(place, bits, 0).expect("an element");
    }

    /// Each counter's value.
    pub(crate) fn counts(&self) -> [u64; Counter::ALL.len()] {
        Counter::ALL.map(|counter| {
            let values = self.counters.get(&(counter as u32), 0).expect("an element");
            values.iter().sum()
        })
    }

    /// Runs the program on a frame; what it does, what the frame is then, and how it counted it.
    pub(crate) fn run(&mut self, frame: &[u8]) -> (Action, Vec<u8>, Option<Counter>) {
        let before = self.counts();
        let mut out = vec![0; frame.len() + 512];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), repeat: 1, ..Default::default() };
        let result = program(&mut self.ebpf).test_run(options).expect("the kernel runs the program");
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Send,
            other => panic!("action {other}"),
        };
        let after = self.counts();
        let mut counted =
            Counter::ALL.into_iter().zip(before.iter().zip(after)).filter(|(_, (before, after))| *before != after);
        let counter = counted.next().map(|(counter, (before, after))| {
            assert_eq!(before + 1, after, "{counter:?} counted more than once");
            counter
        });
        assert!(counted.next().is_none(), "counted under two counters");
        (action, out, counter)
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds; the proof that the program reads the same clock is that entries run out.
pub(crate) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).expect("after boot")
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut("podlight").expect("it is in the object").try_into().expect("it is an XDP program")
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> T {
    T::try_from(ebpf.take_map(name).expect("it is in the object")).expect("it has this type")
}
