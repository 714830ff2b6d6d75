//! One room: its ordinal, its recent messages, its holders and the position of each.
//!
//! A room decides nothing about its partition ([`crate::partition`] does) and sends nothing.
//!
//! ```text
//!   offsets of the channel ──▶  …counted│ indexed (offset, ordinal) │ kept entries │
//!   a holder's position    ──▶  at least│ missed, counted exactly   │ gets them    │ has all
//! ```
//!
//! Invariants:
//! - Every record of the channel takes the next ordinal, delivered or not. A repetition takes none.
//! - Entries and index are in the order of offsets. From `counted` on no record is missing, so a gap can be counted.
//! - A room that was forgotten and made again has other ordinals than before. Nothing is counted from the old ones.

use std::collections::VecDeque;

use bus::Offset;
use proto::client::GapReasons;
use proto::cluster::{Before, Item, Missed};
use proto::{RECENT_BYTES, RECENT_MESSAGES};

use super::seen::Budget;
use crate::item::EncodedItem;
use crate::partition::{Answer, HolderPosition, StreamId};

/// Over the budget a room keeps this many messages.
const RECENT_MESSAGES_MIN: usize = 8;
/// How many messages that are no longer kept can be counted exactly: 16 bytes each.
const INDEX_MAX: usize = 2048;
/// What a room takes of the budget besides its messages, bytes, generously: itself, its name, its place among the rooms
/// and what its queues have room for at first.
pub(crate) const ROOM_BYTES: usize = 1024;

/// Messages of a room that a holder does not get, by what the owner knows of the reason. A count that does not fit stays
/// at the largest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Over the flow cap.
    capped: u32,
    /// Older than `job.age_s_max` when they could be delivered.
    aged: u32,
}

impl Gap {
    /// One message more: over the flow cap, or too old.
    pub(crate) fn add(&mut self, capped: bool) {
        let count = if capped { &mut self.capped } else { &mut self.aged };
        *count = count.saturating_add(1);
    }

    fn capped(count: u64) -> Self {
        Self { capped: u32::try_from(count).unwrap_or(u32::MAX), aged: 0 }
    }

    pub(crate) fn count(self) -> u64 {
        u64::from(self.capped) + u64::from(self.aged)
    }

    /// The message, telling that this gap lies directly before it.
    pub(crate) fn before(self, item: &EncodedItem) -> EncodedItem {
        item.after(self.count(), &self.reasons())
    }

    fn reasons(self) -> GapReasons {
        GapReasons { capped: self.capped.into(), aged: self.aged.into(), ..GapReasons::default() }
    }
}

/// A gap of `count` messages whose reason is not known.
fn unknown(count: u64, exact: bool) -> Missed {
    Missed { count, exact, reasons: Some(GapReasons { unknown: count, ..GapReasons::default() }) }
}

/// A connector that holds the room, and its position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holding {
    pub(crate) to: StreamId,
    /// The connector has everything up to this offset, or was told the gap.
    pub(crate) position: Offset,
    /// What was not delivered since, and is not told yet.
    pub(crate) missed: Gap,
}

enum Kept {
    Message(EncodedItem),
    /// This many in a row were dropped by the flow cap; offset and ordinal are the last one's.
    Dropped(u64),
}

struct Entry {
    offset: Offset,
    ordinal: u64,
    time_ms: i64,
    kept: Kept,
}

impl Entry {
    fn bytes(&self) -> usize {
        match &self.kept {
            Kept::Message(item) => item.len(),
            Kept::Dropped(_) => 0,
        }
    }

    fn first_ordinal(&self) -> u64 {
        match self.kept {
            Kept::Message(_) => self.ordinal,
            Kept::Dropped(count) => self.ordinal + 1 - count,
        }
    }
}

/// The state of a room: see the module's opening.
pub(crate) struct Room {
    channel: Box<str>,
    /// The last record's ordinal.
    ordinal: u64,
    /// Offset of the last record; 0: none was read.
    last: Offset,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Offsets and ordinals of what is no longer kept.
    index: VecDeque<(Offset, u64)>,
    /// Every record of the channel after this offset is in `index` or `entries`, and its ordinal after this one.
    counted: (Offset, u64),
    /// Ordinals up to this one are not this room's. They may be from before it was forgotten.
    base: u64,
    pub(crate) holders: Vec<Holding>,
    /// The flow cap's second of the log's time, and the messages in it.
    second: (i64, u32),
    /// The gap at the end of `entries` has been told: the next one is another, so that no position lies within one.
    closed: bool,
}

