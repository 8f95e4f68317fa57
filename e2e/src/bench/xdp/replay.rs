//! What one run of the program takes, packet by packet: the kernel runs it on the same frame again and again
//! (`BPF_PROG_TEST_RUN`), with nothing else on the core. A frame that was turned into its reply is put back before each run by a
//! second program, `replay`; what that takes is measured with a program behind it that does nothing, and taken off.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapError, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use podlight_xdp::{
    ANY_ADDRESS, Answer, Beat, Entry, Key, ListenKey, NEVER, Ports, Settings, Shelf, ShortKey, v4_mapped,
};
use rustix::time::{ClockId, clock_gettime};

use crate::bench::progress;
use crate::bench::report::Row;
use crate::bench::usage::median;
use crate::net::ask::request;
use crate::net::frame::{Seen, Segment};
use crate::net::pair::{CLIENT, CLIENT6, SERVER, SERVER6};

static PROGRAM: &[u8] = include_bytes_aligned!("../../../../activator/xdp/podlight.o");
static REPLAY: &[u8] = include_bytes_aligned!("../../../../activator/xdp/replay.o");

const PORT: u16 = 8099;

const PATH: &str = "/ready/default/web";

const SEED: u64 = 0x5eed;

/// Runs of a measurement.
const RUNS: u32 = 500_000;

const ROUNDS: usize = 5;

/// What the program does with a packet: `enum xdp_action`.
const DROP: u32 = 1;
const PASS: u32 = 2;
const SEND: u32 = 3;

/// A frame as the replaying program keeps it: its length, then its bytes.
type Frame = [u8; 4 + 512];

/// A packet of a probe.
struct Kind {
    name: &'static str,
    frame: Vec<u8>,
    /// What becomes of it.
    action: u32,
    /// Whether each probe has one.
    is_of_a_probe: bool,
}

/// Measures each kind of packet.
///
/// # Errors
/// When this process may not, or the program does not do with a packet what it should.
pub(super) fn measure() -> Result<Vec<Row>> {
    let mut replay = Replay::new()?;
    let mut rows = Vec::new();
    for family in ["IPv4", "IPv6"] {
        let mut probe_ns = 0.0;
        for kind in replay.kinds(family == "IPv6")? {
            progress(&format!("{RUNS} runs on the same packet, {family}, {}", kind.name));
            let ns = replay.time(&kind)?;
            if kind.is_of_a_probe {
                probe_ns += ns;
            }
            rows.push(Row::new(format!("program time, {}, {family} (over an empty program)", kind.name), "ns", ns));
        }
        rows.push(Row::new(format!("program time of a whole probe, {family} (the five above)"), "ns", probe_ns));
    }
    Ok(rows)
}

type Maps = (
    HashMap<MapData, ShortKey, Entry>,
    HashMap<MapData, ListenKey, u32>,
    Array<MapData, Ports>,
    Array<MapData, Beat>,
    Array<MapData, Settings>,
);

/// The program, with maps of its own, and the one that replays frames to it.
struct Replay {
    measured: Ebpf,
    replay: Ebpf,
    frame: Array<MapData, Frame>,
    next: ProgramArray<MapData>,
    // The kernel keeps them while the program is there; they are filled once.
    _maps: Maps,
}

