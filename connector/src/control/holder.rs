//! The process's one holder of channels: knows who owns each partition, what every core has, and what to ask for again.
//! A state machine without streams or queues: it is told what came and returns what to do.
//!
//! ```text
//!   core ─hold/release─▶ ┌────────┐ ─Hold/HoldsDone/Release/Ack─▶ owner's stream
//!                        │ Holder │
//!   owner's frames ────▶ └────────┘ ─Held, Deliver─▶ the cores that have the channel
//! ```
//!
//! Invariants, each the name of a test:
//! - `frames_of_a_lower_epoch_are_ignored`: and so is what comes from anyone but a partition's last owner.
//! - `a_hold_waits_for_an_owner`, and is asked again of every new one, and after a reset.
//! - `only_the_core_that_asked_is_answered`, and gets live messages from there on; an answer to what was held again is
//!   for every core that has the channel.
//! - `a_live_owner_delivers_nothing_of_what_is_re_held`: what comes all the same answers a hold from before a reset,
//!   and would leave a gap.
//! - `a_missing_number_ends_the_stream`: its owner dials again, says what it owns, and everything is held again
//!   from where it was.

mod channel;

use std::sync::Arc;

use proto::channel::partition;
use proto::cluster::{
    Ack, Disown, FromOwner, Hold, HoldsDone, Item, Own, Release, Reset, Topic, from_holder, from_owner,
};
use rustc_hash::FxHashMap;

use self::channel::{Channel, asked_by};
use engine::event::Held;

/// Topics are indexed by their number in the schema; 0 is none.
const TOPICS: usize = Topic::Inbox as usize + 1;
/// Most partitions that an owner may say a topic has: what one could mean (rule 3), and a bound for what a mistake costs.
const PARTITIONS_MAX: u32 = 65_536;

/// A job's stream, numbered as it came.
pub(super) type StreamId = u64;

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Action {
    /// On this stream, in order.
    Send(StreamId, from_holder::Frame),
    /// On this stream, whenever it suits: a later one of the partition stands for an earlier one.
    Ack(StreamId, Ack),
    /// Must reach the core.
    Held(usize, Held),
    /// In order with [`Action::Held`] for the core.
    Deliver(usize, Vec<Arc<Item>>),
    /// The peer broke the order: end its stream.
    Break(StreamId, String),
}

/// The name of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartitionId {
    topic: Topic,
    number: u32,
}

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Holder {
    /// The partitions of each topic; none until an owner says how many there are.
    topics: [Vec<Partition>; TOPICS],
    /// Asked for before that.
    early: Vec<(usize, String, u64)>,
    last_hold: u64,
    actions: Vec<Action>,
}

#[derive(Debug, Default)]
struct Partition {
    /// The highest that was seen.
    epoch: u64,
    log: Arc<str>,
    owner: Option<StreamId>,
    /// Of the last numbered frame under this epoch, on this stream.
    seq: u64,
    /// Every channel that is held, and not being re-held, has everything up to here.
    through: u64,
    /// It has answered: it reads no more than what is new, and answers at once.
    live: bool,
    /// Channels that are being re-held.
    re_held: usize,
    channels: FxHashMap<Arc<str>, Channel>,
}

impl Holder {
    /// Takes what is to be done.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A core holds a channel.
    pub(super) fn hold(&mut self, core: usize, channel: &str, ticket: u64) {
        let Some(id) = self.partition_of(channel) else {
            self.early.push((core, channel.to_owned(), ticket));
            return;
        };
        let partition = &mut self.topics[id.topic as usize][id.number as usize];
        let name: Arc<str> = channel.into();
        let entry = partition.channels.entry(name.clone()).or_default();
        let mut hold = 0;
        if let Some(owner) = partition.owner {
            self.last_hold += 1;
            hold = self.last_hold;
            self.actions.push(send_hold(owner, id, partition.epoch, &name, asked_by(hold)));
        }
        entry.hold(core, ticket, hold);
    }

