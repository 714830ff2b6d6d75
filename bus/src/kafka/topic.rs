//! The topics: made or checked at the start, asked for their edges, watched while the process runs.
//!
//! # A topic's log ID
//!
//! It must be another one when the topic is made anew, and any client must be able to read it. Kafka has such an ID
//! (KIP-516), but rdkafka 0.39 does not show it, and a metadata request of our own would have to do again all of the
//! brokers' SASL and TLS. So the ID is a random number in a setting of the topic, given in the request that creates it
//! and gone when it is deleted: `delete.retention.ms`, which means something for compacted topics only, and ours are
//! refused if they are compacted. A topic without such a number was made by hand: it is refused, and the message says
//! how to give it one.

use super::{ASK, Cluster, Notices, blocking, client, group_name, name, partitions, unavailable};
use crate::{Config, Error, RECORD_BYTES_MAX, Topic, config};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset as Place;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The setting that holds the log ID.
const ID_SETTING: &str = "delete.retention.ms";
/// Log IDs lie in this range; nobody means 35 years by `delete.retention.ms`.
const ID_RANGE: std::ops::Range<i64> = 1 << 40..1 << 62;
/// Largest message that a broker must take: a record and the rest of its batch.
pub(super) const MESSAGE_BYTES_MAX: usize = RECORD_BYTES_MAX + 4096;
/// How often the brokers are asked whether all is well.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How often they are asked while they do not answer.
const WATCH_AGAIN: Duration = Duration::from_millis(250);
/// How long an answer to the watch's first question may take: a broker that works needs milliseconds.
const PROBE: Duration = Duration::from_secs(2);
/// How often this process notes that it runs: well under half of the shortest session timeout.
const AWAKE_EVERY: Duration = Duration::from_millis(250);
/// A watched group's lag may be as old as this part of the retention.
const LAG_OF_RETENTION: f64 = 0.75;

/// Makes the topics that are missing, checks all, and returns their log IDs.
pub(super) async fn prepare(config: &Config, notices: &Notices) -> Result<[String; Topic::ALL.len()], Error> {
    let kafka = &config.kafka;
    let admin: AdminClient<Notices> = client(kafka).create_with_context(notices.clone()).map_err(unavailable)?;
    let options = AdminOptions::new().request_timeout(Some(ASK)).operation_timeout(Some(ASK));
    for topic in Topic::ALL {
        create(&admin, &options, config, topic).await?;
    }
    let asker = Asker::new(kafka, notices.clone())?;
    let for_copies = config.clone();
    blocking(move || Topic::ALL.into_iter().try_for_each(|topic| check_partitions(&asker, &for_copies, topic))).await?;
    let mut logs = <[String; Topic::ALL.len()]>::default();
    let until = Instant::now() + ASK;
    let settings = loop {
        let all: Result<Vec<_>, _> = describe(&admin, &options, kafka).await?.into_iter().collect();
        match all {
            // A broker that has not heard of a topic that was just made.
            Err(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(100)).await,
            all => break all?,
        }
    };
    for (topic, settings) in Topic::ALL.into_iter().zip(settings) {
        logs[topic as usize] = check_settings(config, topic, &settings)?;
    }
    Ok(logs)
}

/// Seconds that `topic` is kept.
fn retention_s(config: &Config, topic: Topic) -> u64 {
    match topic {
        Topic::Rooms | Topic::Pushes => config.retention_s,
        Topic::Control => config.control_retention_s,
        Topic::DeadLetters => config.dead_letter_retention_s,
    }
}

