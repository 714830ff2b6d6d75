//! The `[bus]` section of the configuration.

use proto::config::{Invalid, require};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Most partitions: a segment's header names the first offset of each, and so many more would not be read by anyone.
pub const PARTITIONS_MAX: u32 = 4096;

/// Shortest `bus.kafka.session_timeout_ms`, milliseconds: who takes a partition over from a member that died counts on
/// it to know what that one cannot have read. Brokers take no less by default.
pub const SESSION_TIMEOUT_MS_MIN: u32 = 6000;

/// Longest time between two heartbeats of a member of a group, milliseconds: its silence may have begun so much before
/// its death.
pub const HEARTBEAT_MS_MAX: u32 = 1000;

/// What the log is and how long it keeps what it took. The shipped file is the defaults.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which implementation.
    pub kind: Kind,
    /// Partitions of `rooms` and of `pushes`; never changes in the life of a log (rule 3).
    pub partitions: u32,
    /// The operator's word that a log which is not the one that a checkpoint was left in is to be read all the same.
    pub accept_new_log: bool,
    /// Groups whose lag makes [`crate::Bus::ready`] refuse before the retention takes what they have not read (rule 4).
    pub watched_groups: Vec<String>,
    /// How long `rooms` and `pushes` are kept, seconds.
    pub retention_s: u64,
    /// How long `control` is kept, seconds.
    pub control_retention_s: u64,
    /// How long `dead-letters` is kept, seconds.
    pub dead_letter_retention_s: u64,
    /// Of the embedded log.
    pub embedded: Embedded,
    /// Of Kafka.
    pub kafka: Kafka,
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Segments in a directory of this process.
    Embedded,
    /// A Kafka cluster.
    Kafka,
}

/// The embedded log's keys.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Embedded {
    /// The directory; made where it is missing, used by one process at a time.
    pub directory: PathBuf,
    /// How much `rooms` and `pushes` together, and each other topic, keep, bytes.
    pub retention_bytes: u64,
}

/// Kafka's keys.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// Stands before the topics' names, so that clusters can share brokers.
    pub topic_prefix: String,
    /// Copies of each partition of a topic that is created here; at least 3, but for development.
    pub replication: u32,
    /// Copies that must have a record before it is acknowledged; at least 2, but for development.
    pub min_in_sync: u32,
    /// One broker will do: copies are not asked for.
    pub development: bool,
    /// How long a consumer may be silent before its partitions go to others, milliseconds (rule 11). At least
    /// [`SESSION_TIMEOUT_MS_MIN`].
    pub session_timeout_ms: u32,
    /// How long a publish may take before it is told that it is not known to be durable, milliseconds.
    pub delivery_timeout_ms: u32,
    /// More of librdkafka's properties for every client: `security.protocol`, `sasl.*`, `ssl.*`.
    pub properties: BTreeMap<String, String>,
}

