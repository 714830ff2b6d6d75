//! Connectors' holds. A hold waits until the owner is live, and is then answered.
//!
//! A connector that attaches holds all of its rooms at once: a hundred thousand are usual. Its queue takes the answers in
//! portions. Each waiting hold is therefore looked at once, and not in every turn (`Holds`).

use std::collections::BTreeMap;

use proto::cluster;
use rustc_hash::FxHashMap;

use super::phase::Phase;
use super::{Answer, HolderPosition, Owner, Stage, StreamId};
use crate::item::EncodedItem;
use crate::out::Out;

/// What the answer to a hold takes of a queue besides its messages, bytes, generously.
const HELD_BYTES: usize = 512;

/// A hold that is answered when the owner is live.
pub(super) struct Waiting {
    from: StreamId,
    hold: u64,
    channel: String,
    place: HolderPosition,
    /// Everything after its position is delivered while replaying: nothing is missing when it is answered.
    followed: bool,
}

/// The holds that wait, of each connector in the order in which they came.
#[derive(Default)]
pub(super) struct Holds {
    of: BTreeMap<StreamId, Queue>,
    /// The last hold's number.
    last: u64,
    /// How often one was looked at.
    #[cfg(test)]
    taken: u64,
}

/// One connector's waiting holds. No queue is kept empty.
#[derive(Default)]
struct Queue {
    holds: BTreeMap<u64, Waiting>,
    /// By channel; two cores of a connector may have one on their way.
    numbers: FxHashMap<String, Vec<u64>>,
}

impl Holds {
    fn push(&mut self, waiting: Waiting) {
        self.last += 1;
        self.put(self.last, waiting);
    }

    /// Where it was taken from, or at the end.
    fn put(&mut self, number: u64, waiting: Waiting) {
        let queue = self.of.entry(waiting.from).or_default();
        queue.numbers.entry(waiting.channel.clone()).or_default().push(number);
        queue.holds.insert(number, waiting);
    }

    /// Takes the connector's oldest, with its number.
    fn take(&mut self, of: StreamId) -> Option<(u64, Waiting)> {
        let queue = self.of.get_mut(&of)?;
        let (number, waiting) = queue.holds.pop_first()?;
        if let Some(numbers) = queue.numbers.get_mut(&waiting.channel) {
            numbers.retain(|it| *it != number);
            if numbers.is_empty() {
                queue.numbers.remove(&waiting.channel);
            }
        }
        if queue.holds.is_empty() {
            self.of.remove(&of);
        }
        #[cfg(test)]
        {
            self.taken += 1;
        }
        Some((number, waiting))
    }

    /// The connector has nobody left in the channel.
    fn release(&mut self, of: StreamId, channel: &str) {
        let Some(queue) = self.of.get_mut(&of) else { return };
        for number in queue.numbers.remove(channel).into_iter().flatten() {
            queue.holds.remove(&number);
        }
        if queue.holds.is_empty() {
            self.of.remove(&of);
        }
    }

    /// The connector has gone.
    pub(super) fn let_go(&mut self, of: StreamId) {
        self.of.remove(&of);
    }

    /// Whether one of the connector's waits.
    pub(super) fn has(&self, of: StreamId) -> bool {
        self.of.contains_key(&of)
    }

    /// Whether anyone waits for the channel.
    pub(super) fn wants(&self, channel: &str) -> bool {
        self.of.values().any(|queue| queue.numbers.contains_key(channel))
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Waiting> {
        self.of.values_mut().flat_map(|queue| queue.holds.values_mut())
    }
}

impl<S: Stage> Owner<S> {
    /// A connector holds a channel, or re-holds it.
    pub(crate) fn hold(&mut self, from: StreamId, hold: cluster::Hold) {
        let known = self.out.connectors.contains_key(&from);
        if hold.epoch != self.epoch || !known || !self.stage.is_ours(&hold.channel) {
            // For another epoch: the connector re-holds when it has seen this epoch's `Own`.
            return;
        }
        let place = if hold.log.is_empty() {
            HolderPosition::Nothing { recent: hold.recent as usize }
        } else if *hold.log == *self.config.log {
            let ordinal = (hold.ordinal_epoch == self.epoch).then_some(hold.ordinal);
            HolderPosition::At { offset: hold.offset, ordinal }
        } else {
            HolderPosition::Elsewhere
        };
        let mut waiting = Waiting { from, hold: hold.hold, channel: hold.channel, place, followed: false };
        match self.phase {
            Phase::Paused | Phase::Lost => return,
            Phase::Replaying if self.from.is_some() => self.follow(&mut waiting),
            Phase::Collecting { .. } | Phase::Replaying | Phase::Live => {}
        }
        self.waiting.push(waiting);
    }

