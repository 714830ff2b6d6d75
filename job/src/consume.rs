//! The rooms' topic: the one task that owns this job's partitions. It carries events of the bus and of the streams to
//! the [`Owner`]s, and does what they ask.
//!
//! ```text
//!   bus ─Assigned─▶ publish a claim ─its offset─▶ Owner::new ─▶ records, holds, ticks ─▶ actions ─▶ outboxes, commits
//!       ─Revoked─▶ disown
//! ```
//!
//! Invariants: nothing in it waits for a connector, a routes table or a dead letter, so that one partition's trouble is
//! not another's; an offset is committed when everything up to it was handed to the outboxes and its dead letters are
//! durable; nothing is committed for a partition that was revoked or lost.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{Bus, Consumer, Offset, Topic};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use prost::Message as _;
use proto::cluster::from_holder::Frame;
use proto::record;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::clock::{unix_ms, unix_us};
use crate::fleet::Fleet;
use crate::link::Event;
use crate::owner::{Action, Owner, Terms};
use crate::ready::Ready;

/// As frames between job and connectors name it.
const TOPIC: proto::cluster::Topic = proto::cluster::Topic::Rooms;
/// The group that shares the partitions out.
pub(crate) const GROUP: &str = "job";
const TICK: Duration = Duration::from_millis(100);
/// How often the end of each partition is asked for, for the lag.
const LAG_EVERY: u32 = 50;
/// Before the bus is asked again after a passing fault, and before a claim or a dead letter is published again.
const RETRY: Duration = Duration::from_millis(300);
/// A partition that another claimed though the group still says that it is ours is claimed again after this: the other
/// was slower to learn that it had lost it.
const RECLAIM: Duration = Duration::from_secs(1);
/// On a graceful end the streams have this long to take what was handed to them.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(2);

/// A partition that is assigned.
struct Part {
    /// Tells claims of an earlier assignment apart.
    turn: u64,
    /// None while it is claimed.
    owner: Option<Owner>,
    committed: Offset,
    /// Dead letters that are not durable yet.
    letters: BTreeSet<Offset>,
    /// Takes back the claim that is under way when the part goes or claims anew: one that was published after the
    /// partition was revoked would take it from its next owner.
    claiming: Option<DropGuard>,
}

/// Something that was waited for beside the loop.
enum Done {
    /// The checkpoint could not be read before.
    Waited {
        partition: u32,
        turn: u64,
    },
    Claimed {
        partition: u32,
        turn: u64,
        epoch: Offset,
    },
    Lettered {
        partition: u32,
        turn: u64,
        offset: Offset,
    },
    /// `None`: they are not known now.
    Ends(Option<Vec<(u32, Offset)>>),
    /// A claim that nobody waits for any more was not published, or not waited for.
    TakenBack,
}

