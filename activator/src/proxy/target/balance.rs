//! The power of two choices: of two candidates drawn at random, the one with fewer requests. Candidates stand in a
//! dense list, so that a draw, an arrival and a departure each take the same time however many there are.

use fastrand::Rng;

/// Candidates by the number of their slot.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    slots: Vec<u32>,
}

impl Candidates {
    /// Puts one in, and tells where it stands.
    pub(super) fn insert(&mut self, slot: u32) -> u32 {
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).expect("slots are numbered by u32")
    }

    /// Takes out the one that stands at `at`. Returns the one that stands there now, if another does.
    pub(super) fn remove(&mut self, at: u32) -> Option<u32> {
        let at = at as usize;
        self.slots.swap_remove(at);
        self.slots.get(at).copied()
    }

    /// Draws two and returns the one with less `load`. One that is to be avoided is returned only when all are.
    pub(super) fn pick(&self, rng: &mut Rng, load: impl Fn(u32) -> u32, avoid: impl Fn(u32) -> bool) -> Option<u32> {
        let count = self.slots.len();
        let (first, second) = match count {
            0 => return None,
            1 => return self.slots.first().copied(),
            _ => {
                let first = rng.usize(..count);
                let second = rng.usize(..count - 1);
                (first, if second >= first { second + 1 } else { second })
            }
        };
        let (a, b) = (self.slots[first], self.slots[second]);
        match (avoid(a), avoid(b)) {
            (false, false) => Some(if load(b) < load(a) { b } else { a }),
            (false, true) => Some(a),
            (true, false) => Some(b),
            (true, true) => {
                // A request avoids a few at most, so that this ends soon among many.
                let mut from_here = self.slots[first..].iter().chain(&self.slots[..first]);
                Some(from_here.find(|slot| !avoid(**slot)).copied().unwrap_or(a))
            }
        }
    }
}
