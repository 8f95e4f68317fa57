//! Flags of the readiness map: the port where it is asked, the interfaces where the kernel answers.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args as ArgGroup;

use super::{Faults, count, parsed, span};
use crate::table::group::GroupKey;
use crate::table::owner::PULSE;
use crate::xdp::place::Probe;
use crate::xdp::{LONGEST_PATH, Mode, XdpConfig};

/// Answers that are kept: a large cluster's endpoints with two addresses each, and its Services.
const MAX_ENTRIES: &str = "262144";

/// Most answers that may be asked for: at some 150 bytes each, what a node can spare of kernel memory.
const MOST_ENTRIES: usize = 16_777_216;

/// How long the kernel goes on answering for an activator that hangs: some pulses of the table, so that a busy moment
/// is no silence, and not much more than a probe's shortest period.
const TTL: &str = "2s";

/// Less would call a table silent that only missed a pulse or two.
const SHORTEST_TTL: Duration = Duration::from_millis(4 * PULSE.as_millis() as u64);

/// More would be no bound.
const LONGEST_TTL: Duration = Duration::from_secs(60);

/// Longest name of an interface: `IFNAMSIZ` of Linux without its final zero.
const LONGEST_INTERFACE: usize = 15;

/// Flags of the readiness map. All are texts here, so that every fault can be told at once.
#[derive(Debug, ArgGroup)]
#[command(next_help_heading = "Readiness map")]
pub struct XdpArgs {
    /// Where `GET /ready/<namespace>/<service>[/<address>]` is answered, as plain HTTP, to whoever asks. Without it
    /// there is no readiness map.
    #[arg(long, env = "PODLIGHT_XDP_LISTEN")]
    xdp_listen: Option<String>,
    /// Who answers at the interfaces: off (this process), native (an XDP program in the driver), generic (in the kernel's
    /// own way) or auto (native on a NIC that can, generic on veth, this process where neither can be).
    #[arg(long, env = "PODLIGHT_XDP", default_value = "auto")]
    xdp: String,
    /// An interface where the kernel answers: `<name>`, or `<name>=<mode>` for another mode than --xdp; repeat for more.
    #[arg(long, env = "PODLIGHT_XDP_INTERFACES", value_delimiter = ',')]
    xdp_interface: Vec<String>,
    /// A probe of a Service's pods that is answered at the interfaces in their stead:
    /// `<namespace>/<service>:<port>/<path>`; repeat for more. The pods must use the port for nothing else.
    #[arg(long, env = "PODLIGHT_XDP_PROBES", value_delimiter = ',')]
    xdp_probe: Vec<String>,
    /// How long the kernel goes on answering once this process says nothing more: from 1s to 60s.
    #[arg(long, env = "PODLIGHT_XDP_TTL", default_value = TTL)]
    xdp_ttl: String,
    /// Most answers.
    #[arg(long, env = "PODLIGHT_XDP_MAX_ENTRIES", default_value = MAX_ENTRIES)]
    xdp_max_entries: String,
}

impl XdpArgs {
    /// None without a place to listen, or with faults.
    pub(super) fn check(&self, faults: &mut Faults) -> Option<XdpConfig> {
        let listen = self.xdp_listen.as_deref().filter(|text| !text.is_empty());
        let listen = listen.map(|text| faults.note::<SocketAddr>("xdp-listen", parsed(text, "must be <ip>:<port>")));
        let mode = faults.note("xdp", mode(&self.xdp));
        let interfaces = self.interfaces(mode, faults);
        let probes = self.probes(listen.flatten(), faults);
        let [named, told] = [&self.xdp_interface, &self.xdp_probe].map(|texts| given(texts).next().is_some());
        if matches!(mode, Some(Mode::Native | Mode::Generic)) && !named {
            faults.add("xdp-interface", format!("is needed with --xdp={}", self.xdp));
        }
        if listen.is_none() && (named || told) {
            faults.add("xdp-listen", "is needed with --xdp-interface and --xdp-probe");
        }
        if told && !named {
            faults.add("xdp-interface", "is needed with --xdp-probe");
        }
        let ttl = faults.note("xdp-ttl", ttl(&self.xdp_ttl));
        let max_entries = faults.note("xdp-max-entries", entries(&self.xdp_max_entries));
        let (mode, ttl, max_entries) = (mode?, ttl?, max_entries?);
        Some(XdpConfig { listen: listen??, mode, interfaces, probes, ttl, max_entries })
    }

    fn interfaces(&self, mode: Option<Mode>, faults: &mut Faults) -> Vec<(String, Mode)> {
        let mut interfaces: Vec<(String, Mode)> = Vec::new();
        for text in given(&self.xdp_interface) {
            let Some(told) = faults.note("xdp-interface", interface(text, mode.unwrap_or(Mode::Auto))) else {
                continue;
            };
            if interfaces.iter().any(|(name, _)| *name == told.0) {
                faults.add("xdp-interface", format!("{:?} is named twice", told.0));
            }
            interfaces.push(told);
        }
        interfaces
    }

    fn probes(&self, listen: Option<SocketAddr>, faults: &mut Faults) -> Vec<Probe> {
        let told = given(&self.xdp_probe).filter_map(|text| faults.note("xdp-probe", probe(text)));
        let probes: Vec<Probe> = told.collect();
        if listen.is_some_and(|listen| probes.iter().any(|probe| probe.port == listen.port())) {
            faults.add("xdp-probe", "must not use the port of --xdp-listen");
        }
        probes
    }
}

fn given(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty())
}

fn mode(text: &str) -> Result<Mode, String> {
    parsed(text, "must be off, auto, native or generic")
}

/// `<name>[=<mode>]`.
fn interface(text: &str, otherwise: Mode) -> Result<(String, Mode), String> {
    let (name, mode) = match text.split_once('=') {
        Some((name, told)) => (name, self::mode(told)?),
        None => (text, otherwise),
    };
    let possible =
        (1..=LONGEST_INTERFACE).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if possible { Ok((name.to_owned(), mode)) } else { Err(format!("{name:?} cannot be an interface")) }
}

/// `<namespace>/<service>:<port>/<path>`.
fn probe(text: &str) -> Result<Probe, String> {
    let parts = text.split_once(':').and_then(|(group, rest)| {
        let (namespace, service) = group.split_once('/')?;
        let (port, _) = rest.split_once('/')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let path = &rest[rest.find('/')?..];
        let named = !namespace.is_empty() && !service.is_empty() && !service.contains('/');
        (named && path.bytes().all(|b| b.is_ascii_graphic())).then(|| Probe {
            group: GroupKey::new(namespace, service),
            port,
            path: path.into(),
        })
    });
    let probe = parts.ok_or_else(|| format!("{text:?} must be <namespace>/<service>:<port>/<path>"))?;
    if probe.path.len() > LONGEST_PATH {
        return Err(format!("the path of {text:?} is longer than {LONGEST_PATH} bytes"));
    }
    Ok(probe)
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = span(text)?;
    if (SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) { Ok(ttl) } else { Err(format!("{text:?} must be from 1s to 60s")) }
}

fn entries(text: &str) -> Result<u32, String> {
    let entries = count(text)?;
    let entries = u32::try_from(entries).ok().filter(|_| entries <= MOST_ENTRIES);
    entries.ok_or_else(|| format!("{text:?} must be at most {MOST_ENTRIES}"))
}

#[cfg(test)]
mod tests;
