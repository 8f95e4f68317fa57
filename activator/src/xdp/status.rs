//! What the readiness map does, for people: who answers where and why, how many answers there are, what became of packets,
//! and the answers themselves, a bounded part at a time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Mode;
use super::answers::Answer;
use super::attachment::Packets;
use super::held::Held;
use super::place::Place;
use crate::table::snapshot::Moment;

/// Most answers shown at once.
pub const MOST_SHOWN: usize = 1000;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Serving {
    /// This process.
    Userspace,
    /// The XDP program, in the kernel's own way.
    Generic,
    /// The XDP program, in the interface's driver.
    Native,
}

impl Serving {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Userspace => "userspace",
            Self::Generic => "generic",
            Self::Native => "native",
        }
    }
}

/// One interface that was named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// What was asked for: `off`, `auto`, `native` or `generic`.
    pub asked: String,
    /// Who answers there.
    pub serving: Serving,
    /// Why it is not what one would expect.
    pub why: Option<String>,
}

/// The program in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramView {
    /// Its name.
    pub name: String,
    /// Its number, as `bpftool prog` shows it.
    pub id: u32,
}

/// Everything but the answers. Holds no time: while nothing happens, two of them are the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The readiness port.
    pub listen: SocketAddr,
    /// Who answers: the best that is there.
    pub serving: Serving,
    /// Why this process answers, when it is not because it was told to.
    pub why: Option<String>,
    /// The program; none when there is none.
    pub program: Option<ProgramView>,
    /// The interfaces that were named.
    pub interfaces: Vec<InterfaceView>,
    /// Whether answers are given. Otherwise it is 503, whatever is asked.
    pub alive: bool,
    /// How long answers are given after a sign of life, in milliseconds.
    pub ttl_ms: u64,
    /// How many answers there are.
    pub answers: usize,
    /// How many there may be.
    pub most_answers: u32,
    /// How many have no room, and are 404.
    pub left_out: usize,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The address and port, of a pod's probe; none for the readiness port.
    pub at: Option<SocketAddr>,
    /// The path.
    pub path: String,
    /// The status: 200 or 503.
    pub status: u16,
    /// How many endpoints are ready.
    pub ready: u32,
    /// Of how many.
    pub endpoints: u32,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Everything but the answers.
    pub map: View,
    /// How long ago the last sign of life was, in milliseconds; none when there is none.
    pub age_ms: Option<u64>,
    /// What became of packets to ports that the program takes.
    pub packets: BTreeMap<String, u64>,
    /// Answers, by place.
    pub shown: Vec<Shown>,
    /// Those that are left out.
    pub cut: usize,
}

/// Who serves, as it came out at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why this process answers, when it is not because it was told to.
    pub why: Option<String>,
    /// The program; none when there is none.
    pub program: Option<ProgramView>,
    /// The interfaces that were named.
    pub interfaces: Vec<InterfaceView>,
}

/// What is read of a running map.
pub struct Status {
    /// The readiness port.
    pub listen: SocketAddr,
    /// Most answers.
    pub most: u32,
    /// Who serves.
    pub outcome: Outcome,
    /// What is answered.
    pub held: Arc<Held>,
    /// The program's counters, where there is one.
    pub(super) packets: Option<Packets>,
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status").field("listen", &self.listen).field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl Status {
    /// Everything but the answers.
    pub fn view(&self) -> View {
        let Outcome { why, program, interfaces } = self.outcome.clone();
        let (answers, left_out) = self.held.sizes();
        View {
            listen: self.listen,
            serving: interfaces.iter().map(|interface| interface.serving).max().unwrap_or(Serving::Userspace),
            why,
            program,
            interfaces,
            alive: self.held.is_alive(Moment::now()),
            ttl_ms: u64::try_from(self.held.ttl().as_millis()).unwrap_or(u64::MAX),
            answers,
            most_answers: self.most,
            left_out,
        }
    }

    /// All of it, with up to so many of the answers whose place begins with a text.
    pub fn contents(&self, beginning: &str, most: usize) -> Contents {
        let picture = self.held.picture();
        let chosen = picture.iter().filter(|(place, _)| place.to_string().starts_with(beginning));
        let shown: Vec<Shown> =
            chosen.clone().take(most.min(MOST_SHOWN)).map(|(place, answer)| shown(place, answer)).collect();
        let age = self.held.alive().map(|alive| alive.until(Moment::now()));
        Contents {
            map: self.view(),
            age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            packets: self.packets.as_ref().map(|packets| packets()).unwrap_or_default(),
            cut: chosen.count() - shown.len(),
            shown,
        }
    }
}

fn shown(place: &Place, answer: &Answer) -> Shown {
    Shown {
        at: place.at,
        path: place.path.as_ref().to_owned(),
        status: if answer.ready { 200 } else { 503 },
        ready: answer.ready_endpoints,
        endpoints: answer.endpoints,
    }
}

impl Mode {
    /// As on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}
