//! Members of groups, each a client of librdkafka's, and what they share with [`super::reader`].
//!
//! Flow: [`Member::next`] polls ─▶ librdkafka calls [`Context::rebalance`] on the same thread, which only takes or
//! gives up the partitions (paused) and notes it ─▶ `next` tells. [`Consumer::start`] is noted; `next` asks the
//! brokers where that is, on a blocking thread, and assigns the partition again from there.
//!
//! Invariants:
//! - no record is told of a partition that is not assigned and started, and none from before the last start;
//! - nothing is committed for a partition that was given up: neither by us, nor, as its generation is over, by Kafka;
//! - what was committed of a partition is with the brokers before the partition is given up, unless it was lost (its
//!   member was silent for too long) or the brokers do not take it.

use super::{Cluster, blocking, client, group_name, tell, topic, unavailable};
use crate::config::HEARTBEAT_MS_MAX;
use crate::lull::Lull;
use crate::{Consumer, Error, Event, Offset, Record, Start, Topic};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionListElem};
use rdkafka::{ClientConfig, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Most records that are taken off librdkafka's queue at a time: as many as the embedded bus gives.
pub(super) const TAKE_MAX: usize = 512;
/// How often a place that was skipped over is fetched from again: then there is nothing, as where another program's
/// transactions left their marks.
pub(super) const SKIPS_MAX: u32 = 3;
/// How long a member may go without [`Consumer::next`] before the group goes on without it, milliseconds.
const POLL_MS_MAX: u32 = 30_000;

/// Takes and gives up partitions as the group says.
pub(super) struct Context {
    changes: Mutex<VecDeque<Event>>,
    changed: Notify,
    /// To be sent. Here, so that a partition is not given up without what was committed of it.
    commits: Mutex<BTreeMap<u32, Commit>>,
    /// Partitions that this member has and the group has not assigned to it.
    adopted: Mutex<BTreeSet<u32>>,
}

/// A partition's checkpoint.
struct Commit {
    topic: Arc<str>,
    /// The log's ID.
    log: Arc<str>,
    offset: Offset,
}

impl Context {
    fn commits(&self) -> MutexGuard<'_, BTreeMap<u32, Commit>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopted(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was assigned, and is not told yet.
    fn assigned(&self) -> BTreeSet<u32> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let assigned = |change: &Event| if let Event::Assigned(partition) = change { Some(*partition) } else { None };
        changes.iter().filter_map(assigned).collect()
    }

    /// Sends what was committed of `partitions`, and waits for the brokers.
    fn commit_last(&self, consumer: &BaseConsumer<Self>, partitions: &[u32]) {
        let last: BTreeMap<_, _> = {
            let mut commits = self.commits();
            partitions.iter().filter_map(|partition| commits.remove_entry(partition)).collect()
        };
        // Lost: others have these partitions already, and the brokers would refuse it.
        let Some(list) = commit_list(last).filter(|_| !consumer.assignment_lost()) else { return };
        if let Err(error) = waiting(|| consumer.commit(&list, CommitMode::Sync)) {
            tracing::warn!(%error, ?partitions, "the last commit of partitions that are given up");
        }
    }
}

/// Runs what waits for the brokers, so that other tasks of this thread go on elsewhere if there is an elsewhere.
fn waiting<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

fn commit_list(commits: BTreeMap<u32, Commit>) -> Option<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, Commit { topic, log, offset }) in commits {
        let mut element = list.add_partition(&topic, partition as i32);
        // Ours of what is done is Kafka's of what is next.
        if element.set_offset(Place::Offset(offset as i64)).is_ok() {
            element.set_metadata(&*log);
        }
    }
    (list.count() > 0).then_some(list)
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tell(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka consumer");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: Code, list: &mut TopicPartitionList) {
        let partitions = list.elements().iter().map(|element| element.partition() as u32).collect::<Vec<_>>();
        let assigned = code == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let result = if assigned {
            // Those that are adopted are being read already, and go on from where they are.
            let mut fresh = TopicPartitionList::new();
            {
                let mut adopted = self.adopted();
                for element in list.elements() {
                    if !adopted.remove(&(element.partition() as u32)) {
                        fresh.add_partition(element.topic(), element.partition());
                    }
                }
            }
            // Paused: nothing is fetched before `start` says from where. Not `End`, which librdkafka asks the broker for:
            // its answer was seen to move a partition that had been started since.
            fresh
                .set_all_offsets(Place::Offset(0))
                .and_then(|()| consumer.incremental_assign(&fresh))
                .and_then(|()| consumer.pause(&fresh))
        } else {
            self.commit_last(consumer, &partitions);
            consumer.incremental_unassign(list)
        };
        if let Err(error) = result {
            tracing::error!(%error, assigned, "kafka rebalance");
        }
        // Bounded by the partitions: the group changes only while it is polled, and then these are taken.
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.extend(partitions.into_iter().map(if assigned { Event::Assigned } else { Event::Revoked }));
        drop(changes);
        self.changed.notify_one();
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::warn!(%error, "kafka commit");
        }
    }
}

