//! What a core's machine asks of other threads, and the asks that were given back: the same for every driver.
//!
//! A turn's asks go together. One by one, the first woke who answers, which on a busy processor takes the core's place at once:
//! in a storm of connections it came round twice a turn, to a few asks each time.

use super::limits::{ASK_PAUSE_MS, ASKS_A_BATCH};
use super::{Asks, Machine};

/// See the module's opening.
pub(super) struct Asking<A> {
    asks: Asks<A>,
    /// The machine is asked nothing more before they are taken.
    refused: Vec<A>,
}

impl<A> Asking<A> {
    pub(super) fn new(asks: Asks<A>) -> Self {
        Self { asks, refused: Vec::new() }
    }

    /// Passes on what the machine asks, until that is all or some are given back.
    pub(super) fn ask(&mut self, machine: &mut impl Machine<Ask = A>) {
        loop {
            let mut batch = std::mem::take(&mut self.refused);
            let room = ASKS_A_BATCH.saturating_sub(batch.len());
            batch.extend(std::iter::from_fn(|| machine.ask()).take(room));
            if batch.is_empty() {
                return;
            }
            self.refused = (self.asks)(batch);
            if !self.refused.is_empty() {
                return;
            }
        }
    }

    /// When those that were given back are offered again, milliseconds; `None`: none were.
    pub(super) fn due_ms(&self, now_ms: u64) -> Option<u64> {
        (!self.refused.is_empty()).then_some(now_ms + ASK_PAUSE_MS)
    }
}
