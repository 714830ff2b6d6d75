//! The batch: sends that one call of the driver makes. They go to members of one large room or of many small ones.
//!
//! ```text
//!   room 7 ─slice─▶ due due due │
//!   room 9 ─slice─▶ due due     ├─▶ send_all ─▶ cursors, blocked slots, passes that are over
//!   room 2 ─slice─▶ due due due │
//! ```
//!
//! A call for each room was tried and lost. With fifteen sends a call, each send cost a tenth more than with 256 (`barrage
//! bench limit`: 203,000 against 223,000 writes a CPU second).
//!
//! This is the hot path. Of a member that has nothing of its own to do it touches the `Member`, the `Slot` and the driver's
//! descriptor. That is three cache lines, and never the `Session`.
//!
//! Invariants:
//! - A session is in a batch once. A second piece would cut a half-sent first one, so it waits for the next batch.
//! - A feed is in a batch once. All passes of a batch are on one lane, and a feed has one turn on each. The turn comes back to
//!   the schedule when the batch is sent. Between a slice and its sends nobody touches the feed's ring or cursors.

use arrayvec::ArrayVec;

use super::{
    Engine,
    entry::HIGH,
    fault::Fault,
    ring::{Count, Ring},
    room::Feed,
    round::block,
    schedule::Turn,
};
use machine::{BATCH_MAX, Key, Outlet, Sending, Sent};

/// Members that may be looked at for the price of a send: nothing is due to them.
const LOOKS_PER_SEND: usize = 32;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Batch {
    slices: Vec<Slice>,
    /// The members of all slices, in order; at most [`BATCH_MAX`].
    due: Vec<DueMember>,
    pieces: Vec<Piece>,
}

/// A part of a pass.
#[derive(Debug)]
struct Slice {
    turn: Turn,
    feed: usize,
    /// Members to send to.
    sends: usize,
}

/// A member whom a slice sends a piece of a lane's ring.
#[derive(Debug)]
struct DueMember {
    key: Key,
    /// Its index in the feed.
    member: usize,
    lane: usize,
    /// Its index in the batch.
    piece: usize,
    /// Bytes that the kernel took, when it is sent.
    took: usize,
}

/// The part of a ring that a member is sent. Nearly all members of a pass stand at the same place, so it is searched for
/// once.
#[derive(Debug, Clone, Copy)]
struct Piece {
    from: u64,
    to: u64,
    before: Count,
    count: Count,
}

impl Piece {
    fn at(ring: &Ring, from: u64) -> Self {
        let (to, before) = (ring.send_end(from), ring.count_at(from));
        Self { from, to, before, count: ring.count_at(to) - before }
    }
}

impl Engine {
    /// Puts the members whose turn it is into the batch, `most` at most. How many sends that is, looks reckoned in, and
    /// whether the batch is to be sent before anything else.
    pub(super) fn slice(&mut self, mut turn: Turn, (feed, lane): (usize, usize), most: i32) -> (i32, bool) {
        let twice = self.config.planted() == Some(Fault::TwiceInABatch);
        let Self { sessions, rooms, batch: Batch { slices, due, pieces }, .. } = self;
        debug_assert!(
            !slices.iter().any(|other| (other.turn.room, other.feed) == (turn.room, feed)),
            "a feed is in a batch once"
        );
        let Feed { lanes, members, .. } = &mut rooms[turn.room].feeds[feed];
        let heads = [lanes[0].ring.head(), lanes[1].ring.head()];
        let first = due.len();
        let most = (BATCH_MAX - first).min(usize::try_from(most).unwrap_or(0));
        // Of each lane, in the batch.
        let mut standing = [None::<usize>; 2];
        let (mut at, mut left) = (lanes[lane].at, lanes[lane].left.min(members.len()));
        let (mut looks, mut clash) = (0, false);
        while left > 0 && most > due.len() - first + looks / LOOKS_PER_SEND {
            let index = if at < members.len() { at } else { 0 };
            let member = &members[index];
            let behind = (HIGH..=lane).find(|lane| member.cursors[*lane] < heads[*lane]);
            let slot = &mut sessions[member.slot];
            if let Some(lane) = behind.filter(|_| !slot.blocked && !slot.queued) {
                if slot.sending && !twice {
                    clash = true;
                    break;
                }
                slot.sending = true;
                let from = member.cursors[lane];
                let piece = match standing[lane] {
                    Some(piece) if pieces[piece].from == from => piece,
                    _ => {
                        pieces.push(Piece::at(&lanes[lane].ring, from));
                        *standing[lane].insert(pieces.len() - 1)
                    }
                };
                let key = Key { slot: member.slot, generation: slot.generation };
                due.push(DueMember { key, member: index, lane, piece, took: 0 });
            } else {
                looks += 1;
            }
            (at, left) = (index + 1, left - 1);
        }
        let sends = due.len() - first;
        let pass = &mut lanes[lane];
        (pass.at, pass.left) = (at, left);
        pass.sends += sends as u32;
        // At least one, which bounds the passes that a round begins.
        let took = (sends + looks / LOOKS_PER_SEND).max(1) as i32;
        turn.credit -= took;
        slices.push(Slice { turn, feed, sends });
        (took, clash || due.len() == BATCH_MAX)
    }

