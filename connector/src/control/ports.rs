//! The queues to the cores, and what becomes of what they have no room for (rule 30): live messages are dropped for that
//! core and counted, answers and commands wait here, and no other core is held up.
//!
//! Invariants, each the name of a test:
//! - `what_is_dropped_is_told_before_what_follows`: in the same channel.
//! - `answers_are_not_lost_and_keep_their_order`.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::client::GapReasons;
use proto::cluster::Item;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::metrics::Control as Metrics;
use crate::core::Told;
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

/// Where a core takes its inputs from.
pub(super) trait Queue {
    /// Never waits; gives back what there is no room for. The core may sleep until [`Queue::ring`].
    fn put(&self, input: Input) -> Option<Input>;
    /// Wakes the core.
    fn ring(&self);
    /// For how many there is room.
    fn room(&self) -> usize;
}

impl Queue for Port<Told> {
    fn put(&self, input: Input) -> Option<Input> {
        self.put(input.into()).err().map(|told| told.input)
    }

    fn ring(&self) {
        self.ring();
    }

    fn room(&self) -> usize {
        self.room()
    }
}

/// The queues of all cores.
pub(super) struct Ports<Q> {
    cores: Vec<Core<Q>>,
    metrics: Metrics,
}

struct Core<Q> {
    queue: Q,
    /// What it was told and not woken for.
    news: usize,
    told: Arc<Notify>,
    waiting: VecDeque<Input>,
    /// Messages of each channel that were dropped and not told, and the gaps that these told.
    missed: FxHashMap<String, GapReasons>,
}

impl<Q: Queue> Ports<Q> {
    /// `told` is notified when there is somebody to [`Ports::ring`].
    pub(super) fn new(queues: Vec<Q>, told: Arc<Notify>, metrics: Metrics) -> Self {
        let core =
            |queue| Core { queue, news: 0, told: told.clone(), waiting: VecDeque::new(), missed: FxHashMap::default() };
        Self { cores: queues.into_iter().map(core).collect(), metrics }
    }

    pub(super) fn len(&self) -> usize {
        self.cores.len()
    }

    /// Wakes the cores that were told something.
    pub(super) fn ring(&mut self) {
        self.cores.iter_mut().filter(|core| core.news > 0).for_each(Core::ring);
    }

    /// Live messages.
    pub(super) fn deliver(&mut self, core: usize, items: Vec<Arc<Item>>) {
        let Some(core) = self.cores.get_mut(core) else { return };
        // The core takes from its queue meanwhile: where a gap found no room, what follows it must not find some.
        let told = items.iter().all(|item| core.tell_missed(&item.channel));
        let dropped = if told && core.has_room() {
            match core.tell(Input::Deliver(items)) {
                Some(Input::Deliver(items)) => items,
                _ => return,
            }
        } else {
            items
        };
        self.metrics.queue_drops.inc_by(dropped.len() as u64);
        for item in dropped {
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
        self.cores.get(core).is_some_and(Core::has_room)
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
        self.cores.iter_mut().map(Core::retry).filter(|left| *left).count() > 0
    }

    /// Whether something waits for room.
    pub(super) fn is_behind(&self) -> bool {
        self.cores.iter().any(|core| !core.waiting.is_empty() || !core.missed.is_empty())
    }
}

impl<Q: Queue> Core<Q> {
    fn tell(&mut self, input: Input) -> Option<Input> {
        if let Some(back) = self.queue.put(input) {
            return Some(back);
        }
        self.news += 1;
        match self.news {
            1 => self.told.notify_one(),
            NEWS_MAX => self.ring(),
            _ => {}
        }
        None
    }

    fn ring(&mut self) {
        self.news = 0;
        self.queue.ring();
    }

    /// For what is not urgent, and behind nothing that is.
    fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.queue.room() > RESERVED
    }

    /// Says what was missed of the channel; `false`: there is no room to say it.
    fn tell_missed(&mut self, channel: &str) -> bool {
        if self.missed.is_empty() {
            return true;
        }
        let Some(&reasons) = self.missed.get(channel) else { return true };
        let told = self.has_room() && self.tell(Input::Missed { channel: channel.to_owned(), reasons }).is_none();
        if told {
            self.missed.remove(channel);
        }
        told
    }

