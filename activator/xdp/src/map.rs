//! The maps' keys and values, laid out for both sides, and the small trait through which the writer fills them. All of them
//! are plain integers without padding, so that the kernel compares and hashes every byte.

use crate::reply::TEXT_BYTES;

/// Longest path in bytes: `/ready/<namespace>/<service>/<address>` with two DNS labels of 63 and an IPv6 address of 39 takes
/// 173; longer configured paths are refused when they are configured.
pub const MAX_PATH: usize = PATH_WORDS * 8;

/// [`MAX_PATH`] in words of eight bytes.
pub const PATH_WORDS: usize = 22;

/// Longest path in bytes that has its answer in the map of short ones. The kernel hashes the whole of a key, which takes longer
/// than anything else about a request, so most questions are to be found by a short one. Names of Services and namespaces
/// mostly have less than twenty letters.
pub const SHORT_PATH: usize = SHORT_WORDS * 8;

/// [`SHORT_PATH`] in words of eight bytes. The hash takes in twelve bytes at a time, and this key is six times that.
pub const SHORT_WORDS: usize = 6;

/// The address of answers that are the same on each of our addresses, and of a port taken on every address.
pub const ANY_ADDRESS: [u8; 16] = [0; 16];

/// A time to live without an end: the answer holds for as long as the heartbeat does.
pub const NEVER: u64 = u64::MAX;

/// An IPv4 address as the maps hold it: `::ffff:a.b.c.d`.
pub const fn v4_mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Which question an answer is for. The path is held whole: two paths are one key only if they are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Key {
    /// The address that is asked, or [`ANY_ADDRESS`].
    pub address: [u8; 16],
    /// The port that is asked.
    pub port: u32,
    /// The path's length in bytes.
    pub length: u32,
    /// The path in little-endian words, with zeros behind it.
    pub path: [u64; PATH_WORDS],
}

impl Key {
    /// The key of a path, which is compared byte for byte; `None` if it is empty or longer than [`MAX_PATH`].
    pub fn new(address: [u8; 16], port: u16, path: &[u8]) -> Option<Self> {
        if path.is_empty() || path.len() > MAX_PATH {
            return None;
        }
        let mut words = [0; PATH_WORDS];
        for (word, chunk) in words.iter_mut().zip(path.chunks(8)) {
            let mut bytes = [0; 8];
            for (byte, from) in bytes.iter_mut().zip(chunk) {
                *byte = *from;
            }
            *word = u64::from_le_bytes(bytes);
        }
        Some(Self { address, port: u32::from(port), length: path.len() as u32, path: words })
    }

    /// The path's bytes, and how many of them count.
    pub fn path(&self) -> ([u8; MAX_PATH], usize) {
        let mut bytes = [0; MAX_PATH];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.path) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        (bytes, (self.length as usize).min(MAX_PATH))
    }
}

/// A [`Key`] whose path is short: the beginning of it, as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ShortKey {
    /// [`Key::address`].
    pub address: [u8; 16],
    /// [`Key::port`].
    pub port: u32,
    /// [`Key::length`].
    pub length: u32,
    /// [`Key::path`] without the words that are zero.
    pub path: [u64; SHORT_WORDS],
}

/// In which of the two maps a key has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// In that of short paths.
    Short(ShortKey),
    /// In that of the others.
    Long(Key),
}

impl Key {
    /// In which map the key has its answer.
    pub fn shelf(&self) -> Shelf {
        let Self { address, port, length, path } = *self;
        if length as usize > SHORT_PATH {
            return Shelf::Long(*self);
        }
        let [a, b, c, d, e, f, ..] = path;
        Shelf::Short(ShortKey { address, port, length, path: [a, b, c, d, e, f] })
    }
}

impl From<ShortKey> for Key {
    fn from(short: ShortKey) -> Self {
        let ShortKey { address, port, length, path } = short;
        let mut words = [0; PATH_WORDS];
        for (word, from) in words.iter_mut().zip(path) {
            *word = from;
        }
        Self { address, port, length, path: words }
    }
}

