//! The network: sockets that take what they like, are slow, or break.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use machine::{Key, Outlet, Sending, Sent, send_each};

/// A connection in the network.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) client: usize,
    /// On its way to the engine.
    pub(super) up: Vec<u8>,
    /// On its way to the client.
    pub(super) down: VecDeque<u8>,
    /// Bytes of `down` that there may be.
    pub(super) room: usize,
    /// The engine was told that there is none left.
    pub(super) full: bool,
    pub(super) paused: bool,
    /// Reads seldom.
    pub(super) slow: bool,
    pub(super) open: bool,
}

#[derive(Default)]
pub(super) struct Net {
    pub(super) wires: BTreeMap<Key, Wire>,
    pub(super) random: u64,
    pub(super) accepting: bool,
    pub(super) breaking: Vec<Key>,
}

impl Outlet for Net {
    fn send(&mut self, key: Key, bytes: &[u8]) -> Sent {
        assert!(!bytes.is_empty(), "an empty send");
        let Some(wire) = self.wires.get_mut(&key).filter(|wire| wire.open) else { return Sent::Gone };
        assert!(!wire.full, "a send to a full socket, before it was writable");
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        if self.random >> 33 & 0x3ff == 0 {
            self.breaking.push(key);
            return Sent::Gone;
        }
        let took = bytes.len().min(wire.room.saturating_sub(wire.down.len()));
        wire.down.extend(&bytes[..took]);
        wire.full = took < bytes.len();
        Sent::Took(took)
    }

    fn send_all(&mut self, sends: &mut [Sending<'_>]) {
        let keys: BTreeSet<_> = sends.iter().map(|sending| sending.key).collect();
        assert_eq!(keys.len(), sends.len(), "somebody is sent to twice by one call");
        send_each(self, sends);
    }

    fn read(&mut self, key: Key) {
        if let Some(wire) = self.wires.get_mut(&key) {
            wire.paused = false;
        }
    }

    fn close(&mut self, key: Key) {
        let wire = self.wires.get_mut(&key).expect("a connection that is there is closed, once");
        assert!(wire.open, "closed twice");
        wire.open = false;
    }

    fn stop_accepting(&mut self) {
        self.accepting = false;
    }
}
