//! The queues to the cores, and what becomes of what they have no room for (rule 30). It waits here, in order, and no other
//! core is held up. Of live messages only [`LIVE_BYTES_MAX`] wait; what is over it is dropped for that core and counted.
//!
//! A process that stood still reads a backlog of seconds at once, faster than its cores take it. A core's queue would
//! drop that.
//!
//! Invariants, each the name of a test:
//! - `a_burst_waits_for_the_core_and_is_not_dropped`: within [`LIVE_BYTES_MAX`].
//! - `what_is_dropped_is_told_before_what_follows`: in the same channel.
//! - `answers_are_not_lost_and_keep_their_order`.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::client::GapReasons;
use proto::cluster::Item;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::metrics::Control as Metrics;
use crate::core::StampedInput;
use crate::driver::Port;
use engine::event::{Held, Input};

/// Inputs that wait for a core: one is a batch of messages or an answer.
pub(crate) const INPUTS_MAX: usize = 1024;
/// Of these, what only answers and commands may use.
const RESERVED: usize = INPUTS_MAX / 4;
/// Inputs after which a core is woken at once: it is not to sleep while its queue fills.
const NEWS_MAX: usize = INPUTS_MAX / 8;
/// Answers and commands that wait here for a core whose queue is full. As many as a core can have asked for; over it the
/// core has stopped, and what is for it is dropped and counted.
const WAITING_MAX: usize = 64 * 1024;
/// Live messages that wait here for a core whose queue is full, bytes: some rings full. Over it they are dropped, counted
/// and told as a gap.
const LIVE_BYTES_MAX: usize = 8 << 20;
/// What a waiting message counts as beside its content, bytes.
const ITEM_BYTES: usize = 256;
/// Messages that wait as one input at most: a core is not to be busy with one for long.
const BATCH_MAX: usize = 256;
const _: () = assert!(LIVE_BYTES_MAX / ITEM_BYTES <= WAITING_MAX / 2, "they leave room for answers");

/// Where a core takes its inputs from.
pub(super) trait Queue {
    /// Never waits; gives back what there is no room for. The core may sleep until [`Queue::wake`].
    fn put(&self, input: Input) -> Option<Input>;
    /// Wakes the core.
    fn wake(&self);
    /// For how many there is room.
    fn room(&self) -> usize;
}

impl Queue for Port<StampedInput> {
    fn put(&self, input: Input) -> Option<Input> {
        self.put(input.into()).err().map(|told| told.input)
    }

    fn wake(&self) {
        self.wake();
    }

    fn room(&self) -> usize {
        self.room()
    }
}

/// The queues of all cores.
pub(super) struct Ports<Q> {
    cores: Vec<CoreQueue<Q>>,
    metrics: Metrics,
}

struct CoreQueue<Q> {
    queue: Q,
    /// What it was told and not woken for.
    news: usize,
    told: Arc<Notify>,
    waiting: VecDeque<Input>,
    /// Of the live messages in `waiting`, as [`live_bytes`] counts them.
    live_bytes: usize,
    /// Messages of each channel that were dropped and not told, and the gaps that these told.
    missed: FxHashMap<String, GapReasons>,
}

impl<Q: Queue> Ports<Q> {
    /// `told` is notified when there is somebody to [`Ports::wake`].
    pub(super) fn new(queues: Vec<Q>, told: Arc<Notify>, metrics: Metrics) -> Self {
        let core = |queue| CoreQueue {
            queue,
            news: 0,
            told: told.clone(),
            waiting: VecDeque::new(),
            live_bytes: 0,
            missed: FxHashMap::default(),
        };
        Self { cores: queues.into_iter().map(core).collect(), metrics }
    }

    pub(super) fn len(&self) -> usize {
        self.cores.len()
    }

    /// Wakes the cores that were told something.
    pub(super) fn wake(&mut self) {
        self.cores.iter_mut().filter(|core| core.news > 0).for_each(CoreQueue::wake);
    }

