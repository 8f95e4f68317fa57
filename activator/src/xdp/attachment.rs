//! The program at its interfaces, as it came out: what could be had, and for each interface why not. Made before the process
//! has threads, because capabilities belong to threads and are given up here; whatever fails, this process answers instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::status::{InterfaceView, Outcome, Serving};
use super::{Mode, XdpConfig};

/// Who is to answer, before anything is answered.
#[derive(Debug)]
pub struct Attachment {
    pub(super) outcome: Outcome,
    pub(super) kernel: Option<Loaded>,
}

/// What became of packets, by fate.
pub(super) type Packets = Arc<dyn Fn() -> BTreeMap<String, u64> + Send + Sync>;

#[cfg(feature = "xdp")]
pub(super) use with_program::Loaded;
#[cfg(not(feature = "xdp"))]
pub(super) use without_program::Loaded;

impl Attachment {
    /// Loads the program and attaches it where it is wanted. Warns once of what could not be, and gives up the capabilities
    /// that it took.
    pub fn make(config: &XdpConfig) -> Self {
        if config.interfaces.iter().all(|(_, mode)| *mode == Mode::Off) {
            let unnamed = config.mode != Mode::Off && config.interfaces.is_empty();
            return Self::without(config, unnamed.then(|| "no interface is named (--xdp-interface)".to_owned()));
        }
        Self::with_program(config)
    }

    /// This process answers everywhere.
    fn without(config: &XdpConfig, why: Option<String>) -> Self {
        let interfaces = config.interfaces.iter().map(|(name, mode)| view(name, *mode, Serving::Userspace, None));
        Self { outcome: Outcome { why, program: None, interfaces: interfaces.collect() }, kernel: None }
    }

    #[cfg(not(feature = "xdp"))]
    fn with_program(config: &XdpConfig) -> Self {
        let why = "this activator was built without its XDP program (feature xdp)";
        tracing::warn!(why, "the kernel answers no health check; this process does");
        Self::without(config, Some(why.to_owned()))
    }
}

fn view(name: &str, asked: Mode, serving: Serving, why: Option<String>) -> InterfaceView {
    InterfaceView { name: name.to_owned(), asked: asked.as_str().to_owned(), serving, why }
}

#[cfg(feature = "xdp")]
mod with_program {
    use std::error::Error;
    use std::net::SocketAddr;

    use super::super::capabilities;
    use super::super::kernel::{self, Kernel};
    use super::super::maps::{Counters, Maps};
    use super::super::program::{AttachError, NAME, Program, Way};
    use super::super::status::ProgramView;
    use super::super::writer::Map;
    use super::*;

    /// The program, and what is filled and read of it. It is attached for as long as this lives.
    #[derive(Debug)]
    pub(in super::super) struct Loaded {
        program: Program,
        maps: Maps,
        counters: Arc<Counters>,
    }

    impl Loaded {
        pub(in super::super) fn packets(&self) -> Packets {
            let counters = Arc::clone(&self.counters);
            Arc::new(move || match counters.read() {
                Ok(counts) => counts.into_iter().map(|(fate, count)| (fate.label().to_owned(), count)).collect(),
                Err(error) => {
                    tracing::debug!(error = &error as &dyn Error, "the program's counters cannot be read");
                    BTreeMap::new()
                }
            })
        }

        /// The program, which stays attached as long as it lives, and its maps as the writer fills them.
        pub(in super::super) fn mirror(self, config: &XdpConfig, listen: SocketAddr) -> (Program, Box<dyn Map>) {
            let named = config.interfaces.iter().filter(|(_, mode)| *mode != Mode::Off).map(|(name, _)| name.clone());
            let addresses = kernel::addresses(listen.ip(), named.collect());
            let kernel = Kernel::new(self.maps, listen.port(), addresses, config.ttl);
            (self.program, Box::new(kernel))
        }
    }

    impl Attachment {
        pub(super) fn with_program(config: &XdpConfig) -> Self {
            let offsets = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
            if has_own_boottime(&offsets) {
                let why = "this process is in a time namespace: the kernel's program has another clock";
                tracing::warn!(why, "the kernel answers no health check; this process does");
                return Self::without(config, Some(why.to_owned()));
            }
            let attachment = match Program::load(config.max_entries) {
                Ok((program, maps, counters)) => {
                    Self::attach(config, Loaded { program, maps, counters: Arc::new(counters) })
                }
                Err(error) => {
                    let why = chain(&error);
                    tracing::warn!(why, "the kernel answers no health check; this process does");
                    Self::without(config, Some(why))
                }
            };
            if let Err(error) = capabilities::give_up() {
                tracing::warn!(%error, "capabilities that are not needed any more cannot be given up");
            }
            attachment
        }

