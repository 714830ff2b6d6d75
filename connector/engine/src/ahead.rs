//! Members whose client has seen more of a room than this core has. The client comes from a connector that was further, and
//! resumes here.
//!
//! ```text
//!   joined:  its cursors stand at the heads of the rings; Feed::ahead says up to where it has each lane
//!   encoded: its cursors move along with the heads, since it has what was encoded
//!   an entry beyond what it has: what came before is encoded by itself, and from there it reads like everyone
//! ```
//!
//! It costs one batch more where a lane passes what such a client has. It costs nothing until then: a position in a quiet room
//! may lie beyond its last message, and the room may not get there for hours.
//!
//! Invariants:
//! - While a lane of a member is ahead, its cursor there is the ring's head: no frame is half sent, and nothing is skipped.
//! - Of a gap that it may have some of, it is told by itself, with what it misses at least. The ring's frame tells everyone
//!   else. A gap is told on the normal lane. A member that is ahead on the high lane only may have got a high message of the
//!   gap elsewhere, and is told of that one, too.

use proto::client::GapReasons;

use super::{
    Engine,
    entry::{Entry, NORMAL},
    room::{Feed, Room},
    session_table::Sessions,
};

/// Messages that this core has not got, to be put into a room's log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    /// The last offset of them that is known of.
    pub(super) offset: u64,
    /// How many for which reason, at least.
    pub(super) reasons: GapReasons,
    /// Whether it is just as many.
    pub(super) exact: bool,
    /// None of them lies beyond `offset`.
    pub(super) whole: bool,
}

impl Engine {
    /// Puts a gap into a room's log.
    pub(super) fn push_gap(&mut self, index: usize, gap: Gap) {
        let Self { sessions, rooms, counters, .. } = self;
        let room = &mut rooms[index];
        let before = room.offset.max(room.reached);
        for Feed { ahead, backlog, .. } in &mut room.feeds {
            for (slot, &[_, after]) in ahead.iter() {
                // Between `before` and there it may have as many as there are offsets.
                let had = after.saturating_sub(before);
                if after == 0 || (gap.whole && after >= gap.offset) {
                    continue;
                }
                let backlog = backlog.entry(*slot).or_default();
                if !backlog.on(NORMAL) {
                    backlog.resume_position = after;
                }
                backlog.add(NORMAL, gap.reasons.without(had), !gap.exact || had > 0);
                sessions.ready(*slot);
            }
        }
        let Gap { offset, reasons, exact, .. } = gap;
        room.push(Entry::Gap { offset, reasons: Box::new(reasons), exact });
        counters.missed += reasons.total();
    }

    /// A message at `offset` is to come into a room's log: whose client has seen less reads like everyone from there.
    pub(super) fn pass_ahead(&mut self, index: usize, offset: u64) {
        for feed in 0..self.rooms[index].feeds.len() {
            let passed = |after: &u64| *after > 0 && *after < offset;
            if !self.rooms[index].feeds[feed].ahead.values().flatten().any(passed) {
                continue;
            }
            self.encode(index, feed);
            self.rooms[index].feeds[feed].ahead.retain(|_, lanes| {
                lanes.iter_mut().filter(|after| passed(after)).for_each(|after| *after = 0);
                *lanes != [0; 2]
            });
        }
    }
}

/// What a feed has encoded is what these members have.
pub(super) fn go_along(sessions: &Sessions, (index, room): (usize, &mut Room), feed: usize) {
    let Feed { ahead, lanes, members, .. } = &mut room.feeds[feed];
    for (slot, after) in ahead.iter() {
        let session = sessions[*slot].session.as_deref();
        let Some(place) = session.and_then(|it| it.places.iter().find(|place| place.room() == index)) else { continue };
        for lane in (0..lanes.len()).filter(|lane| after[*lane] > 0) {
            members[place.member()].cursors[lane] = lanes[lane].ring.head();
        }
    }
}
