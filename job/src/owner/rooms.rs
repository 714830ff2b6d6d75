//! An owner's rooms: made when they are first needed, forgotten when nobody needs them.

use proto::channel::{self, Channel};

use super::Owner;
use crate::room::{Holder, Room};

/// A room that nobody holds is forgotten this long after its last message, milliseconds: as long as the bus keeps it.
/// Over the budget of recent messages it is forgotten as soon as what it keeps is too old to be delivered.
const ROOM_IDLE_MS: i64 = 60 * 60 * 1000;

impl Owner {
    pub(super) fn room(&mut self, channel: &str) -> &mut Room {
        // A room's name is copied only when it is new.
        if !self.rooms.contains_key(channel) {
            let room =
                Room::new(channel, self.from.unwrap_or(0).max(self.forgotten.0), self.forgotten.1, &self.terms.recent);
            self.rooms.insert(channel.to_owned(), room);
        }
        self.rooms.get_mut(channel).expect("it was just put there")
    }

    pub(super) fn let_go(&mut self, connector: Holder) {
        self.waiting.let_go(connector);
        for room in self.rooms.values_mut() {
            room.holders.retain(|holding| holding.to != connector);
        }
    }

    /// Forgets rooms that nobody needs, over the budget those that somebody might still come back to, oldest first, and
    /// what is too old of the others.
    pub(super) fn sweep(&mut self, now_ms: i64) {
        let terms = self.terms.clone();
        let (budget, keep_from_ms) = (&terms.recent, now_ms - terms.age_ms);
        let waiting = &self.waiting;
        let free = |channel: &str, room: &Room| room.holders.is_empty() && !waiting.wants(channel);
        let forgotten = &mut self.forgotten;
        let mut forget = |room: &mut Room| {
            *forgotten = (forgotten.0.max(room.last()), forgotten.1.max(room.ordinal()));
            room.clear(budget);
        };
        self.rooms.retain(|channel, room| {
            let idle = room.newest_ms().is_none_or(|newest_ms| now_ms - newest_ms > ROOM_IDLE_MS);
            if idle && free(channel, room) {
                forget(room);
                return false;
            }
            true
        });
        if budget.is_over() {
            let old = |(channel, room): (&String, &Room)| {
                let newest_ms = room.newest_ms().filter(|&newest_ms| newest_ms < keep_from_ms)?;
                free(channel, room).then(|| (newest_ms, channel.clone()))
            };
            let mut old: Vec<_> = self.rooms.iter().filter_map(old).collect();
            old.sort_unstable();
            for (_, channel) in old {
                if !budget.is_over() {
                    break;
                }
                if let Some(mut room) = self.rooms.remove(&channel) {
                    forget(&mut room);
                }
            }
            // Else the table stays as large as it ever was.
            if self.rooms.len() < self.rooms.capacity() / 4 {
                self.rooms.shrink_to_fit();
            }
        }
        for room in self.rooms.values_mut() {
            room.trim(keep_from_ms, budget);
        }
    }

    pub(super) fn is_ours(&self, channel: &str) -> bool {
        matches!(Channel::parse(channel), Ok(Channel::Room(_)))
            && channel::partition(channel, self.terms.partitions) == self.partition
    }
}