    /// A core has nobody left in a channel.
    pub(super) fn release(&mut self, core: usize, channel: &str) {
        self.early.retain(|(by, early, ..)| *by != core || early != channel);
        let Some(id) = self.partition_of(channel) else { return };
        let partition = &mut self.topics[id.topic as usize][id.number as usize];
        let Some(entry) = partition.channels.get_mut(channel) else { return };
        if entry.release(core) {
            partition.re_held -= usize::from(entry.is_re_held());
            partition.channels.remove(channel);
            if let Some(owner) = partition.owner {
                let release = Release { topic: id.topic.into(), partition: id.number, channel: channel.to_owned() };
                self.actions.push(Action::Send(owner, from_holder::Frame::Release(release)));
            }
        }
    }

    /// A frame came on a stream.
    pub(super) fn frame(&mut self, from: StreamId, frame: FromOwner) {
        match frame.frame {
            Some(from_owner::Frame::Own(own)) => self.own(from, &own),
            Some(from_owner::Frame::Disown(Disown { topic, partition, epoch })) => {
                if let Some(partition) = named(topic, partition).and_then(|id| self.owned(from, id, epoch)) {
                    partition.owner = None;
                }
            }
            Some(from_owner::Frame::Reset(Reset { topic, partition, epoch })) => {
                let Some(id) = named(topic, partition) else { return };
                if let Some(partition) = self.owned(from, id, epoch) {
                    partition.seq = 0;
                    self.re_hold(id);
                }
            }
            Some(from_owner::Frame::Deliver(deliver)) => {
                let Some(id) = named(deliver.topic, deliver.partition) else { return };
                if self.numbered(from, id, deliver.epoch, deliver.seq) {
                    self.deliver(id, deliver.items, deliver.through);
                }
            }
            Some(from_owner::Frame::Held(held)) => {
                let Some(id) = named(held.topic, held.partition) else { return };
                if self.numbered(from, id, held.epoch, held.seq) {
                    self.held(id, held);
                }
            }
            // For sessions, not for channels; or of a newer peer, who may say more than we understand.
            Some(from_owner::Frame::Push(_) | from_owner::Frame::Command(_)) | None => {}
        }
    }

    /// A stream ended: its partitions have no owner until somebody says so.
    pub(super) fn detached(&mut self, stream: StreamId) {
        for partition in self.topics.iter_mut().flatten().filter(|partition| partition.owner == Some(stream)) {
            partition.owner = None;
        }
    }

    /// Every channel that a core has, or asks for.
    pub(super) fn channels(&self) -> impl Iterator<Item = &Arc<str>> {
        self.topics.iter().flatten().flat_map(|partition| partition.channels.keys())
    }

    /// Sessions in a channel over the whole cluster, for the cores that do not know: see [`Channel::online`].
    pub(super) fn online(&mut self, channel: &str, sessions: u64, tell: impl FnMut(usize) -> bool) {
        let Some(id) = self.partition_of(channel) else { return };
        if let Some(channel) = self.topics[id.topic as usize][id.number as usize].channels.get_mut(channel) {
            channel.online(sessions, tell);
        }
    }

