//! The bus on Kafka, by librdkafka.
//!
//! ```text
//!  publish ─▶ librdkafka's queue ─▶ partition's leader, acks=all ─▶ delivery report ─▶ the future, offset + 1
//!  group's member: one client each ([`consumer`])      watch: topics, brokers, lag ([`topic`]) ─▶ `ready`
//! ```
//!
//! Invariants:
//! - what is acknowledged is in `min.insync.replicas` logs; what is not known to be is [`Error::Unknown`] within the
//!   delivery timeout;
//! - a caller's publishes to a partition are queued in the order of its calls, and an idempotent producer keeps it;
//! - a topic's log ID changes when the topic is made anew ([`topic`] says how it is kept).

mod consumer;
mod reach;
mod reader;
mod topic;

use crate::{Bus, Config, Consumer, Error, Offset, RECORD_BYTES_MAX, Reader, Start, Topic, config};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use reach::{Awake, Reach};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use topic::Asker;

/// How long a question to the brokers may take: some reconnections and a leader's election.
const ASK: Duration = Duration::from_secs(10);
/// Bytes that wait to be sent; over it publishing is refused. As much as the embedded bus takes.
const QUEUE_KIB_MAX: u32 = 64 << 10;
/// How long records are gathered into a batch, milliseconds: half of one costs little latency and saves most requests.
const LINGER_MS: &str = "0.5";

/// What a client of librdkafka's notices: to [`Reach`] and our log.
#[derive(Clone)]
struct Notices(Arc<Reach>);

impl Notices {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => self.0.notice(fac, message),
            _ => tracing::debug!(fac, message, "librdkafka"),
        }
    }

    fn error(&self, error: &KafkaError, reason: &str) {
        let kind = error.rdkafka_error_code().map_or_else(|| "error".to_owned(), |code| format!("{code:?}"));
        self.0.notice(&kind, reason);
    }
}

impl ClientContext for Notices {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        self.log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.error(&error, reason);
    }
}

impl ConsumerContext for Notices {}

/// What all parts know.
struct Cluster {
    config: Config,
    /// Of every topic, by `Topic as usize`; fixed when opened.
    logs: [String; Topic::ALL.len()],
    asker: Asker,
    reach: Arc<Reach>,
    awake: Awake,
    opened: Instant,
    /// Why nothing goes on, for good: a topic was made anew under a running process.
    refused: watch::Sender<Option<String>>,
    /// Why publishing cannot be expected to work.
    fault: Mutex<Option<String>>,
}

impl Cluster {
    fn partitions(&self, topic: Topic) -> u32 {
        partitions(&self.config, topic)
    }

    fn log(&self, topic: Topic) -> &str {
        &self.logs[topic as usize]
    }

    fn name(&self, topic: Topic) -> String {
        name(&self.config.kafka, topic)
    }

    fn notices(&self) -> Notices {
        Notices(self.reach.clone())
    }

    /// For how long the brokers have answered; `None` while they do not.
    fn there_for(&self) -> Option<Duration> {
        self.reach.there_for(self.opened)
    }

    fn partition(&self, topic: Topic, partition: u32) -> Result<i32, Error> {
        let partitions = self.partitions(topic);
        if partition >= partitions {
            return Err(Error::Refused(format!("{} has no partition {partition}, but {partitions}", topic.name())));
        }
        Ok(partition as i32)
    }
}

fn partitions(config: &Config, topic: Topic) -> u32 {
    match topic {
        Topic::Rooms | Topic::Pushes => config.partitions,
        Topic::Control | Topic::DeadLetters => 1,
    }
}

/// The topic's name in Kafka.
fn name(config: &config::Kafka, topic: Topic) -> String {
    format!("{}{}", config.topic_prefix, topic.name())
}

/// The name of `group` in Kafka: one for each topic, so that the membership of one does not move another's partitions.
fn group_name(config: &config::Kafka, topic: Topic, group: &str) -> String {
    format!("{}.{group}", name(config, topic))
}

/// What every client is told.
fn client(config: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", "barrage")
        // A broker that came back is found within half a second (the default goes up to ten).
        .set("reconnect.backoff.max.ms", "500")
        // A connection that a stopped or vanished broker does not answer is given up: until then nobody finds the way back.
        // The defaults are 30 and 60 seconds. A handshake takes milliseconds, an answer at most ten seconds (`ASK`).
        .set("socket.connection.setup.timeout.ms", "5000")
        .set("socket.timeout.ms", "10000")
        .set("socket.keepalive.enable", "true")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (key, value) in &config.properties {
        client.set(key, value);
    }
    client
}