/// A short mark of a key, by which a reader of an entry sees that it still is the entry of its key: the kernel may hand the
/// memory of a deleted entry to another key while a program is reading it. 48 bits, different for each `seed`.
#[inline(always)]
pub fn path_tag(seed: u64, key: &Key) -> u64 {
    // The odd constant is that of Knuth's MMIX generator; any that mixes well does, since nobody can choose the seed.
    let mix = |hash: u64, word: u64| {
        let product = (hash ^ word).wrapping_mul(0x5851_f42d_4c95_7f2d);
        product ^ (product >> 29)
    };
    let mut hash = mix(seed, u64::from(key.port) << 32 | u64::from(key.length));
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = key.address;
    hash = mix(hash, u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    hash = mix(hash, u64::from_ne_bytes([i, j, k, l, m, n, o, p]));
    let words = key.length.div_ceil(8) as usize;
    for (place, word) in key.path.iter().enumerate() {
        if place >= words {
            break;
        }
        hash = mix(hash, *word);
    }
    hash >> 16
}

/// What the writer knows about one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether the answer is 200; otherwise it is 503.
    pub is_ready: bool,
    /// How many endpoints are ready.
    pub ready: u32,
    /// How many endpoints there are.
    pub total: u32,
    /// When the answer was found, in nanoseconds of `CLOCK_BOOTTIME`.
    pub updated_ns: u64,
    /// How long it holds from then on, in nanoseconds; [`NEVER`] leaves that to the heartbeat.
    pub ttl_ns: u64,
    /// Whose answer it is: the writer's number of the Service or the endpoint, for people who read the map.
    pub backend: u64,
}

/// An [`Answer`] as the map holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// The key's tag in the upper 48 bits and the status in the lower 16: one word, because a reader must not take the
    /// status of another key's entry for that of its own.
    pub verdict: u64,
    /// [`Answer::updated_ns`].
    pub updated_ns: u64,
    /// [`Answer::ttl_ns`].
    pub ttl_ns: u64,
    /// [`Answer::backend`].
    pub backend: u64,
    /// [`Answer::ready`].
    pub ready: u32,
    /// [`Answer::total`].
    pub total: u32,
    /// The end of the reply's body, rendered by the writer so that the program has no numbers to print.
    pub text: [u8; TEXT_BYTES],
}

impl Entry {
    /// The entry of `answer` under `key`.
    pub fn new(seed: u64, key: &Key, answer: &Answer) -> Self {
        Self {
            verdict: path_tag(seed, key) << 16 | if answer.is_ready { 200 } else { 503 },
            updated_ns: answer.updated_ns,
            ttl_ns: answer.ttl_ns,
            backend: answer.backend,
            ready: answer.ready,
            total: answer.total,
            text: text(answer.ready, answer.total),
        }
    }

    /// What the entry says to whoever asked for the key with this tag.
    pub fn verdict(&self, tag: u64, beat: &Beat, now_ns: u64) -> Verdict {
        Verdict::new(self.verdict, tag, is_fresh(self.updated_ns, self.ttl_ns, now_ns) && beat.is_fresh(now_ns))
    }

    /// The answer that the entry was made of.
    pub fn answer(&self) -> Answer {
        Answer {
            is_ready: self.verdict & 0xffff == 200,
            ready: self.ready,
            total: self.total,
            updated_ns: self.updated_ns,
            ttl_ns: self.ttl_ns,
            backend: self.backend,
        }
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 200.
    Ready,
    /// 503, because nothing is ready.
    Unready,
    /// 503, because nobody vouches for the entry any more.
    Stale,
}

impl Verdict {
    /// What an entry's word says to whoever asked for the key with this tag: the only place where a 200 comes from.
    #[inline(always)]
    pub fn new(word: u64, tag: u64, is_fresh: bool) -> Self {
        match word & 0xffff {
            200 if word >> 16 == tag && is_fresh => Self::Ready,
            503 if word >> 16 == tag && is_fresh => Self::Unready,
            _ => Self::Stale,
        }
    }
}

/// The writer's heartbeat: while it is fresh the map is what the activator knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Beat {
    /// When the writer was last alive, in nanoseconds of `CLOCK_BOOTTIME`; 0 for never.
    pub updated_ns: u64,
    /// How long that is good for, in nanoseconds.
    pub ttl_ns: u64,
}

impl Beat {
    /// Whether the writer lives, as far as one can tell at `now_ns`.
    #[inline(always)]
    pub fn is_fresh(&self, now_ns: u64) -> bool {
        self.updated_ns != 0 && is_fresh(self.updated_ns, self.ttl_ns, now_ns)
    }
}

