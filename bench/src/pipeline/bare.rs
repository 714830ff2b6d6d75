//! What a message cannot be faster than: one sync of a small append to this disk, or one record through Kafka with
//! nothing around it. Measured while the server works, in the pauses between its messages, and from the intended time as
//! these are: what this client is late by is in both.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};

use crate::tally::{microseconds, record};

/// What is written each time, bytes: a batch of one record of the embedded bus is about as long.
const WRITE_BYTES: usize = 256;
/// How long Kafka may take for anything.
const KAFKA_WITHIN: Duration = Duration::from_secs(10);

/// When each is to begin: the first at `first`, then one every `every`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beat {
    pub(crate) first: Instant,
    pub(crate) every: Duration,
    pub(crate) count: u32,
}

impl Beat {
    /// When number `number` is due.
    pub(crate) fn due(&self, number: u32) -> Instant {
        self.first + self.every * number
    }

    /// Sleeps until number `number` is due.
    pub(crate) fn wait(&self, number: u32) -> Instant {
        /// A sleep ends some tens of microseconds late; what is left is spun.
        const SPIN: Duration = Duration::from_micros(150);
        let due = self.due(number);
        thread::sleep(due.saturating_duration_since(Instant::now()).saturating_sub(SPIN));
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        due
    }
}

/// Appends to a file in `directory` and syncs it, at each beat; microseconds from the beat until it is durable.
///
/// # Errors
/// The system's.
pub(crate) fn syncs(directory: &Path, beat: Beat) -> std::io::Result<Histogram<u64>> {
    let path = directory.join(format!("barrage-bench-{}", std::process::id()));
    let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
    let mut took = microseconds();
    let mut all = || {
        // The file's own first blocks are not what is to be measured.
        file.write_all_at(&[b'x'; WRITE_BYTES], 0)?;
        file.sync_all()?;
        for number in 0..beat.count {
            let due = beat.wait(number);
            file.write_all_at(&[b'x'; WRITE_BYTES], u64::from(number + 1) * WRITE_BYTES as u64)?;
            file.sync_data()?;
            record(&mut took, due.elapsed().as_micros() as u64);
        }
        Ok(())
    };
    let result = all();
    std::fs::remove_file(&path)?;
    result.map(|()| took)
}

/// A topic of its own, with a producer and a consumer that have met.
pub(crate) struct Kafka {
    topic: String,
    admin: AdminClient<DefaultClientContext>,
    producer: ThreadedProducer<DefaultProducerContext>,
    consumer: BaseConsumer,
}

impl Kafka {
    /// Makes them, and sends a first record all the way, so that no connection is made later.
    ///
    /// # Errors
    /// Kafka's.
    pub(crate) fn open(brokers: &str) -> Result<Self, String> {
        let topic = format!("barrage-bench-{:016x}", rand::random::<u64>());
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", brokers);
        let admin: AdminClient<DefaultClientContext> = client.create().map_err(told)?;
        let producer = client.clone().set("acks", "all").set("linger.ms", "0").create().map_err(told)?;
        let consumer: BaseConsumer =
            client.clone().set("group.id", &topic).set("enable.auto.commit", "false").create().map_err(told)?;
        let this = Self { topic, admin, producer, consumer };
        let new = NewTopic::new(&this.topic, 1, TopicReplication::Fixed(-1));
        block_on(this.admin.create_topics([&new], &options()))?;
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&this.topic, 0, Offset::Beginning).map_err(told)?;
        this.consumer.assign(&from).map_err(told)?;
        this.send(&[0; WRITE_BYTES])?;
        let until = Instant::now() + KAFKA_WITHIN;
        while !matches!(this.consumer.poll(Duration::from_millis(100)), Some(Ok(_))) {
            if Instant::now() > until {
                return Err("the first record did not come back".into());
            }
        }
        Ok(this)
    }

    fn send(&self, payload: &[u8]) -> Result<(), String> {
        let record = BaseRecord::<(), [u8]>::to(&self.topic).partition(0).payload(payload);
        self.producer.send(record).map_err(|(error, _)| told(error))
    }

    /// Produces a record at each beat (acks=all) and consumes it; microseconds from the beat until it is there.
    ///
    /// # Errors
    /// Kafka's.
    pub(crate) fn measure(self, beat: Beat) -> Result<Histogram<u64>, String> {
        let (zero, until) = (Instant::now(), beat.first + beat.every * beat.count + KAFKA_WITHIN);
        let took = thread::scope(|scope| {
            let consuming = scope.spawn(|| {
                let mut took = microseconds();
                while took.len() < u64::from(beat.count) && Instant::now() < until {
                    let Some(Ok(message)) = self.consumer.poll(Duration::from_millis(100)) else { continue };
                    let now = zero.elapsed();
                    let Some(sent) = message.payload().and_then(|payload| payload.first_chunk::<8>()) else { continue };
                    let sent = Duration::from_nanos(u64::from_le_bytes(*sent));
                    record(&mut took, now.saturating_sub(sent).as_micros() as u64);
                }
                took
            });
            for number in 0..beat.count {
                let due = beat.wait(number);
                let mut payload = [b'x'; WRITE_BYTES];
                payload[..8].copy_from_slice(&((due - zero).as_nanos() as u64).to_le_bytes());
                self.send(&payload)?;
            }
            consuming.join().map_err(|_| "the consumer panicked".to_owned())
        })?;
        if took.len() < u64::from(beat.count) {
            return Err(format!("only {} of {} records came back", took.len(), beat.count));
        }
        Ok(took)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // That the topic stays, should this fail, is no reason to have measured nothing.
        let _ = block_on(self.admin.delete_topics(&[&self.topic], &options()));
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(KAFKA_WITHIN)).request_timeout(Some(KAFKA_WITHIN))
}

fn block_on<T>(asking: impl Future<Output = Result<T, KafkaError>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(asking).map_err(told)
}

fn told(error: KafkaError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_come_at_their_beats_and_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let beat = Beat { first: Instant::now(), every: Duration::from_millis(2), count: 5 };
        assert_eq!(syncs(directory.path(), beat).unwrap().len(), 5);
        assert!(beat.first.elapsed() >= Duration::from_millis(8));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert!(syncs(&directory.path().join("none"), beat).is_err());
    }
}