impl Room {
    /// A room of which nothing is known up to offset `from`, and everything after; its ordinals begin after `base`. Takes
    /// [`ROOM_BYTES`] of the budget, which [`Room::clear`] gives back.
    pub(crate) fn new(channel: &str, from: Offset, base: u64, budget: &Budget) -> Self {
        budget.take(ROOM_BYTES);
        Self {
            channel: channel.into(),
            closed: true,
            ordinal: base,
            base,
            last: 0,
            entries: VecDeque::new(),
            bytes: 0,
            index: VecDeque::new(),
            counted: (from, base),
            holders: Vec::new(),
            second: (i64::MIN, 0),
        }
    }

    pub(crate) fn last(&self) -> Offset {
        self.last
    }

    pub(crate) fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// Nothing was read of it yet, so its beginning can still be set.
    pub(crate) fn begin(&mut self, from: Offset) {
        debug_assert_eq!(self.ordinal, self.base, "only before the first record");
        self.counted = (from, self.base);
    }

    /// Takes the next ordinal, and says whether the record is over the flow cap (0: there is none).
    pub(crate) fn next(&mut self, offset: Offset, time_ms: i64, per_s_max: u32) -> (u64, bool) {
        self.ordinal += 1;
        self.last = offset;
        let second = time_ms.div_euclid(1000);
        if second != self.second.0 {
            self.second = (second, 0);
        }
        self.second.1 = self.second.1.saturating_add(1);
        (self.ordinal, per_s_max > 0 && self.second.1 > per_s_max)
    }

    /// Keeps a message, `time_ms` being the log's.
    pub(crate) fn keep(&mut self, offset: Offset, time_ms: i64, item: EncodedItem, budget: &Budget) {
        self.bytes += item.len();
        budget.take(item.len());
        self.entries.push_back(Entry { offset, ordinal: self.ordinal, time_ms, kept: Kept::Message(item) });
    }

    /// Remembers that a message was dropped by the flow cap.
    pub(crate) fn dropped(&mut self, offset: Offset, time_ms: i64) {
        if !self.closed
            && let Some(Entry { offset: last, ordinal, kept: Kept::Dropped(count), .. }) = self.entries.back_mut()
        {
            (*last, *ordinal, *count) = (offset, self.ordinal, *count + 1);
        } else {
            self.entries.push_back(Entry { offset, ordinal: self.ordinal, time_ms, kept: Kept::Dropped(1) });
            self.closed = false;
        }
    }

    /// Every holder has been told of the gap at the end.
    pub(crate) fn close_gap(&mut self) {
        self.closed = true;
    }

    /// Lets go of what is over the few that every room keeps, and older than `keep_from_ms` or over the budget.
    pub(crate) fn trim(&mut self, keep_from_ms: i64, budget: &Budget) {
        while let Some(oldest) = self.entries.front() {
            let few = self.entries.len() <= RECENT_MESSAGES && self.bytes <= RECENT_BYTES;
            let keep = if budget.is_over() {
                self.entries.len() <= RECENT_MESSAGES_MIN
            } else {
                few || oldest.time_ms >= keep_from_ms
            };
            if keep {
                break;
            }
            let (offset, ordinal, bytes) = (oldest.offset, oldest.ordinal, oldest.bytes());
            self.entries.pop_front();
            self.bytes -= bytes;
            budget.give_back(bytes);
            self.index.push_back((offset, ordinal));
            if self.index.len() > INDEX_MAX {
                self.counted = self.index.pop_front().expect("it is longer than its bound");
            }
        }
    }

    /// Gives all its bytes back, itself included; for a room that is forgotten, once.
    pub(crate) fn clear(&mut self, budget: &Budget) {
        budget.give_back(std::mem::take(&mut self.bytes) + ROOM_BYTES);
        self.entries.clear();
    }

