//! A ring: the bytes of one room, in one encoding, on one lane, exactly as they go on the socket.
//!
//! One piece of memory, filled with frames, and an index of the frames. A reader is a byte position (`u64`): what it has
//! been sent ends there. Positions count frame bytes from the ring's making and are never used again; a position at a
//! frame's end is also the next frame's start.
//!
//! ```text
//!   bytes:  [ read by all, room to come | tail ▒▒▒▒ kept ▒▒▒▒▒▒▒▒▒ head | room ]
//!                                              └─ one send: cursor..head ─┘
//! ```
//!
//! What is kept lies in one piece, so that whatever gathered in a round goes out with one send a reader. A list of blocks
//! lost: with frames that may not straddle them, a batch lay in two every third time, and the second send cost as much
//! as the first. Bytes move only in [`Ring::append`] and [`Ring::shrink`], never while they are being sent (rule 24:
//! [`machine::Outlet::send`] has taken them when it returns), and each is moved once at most on average.
//!
//! Not here: who reads (the room's members), what was encoded (`encode`), when to drop (the room; it knows its readers).
//!
//! Invariants, each the name of a test:
//! - `a_reader_at_any_position_gets_the_same_bytes`: no byte is skipped, and a send ends with a frame.
//! - `a_skip_counts_every_message_between`: counts are cumulative, so a difference of two is exact. The reasons of the gaps
//!   between two positions are as many as the messages that the ring tells as missing there.
//! - `memory_grows_with_what_is_kept_and_goes_with_it`.

use std::{collections::VecDeque, ops::Sub};

use proto::client::GapReasons;

/// Capacity of a quiet ring, bytes: some short messages.
pub(super) const CAPACITY_BYTES_MIN: usize = 1024;
/// What one send takes at most, unless a single frame is longer, bytes: a socket's send buffer is as large.
pub(super) const SEND_BYTES_MAX: u64 = 64 * 1024;
/// Frames that are looked at one by one before the others are searched: two cache lines.
const NEAR_FRAMES: usize = 4;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Never longer than the capacity that it was made with.
    bytes: Vec<u8>,
    /// Position of its first byte: at most `tail`.
    start: u64,
    frames: VecDeque<Frame>,
    /// Of the kept frames those that tell a gap: few, so that the index of all frames stays small, and none in most rings.
    #[expect(clippy::box_collection, reason = "8 bytes in place of 32 in every ring, of which few have a gap")]
    gaps: Option<Box<VecDeque<GapMark>>>,
    /// Where the oldest kept frame starts.
    tail: u64,
    /// Of the messages before the tail, cumulative.
    before_tail: Count,
    /// Offset of the last message before the tail.
    offset_before_tail: u64,
    /// The most that was kept since the last [`Ring::shrink`], bytes.
    most: usize,
}

/// Messages, cumulative from a ring's making.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// All that there were, so that a skip is counted by a difference.
    pub(super) all: u64,
    /// Those of them that the ring itself tells as missing.
    pub(super) missing: u64,
}

/// What a frame tells as missing, or several frames together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// How many for which reason, at least.
    pub(super) reasons: GapReasons,
    /// There may be more.
    pub(super) inexact: bool,
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { all: self.all - before.all, missing: self.missing - before.missing }
    }
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Where it ends; it starts where the one before it ends.
    end: u64,
    /// Up to its end.
    count: Count,
    /// Offset of its last message.
    offset: u64,
}

/// A frame that tells a gap.
#[derive(Debug, Clone, Copy, Default)]
struct GapMark {
    /// Where it ends.
    end: u64,
    /// Of all gaps up to its end, cumulative from some gap before the oldest kept one.
    reasons: GapReasons,
    /// Where the last one of them ends that is not exact.
    inexact_at: u64,
}

impl Ring {
    /// An empty one, of what comes after `offset`.
    #[must_use]
    pub(super) fn after(offset: u64) -> Self {
        Self { offset_before_tail: offset, ..Self::default() }
    }