impl Replay {
    fn new() -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for map in ["ANSWERS", "LONG", "LISTENING"] {
            loader.map_max_entries(map, 1024);
        }
        let mut measured = loader.load(PROGRAM)?;
        program(&mut measured, "podlight")?.load()?;
        let mut replay = EbpfLoader::new().load(REPLAY)?;
        for name in ["replay", "nothing"] {
            program(&mut replay, name)?.load()?;
        }
        let mut settings: Array<_, Settings> = take(&mut measured, "SETTINGS")?;
        settings.set(0, Settings { seed: SEED, mark: 0x1234_5678_9abc_def1 }, 0)?;
        let mut beat: Array<_, Beat> = take(&mut measured, "BEAT")?;
        beat.set(0, Beat { updated_ns: now()?, ttl_ns: NEVER }, 0)?;
        let mut ports: Array<_, Ports> = take(&mut measured, "PORTS")?;
        ports.set(u32::from(PORT >> 6), Ports { any: 0, some: 1 << (PORT & 63), version: 1 }, 0)?;
        let mut listening: HashMap<_, ListenKey, u32> = take(&mut measured, "LISTENING")?;
        for address in [v4_mapped(SERVER.octets()), SERVER6.octets()] {
            listening.insert(ListenKey { address, port: u32::from(PORT) }, 1, 0)?;
        }
        let mut answers: HashMap<_, ShortKey, Entry> = take(&mut measured, "ANSWERS")?;
        let key = Key::new(ANY_ADDRESS, PORT, PATH.as_bytes()).context("a path that is too long")?;
        let answer = Answer { is_ready: true, ready: 3, total: 3, updated_ns: 0, ttl_ns: NEVER, backend: 1 };
        let Shelf::Short(short) = key.shelf() else { bail!("a path that is not short") };
        answers.insert(short, Entry::new(SEED, &key, &answer), 0)?;
        let (frame, next) = (take(&mut replay, "FRAME")?, take(&mut replay, "MEASURED")?);
        Ok(Self { measured, replay, frame, next, _maps: (answers, listening, ports, beat, settings) })
    }

    /// What a probe consists of, and what is none.
    fn kinds(&mut self, is_v6: bool) -> Result<Vec<Kind>> {
        let (from, to) = if is_v6 {
            (SocketAddr::from((CLIENT6, 40_000)), SocketAddr::from((SERVER6, PORT)))
        } else {
            (SocketAddr::from((CLIENT, 40_000)), SocketAddr::from((SERVER, PORT)))
        };
        let sequence = 0x1000_0000;
        let syn = |to| {
            let options = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
            Segment::syn(from, to, sequence).options(&options).frame()
        };
        let opened = self.answer(&syn(to)?)?;
        let cookie = opened.header.sequence_number;
        let behind = |offset: u32, acknowledged: u32, echo: [u8; 4]| {
            let stamp = [&[1, 1, 8, 10, 1, 2, 3, 5], &echo[..]].concat();
            Segment::new(from, to, sequence.wrapping_add(offset)).ack(acknowledged).options(&stamp)
        };
        let question = request(PATH);
        let get = behind(1, cookie.wrapping_add(1), echo(&opened)?).data(&question).frame()?;
        let unknown =
            behind(1, cookie.wrapping_add(1), echo(&opened)?).data(&request("/ready/default/none")).frame()?;
        let reply = self.answer(&get)?;
        let last = reply.header.sequence_number.wrapping_add(u32::try_from(reply.payload.len())? + 1);
        let asked = 1 + u32::try_from(question.len())?;
        let kind = |name, frame, action, is_of_a_probe| Kind { name, frame, action, is_of_a_probe };
        Ok(vec![
            kind("SYN", syn(to)?, SEND, true),
            kind("ACK", behind(1, cookie.wrapping_add(1), echo(&opened)?).frame()?, DROP, true),
            kind("GET answered 200", get, SEND, true),
            kind("ACK of the reply", behind(asked, last, echo(&reply)?).frame()?, DROP, true),
            kind("FIN", behind(asked, last, echo(&reply)?).with(|header| header.fin = true).frame()?, SEND, true),
            kind("GET answered 404", unknown, SEND, false),
            kind("passes, another port", syn(SocketAddr::new(to.ip(), 80))?, PASS, false),
        ])
    }

    /// What the program makes of a frame.
    fn answer(&mut self, frame: &[u8]) -> Result<Seen> {
        let mut out = vec![0; 1024];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), repeat: 1, ..TestRunOptions::default() };
        let ran = program(&mut self.measured, "podlight")?.test_run(options)?;
        ensure!(ran.return_value == SEND, "action {} for {frame:?}", ran.return_value);
        Seen::parse(&out[..ran.data_size_out as usize]).context("no segment")
    }

    /// Nanoseconds that a run on this packet takes.
    fn time(&mut self, kind: &Kind) -> Result<f64> {
        let mut frame: Frame = [0; size_of::<Frame>()];
        let (length, bytes) = frame.split_at_mut(4);
        length.copy_from_slice(&u32::try_from(kind.frame.len())?.to_ne_bytes());
        bytes.get_mut(..kind.frame.len()).context("a frame that is too long")?.copy_from_slice(&kind.frame);
        self.frame.set(0, frame, 0)?;
        let mut over_ns = Vec::new();
        for round in 0..=ROUNDS {
            let whole = self.run(&kind.frame, true, kind.action)?;
            let rest = self.run(&kind.frame, false, PASS)?;
            // The first round warms up.
            if round > 0 {
                over_ns.push(whole - rest);
            }
        }
        Ok(median(&over_ns))
    }

    /// Nanoseconds of a run of the replay with the program behind it, or nothing.
    fn run(&mut self, frame: &[u8], is_whole: bool, action: u32) -> Result<f64> {
        let fd: ProgramFd = if is_whole {
            program(&mut self.measured, "podlight")?.fd()?.try_clone()?
        } else {
            program(&mut self.replay, "nothing")?.fd()?.try_clone()?
        };
        self.next.set(0, &fd, 0)?;
        let options = TestRunOptions { data_in: Some(frame), repeat: RUNS, ..TestRunOptions::default() };
        let ran = program(&mut self.replay, "replay")?.test_run(options)?;
        let did = ran.return_value;
        ensure!(did == action, "action {did} where {action} was due");
        Ok(ran.duration.as_nanos() as f64)
    }
}

/// What the peer has to echo.
fn echo(seen: &Seen) -> Result<[u8; 4]> {
    for option in seen.header.options_iterator() {
        if let Ok(etherparse::TcpOptionElement::Timestamp(ours, _)) = option {
            return Ok(ours.to_be_bytes());
        }
    }
    bail!("a reply without timestamps")
}

fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::Boottime);
    Ok(u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec)?)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).context("no such program in the object")?.try_into()?)
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    Ok(T::try_from(ebpf.take_map(name).context("no such map in the object")?)?)
}
