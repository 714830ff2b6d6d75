//! The one task that owns this job's partitions of a topic. It carries events of the bus and of the streams to the
//! [`Owner`]s, and does what they ask.
//!
//! ```text
//!   bus ─Assigned─▶ publish a claim ─its offset─▶ Owner::new ─▶ records, holds, ticks ─▶ actions ─▶ outboxes, commits
//!       ─Revoked─▶ disown
//! ```
//!
//! Invariants:
//! - The task waits for no connector, for no answer of Routes and for no dead letter. One partition's trouble is therefore
//!   not another's.
//! - An offset is committed when everything up to it was handed to the outboxes (of a topic without claims: to the stage),
//!   and its dead letters are durable.
//! - Nothing is committed for a partition that was revoked or lost.

mod pushing;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{Bus, Offset};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use prost::Message as _;
use proto::cluster::from_holder::Frame;
use proto::cluster::from_owner::Frame as ToConnector;
use proto::cluster::{CommandOut, command_out};
use proto::record;
use routes::Routes;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::dead_letter::{self, publish};
use super::{Action, LookedUp, Measures, Owner, OwnerConfig, Stage, StreamId, Takeover};
use crate::clock::{unix_ms, unix_us};
use crate::fleet::Fleet;
use crate::link::{Attachment, Event};
use crate::ready::Ready;

/// The group that shares the partitions out.
pub(crate) const GROUP: &str = "job";
const TICK: Duration = Duration::from_millis(100);
/// How often the end of each partition is asked for, for the lag.
const LAG_EVERY: u32 = 50;
/// Before the bus or Routes are asked again after a passing fault.
const RETRY: Duration = Duration::from_millis(300);
/// A partition that another claimed though the group still says that it is ours is claimed again after this: the other
/// was slower to learn that it had lost it.
const RECLAIM: Duration = Duration::from_secs(1);
/// On a graceful end the streams have this long to take what was handed to them.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Longest wait for an answer of Routes; they give up earlier by themselves.
const LOOK_UP_MAX: Duration = Duration::from_secs(3);

/// A partition that is assigned.
struct Part<S> {
    /// Tells claims of an earlier assignment apart.
    turn: u64,
    assigned_ms: i64,
    /// None while it is claimed.
    owner: Option<Owner<S>>,
    committed: Offset,
    /// Dead letters that are not durable yet.
    dead_letters: BTreeSet<Offset>,
    /// Its stage took no more.
    full: bool,
    /// Taken over from a job that has fallen silent; the group has not decided.
    adopted: bool,
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
    PutAside {
        partition: u32,
        turn: u64,
        offset: Offset,
    },
    LookedUp {
        partition: u32,
        turn: u64,
        found: Option<LookedUp>,
    },
    /// A checkpoint is durable: what waited for it may be done. `false`: it is not.
    Committed {
        partition: u32,
        turn: u64,
        through: Offset,
        actions: Vec<Action>,
        durable: bool,
    },
    /// `None`: they are not known now.
    Ends(Option<Vec<(u32, Offset)>>),
    /// A claim that nobody waits for any more was not published, or not waited for.
    TakenBack,
}

/// See the module's opening.
pub(crate) struct Consumer<S: Stage> {
    bus: Arc<dyn Bus>,
    routes: Arc<dyn Routes>,
    consumer: Box<dyn bus::Consumer>,
    config: Arc<OwnerConfig>,
    stage: Arc<S::Config>,
    fleet: Fleet,
    events: mpsc::Receiver<Event>,
    ready: Ready,
    parts: HashMap<u32, Part<S>>,
    attached: HashMap<StreamId, Attachment>,
    turns: u64,
    ticks: u32,
    /// The bus was asked for the partitions' ends and has not answered: a slow one is not asked more and more.
    asking_ends: bool,
    lag: Option<u64>,
    /// Checkpoints that were asked for and not answered, before something is handed over.
    handing_over: usize,
    /// Nothing more is begun.
    ending: bool,
    waiting: FuturesUnordered<BoxFuture<'static, Done>>,
}

/// What the consumers of all topics share.
#[derive(Clone)]
pub(crate) struct Seams {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) routes: Arc<dyn Routes>,
    pub(crate) fleet: Fleet,
    pub(crate) ready: Ready,
}

