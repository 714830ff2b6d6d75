//! What the tests of both implementations share: a configuration, values, and reading until a condition holds.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each test binary uses a part")]

pub mod kafka;

use bus::{Bus, Config, Consumer, Event, Record, Start, Topic};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The shipped configuration with the log in `dir`.
pub fn config(dir: &Path) -> Config {
    #[derive(serde::Deserialize)]
    struct File {
        bus: Config,
    }
    let file: File = toml::from_str(include_str!("../../../config/barrage.toml")).expect("the shipped file is read");
    let mut config = file.bus;
    config.check().expect("the shipped file is right");
    config.embedded.directory = dir.to_owned();
    config
}

/// Long enough for a loaded machine; a test that waits for so long has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// `future` within [`DEADLINE`].
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("within the deadline")
}

/// Publishes `count` values `<name> <n>` to `partition`, all in flight at once, and waits for all; their offsets.
pub async fn publish(bus: &dyn Bus, topic: Topic, partition: u32, name: &str, count: u64) -> Vec<u64> {
    let futures: Vec<_> =
        (0..count).map(|n| bus.publish(topic, partition, Bytes::from(format!("{name} {n}")))).collect();
    let mut offsets = Vec::new();
    for future in futures {
        offsets.push(soon(future).await.expect("published"));
    }
    offsets
}

/// What was published, as text.
pub fn text(record: &Record) -> String {
    String::from_utf8(record.value.to_vec()).expect("the tests publish text")
}

/// What a consumer has.
#[derive(Default, Debug)]
pub struct Seen {
    /// Partitions that are its own.
    pub owned: Vec<u32>,
    /// Records by partition.
    pub records: BTreeMap<u32, Vec<Record>>,
}

impl Seen {
    /// Takes events until `enough`; starts what is assigned at what `from` says.
    pub async fn until(
        &mut self,
        consumer: &mut dyn Consumer,
        from: impl Fn(u32) -> Start,
        enough: impl Fn(&Self) -> bool,
    ) {
        let until = tokio::time::Instant::now() + DEADLINE;
        while !enough(self) {
            let event = tokio::time::timeout_at(until, consumer.next()).await;
            let event = event.unwrap_or_else(|_| panic!("within the deadline; owned: {:?}", self.owned));
            self.note(event.expect("an event"), consumer, &from);
        }
    }

    /// Takes events of two members until `enough`: both are asked all the time, since one that is not holds up the
    /// group.
    pub async fn until_both(
        both: [&mut Self; 2],
        consumers: [&mut Box<dyn Consumer>; 2],
        from: impl Fn(u32) -> Start,
        enough: impl Fn(&Self, &Self) -> bool,
    ) {
        let ([seen, other], [consumer, second]) = (both, consumers);
        let until = tokio::time::Instant::now() + DEADLINE;
        while !enough(seen, other) {
            tokio::select! {
                event = consumer.next() => seen.note(event.expect("an event"), &mut **consumer, &from),
                event = second.next() => other.note(event.expect("an event"), &mut **second, &from),
                () = tokio::time::sleep_until(until) => {
                    panic!("within the deadline; owned: {:?} and {:?}", seen.owned, other.owned);
                }
            }
        }
    }

    fn note(&mut self, event: Event, consumer: &mut dyn Consumer, from: impl Fn(u32) -> Start) {
        match event {
            Event::Assigned(partition) => {
                assert!(!self.owned.contains(&partition), "{partition} is assigned twice");
                self.owned.push(partition);
                consumer.start(partition, from(partition));
            }
            Event::Revoked(partition) => {
                assert!(self.owned.contains(&partition), "{partition} is revoked and was not assigned");
                self.owned.retain(|&owned| owned != partition);
            }
            Event::Records(partition, records) => {
                assert!(self.owned.contains(&partition), "records of {partition}, which is not assigned");
                self.records.entry(partition).or_default().extend(records);
            }
        }
    }

    /// How many records of all partitions.
    pub fn count(&self) -> usize {
        self.records.values().map(Vec::len).sum()
    }
}