/// Whether what was found at `updated_ns` still holds. A time in the future is as fresh as now: another CPU may have read its
/// clock a little later.
#[inline(always)]
pub fn is_fresh(updated_ns: u64, ttl_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(updated_ns) < ttl_ns
}

/// A port that the program takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listen {
    /// On this address, or on [`ANY_ADDRESS`]. "Any" is for interfaces where everything that arrives is for this host (a
    /// pod's): where packets are forwarded it would take those of others.
    pub address: [u8; 16],
    /// The port; 0 is none.
    pub port: u16,
    /// Whether the answers are those under [`ANY_ADDRESS`] (the dedicated port) or those under the address that is asked
    /// (configured probes).
    pub is_shared: bool,
}

/// The key of one address's port in the map of listeners. Its value is 1 where the answers are shared, otherwise 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenKey {
    /// The address.
    pub address: [u8; 16],
    /// The port.
    pub port: u32,
}

/// Sixty-four ports' bits: most packets end at a port that nobody asks about, and one load tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ports {
    /// Ports taken on each address.
    pub any: u64,
    /// Ports taken on some addresses, which are in the map of listeners.
    pub some: u64,
    /// Another one after each change of these or of their addresses, by which the program knows what it need not look up again.
    pub version: u64,
}

/// What the loader tells the program once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// The seed of [`path_tag`].
    pub seed: u64,
    /// The seed of the numbers by which the program knows its connections again.
    pub mark: u64,
}

/// Where the writer puts answers: the kernel's maps, or ordinary ones in tests and for the userspace server. Each is bounded
/// and says so when it is full.
pub trait Store {
    /// Why a change was not made.
    type Fault: core::error::Error;

    /// Puts or replaces an answer.
    ///
    /// # Errors
    /// When there is no room, or the kernel refuses.
    fn insert(&mut self, key: &Key, answer: &Answer) -> Result<(), Self::Fault>;

    /// Takes an answer away; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn remove(&mut self, key: &Key) -> Result<(), Self::Fault>;

    /// Says that everything in the map is as the activator knows it.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn beat(&mut self, beat: Beat) -> Result<(), Self::Fault>;

    /// Takes a port.
    ///
    /// # Errors
    /// When there is no room, or the kernel refuses.
    fn listen(&mut self, at: &Listen) -> Result<(), Self::Fault>;

    /// Gives a port back.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn unlisten(&mut self, at: &Listen) -> Result<(), Self::Fault>;
}

/// `n of m`, at the right end of the line.
fn text(ready: u32, total: u32) -> [u8; TEXT_BYTES] {
    let mut text = [b' '; TEXT_BYTES];
    let mut place = TEXT_BYTES;
    let mut put = |byte: u8| {
        place = place.saturating_sub(1);
        text[place] = byte;
    };
    let digits = |mut number: u32, put: &mut dyn FnMut(u8)| {
        loop {
            put(b'0' + (number % 10) as u8);
            number /= 10;
            if number == 0 {
                break;
            }
        }
    };
    put(b'\n');
    digits(total.min(MAX_SHOWN), &mut put);
    for byte in *b" fo " {
        put(byte);
    }
    digits(ready.min(MAX_SHOWN), &mut put);
    text
}

/// The greatest number that a reply shows.
const MAX_SHOWN: u32 = 99_999;

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya wants to be told that a type is plain data")]
mod plain {
    use super::{Beat, Entry, Key, ListenKey, Ports, Settings, ShortKey};

    // SAFETY: `repr(C)`, integers only, no padding (`layout_has_no_padding`), any bytes are a value.
    unsafe impl aya::Pod for Key {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Entry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ShortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Beat {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListenKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Ports {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;
    const BEAT: Beat = Beat { updated_ns: NOW - 10, ttl_ns: 100 };

    fn answer(is_ready: bool) -> Answer {
        Answer { is_ready, ready: 3, total: 5, updated_ns: NOW - 10, ttl_ns: 100, backend: 7 }
    }

    fn key(path: &str) -> Key {
        Key::new(ANY_ADDRESS, 9_000, path.as_bytes()).expect("a short path")
    }

    #[test]
    fn layout_has_no_padding() {
        assert_eq!(size_of::<Key>(), 16 + 4 + 4 + MAX_PATH);
        assert_eq!(size_of::<ShortKey>(), 16 + 4 + 4 + SHORT_PATH);
        assert_eq!(size_of::<Entry>(), 4 * 8 + 2 * 4 + TEXT_BYTES);
        assert_eq!(size_of::<Beat>(), 16);
        assert_eq!(size_of::<ListenKey>(), 20);
        assert_eq!(size_of::<Ports>(), 24);
        assert_eq!(size_of::<Settings>(), 16);
    }

