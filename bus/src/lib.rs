//! The ordered, partitioned, durable log between logic and job: the [`Bus`] seam.
//!
//! What it is: topics of a fixed number of partitions; a record, once acknowledged, has an offset that never changes
//! and is on disk (embedded: fsynced; Kafka: acks=all). What it is not: a queue; nothing is removed by being read.
//!
//! ```text
//!  logic ─publish─▶ partition 0 │1│2│3│4│…      offsets begin at 1
//!                   partition 1 │1│2│…    ─consumer─▶ job   (a partition has one owner in a group)
//! ```
//!
//! Invariants:
//! - what was acknowledged is read by every consumer that starts at or before it, until the retention takes it;
//! - records published by one caller to one partition, in the order of its calls to [`Bus::publish`], have rising
//!   offsets in that order;
//! - offsets of two logs ([`Bus::log`]) are never compared: a recreated topic has another log ID.

pub mod config;
mod embedded;
mod kafka;
mod quiet;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

// What the tests share names this crate.
#[cfg(test)]
extern crate self as bus;

pub use config::{Config, HEARTBEAT_MS_MAX, SESSION_TIMEOUT_MS_MIN};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A record's place in its partition, from 1 (Kafka's offset plus one), so that 0 is "before the first".
pub type Offset = u64;

/// What a record must survive decides its topic (rule 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Messages to rooms; a partition count of the configuration's.
    Rooms,
    /// Pushes and commands to who is online, at most once; as many partitions.
    Pushes,
    /// What every logic must know (penalties); one partition, kept as long as the longest penalty.
    Control,
    /// Records that could not be read, with the reason; one partition.
    DeadLetters,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rooms, Self::Pushes, Self::Control, Self::DeadLetters];

    /// Its name in logs, metrics and, behind the configured prefix, in Kafka.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rooms => "rooms",
            Self::Pushes => "pushes",
            Self::Control => "control",
            Self::DeadLetters => "dead-letters",
        }
    }
}

/// Opens the configured log, or makes it. Cancel `stop` after everyone who publishes has ended: what was taken is made
/// durable, more is refused, and the log is released.
///
/// # Errors
/// [`Error::Refused`] where the log is damaged, in use, or not as configured: an operator decides;
/// [`Error::Unavailable`] where it cannot be reached.
pub async fn open(config: &Config, stop: CancellationToken) -> Result<Arc<dyn Bus>, Error> {
    match config.kind {
        config::Kind::Embedded => {
            let config = config.clone();
            let opened = tokio::task::spawn_blocking(move || embedded::Embedded::open(&config)).await;
            let bus = opened.map_err(|error| Error::Unavailable(error.to_string()))??;
            bus.stop_with(stop);
            Ok(Arc::new(bus))
        }
        config::Kind::Kafka => Ok(Arc::new(kafka::Kafka::open(config, stop).await?)),
    }
}

/// Whether a checkpoint (its log's ID, the last offset that is done) fits a partition (the log's ID, first kept offset,
/// next offset): rule 1.
fn fits(
    topic: Topic,
    group: &str,
    partition: u32,
    (log, done): (&str, Offset),
    (now, first, next): (&str, Offset, Offset),
) -> Result<(), Error> {
    let wrong = if log != now {
        format!("was left in log {log}, and this is {now}: the topic was recreated or restored")
    } else if done >= next {
        format!("is {done}, beyond the end of the log, whose next offset is {next}: it was cut or restored")
    } else if done + 1 < first {
        format!("is {done}, and the oldest record that is kept is {first}: what lies between was never read")
    } else {
        return Ok(());
    };
    Err(Error::Refused(format!(
        "the checkpoint of group {group} in partition {partition} of {} {wrong}. Set bus.accept_new_log to go on \
         with the log as it is",
        topic.name()
    )))
}

/// Why a record was not taken or cannot be read. Only [`Error::TooLarge`] is the writer's fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not available now. From [`Bus::publish`]: the record is not in the log and never will be, so any retry is safe.
    #[error("the bus is not available: {0}")]
    Unavailable(String),
    /// Only from [`Bus::publish`]: the record was sent, and no answer came. It is in the log, or will be, or never will.
    /// A retry is safe only with the same message ID, which readers drop the second time.
    #[error("it is not known whether the bus has the record: {0}")]
    Unknown(String),
    /// Longer than [`RECORD_BYTES_MAX`].
    #[error("a record of {0} bytes is over the limit of {RECORD_BYTES_MAX}")]
    TooLarge(usize),
    /// The log is not the one that was left: damaged, cut, recreated, or of another partition count. An operator
    /// decides.
    #[error("{0}")]
    Refused(String),
}

/// Longest record, bytes: a payload of 64 KiB from the API, as much again for what goim's push carried, and the rest.
pub const RECORD_BYTES_MAX: usize = 192 * 1024;

/// A record as read.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its place.
    pub offset: Offset,
    /// Milliseconds since 1970 when the log took it.
    pub time_ms: i64,
    /// What was published.
    pub value: Bytes,
}