async fn create(
    admin: &AdminClient<Notices>,
    options: &AdminOptions,
    config: &Config,
    topic: Topic,
) -> Result<(), Error> {
    let kafka = &config.kafka;
    let name = name(kafka, topic);
    let id = rand::random_range(ID_RANGE).to_string();
    let retention_ms = (retention_s(config, topic) * 1000).to_string();
    // Deletes whole segments: a twelfth of the retention is at most kept too long.
    let segment_ms = (retention_s(config, topic) * 1000 / 12).to_string();
    let min_in_sync = kafka.min_in_sync.to_string();
    let bytes = MESSAGE_BYTES_MAX.to_string();
    let replication = TopicReplication::Fixed(kafka.replication as i32);
    let new = NewTopic::new(&name, partitions(config, topic) as i32, replication)
        .set("cleanup.policy", "delete")
        .set("retention.ms", &retention_ms)
        .set("segment.ms", &segment_ms)
        .set("min.insync.replicas", &min_in_sync)
        .set("unclean.leader.election.enable", "false")
        .set("message.timestamp.type", "LogAppendTime")
        .set("max.message.bytes", &bytes)
        .set(ID_SETTING, &id);
    let made = admin.create_topics([&new], options).await.map_err(unavailable)?;
    match made.into_iter().next() {
        Some(Ok(_)) => {
            tracing::info!(topic = name, "made the topic");
            Ok(())
        }
        // Not allowed to: then it must be there already.
        Some(Err((
            _,
            RDKafkaErrorCode::TopicAlreadyExists
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ))) => Ok(()),
        Some(Err((_, RDKafkaErrorCode::InvalidReplicationFactor))) => Err(Error::Refused(format!(
            "topic {name} cannot have {} copies: there are not as many brokers (bus.kafka.replication)",
            kafka.replication
        ))),
        Some(Err((_, code))) => Err(Error::Unavailable(format!("topic {name} cannot be made: {code}"))),
        None => Err(Error::Unavailable(format!("topic {name} cannot be made: no answer"))),
    }
}