    #[test]
    fn a_key_gives_its_path_back_and_refuses_what_does_not_fit() {
        let longest = [b'x'; MAX_PATH];
        for path in [b"/".as_slice(), b"/ready/default/web", b"/1234567", &longest] {
            let key = Key::new(ANY_ADDRESS, 1, path).expect("it fits");
            let (bytes, length) = key.path();
            assert_eq!(&bytes[..length], path);
        }
        assert_eq!(Key::new(ANY_ADDRESS, 1, &[b'x'; MAX_PATH + 1]), None);
        assert_eq!(Key::new(ANY_ADDRESS, 1, b""), None);
    }

    #[test]
    fn a_short_path_has_a_short_key_and_comes_back_whole() {
        for (length, is_short) in [(1, true), (47, true), (48, true), (49, false), (MAX_PATH, false)] {
            let key = Key::new(v4_mapped([10, 0, 0, 1]), 7, &[b'x'; MAX_PATH][..length]).expect("it fits");
            let shelf = key.shelf();
            assert_eq!(matches!(shelf, Shelf::Short(_)), is_short, "{length}");
            let back = match shelf {
                Shelf::Short(short) => Key::from(short),
                Shelf::Long(long) => long,
            };
            assert_eq!(back, key);
        }
    }

    #[test]
    fn only_a_fresh_entry_of_its_own_key_under_a_fresh_heartbeat_says_200() {
        let (seed, web) = (9, key("/ready/default/web"));
        let tag = path_tag(seed, &web);
        let ready = Entry::new(seed, &web, &answer(true));
        assert_eq!(ready.verdict(tag, &BEAT, NOW), Verdict::Ready);
        assert_eq!(Entry::new(seed, &web, &answer(false)).verdict(tag, &BEAT, NOW), Verdict::Unready);
        // The entry has run out, to the nanosecond.
        assert_eq!(ready.verdict(tag, &Beat { ttl_ns: NEVER, ..BEAT }, NOW + 89), Verdict::Ready);
        assert_eq!(ready.verdict(tag, &Beat { ttl_ns: NEVER, ..BEAT }, NOW + 90), Verdict::Stale);
        // The heartbeat has.
        let lasting = Entry { ttl_ns: NEVER, ..ready };
        assert_eq!(lasting.verdict(tag, &BEAT, NOW + 89), Verdict::Ready);
        assert_eq!(lasting.verdict(tag, &BEAT, NOW + 90), Verdict::Stale);
        assert_eq!(lasting.verdict(tag, &Beat::default(), NOW), Verdict::Stale);
        assert_eq!(lasting.verdict(tag, &Beat { updated_ns: 0, ttl_ns: NEVER }, NOW), Verdict::Stale);
        // The memory belongs to another key by now.
        let other = Entry::new(seed, &key("/ready/default/wea"), &answer(true));
        assert_eq!(other.verdict(tag, &BEAT, NOW), Verdict::Stale);
        // A status that nobody writes.
        let odd = Entry { verdict: ready.verdict & !0xffff | 204, ..ready };
        assert_eq!(odd.verdict(tag, &BEAT, NOW), Verdict::Stale);
    }

    #[test]
    fn tags_tell_addresses_ports_lengths_and_seeds_apart() {
        let web = key("/ready/default/web");
        let others = [
            Key { address: v4_mapped([10, 0, 0, 1]), ..web },
            Key { port: 9_001, ..web },
            Key { length: web.length + 1, ..web },
            key("/ready/default/wee"),
        ];
        for other in others {
            assert_ne!(path_tag(1, &web), path_tag(1, &other));
        }
        assert_ne!(path_tag(1, &web), path_tag(2, &web));
        assert!(path_tag(1, &web) < 1 << 48);
    }

    #[test]
    fn text_shows_the_counts_and_fits_whatever_they_are() {
        assert_eq!(&text(3, 5), b"         3 of 5\n");
        assert_eq!(&text(0, 10), b"        0 of 10\n");
        assert_eq!(&text(u32::MAX, u32::MAX), b" 99999 of 99999\n");
    }
}