    /// Channels, and those of them that have no answer yet.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let channels = self.topics.iter().flatten().flat_map(|partition| partition.channels.values());
        let (all, asking) =
            channels.fold((0, 0), |(all, asking), channel| (all + 1, asking + usize::from(channel.is_asking())));
        (all + self.early.len(), asking + self.early.len())
    }

    /// The partition that carries a channel, once it is known how many its topic has.
    /// Partitions that some core has a channel of and that nobody owns. Before the first owner the number of partitions is
    /// not known: all channels count as one.
    pub(super) fn unowned(&self) -> usize {
        let unowned = |partition: &&Partition| partition.owner.is_none() && !partition.channels.is_empty();
        self.topics.iter().flatten().filter(unowned).count() + usize::from(!self.early.is_empty())
    }

    fn partition_of(&self, channel: &str) -> Option<PartitionId> {
        let topic = proto::topic::of_channel(channel);
        let partitions = self.topics[topic as usize].len() as u32;
        (partitions > 0).then(|| PartitionId { topic, number: partition(channel, partitions) })
    }

    fn own(&mut self, from: StreamId, own: &Own) {
        let Some(id) = named(own.topic, own.partition) else { return };
        let partitions = &mut self.topics[id.topic as usize];
        if partitions.is_empty() && (1..=PARTITIONS_MAX).contains(&own.partitions) {
            partitions.resize_with(own.partitions as usize, Partition::default);
            // Those of a topic of which the number is still not known come back here.
            for (core, channel, ticket) in std::mem::take(&mut self.early) {
                self.hold(core, &channel, ticket);
            }
        }
        let partitions = &mut self.topics[id.topic as usize];
        if own.partitions as usize != partitions.len() || own.partition >= own.partitions {
            let ours = partitions.len();
            let reason = format!("partition {} of {}, where there are {ours}", own.partition, own.partitions);
            self.actions.push(Action::Break(from, reason));
            return;
        }
        let partition = &mut partitions[id.number as usize];
        if own.epoch < partition.epoch {
            return;
        }
        if *partition.log != *own.log {
            partition.log = own.log.as_str().into();
            partition.through = 0;
        }
        (partition.epoch, partition.owner, partition.seq) = (own.epoch, Some(from), 0);
        partition.live = false;
        self.re_hold(id);
    }

    /// The partition, if `from` is its last owner and speaks of its epoch.
    fn owned(&mut self, from: StreamId, id: PartitionId, epoch: u64) -> Option<&mut Partition> {
        let partition = self.topics[id.topic as usize].get_mut(id.number as usize)?;
        (partition.owner == Some(from) && partition.epoch == epoch).then_some(partition)
    }

    /// Whether a numbered frame is to be taken; it is acknowledged then.
    fn numbered(&mut self, from: StreamId, id: PartitionId, epoch: u64, seq: u64) -> bool {
        let Some(partition) = self.owned(from, id, epoch) else { return false };
        let want = partition.seq + 1;
        if seq != want {
            partition.owner = None;
            let reason = format!("{id:?}, epoch {epoch}: number {seq}, where {want} follows");
            self.actions.push(Action::Break(from, reason));
            return false;
        }
        partition.seq = seq;
        self.actions.push(Action::Ack(from, Ack { topic: id.topic.into(), partition: id.number, epoch, seq }));
        true
    }

    /// Asks the owner for every channel again: what is held from where it is, then what was asked for and not answered.
    fn re_hold(&mut self, id: PartitionId) {
        let partition = &mut self.topics[id.topic as usize][id.number as usize];
        let (epoch, Some(owner)) = (partition.epoch, partition.owner) else { return };
        partition.re_held = 0;
        // Of what is held from here on, only this owner, on this stream, says how far it is complete.
        let through = std::mem::take(&mut partition.through);
        for (name, channel) in &mut partition.channels {
            for hold in channel.re_hold(&mut self.last_hold, &partition.log, through) {
                self.actions.push(send_hold(owner, id, epoch, name, hold));
            }
            partition.re_held += usize::from(channel.is_re_held());
        }
        let done = HoldsDone { topic: id.topic.into(), partition: id.number, epoch };
        self.actions.push(Action::Send(owner, from_holder::Frame::HoldsDone(done)));
    }

    fn deliver(&mut self, id: PartitionId, items: Vec<Item>, through: u64) {
        let partition = &mut self.topics[id.topic as usize][id.number as usize];
        partition.live |= through > 0;
        let mut batches: Vec<(usize, Vec<Arc<Item>>)> = Vec::new();
        for item in items {
            let Some(channel) = partition.channels.get_mut(item.channel.as_str()) else { continue };
            if !channel.deliver(&item, &partition.log, partition.epoch, partition.live) {
                continue;
            }
            let item = Arc::new(item);
            for core in channel.holders() {
                match batches.iter_mut().find(|(to, _)| *to == core) {
                    Some((_, batch)) => batch.push(item.clone()),
                    None => batches.push((core, vec![item.clone()])),
                }
            }
        }
        if partition.re_held == 0 {
            partition.through = partition.through.max(through);
        }
        self.actions.extend(batches.into_iter().map(|(core, batch)| Action::Deliver(core, batch)));
    }

    fn held(&mut self, id: PartitionId, held: proto::cluster::Held) {
        let partition = &mut self.topics[id.topic as usize][id.number as usize];
        partition.live = true;
        let Some(channel) = partition.channels.get_mut(held.channel.as_str()) else { return };
        let was_re_held = channel.is_re_held();
        let told = channel.answer(held);
        partition.re_held -= usize::from(was_re_held && !channel.is_re_held());
        self.actions.extend(told.into_iter().map(|(core, held)| Action::Held(core, held)));
    }
}

