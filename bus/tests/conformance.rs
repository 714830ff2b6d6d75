//! What every bus promises, one test a promise, run against each implementation.

mod support;

use bus::{Bus, Config, Consumer, Error, Event, RECORD_BYTES_MAX, Reader, Start, Topic};
use bytes::Bytes;
use futures::FutureExt;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::sync::Arc;
use support::{DEADLINE, Seen, publish, soon, text};
use tokio_util::sync::CancellationToken;

/// Partitions that the tests configure: few, so that they can be told apart.
const PARTITIONS: u32 = 4;

/// A log that a test can open, end, and make anew.
struct Place {
    config: Config,
    /// Deletes the log, as an operator might.
    recreate: fn(&Config),
    /// Brings back the checkpoint (10 in partition 1 of rooms, group `job`) that was left in log `.1`, where it went
    /// with the log: Kafka deletes a topic's offsets with the topic, and tools restore them without it.
    restore: fn(&Config, &str),
    _directory: Option<tempfile::TempDir>,
}

impl Place {
    async fn open(&self) -> Arc<dyn Bus> {
        soon(bus::open(&self.config, CancellationToken::new())).await.expect("opened")
    }
}

fn embedded() -> Option<Place> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = support::config(&directory.path().join("bus"));
    config.partitions = PARTITIONS;
    let recreate: fn(&Config) = |config| {
        for log in ["live", "control", "dead-letters"] {
            std::fs::remove_dir_all(config.embedded.directory.join(log)).expect("removed");
        }
    };
    Some(Place { config, recreate, restore: |_, _| {}, _directory: Some(directory) })
}

fn kafka() -> Option<Place> {
    let mut config = support::kafka::shared()?.config();
    config.partitions = PARTITIONS;
    Some(Place { config, recreate: delete_topics, restore: restore_checkpoint, _directory: None })
}

fn client(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", config.kafka.brokers.join(","));
    client
}

fn delete_topics(config: &Config) {
    let admin: AdminClient<DefaultClientContext> = client(config).create().expect("an admin client");
    let names = Topic::ALL.map(|topic| format!("{}{}", config.kafka.topic_prefix, topic.name()));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let deleted = futures::executor::block_on(admin.delete_topics(&names, &AdminOptions::new())).expect("deleted");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

fn restore_checkpoint(config: &Config, log: &str) {
    let topic = format!("{}rooms", config.kafka.topic_prefix);
    let consumer: BaseConsumer = client(config).set("group.id", format!("{topic}.job")).create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    let mut element = list.add_partition(&topic, 1);
    element.set_offset(rdkafka::Offset::Offset(10)).expect("an offset");
    element.set_metadata(log);
    consumer.commit(&list, CommitMode::Sync).expect("committed");
}

/// Reads `count` records.
async fn take(reader: &mut dyn Reader, count: usize) -> Vec<bus::Record> {
    let mut records = Vec::new();
    while records.len() < count {
        records.extend(soon(reader.next()).await.expect("records"));
    }
    records
}

async fn join(bus: &dyn Bus, group: &str) -> Box<dyn Consumer> {
    soon(bus.consume(Topic::Rooms, group)).await.expect("joined")
}

fn from_committed_or_first(_: u32) -> Start {
    Start::At(1)
}

async fn what_one_caller_publishes_to_a_partition_is_read_in_the_order_of_its_calls(place: Place) {
    let bus = place.open().await;
    let mut offsets = Vec::new();
    for partition in 0..PARTITIONS {
        offsets.push(publish(&*bus, Topic::Rooms, partition, &format!("p{partition}"), 300).await);
    }
    for partition in 0..PARTITIONS {
        assert!(offsets[partition as usize].is_sorted_by(|a, b| a < b), "{offsets:?}");
        let mut reader = bus.read(Topic::Rooms, partition, Start::At(1)).await.expect("a reader");
        let records = take(&mut *reader, 300).await;
        let read: Vec<String> = records.iter().map(text).collect();
        let written: Vec<String> = (0..300).map(|n| format!("p{partition} {n}")).collect();
        assert_eq!(read, written);
        assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), offsets[partition as usize]);
        assert!(records.is_sorted_by_key(|record| record.time_ms));
    }
}

