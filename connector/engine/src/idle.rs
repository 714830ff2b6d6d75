//! What the rooms of a core keep of recent messages, together: a bound for it, and who gives back first.
//!
//! A room keeps its last messages for those who join or resume, as bytes on the wire, too, where native clients read
//! ([`super::room`]). A hundred thousand rooms that once had traffic would keep gigabytes so. Over the bound the rooms that
//! have been idle for longest keep the last few messages only ([`Room::shrink_idle`]): who joins there gets a shorter history,
//! and who resumes from before is told a gap. Rooms with traffic are left alone.
//!
//! ```text
//!   traffic ─▶ dirty ─a second without─▶ idle ─over the bound, the oldest first─▶ shrunk
//! ```
//!
//! Not here: what one room and one ring keep at most (`room`, `ring`), how a ring shrinks.
//!
//! Invariant: `kept` is the sum of what the rooms were weighed at last, so nothing when all are gone.

use std::collections::VecDeque;

use slab::Slab;

use super::room::Room;

/// Entries of the queue that are of no idle room any more and wait to be thrown out, beside as many as there are rooms.
const STALE_MAX: usize = 64;

/// Idle rooms that give back memory in one round, each a few hundred messages: under a millisecond (rule 27).
const SHRINKS_PER_ROUND: usize = 64;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct IdleRooms {
    /// What the rooms keep, bytes.
    kept: usize,
    /// Rooms that have become idle, the oldest first, each with the stamp that it got. A room with another stamp now has
    /// been dirty since.
    queue: VecDeque<(usize, u64)>,
    stamp: u64,
}

impl IdleRooms {
    /// A second has passed: looks at the rooms that may have memory to give back.
    pub(super) fn settle(&mut self, rooms: &mut Slab<Room>, dirty: &mut Vec<usize>) {
        dirty.retain(|&index| {
            let Some(room) = rooms.get_mut(index) else { return false };
            room.dirty = room.shrink();
            self.weigh(room);
            if !room.dirty {
                self.stamp += 1;
                room.idle_stamp = self.stamp;
                self.queue.push_back((index, self.stamp));
            }
            room.dirty
        });
        if self.queue.len() > 2 * rooms.len() + STALE_MAX {
            self.queue.retain(|entry| is_idle(rooms, *entry));
            self.queue.shrink_to_fit();
        }
    }

    /// Whether there is more than `most` bytes, and rooms that could give back some.
    pub(super) fn is_over(&self, most: usize) -> bool {
        self.kept > most && !self.queue.is_empty()
    }

    /// Has some of the rooms that have been idle for longest give back memory, as long as all keep more than `most` bytes.
    pub(super) fn shrink(&mut self, rooms: &mut Slab<Room>, dirty: &mut Vec<usize>, most: usize) {
        for _ in 0..SHRINKS_PER_ROUND {
            if self.kept <= most {
                return;
            }
            let Some(next) = self.queue.pop_front() else { return };
            if is_idle(rooms, next) {
                let room = &mut rooms[next.0];
                if !room.shrink_idle() {
                    // Again when who keeps it has read, or is gone.
                    room.dirty = true;
                    dirty.push(next.0);
                }
                self.weigh(room);
            }
        }
    }

    /// A room is given back.
    pub(super) fn gone(&mut self, room: &Room) {
        self.kept -= room.weighed;
    }

    /// What the rooms keep, bytes.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    fn weigh(&mut self, room: &mut Room) {
        let bytes = room.footprint();
        self.kept = self.kept - std::mem::replace(&mut room.weighed, bytes) + bytes;
    }
}

/// Whether an entry of the queue is still true.
fn is_idle(rooms: &Slab<Room>, (index, stamp): (usize, u64)) -> bool {
    rooms.get(index).is_some_and(|room| room.idle_stamp == stamp && !room.dirty)
}
