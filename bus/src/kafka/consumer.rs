//! Members of groups, and what they share with [`super::reader`].
//!
//! A member has two clients of librdkafka's. The *group client* is in the group: it is given partitions, commits, and
//! fetches nothing. The *reading client* is in no group: it fetches what [`Consumer::start`] asks for.
//!
//! Flow: [`Member::next`] polls ─▶ librdkafka calls [`Context::rebalance`] on the same thread, which only takes or
//! gives up the partitions and notes it ─▶ `next` tells. [`Consumer::start`] is noted; `next` asks the brokers where
//! that is, on a blocking thread, and assigns the partition to the reading client from there.
//!
//! When Kafka was away for longer than the session timeout, the group client has lost its partitions, and the group
//! waits for the member that it was before to time out, another session timeout. The partitions of rooms are *kept*
//! meanwhile: they are read as before until the group has decided, since claims say who owns them. A member that stood
//! still itself gives them up at once, since others may have them.
//!
//! Invariants:
//! - no record is told of a partition that is not assigned and started, and none from before the last start;
//! - nothing is committed for a partition that was given up: neither by us, nor, as its generation is over, by Kafka;
//! - what was committed of a partition is with the brokers before the partition is given up, unless it was lost (its
//!   member was silent for too long) or the brokers do not take it.

mod care;
mod context;
mod membership;

use super::{Cluster, blocking, topic, unavailable};
use crate::quiet::QuietPeriod;
use crate::{Consumer, Error, Event, Offset, Record, Start, Topic};
use async_trait::async_trait;
use bytes::Bytes;
use context::{Commit, POLL_MS_MAX, commit_list, group_client};
use futures::FutureExt;
use futures::future::BoxFuture;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionListElem};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(super) use context::{Context, reading_client};

/// Most records that are taken off librdkafka's queue at a time: as many as the embedded bus gives.
pub(super) const TAKE_MAX: usize = 512;
/// How often a place that was skipped over is fetched from again: then there is nothing, as where another program's
/// transactions left their marks.
pub(super) const SKIPS_MAX: u32 = 3;
/// How often a member looks after itself.
const TICK: Duration = Duration::from_millis(500);

/// A list of one topic's partitions.
fn list(topic: &str, partitions: impl IntoIterator<Item = u32>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(topic, partition as i32);
    }
    list
}

pub(super) fn record(message: &BorrowedMessage<'_>) -> Record {
    Record {
        offset: message.offset() as Offset + 1,
        time_ms: message.timestamp().to_millis().unwrap_or(0),
        value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
    }
}

/// Where `starts` are, as Kafka's offsets. Blocking.
pub(super) fn resolve(cluster: &Cluster, topic: Topic, starts: &[(u32, Start)]) -> Result<Vec<i64>, Error> {
    let name = cluster.name(topic);
    let partitions: Vec<u32> = starts.iter().map(|start| start.0).collect();
    let times: Vec<(u32, i64)> = starts
        .iter()
        .filter_map(|&(partition, start)| match start {
            Start::Since(time_ms) => Some((partition, time_ms)),
            _ => None,
        })
        .collect();
    // Before the times: what comes between the two questions is after `next`, and so not skipped.
    let edges = cluster.asker.edges(&name, &partitions)?;
    let mut since = cluster.asker.since(&name, &times)?.into_iter();
    let mut offsets = Vec::with_capacity(starts.len());
    for (&(partition, start), &(first, next)) in starts.iter().zip(&edges) {
        offsets.push(match start {
            Start::At(offset) if offset as i64 - 1 > next => {
                return Err(Error::Refused(format!(
                    "partition {partition} of {name} ends before offset {offset}: the log was cut"
                )));
            }
            Start::At(offset) => (offset as i64 - 1).max(first),
            Start::Since(_) => since.next().flatten().unwrap_or(next).max(first),
            Start::End => next,
        });
    }
    Ok(offsets)
}

/// What an error of librdkafka's is to a reader.
pub(super) fn fault(error: &KafkaError) -> Error {
    match error {
        KafkaError::MessageConsumptionFatal(code) => Error::Refused(format!("kafka: {code}: this reader is dead")),
        error => unavailable(error),
    }
}

/// Passes over what a broken connection brings, which heals by itself and is logged once; anything else is an error.
pub(super) fn passing(cluster: &Cluster, error: &KafkaError) -> Result<(), Error> {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(
            Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::NotCoordinator
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::PollExceeded
            | Code::UnknownMemberId
            | Code::IllegalGeneration
            | Code::RebalanceInProgress,
        ) => {
            cluster.reach.notice("consumer", &error.to_string());
            Ok(())
        }
        _ => Err(fault(error)),
    }
}