async fn what_was_acknowledged_is_there_when_the_log_is_opened_again(place: Place) {
    let bus = place.open().await;
    let log = bus.log(Topic::Rooms);
    assert!(proto::channel::is_id(&log), "{log}");
    let rooms = publish(&*bus, Topic::Rooms, 2, "room", 50).await;
    let pushes = publish(&*bus, Topic::Pushes, 2, "push", 20).await;
    let control = publish(&*bus, Topic::Control, 0, "control", 5).await;
    let dead = publish(&*bus, Topic::DeadLetters, 0, "dead", 5).await;
    let bounds = bus.bounds(Topic::Rooms, 2).await.expect("bounds");
    assert_eq!(bounds, (1, rooms[49] + 1));
    assert_eq!(bus.ends(Topic::Rooms, &[2, 0]).await.expect("ends"), [bounds.1, 1]);
    drop(bus);
    let bus = place.open().await;
    assert_eq!(bus.log(Topic::Rooms), log);
    assert_eq!(bus.bounds(Topic::Rooms, 2).await.expect("bounds"), bounds);
    let topics = [
        (Topic::Rooms, 2, "room", rooms),
        (Topic::Pushes, 2, "push", pushes),
        (Topic::Control, 0, "control", control),
        (Topic::DeadLetters, 0, "dead", dead),
    ];
    for (topic, partition, name, offsets) in topics {
        let mut reader = bus.read(topic, partition, Start::At(1)).await.expect("a reader");
        let records = take(&mut *reader, offsets.len()).await;
        for (n, (record, offset)) in records.iter().zip(&offsets).enumerate() {
            assert_eq!((text(record), record.offset), (format!("{name} {n}"), *offset));
        }
    }
    // And the offsets go on.
    assert_eq!(publish(&*bus, Topic::Rooms, 2, "more", 1).await, [bounds.1]);
}

async fn a_recreated_log_has_another_id_and_old_checkpoints_are_refused_until_accepted(mut place: Place) {
    let bus = place.open().await;
    let log = bus.log(Topic::Rooms);
    publish(&*bus, Topic::Rooms, 1, "old", 10).await;
    let mut consumer = join(&*bus, "job").await;
    let mut seen = Seen::default();
    seen.until(&mut *consumer, from_committed_or_first, |seen| seen.count() == 10).await;
    consumer.commit(1, 10);
    soon(consumer.leave()).await;
    drop(bus);

    (place.recreate)(&place.config);
    let bus = place.open().await;
    assert_ne!(bus.log(Topic::Rooms), log);
    publish(&*bus, Topic::Rooms, 1, "new", 3).await;
    (place.restore)(&place.config, &log);
    let refused = soon(bus.consume(Topic::Rooms, "job")).await.err().expect("refused");
    assert!(matches!(&refused, Error::Refused(why) if why.contains("accept_new_log")), "{refused}");
    // Another group left nothing there.
    soon(join(&*bus, "other").await.leave()).await;
    drop(bus);

    place.config.accept_new_log = true;
    let bus = place.open().await;
    let mut consumer = join(&*bus, "job").await;
    let mut seen = Seen::default();
    seen.until(&mut *consumer, from_committed_or_first, |seen| seen.count() == 3).await;
    assert_eq!(soon(consumer.committed(1)).await.expect("committed"), 0);
    soon(consumer.leave()).await;
}

async fn a_commit_is_found_after_a_restart(place: Place) {
    let bus = place.open().await;
    let offsets = publish(&*bus, Topic::Rooms, 3, "x", 40).await;
    let mut consumer = join(&*bus, "job").await;
    let mut seen = Seen::default();
    seen.until(&mut *consumer, from_committed_or_first, |seen| seen.count() == 40 && seen.owned.len() == 4).await;
    assert_eq!(soon(consumer.committed(3)).await.expect("committed"), 0);
    consumer.commit(3, offsets[24]);
    soon(consumer.leave()).await;
    drop(bus);

    let bus = place.open().await;
    let mut consumer = join(&*bus, "job").await;
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::End, |seen| seen.owned.len() == PARTITIONS as usize).await;
    assert_eq!(soon(consumer.committed(3)).await.expect("committed"), offsets[24]);
    assert_eq!(soon(consumer.committed(0)).await.expect("committed"), 0);
    consumer.start(3, Start::At(offsets[24] + 1));
    seen.until(&mut *consumer, |_| Start::End, |seen| seen.count() == 15).await;
    assert_eq!(text(&seen.records[&3][0]), "x 25");
    soon(consumer.leave()).await;
}