    fn retry(&mut self) -> bool {
        while let Some(input) = self.waiting.pop_front() {
            if let Some(input) = self.tell(input) {
                self.waiting.push_front(input);
                return true;
            }
        }
        let channels: Vec<_> = self.missed.keys().cloned().collect();
        !channels.iter().all(|channel| self.tell_missed(channel))
    }
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

        fn ring(&self) {
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

    fn held(channel: &str) -> Held {
        Held { channel: channel.into(), ticket: 1, log: "log".into(), offset: 9, missed: None, recent: Vec::new() }
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
            ports.ring();
            assert_eq!((one.1.get(), other.1.get()), (1, 0));
        }
        ports.may(0, Input::Drain { within_ms: 0 });
        assert!(told.notified().now_or_never().is_some());
        ports.ring();
        assert_eq!((one.1.get(), other.1.get()), (2, 0));
        // One that is told much meanwhile sleeps no longer.
        (0..NEWS_MAX).for_each(|_| ports.deliver(1, vec![item("room:1", 0)]));
        assert_eq!((one.1.get(), other.1.get()), (2, 1));
    }

    #[test]
    fn what_is_dropped_is_told_before_what_follows() {
        let (slow, quick) = (Fake::default(), Fake::default());
        let mut ports = Ports::new(vec![slow.clone(), quick.clone()], Arc::default(), Metrics::default());
        for _ in 0..INPUTS_MAX {
            ports.deliver(0, vec![item("room:1", 0)]);
            ports.deliver(1, vec![item("room:1", 0)]);
            quick.0.borrow_mut().clear();
        }
        assert_eq!(slow.room(), RESERVED, "the rest is for answers");
        let told = |missed, capped| Item {
            reasons: Some(GapReasons { capped, ..GapReasons::default() }),
            ..(*item("room:2", missed)).clone()
        };
        // One message, four that it tells as missing, three of them capped; and a gap without a message.
        ports.deliver(0, vec![Arc::new(told(4, 3))]);
        ports.deliver(0, vec![Arc::new(Item { message: "".into(), ..told(2, 2) })]);
        assert_eq!(ports.metrics.queue_drops.get(), RESERVED as u64 + 2);

        drain(&slow);
        ports.deliver(0, vec![item("room:1", 0)]);
        let first = format!("missed room:1 {RESERVED}");
        assert_eq!(drain(&slow), [first.as_str(), "deliver room:1"]);
        ports.held(0, held("room:2"));
        assert_eq!(drain(&slow), ["missed room:2 7, 5 capped", "held room:2"]);
        assert!(!ports.retry());
    }

    #[test]
    fn a_gap_is_told_when_there_is_room_whatever_follows() {
        let queue = Fake::default();
        let mut ports = Ports::new(vec![queue.clone()], Arc::default(), Metrics::default());
        while queue.room() > RESERVED {
            ports.deliver(0, vec![item("room:1", 0)]);
        }
        ports.deliver(0, vec![item("room:1", 0)]);
        assert!(ports.is_behind() && ports.retry());
        drain(&queue);
        assert!(!ports.retry() && !ports.is_behind());
        assert_eq!(drain(&queue), ["missed room:1 1"]);
    }

    /// A queue from which the core takes something whenever it is looked at.
    #[derive(Default, Clone)]
    struct Taken(Fake);

    impl Queue for Taken {
        fn put(&self, input: Input) -> Option<Input> {
            self.0.put(input)
        }

        fn ring(&self) {}

        fn room(&self) -> usize {
            let room = self.0.room();
            self.0.0.borrow_mut().pop();
            room
        }
    }

    #[test]
    fn what_follows_a_gap_finds_no_room_before_it() {
        let queue = Taken::default();
        let mut ports = Ports::new(vec![queue.clone()], Arc::default(), Metrics::default());
        while queue.0.room() > RESERVED {
            let _ = queue.0.put(Input::Drain { within_ms: 0 });
        }
        ports.deliver(0, vec![item("room:1", 0)]);
        while queue.0.room() > RESERVED {
            let _ = queue.0.put(Input::Drain { within_ms: 0 });
        }
        // No room for the gap; when the message is looked at, there is.
        ports.deliver(0, vec![item("room:1", 0)]);
        let said = drain(&queue.0);
        assert!(!said.iter().any(|said| said == "deliver room:1"), "{said:?}");
        assert!(!ports.retry());
        assert_eq!(drain(&queue.0), ["missed room:1 2"]);
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
        assert_eq!(drain(&queue), ["held room:1", "drain 7777", "missed room:1 1"]);
    }
}