    /// Sends to those in the batch; `lane` is that of its passes. Whether there was anything.
    pub(super) fn send_batch(&mut self, lane: usize, outlet: &mut impl Outlet) -> bool {
        if self.batch.slices.is_empty() {
            return false;
        }
        let Batch { mut slices, mut due, mut pieces } = std::mem::take(&mut self.batch);
        let mut sending = ArrayVec::<Sending<'_>, BATCH_MAX>::new();
        let mut dues = due.iter();
        for Slice { turn, feed, sends } in &slices {
            let lanes = &self.rooms[turn.room].feeds[*feed].lanes;
            sending.extend(dues.by_ref().take(*sends).map(|due| {
                let Piece { from, to, .. } = pieces[due.piece];
                Sending { key: due.key, bytes: lanes[due.lane].ring.between(from, to), sent: Sent::Took(0) }
            }));
        }
        outlet.send_all(&mut sending);
        for (due, sending) in due.iter_mut().zip(&sending) {
            due.took = self.counters.wrote(sending);
        }
        drop(sending);
        let mut dues = due.iter();
        for Slice { turn, feed, sends } in slices.drain(..) {
            dues.by_ref().take(sends).for_each(|due| self.carry_on((turn.room, feed, lane), due, &pieces[due.piece]));
            if self.rooms[turn.room].feeds[feed].lanes[lane].left == 0 {
                self.end_pass(turn.room, feed, lane);
                let pass = &self.rooms[turn.room].feeds[feed].lanes[lane];
                if pass.turn > 0 {
                    self.schedule.put(pass.paced_until_ms, lane, Turn { credit: 0, ..turn }, self.now.mono_ms);
                }
            } else if turn.credit > 0 {
                // The batch or the round was full: its turn goes on.
                self.schedule.put_first(lane, turn);
            } else {
                self.schedule.put_last(lane, turn);
            }
        }
        due.clear();
        pieces.clear();
        self.batch = Batch { slices, due, pieces };
        true
    }

    /// A member of a pass on `lane` was sent so much of a piece.
    fn carry_on(&mut self, (index, feed, lane): (usize, usize, usize), due: &DueMember, piece: &Piece) {
        let Self { sessions, rooms, counters, timers, config, .. } = self;
        let Feed { lanes, members, .. } = &mut rooms[index].feeds[feed];
        let (member, ring) = (&mut members[due.member], &lanes[due.lane].ring);
        let slot = &mut sessions[member.slot];
        slot.sending = false;
        let cursor = &mut member.cursors[due.lane];
        *cursor += due.took as u64;
        if *cursor < piece.to {
            counters.came(ring.count_at(*cursor) - piece.before);
            block(slot, timers, config, self.now.mono_ms, true);
            if let Some(session) = slot.session.as_deref_mut().filter(|_| !ring.rest(*cursor).is_empty()) {
                session.busy_mut().half = Some((index, due.lane));
            }
            return;
        }
        counters.came(piece.count);
        if due.lane == lane {
            // The pass goes round again for what this send did not carry. In turns of their own everybody's remainders
            // would go past the pass, and it would look short. What came since is for the next pass.
            let pass = &mut lanes[lane];
            pass.short |= piece.to < pass.goal;
        } else if (HIGH..=lane).any(|lane| member.cursors[lane] < lanes[lane].ring.head()) {
            // In its own turn, so what is normal comes after all that is high.
            sessions.ready(member.slot);
        }
    }
}