/// Where a partition is to be read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The record at this offset, or the oldest that is kept where that one no longer is.
    At(Offset),
    /// The first record that the log took at or after this time, milliseconds since 1970.
    Since(i64),
    /// Only what is published from now on.
    End,
}

/// What a consumer is told.
#[derive(Debug)]
pub enum Event {
    /// The partition is this consumer's until it is revoked. Nothing is read from it before [`Consumer::start`].
    Assigned(u32),
    /// No longer this consumer's: do not commit for it, stop delivering from it.
    Revoked(u32),
    /// Records of one partition, at least one, in order, with no gap but what the retention took.
    Records(u32, Vec<Record>),
}

/// The log.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Partitions of `topic`.
    fn partitions(&self, topic: Topic) -> u32;

    /// The log ID of `topic`: 1-64 of `A-Z a-z 0-9 _ . -`; another one after it was recreated or restored.
    fn log(&self, topic: Topic) -> String;

    /// Takes `value` into the order of `partition` before it returns; the future resolves with its offset when it is
    /// durable. Dropping the future does not take the record back.
    ///
    /// # Errors
    /// [`Error::Unavailable`] (the record is not in the log), [`Error::Unknown`] (it may be: retry only with the same
    /// message ID), [`Error::TooLarge`], or [`Error::Refused`] for a partition that there is not.
    fn publish(&self, topic: Topic, partition: u32, value: Bytes) -> BoxFuture<'static, Result<Offset, Error>>;

    /// Joins `group` on `topic`. The group's partitions are shared out among its live consumers.
    ///
    /// # Errors
    /// [`Error::Refused`] where the group's checkpoint does not fit the log; [`Error::Unavailable`].
    async fn consume(&self, topic: Topic, group: &str) -> Result<Box<dyn Consumer>, Error>;

    /// Reads all of `topic`'s `partition` outside of any group: for the control topic, and for tools.
    ///
    /// # Errors
    /// As [`Bus::consume`].
    async fn read(&self, topic: Topic, partition: u32, start: Start) -> Result<Box<dyn Reader>, Error>;

    /// First offset that is kept and the one that the next record gets.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn bounds(&self, topic: Topic, partition: u32) -> Result<(Offset, Offset), Error>;

    /// The offset that the next record gets in each of `partitions`: one question to Kafka, however many they are.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn ends(&self, topic: Topic, partitions: &[u32]) -> Result<Vec<Offset>, Error>;

    /// Whether publishing can be expected to work now, with the reason where it cannot. For readiness, and to be asked
    /// before a message is accepted from outside: it refuses, too, when what `bus.watched_groups` have not read nears
    /// the retention (rule 4), while [`Bus::publish`] goes on for those who catch up. Cheap.
    fn ready(&self) -> Result<(), String>;
}

/// One member of a group.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for the next event. Safe to cancel. Must be called again and again, also while nothing can be taken
    /// ([`Consumer::pause`]): a member that is not asked holds up its group, and Kafka puts it out after 30 s.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a passing fault (call again), [`Error::Refused`] for good.
    async fn next(&mut self) -> Result<Event, Error>;

    /// Begins, or begins anew, to read an assigned partition. Not waiting: it takes effect with a later `next`.
    fn start(&mut self, partition: u32, from: Start);

    /// Stops and goes on reading an assigned partition, while the group is polled all the same (rule 11).
    fn pause(&mut self, partition: u32, paused: bool);

    /// Everything up to and with `offset` is done. Kept with the log ID; written soon, and on a graceful end. Ignored
    /// for a partition that is not assigned.
    fn commit(&mut self, partition: u32, offset: Offset);

    /// The same, and resolves when the checkpoint cannot be lost any more: whoever must not do twice what lies before it
    /// does that afterwards. It fails where another member has the partition by now.
    ///
    /// # Errors
    /// [`Error::Unavailable`], as everywhere.
    fn commit_now(&mut self, partition: u32, offset: Offset) -> BoxFuture<'static, Result<(), Error>> {
        // Of the embedded log: its members are all of one process, which sees it at once and ends with its clients.
        self.commit(partition, offset);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Has a partition as if it were assigned, though the group still says that it is another member's: for whoever takes
    /// over from one that has fallen silent before the group knows. No event tells of it. If the group assigns it later,
    /// [`Event::Assigned`] does, and what is being read goes on. False: not now, or not with this log (whose members are
    /// all of one process).
    fn adopt(&mut self, _partition: u32) -> bool {
        false
    }

    /// Gives an adopted partition up. Nothing for one that the group has assigned since.
    fn abandon(&mut self, _partition: u32) {}

    /// The last committed offset of an assigned partition, 0 where there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn committed(&mut self, partition: u32) -> Result<Offset, Error>;

    /// Leaves the group, so that others take over at once.
    async fn leave(self: Box<Self>);
}

/// A reader outside of any group.
#[async_trait]
pub trait Reader: Send {
    /// Waits for more records. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a passing fault (call again), [`Error::Refused`] for good.
    async fn next(&mut self) -> Result<Vec<Record>, Error>;
}