/// Waits until every partition has a leader; refuses another number of partitions, and too few copies.
fn check_partitions(asker: &Asker, config: &Config, topic: Topic) -> Result<(), Error> {
    let kafka = &config.kafka;
    let name = name(kafka, topic);
    let until = Instant::now() + ASK;
    loop {
        let metadata = asker.consumer.fetch_metadata(Some(&name), ASK).map_err(unavailable)?;
        let there = metadata.topics().first().filter(|there| there.error().is_none());
        let partitions = there.map(|there| there.partitions()).unwrap_or_default();
        if partitions.is_empty() || partitions.iter().any(|partition| partition.leader() < 0) {
            if Instant::now() > until {
                return Err(Error::Unavailable(format!("topic {name} has no leaders")));
            }
            // Being made. There is nothing to wait on but the brokers.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let want = super::partitions(config, topic) as usize;
        if partitions.len() != want {
            return Err(Error::Refused(format!(
                "topic {name} has {} partitions, and the configuration says {want}: bus.partitions is fixed in the \
                 life of a log",
                partitions.len()
            )));
        }
        let copies = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        if !kafka.development && copies < kafka.replication as usize {
            return Err(Error::Refused(format!(
                "topic {name} has {copies} copies: want {} (bus.kafka.replication), or bus.kafka.development",
                kafka.replication
            )));
        }
        return Ok(());
    }
}

/// The settings of each of [`Topic::ALL`], or why they are not to be had.
async fn describe(
    admin: &AdminClient<Notices>,
    options: &AdminOptions,
    kafka: &config::Kafka,
) -> Result<Vec<Result<ConfigResource, Error>>, Error> {
    let names = Topic::ALL.map(|topic| name(kafka, topic));
    let topics = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect::<Vec<_>>();
    let described = admin.describe_configs(&topics, options).await.map_err(unavailable)?;
    if described.len() < names.len() {
        return Err(unavailable("topics cannot be described: no answer"));
    }
    // In the order of the question: librdkafka sees to it. Of what is wrong with one of several topics the rdkafka crate
    // says nothing: it has no settings then.
    let found = names.iter().zip(described).map(|(name, described)| match described {
        Ok(settings) if settings.entries.is_empty() => {
            Err(Error::Unavailable(format!("topic {name} cannot be described: no settings")))
        }
        described => described.map_err(|code| Error::Unavailable(format!("topic {name} cannot be described: {code}"))),
    });
    Ok(found.collect())
}

/// Refuses a topic that could lose what was acknowledged; returns its log ID.
fn check_settings(config: &Config, topic: Topic, settings: &ConfigResource) -> Result<String, Error> {
    let name = name(&config.kafka, topic);
    let text = |key: &str| settings.get(key).and_then(|entry| entry.value.as_deref()).unwrap_or("");
    let number = |key: &str| text(key).parse::<i64>().unwrap_or(0);
    let retention_ms = retention_s(config, topic) as i64 * 1000;
    let require = |right: bool, key: &str, want: &str| {
        if right {
            return Ok(());
        }
        Err(Error::Refused(format!("topic {name} has {key}={}: want {want}", text(key))))
    };
    require(text("cleanup.policy") == "delete", "cleanup.policy", "delete")?;
    require(
        number("retention.ms") < 0 || number("retention.ms") >= retention_ms,
        "retention.ms",
        &format!("at least {retention_ms}, as configured"),
    )?;
    require(text("message.timestamp.type") == "LogAppendTime", "message.timestamp.type", "LogAppendTime")?;
    require(
        number("max.message.bytes") >= MESSAGE_BYTES_MAX as i64,
        "max.message.bytes",
        &format!("at least {MESSAGE_BYTES_MAX}"),
    )?;
    if !config.kafka.development {
        let min_in_sync = config.kafka.min_in_sync;
        require(
            number("min.insync.replicas") >= i64::from(min_in_sync),
            "min.insync.replicas",
            &format!("at least {min_in_sync} (bus.kafka.min_in_sync), or bus.kafka.development"),
        )?;
        require(
            text("unclean.leader.election.enable") == "false",
            "unclean.leader.election.enable",
            "false, or bus.kafka.development",
        )?;
    }
    log_id(settings).ok_or_else(|| {
        Error::Refused(format!(
            "topic {name} was not made by Barrage and has no log ID. Delete it, and it is made at the next start; or, \
             once for each time that it is made, set its {ID_SETTING} to a random number of 16 digits, which is the \
             log ID and has no other use in a topic that is not compacted"
        ))
    })
}

fn log_id(settings: &ConfigResource) -> Option<String> {
    let entry = settings.get(ID_SETTING).filter(|entry| entry.source == ConfigSource::DynamicTopic)?;
    let id = entry.value.as_deref()?.parse::<i64>().ok().filter(|id| ID_RANGE.contains(id))?;
    Some(format!("k{id:x}"))
}

/// Asks where partitions begin and end. Blocking; offsets are Kafka's.
pub(super) struct Asker {
    consumer: BaseConsumer<Notices>,
}

impl Asker {
    pub(super) fn new(config: &config::Kafka, notices: Notices) -> Result<Self, Error> {
        // Without a group: its queue is served by every question.
        let consumer = client(config).create_with_context(notices).map_err(unavailable)?;
        Ok(Self { consumer })
    }

    /// First kept offset and next offset of each of `partitions`.
    pub(super) fn edges(&self, topic: &str, partitions: &[u32]) -> Result<Vec<(i64, i64)>, Error> {
        let first = self.at(topic, partitions.iter().map(|&partition| (partition, Place::Beginning)))?;
        let next = self.ends(topic, partitions)?;
        Ok(first.into_iter().zip(next).map(|(first, next)| (first.unwrap_or(0), next)).collect())
    }

    /// Next offset of each of `partitions`.
    pub(super) fn ends(&self, topic: &str, partitions: &[u32]) -> Result<Vec<i64>, Error> {
        let next = self.at(topic, partitions.iter().map(|&partition| (partition, Place::End)))?;
        Ok(next.into_iter().map(|next| next.unwrap_or(0)).collect())
    }

    /// Offset of the first record at or after each time, milliseconds since 1970; `None` where there is none.
    pub(super) fn since(&self, topic: &str, times: &[(u32, i64)]) -> Result<Vec<Option<i64>>, Error> {
        self.at(topic, times.iter().map(|&(partition, time_ms)| (partition, Place::Offset(time_ms.max(0)))))
    }

    /// Asks for offsets by time, which `Place::Beginning` and `Place::End` are to Kafka, too (ListOffsets).
    fn at(&self, topic: &str, times: impl Iterator<Item = (u32, Place)> + Clone) -> Result<Vec<Option<i64>>, Error> {
        let mut list = TopicPartitionList::new();
        for (partition, time) in times.clone() {
            list.add_partition_offset(topic, partition as i32, time).map_err(unavailable)?;
        }
        if list.count() == 0 {
            return Ok(Vec::new());
        }
        let until = Instant::now() + ASK;
        loop {
            self.serve();
            match self.answered(topic, list.clone()) {
                // What librdkafka knows of the leaders is old: it learns by asking.
                Err(KafkaError::MetadataFetch(code) | KafkaError::OffsetFetch(code))
                    if is_passing(code) && Instant::now() < until =>
                {
                    let _ = self.consumer.fetch_metadata(Some(topic), ASK);
                    std::thread::sleep(Duration::from_millis(50));
                }
                found => {
                    let found = found.map_err(unavailable)?;
                    return times
                        .map(|(partition, _)| match found.find_partition(topic, partition as i32) {
                            Some(element) => Ok(match element.offset() {
                                Place::Offset(offset) => Some(offset),
                                _ => None,
                            }),
                            None => Err(unavailable(format!("no answer for partition {partition}"))),
                        })
                        .collect();
                }
            }
        }
    }

    fn answered(&self, topic: &str, list: TopicPartitionList) -> KafkaResult<TopicPartitionList> {
        let found = self.consumer.offsets_for_times(list, ASK)?;
        found.elements_for_topic(topic).iter().try_for_each(|element| element.error())?;
        Ok(found)
    }

    /// Whether every partition of `topic` has a leader.
    fn has_leaders(&self, topic: &str) -> Result<(), Error> {
        self.serve();
        let metadata = self.consumer.fetch_metadata(Some(topic), PROBE).map_err(unavailable)?;
        let partitions = metadata.topics().first().map(|topic| topic.partitions()).unwrap_or_default();
        match partitions.iter().find(|partition| partition.leader() < 0) {
            Some(partition) => Err(unavailable(format!("partition {} of {topic} has no leader", partition.id()))),
            None => Ok(()),
        }
    }

    /// Takes what librdkafka has to tell, which it would keep for ever.
    fn serve(&self) {
        while self.consumer.poll(Duration::ZERO).is_some() {}
    }
}

/// Whether a leader moved or a broker went, so that the same question is answered a moment later.
fn is_passing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::FencedLeaderEpoch
            | RDKafkaErrorCode::UnknownLeaderEpoch
            | RDKafkaErrorCode::NotLeaderForPartition
            | RDKafkaErrorCode::LeaderNotAvailable
            | RDKafkaErrorCode::OffsetNotAvailable
            | RDKafkaErrorCode::ReplicaNotAvailable
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::NotCoordinator
            | RDKafkaErrorCode::CoordinatorNotAvailable
            | RDKafkaErrorCode::CoordinatorLoadInProgress
    )
}

