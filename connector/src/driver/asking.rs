//! What a core's machine asks of other threads, and the one ask that was given back: the same for every driver.

use super::limits::ASK_PAUSE_MS;
use super::{Asks, Machine};

/// See the module's opening.
pub(super) struct Asking<A> {
    asks: Asks<A>,
    /// The machine is asked nothing more before it is taken.
    refused: Option<A>,
}

impl<A> Asking<A> {
    pub(super) fn new(asks: Asks<A>) -> Self {
        Self { asks, refused: None }
    }

    /// Passes on what the machine asks, until that is all or one is given back.
    pub(super) fn ask(&mut self, machine: &mut impl Machine<Ask = A>) {
        while let Some(ask) = self.refused.take().or_else(|| machine.ask()) {
            self.refused = (self.asks)(ask);
            if self.refused.is_some() {
                return;
            }
        }
    }

    /// When the one that was given back is offered again, milliseconds; `None`: none was.
    pub(super) fn due_ms(&self, now_ms: u64) -> Option<u64> {
        self.refused.is_some().then_some(now_ms + ASK_PAUSE_MS)
    }
}