/// Whether librdkafka stopped fetching since a position is not in the log.
pub(super) fn is_out_of_range(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))
}

/// One member of a group.
pub(super) struct Member {
    cluster: Arc<Cluster>,
    topic: Topic,
    name: Arc<str>,
    /// The log's ID.
    log: Arc<str>,
    group: String,
    /// `None` only while it is being dropped.
    clients: Option<Clients>,
    owned: BTreeMap<u32, Owned>,
    /// What came and went, and is not told yet.
    events: VecDeque<Event>,
    /// What the brokers said was committed of partitions that nobody has asked for yet.
    left: BTreeMap<u32, Offset>,
    /// Read, and not yet told.
    read: VecDeque<(u32, Vec<Record>)>,
    finding: Option<JoinHandle<Result<Vec<Found>, Error>>>,
    /// When what the context has to commit is sent.
    quiet: QuietPeriod,
    /// Since when the group owes an answer.
    unsettled: Option<Instant>,
    /// When what is kept is given up, unless the group has given it back.
    kept_until: Option<Instant>,
    /// When the last record came, or the reading client was last found to be where it should.
    progress: Instant,
    /// Where the partitions end, asked when nothing came for long; and where they were read up to then.
    ends: Option<JoinHandle<Result<Vec<Behind>, Error>>>,
    /// What was there to read at the last question, and was not read since.
    behind: Vec<(u32, i64)>,
    /// When [`Consumer::next`] was last under way.
    polled: Instant,
    refused: watch::Receiver<Option<String>>,
}

/// A member's clients.
#[derive(Clone)]
struct Clients {
    group: Arc<StreamConsumer<Context>>,
    reader: Arc<StreamConsumer<Context>>,
}

/// A partition that has more than was read: Kafka's next offset of the reading client.
type Behind = (u32, i64);

/// An assigned partition.
#[derive(Default)]
struct Owned {
    /// Lost, and read on until the group has decided.
    kept: bool,
    /// Not assigned by the group: [`Consumer::adopt`].
    adopted: bool,
    /// Where it is to be started, until that is found.
    from: Option<Start>,
    /// Counts starts, so that an answer about an earlier one is known.
    starts: u64,
    /// Kafka's next offset; `None` before it is started.
    next: Option<i64>,
    /// Whether the reading client has it.
    fetching: bool,
    paused: bool,
    /// A place that was skipped over, and how often it was fetched from again.
    skipped: (i64, u32),
    /// What this member committed last.
    committed: Option<Offset>,
}

impl Owned {
    /// Whether what comes after `next` may be told without it; else it is fetched from there again.
    fn may_skip(&mut self, next: i64) -> bool {
        if self.from.is_some() {
            return false;
        }
        if self.skipped.0 != next {
            self.skipped = (next, 0);
        }
        self.skipped.1 += 1;
        if self.skipped.1 > SKIPS_MAX {
            return true;
        }
        self.search_again(next);
        false
    }

    /// Starts again at `next`.
    fn search_again(&mut self, next: i64) {
        if self.from.is_none() {
            self.from = Some(Start::At(next as Offset + 1));
            self.starts += 1;
        }
    }
}

/// Where a start is.
struct Found {
    partition: u32,
    starts: u64,
    offset: i64,
}

impl Member {
    pub(super) async fn join(cluster: &Arc<Cluster>, topic: Topic, group: &str) -> Result<Self, Error> {
        if !proto::channel::is_id(group) {
            return Err(Error::Refused(format!("{group:?} is no group's name: want 1-64 of A-Z a-z 0-9 _ . -")));
        }
        let asked = (cluster.clone(), group.to_owned());
        blocking(move || check(&asked.0, topic, &asked.1)).await?;
        let clients = Clients { group: group_client(cluster, topic, group)?, reader: reading_client(cluster, topic)? };
        Ok(Self {
            cluster: cluster.clone(),
            topic,
            name: cluster.name(topic).into(),
            log: cluster.log(topic).into(),
            group: group.to_owned(),
            clients: Some(clients),
            owned: BTreeMap::new(),
            events: VecDeque::new(),
            left: BTreeMap::new(),
            read: VecDeque::new(),
            finding: None,
            quiet: QuietPeriod::default(),
            unsettled: Some(Instant::now()),
            kept_until: None,
            progress: Instant::now(),
            ends: None,
            behind: Vec::new(),
            polled: Instant::now(),
            refused: cluster.refused.subscribe(),
        })
    }

    fn clients(&self) -> &Clients {
        self.clients.as_ref().expect("there until it is dropped")
    }

