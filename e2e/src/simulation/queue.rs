//! What happens next: by time, and in the order of asking where the time is the same.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use podlight_activator::table::{ListEpoch, Update};
use podlight_sidecar::publisher::Reply;

use super::replica::{Got, Message};
use super::scenario::Command;

pub(super) enum Happening {
    Command(Command),
    Quiet,
    Settle,
    Start { pod: usize },
    Stop { pod: usize },
    Remove { pod: usize },
    NoticeDeletion { pod: usize },
    KubeletProbe { pod: usize },
    WriteStatus { pod: usize },
    SidecarProbe { pod: usize, generation: u64 },
    RotateToken { pod: usize, generation: u64 },
    Wake { pod: usize, generation: u64, replica: usize },
    Supersede { pod: usize, generation: u64, replica: usize, attempt: u64 },
    Timeout { pod: usize, generation: u64, replica: usize, attempt: u64 },
    Replied { pod: usize, generation: u64, replica: usize, attempt: u64, reply: Box<Reply> },
    Arrive { replica: usize, message: Box<Message> },
    AskPod { replica: usize, generation: u64, message: Box<Message>, asked_in: ListEpoch },
    GotPod { replica: usize, generation: u64, message: Box<Message>, got: Got },
    Watched { replica: usize, kind: usize, opening: u64, entry: Option<usize>, update: Update },
    Reopen { replica: usize, kind: usize, opening: u64 },
    ReadList { replica: usize, kind: usize, opening: u64 },
    Expire { replica: usize },
}

#[derive(Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Timed>>,
    asked: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: u64, what: Happening) {
        self.asked += 1;
        self.heap.push(Reverse(Timed { at, number: self.asked, what }));
    }

    pub(super) fn pop(&mut self) -> Option<(u64, Happening)> {
        self.heap.pop().map(|Reverse(timed)| (timed.at, timed.what))
    }
}

struct Timed {
    at: u64,
    number: u64,
    what: Happening,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
