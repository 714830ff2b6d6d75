//! What the rooms of a core keep of recent messages, together: a bound for it, and who gives back first.
//!
//! A room keeps its last messages for those who join or resume, as bytes on the wire, too, where native clients read
//! ([`super::room`]). A hundred thousand rooms that once had traffic would keep gigabytes so. Over the bound the rooms that
//! have been quiet for longest keep the last few messages only ([`Room::doze`]): who joins there gets a shorter history,
//! and who resumes from before is told a gap. Rooms with traffic are left alone.
//!
//! ```text
//!   traffic ─▶ stirred ─a second without─▶ line ─over the bound, the oldest first─▶ doze
//! ```
//!
//! Not here: what one room and one ring keep at most (`room`, `ring`), how a ring shrinks.
//!
//! Invariant: `kept` is the sum of what the rooms were weighed at last, so nothing when all are gone.

use std::collections::VecDeque;

use slab::Slab;

use super::room::Room;

/// Entries of the line that are of no room any more and wait to be thrown out, beside as many as there are rooms.
const STALE_MAX: usize = 64;

/// Rooms that doze in one turn, each a few hundred messages to free: under a millisecond (rule 27).
const DOZES_A_TURN: usize = 64;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// Bytes.
    kept: usize,
    /// Rooms that have become quiet, and the stamp that they got: another one now, and it is no longer true.
    line: VecDeque<(usize, u64)>,
    stamp: u64,
}

impl Quiet {
    /// A second has passed: looks at the rooms that may have memory to give back.
    pub(super) fn settle(&mut self, rooms: &mut Slab<Room>, stirred: &mut Vec<usize>) {
        stirred.retain(|&index| {
            let Some(room) = rooms.get_mut(index) else { return false };
            room.stirred = room.shrink();
            self.weigh(room);
            if !room.stirred {
                self.stamp += 1;
                room.quiet = self.stamp;
                self.line.push_back((index, self.stamp));
            }
            room.stirred
        });
        if self.line.len() > 2 * rooms.len() + STALE_MAX {
            self.line.retain(|entry| is_quiet(rooms, *entry));
            self.line.shrink_to_fit();
        }
    }

    /// Whether there is more than `most` bytes, and rooms that could give back some.
    pub(super) fn is_over(&self, most: usize) -> bool {
        self.kept > most && !self.line.is_empty()
    }

    /// Has some of the rooms doze that have been quiet for longest, as long as there is more than `most` bytes.
    pub(super) fn doze(&mut self, rooms: &mut Slab<Room>, stirred: &mut Vec<usize>, most: usize) {
        for _ in 0..DOZES_A_TURN {
            if self.kept <= most {
                return;
            }
            let Some(next) = self.line.pop_front() else { return };
            if is_quiet(rooms, next) {
                let room = &mut rooms[next.0];
                if !room.doze() {
                    // Again when who keeps it has read, or is gone.
                    room.stirred = true;
                    stirred.push(next.0);
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

/// Whether what stands in the line is still so.
fn is_quiet(rooms: &Slab<Room>, (index, stamp): (usize, u64)) -> bool {
    rooms.get(index).is_some_and(|room| room.quiet == stamp && !room.stirred)
}