    /// Where the oldest kept frame starts.
    #[must_use]
    pub(super) fn tail(&self) -> u64 {
        self.tail
    }

    /// Where the newest frame ends.
    #[must_use]
    pub(super) fn head(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Bytes that it holds, unused room included.
    #[must_use]
    pub(super) fn footprint(&self) -> usize {
        self.bytes.capacity()
    }

    /// Bytes of the index of its frames.
    #[must_use]
    pub(super) fn index_bytes(&self) -> usize {
        self.frames.capacity() * size_of::<Frame>()
            + self.gaps.as_ref().map_or(0, |gaps| size_of_val(&**gaps) + gaps.capacity() * size_of::<GapMark>())
    }

    /// Appends one frame that carries, or tells as missing, `messages`, the last of them at `offset`. Those of them that are
    /// `missing` are so for these reasons.
    pub(super) fn append(&mut self, frame: &[u8], messages: u64, missing: &Missing, offset: u64) {
        if frame.is_empty() {
            return;
        }
        if self.bytes.capacity() - self.bytes.len() < frame.len() {
            self.make_room(frame.len());
        }
        self.bytes.extend_from_slice(frame);
        self.most = self.most.max((self.head() - self.tail) as usize);
        let before = self.frames.back().map_or(self.before_tail, |frame| frame.count);
        let told = missing.reasons.total();
        let count = Count { all: before.all + messages, missing: before.missing + told };
        let end = self.head();
        self.frames.push_back(Frame { end, count, offset });
        if told > 0 || missing.inexact {
            let gaps = self.gaps.get_or_insert_default();
            let mut mark = gaps.back().copied().unwrap_or_default();
            mark.end = end;
            mark.reasons += missing.reasons;
            if missing.inexact {
                mark.inexact_at = end;
            }
            gaps.push_back(mark);
        }
    }

    /// Moves what is kept to the front, or into twice the memory where that would soon have to be done again.
    fn make_room(&mut self, more: usize) {
        let kept = (self.head() - self.tail) as usize;
        if kept + more <= self.bytes.capacity() / 4 * 3 {
            self.bytes.drain(..(self.tail - self.start) as usize);
            self.start = self.tail;
        } else {
            self.relocate((kept + more).next_power_of_two().max(2 * self.bytes.capacity()));
        }
    }

    fn relocate(&mut self, capacity: usize) {
        let mut bytes = Vec::with_capacity(capacity.max(CAPACITY_BYTES_MIN));
        bytes.extend_from_slice(&self.bytes[(self.tail - self.start) as usize..]);
        (self.bytes, self.start) = (bytes, self.tail);
    }

    /// What lies between two positions, `tail` the lowest.
    #[must_use]
    pub(super) fn between(&self, from: u64, to: u64) -> &[u8] {
        &self.bytes[(from - self.start) as usize..(to - self.start) as usize]
    }

    /// Where a send from `at` ends: at the head, or at the last frame's end that it can carry.
    #[must_use]
    pub(super) fn send_end(&self, at: u64) -> u64 {
        let head = self.head();
        if head - at <= SEND_BYTES_MAX {
            return head;
        }
        let index = self.frames.partition_point(|frame| frame.end <= at + SEND_BYTES_MAX);
        match index.checked_sub(1).map(|last| self.frames[last].end) {
            Some(end) if end > at => end,
            _ => self.frames[index].end,
        }
    }

    /// The remainder of the frame that `at` lies within; empty where `at` is between two frames.
    #[must_use]
    pub(super) fn rest(&self, at: u64) -> &[u8] {
        self.between(at, self.boundary_after(at))
    }

    /// `at` itself where it lies between two frames, else the end of its frame.
    #[must_use]
    pub(super) fn boundary_after(&self, at: u64) -> u64 {
        if at >= self.head() || at == self.tail {
            return at;
        }
        let index = self.frames.partition_point(|frame| frame.end < at);
        // `at` is the end of that frame, or lies within it.
        self.frames[index].end
    }

    /// Messages up to `at`; of the frame that it may lie within, none.
    #[must_use]
    pub(super) fn count_at(&self, at: u64) -> Count {
        self.frame_before(at).map_or(self.before_tail, |frame| frame.count)
    }

    /// What the ring tells as missing between two positions, each a frame's end, `tail` the lowest.
    #[must_use]
    pub(super) fn missing_between(&self, from: u64, to: u64) -> Missing {
        let Some(gaps) = &self.gaps else { return Missing::default() };
        let up_to = |at: u64| {
            let after = gaps.partition_point(|gap| gap.end <= at);
            after.checked_sub(1).map_or_else(GapMark::default, |last| gaps[last])
        };
        let (before, through) = (up_to(from), up_to(to));
        Missing { reasons: through.reasons - before.reasons, inexact: through.inexact_at > from }
    }

    /// Offset of the last message up to `at`, which lies between two frames.
    #[must_use]
    pub(super) fn offset_at(&self, at: u64) -> u64 {
        self.frame_before(at).map_or(self.offset_before_tail, |frame| frame.offset)
    }

    /// The position after the last frame whose offset is at most `offset`.
    #[must_use]
    pub(super) fn seek(&self, offset: u64) -> u64 {
        // A fan-out pass asks where a room's log begins, which is at one of the oldest.
        let index = match self.frames.iter().take(NEAR_FRAMES).take_while(|frame| frame.offset <= offset).count() {
            NEAR_FRAMES => self.frames.partition_point(|frame| frame.offset <= offset),
            near => near,
        };
        if index == 0 { self.tail } else { self.frames[index - 1].end }
    }

    /// The frame after `at`, a frame's end: where it ends, its messages, the offset of the last of them.
    #[must_use]
    pub(super) fn frame_after(&self, at: u64) -> Option<(u64, Count, u64)> {
        let frame = self.frames.get(self.first_after(at))?;
        Some((frame.end, frame.count - self.count_at(at), frame.offset))
    }

    /// Where the tail would have to be for at most `bytes` to be kept: a frame's end.
    #[must_use]
    pub(super) fn tail_within(&self, bytes: u64) -> u64 {
        self.boundary_after(self.head().saturating_sub(bytes).max(self.tail))
    }

    /// Drops what lies before `keep`, a frame's end. Nobody reads there any more.
    pub(super) fn trim(&mut self, keep: u64) {
        while let Some(frame) = self.frames.front().filter(|frame| frame.end <= keep) {
            (self.tail, self.before_tail, self.offset_before_tail) = (frame.end, frame.count, frame.offset);
            self.frames.pop_front();
        }
        if let Some(gaps) = &mut self.gaps {
            // One gap before the tail stays, as long as another one comes after it: their difference is that one's.
            while gaps.get(1).is_some_and(|gap| gap.end <= self.tail) {
                gaps.pop_front();
            }
            if gaps.len() == 1 && gaps[0].end <= self.tail {
                gaps.clear();
            }
        }
        if self.frames.is_empty() {
            self.start = self.tail;
            self.bytes.clear();
        }
    }

    /// The log begins anew after `offset`: those of what is kept compare with none that come.
    pub(super) fn rebase(&mut self, offset: u64) {
        self.offset_before_tail = offset;
        self.frames.iter_mut().for_each(|frame| frame.offset = offset);
    }

    /// Gives back what was not needed since the last time; an empty one that was not needed holds nothing. Whether there
    /// may be more to give back the next time.
    pub(super) fn shrink(&mut self) -> bool {
        let kept = (self.head() - self.tail) as usize;
        if self.most == 0 {
            (self.bytes, self.frames) = (Vec::new(), VecDeque::new());
        } else if self.bytes.capacity() > CAPACITY_BYTES_MIN.max(4 * self.most) {
            self.relocate((self.most + self.most / 2).next_power_of_two());
        }
        if self.frames.capacity() > 4 * self.frames.len().max(16) {
            self.frames.shrink_to(2 * self.frames.len());
        }
        self.gaps = self.gaps.take().filter(|gaps| !gaps.is_empty());
        if let Some(gaps) = self.gaps.as_mut().filter(|gaps| gaps.capacity() > 4 * gaps.len().max(4)) {
            gaps.shrink_to(2 * gaps.len());
        }
        self.most = kept;
        self.bytes.capacity() > 0 && (kept == 0 || self.bytes.capacity() > CAPACITY_BYTES_MIN.max(4 * kept))
    }

    /// Gives back all memory that what is kept does not need.
    pub(super) fn fit(&mut self) {
        if self.head() == self.tail {
            (self.bytes, self.frames, self.start) = (Vec::new(), VecDeque::new(), self.tail);
        } else {
            self.relocate((self.head() - self.tail) as usize);
            self.frames.shrink_to_fit();
        }
        self.gaps = self.gaps.take().filter(|gaps| !gaps.is_empty());
        self.gaps.as_mut().into_iter().for_each(|gaps| gaps.shrink_to_fit());
    }

    /// Index of the first frame that ends after `at`. Most readers are at one of the last frames, which lie in the cache; of
    /// those that a small room keeps for who comes, a search would touch eight that do not.
    fn first_after(&self, at: u64) -> usize {
        let near = self.frames.len().saturating_sub(NEAR_FRAMES);
        match near.checked_sub(1).map(|before| self.frames[before].end <= at) {
            Some(false) => self.frames.partition_point(|frame| frame.end <= at),
            _ => near + self.frames.range(near..).take_while(|frame| frame.end <= at).count(),
        }
    }

    fn frame_before(&self, at: u64) -> Option<&Frame> {
        if at >= self.head() {
            return self.frames.back();
        }
        self.first_after(at).checked_sub(1).map(|index| &self.frames[index])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn append(ring: &mut Ring, frame: &[u8], offset: u64) {
        ring.append(frame, 1, &Missing::default(), offset);
    }

    fn filled(frames: &[Vec<u8>]) -> (Ring, Vec<u8>, Vec<u64>) {
        let (mut ring, mut all, mut ends) = (Ring::default(), Vec::new(), vec![0]);
        for (index, frame) in frames.iter().enumerate() {
            append(&mut ring, frame, 10 * (index as u64 + 1));
            all.extend_from_slice(frame);
            ends.push(all.len() as u64);
        }
        (ring, all, ends)
    }

    proptest! {
        #[test]
        fn a_reader_at_any_position_gets_the_same_bytes(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..2000), 1..40),
            takes in prop::collection::vec(1usize..3000, 1..200),
            keep in any::<prop::sample::Index>(),
        ) {
            let (mut ring, all, ends) = filled(&frames);
            let keep = ends[keep.index(ends.len())];
            ring.trim(keep);
            prop_assert!(ring.tail() <= keep);
            let mut at = ring.tail();
            let start = at as usize;
            let mut got = Vec::new();
            for take in takes.iter().cycle() {
                let ready = ring.between(at, ring.send_end(at));
                if ready.is_empty() { break; }
                let take = (*take).min(ready.len());
                got.extend_from_slice(&ready[..take]);
                at += take as u64;
                let boundary = ring.boundary_after(at);
                prop_assert_eq!(boundary, *ends.iter().find(|end| **end >= at).unwrap());
                prop_assert_eq!(ring.rest(at), &all[at as usize..boundary as usize]);
            }
            prop_assert_eq!(&got[..], &all[start..]);
        }

        #[test]
        fn a_skip_counts_every_message_between(
            frames in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 1..500), 0u64..9, any::<bool>(), 0..5u64),
                1..60,
            ),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut ring = Ring::default();
            let (mut ends, mut counts) = (vec![0], vec![Count::default()]);
            let (mut reasons, mut inexact_at) = (vec![GapReasons::default()], None);
            for (index, (frame, messages, gap, slow)) in frames.iter().enumerate() {
                let missing = match gap {
                    true => GapReasons::of(*messages, Some(GapReasons { slow: *slow, ..GapReasons::default() })),
                    false => GapReasons::default(),
                };
                let inexact = *gap && *slow > 2;
                if inexact {
                    inexact_at = Some(index + 1);
                }
                ring.append(frame, *messages, &Missing { reasons: missing, inexact }, index as u64 + 1);
                // Trimmed while it grows, too.
                if index == frames.len() / 2 {
                    ring.trim(ends[cut.index(ends.len())]);
                }
                ends.push(ring.head());
                let last: Count = *counts.last().unwrap();
                counts.push(Count { all: last.all + messages, missing: last.missing + missing.total() });
                let mut sum = *reasons.last().unwrap();
                sum += missing;
                reasons.push(sum);
            }
            ring.trim(ends[cut.index(ends.len())]);
            for (index, end) in ends.iter().enumerate().filter(|(_, end)| **end >= ring.tail()) {
                prop_assert_eq!(ring.count_at(*end), counts[index]);
                prop_assert_eq!(ring.offset_at(*end), index as u64);
                prop_assert_eq!(ring.seek(index as u64), *end);
                let Missing { reasons: between, inexact } = ring.missing_between(*end, ring.head());
                prop_assert_eq!(between, *reasons.last().unwrap() - reasons[index]);
                prop_assert_eq!(inexact, inexact_at.is_some_and(|last| last > index));
                prop_assert_eq!(between.total(), (ring.count_at(ring.head()) - counts[index]).missing);
            }
        }
    }

    #[test]
    fn memory_grows_with_what_is_kept_and_goes_with_it() {
        let mut ring = Ring::default();
        assert_eq!(ring.footprint(), 0, "no memory before the first message");
        append(&mut ring, &[1; 100], 1);
        assert_eq!(ring.footprint(), CAPACITY_BYTES_MIN);
        for offset in 2..10_000 {
            append(&mut ring, &[1; 100], offset);
        }
        assert!(ring.footprint() <= 2 * 1024 * 1024);
        assert_eq!(ring.send_end(ring.tail()), ring.tail() + SEND_BYTES_MAX / 100 * 100, "a send ends with a frame");
        let keep = ring.tail_within(1000);
        assert!(ring.head() - keep <= 1000 && ring.boundary_after(keep) == keep);
        ring.trim(keep);
        assert_eq!(ring.tail(), keep);
        ring.shrink();
        ring.shrink();
        assert!(ring.footprint() <= 4096 && ring.frames.capacity() <= 64, "what is kept is as it was a second ago");
        let capacity = ring.footprint();
        for offset in 10_000..20_000 {
            append(&mut ring, &[1; 100], offset);
            ring.trim(ring.tail_within(1000));
        }
        assert_eq!(ring.footprint(), capacity, "a steady stream needs no more");
        ring.trim(ring.tail_within(2000));
        let kept = ring.between(ring.tail(), ring.head()).to_vec();
        ring.fit();
        assert_eq!(
            (ring.footprint(), ring.between(ring.tail(), ring.head())),
            (kept.len().max(CAPACITY_BYTES_MIN), &kept[..])
        );
        ring.trim(ring.head());
        ring.shrink();
        ring.shrink();
        assert_eq!((ring.footprint(), ring.tail()), (0, ring.head()));
        append(&mut ring, &[2; 100_000], 20_000);
        assert_eq!(ring.send_end(ring.tail()) - ring.tail(), 100_000, "a large frame goes out as one");
        for offset in 20_001..20_500 {
            let missing = Missing { reasons: GapReasons::unknown(1), inexact: false };
            ring.append(&[3; 10], 1, &missing, offset);
        }
        let kept = |ring: &Ring| ring.gaps.as_ref().map(|gaps| gaps.len());
        assert!(kept(&ring) == Some(499) && ring.index_bytes() > 499 * size_of::<GapMark>());
        ring.trim(ring.head());
        assert_eq!(kept(&ring), Some(0), "of gaps that everyone was told nothing is kept");
        ring.shrink();
        ring.shrink();
        assert_eq!((kept(&ring), ring.index_bytes()), (None, 0));
    }
}
