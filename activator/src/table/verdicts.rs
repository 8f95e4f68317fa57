//! The verdicts of one Service, side by side: a slice while they are few, which one allocation holds and a few cache
//! lines copy, and a persistent vector beyond, so that a copy never costs the size of the Service.

use std::sync::Arc;

use super::entry::Verdict;

/// Most verdicts in one slice: as many as a leaf of the persistent vector has, so that neither copies more at a time.
const FEW: usize = 64;

/// Verdicts by number. Cheap to clone; what was cloned never changes.
#[derive(Debug, Clone)]
pub(super) enum Verdicts {
    Few(Arc<[Verdict]>),
    Many(imbl::Vector<Verdict>),
}

impl Default for Verdicts {
    fn default() -> Self {
        Self::Few(Arc::default())
    }
}

impl Verdicts {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(verdicts) => verdicts.len(),
            Self::Many(verdicts) => verdicts.len(),
        }
    }

    pub(super) fn at(&self, index: usize) -> Option<Verdict> {
        match self {
            Self::Few(verdicts) => verdicts.get(index).copied(),
            Self::Many(verdicts) => verdicts.get(index).copied(),
        }
    }

    pub(super) fn push(&mut self, verdict: Verdict) {
        match self {
            Self::Few(verdicts) if verdicts.len() < FEW => {
                *verdicts = verdicts.iter().copied().chain([verdict]).collect();
            }
            Self::Few(verdicts) => *self = Self::Many(verdicts.iter().copied().chain([verdict]).collect()),
            Self::Many(verdicts) => verdicts.push_back(verdict),
        }
    }

    /// Replaces the verdict at a number below [`Verdicts::len`].
    pub(super) fn set(&mut self, index: usize, verdict: Verdict) {
        match self {
            Self::Few(verdicts) => Arc::make_mut(verdicts)[index] = verdict,
            Self::Many(verdicts) => drop(verdicts.set(index, verdict)),
        }
    }
}