/// A client that knows a group's name and is no member.
pub(super) struct Outsider {
    config: Config,
    topic: Topic,
    group: String,
    consumer: BaseConsumer<Notices>,
}

impl Outsider {
    pub(super) fn new(config: &Config, topic: Topic, group: &str, notices: Notices) -> Result<Self, Error> {
        let consumer = client(&config.kafka)
            .set("group.id", group_name(&config.kafka, topic, group))
            .set("enable.auto.commit", "false")
            .create_with_context(notices)
            .map_err(unavailable)?;
        Ok(Self { config: config.clone(), topic, group: group.to_owned(), consumer })
    }

    /// What the group left in Kafka: of each partition its log ID and the last offset that is done (ours, so that it is
    /// Kafka's next one), where there is anything. Blocking.
    pub(super) fn checkpoints(&self) -> Result<Vec<(u32, String, crate::Offset)>, Error> {
        while self.consumer.poll(Duration::ZERO).is_some() {}
        let name = name(&self.config.kafka, self.topic);
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions(&self.config, self.topic) {
            list.add_partition(&name, partition as i32);
        }
        let mut found = Vec::new();
        for element in committed(&self.consumer, list)?.elements() {
            element.error().map_err(unavailable)?;
            if let Place::Offset(offset) = element.offset() {
                found.push((element.partition() as u32, element.metadata().to_owned(), offset as crate::Offset));
            }
        }
        Ok(found)
    }

    /// Replaces the checkpoints of a group that has no members. Blocking.
    pub(super) fn forget(&self, log: &str, partitions: &[u32]) -> Result<(), Error> {
        let name = name(&self.config.kafka, self.topic);
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            let mut element = list.add_partition(&name, partition as i32);
            element.set_offset(Place::Offset(0)).map_err(unavailable)?;
            element.set_metadata(log);
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(unavailable)
    }
}

/// What is committed of the partitions in `list`; asks again while the group has no coordinator, as it is after the first
/// group of a new cluster was named, and after a broker died. Blocking.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    list: TopicPartitionList,
) -> Result<TopicPartitionList, Error> {
    let until = Instant::now() + ASK;
    loop {
        match consumer.committed_offsets(list.clone(), ASK) {
            Err(KafkaError::MetadataFetch(code)) if is_passing(code) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(100));
            }
            committed => return committed.map_err(unavailable),
        }
    }
}

