//! What clients of permessage-deflate may refer back to in what they send ([`proto::deflate::Window`]), within a bound for
//! all of them together.
//!
//! A window is reserved with the handshake, since it cannot be refused later. It takes memory only once its client has
//! sent a compressed message.
//!
//! Invariant: `reserved` is the sum of the windows of the sessions that are there, at most.

use proto::deflate::{Agreed, Window};
use rustc_hash::FxHashMap;

/// What a session agreed to of permessage-deflate, in a byte. 0: it did not; 1: it did, and each of its messages is by
/// itself; else the bits of its window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Deflate(u8);

impl Deflate {
    /// Whether its messages may be compressed.
    pub(super) fn is_agreed(self) -> bool {
        self.0 > 0
    }

    fn window(self) -> Option<Window> {
        (self.0 > 1).then(|| Window::new(self.0))
    }
}

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Windows {
    /// The sum of all windows, bytes.
    reserved: usize,
    /// By slot; only where there is something in one.
    kept: FxHashMap<u32, Window>,
}

impl Windows {
    /// What may still be reserved of `bytes_max`.
    pub(super) fn left(&self, bytes_max: usize) -> usize {
        bytes_max.saturating_sub(self.reserved)
    }

    /// Reserves the window of a new session, if it has one.
    pub(super) fn reserve(&mut self, agreed: Option<Agreed>) -> Deflate {
        let Some(agreed) = agreed else { return Deflate::default() };
        let window = agreed.window();
        self.reserved += window.as_ref().map_or(0, Window::bytes_max);
        Deflate(window.as_ref().map_or(1, Window::bits))
    }

    /// The window of a session goes with it.
    pub(super) fn release(&mut self, slot: u32, deflate: Deflate) {
        if let Some(window) = deflate.window() {
            self.reserved -= window.bytes_max();
            self.kept.remove(&slot);
        }
    }

    /// Takes the window of a session, to inflate what it sends.
    pub(super) fn take(&mut self, slot: u32, deflate: Deflate) -> Option<Window> {
        deflate.window().map(|empty| self.kept.remove(&slot).unwrap_or(empty))
    }

    /// The same, to look ahead.
    pub(super) fn copy(&self, slot: u32, deflate: Deflate) -> Option<Window> {
        deflate.window().map(|empty| self.kept.get(&slot).cloned().unwrap_or(empty))
    }

    /// Puts the window of a session back.
    pub(super) fn put(&mut self, slot: u32, window: Option<Window>) {
        if let Some(window) = window.filter(|window| window.bytes() > 0) {
            self.kept.insert(slot, window);
        }
    }

    /// What the windows take, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.kept.values().map(Window::bytes).sum()
    }

    /// What is reserved, bytes.
    pub(super) fn reserved(&self) -> usize {
        self.reserved
    }
}