/// The partition that a frame names; none, where a newer peer speaks of a topic that this program does not know.
fn named(topic: i32, number: u32) -> Option<PartitionId> {
    proto::topic::of(topic).map(|topic| PartitionId { topic, number })
}

fn send_hold(owner: StreamId, id: PartitionId, epoch: u64, channel: &str, hold: Hold) -> Action {
    let hold = Hold { topic: id.topic.into(), partition: id.number, epoch, channel: channel.to_owned(), ..hold };
    Action::Send(owner, from_holder::Frame::Hold(hold))
}

#[cfg(test)]
mod tests {
    use proto::cluster::{Deliver, Missed};

    use super::*;

    /// Four partitions: that of `room:1`.
    const P: u32 = 3;
    const ROOMS: i32 = Topic::Rooms as i32;

    fn frame(frame: from_owner::Frame) -> FromOwner {
        FromOwner { frame: Some(frame) }
    }

    fn own(epoch: u64) -> FromOwner {
        frame(from_owner::Frame::Own(Own { topic: ROOMS, partition: P, epoch, log: "log".into(), partitions: 4 }))
    }

    fn item(offset: u64) -> Item {
        Item { channel: "room:1".into(), offset, ordinal: offset / 10, message: "m".into(), ..Item::default() }
    }

    fn deliver(epoch: u64, seq: u64, offsets: &[u64], through: u64) -> FromOwner {
        let items = offsets.iter().copied().map(item).collect();
        frame(from_owner::Frame::Deliver(Deliver {
            topic: ROOMS,
            partition: P,
            epoch,
            seq,
            items,
            through,
            queued_us: 0,
        }))
    }

    fn held(epoch: u64, seq: u64, hold: u64, offset: u64, recent: &[u64]) -> FromOwner {
        frame(from_owner::Frame::Held(proto::cluster::Held {
            topic: ROOMS,
            partition: P,
            epoch,
            seq,
            hold,
            channel: "room:1".into(),
            log: "log".into(),
            offset,
            missed: Some(Missed { count: 1, exact: true, reasons: None }),
            recent: recent.iter().copied().map(item).collect(),
            before: None,
        }))
    }

    /// What is done, without acknowledgements.
    fn done(holder: &mut Holder) -> Vec<String> {
        let offsets = |items: &[Arc<Item>]| items.iter().map(|item| item.offset).collect::<Vec<_>>();
        let say = |action| {
            Some(match action {
                Action::Send(to, from_holder::Frame::Hold(hold)) => {
                    let Hold { hold, channel, log, offset, recent, ordinal, ordinal_epoch, .. } = hold;
                    format!(
                        "{to}: hold {hold} {channel} {log}/{offset} recent {recent} ordinal {ordinal}/{ordinal_epoch}"
                    )
                }
                Action::Send(to, from_holder::Frame::HoldsDone(done)) => format!("{to}: done {}", done.epoch),
                Action::Send(to, from_holder::Frame::Release(release)) => format!("{to}: release {}", release.channel),
                Action::Send(to, other) => format!("{to}: {other:?}"),
                Action::Ack(..) => return None,
                Action::Held(core, held) => {
                    assert_eq!(held.ticket, 7, "as it asked");
                    format!("core {core}: held {} {:?}", held.offset, offsets(&held.recent))
                }
                Action::Deliver(core, items) => format!("core {core}: {:?}", offsets(&items)),
                Action::Break(stream, _) => format!("{stream}: broken"),
            })
        };
        holder.actions().into_iter().filter_map(say).collect()
    }

