//! Which walks over the members of rooms come next: those that can go on, by lane, in the order of their turns, and those
//! that rest.
//!
//! Invariant: a feed's lane stands in it once at most ([`FeedLane::queued`]). That of a feed that is gone may still be
//! there: it goes at its turn, or is a new feed's of the same encoding.
//!
//! [`FeedLane::queued`]: super::room::FeedLane::queued

use std::collections::VecDeque;

use super::{encode::Encoding, room::Feed};

/// Walks that are due.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// That can go on now.
    pub(super) lanes: [VecDeque<Turn>; 2],
    /// Their lane, and when they are due, milliseconds. Only rooms of hundreds of sessions rest: few.
    resting: Vec<(u64, usize, Turn)>,
}

/// A walk over the members of a feed, for one lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) room: usize,
    pub(super) encoding: Encoding,
    /// Sends that it has left of its turns; negative: it took more.
    pub(super) credit: i32,
}

impl Schedule {
    /// Has a feed's lane walked, if it is not to be anyway.
    pub(super) fn add(&mut self, room: usize, feed: &mut Feed, lane: usize, now_ms: u64) {
        let walked = &mut feed.lanes[lane];
        if !std::mem::replace(&mut walked.queued, true) {
            walked.left = 0;
            self.put(walked.rest_until_ms, lane, Turn { room, encoding: feed.encoding, credit: 0 }, now_ms);
        }
    }

    pub(super) fn put(&mut self, at_ms: u64, lane: usize, turn: Turn, now_ms: u64) {
        if at_ms > now_ms {
            self.resting.push((at_ms, lane, turn));
        } else {
            self.lanes[lane].push_back(turn);
        }
    }

    /// Ends the rests that are over.
    pub(super) fn wake(&mut self, now_ms: u64) {
        for (_, lane, turn) in self.resting.extract_if(.., |(at_ms, ..)| *at_ms <= now_ms) {
            self.lanes[lane].push_back(turn);
        }
    }

    /// When a rest is over, milliseconds.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        self.resting.iter().map(|(at_ms, ..)| *at_ms).min()
    }

    /// Walks that can go on now.
    pub(super) fn due(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    /// Walks in it.
    pub(super) fn len(&self) -> usize {
        self.due() + self.resting.len()
    }

    /// Whether a feed's lane is to be walked.
    #[cfg(test)]
    pub(super) fn holds(&self, room: usize, encoding: Encoding, lane: usize) -> bool {
        let resting = self.resting.iter().filter(|(_, of, _)| *of == lane).map(|(.., turn)| turn);
        self.lanes[lane].iter().chain(resting).any(|turn| turn.room == room && turn.encoding == encoding)
    }
}
