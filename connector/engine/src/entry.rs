//! An entry of a room's log: a message, or a gap in place of some.

use std::sync::Arc;

use proto::{client::Lane, cluster::Item};

/// Index of the lane that is sent first.
pub(super) const HIGH: usize = 0;
/// Index of the other.
pub(super) const NORMAL: usize = 1;

/// One entry of a room's log.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// A message.
    Item(Arc<Item>),
    /// Messages up to `offset` that this core has not got.
    Hole {
        /// The last offset before what goes on.
        offset: u64,
        /// How many, at least.
        count: u64,
        /// Whether it is just as many.
        exact: bool,
    },
}

impl Entry {
    /// What has been seen with it.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Self::Item(item) => item.offset,
            Self::Hole { offset, .. } => *offset,
        }
    }

    /// Which ring it goes to; a hole is told where most messages are.
    pub(super) fn lane(&self) -> usize {
        match self {
            Self::Item(item) if item.lane == i32::from(Lane::High) => HIGH,
            _ => NORMAL,
        }
    }

    /// The message.
    pub(super) fn item(&self) -> Option<&Arc<Item>> {
        match self {
            Self::Item(item) => Some(item),
            Self::Hole { .. } => None,
        }
    }

    /// What tells that none of `entries` comes.
    pub(super) fn hole_of(entries: &[&Self]) -> Self {
        let mut hole = (0, 0, true);
        for entry in entries {
            hole.0 = entry.offset().max(hole.0);
            match entry {
                Self::Item(_) => hole.1 += 1,
                Self::Hole { count, exact, .. } => (hole.1, hole.2) = (hole.1 + count, hole.2 && *exact),
            }
        }
        Self::Hole { offset: hole.0, count: hole.1, exact: hole.2 }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Item(item) => item.message.len() + item.raw.len(),
            Self::Hole { .. } => 0,
        }
    }
}