    fn group(&self) -> &Arc<StreamConsumer<Context>> {
        &self.clients().group
    }

    fn reader(&self) -> &Arc<StreamConsumer<Context>> {
        &self.clients().reader
    }

    /// Records that were read of a partition that is not paused.
    fn tell(&mut self) -> Option<Event> {
        let place = self.read.iter().position(|(partition, _)| self.owned.get(partition).is_some_and(|o| !o.paused))?;
        self.read.remove(place).map(|(partition, records)| Event::Records(partition, records))
    }

    /// Notes a message, and what else is there already.
    fn take(&mut self, first: &BorrowedMessage<'_>) {
        self.progress = Instant::now();
        self.cluster.reach.back();
        self.note(first);
        let client = self.reader().clone();
        for _ in 1..TAKE_MAX {
            match client.recv().now_or_never() {
                Some(Ok(message)) => self.note(&message),
                // An error shows itself again: what is wrong stays wrong, but for one out of range.
                Some(Err(error)) if is_out_of_range(&error) => {
                    self.search_again();
                    return;
                }
                Some(Err(error)) => {
                    self.cluster.reach.notice("consumer", &error.to_string());
                    return;
                }
                None => return,
            }
        }
    }

    fn note(&mut self, message: &BorrowedMessage<'_>) {
        let partition = message.partition() as u32;
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        let Some(next) = owned.next else { return };
        if message.offset() < next {
            // From before the last start.
            return;
        }
        if message.offset() > next && !owned.may_skip(next) {
            // There is nothing in the log that we could have skipped but what the retention took, and librdkafka tells
            // that as an error. It lost its place, then, or this one is from before the last start.
            tracing::warn!(partition, next, got = message.offset(), "kafka skipped records: they are fetched again");
            return;
        }
        owned.next = Some(message.offset() + 1);
        let record = record(message);
        match self.read.iter_mut().find(|read| read.0 == partition) {
            Some((_, records)) => records.push(record),
            None => self.read.push_back((partition, vec![record])),
        }
    }

    /// Starts every partition again where it is: one of them is out of the log's range, and it is not said which.
    fn search_again(&mut self) {
        for owned in self.owned.values_mut() {
            if let Some(next) = owned.next {
                owned.search_again(next);
            }
        }
    }

    /// Asks where the partitions are that are to be started.
    fn find(&mut self) {
        let starts: Vec<(u32, u64, Start)> =
            self.owned.iter().filter_map(|(&partition, owned)| Some((partition, owned.starts, owned.from?))).collect();
        if starts.is_empty() {
            return;
        }
        let (cluster, topic) = (self.cluster.clone(), self.topic);
        self.finding = Some(tokio::task::spawn_blocking(move || {
            let questions: Vec<_> = starts.iter().map(|&(partition, _, start)| (partition, start)).collect();
            let offsets = resolve(&cluster, topic, &questions)?;
            let found = starts.into_iter().zip(offsets);
            Ok(found.map(|((partition, starts, _), offset)| Found { partition, starts, offset }).collect())
        }));
    }

    /// Fetches from where it was found.
    fn found(&mut self, found: Vec<Found>) -> Result<(), Error> {
        let client = self.reader().clone();
        let mut from = TopicPartitionList::new();
        let (mut there, mut going, mut paused) = (Vec::new(), Vec::new(), Vec::new());
        for Found { partition, starts, offset } in found {
            // Lost, or started again, meanwhile.
            let Some(owned) = self.owned.get_mut(&partition).filter(|owned| owned.starts == starts) else { continue };
            owned.from = None;
            // Searched again, not started: it has read on meanwhile, and what it read is still to be told.
            let offset = owned.next.map_or(offset, |next| next.max(offset));
            owned.next = Some(offset);
            from.add_partition_offset(&self.name, partition as i32, Place::Offset(offset)).map_err(unavailable)?;
            if std::mem::replace(&mut owned.fetching, true) {
                there.push(partition);
            }
            if owned.paused { &mut paused } else { &mut going }.push(partition);
        }
        if from.count() == 0 {
            return Ok(());
        }
        // Not seek, which fails in the states before the first fetch and after one out of range. What was fetched
        // before is of an older version and is not told.
        let unassigned = if there.is_empty() { Ok(()) } else { client.incremental_unassign(&list(&self.name, there)) };
        let result = unassigned
            .and_then(|()| client.incremental_assign(&from))
            .and_then(|()| client.resume(&list(&self.name, going)))
            .and_then(|()| client.pause(&list(&self.name, paused)));
        if result.is_err() {
            self.search_again();
        }
        result.map_err(unavailable)
    }