pub(super) fn context() -> Context {
    Context { changes: Mutex::default(), changed: Notify::new(), commits: Mutex::default(), adopted: Mutex::default() }
}

/// What members and readers are told.
pub(super) fn reading(cluster: &Cluster, group: String) -> ClientConfig {
    let mut config = client(&cluster.config.kafka);
    let session_ms = cluster.config.kafka.session_timeout_ms;
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session_ms.to_string())
        .set("heartbeat.interval.ms", (session_ms / 3).min(HEARTBEAT_MS_MAX).to_string())
        .set("max.poll.interval.ms", POLL_MS_MAX.max(session_ms).to_string())
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.max.messages.kbytes", "16384");
    config
}

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
    client: Option<Arc<StreamConsumer<Context>>>,
    owned: BTreeMap<u32, Owned>,
    /// What the brokers said was committed of partitions that nobody has asked for yet.
    left: BTreeMap<u32, Offset>,
    /// Read, and not yet told.
    read: VecDeque<(u32, Vec<Record>)>,
    finding: Option<JoinHandle<Result<Vec<Found>, Error>>>,
    /// When what the context has to commit is sent.
    lull: Lull,
    refused: watch::Receiver<Option<String>>,
}

/// An assigned partition.
#[derive(Default)]
struct Owned {
    /// Where it is to be started, until that is found.
    from: Option<Start>,
    /// Counts starts, so that an answer about an earlier one is known.
    starts: u64,
    /// Kafka's next offset; `None` before it is started.
    next: Option<i64>,
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
        self.from = Some(Start::At(next as Offset + 1));
        self.starts += 1;
        false
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
        let name = cluster.name(topic);
        let client: StreamConsumer<Context> = reading(cluster, group_name(&cluster.config.kafka, topic, group))
            .create_with_context(context())
            .map_err(unavailable)?;
        client.subscribe(&[&name]).map_err(unavailable)?;
        Ok(Self {
            cluster: cluster.clone(),
            topic,
            name: name.into(),
            log: cluster.log(topic).into(),
            group: group.to_owned(),
            client: Some(Arc::new(client)),
            owned: BTreeMap::new(),
            left: BTreeMap::new(),
            read: VecDeque::new(),
            finding: None,
            lull: Lull::default(),
            refused: cluster.refused.subscribe(),
        })
    }

    fn client(&self) -> &Arc<StreamConsumer<Context>> {
        self.client.as_ref().expect("there until it is dropped")
    }

    /// The next partition that came or went.
    fn change(&mut self) -> Option<Event> {
        let change = {
            let client = self.client();
            client.context().changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?
        };
        match change {
            Event::Assigned(partition) => {
                // One that was adopted is being read, and goes on.
                self.owned.entry(partition).or_default();
            }
            Event::Revoked(partition) => {
                self.owned.remove(&partition);
                self.left.remove(&partition);
                // What was committed since it was given up.
                self.client().context().commits().remove(&partition);
                self.read.retain(|read| read.0 != partition);
            }
            Event::Records(..) => {}
        }
        Some(change)
    }

    /// Records that were read of a partition that is not paused.
    fn tell(&mut self) -> Option<Event> {
        let place = self.read.iter().position(|(partition, _)| self.owned.get(partition).is_some_and(|o| !o.paused))?;
        self.read.remove(place).map(|(partition, records)| Event::Records(partition, records))
    }

    /// Notes a message, and what else is there already.
    fn take(&mut self, first: &BorrowedMessage<'_>) {
        self.note(first);
        let client = self.client().clone();
        for _ in 1..TAKE_MAX {
            match client.recv().now_or_never() {
                Some(Ok(message)) => self.note(&message),
                // An error shows itself again: what is wrong stays wrong, but for one out of range.
                Some(Err(error)) if is_out_of_range(&error) => {
                    self.search_again();
                    return;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "kafka consumer");
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
            if let (Some(next), None) = (owned.next, owned.from) {
                owned.from = Some(Start::At(next as Offset + 1));
                owned.starts += 1;
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
        let client = self.client().clone();
        let mut from = TopicPartitionList::new();
        let (mut going, mut paused) = (Vec::new(), Vec::new());
        for Found { partition, starts, offset } in found {
            // Lost, or started again, meanwhile.
            let Some(owned) = self.owned.get_mut(&partition).filter(|owned| owned.starts == starts) else { continue };
            owned.from = None;
            // Searched again, not started: it has read on meanwhile, and what it read is still to be told.
            let offset = owned.next.map_or(offset, |next| next.max(offset));
            owned.next = Some(offset);
            from.add_partition_offset(&self.name, partition as i32, Place::Offset(offset)).map_err(unavailable)?;
            if owned.paused { &mut paused } else { &mut going }.push(partition);
        }
        if from.count() == 0 {
            return Ok(());
        }
        // Not seek, which fails in the states before the first fetch and after one out of range. What was fetched
        // before is of an older version and is not told.
        let result = client
            .incremental_unassign(&from)
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
        self.lull.take(Instant::now());
        let commits = std::mem::take(&mut *self.client().context().commits());
        commit_list(commits)
    }
}

/// Refuses checkpoints that do not fit the log. Blocking.
fn check(cluster: &Cluster, topic: Topic, group: &str) -> Result<(), Error> {
    let outsider = topic::Outsider::new(&cluster.config, topic, group)?;
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
            if let Some(event) = self.change().or_else(|| self.tell()) {
                return Ok(event);
            }
            if self.lull.due().is_some_and(|at| at <= Instant::now())
                && let Some(list) = self.commits()
            {
                self.client().commit(&list, CommitMode::Async).map_err(unavailable)?;
            }
            if self.finding.is_none() {
                self.find();
            }
            let client = self.client().clone();
            let commit_at = self.lull.due();
            tokio::select! {
                () = client.context().changed.notified() => {}
                found = async { self.finding.as_mut().expect("polled only if there").await }, if self.finding.is_some() => {
                    self.finding = None;
                    let found = found.map_err(unavailable)??;
                    self.found(found)?;
                }
                message = client.recv() => match message {
                    Ok(message) => self.take(&message),
                    Err(error) if is_out_of_range(&error) => self.search_again(),
                    Err(error) => return Err(fault(&error)),
                },
                () = async { tokio::time::sleep_until(commit_at.expect("polled only if there").into()).await },
                    if commit_at.is_some() => {}
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
        if owned.next.is_none() {
            return;
        }
        let list = list(&self.name, [partition]);
        let result = if paused { self.client().pause(&list) } else { self.client().resume(&list) };
        if let Err(error) = result {
            tracing::error!(%error, partition, paused, "kafka pause");
        }
    }

    fn commit(&mut self, partition: u32, offset: Offset) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.committed = Some(offset);
            let commit = Commit { topic: self.name.clone(), log: self.log.clone(), offset };
            self.client().context().commits().insert(partition, commit);
            self.lull.change(Instant::now());
        }
    }

    fn adopt(&mut self, partition: u32) -> bool {
        if self.owned.contains_key(&partition) {
            return false;
        }
        let client = self.client().clone();
        // Before the partition is added: a rebalance on the way then finds it here.
        if !client.context().adopted().insert(partition) {
            return false;
        }
        let mut added = list(&self.name, [partition]);
        let result = added
            .set_all_offsets(Place::Offset(0))
            .and_then(|()| client.incremental_assign(&added))
            .and_then(|()| client.pause(&added));
        if let Err(error) = result {
            tracing::warn!(%error, partition, "a partition cannot be adopted now");
            client.context().adopted().remove(&partition);
            return false;
        }
        self.owned.insert(partition, Owned::default());
        true
    }

    fn abandon(&mut self, partition: u32) {
        let client = self.client().clone();
        if !client.context().adopted().remove(&partition) {
            return;
        }
        self.owned.remove(&partition);
        self.left.remove(&partition);
        client.context().commits().remove(&partition);
        self.read.retain(|read| read.0 != partition);
        if let Err(error) = client.incremental_unassign(&list(&self.name, [partition])) {
            tracing::warn!(%error, partition, "a partition that was adopted is given up");
        }
    }

    async fn committed(&mut self, partition: u32) -> Result<Offset, Error> {
        if let Some(offset) = self.owned.get(&partition).and_then(|owned| owned.committed) {
            return Ok(offset);
        }
        if let Some(offset) = self.left.remove(&partition) {
            return Ok(offset);
        }
        let client = self.client().clone();
        // One question for all that came with it: whoever asks for one asks for each of them, and does nothing else
        // meanwhile. They are ours by now, so that nobody else commits.
        let others = client.context().assigned().into_iter().filter(|other| *other != partition);
        let partitions = others.chain([partition]);
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
        let Some(client) = self.client.take() else { return };
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
        if let Some(client) = self.client.take() {
            drop_elsewhere(client);
        }
    }
}

/// Dropping a client waits for the brokers: not on a thread that others need.
pub(super) fn drop_elsewhere<T: Send + 'static>(client: T) {
    std::thread::spawn(move || drop(client));
}