    /// Live messages.
    pub(super) fn deliver(&mut self, core: usize, items: Vec<Arc<Item>>) {
        let Some(core) = self.cores.get_mut(core) else { return };
        if core.live_bytes + live_bytes(&items) <= LIVE_BYTES_MAX {
            items.iter().for_each(|item| core.tell_missed(&item.channel));
            core.live(Input::Deliver(items));
            return;
        }
        self.metrics.queue_drops.inc_by(items.len() as u64);
        for item in items {
            let mut lost = GapReasons::of(item.missed, item.reasons);
            // What is only a gap is its own count.
            lost.unknown += u64::from(!item.message.is_empty());
            *core.missed.entry(item.channel.clone()).or_default() += lost;
        }
    }

    /// A channel is held; must not be lost.
    pub(super) fn held(&mut self, core: usize, held: Held) {
        let missed = self.cores.get_mut(core).and_then(|core| core.missed.remove(&held.channel));
        if let Some(reasons) = missed {
            self.must(core, Input::Missed { channel: held.channel.clone(), reasons });
        }
        self.must(core, Input::Held(held));
    }

    /// What must not be lost: waits where there is no room.
    pub(super) fn must(&mut self, core: usize, input: Input) {
        let Some(core) = self.cores.get_mut(core) else { return };
        if core.waiting.len() >= WAITING_MAX {
            self.metrics.queue_drops.inc();
        } else if !core.waiting.is_empty() {
            core.waiting.push_back(input);
        } else if let Some(input) = core.tell(input) {
            core.waiting.push_back(input);
        }
    }

    /// Whether a core has room for what may be lost.
    pub(super) fn has_room(&self, core: usize) -> bool {
        self.cores.get(core).is_some_and(CoreQueue::has_room)
    }

    /// What may be lost: pushes (at most once), numbers that come again.
    pub(super) fn may(&mut self, core: usize, input: Input) {
        let Some(core) = self.cores.get_mut(core) else { return };
        if !core.has_room() || core.tell(input).is_some() {
            self.metrics.queue_drops.inc();
        }
    }

    /// Offers again what waits, and says what was missed. Whether something still waits.
    pub(super) fn retry(&mut self) -> bool {
        // Every core is to have its try.
        self.cores.iter_mut().map(CoreQueue::retry).filter(|left| *left).count() > 0
    }

    /// Whether something waits for room.
    pub(super) fn is_behind(&self) -> bool {
        self.cores.iter().any(|core| !core.waiting.is_empty() || !core.missed.is_empty())
    }
}

impl<Q: Queue> CoreQueue<Q> {
    /// A live message, or the gap before one: waits where there is no room.
    fn live(&mut self, input: Input) {
        let input = match self.has_room() {
            true => self.tell(input),
            false => Some(input),
        };
        let Some(input) = input else { return };
        if let Input::Deliver(items) = &input {
            self.live_bytes += live_bytes(items);
        }
        match (self.waiting.back_mut(), input) {
            (Some(Input::Deliver(last)), Input::Deliver(more)) if last.len() + more.len() <= BATCH_MAX => {
                last.extend(more);
            }
            (_, input) => self.waiting.push_back(input),
        }
    }

    fn tell(&mut self, input: Input) -> Option<Input> {
        if let Some(back) = self.queue.put(input) {
            return Some(back);
        }
        self.news += 1;
        match self.news {
            1 => self.told.notify_one(),
            NEWS_MAX => self.wake(),
            _ => {}
        }
        None
    }

    fn wake(&mut self) {
        self.news = 0;
        self.queue.wake();
    }

