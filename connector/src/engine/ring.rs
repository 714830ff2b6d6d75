//! A ring: the bytes of one room, in one encoding, on one lane, exactly as they go on the socket.
//!
//! A list of blocks that never move, filled with frames that never straddle two blocks, and an index of the frames. A
//! reader is a byte position (`u64`): what it has been sent ends there. Positions count frame bytes from the ring's
//! making and are never used again; a position at a frame's end is also the next frame's start.
//!
//! Not here: who reads (the room's members), what was encoded (`encode`), when to drop (the room; it knows its readers).
//!
//! Invariants, each the name of a test:
//! - `a_reader_at_any_position_gets_the_same_bytes`: [`Ring::ready`] never crosses a block and never skips a byte.
//! - `a_skip_counts_every_message_between`: counts are cumulative, so a difference of two is exact.
//! - `blocks_grow_with_what_is_kept_and_go_with_it`.

use std::collections::VecDeque;

/// Capacity of a quiet ring's block, bytes: some short messages.
pub(super) const BLOCK_BYTES_MIN: usize = 1024;
/// Capacity of a busy ring's block, bytes: one send takes at most a block, and a socket's send buffer is as large.
pub(super) const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Ring {
    blocks: VecDeque<Block>,
    frames: VecDeque<Frame>,
    /// Where the oldest kept frame starts.
    tail: u64,
    /// Where the newest frame ends.
    head: u64,
    /// Messages before the tail, cumulative.
    messages_before_tail: u64,
    /// Offset of the last message before the tail.
    offset_before_tail: u64,
}

#[derive(Debug)]
struct Block {
    /// Position of its first byte.
    start: u64,
    /// Never longer than the capacity it was made with: it would move.
    bytes: Vec<u8>,
}