    /// The time of its newest record in the log, if one is kept.
    pub(crate) fn newest_ms(&self) -> Option<i64> {
        self.entries.back().map(|entry| entry.time_ms)
    }

    /// What someone at `place` lacks of what has been read, `bytes_max` of messages at most.
    pub(crate) fn answer(&self, place: HolderPosition, bytes_max: usize) -> Answer {
        match place {
            HolderPosition::Nothing { recent } => self.recent(recent.min(RECENT_MESSAGES), None, bytes_max),
            HolderPosition::Elsewhere => self.recent(RECENT_MESSAGES, Some(unknown(0, false)), bytes_max),
            HolderPosition::At { offset, ordinal } => {
                let first = self.entries.partition_point(|entry| entry.offset <= offset);
                self.since(first, self.missed(offset, ordinal), bytes_max)
            }
        }
    }

    fn recent(&self, want: usize, missed: Option<Missed>, bytes_max: usize) -> Answer {
        let mut first = self.entries.len();
        for _ in 0..want {
            let Some(at) = self.entries.range(..first).rposition(|entry| matches!(entry.kept, Kept::Message(_))) else {
                break;
            };
            first = at;
        }
        let mut answer = self.since(first, missed, bytes_max);
        // Where not all of them fit, `missed` says what lies before the first.
        answer.before = answer.missed.is_none().then(|| self.before(first));
        answer
    }

    /// What lies before the entry `first`.
    fn before(&self, first: usize) -> Before {
        let kept = first.checked_sub(1).map(|at| self.entries[at].offset);
        match kept.or(self.index.back().map(|&(offset, _)| offset)) {
            Some(offset) => Before { offset, message: true },
            None => Before { offset: self.counted.0, message: false },
        }
    }

    /// What is missed between `position` and the kept entries.
    fn missed(&self, position: Offset, ordinal: Option<u64>) -> Option<Missed> {
        let from = self.index.back().map_or(self.counted.0, |&(offset, _)| offset);
        if position >= from {
            return None;
        }
        let before = self.entries.front().map_or(self.ordinal, |entry| entry.first_ordinal() - 1);
        if position >= self.counted.0 {
            let at = self.index.partition_point(|&(offset, _)| offset <= position);
            let reached = if at == 0 { self.counted.1 } else { self.index[at - 1].1 };
            Some(unknown(before - reached, true))
        } else if let Some(ordinal) = ordinal.filter(|ordinal| (self.base + 1..=before).contains(ordinal)) {
            Some(unknown(before - ordinal, true))
        } else {
            Some(unknown(before - self.counted.1, false))
        }
    }

    /// The entries from `first` on, as far back as an answer has room; dropped ones as gaps.
    fn since(&self, mut first: usize, mut missed: Option<Missed>, bytes_max: usize) -> Answer {
        let mut bytes = 0;
        let fits = self.entries.range(first..).rev().take_while(|entry| {
            bytes += entry.bytes();
            bytes <= bytes_max
        });
        let cut = self.entries.len() - first - fits.count();
        if cut > 0 {
            let count = self.entries[first + cut].first_ordinal() - self.entries[first].first_ordinal();
            let so_far = missed.unwrap_or_else(|| unknown(0, true));
            missed = Some(unknown(so_far.count + count, so_far.exact));
            first += cut;
        }
        let mut recent = Vec::with_capacity(self.entries.len() - first);
        let (mut gap, mut last) = (0, (0, 0));
        for entry in self.entries.range(first..) {
            match &entry.kept {
                // Before the first message: that is what `missed` says. (An answer with recent messages begins at a message.)
                Kept::Dropped(count) if recent.is_empty() => {
                    let missed = missed.get_or_insert_with(|| unknown(0, true));
                    missed.count += count;
                    missed.reasons.get_or_insert_default().capped += count;
                }
                Kept::Dropped(count) => (gap, last) = (gap + count, (entry.offset, entry.ordinal)),
                Kept::Message(item) if gap > 0 => {
                    recent.push(Gap::capped(std::mem::take(&mut gap)).before(item));
                }
                Kept::Message(item) => recent.push(item.clone()),
            }
        }
        if gap > 0 {
            recent.push(gap_item(&self.channel, last.0, last.1, Gap::capped(gap)));
        }
        Answer { missed, recent, before: None }
    }
}