async fn members_share_the_partitions_and_take_over_without_loss(place: Place) {
    let bus = place.open().await;
    let all = PARTITIONS as usize;
    let mut first = join(&*bus, "job").await;
    let mut of_first = Seen::default();
    of_first.until(&mut *first, |_| Start::At(1), |seen| seen.owned.len() == all).await;

    // A second one takes half; each partition's records go to its owner.
    let mut second = join(&*bus, "job").await;
    let mut of_second = Seen::default();
    let half = |one: &Seen, other: &Seen| one.owned.len() == all / 2 && other.owned.len() == all / 2;
    let at_first = |_| Start::At(1);
    Seen::until_both([&mut of_first, &mut of_second], [&mut first, &mut second], at_first, half).await;
    assert!(of_first.owned.iter().all(|partition| !of_second.owned.contains(partition)));
    for partition in 0..PARTITIONS {
        publish(&*bus, Topic::Rooms, partition, "a", 10).await;
    }
    let twenty = |one: &Seen, other: &Seen| one.count() == 20 && other.count() == 20;
    Seen::until_both([&mut of_first, &mut of_second], [&mut first, &mut second], at_first, twenty).await;
    for &partition in &of_second.owned {
        second.commit(partition, 6);
    }

    // It leaves: the first goes on where it committed.
    let given_up = of_second.owned.clone();
    soon(second.leave()).await;
    of_first.until(&mut *first, |_| Start::End, |seen| seen.owned.len() == all).await;
    for &partition in &given_up {
        let committed = soon(first.committed(partition)).await.expect("committed");
        assert_eq!(committed, 6);
        first.start(partition, Start::At(committed + 1));
    }
    of_first.until(&mut *first, |_| Start::At(1), |seen| seen.count() == 20 + 4 * given_up.len()).await;

    // One that is dropped without a word is replaced, too.
    let mut third = join(&*bus, "job").await;
    let mut of_third = Seen::default();
    Seen::until_both([&mut of_first, &mut of_third], [&mut first, &mut third], |_| Start::End, half).await;
    drop(third);
    of_first.until(&mut *first, |_| Start::End, |seen| seen.owned.len() == all).await;
    soon(first.leave()).await;
}

async fn the_next_member_finds_what_was_committed_last_before_a_partition_moved(place: Place) {
    const RECORDS: u64 = 5000;
    let bus = place.open().await;
    for partition in 0..PARTITIONS {
        publish(&*bus, Topic::Rooms, partition, "x", RECORDS).await;
    }
    let mut first = join(&*bus, "job").await;
    let mut of_first = Seen::default();
    of_first.until(&mut *first, |_| Start::End, |seen| seen.owned.len() == PARTITIONS as usize).await;
    (0..PARTITIONS).for_each(|partition| first.commit(partition, 1));
    let mut second = join(&*bus, "job").await;
    // So that there is always something to be told, and to be committed.
    let more = bus.clone();
    let more = tokio::spawn(async move {
        loop {
            publish(&*more, Topic::Rooms, 0, "more", 1).await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    let (mut committed, mut given_up, mut taken) = (1, Vec::new(), Vec::new());
    let until = tokio::time::Instant::now() + DEADLINE;
    while taken.len() < PARTITIONS as usize / 2 {
        tokio::select! {
            event = first.next() => match event.expect("an event") {
                Event::Revoked(partition) => given_up.push((partition, committed)),
                // Not any more after the first is given up: the others went with it, though it is yet to be told.
                _ if given_up.is_empty() && committed < RECORDS => {
                    committed += 1;
                    (0..PARTITIONS).for_each(|partition| first.commit(partition, committed));
                }
                _ => {}
            },
            event = second.next() => if let Event::Assigned(partition) = event.expect("an event") {
                taken.push((partition, soon(second.committed(partition)).await.expect("committed")));
            },
            () = tokio::time::sleep_until(until) => panic!("within the deadline: {given_up:?}, {taken:?}"),
        }
    }
    more.abort();
    given_up.sort_unstable();
    taken.sort_unstable();
    assert_eq!(taken, given_up);
    soon(first.leave()).await;
    soon(second.leave()).await;
}

async fn reading_begins_where_it_was_told(place: Place) {
    let bus = place.open().await;
    publish(&*bus, Topic::Rooms, 0, "before", 5).await;
    let mut reader = bus.read(Topic::Rooms, 0, Start::At(1)).await.expect("a reader");
    let last = take(&mut *reader, 5).await[4].time_ms;
    // The clock of the log has to move on before it can tell the two apart.
    while now_ms() <= last + 1 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let between = now_ms();
    while now_ms() <= between {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    publish(&*bus, Topic::Rooms, 0, "after", 5).await;
    let mut end = bus.read(Topic::Rooms, 0, Start::End).await.expect("a reader");
    publish(&*bus, Topic::Rooms, 0, "last", 5).await;
    for (start, first, offset) in [
        (Start::At(0), "before 0", 1),
        (Start::At(4), "before 3", 4),
        (Start::Since(0), "before 0", 1),
        (Start::Since(between), "after 0", 6),
    ] {
        let mut reader = bus.read(Topic::Rooms, 0, start).await.expect("a reader");
        let record = take(&mut *reader, 1).await.remove(0);
        assert_eq!((text(&record).as_str(), record.offset), (first, offset), "{start:?}");
    }
    assert_eq!(text(&take(&mut *end, 5).await[0]), "last 0");
    // A time to come: only what is published from then on, or, at the latest, now.
    let mut later = bus.read(Topic::Rooms, 0, Start::Since(now_ms() + 1000)).await.expect("a reader");
    assert!(tokio::time::timeout(std::time::Duration::from_millis(200), later.next()).await.is_err());
    publish(&*bus, Topic::Rooms, 0, "new", 1).await;
    assert_eq!(text(&take(&mut *later, 1).await[0]), "new 0");
}

async fn a_consumer_starts_where_it_is_told_and_starts_anew(place: Place) {
    let bus = place.open().await;
    publish(&*bus, Topic::Rooms, 0, "x", 100).await;
    let mut consumer = join(&*bus, "job").await;
    let mut seen = Seen::default();
    // Nothing is read before it is started.
    while seen.owned.len() < PARTITIONS as usize {
        match soon(consumer.next()).await.expect("an event") {
            Event::Assigned(partition) => seen.owned.push(partition),
            event => panic!("{event:?}"),
        }
    }
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), consumer.next()).await.is_err());
    consumer.start(0, Start::At(91));
    seen.until(&mut *consumer, |_| Start::End, |seen| seen.count() == 10).await;
    consumer.start(0, Start::At(51));
    seen.until(&mut *consumer, |_| Start::End, |seen| seen.count() == 60).await;
    let offsets: Vec<u64> = seen.records[&0].iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (91..=100).chain(51..=100).collect::<Vec<_>>());
    soon(consumer.leave()).await;
}