    /// What is to be committed now.
    fn commits(&mut self) -> Option<TopicPartitionList> {
        self.quiet.take(Instant::now());
        if self.unsettled.is_some() {
            // The brokers would refuse it.
            return None;
        }
        let mut commits = std::mem::take(&mut *self.group().context().commits());
        // One that failed may have come back after its partition was given up.
        commits.retain(|partition, _| self.owned.contains_key(partition));
        commit_list(commits)
    }
}

/// Refuses checkpoints that do not fit the log. Blocking.
fn check(cluster: &Cluster, topic: Topic, group: &str) -> Result<(), Error> {
    let outsider = topic::Outsider::new(&cluster.config, topic, group, cluster.notices())?;
    let left = outsider.checkpoints()?;
    if left.is_empty() {
        return Ok(());
    }
    let partitions: Vec<u32> = left.iter().map(|left| left.0).collect();
    let edges = cluster.asker.edges(&cluster.name(topic), &partitions)?;
    let mut wrong = Vec::new();
    for ((partition, log, offset), (first, next)) in left.iter().zip(edges) {
        let now = (cluster.log(topic), first as Offset + 1, next as Offset + 1);
        if let Err(error) = crate::fits(topic, group, *partition, (log, *offset), now) {
            if !cluster.config.accept_new_log {
                return Err(error);
            }
            tracing::warn!(%error, "accepted: the checkpoint is forgotten");
            wrong.push(*partition);
        }
    }
    if wrong.is_empty() { Ok(()) } else { outsider.forget(cluster.log(topic), &wrong) }
}