impl Config {
    /// Whether it can work.
    ///
    /// # Errors
    /// [`Invalid`] with the first key that cannot.
    pub fn check(&self) -> Result<(), Invalid> {
        let (embedded, kafka) = (&self.embedded, &self.kafka);
        require(
            (1..=PARTITIONS_MAX).contains(&self.partitions),
            "bus.partitions",
            self.partitions,
            "1 to 4096, the same for ever",
        )?;
        for (key, seconds) in [
            ("bus.retention_s", self.retention_s),
            ("bus.control_retention_s", self.control_retention_s),
            ("bus.dead_letter_retention_s", self.dead_letter_retention_s),
        ] {
            require((60..=u64::from(u32::MAX)).contains(&seconds), key, seconds, "at least 60 seconds")?;
        }
        for group in &self.watched_groups {
            require(proto::channel::is_id(group), "bus.watched_groups", group, "names of 1-64 of A-Z a-z 0-9 _ . -")?;
        }
        match self.kind {
            Kind::Embedded => {
                require(
                    !embedded.directory.as_os_str().is_empty(),
                    "bus.embedded.directory",
                    embedded.directory.display(),
                    "a directory",
                )?;
                require(
                    embedded.retention_bytes >= 16 << 20,
                    "bus.embedded.retention_bytes",
                    embedded.retention_bytes,
                    "at least 16777216 (16 MiB)",
                )
            }
            Kind::Kafka => {
                require(
                    !kafka.brokers.is_empty() && kafka.brokers.iter().all(|broker| broker.contains(':')),
                    "bus.kafka.brokers",
                    kafka.brokers.join(","),
                    "a list of host:port",
                )?;
                require(
                    kafka.topic_prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
                        && kafka.topic_prefix.len() <= 200,
                    "bus.kafka.topic_prefix",
                    &kafka.topic_prefix,
                    "at most 200 of A-Z a-z 0-9 _ . -",
                )?;
                require(
                    kafka.replication >= if kafka.development { 1 } else { 3 } && kafka.replication <= 100,
                    "bus.kafka.replication",
                    kafka.replication,
                    "at least 3, unless bus.kafka.development is true",
                )?;
                require(
                    kafka.min_in_sync >= if kafka.development { 1 } else { 2 }
                        && kafka.min_in_sync <= kafka.replication,
                    "bus.kafka.min_in_sync",
                    kafka.min_in_sync,
                    "at least 2, unless bus.kafka.development is true, and at most bus.kafka.replication",
                )?;
                require(
                    (SESSION_TIMEOUT_MS_MIN..=60_000).contains(&kafka.session_timeout_ms),
                    "bus.kafka.session_timeout_ms",
                    kafka.session_timeout_ms,
                    "6000 to 60000",
                )?;
                require(
                    (1000..=300_000).contains(&kafka.delivery_timeout_ms),
                    "bus.kafka.delivery_timeout_ms",
                    kafka.delivery_timeout_ms,
                    "1000 to 300000",
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Shipped {
        bus: Config,
    }

    fn shipped() -> Config {
        toml::from_str::<Shipped>(include_str!("../../config/barrage.toml")).unwrap().bus
    }

    #[test]
    fn the_shipped_values_work_with_either_log() {
        let mut config = shipped();
        assert_eq!(config.check(), Ok(()));
        config.kind = Kind::Kafka;
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.partitions, 64);
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_key() {
        type Spoil = fn(&mut Config);
        let bad: [(&str, Spoil); 9] = [
            ("bus.partitions", |config| config.partitions = 0),
            ("bus.retention_s", |config| config.retention_s = 1),
            ("bus.watched_groups", |config| config.watched_groups = vec!["a b".into()]),
            ("bus.kafka.brokers", |config| config.kafka.brokers = vec!["kafka".into()]),
            ("bus.kafka.topic_prefix", |config| config.kafka.topic_prefix = "a/".into()),
            ("bus.kafka.replication", |config| config.kafka.replication = 2),
            ("bus.kafka.min_in_sync", |config| config.kafka.min_in_sync = 1),
            ("bus.kafka.session_timeout_ms", |config| config.kafka.session_timeout_ms = SESSION_TIMEOUT_MS_MIN - 1),
            ("bus.kafka.delivery_timeout_ms", |config| config.kafka.delivery_timeout_ms = 0),
        ];
        for (key, spoil) in bad {
            let mut config = shipped();
            config.kind = Kind::Kafka;
            spoil(&mut config);
            assert_eq!(config.check().unwrap_err().key, key);
        }
        let mut config = shipped();
        config.embedded.retention_bytes = 1;
        assert_eq!(config.check().unwrap_err().key, "bus.embedded.retention_bytes");
        // A single broker will do for development.
        (config.kind, config.kafka.development) = (Kind::Kafka, true);
        (config.kafka.replication, config.kafka.min_in_sync) = (1, 1);
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let spoilt = include_str!("../../config/barrage.toml").replace("accept_new_log", "accept_any_log");
        assert!(toml::from_str::<Shipped>(&spoilt).is_err_and(|error| error.to_string().contains("accept_any_log")));
    }
}