impl<S: Stage> Consumer<S> {
    pub(crate) fn new(
        seams: Seams,
        consumer: Box<dyn bus::Consumer>,
        config: Arc<OwnerConfig>,
        stage: Arc<S::Config>,
        events: mpsc::Receiver<Event>,
    ) -> Self {
        let Seams { bus, routes, fleet, ready } = seams;
        Self {
            bus,
            routes,
            consumer,
            config,
            stage,
            fleet,
            events,
            ready,
            parts: HashMap::new(),
            attached: HashMap::new(),
            turns: 0,
            ticks: 0,
            asking_ends: false,
            lag: None,
            handing_over: 0,
            ending: false,
            waiting: FuturesUnordered::new(),
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
                        tracing::warn!(topic = ?S::BUS_TOPIC, %error, "records cannot be read now");
                        tokio::time::sleep(RETRY).await;
                    }
                },
                Some(event) = self.events.recv() => match event {
                    Event::Orphaned(partitions) => self.adopt(partitions).await,
                    event => self.link_event(event),
                },
                Some(done) = self.waiting.next() => self.done(done).await,
                _ = tick.tick() => self.tick(),
            }
        }
        self.end().await;
        Ok(())
    }

    async fn bus_event(&mut self, event: bus::Event) {
        match event {
            bus::Event::Assigned(partition) => match self.parts.get_mut(&partition).filter(|part| part.adopted) {
                Some(part) => part.adopted = false,
                None => self.take(partition, false).await,
            },
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
                owner.records(read_us, &records);
                self.settle(partition);
                if S::CLAIMS {
                    self.config.metrics.handling.observe(read.elapsed().as_secs_f64());
                }
                self.commit(partition);
            }
        }
        self.tell_ready();
    }

    /// A partition is this job's to claim.
    async fn take(&mut self, partition: u32, adopted: bool) {
        self.turns += 1;
        let part = Part {
            turn: self.turns,
            assigned_ms: unix_ms(),
            owner: None,
            committed: 0,
            dead_letters: BTreeSet::new(),
            full: false,
            adopted,
            claiming: None,
        };
        self.parts.insert(partition, part);
        self.begin(partition, self.turns).await;
    }

    /// Reads where the last owner was, and claims.
    async fn begin(&mut self, partition: u32, turn: u64) {
        let Some(part) = self.parts.get_mut(&partition).filter(|part| part.turn == turn) else { return };
        match self.consumer.committed(partition).await {
            Ok(committed) => {
                part.committed = committed;
                match S::CLAIMS {
                    true => self.claim(partition, turn, Duration::ZERO),
                    false => self.own(partition, turn, 0),
                }
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

    /// Takes partitions over whose owner has fallen silent, before the group knows.
    async fn adopt(&mut self, partitions: Vec<u32>) {
        let mut adopted = partitions;
        adopted.retain(|partition| !self.parts.contains_key(partition) && self.consumer.adopt(*partition));
        tracing::debug!(?adopted, "adopts partitions");
        for partition in adopted {
            self.take(partition, true).await;
        }
    }

    fn link_event(&mut self, event: Event) {
        match event {
            Event::Attached(stream) => {
                let Some((attachment, _)) = self.fleet.all().into_iter().find(|(found, _)| found.stream == stream)
                else {
                    return;
                };
                self.attached.insert(stream, attachment);
                self.each(|owner, _| owner.attached(stream));
            }
            Event::Detached(stream) => {
                self.attached.remove(&stream);
                self.each(|owner, now_ms| owner.detached(stream, now_ms));
            }
            Event::Frame(from, Frame::Hold(hold)) => self.one(hold.partition, |owner, _| owner.hold(from, hold)),
            Event::Frame(from, Frame::HoldsDone(done)) => {
                self.one(done.partition, |owner, now_ms| owner.holds_done(from, done.epoch, now_ms));
            }
            Event::Frame(from, Frame::Release(release)) => {
                self.one(release.partition, |owner, _| owner.release(from, &release.channel));
            }
            // Adopted by the loop; the link takes the others itself.
            Event::Orphaned(_) | Event::Frame(_, Frame::Acks(_) | Frame::Hello(_)) => {}
        }
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Waited { partition, turn } => self.begin(partition, turn).await,
            Done::Claimed { partition, turn, epoch } => {
                self.config.metrics.claims.inc();
                tracing::debug!(partition, epoch, "claimed a partition");
                self.own(partition, turn, epoch);
            }
            Done::PutAside { partition, turn, offset } => {
                self.config.metrics.dead_letters_waiting.dec();
                if let Some(part) = self.parts.get_mut(&partition).filter(|part| part.turn == turn) {
                    part.dead_letters.remove(&offset);
                    self.commit(partition);
                }
            }
            Done::LookedUp { partition, turn, found } => {
                if self.parts.get(&partition).is_some_and(|part| part.turn == turn) {
                    self.one(partition, |owner, now_ms| owner.looked_up(now_ms, found));
                }
            }
            Done::Committed { partition, turn, through, actions, durable: true } => {
                self.handing_over -= 1;
                // Also where the partition has gone since: the brokers took the checkpoint while it was this job's, so
                // that nobody else does these.
                self.act(partition, 0, actions);
                if let Some(part) = self.parts.get_mut(&partition).filter(|part| part.turn == turn) {
                    part.committed = part.committed.max(through);
                    self.one(partition, |owner, _| owner.handed_over());
                    tracing::trace!(partition, through, "handed over");
                }
            }
            Done::Committed { partition, turn, through, actions, durable: false } => {
                self.handing_over -= 1;
                if self.parts.get(&partition).is_some_and(|part| part.turn == turn) {
                    self.hand_over(partition, through, actions);
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
                    self.lag = Some(ends.into_iter().filter_map(behind).sum());
                }
            }
        }
        self.tell_ready();
    }

    fn tick(&mut self) {
        self.each(|owner, now_ms| owner.tick(now_ms));
        self.tell_ready();
        let mut partitions: Vec<u32> = self.parts.keys().copied().collect();
        partitions.sort_unstable();
        self.fleet.owns(S::BUS_TOPIC.name(), partitions);
        let mut measures = Measures { lag: self.lag, ..Measures::default() };
        for owner in self.parts.values_mut().filter_map(|part| part.owner.as_mut()) {
            measures.partitions += 1;
            measures.paused += usize::from(owner.is_paused());
            owner.stage().measure(&mut measures);
        }
        let queued = self.attached.values().map(|attachment| attachment.outbox.with(|outbox| outbox.bytes()));
        measures.queued_bytes = queued.sum();
        S::show(&self.stage, &measures);
        self.ticks += 1;
        if self.ticks.is_multiple_of(LAG_EVERY) && !self.asking_ends {
            self.asking_ends = true;
            let (bus, partitions) = (self.bus.clone(), self.parts.keys().copied().collect::<Vec<_>>());
            self.waiting.push(Box::pin(async move {
                let ends = bus.ends(S::BUS_TOPIC, &partitions).await;
                Done::Ends(ends.map(|ends| partitions.into_iter().zip(ends).collect()).ok())
            }));
        }
    }

    /// Every partition that is assigned is read up to its claim, or paused.
    fn tell_ready(&self) {
        let taken = |part: &Part<S>| part.owner.as_ref().is_some_and(|owner| owner.is_live() || owner.is_paused());
        self.ready.behind(S::BUS_TOPIC, self.parts.values().filter(|part| !taken(part)).count());
    }

    fn each(&mut self, mut say: impl FnMut(&mut Owner<S>, i64)) {
        for partition in self.parts.keys().copied().collect::<Vec<_>>() {
            self.one(partition, &mut say);
        }
    }

    fn one(&mut self, partition: u32, say: impl FnOnce(&mut Owner<S>, i64)) {
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
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let full = part.owner.as_ref().is_some_and(|owner| owner.is_full() && !owner.is_paused());
        if full != std::mem::replace(&mut part.full, full) {
            let paused = part.owner.as_ref().is_some_and(Owner::is_paused);
            self.consumer.pause(partition, full || paused);
        }
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
                    if attachment.outbox.with(|outbox| outbox.push(now_us, (S::TOPIC, partition), epoch, out)).is_err()
                    {
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
                Action::DeadLetter { offset, reason, record } => self.dead_letter(partition, offset, &reason, &record),
                Action::Pause(offset) => {
                    tracing::error!(partition, offset, "a record is newer than this program: paused until an upgrade");
                    self.consumer.pause(partition, true);
                }
                Action::Lost => {
                    tracing::warn!(partition, epoch, "another job claimed a partition of ours");
                    self.consumer.pause(partition, true);
                    self.lose(partition);
                }
                Action::LookUp(names) => self.look_up(partition, names),
                Action::HandOver(through, actions) => self.hand_over(partition, through, actions),
                Action::Push(incarnation, body) => self.push(&incarnation, body),
                Action::PushAll(out) => self.push_all(&out),
                Action::Refuse(session, refused) => {
                    if let Some(incarnation) = routes::incarnation_of(&session) {
                        let incarnation = incarnation.to_owned();
                        let act = Some(command_out::Act::Refused(refused));
                        self.push(&incarnation, ToConnector::Command(CommandOut { sessions: vec![session], act }));
                    }
                }
            }
        }
        if let Some(owner) = self.parts.get_mut(&partition).and_then(|part| part.owner.as_mut()) {
            // Asks for nothing: only forgets.
            over.into_iter().for_each(|stream| owner.overflowed(stream));
        }
        for stream in fed {
            if let Some(attachment) = self.attached.get(&stream) {
                attachment.outbox.with(|outbox| outbox.wake());
            }
        }
    }

    /// The owner stops; the partition is claimed anew if it stays assigned.
    fn lose(&mut self, partition: u32) {
        self.turns += 1;
        let Some(part) = self.parts.get_mut(&partition) else { return };
        part.turn = self.turns;
        part.dead_letters.clear();
        let Some(mut owner) = part.owner.take() else { return };
        part.committed = part.committed.max(owner.progress());
        owner.disown();
        let (adopted, epoch, actions) = (part.adopted, owner.epoch(), owner.actions());
        self.act(partition, epoch, actions);
        if adopted {
            // The one that it was taken over from has woken up, or the group has given it to another.
            self.parts.remove(&partition);
            self.consumer.abandon(partition);
            return;
        }
        self.claim(partition, self.turns, RECLAIM);
    }

    /// The partition is this job's from here on.
    fn own(&mut self, partition: u32, turn: u64, epoch: Offset) {
        let Some(part) = self.parts.get_mut(&partition).filter(|part| part.turn == turn) else { return };
        let takeover = Takeover { partition, committed: part.committed, assigned_ms: part.assigned_ms };
        let stage = S::new(self.stage.clone(), takeover);
        let attached = self.attached.keys().copied();
        part.owner = Some(Owner::new(self.config.clone(), stage, takeover, epoch, attached, unix_ms()));
        self.one(partition, |_, _| {});
    }

    fn claim(&mut self, partition: u32, turn: u64, after: Duration) {
        let claim = record::Record {
            min_reader: 1,
            log: self.config.log.to_string(),
            time_ms: unix_ms(),
            body: Some(record::record::Body::Claim(record::Claim { owner: self.config.owner.clone() })),
            ..record::Record::default()
        };
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let taken_back = CancellationToken::new();
        part.claiming = Some(taken_back.clone().drop_guard());
        let (bus, value) = (self.bus.clone(), Bytes::from(claim.encode_to_vec()));
        self.waiting.push(Box::pin(async move {
            let claimed = async {
                tokio::time::sleep(after).await;
                publish(&*bus, S::BUS_TOPIC, partition, value).await
            };
            tokio::select! {
                // First: whoever took it back runs in the same task, so nothing is published afterwards.
                biased;
                () = taken_back.cancelled() => Done::TakenBack,
                epoch = claimed => Done::Claimed { partition, turn, epoch },
            }
        }));
    }

    fn dead_letter(&mut self, partition: u32, offset: Offset, reason: &str, record: &Bytes) {
        let topic = S::BUS_TOPIC;
        tracing::error!(?topic, partition, offset, reason, "a record cannot be read: put aside as a dead letter");
        let Some(part) = self.parts.get_mut(&partition) else { return };
        part.dead_letters.insert(offset);
        let turn = part.turn;
        self.config.metrics.dead_letters.inc();
        self.config.metrics.dead_letters_waiting.inc();
        let value = dead_letter::encode(topic, partition, offset, &self.config.log, reason, record);
        let bus = self.bus.clone();
        self.waiting.push(Box::pin(async move {
            publish(&*bus, bus::Topic::DeadLetters, 0, value).await;
            Done::PutAside { partition, turn, offset }
        }));
    }

    fn commit(&mut self, partition: u32) {
        let Some(part) = self.parts.get_mut(&partition) else { return };
        let Some(owner) = part.owner.as_ref().filter(|owner| owner.is_live() || owner.is_paused()) else { return };
        let done = part.dead_letters.first().map_or(owner.done(), |&first| owner.done().min(first - 1));
        if done > part.committed {
            part.committed = done;
            self.consumer.commit(partition, done);
        }
    }

    /// Gives every partition up, lets the streams take what was handed to them, and leaves the group.
    async fn end(mut self) {
        self.ending = true;
        let handed_over = async {
            // Whoever owns the partition next begins behind these: they are handed over now, or never.
            while self.handing_over > 0
                && let Some(done) = self.waiting.next().await
            {
                self.done(done).await;
            }
        };
        if tokio::time::timeout(DRAIN_MAX, handed_over).await.is_err() {
            tracing::warn!("a checkpoint was not taken in time: the pushes behind it are the next owner's");
        }
        self.each(|owner, _| owner.disown());
        let drained = async {
            let mut look = tokio::time::interval(Duration::from_millis(10));
            while self.attached.values().any(|attachment| attachment.outbox.with(|outbox| !outbox.is_empty())) {
                look.tick().await;
                while let Ok(event) = self.events.try_recv() {
                    if let Event::Detached(stream) = event {
                        self.attached.remove(&stream);
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