#[async_trait]
impl Consumer for Member {
    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(why) = self.refused.borrow_and_update().clone() {
                return Err(Error::Refused(why));
            }
            let now = Instant::now();
            if now.duration_since(self.polled).as_millis() as u32 > POLL_MS_MAX {
                // The group went on without this member since nobody asked it: as if it had stood still.
                self.cluster.awake.stood_still();
            }
            self.polled = now;
            if let Some(event) = self.change().or_else(|| self.tell()) {
                return Ok(event);
            }
            self.look_after(now)?;
            if self.quiet.due().is_some_and(|at| at <= now)
                && let Some(list) = self.commits()
            {
                self.group().commit(&list, CommitMode::Async).map_err(unavailable)?;
            }
            if self.finding.is_none() {
                self.find();
            }
            let Clients { group, reader } = self.clients().clone();
            let wake_at = [self.quiet.due(), self.kept_until].into_iter().flatten().fold(now + TICK, Instant::min);
            tokio::select! {
                () = group.context().changed.notified() => {}
                found = async { self.finding.as_mut().expect("polled only if there").await }, if self.finding.is_some() => {
                    self.finding = None;
                    let found = found.map_err(unavailable)??;
                    self.found(found)?;
                }
                ends = async { self.ends.as_mut().expect("polled only if there").await }, if self.ends.is_some() => {
                    self.ends = None;
                    // No answer says nothing about the reading client.
                    if let Ok(Ok(behind)) = ends {
                        self.judge_reader(behind)?;
                    }
                }
                message = reader.recv() => match message {
                    Ok(message) => self.take(&message),
                    Err(error) if is_out_of_range(&error) => self.search_again(),
                    Err(error) => passing(&self.cluster, &error)?,
                },
                // It fetches nothing, and is polled so that the group's changes come.
                message = group.recv() => if let Err(error) = message {
                    passing(&self.cluster, &error)?;
                },
                () = tokio::time::sleep_until(wake_at.into()) => {}
                _ = self.refused.changed() => {}
            }
        }
    }

    fn start(&mut self, partition: u32, from: Start) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.from = Some(from);
            owned.starts += 1;
            // Nothing more from before.
            owned.next = None;
            self.read.retain(|read| read.0 != partition);
        }
    }

    fn pause(&mut self, partition: u32, paused: bool) {
        let Some(owned) = self.owned.get_mut(&partition).filter(|owned| owned.paused != paused) else { return };
        owned.paused = paused;
        if !owned.fetching {
            return;
        }
        let list = list(&self.name, [partition]);
        let result = if paused { self.reader().pause(&list) } else { self.reader().resume(&list) };
        if let Err(error) = result {
            tracing::error!(%error, partition, paused, "kafka pause");
        }
    }

    fn commit(&mut self, partition: u32, offset: Offset) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.committed = Some(offset);
            let commit = Commit { topic: self.name.clone(), log: self.log.clone(), offset };
            self.group().context().commits().insert(partition, commit);
            self.quiet.change(Instant::now());
        }
    }

    fn commit_now(&mut self, partition: u32, offset: Offset) -> BoxFuture<'static, Result<(), Error>> {
        let Some(owned) = self.owned.get_mut(&partition) else {
            let gone = Error::Unavailable(format!("partition {partition} is not this member's"));
            return Box::pin(std::future::ready(Err(gone)));
        };
        owned.committed = Some(offset);
        let client = self.group().clone();
        // What was to be committed before lies before this.
        client.context().commits().remove(&partition);
        let commit = Commit { topic: self.name.clone(), log: self.log.clone(), offset };
        Box::pin(blocking(move || match commit_list(BTreeMap::from([(partition, commit)])) {
            // The brokers refuse it from a member that the group went on without.
            Some(list) => client.commit(&list, CommitMode::Sync).map_err(unavailable),
            None => Err(Error::Unavailable(format!("offset {offset} cannot be committed"))),
        }))
    }

    fn adopt(&mut self, partition: u32) -> bool {
        if self.owned.contains_key(&partition) {
            return false;
        }
        self.owned.insert(partition, Owned { adopted: true, ..Owned::default() });
        true
    }

    fn abandon(&mut self, partition: u32) {
        if self.owned.get(&partition).is_some_and(|owned| owned.adopted) {
            self.give_up(partition);
        }
    }

    async fn committed(&mut self, partition: u32) -> Result<Offset, Error> {
        if let Some(offset) = self.owned.get(&partition).and_then(|owned| owned.committed) {
            return Ok(offset);
        }
        if let Some(offset) = self.left.remove(&partition) {
            return Ok(offset);
        }
        if self.owned.get(&partition).is_some_and(|owned| owned.adopted) {
            // By a client of its own: while the group waits for its silent member, it answers nobody who joins, and a
            // question on the same connection waits behind that.
            let (cluster, topic, group, log) = (self.cluster.clone(), self.topic, self.group.clone(), self.log.clone());
            let found = blocking(move || {
                let outsider = topic::Outsider::new(&cluster.config, topic, &group, cluster.notices())?;
                let left = outsider.checkpoints()?;
                let ours = left.into_iter().filter(|(_, left_in, _)| *left_in == *log);
                Ok(ours.map(|(partition, _, offset)| (partition, offset)).collect::<BTreeMap<_, _>>())
            });
            let found = found.await?;
            // Of those that are adopted with it, too: each is asked for next.
            let adopted = self.owned.iter().filter(|(_, owned)| owned.adopted && owned.committed.is_none());
            self.left
                .extend(adopted.map(|(&other, _)| other).map(|other| (other, found.get(&other).copied().unwrap_or(0))));
            return Ok(self.left.remove(&partition).unwrap_or(0));
        }
        let client = self.group().clone();
        // One question for all that came with it: whoever asks for one asks for each of them, and does nothing else
        // meanwhile. They are ours by now, so that nobody else commits.
        let assigned = |event: &Event| if let Event::Assigned(other) = event { Some(*other) } else { None };
        let others: Vec<u32> = self.events.iter().filter_map(assigned).filter(|other| *other != partition).collect();
        let partitions = others.into_iter().chain([partition]);
        let (list, log) = (list(&self.name, partitions), self.log.clone());
        let left = blocking(move || {
            let committed = topic::committed(&*client, list)?;
            let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
                Place::Offset(offset) if element.metadata() == &*log => offset as Offset,
                _ => 0,
            };
            let elements = committed.elements();
            let of = |element: &TopicPartitionListElem<'_>| {
                element.error().map_err(unavailable)?;
                Ok((element.partition() as u32, offset(element)))
            };
            elements.iter().map(of).collect::<Result<BTreeMap<_, _>, Error>>()
        });
        self.left.extend(left.await?);
        Ok(self.left.remove(&partition).unwrap_or(0))
    }

    async fn leave(mut self: Box<Self>) {
        // What went since the last `next` is not committed any more.
        while self.change().is_some() {}
        let commits = self.commits();
        let Some(Clients { group: client, reader }) = self.clients.take() else { return };
        drop_elsewhere(reader);
        let group = self.group.clone();
        let left = blocking(move || {
            if let Some(list) = commits {
                client.commit(&list, CommitMode::Sync).map_err(unavailable)?;
            }
            // The last one to drop it leaves the group.
            drop(client);
            Ok(())
        });
        if let Err(error) = left.await {
            tracing::warn!(%error, group, "the last commit of a member that leaves");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(clients) = self.clients.take() {
            drop_elsewhere(clients);
        }
    }
}

/// Dropping a client waits for the brokers: not on a thread that others need.
pub(super) fn drop_elsewhere<T: Send + 'static>(client: T) {
    std::thread::spawn(move || drop(client));
}
