//! An entry of a room's log: a message, or a gap in place of some.

use std::sync::Arc;

use proto::{
    client::{GapReasons, Lane},
    cluster::Item,
};

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
    Gap {
        /// The last offset before what goes on.
        offset: u64,
        /// How many for which reason, at least. On the heap, since most entries are messages.
        reasons: Box<GapReasons>,
        /// Whether it is just as many.
        exact: bool,
    },
}

impl Entry {
    /// What has been seen with it.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Self::Item(item) => item.offset,
            Self::Gap { offset, .. } => *offset,
        }
    }

    /// Which ring it goes to; a gap is told where most messages are.
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
            Self::Gap { .. } => None,
        }
    }

    /// The gap that stands for `entries` where the core sheds them: gaps among them keep their reasons.
    pub(super) fn shed(entries: &[&Self]) -> Self {
        let (mut through, mut missing, mut all_exact) = (0, GapReasons::default(), true);
        for entry in entries {
            through = entry.offset().max(through);
            match entry {
                Self::Item(_) => missing.shed += 1,
                Self::Gap { reasons, exact, .. } => {
                    missing += **reasons;
                    all_exact &= *exact;
                }
            }
        }
        Self::Gap { offset: through, reasons: Box::new(missing), exact: all_exact }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Item(item) => item.message.len() + item.raw.len(),
            Self::Gap { .. } => 0,
        }
    }
}
