//! What waits to be sent to one connector: a queue for each partition, and one for pushes. Encoded items are shared
//! between connectors. A frame is put together when the stream takes it, so everything that was queued during a write
//! goes into one frame (rule 12).
//!
//! ```text
//!   owner ─push─▶ partition 3 │Own│Item│Item│Held│…  ─┐
//!   owner ─push─▶ partition 9 │Item│…                 ├─ in turns ─▶ pop ─▶ Frame ─▶ stream
//!   pushes ─push_out─▶        │PushOut│…              ┘             ◀─ acked(partition, seq)
//! ```
//!
//! Invariants:
//! - The order of a partition is kept. Its frames are numbered densely from 1 for each epoch, and again after a `Reset`.
//! - Bytes queued and bytes sent but not acknowledged stay within one bound together. Over it, the partition that asks for
//!   more loses its queue and is `Reset` (rule 8); a push is dropped.

use std::collections::VecDeque;
use std::task::Waker;

use proto::cluster::from_owner::Frame as Body;
use proto::cluster::{self, Topic};
use rustc_hash::FxHashMap;

use crate::frame::Frame;
use crate::item::EncodedItem;
use crate::out::Out;

/// Largest batch of messages in one frame, bytes: some milliseconds of a gigabit, and far under gRPC's limit of 4 MiB.
const DELIVER_BYTES_MAX: usize = 256 * 1024;
/// Pushes may fill this part of the bound, so that rooms always have the rest.
const PUSH_SHARE: usize = 4;
/// What an entry costs besides its bytes.
const ENTRY_BYTES: usize = 64;

/// The queue was full. The new entry and the partition's whole queue were dropped, and a `Reset` is queued.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Overflow;

#[derive(Default)]
struct PartitionQueue {
    epoch: u64,
    /// The last numbered frame's number.
    seq: u64,
    waiting: VecDeque<Out>,
    queued_bytes: usize,
    /// Sent and not acknowledged: number and bytes.
    flying: VecDeque<(u64, usize)>,
    flying_bytes: usize,
    reset: bool,
    /// It stands in `turns`.
    waits: bool,
    /// When the first item that waits was queued, microseconds since 1970; 0: none waits.
    items_us: u64,
}

impl PartitionQueue {
    fn bytes(&self) -> usize {
        self.queued_bytes + self.flying_bytes
    }
}

/// The queues of one connector's stream.
pub(crate) struct Outbox {
    partitions: FxHashMap<(Topic, u32), PartitionQueue>,
    /// Partitions that have something, in the order of their turns.
    turns: VecDeque<(Topic, u32)>,
    pushes: VecDeque<(Body, usize)>,
    push_bytes: usize,
    bytes: usize,
    bytes_max: usize,
    pushes_next: bool,
    closed: bool,
    waker: Option<Waker>,
}

