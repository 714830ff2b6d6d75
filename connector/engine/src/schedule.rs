//! Which fan-out passes come next. Passes that can go on stand in a queue for each lane, in the order of their turns. Passes
//! in their pacing delay stand apart.
//!
//! Invariant: a feed's lane has at most one turn ([`FeedLane::turn`]). The turn of a feed that is gone may still be there. It
//! is dropped when it comes up, since its number is no feed's.
//!
//! [`FeedLane::turn`]: super::room::FeedLane::turn

use std::collections::VecDeque;

use super::{encoding::Encoding, room::Feed};

/// The turns of passes.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// Turns that can go on now.
    lanes: [VecDeque<Turn>; 2],
    /// Turns in a pacing delay: when each is due, milliseconds, and its lane. Only rooms of hundreds of sessions are delayed: few.
    paced: Vec<(u64, usize, Turn)>,
    /// The number of the last turn.
    last: u64,
}

/// A fan-out pass over the members of a feed, for one lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) number: u64,
    pub(super) room: usize,
    pub(super) encoding: Encoding,
    /// Sends that it has left of its turns; negative: it took more.
    pub(super) credit: i32,
}

impl Schedule {
    /// Schedules a pass over a feed's lane, unless one is scheduled.
    pub(super) fn add(&mut self, room: usize, feed: &mut Feed, lane: usize, now_ms: u64) {
        let pass = &mut feed.lanes[lane];
        if pass.turn > 0 {
            return;
        }
        self.last += 1;
        (pass.turn, pass.left) = (self.last, 0);
        let turn = Turn { number: self.last, room, encoding: feed.encoding, credit: 0 };
        self.put(pass.paced_until_ms, lane, turn, now_ms);
    }

    pub(super) fn put(&mut self, at_ms: u64, lane: usize, turn: Turn, now_ms: u64) {
        if at_ms > now_ms {
            self.paced.push((at_ms, lane, turn));
        } else {
            self.lanes[lane].push_back(turn);
        }
    }

    /// The next turn on a lane.
    pub(super) fn next(&mut self, lane: usize) -> Option<Turn> {
        self.lanes[lane].pop_front()
    }

    /// A turn that goes on before all others.
    pub(super) fn put_first(&mut self, lane: usize, turn: Turn) {
        self.lanes[lane].push_front(turn);
    }

    /// A turn that goes on after all others.
    pub(super) fn put_last(&mut self, lane: usize, turn: Turn) {
        self.lanes[lane].push_back(turn);
    }

    /// Ends the pacing delays that are over.
    pub(super) fn wake(&mut self, now_ms: u64) {
        for (_, lane, turn) in self.paced.extract_if(.., |(at_ms, ..)| *at_ms <= now_ms) {
            self.lanes[lane].push_back(turn);
        }
    }

    /// When a rest is over, milliseconds.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        self.paced.iter().map(|(at_ms, ..)| *at_ms).min()
    }

    /// Walks that can go on now.
    pub(super) fn due(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    /// Walks in it.
    pub(super) fn len(&self) -> usize {
        self.due() + self.paced.len()
    }

    /// How many turns of this number there are.
    #[cfg(test)]
    pub(super) fn turns(&self, number: u64) -> usize {
        let paced = self.paced.iter().map(|(.., turn)| turn);
        self.lanes.iter().flatten().chain(paced).filter(|turn| turn.number == number).count()
    }
}