pub(crate) struct Rooms {
    bus: Arc<dyn Bus>,
    consumer: Box<dyn Consumer>,
    terms: Arc<Terms>,
    fleet: Fleet,
    events: mpsc::Receiver<Event>,
    ready: Ready,
    parts: HashMap<u32, Part>,
    attached: HashMap<u64, crate::link::Attachment>,
    turns: u64,
    ticks: u32,
    /// The bus was asked for the partitions' ends and has not answered: a slow one is not asked more and more.
    asking_ends: bool,
    waiting: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Rooms {
    pub(crate) fn new(
        bus: Arc<dyn Bus>,
        consumer: Box<dyn Consumer>,
        terms: Arc<Terms>,
        fleet: Fleet,
        events: mpsc::Receiver<Event>,
        ready: Ready,
    ) -> Self {
        let (parts, attached, waiting) = (HashMap::new(), HashMap::new(), FuturesUnordered::new());
        Self {
            bus,
            consumer,
            terms,
            fleet,
            events,
            ready,
            parts,
            attached,
            turns: 0,
            ticks: 0,
            asking_ends: false,
            waiting,
        }
    }

    /// Runs until `stop`, then gives everything up in order.
    ///
    /// # Errors
    /// What the bus refuses for good.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), bus::Error> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.consumer.next() => match event {
                    Ok(event) => self.bus_event(event).await,
                    Err(bus::Error::Refused(why)) => {
                        self.end().await;
                        return Err(bus::Error::Refused(why));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "room messages cannot be read now");
                        tokio::time::sleep(RETRY).await;
                    }
                },
                Some(event) = self.events.recv() => self.link_event(event),
                Some(done) = self.waiting.next() => self.done(done).await,
                _ = tick.tick() => self.tick(),
            }
        }
        self.end().await;
        Ok(())
    }

    async fn bus_event(&mut self, event: bus::Event) {
        match event {
            bus::Event::Assigned(partition) => {
                self.turns += 1;
                let part =
                    Part { turn: self.turns, owner: None, committed: 0, letters: BTreeSet::new(), claiming: None };
                self.parts.insert(partition, part);
                self.begin(partition, self.turns).await;
            }
            bus::Event::Revoked(partition) => {
                if let Some(mut part) = self.parts.remove(&partition)
                    && let Some(owner) = &mut part.owner
                {
                    owner.disown();
                    let (epoch, actions) = (owner.epoch(), owner.actions());
                    self.act(partition, epoch, actions);
                    tracing::debug!(partition, epoch, "gave a partition up");
                }
            }
            bus::Event::Records(partition, records) => {
                let Some(part) = self.parts.get_mut(&partition) else { return };
                let Some(owner) = &mut part.owner else { return };
                let (read, read_us) = (Instant::now(), unix_us());
                owner.records(read_us / 1000, &records);
                for handed_us in owner.take_handed() {
                    self.terms.metrics.bus.observe((read_us - handed_us).max(0) as f64 / 1e6);
                }
                self.settle(partition);
                self.terms.metrics.handling.observe(read.elapsed().as_secs_f64());
                self.commit(partition);
            }
        }
        self.tell_ready();
    }

    /// Reads where the last owner was, and claims.
    async fn begin(&mut self, partition: u32, turn: u64) {
        let Some(part) = self.parts.get_mut(&partition).filter(|part| part.turn == turn) else { return };
        match self.consumer.committed(partition).await {
            Ok(committed) => {
                part.committed = committed;
                self.claim(partition, turn, Duration::ZERO);
            }
            Err(error) => {
                tracing::warn!(partition, %error, "a checkpoint cannot be read now");
                self.waiting.push(Box::pin(async move {
                    tokio::time::sleep(RETRY).await;
                    Done::Waited { partition, turn }
                }));
            }
        }
    }

    fn link_event(&mut self, event: Event) {
        match event {
            Event::Attached(holder) => {
                let Some((attachment, _)) = self.fleet.all().into_iter().find(|(found, _)| found.holder == holder)
                else {
                    return;
                };
                self.attached.insert(holder, attachment);
                self.each(|owner, _| owner.attached(holder));
            }
            Event::Detached(holder) => {
                self.attached.remove(&holder);
                self.each(|owner, now_ms| owner.detached(holder, now_ms));
            }
            Event::Frame(from, Frame::Hold(hold)) if is_rooms(hold.topic) => {
                self.one(hold.partition, |owner, _| owner.hold(from, hold));
            }
            Event::Frame(from, Frame::HoldsDone(done)) if is_rooms(done.topic) => {
                self.one(done.partition, |owner, now_ms| owner.holds_done(from, done.epoch, now_ms));
            }
            Event::Frame(from, Frame::Release(release)) if is_rooms(release.topic) => {
                self.one(release.partition, |owner, _| owner.release(from, &release.channel));
            }
            // Of another topic; or the link takes it itself.
            Event::Frame(..) => {}
        }
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Waited { partition, turn } => self.begin(partition, turn).await,
            Done::Claimed { partition, turn, epoch } => {
                let Some(part) = self.parts.get_mut(&partition).filter(|part| part.turn == turn) else { return };
                let attached = self.attached.keys().copied();
                let owner = Owner::new(self.terms.clone(), partition, epoch, part.committed, attached, unix_ms());
                part.owner = Some(owner);
                self.terms.metrics.claims.inc();
                tracing::debug!(partition, epoch, "claimed a partition");
                self.one(partition, |_, _| {});
            }
            Done::Lettered { partition, turn, offset } => {
                self.terms.metrics.dead_letters_waiting.dec();
                if let Some(part) = self.parts.get_mut(&partition).filter(|part| part.turn == turn) {
                    part.letters.remove(&offset);
                    self.commit(partition);
                }
            }
            Done::TakenBack => {}
            Done::Ends(ends) => {
                self.asking_ends = false;
                let behind = |(partition, next): (u32, Offset)| {
                    let owner = self.parts.get(&partition)?.owner.as_ref()?;
                    Some(next.saturating_sub(1 + owner.progress()))
                };
                if let Some(ends) = ends {
                    self.terms.metrics.lag.set(ends.into_iter().filter_map(behind).sum::<u64>() as i64);
                }
            }
        }
        self.tell_ready();
    }

    fn tick(&mut self) {
        self.each(|owner, now_ms| owner.tick(now_ms));
        self.tell_ready();
        let owners = || self.parts.values().filter_map(|part| part.owner.as_ref());
        let metrics = &self.terms.metrics;
        metrics.partitions.set(owners().count() as i64);
        metrics.paused.set(owners().filter(|owner| owner.is_paused()).count() as i64);
        metrics.rooms.set(owners().map(Owner::rooms).sum::<usize>() as i64);
        metrics.recent_bytes.set(self.terms.recent.used() as i64);
        let queued = self.attached.values().map(|attachment| attachment.outbox.with(|outbox| outbox.bytes()));
        metrics.queued_bytes.set(queued.sum::<usize>() as i64);
        self.ticks += 1;
        if self.ticks.is_multiple_of(LAG_EVERY) && !self.asking_ends {
            self.asking_ends = true;
            let (bus, partitions) = (self.bus.clone(), self.parts.keys().copied().collect::<Vec<_>>());
            self.waiting.push(Box::pin(async move {
                let ends = bus.ends(Topic::Rooms, &partitions).await;
                Done::Ends(ends.map(|ends| partitions.into_iter().zip(ends).collect()).ok())
            }));
        }
    }

    /// Every partition that is assigned is read up to its claim, or paused.
    fn tell_ready(&self) {
        let taken = |part: &Part| part.owner.as_ref().is_some_and(|owner| owner.is_live() || owner.is_paused());
        self.ready.rooms(self.parts.values().filter(|part| !taken(part)).count());
    }

    fn each(&mut self, mut say: impl FnMut(&mut Owner, i64)) {
        for partition in self.parts.keys().copied().collect::<Vec<_>>() {
            self.one(partition, &mut say);
        }
    }

    fn one(&mut self, partition: u32, say: impl FnOnce(&mut Owner, i64)) {
        let Some(owner) = self.parts.get_mut(&partition).and_then(|part| part.owner.as_mut()) else { return };
        say(owner, unix_ms());
        self.settle(partition);
    }

    /// Does what the owner asks, then has it answer what holds the queues have room for.
    fn settle(&mut self, partition: u32) {
        let Some(owner) = self.parts.get_mut(&partition).and_then(|part| part.owner.as_mut()) else { return };
        let (epoch, actions) = (owner.epoch(), owner.actions());
        self.act(partition, epoch, actions);
        let Some(owner) = self.parts.get_mut(&partition).and_then(|part| part.owner.as_mut()) else { return };
        owner.answer_holds(|to| self.attached.get(&to).map_or(0, |it| it.outbox.with(|outbox| outbox.room())));
        let (epoch, actions) = (owner.epoch(), owner.actions());
        self.act(partition, epoch, actions);
    }

    fn act(&mut self, partition: u32, epoch: u64, actions: Vec<Action>) {
        let mut fed = BTreeSet::new();
        let mut over = BTreeSet::new();
        let now_us = unix_us() as u64;
        for action in actions {
            match action {
                Action::Send(to, out) => {
                    // What follows an overflow in the same breath was meant for a holder that holds anew.
                    let Some(attachment) = self.attached.get(&to).filter(|_| !over.contains(&to)) else { continue };
                    fed.insert(to);
                    if attachment.outbox.with(|outbox| outbox.push(now_us, (TOPIC, partition), epoch, out)).is_err() {
                        tracing::warn!(partition, connector = to, "a connector is too slow: its queue was dropped");
                        over.insert(to);
                    }
                }
                Action::Read(from) => {
                    self.consumer.start(partition, from);
                    // The owner before this one may have lost it, and stopped it. After the start, so that nothing is
                    // read from where that one was.
                    self.consumer.pause(partition, false);
                }
                Action::Letter { offset, reason, record } => self.letter(partition, offset, &reason, &record),
                Action::Pause(offset) => {
                    tracing::error!(partition, offset, "a record is newer than this program: paused until an upgrade");
                    self.consumer.pause(partition, true);
                }
                Action::Lost => {
                    tracing::warn!(partition, epoch, "another job claimed a partition of ours");
                    self.consumer.pause(partition, true);
                    self.lose(partition);
                }
            }
        }
        if let Some(owner) = self.parts.get_mut(&partition).and_then(|part| part.owner.as_mut()) {
            // Asks for nothing: only forgets.
            over.into_iter().for_each(|holder| owner.overflowed(holder));
        }
        for holder in fed {
            if let Some(attachment) = self.attached.get(&holder) {
                attachment.outbox.with(|outbox| outbox.wake());
            }
        }
    }

    /// The owner stops; the partition is claimed anew if it stays assigned.
    fn lose(&mut self, partition: u32) {
        self.turns += 1;
        let Some(part) = self.parts.get_mut(&partition) else { return };
        part.turn = self.turns;
        part.letters.clear();
        let Some(mut owner) = part.owner.take() else { return };
        part.committed = part.committed.max(owner.progress());
        owner.disown();
        let (epoch, actions) = (owner.epoch(), owner.actions());
        self.act(partition, epoch, actions);
        self.claim(partition, self.turns, RECLAIM);
    }

    fn claim(&mut self, partition: u32, turn: u64, after: Duration) {
        let claim = record::Record {
            min_reader: 1,
            log: self.terms.log.to_string(),
            time_ms: unix_ms(),
            body: Some(record::record::Body::Claim(record::Claim { owner: self.terms.owner.clone() })),
            ..record::Record::default()
        };
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let taken_back = CancellationToken::new();
        part.claiming = Some(taken_back.clone().drop_guard());
        let (bus, value) = (self.bus.clone(), Bytes::from(claim.encode_to_vec()));
        self.waiting.push(Box::pin(async move {
            let claimed = async {
                tokio::time::sleep(after).await;
                publish(&*bus, Topic::Rooms, partition, value).await
            };
            tokio::select! {
                // First: whoever took it back runs in the same task, so nothing is published afterwards.
                biased;
                () = taken_back.cancelled() => Done::TakenBack,
                epoch = claimed => Done::Claimed { partition, turn, epoch },
            }
        }));
    }

    fn letter(&mut self, partition: u32, offset: Offset, reason: &str, record: &Bytes) {
        tracing::error!(partition, offset, reason, "a record cannot be read: put aside as a dead letter");
        let Some(part) = self.parts.get_mut(&partition) else { return };
        part.letters.insert(offset);
        let turn = part.turn;
        self.terms.metrics.dead_letters.inc();
        self.terms.metrics.dead_letters_waiting.inc();
        let value = dead_letter(Topic::Rooms, partition, offset, &self.terms.log, reason, record);
        let bus = self.bus.clone();
        self.waiting.push(Box::pin(async move {
            publish(&*bus, Topic::DeadLetters, 0, value).await;
            Done::Lettered { partition, turn, offset }
        }));
    }

    fn commit(&mut self, partition: u32) {
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let Some(owner) = part.owner.as_ref().filter(|owner| owner.is_live() || owner.is_paused()) else { return };
        let done = part.letters.first().map_or(owner.progress(), |&first| first - 1);
        if done > part.committed {
            part.committed = done;
            self.consumer.commit(partition, done);
        }
    }

    /// Gives every partition up, lets the streams take what was handed to them, and leaves the group.
    async fn end(mut self) {
        self.each(|owner, _| owner.disown());
        let drained = async {
            let mut look = tokio::time::interval(Duration::from_millis(10));
            while self.attached.values().any(|attachment| attachment.outbox.with(|outbox| !outbox.is_empty())) {
                look.tick().await;
                while let Ok(event) = self.events.try_recv() {
                    if let Event::Detached(holder) = event {
                        self.attached.remove(&holder);
                    }
                }
            }
        };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            tracing::warn!("a connector did not take the last of its messages: it asks the next owner for them");
        }
        self.events.close();
        for (attachment, _) in self.fleet.all() {
            attachment.outbox.with(|outbox| outbox.close());
        }
        self.consumer.leave().await;
    }
}