impl Outbox {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            partitions: FxHashMap::default(),
            turns: VecDeque::new(),
            pushes: VecDeque::new(),
            push_bytes: 0,
            bytes: 0,
            bytes_max,
            pushes_next: false,
            closed: false,
            waker: None,
        }
    }

    /// Queues something of a partition; `now_us` is microseconds since 1970.
    pub(crate) fn push(&mut self, now_us: u64, partition: (Topic, u32), epoch: u64, out: Out) -> Result<(), Overflow> {
        if self.closed {
            return Ok(());
        }
        let queue = self.partitions.entry(partition).or_default();
        if let Out::Own(_) = out {
            // What an earlier epoch still had to say is void.
            self.bytes -= queue.bytes();
            *queue = PartitionQueue { epoch, waits: queue.waits, ..PartitionQueue::default() };
        } else if queue.epoch != epoch {
            return Ok(());
        }
        let bytes = out_bytes(&out);
        let bounded = matches!(out, Out::Item(_) | Out::Held(..) | Out::Through(_));
        let over = bounded && self.bytes + bytes > self.bytes_max;
        if over {
            self.bytes -= queue.bytes();
            queue.waiting.retain(|out| matches!(out, Out::Own(_)));
            queue.queued_bytes = queue.waiting.iter().map(out_bytes).sum();
            self.bytes += queue.queued_bytes;
            queue.flying.clear();
            queue.flying_bytes = 0;
            queue.items_us = 0;
            queue.seq = 0;
            queue.reset = true;
        } else {
            if matches!(out, Out::Item(_)) && queue.items_us == 0 {
                queue.items_us = now_us;
            }
            self.bytes += bytes;
            queue.queued_bytes += bytes;
            queue.waiting.push_back(out);
        }
        if !queue.waits {
            queue.waits = true;
            self.turns.push_back(partition);
        }
        if over { Err(Overflow) } else { Ok(()) }
    }

    /// Queues a push or a command; false: there was no room, and it is dropped.
    pub(crate) fn push_out(&mut self, body: Body, bytes: usize) -> bool {
        let bytes = bytes + ENTRY_BYTES;
        let fits = self.push_bytes + bytes <= self.bytes_max / PUSH_SHARE;
        if !self.closed && fits {
            self.push_bytes += bytes;
            self.pushes.push_back((body, bytes));
        }
        fits
    }

    /// The connector has handled everything up to `seq`.
    pub(crate) fn acked(&mut self, partition: (Topic, u32), epoch: u64, seq: u64) {
        let Some(queue) = self.partitions.get_mut(&partition).filter(|queue| queue.epoch == epoch) else { return };
        while let Some(&(sent, bytes)) = queue.flying.front()
            && sent <= seq
        {
            queue.flying.pop_front();
            queue.flying_bytes -= bytes;
            self.bytes -= bytes;
        }
    }

    /// The next frame, if there is any.
    pub(crate) fn pop(&mut self) -> Option<Frame> {
        self.pushes_next = !self.pushes_next;
        if (self.pushes_next || self.turns.is_empty())
            && let Some((body, bytes)) = self.pushes.pop_front()
        {
            self.push_bytes -= bytes;
            return Some(Frame::Whole(body));
        }
        loop {
            let partition = self.turns.pop_front()?;
            let queue = self.partitions.get_mut(&partition).expect("a queue stays while it waits");
            queue.waits = false;
            let before = queue.bytes();
            let frame = take(partition, queue);
            self.bytes -= before - queue.bytes();
            if !queue.waiting.is_empty() || queue.reset {
                queue.waits = true;
                self.turns.push_back(partition);
            }
            if let Some(frame) = frame {
                if let Frame::Whole(Body::Disown(_)) = frame
                    && !queue.waits
                {
                    self.bytes -= queue.bytes();
                    self.partitions.remove(&partition);
                }
                return Some(frame);
            }
        }
    }

    /// Bytes queued, and sent but not acknowledged.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.push_bytes
    }

    /// Bytes of answers to holds that it can take now: they may fill one half, so that live messages have the other.
    pub(crate) fn room(&self) -> usize {
        (self.bytes_max / 2).saturating_sub(self.bytes)
    }

    /// Nothing waits to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty() && self.pushes.is_empty()
    }

    /// The stream is to end when it has taken what is queued; nothing more is queued.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Sets the waker that [`Outbox::wake`] calls.
    pub(crate) fn wait(&mut self, waker: &Waker) {
        self.waker = Some(waker.clone());
    }

    /// Tells the stream that there is something; called once after several pushes.
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The next frame of a partition.
fn take((topic, partition): (Topic, u32), queue: &mut PartitionQueue) -> Option<Frame> {
    let of = i32::from(topic);
    let epoch = queue.epoch;
    if queue.reset && !matches!(queue.waiting.front(), Some(Out::Own(_))) {
        queue.reset = false;
        return Some(Frame::Whole(Body::Reset(cluster::Reset { topic: of, partition, epoch })));
    }
    let first = queue.waiting.pop_front()?;
    let mut bytes = out_bytes(&first);
    let mut items: Vec<EncodedItem> = Vec::new();
    let mut through = 0;
    let frame = match first {
        Out::Own(own) => Frame::Whole(Body::Own(own)),
        Out::Disown => Frame::Whole(Body::Disown(cluster::Disown { topic: of, partition, epoch })),
        Out::Held(held, recent) => {
            queue.seq += 1;
            Frame::Held(cluster::Held { seq: queue.seq, ..*held }, recent)
        }
        Out::Item(item) => {
            items.push(item);
            batch(queue, &mut items, &mut through, &mut bytes);
            queue.seq += 1;
            Frame::Deliver { topic, partition, epoch, seq: queue.seq, items, through, queued_us: queue.items_us }
        }
        Out::Through(offset) => {
            through = offset;
            batch(queue, &mut items, &mut through, &mut bytes);
            queue.seq += 1;
            Frame::Deliver { topic, partition, epoch, seq: queue.seq, items, through, queued_us: queue.items_us }
        }
    };
    queue.queued_bytes -= bytes;
    if queue.waiting.is_empty() {
        queue.items_us = 0;
    }
    if matches!(frame, Frame::Held(..) | Frame::Deliver { .. }) {
        queue.flying.push_back((queue.seq, bytes));
        queue.flying_bytes += bytes;
    }
    Some(frame)
}