async fn a_paused_partition_rests_and_goes_on_without_loss(place: Place) {
    let bus = place.open().await;
    let mut consumer = join(&*bus, "job").await;
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.owned.len() == PARTITIONS as usize).await;
    publish(&*bus, Topic::Rooms, 0, "x", 10).await;
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 10).await;
    consumer.pause(0, true);
    publish(&*bus, Topic::Rooms, 0, "x", 10).await;
    publish(&*bus, Topic::Rooms, 1, "y", 10).await;
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.records.get(&1).is_some_and(|read| read.len() == 10))
        .await;
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), consumer.next()).await.is_err());
    assert_eq!(seen.records[&0].len(), 10);
    consumer.pause(0, false);
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.records[&0].len() == 20).await;
    let offsets: Vec<u64> = seen.records[&0].iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (1..=20).collect::<Vec<_>>());
    soon(consumer.leave()).await;
}

async fn a_paused_partition_goes_on_after_it_was_started_again_and_unpaused(place: Place) {
    let bus = place.open().await;
    let mut consumer = join(&*bus, "job").await;
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.owned.len() == PARTITIONS as usize).await;
    publish(&*bus, Topic::Rooms, 0, "x", 10).await;
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 10).await;
    consumer.pause(0, true);
    publish(&*bus, Topic::Rooms, 0, "x", 10).await;
    // A start alone does not end the pause.
    consumer.start(0, Start::At(6));
    assert!(tokio::time::timeout(std::time::Duration::from_millis(500), consumer.next()).await.is_err());
    // In either order, whether or not the start took effect between the two.
    consumer.pause(0, false);
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 25).await;
    consumer.pause(0, true);
    consumer.start(0, Start::At(16));
    consumer.pause(0, false);
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 30).await;
    consumer.pause(0, true);
    consumer.pause(0, false);
    consumer.start(0, Start::At(18));
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 33).await;
    let offsets: Vec<u64> = seen.records[&0].iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (1..=10).chain(6..=20).chain(16..=20).chain(18..=20).collect::<Vec<_>>());
    soon(consumer.leave()).await;
}