fn unavailable(error: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("kafka: {error}"))
}

/// Why a record that was queued was not acknowledged. One that is too long never was in the log. Of any other, also one
/// that still was in the queue, an earlier try may have reached it, and the answer may be lost.
fn undelivered(error: &KafkaError, bytes: usize) -> Error {
    use RDKafkaErrorCode as Code;
    match error {
        KafkaError::MessageProduction(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => Error::TooLarge(bytes),
        error => Error::Unknown(format!("kafka: {error}")),
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(unavailable(error)))
}

/// The bus on Kafka.
pub(crate) struct Kafka {
    cluster: Arc<Cluster>,
    producing: Arc<Producing>,
    stop: CancellationToken,
    _watch: DropGuard,
}

impl Kafka {
    /// Makes or checks the topics.
    ///
    /// # Errors
    /// [`Error::Refused`] where a topic is not as it must be; [`Error::Unavailable`].
    pub(crate) async fn open(config: &Config, stop: CancellationToken) -> Result<Self, Error> {
        let reach = Arc::new(Reach::default());
        let logs = topic::prepare(config, &Notices(reach.clone())).await?;
        let producing = Arc::new(Producing::new(&config.kafka, Notices(reach.clone()))?);
        let cluster = Arc::new(Cluster {
            config: config.clone(),
            logs,
            asker: Asker::new(&config.kafka, Notices(reach.clone()))?,
            reach,
            awake: Awake::new(Duration::from_millis(u64::from(config.kafka.session_timeout_ms) / 2)),
            opened: Instant::now(),
            refused: watch::Sender::new(None),
            fault: Mutex::default(),
        });
        let watching = stop.child_token();
        tokio::spawn(watching.clone().run_until_cancelled_owned(topic::watch(cluster.clone())));
        tokio::spawn(watching.clone().run_until_cancelled_owned(topic::stay_awake(cluster.clone())));
        Ok(Self { cluster, producing, stop, _watch: watching.drop_guard() })
    }
}

#[async_trait]
impl Bus for Kafka {
    fn partitions(&self, topic: Topic) -> u32 {
        self.cluster.partitions(topic)
    }

    fn log(&self, topic: Topic) -> String {
        self.cluster.log(topic).to_owned()
    }

    fn publish(&self, topic: Topic, partition: u32, value: Bytes) -> BoxFuture<'static, Result<Offset, Error>> {
        let queued = if value.len() > RECORD_BYTES_MAX {
            Err(Error::TooLarge(value.len()))
        } else if let Err(why) = self.usable() {
            Err(Error::Unavailable(why))
        } else {
            self.cluster
                .partition(topic, partition)
                .and_then(|partition| self.producing.send(&self.cluster, &self.cluster.name(topic), partition, &value))
        };
        match queued {
            Ok(delivered) => delivered,
            Err(error) => ready(Err(error)).boxed(),
        }
    }

    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(consumer::Member::join(&self.cluster, topic, group).await?))
    }

    async fn read(&self, topic: Topic, partition: u32, start: Start) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(reader::Lone::new(&self.cluster, topic, partition, start).await?))
    }

    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), Error> {
        self.cluster.partition(topic, partition)?;
        let cluster = self.cluster.clone();
        blocking(move || {
            let (first, next) = cluster.asker.edges(&cluster.name(topic), &[partition])?.remove(0);
            Ok((first as Offset + 1, next as Offset + 1))
        })
        .await
    }

    async fn ends(&self, topic: Topic, partitions: &[u32]) -> Result<Vec<Offset>, Error> {
        partitions.iter().try_for_each(|&partition| self.cluster.partition(topic, partition).map(drop))?;
        let (cluster, partitions) = (self.cluster.clone(), partitions.to_vec());
        blocking(move || {
            let ends = cluster.asker.ends(&cluster.name(topic), &partitions)?;
            Ok(ends.into_iter().map(|end| end as Offset + 1).collect())
        })
        .await
    }

    fn ready(&self) -> Result<(), String> {
        self.usable()?;
        if let Some(why) = self.cluster.reach.away() {
            return Err(why);
        }
        self.cluster.fault.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

impl Kafka {
    fn usable(&self) -> Result<(), String> {
        if self.stop.is_cancelled() {
            return Err("the bus has stopped".into());
        }
        self.cluster.refused.borrow().clone().map_or(Ok(()), Err)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let producer = self.producing.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let timeout = Duration::from_millis(self.cluster.config.kafka.delivery_timeout_ms.into());
        // Whoever dropped the future of a publish did not take the record back. Waits for the brokers: elsewhere.
        std::thread::spawn(move || {
            if let Err(error) = producer.flush(timeout) {
                tracing::warn!(%error, "records are not known to be durable");
            }
        });
    }
}

/// The producer, made anew when librdkafka declares it dead, or when it delivers nothing though the brokers answer.
struct Producing {
    config: config::Kafka,
    notices: Notices,
    current: Mutex<FutureProducer<Notices>>,
    /// Counts producers: a record's failure says something of its own one only.
    number: AtomicU64,
    /// The number of a producer that let a record time out while the brokers answered.
    stuck: AtomicU64,
}

impl Producing {
    fn new(config: &config::Kafka, notices: Notices) -> Result<Self, Error> {
        let current = Mutex::new(producer(config, &notices)?);
        Ok(Self { config: config.clone(), notices, current, number: AtomicU64::new(1), stuck: AtomicU64::new(0) })
    }

    /// Queues `value`; the future resolves with its delivery.
    fn send(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        topic: &str,
        partition: i32,
        value: &Bytes,
    ) -> Result<BoxFuture<'static, Result<Offset, Error>>, Error> {
        let record = FutureRecord::<(), [u8]>::to(topic).partition(partition).payload(value);
        // Held while it is queued: a producer that is being replaced must not be overtaken.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.revive(&mut current);
        let number = self.number.load(Ordering::Relaxed);
        let producer = current.clone();
        let delivery = producer.send_result(record).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge) => Error::TooLarge(value.len()),
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                Error::Unavailable("the brokers are not keeping up".into())
            }
            error => unavailable(error),
        })?;
        drop(current);
        let (bytes, cluster, producing) = (value.len(), cluster.clone(), self.clone());
        Ok(async move {
            // Kept until the delivery is known: it is what polls for it.
            let result = delivery.await;
            drop(producer);
            match result {
                Ok(Ok(delivery)) => {
                    cluster.reach.back();
                    Ok(delivery.offset as Offset + 1)
                }
                Ok(Err((error, _))) => {
                    let timeout = Duration::from_millis(producing.config.delivery_timeout_ms.into());
                    if matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut))
                        && cluster.there_for().is_some_and(|there| there > timeout)
                    {
                        producing.stuck.store(number, Ordering::Relaxed);
                    }
                    Err(undelivered(&error, bytes))
                }
                Err(_) => Err(Error::Unknown("kafka: the producer was replaced".into())),
            }
        }
        .boxed())
    }

    /// Replaces a producer that can do no more: an idempotent one that lost its place in the brokers' memory, or one that
    /// let a whole delivery timeout go by while the brokers answered others.
    fn revive(&self, current: &mut FutureProducer<Notices>) {
        let number = self.number.load(Ordering::Relaxed);
        if let Some((code, reason)) = current.client().fatal_error() {
            tracing::error!(%code, reason, "the producer is dead and is made anew");
        } else if self.stuck.load(Ordering::Relaxed) == number {
            tracing::error!("the producer delivers nothing though kafka answers: it is made anew");
        } else {
            return;
        }
        match producer(&self.config, &self.notices) {
            Ok(new) => {
                // Dropping the old one waits for its last records: elsewhere.
                let old = std::mem::replace(current, new);
                self.number.store(number + 1, Ordering::Relaxed);
                consumer::drop_elsewhere(old);
            }
            Err(error) => tracing::error!(%error, "a producer cannot be made"),
        }
    }
}

fn producer(config: &config::Kafka, notices: &Notices) -> Result<FutureProducer<Notices>, Error> {
    client(config)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("delivery.timeout.ms", config.delivery_timeout_ms.to_string())
        .set("linger.ms", LINGER_MS)
        .set("queue.buffering.max.kbytes", QUEUE_KIB_MAX.to_string())
        .set("message.max.bytes", topic::MESSAGE_BYTES_MAX.to_string())
        .create_with_context(notices.clone())
        .map_err(unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_queued_and_not_answered_is_not_known() {
        use RDKafkaErrorCode as Code;
        for code in [Code::MessageTimedOut, Code::PurgeQueue, Code::PurgeInflight, Code::NotEnoughReplicasAfterAppend] {
            let error = undelivered(&KafkaError::MessageProduction(code), 7);
            assert!(matches!(&error, Error::Unknown(_)), "{code:?}: {error}");
        }
        let error = undelivered(&KafkaError::MessageProduction(Code::MessageSizeTooLarge), 7);
        assert!(matches!(error, Error::TooLarge(7)), "{error}");
    }
}