        fn attach(config: &XdpConfig, mut loaded: Loaded) -> Self {
            let attached = config.interfaces.iter().map(|(name, mode)| attach(&mut loaded.program, name, *mode));
            let interfaces: Vec<InterfaceView> = attached.collect();
            if interfaces.iter().all(|interface| interface.serving == Serving::Userspace) {
                let why = Some("the XDP program could be attached to no interface".to_owned());
                return Self { outcome: Outcome { why, program: None, interfaces }, kernel: None };
            }
            let program = Some(ProgramView { name: NAME.to_owned(), id: loaded.program.id() });
            Self { outcome: Outcome { why: None, program, interfaces }, kernel: Some(loaded) }
        }
    }

    fn attach(program: &mut Program, name: &str, mode: Mode) -> InterfaceView {
        match program.attach(name, mode) {
            Ok(None) => view(name, mode, Serving::Userspace, None),
            Ok(Some((way, why))) => {
                let serving = match way {
                    Way::Native => Serving::Native,
                    Way::Generic => Serving::Generic,
                };
                let because = why.as_deref().unwrap_or_default();
                tracing::info!(interface = name, mode = serving.as_str(), because, "the kernel answers health checks");
                view(name, mode, serving, why)
            }
            Err(error) => {
                let why = match &error {
                    AttachError::Interface(interface) => chain(interface),
                    told @ (AttachError::Taken { .. } | AttachError::Refused { .. }) => told.to_string(),
                };
                tracing::warn!(interface = name, why, "the kernel answers no health check there; this process does");
                view(name, mode, Serving::Userspace, Some(why))
            }
        }
    }

    /// Whether this process's `CLOCK_BOOTTIME` is not the kernel's (time_namespaces(7)): a sign of life from the future would
    /// be good for too long. A kernel without such namespaces has no such file.
    fn has_own_boottime(offsets: &str) -> bool {
        let boottime = offsets.lines().filter_map(|line| line.trim_start().strip_prefix("boottime"));
        boottime.flat_map(str::split_whitespace).any(|part| part != "0")
    }

    /// An error with its causes. Those of the loader say it in their own words already.
    fn chain(error: &(dyn Error + 'static)) -> String {
        match error.downcast_ref::<super::super::program::LoadError>() {
            Some(told) => told.to_string(),
            None => error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_time_namespace_is_seen_by_its_offset() {
            assert!(!has_own_boottime(""));
            assert!(!has_own_boottime("monotonic           0         0\nboottime            0         0\n"));
            assert!(!has_own_boottime("monotonic           5         0\nboottime            0         0\n"));
            for offset in ["boottime        86400         0\n", "boottime            0        -7\n"] {
                assert!(has_own_boottime(offset), "{offset}");
            }
        }

        #[test]
        fn an_interface_that_is_not_there_leaves_its_answers_to_this_process() {
            let config = |mode, interfaces: &[(&str, Mode)]| XdpConfig {
                listen: SocketAddr::from(([127, 0, 0, 1], 0)),
                mode,
                interfaces: interfaces.iter().map(|(name, mode)| ((*name).to_owned(), *mode)).collect(),
                probes: Vec::new(),
                ttl: std::time::Duration::from_secs(2),
                max_entries: 16,
            };
            // With or without the rights to load it.
            let made =
                std::thread::spawn(move || Attachment::make(&config(Mode::Auto, &[("no-such-one", Mode::Auto)])));
            let Attachment { outcome, kernel } = made.join().expect("no panic");
            assert!(kernel.is_none() && outcome.why.is_some() && outcome.program.is_none(), "{outcome:?}");
            assert_eq!(
                outcome.interfaces,
                [view("no-such-one", Mode::Auto, Serving::Userspace, outcome.interfaces[0].why.clone())]
            );
            let outcome = Attachment::make(&config(Mode::Auto, &[])).outcome;
            assert!(outcome.why.is_some_and(|why| why.contains("--xdp-interface")));
            let outcome = Attachment::make(&config(Mode::Off, &[("lo", Mode::Off)])).outcome;
            assert_eq!((outcome.why, outcome.interfaces[0].serving), (None, Serving::Userspace));
        }
    }
}

#[cfg(not(feature = "xdp"))]
mod without_program {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use super::super::writer::Map;
    use super::*;

    /// There is none.
    #[derive(Debug)]
    pub(in super::super) enum Loaded {}

    impl Loaded {
        pub(in super::super) fn packets(&self) -> Packets {
            match *self {}
        }

        pub(in super::super) fn mirror(self, _: &XdpConfig, _: SocketAddr) -> (Infallible, Box<dyn Map>) {
            match self {}
        }
    }
}