    /// Core 0 has the channel up to offset 100, from stream 1 under epoch 50.
    fn holding() -> Holder {
        let mut holder = Holder::default();
        holder.frame(1, own(50));
        holder.hold(0, "room:1", 7);
        holder.frame(1, held(50, 1, 1, 100, &[90, 100]));
        holder.actions();
        holder
    }

    #[test]
    fn the_partition_of_the_tests_is_right() {
        assert_eq!(partition("room:1", 4), P);
    }

    #[test]
    fn a_hold_waits_for_an_owner() {
        let mut holder = Holder::default();
        holder.hold(0, "room:1", 7);
        holder.hold(1, "room:1", 7);
        holder.hold(2, "room:1", 7);
        holder.release(2, "room:1");
        assert_eq!(holder.sizes(), (2, 2));
        assert!(done(&mut holder).is_empty());
        holder.frame(1, own(50));
        let asked = "room:1 /0 recent 200 ordinal 0/0";
        let first = [format!("1: hold 1 {asked}"), format!("1: hold 2 {asked}"), "1: done 50".into()];
        assert_eq!(done(&mut holder), first);
        // It was not answered before its owner went: the next one is asked.
        holder.detached(1);
        holder.frame(2, own(60));
        let second = [format!("2: hold 3 {asked}"), format!("2: hold 4 {asked}"), "2: done 60".into()];
        assert_eq!(done(&mut holder), second);
        holder.frame(2, held(60, 1, 1, 100, &[]));
        assert!(done(&mut holder).is_empty(), "an answer to what the last owner was asked");
        holder.frame(2, held(60, 2, 4, 100, &[90]));
        assert_eq!(done(&mut holder), ["core 1: held 100 [90]"]);
        assert_eq!(holder.sizes(), (1, 1));
    }

    #[test]
    fn partitions_with_channels_and_without_an_owner_are_known() {
        let mut holder = Holder::default();
        assert_eq!(holder.unowned(), 0);
        holder.hold(0, "room:1", 1);
        assert_eq!(holder.unowned(), 1, "no job has ever come");
        let mut holder = holding();
        assert_eq!(holder.unowned(), 0);
        holder.detached(1);
        assert_eq!(holder.unowned(), 1);
        holder.release(0, "room:1");
        assert_eq!(holder.unowned(), 0, "nobody here misses it");
    }

    #[test]
    fn only_the_core_that_asked_is_answered() {
        let mut holder = holding();
        holder.hold(1, "room:1", 7);
        assert_eq!(done(&mut holder).len(), 1);
        holder.frame(1, deliver(50, 2, &[110], 0));
        assert_eq!(done(&mut holder), ["core 0: [110]"]);
        holder.frame(1, held(50, 3, 2, 110, &[100, 110]));
        holder.frame(1, deliver(50, 4, &[120, 130], 130));
        assert_eq!(done(&mut holder), ["core 1: held 110 [100, 110]", "core 0: [120, 130]", "core 1: [120, 130]"]);
        // What comes twice goes out once.
        holder.frame(1, deliver(50, 5, &[130, 140], 0));
        assert_eq!(done(&mut holder), ["core 0: [140]", "core 1: [140]"]);
        holder.release(0, "room:1");
        assert!(done(&mut holder).is_empty());
        holder.release(1, "room:1");
        assert_eq!(done(&mut holder), ["1: release room:1"]);
        holder.frame(1, deliver(50, 6, &[150], 0));
        assert!(done(&mut holder).is_empty());
    }