/// Notes again and again that this process runs.
pub(super) async fn stay_awake(cluster: Arc<Cluster>) {
    loop {
        tokio::time::sleep(AWAKE_EVERY).await;
        cluster.awake.tick();
    }
}

/// Asks again and again whether the brokers answer, the topics are still the same, and the watched groups keep up.
pub(super) async fn watch(cluster: Arc<Cluster>) {
    // Apart: the second may wait for an answer when the first is to notice that none comes.
    tokio::join!(watch_brokers(&cluster), watch_topics(&cluster));
}

async fn watch_brokers(cluster: &Arc<Cluster>) {
    let mut wait = WATCH_EVERY;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = cluster.reach.suspected() => {}
        }
        let asked = cluster.clone();
        let answered =
            blocking(move || Topic::ALL.into_iter().try_for_each(|topic| asked.asker.has_leaders(&asked.name(topic))));
        match answered.await {
            Ok(()) => {
                cluster.reach.back();
                wait = WATCH_EVERY;
            }
            Err(error) => {
                cluster.reach.lost(&error.to_string());
                wait = WATCH_AGAIN;
            }
        }
        // However many suspicions there are.
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

async fn watch_topics(cluster: &Arc<Cluster>) {
    let config = &cluster.config;
    let mut outsiders = Vec::new();
    for topic in [Topic::Rooms, Topic::Pushes] {
        let outsider = |group: &String| Outsider::new(config, topic, group, cluster.notices());
        outsiders.extend(config.watched_groups.iter().map(outsider));
    }
    let outsiders: Result<Vec<_>, _> = outsiders.into_iter().collect();
    let admin: Result<AdminClient<Notices>, _> = client(&config.kafka).create_with_context(cluster.notices());
    let (Ok(outsiders), Ok(admin)) = (outsiders, admin) else {
        // Not for want of brokers: it is what `open` did a moment ago.
        tracing::error!("kafka cannot be watched");
        return;
    };
    let outsiders = Arc::new(outsiders);
    let options = AdminOptions::new().request_timeout(Some(ASK));
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let all = match describe(&admin, &options, &config.kafka).await {
            Ok(all) => all,
            Err(error) => {
                cluster.reach.notice("describe", &error.to_string());
                continue;
            }
        };
        for (topic, settings) in Topic::ALL.into_iter().zip(all) {
            match settings {
                Ok(settings) if log_id(&settings).as_deref() != Some(cluster.log(topic)) => {
                    let why = format!("topic {} was made anew while this process ran", cluster.name(topic));
                    tracing::error!(why);
                    cluster.refused.send_replace(Some(why));
                    return;
                }
                Ok(_) => {}
                Err(error) => cluster.reach.notice("describe", &error.to_string()),
            }
        }
        let asked = (cluster.clone(), outsiders.clone());
        let fault = match blocking(move || lag(&asked.0, &asked.1)).await {
            Ok(lag) => lag,
            Err(error) => {
                cluster.reach.notice("lag", &error.to_string());
                continue;
            }
        };
        let mut known = cluster.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != fault {
            match &fault {
                Some(fault) => tracing::warn!(fault, "the bus is not ready"),
                None => tracing::info!("the bus is ready"),
            }
            *known = fault;
        }
    }
}

/// Which watched group has not read what the retention takes soon. Blocking.
fn lag(cluster: &Cluster, outsiders: &[Outsider]) -> Result<Option<String>, Error> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
    for outsider in outsiders {
        let name = cluster.name(outsider.topic);
        let old = now - (retention_s(&cluster.config, outsider.topic) as f64 * 1000.0 * LAG_OF_RETENTION) as i64;
        let left = outsider.checkpoints()?;
        let mine: Vec<_> = left.into_iter().filter(|left| left.1 == cluster.log(outsider.topic)).collect();
        let times: Vec<(u32, i64)> = mine.iter().map(|left| (left.0, old)).collect();
        let partitions: Vec<u32> = mine.iter().map(|left| left.0).collect();
        let young = cluster.asker.since(&name, &times)?;
        let ends = cluster.asker.ends(&name, &partitions)?;
        for (((partition, _, done), young), next) in mine.iter().zip(young).zip(ends) {
            if (*done as i64) < young.unwrap_or(next) {
                return Ok(Some(format!(
                    "group {} has records in partition {partition} of {name} to read that are older than \
                     {LAG_OF_RETENTION} of bus.retention_s",
                    outsider.group
                )));
            }
        }
    }
    Ok(None)
}