impl Block {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Where it ends; it starts where the one before it ends.
    end: u64,
    /// Messages up to its end, cumulative.
    messages: u64,
    /// Offset of its last message.
    offset: u64,
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
        self.head
    }

    /// Bytes that it holds, unused room of its blocks included.
    #[must_use]
    pub(super) fn footprint(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes.capacity()).sum()
    }

    /// Appends one frame that carries `messages` messages, the last of them at `offset`.
    pub(super) fn append(&mut self, frame: &[u8], messages: u64, offset: u64) {
        if frame.is_empty() {
            return;
        }
        let fits = |block: &Block| block.bytes.capacity() - block.bytes.len() >= frame.len();
        if !self.blocks.back().is_some_and(fits) {
            let kept = (self.head - self.tail) as usize;
            let capacity = kept.next_power_of_two().clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX).max(frame.len());
            // An emptied block that is too small would stand before the new one for nothing.
            if self.blocks.back().is_some_and(|block| block.bytes.is_empty()) {
                self.blocks.pop_back();
            }
            self.blocks.push_back(Block { start: self.head, bytes: Vec::with_capacity(capacity) });
        }
        let block = self.blocks.back_mut().expect("one was pushed if there was none");
        block.bytes.extend_from_slice(frame);
        let before = self.frames.back().map_or(self.messages_before_tail, |frame| frame.messages);
        self.head += frame.len() as u64;
        self.frames.push_back(Frame { end: self.head, messages: before + messages, offset });
    }

    /// What follows `at` in one piece; empty at the head.
    #[must_use]
    pub(super) fn ready(&self, at: u64) -> &[u8] {
        if at >= self.head {
            return &[];
        }
        let block = match self.blocks.back() {
            Some(last) if last.start <= at => last,
            _ => &self.blocks[self.blocks.partition_point(|block| block.end() <= at)],
        };
        &block.bytes[(at - block.start) as usize..]
    }

    /// The rest of the frame that `at` lies within; empty where `at` is between two frames.
    #[must_use]
    pub(super) fn rest(&self, at: u64) -> &[u8] {
        let end = self.boundary_after(at);
        &self.ready(at)[..(end - at) as usize]
    }

    /// `at` itself where it lies between two frames, else the end of its frame.
    #[must_use]
    pub(super) fn boundary_after(&self, at: u64) -> u64 {
        if at >= self.head || at == self.tail {
            return at;
        }
        let index = self.frames.partition_point(|frame| frame.end < at);
        let frame = self.frames[index].end;
        // `at` is the end of that frame, or lies within it.
        frame
    }

    /// Messages up to `at`, which lies between two frames, from the ring's making.
    #[must_use]
    pub(super) fn messages_at(&self, at: u64) -> u64 {
        self.frame_before(at).map_or(self.messages_before_tail, |frame| frame.messages)
    }

    /// Offset of the last message up to `at`, which lies between two frames.
    #[must_use]
    pub(super) fn offset_at(&self, at: u64) -> u64 {
        self.frame_before(at).map_or(self.offset_before_tail, |frame| frame.offset)
    }

    /// The position after the last frame whose offset is at most `offset`.
    #[must_use]
    pub(super) fn seek(&self, offset: u64) -> u64 {
        let index = self.frames.partition_point(|frame| frame.offset <= offset);
        if index == 0 { self.tail } else { self.frames[index - 1].end }
    }

    /// Where the tail would have to be for at most `bytes` to be kept: a frame's end.
    #[must_use]
    pub(super) fn tail_within(&self, bytes: u64) -> u64 {
        self.boundary_after(self.head.saturating_sub(bytes).max(self.tail))
    }

    /// Drops what lies before `keep`, a frame's end, as far as that empties whole blocks. Nobody reads there any more.
    pub(super) fn trim(&mut self, keep: u64) {
        let mut blocks = self.blocks.len();
        while let Some(first) = self.blocks.front_mut() {
            if first.end() > keep || first.bytes.is_empty() {
                break;
            }
            let end = first.end();
            if blocks == 1 {
                // The last one is kept and written over: a quiet room needs one block, not one for each message.
                first.bytes.clear();
                first.start = end;
            } else {
                self.blocks.pop_front();
                blocks -= 1;
            }
            while let Some(frame) = self.frames.front().filter(|frame| frame.end <= end) {
                (self.messages_before_tail, self.offset_before_tail) = (frame.messages, frame.offset);
                self.frames.pop_front();
            }
            self.tail = end;
        }
    }

    /// The log begins anew after `offset`: those of what is kept compare with none that come.
    pub(super) fn rebase(&mut self, offset: u64) {
        self.offset_before_tail = offset;
        self.frames.iter_mut().for_each(|frame| frame.offset = offset);
    }

    /// Gives back what an idle ring need not hold: spare room of the index, and a block that is empty.
    pub(super) fn shrink(&mut self) {
        if self.head == self.tail {
            self.blocks = VecDeque::new();
            self.frames = VecDeque::new();
        } else if self.frames.capacity() > 4 * self.frames.len() {
            self.frames.shrink_to(2 * self.frames.len());
        }
    }

    fn frame_before(&self, at: u64) -> Option<&Frame> {
        if at >= self.head {
            return self.frames.back();
        }
        let index = self.frames.partition_point(|frame| frame.end <= at);
        index.checked_sub(1).map(|index| &self.frames[index])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(frames: &[Vec<u8>]) -> (Ring, Vec<u8>, Vec<u64>) {
        let (mut ring, mut all, mut ends) = (Ring::default(), Vec::new(), vec![0]);
        for (index, frame) in frames.iter().enumerate() {
            ring.append(frame, 1, 10 * (index as u64 + 1));
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
                let ready = ring.ready(at);
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
            frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..500), 0u64..9), 1..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut ring = Ring::default();
            let (mut ends, mut counts) = (vec![0], vec![0]);
            for (index, (frame, messages)) in frames.iter().enumerate() {
                ring.append(frame, *messages, index as u64 + 1);
                ends.push(ring.head());
                counts.push(counts.last().unwrap() + messages);
            }
            ring.trim(ends[cut.index(ends.len())]);
            for (index, end) in ends.iter().enumerate().filter(|(_, end)| **end >= ring.tail()) {
                prop_assert_eq!(ring.messages_at(*end), counts[index]);
                prop_assert_eq!(ring.offset_at(*end), index as u64);
                prop_assert_eq!(ring.seek(index as u64), *end);
            }
        }
    }

    #[test]
    fn blocks_grow_with_what_is_kept_and_go_with_it() {
        let mut ring = Ring::default();
        assert_eq!(ring.footprint(), 0, "no memory before the first message");
        ring.append(&[1; 100], 1, 1);
        assert_eq!(ring.footprint(), BLOCK_BYTES_MIN);
        for offset in 2..10_000 {
            ring.append(&[1; 100], 1, offset);
        }
        assert!(ring.footprint() < 1_100_000);
        assert_eq!(ring.blocks.back().unwrap().bytes.capacity(), BLOCK_BYTES_MAX);
        let keep = ring.tail_within(1000);
        assert!(ring.head() - keep <= 1000 && ring.boundary_after(keep) == keep);
        ring.trim(keep);
        assert!(ring.footprint() <= 2 * BLOCK_BYTES_MAX);
        ring.trim(ring.head());
        ring.shrink();
        assert_eq!((ring.footprint(), ring.tail()), (0, ring.head()));
        ring.append(&[2; 2 * BLOCK_BYTES_MAX], 1, 10_000);
        assert_eq!(ring.ready(ring.tail()).len(), 2 * BLOCK_BYTES_MAX, "a large frame has a block of its own");
    }
}