/// An item that is nothing but a gap.
pub(crate) fn gap_item(channel: &str, offset: Offset, ordinal: u64, gap: Gap) -> EncodedItem {
    let (channel, missed, reasons) = (channel.to_owned(), gap.count(), Some(gap.reasons()));
    EncodedItem::new(&Item { channel, offset, ordinal, missed, reasons, ..Item::default() })
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn item(offset: Offset, ordinal: u64, bytes: usize) -> EncodedItem {
        let message = vec![b'x'; bytes].into();
        EncodedItem::new(&Item { channel: "room:1".into(), offset, ordinal, message, ..Item::default() })
    }

    /// A room with a message at each even offset up to `2 * count`, one each 100 ms of the log's time, trimmed with
    /// only the last ten seconds worth keeping.
    fn room(count: u64, bytes: usize, budget: &Budget) -> Room {
        let mut room = Room::new("room:1", 0, 0, budget);
        for i in 1..=count {
            let time_ms = i as i64 * 100;
            let (ordinal, _) = room.next(2 * i, time_ms, 0);
            room.keep(2 * i, time_ms, item(2 * i, ordinal, bytes), budget);
            room.trim(time_ms - 10_000, budget);
        }
        room
    }

    fn offsets(answer: &Answer) -> Vec<(Offset, u64)> {
        let read = |item: &EncodedItem| Item::decode_length_delimited(item.bytes()).unwrap();
        answer.recent.iter().map(read).map(|item| (item.offset, item.missed)).collect()
    }

    fn at(offset: Offset) -> HolderPosition {
        HolderPosition::At { offset, ordinal: None }
    }

    const ANSWER_MAX: usize = 2 << 20;
    const EXACT: fn(u64) -> Option<Missed> = |count| Some(unknown(count, true));

    #[test]
    fn who_was_away_gets_what_is_kept_and_the_rest_counted() {
        let budget = Budget::new(100 << 20);
        let room = room(1000, 10, &budget);
        assert_eq!(offsets(&room.answer(HolderPosition::Nothing { recent: 2 }, ANSWER_MAX)), [(1998, 0), (2000, 0)]);
        assert_eq!(room.answer(at(2000), ANSWER_MAX), Answer::default());
        assert_eq!(offsets(&room.answer(at(1997), ANSWER_MAX)), [(1998, 0), (2000, 0)]);
        // 200 are kept: those after offset 1600.
        assert_eq!(room.answer(at(1600), ANSWER_MAX).missed, None);
        let away = room.answer(at(1000), ANSWER_MAX);
        assert_eq!((away.missed, away.recent.len()), (EXACT(300), 200));
        assert_eq!(room.answer(at(0), ANSWER_MAX).missed, EXACT(800));
        let elsewhere = room.answer(HolderPosition::Elsewhere, ANSWER_MAX);
        assert_eq!((elsewhere.missed, elsewhere.recent.len()), (Some(unknown(0, false)), 200));
    }

    #[test]
    fn who_has_nothing_is_told_what_lies_before_its_recent_messages() {
        let budget = Budget::new(100 << 20);
        let before = |room: &Room, recent| room.answer(HolderPosition::Nothing { recent }, ANSWER_MAX).before;
        let mut quiet = Room::new("room:1", 40, 0, &budget);
        assert_eq!(before(&quiet, 200), Some(Before { offset: 40, message: false }), "nothing is known from before");
        let (ordinal, _) = quiet.next(50, 0, 0);
        quiet.keep(50, 0, item(50, ordinal, 10), &budget);
        assert_eq!(before(&quiet, 200), Some(Before { offset: 40, message: false }));
        assert_eq!(before(&quiet, 0), Some(Before { offset: 50, message: true }));
        let busy = room(1000, 10, &budget);
        assert_eq!(before(&busy, 200), Some(Before { offset: 1600, message: true }), "the last that is not kept");
        assert_eq!(before(&busy, 2), Some(Before { offset: 1996, message: true }));
        let mut capped = Room::new("room:1", 0, 0, &budget);
        capped.next(2, 0, 1);
        capped.keep(2, 0, item(2, 1, 10), &budget);
        assert!(capped.next(4, 0, 1).1);
        capped.dropped(4, 0);
        assert_eq!(before(&capped, 0), Some(Before { offset: 4, message: true }), "it is missing, too");
    }

    #[test]
    fn what_is_older_than_the_index_is_counted_by_ordinals_else_at_least() {
        let budget = Budget::new(100 << 20);
        let room = room(5000, 10, &budget);
        assert_eq!(
            room.answer(HolderPosition::At { offset: 20, ordinal: Some(10) }, ANSWER_MAX).missed,
            EXACT(4800 - 10)
        );
        let known = INDEX_MAX as u64;
        assert_eq!(room.answer(at(20), ANSWER_MAX).missed, Some(unknown(known, false)));
    }

    #[test]
    fn nothing_is_counted_from_an_ordinal_of_the_life_before() {
        let budget = Budget::new(100 << 20);
        // It had 10 messages before it was forgotten at offset 20; another room had 30.
        let mut room = Room::new("room:1", 20, 30, &budget);
        for offset in 101..=5100 {
            let (ordinal, _) = room.next(offset, 0, 0);
            room.keep(offset, 0, item(offset, ordinal, 10), &budget);
            room.trim(1, &budget);
        }
        // Told up to offset 50, where it had no message of this life; then one of this life.
        let known = INDEX_MAX as u64;
        let before = room.answer(HolderPosition::At { offset: 50, ordinal: Some(10) }, ANSWER_MAX);
        assert_eq!(before.missed, Some(unknown(known, false)));
        assert_eq!(
            room.answer(HolderPosition::At { offset: 102, ordinal: Some(32) }, ANSWER_MAX).missed,
            EXACT(4800 - 2)
        );
    }

    #[test]
    fn the_last_seconds_are_kept_while_the_budget_lasts() {
        let budget = Budget::new(100 << 20);
        let room_of_large = room(1000, 10_000, &budget);
        assert_eq!(room_of_large.entries.len(), 101, "ten seconds, though they are 1 MB");
        let budget = Budget::new(200_000);
        let mut room_of_large = room(1000, 10_000, &budget);
        assert!(budget.used() <= 200_000 + RECENT_MESSAGES_MIN * 10_100 + ROOM_BYTES);
        room_of_large.clear(&budget);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn an_answer_has_a_largest_size_and_the_rest_is_counted() {
        let budget = Budget::new(100 << 20);
        let room = room(100, 60_000, &budget);
        let answer = room.answer(at(0), ANSWER_MAX);
        assert!(answer.recent.iter().map(EncodedItem::len).sum::<usize>() <= ANSWER_MAX);
        assert_eq!(answer.missed, EXACT(100 - answer.recent.len() as u64));
    }

    #[test]
    fn the_flow_cap_counts_by_the_log_s_second_and_leaves_gaps() {
        let budget = Budget::new(100 << 20);
        let mut room = Room::new("room:1", 0, 0, &budget);
        for offset in 1..=9 {
            let time_ms = offset as i64 * 250;
            let (ordinal, over) = room.next(offset, time_ms, 2);
            match over {
                false => room.keep(offset, time_ms, item(offset, ordinal, 1), &budget),
                true => room.dropped(offset, time_ms),
            }
        }
        // Seconds: 1-3, 4-7, 8-9; two of each pass.
        assert_eq!(offsets(&room.answer(at(0), ANSWER_MAX)), [(1, 0), (2, 0), (4, 1), (5, 0), (8, 2), (9, 0)]);
        let late = room.answer(at(2), ANSWER_MAX);
        let capped = GapReasons { capped: 1, ..GapReasons::default() };
        let capped = Some(Missed { count: 1, exact: true, reasons: Some(capped) });
        assert_eq!((late.missed, offsets(&late)), (capped, vec![(4, 0), (5, 0), (8, 2), (9, 0)]));
        let (ordinal, over) = room.next(10, 2_500, 2);
        assert!(over);
        room.dropped(10, 2_500);
        assert_eq!(offsets(&room.answer(at(8), ANSWER_MAX)), [(9, 0), (10, 1)]);
        assert_eq!((ordinal, room.answer(at(9), ANSWER_MAX).missed), (10, capped));
    }
}
