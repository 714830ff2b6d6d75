//! What a core's machine asks of other threads, and the asks that were given back: the same for every driver.
//!
//! A turn's asks go together. One by one, the first woke who answers, which on a busy processor takes the core's place at once:
//! in a storm of connections it came round twice a turn, to a few asks each time.

use super::Asks;
use super::limits::{ASK_PAUSE_MS, ASKS_A_BATCH};
use machine::Machine;

/// See the module's opening.
pub(super) struct Asking<A> {
    asks: Asks<A>,
    /// They come first, and the machine is asked no more than what fills their batch before they are taken.
    refused: Vec<A>,
}

impl<A> Asking<A> {
    pub(super) fn new(asks: Asks<A>) -> Self {
        Self { asks, refused: Vec::new() }
    }

    /// Passes on what the machine asks, until that is all or some are given back.
    pub(super) fn ask(&mut self, machine: &mut impl Machine<Request = A>) {
        loop {
            let mut batch = std::mem::take(&mut self.refused);
            let room = ASKS_A_BATCH.saturating_sub(batch.len());
            batch.extend(std::iter::from_fn(|| machine.next_request()).take(room));
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};

    use super::*;
    use machine::{Key, Next, Now, Outlet, Reading};

    /// Asks the numbers up to it, from 0.
    struct Counts(std::ops::Range<usize>);

    impl Machine for Counts {
        type Input = ();
        type Request = usize;

        fn opened(&mut self, _: Now, _: usize, _: SocketAddr) -> Option<Key> {
            None
        }

        fn bytes(&mut self, _: Now, _: Key, _: &mut [u8]) -> Reading {
            Reading::On
        }

        fn writable(&mut self, _: Now, _: Key) {}

        fn closed(&mut self, _: Now, _: Key) {}

        fn input(&mut self, _: Now, (): ()) {}

        fn round(&mut self, now: Now, _: &mut impl Outlet) -> Next {
            Next { again: false, wake_ms: now.mono_ms }
        }

        fn next_request(&mut self) -> Option<usize> {
            self.0.next()
        }

        fn done(&self) -> bool {
            false
        }
    }

    #[test]
    fn asks_keep_their_order_whatever_is_given_back() {
        let (taken, calls) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (into, called) = (taken.clone(), calls.clone());
        let mut asking = Asking::new(Box::new(move |mut asks: Vec<usize>| {
            let mut called = called.lock().unwrap();
            called.push(asks.len());
            // Room for all, for some, for none.
            let refused = asks.split_off([asks.len(), 10, 0][called.len() % 3].min(asks.len()));
            into.lock().unwrap().extend(asks);
            refused
        }));
        let mut machine = Counts(0..3 * ASKS_A_BATCH);
        let mut turns = 0;
        while taken.lock().unwrap().len() < 3 * ASKS_A_BATCH {
            asking.ask(&mut machine);
            assert_eq!(asking.due_ms(7).is_some(), !asking.refused.is_empty());
            turns += 1;
            assert!(turns < 100, "{:?}", calls.lock().unwrap());
        }
        assert!(taken.lock().unwrap().iter().copied().eq(0..3 * ASKS_A_BATCH));
        assert!(calls.lock().unwrap().iter().all(|asks| (1..=ASKS_A_BATCH).contains(asks)));
        asking.ask(&mut machine);
        assert_eq!(asking.due_ms(7), None);
    }
}
