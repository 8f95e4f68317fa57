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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(slots: &[u32]) -> Candidates {
        Candidates { slots: slots.to_vec() }
    }

    #[test]
    fn the_one_with_less_is_drawn_and_the_one_with_most_never() {
        let (candidates, mut rng) = (of(&[0, 1, 2, 3]), Rng::with_seed(1));
        let drawn: Vec<u32> = (0..1000).filter_map(|_| candidates.pick(&mut rng, |slot| slot, |_| false)).collect();
        let share = |slot| drawn.iter().filter(|drawn| **drawn == slot).count();
        assert!(share(0) > share(1) && share(1) > share(2) && share(2) > 0);
        assert_eq!((share(3), drawn.len()), (0, 1000));
    }

    #[test]
    fn who_is_avoided_is_drawn_only_when_there_is_nobody_else() {
        let mut rng = Rng::with_seed(1);
        let all: Vec<u32> = (0..50).collect();
        for _ in 0..200 {
            assert_eq!(of(&all).pick(&mut rng, |_| 0, |slot| slot != 17), Some(17));
        }
        assert_eq!(of(&[5]).pick(&mut rng, |_| 0, |_| true), Some(5));
        assert!(of(&[5, 6]).pick(&mut rng, |_| 0, |_| true).is_some());
        assert_eq!(of(&[]).pick(&mut rng, |_| 0, |_| false), None);
    }

    #[test]
    fn whoever_takes_a_freed_place_is_told() {
        let mut candidates = of(&[7, 8, 9]);
        assert_eq!(candidates.remove(0), Some(9));
        assert_eq!(candidates.remove(1), None);
        assert_eq!(candidates.insert(4), 1);
    }
}
