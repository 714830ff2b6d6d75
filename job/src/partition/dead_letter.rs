//! Records that cannot be read, put aside on a topic of their own.

use std::time::Duration;

use bus::{Bus, Offset, Topic};
use bytes::Bytes;
use prost::Message as _;
use proto::record;

/// Before a claim or a dead letter is published again.
const RETRY: Duration = Duration::from_millis(300);

/// Publishes until the bus has it. A repetition is harmless: the last claim counts, a dead letter names its place.
pub(super) async fn publish(bus: &dyn Bus, topic: Topic, partition: u32, value: Bytes) -> Offset {
    loop {
        match bus.publish(topic, partition, value.clone()).await {
            Ok(offset) => return offset,
            Err(error) => tracing::warn!(?topic, partition, %error, "cannot be published now"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The record of a dead letter, the unreadable one cut where it would make this one too large.
pub(super) fn encode(topic: Topic, partition: u32, offset: Offset, log: &str, reason: &str, record: &Bytes) -> Bytes {
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