    #[test]
    fn a_new_owner_is_told_what_is_held_and_answers_every_core() {
        let mut holder = holding();
        holder.hold(1, "room:1", 7);
        holder.frame(1, held(50, 2, 2, 100, &[]));
        holder.frame(1, deliver(50, 3, &[110], 0));
        // Quiet since, but complete.
        holder.frame(1, deliver(50, 4, &[], 115));
        holder.hold(2, "room:1", 7);
        done(&mut holder);

        holder.frame(2, own(60));
        assert_eq!(
            done(&mut holder),
            [
                "2: hold 4 room:1 log/115 recent 0 ordinal 11/50",
                "2: hold 5 room:1 /0 recent 200 ordinal 0/0",
                "2: done 60"
            ]
        );
        // What the old one had not delivered comes before the answer; what asked waits for its own.
        holder.frame(2, deliver(60, 1, &[120], 0));
        holder.frame(2, held(60, 2, 4, 120, &[]));
        holder.frame(2, held(60, 3, 5, 120, &[110, 120]));
        holder.frame(2, deliver(60, 4, &[130], 0));
        assert_eq!(
            done(&mut holder),
            [
                "core 0: [120]",
                "core 1: [120]",
                "core 0: held 120 []",
                "core 1: held 120 []",
                "core 2: held 120 [110, 120]",
                "core 0: [130]",
                "core 1: [130]",
                "core 2: [130]"
            ]
        );
    }

    #[test]
    fn a_core_is_told_a_number_once() {
        let mut holder = holding();
        holder.hold(1, "room:1", 7);
        let tell = |holder: &mut Holder, channel, sessions, taken: fn(usize) -> bool| {
            let mut told = Vec::new();
            holder.online(channel, sessions, |core| {
                told.push(core);
                taken(core)
            });
            told
        };
        // Core 1 has no room: it is told the next time.
        assert_eq!(tell(&mut holder, "room:1", 5, |core| core == 0), [0, 1]);
        assert_eq!(tell(&mut holder, "room:1", 5, |_| true), [1]);
        assert!(tell(&mut holder, "room:1", 5, |_| true).is_empty());
        assert_eq!(tell(&mut holder, "room:1", 0, |_| true), [0, 1]);
        // Who has left it and comes again knows nothing.
        holder.release(1, "room:1");
        holder.hold(1, "room:1", 7);
        assert_eq!(tell(&mut holder, "room:1", 0, |_| true), [1]);
        assert!(tell(&mut holder, "room:none", 3, |_| true).is_empty());
        assert_eq!(holder.channels().map(|name| &**name).collect::<Vec<_>>(), ["room:1"]);
    }

    #[test]
    fn frames_of_a_lower_epoch_are_ignored() {
        let mut holder = holding();
        holder.frame(2, own(60));
        holder.frame(2, held(60, 1, 2, 100, &[]));
        done(&mut holder);
        // A paused owner wakes up and goes on.
        holder.frame(1, deliver(50, 2, &[110], 0));
        holder.frame(1, frame(from_owner::Frame::Reset(Reset { topic: ROOMS, partition: P, epoch: 50 })));
        holder.frame(1, frame(from_owner::Frame::Disown(Disown { topic: ROOMS, partition: P, epoch: 50 })));
        holder.frame(1, own(50));
        holder.detached(1);
        assert!(done(&mut holder).is_empty());
        holder.frame(2, deliver(60, 2, &[110], 0));
        assert_eq!(done(&mut holder), ["core 0: [110]"]);
    }

    #[test]
    fn after_a_reset_everything_is_re_held() {
        let mut holder = holding();
        holder.frame(1, deliver(50, 2, &[110], 0));
        done(&mut holder);
        holder.frame(1, frame(from_owner::Frame::Reset(Reset { topic: ROOMS, partition: P, epoch: 50 })));
        assert_eq!(done(&mut holder), ["1: hold 2 room:1 log/110 recent 0 ordinal 11/50", "1: done 50"]);
        holder.frame(1, held(50, 1, 2, 200, &[190, 200]));
        assert_eq!(done(&mut holder), ["core 0: held 200 [190, 200]"]);
    }