    /// For what is not urgent, and behind nothing that is.
    fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.queue.room() > RESERVED
    }

    /// Says what was missed of the channel, in order with what waits.
    fn tell_missed(&mut self, channel: &str) {
        if self.missed.is_empty() {
            return;
        }
        if let Some((channel, reasons)) = self.missed.remove_entry(channel) {
            self.live(Input::Missed { channel, reasons });
        }
    }

    /// Offers again what waits. Whether something still waits.
    fn retry(&mut self) -> bool {
        while let Some(input) = self.waiting.pop_front() {
            let bytes = match &input {
                Input::Deliver(items) => live_bytes(items),
                _ => 0,
            };
            if let Some(input) = self.tell(input) {
                self.waiting.push_front(input);
                return true;
            }
            self.live_bytes -= bytes;
        }
        let missed = std::mem::take(&mut self.missed);
        missed.into_iter().for_each(|(channel, reasons)| self.live(Input::Missed { channel, reasons }));
        !self.waiting.is_empty()
    }
}

/// What live messages count as while they wait, bytes.
fn live_bytes(items: &[Arc<Item>]) -> usize {
    items.iter().map(|item| item.message.len() + ITEM_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use futures::FutureExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Fake(Rc<RefCell<Vec<Input>>>, Rc<Cell<u32>>);

    impl Queue for Fake {
        fn put(&self, input: Input) -> Option<Input> {
            if self.room() == 0 {
                return Some(input);
            }
            self.0.borrow_mut().push(input);
            None
        }

        fn wake(&self) {
            self.1.set(self.1.get() + 1);
        }

        fn room(&self) -> usize {
            INPUTS_MAX - self.0.borrow().len()
        }
    }

    fn item(channel: &str, missed: u64) -> Arc<Item> {
        Arc::new(Item { channel: channel.into(), message: "m".into(), missed, ..Item::default() })
    }

    fn drain(queue: &Fake) -> Vec<String> {
        let tell = |input: &Input| match input {
            Input::Deliver(items) => format!("deliver {}", items[0].channel),
            Input::Missed { channel, reasons } => {
                let GapReasons { capped, unknown, .. } = *reasons;
                assert_eq!(reasons.total(), capped + unknown, "no other reason is told here");
                let of_them = if capped > 0 { format!(", {capped} capped") } else { String::new() };
                format!("missed {channel} {}{of_them}", reasons.total())
            }
            Input::Held(held) => format!("held {}", held.channel),
            Input::Drain { within_ms } => format!("drain {within_ms}"),
            other => format!("{other:?}"),
        };
        std::mem::take(&mut *queue.0.borrow_mut()).iter().map(tell).collect()
    }

    /// The same, with what waits.
    fn drain_all(ports: &mut Ports<Fake>, queue: &Fake) -> Vec<String> {
        let mut said = drain(queue);
        while ports.is_behind() {
            ports.retry();
            said.extend(drain(queue));
        }
        said
    }

    fn held(channel: &str) -> Held {
        Held {
            channel: channel.into(),
            ticket: 1,
            log: "log".into(),
            offset: 9,
            missed: None,
            recent: Vec::new(),
            before: None,
        }
    }

    #[test]
    fn a_core_that_was_told_something_is_woken_once() {
        let (one, other) = (Fake::default(), Fake::default());
        let told = Arc::new(Notify::new());
        let mut ports = Ports::new(vec![one.clone(), other.clone()], told.clone(), Metrics::default());
        let mut notified = std::pin::pin!(told.notified());
        assert!((&mut notified).now_or_never().is_none());
        ports.deliver(0, vec![item("room:1", 0)]);
        ports.must(0, Input::Drain { within_ms: 0 });
        assert!(notified.now_or_never().is_some());
        for _ in 0..2 {
            ports.wake();
            assert_eq!((one.1.get(), other.1.get()), (1, 0));
        }
        ports.may(0, Input::Drain { within_ms: 0 });
        assert!(told.notified().now_or_never().is_some());
        ports.wake();
        assert_eq!((one.1.get(), other.1.get()), (2, 0));
        // One that is told much meanwhile sleeps no longer.
        (0..NEWS_MAX).for_each(|_| ports.deliver(1, vec![item("room:1", 0)]));
        assert_eq!((one.1.get(), other.1.get()), (2, 1));
    }

    #[test]
    fn what_is_dropped_is_told_before_what_follows() {
        let (slow, quick) = (Fake::default(), Fake::default());
        let mut ports = Ports::new(vec![slow.clone(), quick.clone()], Arc::default(), Metrics::default());
        let all = INPUTS_MAX - RESERVED + LIVE_BYTES_MAX / (1 + ITEM_BYTES);
        for _ in 0..all + 10 {
            ports.deliver(0, vec![item("room:1", 0)]);
            ports.deliver(1, vec![item("room:1", 0)]);
            quick.0.borrow_mut().clear();
        }
        assert_eq!(slow.room(), RESERVED, "the rest is for answers");
        assert_eq!(ports.metrics.queue_drops.get(), 10);
        let told = |missed, capped| Item {
            reasons: Some(GapReasons { capped, ..GapReasons::default() }),
            ..(*item("room:2", missed)).clone()
        };
        // One message, four that it tells as missing, three of them capped; and a gap without a message.
        ports.deliver(0, vec![Arc::new(told(4, 3))]);
        ports.deliver(0, vec![Arc::new(Item { message: "".into(), ..told(2, 2) })]);
        assert_eq!(ports.metrics.queue_drops.get(), 12);

        // The core takes some of it.
        while slow.room() > 10 {
            assert!(slow.put(Input::Drain { within_ms: 0 }).is_none());
        }
        assert!(ports.retry());
        ports.deliver(0, vec![item("room:1", 0)]);
        ports.held(0, held("room:2"));
        let said = drain_all(&mut ports, &slow);
        let gaps = said.iter().position(|said| said.starts_with("missed")).unwrap();
        let expected = ["missed room:1 10", "deliver room:1", "missed room:2 7, 5 capped", "held room:2"];
        assert_eq!(said[gaps..], expected);
    }

    #[test]
    fn a_burst_waits_for_the_core_and_is_not_dropped() {
        let queue = Fake::default();
        let mut ports = Ports::new(vec![queue.clone()], Arc::default(), Metrics::default());
        let burst: Vec<u64> = (1..=10 * INPUTS_MAX as u64).collect();
        for &offset in &burst {
            ports.deliver(0, vec![Arc::new(Item { offset, ..(*item("room:1", 0)).clone() })]);
        }
        // What comes behind it waits for it.
        ports.must(0, Input::Drain { within_ms: 1 });
        let (mut came, mut behind) = (Vec::new(), 0);
        while ports.is_behind() || !queue.0.borrow().is_empty() {
            ports.retry();
            for input in queue.0.borrow_mut().drain(..) {
                match input {
                    Input::Deliver(items) => came.extend(items.iter().map(|item| item.offset)),
                    Input::Drain { .. } => behind = came.len(),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(came, burst);
        assert_eq!(behind, burst.len());
        assert_eq!((ports.metrics.queue_drops.get(), ports.cores[0].live_bytes), (0, 0));
    }

    #[test]
    fn a_gap_is_told_when_there_is_room_whatever_follows() {
        let queue = Fake::default();
        let mut ports = Ports::new(vec![queue.clone()], Arc::default(), Metrics::default());
        while ports.metrics.queue_drops.get() == 0 {
            ports.deliver(0, vec![item("room:1", 0)]);
        }
        assert!(ports.is_behind());
        let said = drain_all(&mut ports, &queue);
        assert_eq!(said.last().unwrap(), "missed room:1 1");
        assert!(said[..said.len() - 1].iter().all(|told| told == "deliver room:1"));
    }

    #[test]
    fn answers_are_not_lost_and_keep_their_order() {
        let queue = Fake::default();
        let mut ports = Ports::new(vec![queue.clone()], Arc::default(), Metrics::default());
        for within_ms in 0..INPUTS_MAX as u64 {
            ports.must(0, Input::Drain { within_ms });
        }
        ports.held(0, held("room:1"));
        ports.must(0, Input::Drain { within_ms: 7777 });
        drain(&queue);
        // Nothing overtakes what waits.
        ports.deliver(0, vec![item("room:1", 0)]);
        assert!(!ports.retry());
        assert_eq!(drain(&queue), ["held room:1", "drain 7777", "deliver room:1"]);
    }
}