    /// Answers the holds that wait, once the owner is live, as far as the connectors' queues have room: `room` is asked
    /// for each connector's, in bytes. The rest waits, so that no number of holds makes a queue run over.
    pub(crate) fn answer_holds(&mut self, mut room: impl FnMut(StreamId) -> usize) {
        if self.phase != Phase::Live {
            return;
        }
        let connectors: Vec<StreamId> = self.waiting.of.keys().copied().collect();
        for connector in connectors {
            let mut left = room(connector);
            while left >= HELD_BYTES
                && let Some((number, waiting)) = self.waiting.take(connector)
            {
                let answer = match waiting.followed {
                    true => Answer::default(),
                    false => self.stage.answer(&waiting.channel, waiting.place),
                };
                let bytes = HELD_BYTES + answer.recent.iter().map(EncodedItem::len).sum::<usize>();
                if bytes > left {
                    // Nor any later one of this connector's, so that they stay in order.
                    self.waiting.put(number, waiting);
                    break;
                }
                left -= bytes;
                self.answer(waiting, answer);
            }
        }
    }

    /// A connector has said all that it holds.
    pub(crate) fn holds_done(&mut self, connector: StreamId, epoch: u64, now_ms: i64) {
        if epoch == self.epoch
            && let Some(connector) = self.out.connectors.get_mut(&connector)
        {
            connector.collecting = false;
            self.begin_if_collected(now_ms);
        }
    }

    /// A connector has nobody left in a channel.
    pub(crate) fn release(&mut self, connector: StreamId, channel: &str) {
        self.waiting.release(connector, channel);
        self.stage.release(connector, channel);
    }

    /// Reading has begun: those that wait are followed from here.
    pub(super) fn follow_all(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.all().for_each(|waiting| self.follow(waiting));
        self.waiting = waiting;
    }

    /// From here on every record goes to a waiting holder whose position is not before what has been read.
    fn follow(&mut self, waiting: &mut Waiting) {
        if let HolderPosition::At { offset, .. } = waiting.place
            && offset >= self.progress
        {
            waiting.followed = true;
            self.stage.follow(waiting.from, &waiting.channel, offset);
        }
    }

    fn answer(&mut self, waiting: Waiting, answer: Answer) {
        let Waiting { from, hold, channel, .. } = waiting;
        let (progress, Answer { missed, recent, before }) = (self.progress, answer);
        // What was dropped before lies before this answer.
        self.stage.held(&mut self.out, from, &channel, progress);
        let metrics = &self.config.metrics;
        metrics.holds.inc();
        metrics.gaps.inc_by(missed.map_or(0, |missed| missed.count));
        let held = cluster::Held {
            topic: S::TOPIC.into(),
            partition: self.partition,
            epoch: self.epoch,
            hold,
            channel,
            log: self.config.log.to_string(),
            offset: progress,
            missed,
            before,
            ..cluster::Held::default()
        };
        self.out.send(from, Out::Held(Box::new(held), recent));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Action;
    use super::*;
    use crate::rooms::tests::owner;

    #[test]
    fn many_holds_are_answered_in_order_and_looked_at_once_each() {
        const HOLDS: u64 = 2000;
        const AT_ONCE: usize = 8;
        let mut owner = owner(1 << 20);
        for hold in 1..=HOLDS {
            let channel = format!("room:{}", hold / 2);
            owner.hold(1, cluster::Hold { epoch: owner.epoch(), hold, channel, ..cluster::Hold::default() });
        }
        // Two of one room; and of another room both are still there.
        owner.release(1, "room:500");
        let (mut answered, mut turns) = (Vec::new(), 0);
        while owner.waiting.has(1) {
            owner.actions();
            // One more would fit, were it smaller.
            owner.answer_holds(|_| (AT_ONCE + 1) * HELD_BYTES - 1);
            let held = owner.actions().into_iter().filter_map(|action| match action {
                Action::Send(1, Out::Held(held, _)) => Some(held.hold),
                _ => None,
            });
            let before = answered.len();
            answered.extend(held);
            assert!((1..=AT_ONCE).contains(&(answered.len() - before)));
            turns += 1;
        }
        let all: Vec<u64> = (1..=HOLDS).filter(|hold| hold / 2 != 500).collect();
        assert_eq!(answered, all);
        assert!(!owner.waiting.wants("room:1"));
        assert!(owner.waiting.taken <= HOLDS + turns, "{} looked at in {turns} turns", owner.waiting.taken);
    }

    #[test]
    fn what_does_not_fit_keeps_its_place() {
        let mut holds = Holds::default();
        let waiting = |hold| {
            let place = HolderPosition::Elsewhere;
            Waiting { from: 1, hold, channel: "room:1".into(), place, followed: false }
        };
        (1..=3).for_each(|hold| holds.push(waiting(hold)));
        for _ in 0..5 {
            let (number, first) = holds.take(1).expect("three wait");
            assert_eq!(first.hold, 1);
            holds.put(number, first);
        }
        holds.push(waiting(4));
        let mut order = Vec::new();
        while let Some((_, waiting)) = holds.take(1) {
            order.push(waiting.hold);
        }
        assert_eq!(order, [1, 2, 3, 4]);
        assert!(!holds.has(1) && !holds.wants("room:1"));
        holds.push(waiting(5));
        let (number, last) = holds.take(1).expect("one waits");
        holds.put(number, last);
        holds.release(1, "room:1");
        assert!(!holds.has(1));
    }
}