fn is_rooms(topic: i32) -> bool {
    proto::topic::of(topic) == Some(TOPIC)
}

/// Publishes until the bus has it. A repetition is harmless: the last claim counts, a dead letter names its place.
pub(crate) async fn publish(bus: &dyn Bus, topic: Topic, partition: u32, value: Bytes) -> Offset {
    loop {
        match bus.publish(topic, partition, value.clone()).await {
            Ok(offset) => return offset,
            Err(error) => tracing::warn!(?topic, partition, %error, "cannot be published now"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The record of a dead letter, the unreadable one cut where it would make this one too large.
pub(crate) fn dead_letter(
    topic: Topic,
    partition: u32,
    offset: Offset,
    log: &str,
    reason: &str,
    record: &Bytes,
) -> Bytes {
    /// For the other fields: a topic's name, a log ID, a reason.
    const REST_BYTES: usize = 4096;
    let reason: String = reason.chars().take(500).collect();
    let whole = record.len() <= bus::RECORD_BYTES_MAX - REST_BYTES;
    let letter = record::DeadLetter {
        topic: topic.name().to_owned(),
        partition,
        offset,
        log: log.to_owned(),
        reason: if whole { reason } else { format!("{reason} (cut from {} bytes)", record.len()) },
        record: record.slice(..record.len().min(bus::RECORD_BYTES_MAX - REST_BYTES)),
    };
    letter.encode_to_vec().into()
}
