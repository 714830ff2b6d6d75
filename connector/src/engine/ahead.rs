//! Members whose client has seen more of a room than this core has: it comes from a connector that was further, and
//! resumes.
//!
//! Its cursors stand at the heads of the rings, which all in a room share; what the client has already must not be sent
//! to it when it comes here, too. So each entry of a room that has such members is encoded by itself, and their cursors
//! are moved past it, until the room is as far as they are. Nobody waits for that: a position in a quiet room may lie
//! beyond its last message, and the room may not get there for hours.

use super::{
    Engine,
    room::{Feed, Room},
};
use crate::driver::Key;

/// One of them.
#[derive(Debug)]
pub(super) struct Ahead {
    key: Key,
    /// What its client has of each lane.
    after: [u64; 2],
}

impl Ahead {
    fn is_ahead_of(&self, room: &Room) -> bool {
        self.after.iter().any(|after| *after > room.offset)
    }
}

impl Engine {
    /// A session has come into a room with a client that has what is at or before `after` on each lane.
    pub(super) fn note_ahead(&mut self, key: Key, index: usize, after: [u64; 2]) {
        let ahead = Ahead { key, after };
        if ahead.is_ahead_of(&self.rooms[index]) {
            self.ahead.entry(index).or_default().push(ahead);
        }
    }

    /// What its client has of each lane, if that is more than the room has.
    pub(super) fn ahead(&self, key: Key, index: usize) -> Option<[u64; 2]> {
        self.ahead.get(&index)?.iter().find(|ahead| ahead.key == key).map(|ahead| ahead.after)
    }

    /// The entry at `offset` is in the room's log: who has it already is moved past it.
    pub(super) fn pass_ahead(&mut self, index: usize, lane: usize, offset: u64) {
        if self.ahead.is_empty() {
            return;
        }
        let Some(mut members) = self.ahead.remove(&index) else { return };
        (0..self.rooms[index].feeds.len()).for_each(|feed| self.encode(index, feed));
        members.retain(|ahead| {
            if ahead.after[lane] >= offset
                && let Some((feed, member)) = self.place_in(ahead.key, index)
            {
                let Feed { lanes, members, .. } = &mut self.rooms[index].feeds[feed];
                members[member].cursors[lane] = lanes[lane].ring.head();
            }
            ahead.is_ahead_of(&self.rooms[index])
        });
        if !members.is_empty() {
            self.ahead.insert(index, members);
        }
    }

    /// A room's log is another one, in which nobody has seen anything.
    pub(super) fn forget_all_ahead(&mut self, index: usize) {
        self.ahead.remove(&index);
    }

    /// A session has left a room.
    pub(super) fn forget_ahead(&mut self, key: Key, index: usize) {
        if let Some(members) = self.ahead.get_mut(&index) {
            members.retain(|ahead| ahead.key != key);
            if members.is_empty() {
                self.ahead.remove(&index);
            }
        }
    }

    /// Feed and member of a session in a room.
    fn place_in(&mut self, key: Key, index: usize) -> Option<(usize, usize)> {
        let session = self.session(key)?;
        let (member, encoding) =
            (session.places.iter().find(|place| place.room() == index)?.member(), session.encoding()?);
        Some((self.rooms[index].feed(encoding)?, member))
    }
}