    #[test]
    fn a_live_owner_delivers_nothing_of_what_is_re_held() {
        let mut holder = holding();
        // Asked before the reset, seen by the owner after it: from there on it delivers.
        holder.hold(1, "room:1", 7);
        holder.frame(1, frame(from_owner::Frame::Reset(Reset { topic: ROOMS, partition: P, epoch: 50 })));
        done(&mut holder);
        holder.frame(1, held(50, 1, 2, 120, &[110, 120]));
        holder.frame(1, deliver(50, 2, &[130], 130));
        assert!(done(&mut holder).is_empty());
        // Nor does it count as complete.
        holder.frame(1, frame(from_owner::Frame::Reset(Reset { topic: ROOMS, partition: P, epoch: 50 })));
        assert!(done(&mut holder)[0].contains("log/100"));
        holder.frame(1, held(50, 1, 5, 130, &[110, 120, 130]));
        holder.frame(1, held(50, 2, 6, 130, &[100, 110, 120, 130]));
        assert_eq!(done(&mut holder), ["core 0: held 130 [110, 120, 130]", "core 1: held 130 [100, 110, 120, 130]"]);
    }

    #[test]
    fn a_missing_number_ends_the_stream() {
        let mut holder = holding();
        holder.frame(1, deliver(50, 3, &[120], 0));
        assert_eq!(done(&mut holder), ["1: broken"]);
        holder.frame(1, deliver(50, 4, &[130], 0));
        assert!(done(&mut holder).is_empty());
        // It dials again, under the same epoch: nothing is lost.
        holder.frame(2, own(50));
        assert_eq!(done(&mut holder), ["2: hold 2 room:1 log/100 recent 0 ordinal 10/50", "2: done 50"]);
        holder.frame(2, held(50, 1, 2, 130, &[110, 120, 130]));
        assert_eq!(done(&mut holder), ["core 0: held 130 [110, 120, 130]"]);
    }

    #[test]
    fn what_was_delivered_is_acknowledged() {
        let mut holder = holding();
        holder.frame(1, deliver(50, 2, &[110], 0));
        let acked = holder.actions().into_iter().any(|action| matches!(action, Action::Ack(1, ack) if ack.seq == 2));
        assert!(acked);
    }

    #[test]
    fn an_owner_that_counts_other_partitions_is_refused() {
        let mut holder = holding();
        let other = Own { topic: ROOMS, partition: P, epoch: 70, log: "log".into(), partitions: 8 };
        holder.frame(2, frame(from_owner::Frame::Own(other)));
        assert_eq!(done(&mut holder), ["2: broken"]);
        holder.frame(1, deliver(50, 2, &[110], 0));
        assert_eq!(done(&mut holder), ["core 0: [110]"]);
    }

    #[test]
    fn partitions_of_two_topics_are_two_and_an_older_owner_s_are_rooms() {
        let mut holder = holding();
        // Another topic's partition of the same number, and a topic that is not known here.
        let of = |topic| Own { topic, partition: P, epoch: 90, log: "other".into(), partitions: 8 };
        holder.frame(2, frame(from_owner::Frame::Own(of(Topic::Conversations.into()))));
        assert_eq!(done(&mut holder), ["2: done 90"]);
        holder.frame(2, frame(from_owner::Frame::Own(of(99))));
        let reset = |topic| frame(from_owner::Frame::Reset(Reset { topic, partition: P, epoch: 90 }));
        holder.frame(2, reset(99));
        assert!(done(&mut holder).is_empty());
        holder.frame(2, reset(Topic::Conversations.into()));
        assert_eq!(done(&mut holder), ["2: done 90"]);
        holder.frame(1, deliver(50, 2, &[110], 0));
        assert_eq!(done(&mut holder), ["core 0: [110]"]);
        // An owner of before the topics were named.
        holder.frame(3, frame(from_owner::Frame::Own(Own { topic: 0, epoch: 95, partitions: 4, ..of(0) })));
        assert_eq!(done(&mut holder)[0], "3: hold 2 room:1 log/110 recent 0 ordinal 11/50");
    }
}