/// Adds what can go in the same frame. `through` holds when the whole frame is handled, so a later one takes the place
/// of an earlier one, and items may follow it.
fn batch(queue: &mut PartitionQueue, items: &mut Vec<EncodedItem>, through: &mut u64, bytes: &mut usize) {
    while let Some(next) = queue.waiting.front() {
        let more = out_bytes(next);
        if *bytes + more > DELIVER_BYTES_MAX {
            return;
        }
        match queue.waiting.front() {
            Some(Out::Item(_) | Out::Through(_)) => {}
            _ => return,
        }
        *bytes += more;
        match queue.waiting.pop_front() {
            Some(Out::Item(item)) => items.push(item),
            Some(Out::Through(offset)) => *through = offset,
            _ => unreachable!("it was looked at above"),
        }
    }
}

fn out_bytes(out: &Out) -> usize {
    ENTRY_BYTES
        + match out {
            Out::Item(item) => item.len(),
            Out::Held(_, recent) => recent.iter().map(EncodedItem::len).sum(),
            Out::Own(_) | Out::Disown | Out::Through(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(epoch: u64) -> Out {
        Out::Own(cluster::Own { topic: Topic::Rooms.into(), partition: 3, epoch, log: "a".into(), partitions: 64 })
    }

    fn item(bytes: usize) -> Out {
        let message = vec![0; bytes].into();
        Out::Item(EncodedItem::new(&cluster::Item { message, ..cluster::Item::default() }))
    }

    fn held() -> Out {
        Out::Held(Box::default(), Vec::new())
    }

    fn names(outbox: &mut Outbox) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(frame) = outbox.pop() {
            names.push(match frame {
                Frame::Whole(Body::Own(own)) => format!("own {}", own.epoch),
                Frame::Whole(Body::Reset(_)) => "reset".to_owned(),
                Frame::Whole(Body::Disown(_)) => "disown".to_owned(),
                Frame::Whole(_) => "push".to_owned(),
                Frame::Held(held, _) => format!("held #{}", held.seq),
                Frame::Deliver { seq, items, through, .. } => format!("{} items #{seq} to {through}", items.len()),
            });
        }
        names
    }

    #[test]
    fn what_has_gathered_goes_in_one_frame_and_numbers_are_dense() {
        let mut outbox = Outbox::new(1 << 20);
        for out in [own(7), held(), item(10), item(10), Out::Through(9), held(), item(10), Out::Disown] {
            assert_eq!(outbox.push(1, (Topic::Rooms, 3), 7, out), Ok(()));
        }
        let frames = ["own 7", "held #1", "2 items #2 to 9", "held #3", "1 items #4 to 0", "disown"];
        assert_eq!(names(&mut outbox), frames);
        assert_eq!(outbox.bytes(), 0, "an owner that has gone waits for nothing");
    }

    #[test]
    fn a_frame_has_a_largest_size_and_partitions_take_turns() {
        let mut outbox = Outbox::new(16 << 20);
        for partition in [3, 4] {
            outbox.push(1, (Topic::Rooms, partition), 7, own(7)).unwrap();
            for _ in 0..3 {
                outbox.push(1, (Topic::Rooms, partition), 7, item(DELIVER_BYTES_MAX / 2)).unwrap();
            }
        }
        let one = "1 items #";
        let expected = ["own 7", "own 7"].into_iter().map(str::to_owned);
        let expected = expected.chain([1, 1, 2, 2, 3, 3].map(|seq| format!("{one}{seq} to 0")));
        assert_eq!(names(&mut outbox), expected.collect::<Vec<_>>());
    }

    #[test]
    fn over_its_bound_a_queue_is_dropped_and_reset_and_numbered_anew() {
        let mut outbox = Outbox::new(10_000);
        outbox.push(1, (Topic::Rooms, 3), 7, own(7)).unwrap();
        outbox.push(1, (Topic::Rooms, 4), 8, own(8)).unwrap();
        outbox.push(1, (Topic::Rooms, 4), 8, item(1_000)).unwrap();
        let mut pushed = 0;
        while outbox.push(1, (Topic::Rooms, 3), 7, item(900)).is_ok() {
            pushed += 1;
        }
        assert!((8..=9).contains(&pushed), "{pushed}");
        outbox.push(1, (Topic::Rooms, 3), 7, held()).unwrap();
        assert_eq!(names(&mut outbox), ["own 7", "own 8", "reset", "1 items #1 to 0", "held #1"]);
        outbox.acked((Topic::Rooms, 3), 7, 1);
        outbox.acked((Topic::Rooms, 4), 8, 1);
        assert_eq!(outbox.bytes(), 0);
        // Sent and not acknowledged counts too.
        for _ in 0..10 {
            outbox.push(1, (Topic::Rooms, 3), 7, item(900)).unwrap();
        }
        assert_eq!(names(&mut outbox), ["10 items #2 to 0"]);
        assert_eq!(outbox.push(1, (Topic::Rooms, 3), 7, item(900)), Err(Overflow));
        assert_eq!(names(&mut outbox), ["reset"]);
        outbox.push(1, (Topic::Rooms, 3), 7, item(900)).unwrap();
        assert_eq!(names(&mut outbox), ["1 items #1 to 0"]);
        outbox.acked((Topic::Rooms, 3), 7, 1);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn partitions_of_two_topics_are_two() {
        let mut outbox = Outbox::new(1 << 20);
        for topic in [Topic::Rooms, Topic::Conversations] {
            outbox.push(1, (topic, 3), 7, own(7)).unwrap();
            outbox.push(1, (topic, 3), 7, item(10)).unwrap();
        }
        let mut delivered = Vec::new();
        while let Some(frame) = outbox.pop() {
            if let Frame::Deliver { topic, partition, seq, .. } = frame {
                delivered.push((topic, partition, seq));
            }
        }
        assert_eq!(delivered, [(Topic::Rooms, 3, 1), (Topic::Conversations, 3, 1)]);
        outbox.acked((Topic::Rooms, 3), 7, 1);
        assert!(outbox.bytes() > 0);
        outbox.acked((Topic::Conversations, 3), 7, 1);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn a_new_epoch_voids_the_old_one_s_queue() {
        let mut outbox = Outbox::new(10_000);
        for out in [own(7), item(10), Out::Disown] {
            outbox.push(1, (Topic::Rooms, 3), 7, out).unwrap();
        }
        outbox.push(1, (Topic::Rooms, 3), 9, own(9)).unwrap();
        outbox.push(1, (Topic::Rooms, 3), 7, item(10)).unwrap();
        outbox.push(1, (Topic::Rooms, 3), 9, item(10)).unwrap();
        assert_eq!(names(&mut outbox), ["own 9", "1 items #1 to 0"]);
    }

    #[test]
    fn pushes_have_their_own_bounded_part() {
        let mut outbox = Outbox::new(10_000);
        let push = || Body::Push(cluster::PushOut::default());
        assert!(outbox.push_out(push(), 1_000));
        assert!(outbox.push_out(push(), 1_000));
        assert!(!outbox.push_out(push(), 1_000));
        assert_eq!(names(&mut outbox), ["push", "push"]);
        assert!(outbox.push_out(push(), 1_000));
    }
}
