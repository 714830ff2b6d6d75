//! What librdkafka calls back: partitions that come and go, commits that fail. And how a member's clients are made.

use super::super::{Cluster, Notices, client, group_name, unavailable};
use crate::config::HEARTBEAT_MS_MAX;
use crate::{Error, Offset, Topic};
use rdkafka::bindings::rd_kafka_resp_err_t as Code;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::Offset as Place;
use rdkafka::{ClientConfig, TopicPartitionList};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How long a member may go without [`Consumer::next`] before the group goes on without it, milliseconds.
pub(super) const POLL_MS_MAX: u32 = 30_000;

/// What the group said.
pub(super) enum Change {
    /// All that is new: whatever was lost before and is not among them is another member's.
    Assigned(Vec<u32>),
    Revoked(Vec<u32>),
    /// Gone without a word of the group's: the session timed out, or the group does not know this member any more.
    Lost(Vec<u32>),
}

/// Takes and gives up partitions as the group says.
pub(in crate::kafka) struct Context {
    notices: Notices,
    pub(super) changes: Mutex<VecDeque<Change>>,
    pub(super) changed: Notify,
    /// To be sent. Here, so that a partition is not given up without what was committed of it.
    commits: Mutex<BTreeMap<u32, Commit>>,
}

/// A partition's checkpoint.
pub(super) struct Commit {
    pub(super) topic: Arc<str>,
    /// The log's ID.
    pub(super) log: Arc<str>,
    pub(super) offset: Offset,
}

impl Context {
    pub(super) fn commits(&self) -> MutexGuard<'_, BTreeMap<u32, Commit>> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what was committed of `partitions`, and waits for the brokers.
    fn commit_last(&self, consumer: &BaseConsumer<Self>, partitions: &[u32]) {
        // Lost: the brokers would refuse it now.
        if consumer.assignment_lost() {
            return;
        }
        let last: BTreeMap<_, _> = {
            let mut commits = self.commits();
            partitions.iter().filter_map(|partition| commits.remove_entry(partition)).collect()
        };
        let Some(list) = commit_list(last) else { return };
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

pub(super) fn commit_list(commits: BTreeMap<u32, Commit>) -> Option<TopicPartitionList> {
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
        self.notices.log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.notices.error(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: Code, list: &mut TopicPartitionList) {
        let partitions = list.elements().iter().map(|element| element.partition() as u32).collect::<Vec<_>>();
        let assigned = code == Code::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let lost = !assigned && consumer.assignment_lost();
        let result = if assigned {
            // Paused for good: the reading client fetches.
            list.set_all_offsets(Place::Offset(0))
                .and_then(|()| consumer.incremental_assign(list))
                .and_then(|()| consumer.pause(list))
        } else {
            self.commit_last(consumer, &partitions);
            consumer.incremental_unassign(list)
        };
        if let Err(error) = result {
            tracing::error!(%error, assigned, "kafka rebalance");
        }
        let change = match (assigned, lost) {
            (true, _) => Change::Assigned(partitions),
            (false, false) => Change::Revoked(partitions),
            (false, true) => Change::Lost(partitions),
        };
        // Bounded: the group changes only while it is polled, and then these are taken.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push_back(change);
        self.changed.notify_one();
    }

    fn commit_callback(&self, result: KafkaResult<()>, list: &TopicPartitionList) {
        let Err(error) = result else { return };
        self.notices.0.notice("commit", &error.to_string());
        // Sent again with the next ones, unless there is a newer one, or the partition was given up.
        let mut commits = self.commits();
        for element in list.elements() {
            if let Place::Offset(offset) = element.offset() {
                let commit = || Commit {
                    topic: element.topic().into(),
                    log: element.metadata().into(),
                    offset: offset as Offset,
                };
                commits.entry(element.partition() as u32).or_insert_with(commit);
            }
        }
    }
}

fn context(notices: Notices) -> Context {
    Context { notices, changes: Mutex::default(), changed: Notify::new(), commits: Mutex::default() }
}

/// What members and readers are told.
fn reading(cluster: &Cluster, group: String) -> ClientConfig {
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

pub(super) fn group_client(
    cluster: &Cluster,
    topic: Topic,
    group: &str,
) -> Result<Arc<StreamConsumer<Context>>, Error> {
    let client: StreamConsumer<Context> = reading(cluster, group_name(&cluster.config.kafka, topic, group))
        .create_with_context(context(cluster.notices()))
        .map_err(unavailable)?;
    client.subscribe(&[&cluster.name(topic)]).map_err(unavailable)?;
    Ok(Arc::new(client))
}

/// A client that is in no group; librdkafka wants a name for it all the same.
pub(in crate::kafka) fn reading_client(cluster: &Cluster, topic: Topic) -> Result<Arc<StreamConsumer<Context>>, Error> {
    let config = reading(cluster, group_name(&cluster.config.kafka, topic, "reader"));
    Ok(Arc::new(config.create_with_context(context(cluster.notices())).map_err(unavailable)?))
}
