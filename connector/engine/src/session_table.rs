//! The sessions of a core: a table of slots that are used again, what sessions have in common, and the queues of those
//! whose turn is to come.
//!
//! Invariants:
//! - A key is of one session: the slot's generation changes with each.
//! - A session is in the queue of those that are ready at most once ([`Slot::queued`]).

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::{Index, IndexMut},
};

use super::{
    KEPT,
    identity::Grant,
    session::{Session, Slot},
    shared::Shared,
};
use machine::Key;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    slots: Vec<Slot>,
    /// Slots without a session: small numbers are used again first.
    free: BinaryHeap<Reverse<u32>>,
    /// Sessions that logic has admitted.
    admitted: u64,
    /// Sessions that have something of their own to send or to finish.
    ready: VecDeque<Key>,
    /// Sessions that may be read from again.
    readable: VecDeque<Key>,
    /// What sessions may.
    pub(super) grants: Shared<Grant>,
    /// What goim's sessions accept.
    pub(super) accepts: Shared<[i32]>,
}

impl Sessions {
    /// Puts a new session, which `make` makes of its key, into a free slot.
    pub(super) fn open(&mut self, make: impl FnOnce(Key) -> Session) -> Key {
        let slot = match self.free.pop() {
            Some(Reverse(slot)) => slot,
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        let key = Key { slot, generation: self[slot].generation };
        self[slot].session = Some(Box::new(make(key)));
        key
    }

    /// Frees the slot of a session.
    pub(super) fn close(&mut self, key: Key) {
        self[key.slot] = Slot { generation: key.generation.wrapping_add(1), ..Slot::default() };
        self.free.push(Reverse(key.slot));
    }

    /// The session, if it is still there.
    pub(super) fn get(&self, key: Key) -> Option<&Session> {
        self.slots.get(key.slot as usize)?.session.as_deref().filter(|session| session.key == key)
    }

    /// The session, if it is still there.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Session> {
        self.slots.get_mut(key.slot as usize)?.session.as_deref_mut().filter(|session| session.key == key)
    }

    /// The slot of a key, if it is still the key's.
    pub(super) fn slot_of(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation)
    }

    /// Whoever has a slot now.
    pub(super) fn at(&self, slot: usize) -> Option<&Session> {
        self.slots.get(slot)?.session.as_deref()
    }

    /// Whoever has a slot now.
    pub(super) fn at_mut(&mut self, slot: u32) -> Option<&mut Session> {
        self.slots.get_mut(slot as usize)?.session.as_deref_mut()
    }

    /// All slots, free ones among them.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// All sessions.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> + Clone {
        self.slots.iter().filter_map(|slot| slot.session.as_deref())
    }

    /// How many there are, whatever their state.
    pub(super) fn connections(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many logic has admitted.
    pub(super) fn admitted(&self) -> u64 {
        self.admitted
    }

    /// Logic has admitted one more.
    pub(super) fn admit(&mut self) {
        self.admitted += 1;
    }

    /// One of those that logic has admitted is gone.
    pub(super) fn dismiss(&mut self) {
        self.admitted -= 1;
    }

    /// Has the next round look at what the session in a slot has of its own to send. A blocked one comes up by itself.
    pub(super) fn ready(&mut self, slot: u32) {
        let Self { slots, ready, .. } = self;
        let entry = &mut slots[slot as usize];
        if !entry.queued && !entry.blocked {
            entry.queued = true;
            ready.push_back(Key { slot, generation: entry.generation });
        }
    }

    /// The kernel takes more for a session. It stays blocked until its turn: a fan-out pass must not get ahead of a
    /// half-sent frame.
    pub(super) fn writable(&mut self, key: Key) {
        if self.get(key).is_none() {
            return;
        }
        let slot = &mut self[key.slot];
        slot.woken = true;
        if !std::mem::replace(&mut slot.queued, true) {
            self.ready.push_back(key);
        }
    }

    /// The next one that is ready.
    pub(super) fn next_ready(&mut self) -> Option<Key> {
        self.ready.pop_front()
    }

    /// How many are ready.
    pub(super) fn count_ready(&self) -> usize {
        self.ready.len()
    }

    /// Has the next round read from a session again.
    pub(super) fn readable(&mut self, key: Key) {
        self.readable.push_back(key);
    }

    /// The next one that may be read from again.
    pub(super) fn next_readable(&mut self) -> Option<Key> {
        self.readable.pop_front()
    }

    /// How many may be read from again.
    pub(super) fn count_readable(&self) -> usize {
        self.readable.len()
    }

    /// Gives back what a storm of connections has left in queues that are nearly empty now.
    pub(super) fn shrink(&mut self) {
        for queue in [&mut self.ready, &mut self.readable] {
            if queue.capacity() > KEPT && queue.len() < queue.capacity() / 4 {
                queue.shrink_to(KEPT);
            }
        }
    }
}

impl Index<u32> for Sessions {
    type Output = Slot;

    fn index(&self, slot: u32) -> &Slot {
        &self.slots[slot as usize]
    }
}

impl IndexMut<u32> for Sessions {
    fn index_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.slots[slot as usize]
    }
}
