//! What the kernel hands back with a completion: which request of which connection it belongs to (rule 32).
//!
//! ```text
//!   63..60 kind | 59..32 slot | 31..0 generation
//! ```
//!
//! A completion comes late: its connection may be gone, and another one have its slot. The generation tells them apart.

use machine::Key;

/// Highest slot of a machine: no process gets so many descriptors.
pub(super) const SLOT_MAX: u32 = (1 << 28) - 1;

/// What was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of a connection.
    Receive,
    /// To be told when a connection takes bytes again.
    Room,
    /// To be told when the listener of this index, given as a slot, has a connection.
    Accept,
    /// To be told when another thread wakes this one.
    WakeUp,
    /// The end of a connection's receiving.
    Cancel,
    /// The end of something whose end needs no answer.
    Forget,
}

const KINDS: [Kind; 6] = [Kind::Receive, Kind::Room, Kind::Accept, Kind::WakeUp, Kind::Cancel, Kind::Forget];

/// A request, as the kernel keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) key: Key,
}

impl Token {
    /// Of a request that is no connection's.
    pub(super) fn of(kind: Kind, index: usize) -> Self {
        Self { kind, key: Key { slot: index as u32, generation: 0 } }
    }

    pub(super) fn pack(self) -> u64 {
        debug_assert!(self.key.slot <= SLOT_MAX);
        (self.kind as u64) << 60 | u64::from(self.key.slot) << 32 | u64::from(self.key.generation)
    }

    /// # Panics
    /// If it was not packed here: everything in the ring was.
    pub(super) fn unpack(bits: u64) -> Self {
        let slot = (bits >> 32) as u32 & SLOT_MAX;
        Self { kind: KINDS[(bits >> 60) as usize], key: Key { slot, generation: bits as u32 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was() {
        for (at, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            for slot in [0, 1, SLOT_MAX] {
                for generation in [0, 1, u32::MAX] {
                    let token = Token { kind, key: Key { slot, generation } };
                    assert_eq!(Token::unpack(token.pack()), token);
                }
            }
        }
    }
}
