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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use topic::Asker;

/// How long a question to the brokers may take: some reconnections and a leader's election.
const ASK: Duration = Duration::from_secs(10);
/// Bytes that wait to be sent; over it publishing is refused. As much as the embedded bus takes.
const QUEUE_KIB_MAX: u32 = 64 << 10;
/// How long records are gathered into a batch, milliseconds: half of one costs little latency and saves most requests.
const LINGER_MS: &str = "0.5";

/// What a client of librdkafka's tells: to our log.
#[derive(Clone)]
struct Telling;

impl ClientContext for Telling {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tell(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Telling {}

fn tell(level: RDKafkaLogLevel, fac: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(fac, message, "librdkafka");
        }
        _ => tracing::debug!(fac, message, "librdkafka"),
    }
}

/// What all parts know.
struct Cluster {
    config: Config,
    /// Of every topic, by `Topic as usize`; fixed when opened.
    logs: [String; Topic::ALL.len()],
    asker: Asker,
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
        // A broker that came back is found within a second (the default goes up to ten).
        .set("reconnect.backoff.max.ms", "1000")
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
    producing: Producing,
    stop: CancellationToken,
    _watch: DropGuard,
}

impl Kafka {
    /// Makes or checks the topics.
    ///
    /// # Errors
    /// [`Error::Refused`] where a topic is not as it must be; [`Error::Unavailable`].
    pub(crate) async fn open(config: &Config, stop: CancellationToken) -> Result<Self, Error> {
        let logs = topic::prepare(config).await?;
        let cluster = Arc::new(Cluster {
            config: config.clone(),
            logs,
            asker: Asker::new(&config.kafka)?,
            refused: watch::Sender::new(None),
            fault: Mutex::default(),
        });
        let watching = stop.child_token();
        tokio::spawn(watching.clone().run_until_cancelled_owned(topic::watch(cluster.clone())));
        let producing = Producing::new(&config.kafka)?;
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
                .and_then(|partition| self.producing.send(&self.cluster.name(topic), partition, &value))
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

/// The producer, made anew when librdkafka declares it dead.
struct Producing {
    config: config::Kafka,
    current: Mutex<FutureProducer<Telling>>,
}

impl Producing {
    fn new(config: &config::Kafka) -> Result<Self, Error> {
        let current = Mutex::new(producer(config)?);
        Ok(Self { config: config.clone(), current })
    }

    /// Queues `value`; the future resolves with its delivery.
    fn send(
        &self,
        topic: &str,
        partition: i32,
        value: &Bytes,
    ) -> Result<BoxFuture<'static, Result<Offset, Error>>, Error> {
        let record = FutureRecord::<(), [u8]>::to(topic).partition(partition).payload(value);
        // Held while it is queued: a producer that is being replaced must not be overtaken.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        revive(&mut current, &self.config);
        let producer = current.clone();
        let delivery = producer.send_result(record).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge) => Error::TooLarge(value.len()),
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                Error::Unavailable("the brokers are not keeping up".into())
            }
            error => unavailable(error),
        })?;
        drop(current);
        let bytes = value.len();
        Ok(async move {
            // Kept until the delivery is known: it is what polls for it.
            let result = delivery.await;
            drop(producer);
            match result {
                Ok(Ok(delivery)) => Ok(delivery.offset as Offset + 1),
                Ok(Err((error, _))) => Err(undelivered(&error, bytes)),
                Err(_) => Err(Error::Unknown("kafka: the producer was replaced".into())),
            }
        }
        .boxed())
    }
}

fn producer(config: &config::Kafka) -> Result<FutureProducer<Telling>, Error> {
    client(config)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("delivery.timeout.ms", config.delivery_timeout_ms.to_string())
        .set("linger.ms", LINGER_MS)
        .set("queue.buffering.max.kbytes", QUEUE_KIB_MAX.to_string())
        .set("message.max.bytes", topic::MESSAGE_BYTES_MAX.to_string())
        .create_with_context(Telling)
        .map_err(unavailable)
}

/// Replaces a producer that can do no more (an idempotent one that lost its place in the brokers' memory).
fn revive(current: &mut FutureProducer<Telling>, config: &config::Kafka) {
    let Some((code, reason)) = current.client().fatal_error() else { return };
    tracing::error!(%code, reason, "the producer is dead and is made anew");
    match producer(config) {
        Ok(new) => *current = new,
        Err(error) => tracing::error!(%error, "a producer cannot be made"),
    }
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