async fn next_can_be_given_up_at_any_time(place: Place) {
    let bus = place.open().await;
    let publishing = async {
        for n in 0..52 {
            publish(&*bus, Topic::Rooms, n % PARTITIONS, "x", 8).await;
        }
    };
    let reading = async {
        let mut consumer = join(&*bus, "job").await;
        let mut seen = Seen::default();
        let until = tokio::time::Instant::now() + DEADLINE;
        let mut patience = 0;
        while seen.count() < 416 {
            assert!(tokio::time::Instant::now() < until, "{} of 416", seen.count());
            // Given up at once, and after ever other times.
            patience = (patience + 1) % 7;
            let next = async {
                match patience {
                    0 => consumer.next().now_or_never(),
                    _ => tokio::time::timeout(std::time::Duration::from_micros(300 * patience), consumer.next())
                        .await
                        .ok(),
                }
            };
            match next.await {
                None => tokio::task::yield_now().await,
                Some(event) => match event.expect("an event") {
                    Event::Assigned(partition) => consumer.start(partition, Start::At(1)),
                    Event::Revoked(partition) => panic!("{partition} is revoked"),
                    Event::Records(partition, records) => seen.records.entry(partition).or_default().extend(records),
                },
            }
        }
        for records in seen.records.values() {
            assert!(records.iter().map(|record| record.offset).eq(1..=104), "a gap or a repetition");
        }
        soon(consumer.leave()).await;
    };
    tokio::join!(publishing, reading);
}

async fn a_record_over_the_limit_is_too_large_and_one_at_it_is_not(place: Place) {
    let bus = place.open().await;
    let at = Bytes::from(vec![7; RECORD_BYTES_MAX]);
    soon(bus.publish(Topic::Rooms, 0, at.clone())).await.expect("published");
    let over = soon(bus.publish(Topic::Rooms, 0, Bytes::from(vec![7; RECORD_BYTES_MAX + 1]))).await;
    assert!(matches!(over, Err(Error::TooLarge(bytes)) if bytes == RECORD_BYTES_MAX + 1), "{over:?}");
    let mut reader = bus.read(Topic::Rooms, 0, Start::At(1)).await.expect("a reader");
    assert_eq!(take(&mut *reader, 1).await[0].value, at);
    assert_eq!(bus.bounds(Topic::Rooms, 0).await.expect("bounds"), (1, 2));
}

async fn a_dropped_publish_is_not_taken_back(place: Place) {
    let bus = place.open().await;
    drop(bus.publish(Topic::Rooms, 0, Bytes::from_static(b"dropped")));
    publish(&*bus, Topic::Rooms, 0, "x", 1).await;
    let mut reader = bus.read(Topic::Rooms, 0, Start::At(1)).await.expect("a reader");
    let records = take(&mut *reader, 2).await;
    assert_eq!(records.iter().map(text).collect::<Vec<_>>(), ["dropped", "x 0"]);
}

async fn another_partition_count_is_refused(mut place: Place) {
    let bus = place.open().await;
    publish(&*bus, Topic::Rooms, 0, "x", 1).await;
    drop(bus);
    place.config.partitions = PARTITIONS + 1;
    let refused = soon(bus::open(&place.config, CancellationToken::new())).await.err().expect("refused");
    assert!(matches!(&refused, Error::Refused(why) if why.contains("bus.partitions")), "{refused}");
}

async fn a_stopped_bus_takes_nothing_more(place: Place) {
    let stop = CancellationToken::new();
    let bus = soon(bus::open(&place.config, stop.clone())).await.expect("opened");
    assert_eq!(bus.ready(), Ok(()));
    publish(&*bus, Topic::Rooms, 0, "x", 10).await;
    stop.cancel();
    let until = tokio::time::Instant::now() + DEADLINE;
    while bus.ready().is_ok() {
        assert!(tokio::time::Instant::now() < until);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let refused = soon(bus.publish(Topic::Rooms, 0, Bytes::from_static(b"late"))).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_millis() as i64
}

macro_rules! promises {
    ($($name:ident)+) => {
        mod on_the_embedded_bus {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::embedded().expect("there always")).await;
            })+
        }
        mod on_kafka {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = super::kafka() {
                    super::$name(place).await;
                }
            })+
        }
    };
}

promises! {
    what_one_caller_publishes_to_a_partition_is_read_in_the_order_of_its_calls
    what_was_acknowledged_is_there_when_the_log_is_opened_again
    a_recreated_log_has_another_id_and_old_checkpoints_are_refused_until_accepted
    a_commit_is_found_after_a_restart
    members_share_the_partitions_and_take_over_without_loss
    the_next_member_finds_what_was_committed_last_before_a_partition_moved
    reading_begins_where_it_was_told
    a_consumer_starts_where_it_is_told_and_starts_anew
    a_paused_partition_rests_and_goes_on_without_loss
    a_paused_partition_goes_on_after_it_was_started_again_and_unpaused
    next_can_be_given_up_at_any_time
    a_record_over_the_limit_is_too_large_and_one_at_it_is_not
    a_dropped_publish_is_not_taken_back
    another_partition_count_is_refused
    a_stopped_bus_takes_nothing_more
}
