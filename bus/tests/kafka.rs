//! What only Kafka can do to a bus: a broker dies, a topic is changed, records go before they are read.

mod support;

use bus::{Bus, Config, Consumer, Error, Event, Start, Topic};
use bytes::Bytes;
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{DEADLINE, Seen, publish, soon, text};
use tokio_util::sync::CancellationToken;

fn configured() -> Option<Config> {
    let mut config = support::kafka::shared()?.config();
    config.partitions = 4;
    Some(config)
}

async fn open(config: &Config) -> Result<Arc<dyn Bus>, Error> {
    soon(bus::open(config, CancellationToken::new())).await
}

fn admin(config: &Config) -> AdminClient<DefaultClientContext> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", config.kafka.brokers.join(","));
    client.create().expect("an admin client")
}

/// Deletes what is before `offset` (Kafka's) in partition 0 of rooms, as the retention does.
async fn delete_before(config: &Config, offset: i64) {
    let mut list = TopicPartitionList::new();
    let name = format!("{}rooms", config.kafka.topic_prefix);
    list.add_partition_offset(&name, 0, rdkafka::Offset::Offset(offset)).expect("an offset");
    soon(admin(config).delete_records(&list, &AdminOptions::new())).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_only_broker_killed_twice() {
    if let Some(cluster) = support::kafka::start("one", 1) {
        survive(cluster, [1, 1]).await;
    }
}

/// As shipped: three copies, of which two must have a record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_two_of_three_brokers_killed_in_turn() {
    if let Some(cluster) = support::kafka::start("three", 3) {
        survive(cluster, [1, 2]).await;
    }
}

/// Kills brokers, one after the other, while records are written and read.
async fn survive(cluster: support::kafka::Cluster, brokers: [u32; 2]) {
    let mut config = cluster.config();
    config.partitions = 4;
    let bus = open(&config).await.expect("opened");
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for partition in 0..4 {
        let (bus, stop) = (bus.clone(), stop.clone());
        writers.push(tokio::spawn(async move {
            let (mut acknowledged, mut refused) = (Vec::new(), 0);
            for n in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match bus.publish(Topic::Rooms, partition, Bytes::from(format!("x {n}"))).await {
                    Ok(offset) => acknowledged.push((offset, n)),
                    Err(Error::Unavailable(_) | Error::Unknown(_)) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (acknowledged, refused)
        }));
    }
    // A member that reads all the while goes on, too.
    let mut consumer = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let reading = {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut seen = Seen::default();
            while !stop.load(Ordering::Relaxed) {
                match tokio::time::timeout(Duration::from_millis(100), consumer.next()).await {
                    Ok(Ok(Event::Assigned(partition))) => {
                        let from = seen.records.get(&partition).and_then(|records| records.last());
                        consumer.start(partition, Start::At(from.map_or(1, |record| record.offset + 1)));
                    }
                    Ok(Ok(Event::Records(partition, records))) => {
                        consumer.commit(partition, records[records.len() - 1].offset);
                        seen.records.entry(partition).or_default().extend(records);
                    }
                    // A passing fault, or nothing, or taken away while the broker was gone.
                    Ok(Ok(Event::Revoked(_)) | Err(Error::Unavailable(_))) | Err(_) => {}
                    Ok(Err(error)) => panic!("{error}"),
                }
            }
            (seen, consumer)
        })
    };
    let cluster = Arc::new(cluster);
    for broker in brokers {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let killed = cluster.clone();
        tokio::task::spawn_blocking(move || {
            killed.kill(broker);
            killed.restart();
        })
        .await
        .expect("restarted");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut seen, mut consumer) = soon(reading).await.expect("the reading task");
    let (mut all, mut lost) = (0, 0);
    for (partition, writer) in writers.into_iter().enumerate() {
        let (acknowledged, refused) = soon(writer).await.expect("a writer");
        assert!(acknowledged.is_sorted_by(|a, b| a.0 < b.0), "offsets rise");
        let (first, next) = soon(bus.bounds(Topic::Rooms, partition as u32)).await.expect("bounds");
        assert_eq!(first, 1);
        let mut reader = soon(bus.read(Topic::Rooms, partition as u32, Start::At(1))).await.expect("a reader");
        let mut records = Vec::new();
        while records.last().is_none_or(|last: &bus::Record| last.offset + 1 < next) {
            records.extend(soon(reader.next()).await.expect("records"));
        }
        assert!(records.iter().map(|record| record.offset).eq(1..next), "a gap");
        for (offset, n) in &acknowledged {
            assert_eq!(text(&records[*offset as usize - 1]), format!("x {n}"), "offset {offset} of {partition}");
        }
        // None twice: an idempotent producer.
        let mut texts: Vec<String> = records.iter().map(text).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), records.len());
        // The member has, or gets, every one of them once.
        let partition = partition as u32;
        let enough = |seen: &Seen| seen.records.get(&partition).is_some_and(|r| r[r.len() - 1].offset + 1 == next);
        let until = tokio::time::Instant::now() + DEADLINE;
        while !enough(&seen) {
            match tokio::time::timeout_at(until, consumer.next()).await.expect("within the deadline") {
                Ok(Event::Records(partition, more)) => seen.records.entry(partition).or_default().extend(more),
                Ok(Event::Assigned(partition)) => {
                    let from = seen.records.get(&partition).and_then(|records| records.last());
                    consumer.start(partition, Start::At(from.map_or(1, |record| record.offset + 1)));
                }
                Ok(Event::Revoked(_)) | Err(Error::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        for (at, record) in (1..).zip(&seen.records[&partition]) {
            assert_eq!(record.offset, at, "a gap or a repetition in {partition}");
        }
        all += acknowledged.len();
        lost += refused;
    }
    println!("brokers {brokers:?} killed: {all} acknowledged and there, {lost} refused");
    assert!(all > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_could_lose_records_is_refused() {
    let Some(config) = configured() else { return };
    let compacted = NewTopic::new("rooms", 4, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    let by_hand = NewTopic::new("rooms", 4, TopicReplication::Fixed(1))
        .set("retention.ms", "3600000")
        .set("message.timestamp.type", "LogAppendTime");
    let short = NewTopic::new("rooms", 4, TopicReplication::Fixed(1)).set("retention.ms", "60000");
    for (mut topic, why) in [(compacted, "cleanup.policy"), (by_hand, "has no log ID"), (short, "retention.ms")] {
        let mut config = config.clone();
        config.kafka.topic_prefix = format!("test{:08x}.", rand::random::<u32>());
        let name = format!("{}rooms", config.kafka.topic_prefix);
        topic.name = &name;
        let made = soon(admin(&config).create_topics([&topic], &AdminOptions::new())).await.expect("answered");
        assert!(made[0].is_ok(), "{made:?}");
        let refused = open(&config).await.err().expect("refused");
        assert!(matches!(&refused, Error::Refused(text) if text.contains(why)), "{refused}");
        if why == "has no log ID" {
            // What the message says to do helps.
            let settings = AlterConfig::new(ResourceSpecifier::Topic(&name))
                .set("retention.ms", "3600000")
                .set("message.timestamp.type", "LogAppendTime")
                .set("delete.retention.ms", "4611686018427387");
            let set = soon(admin(&config).alter_configs([&settings], &AdminOptions::new())).await.expect("answered");
            assert!(set[0].is_ok(), "{set:?}");
            let until = tokio::time::Instant::now() + DEADLINE;
            while let Err(error) = open(&config).await {
                assert!(tokio::time::Instant::now() < until, "{error}");
            }
        }
    }
    let mut config = config;
    open(&config).await.expect("opened");
    (config.kafka.development, config.kafka.replication, config.kafka.min_in_sync) = (false, 3, 2);
    let refused = open(&config).await.err().expect("refused");
    assert!(matches!(&refused, Error::Refused(why) if why.contains("has 1 copies: want 3")), "{refused}");
    config.kafka.topic_prefix.push_str("new.");
    let refused = open(&config).await.err().expect("refused");
    assert!(matches!(&refused, Error::Refused(why) if why.contains("there are not as many brokers")), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_under_a_running_process_ends_it() {
    let Some(config) = configured() else { return };
    let bus = open(&config).await.expect("opened");
    publish(&*bus, Topic::Rooms, 0, "x", 10).await;
    assert_eq!(bus.ready(), Ok(()));
    let mut reader = soon(bus.read(Topic::Rooms, 0, Start::End)).await.expect("a reader");
    let name = format!("{}rooms", config.kafka.topic_prefix);
    soon(admin(&config).delete_topics(&[&name], &AdminOptions::new())).await.expect("deleted");
    // Another process makes it again.
    let other = open(&config).await.expect("opened");
    assert_ne!(other.log(Topic::Rooms), bus.log(Topic::Rooms));
    let until = tokio::time::Instant::now() + DEADLINE;
    loop {
        match tokio::time::timeout_at(until, reader.next()).await.expect("within the deadline") {
            // Since the topic is another one, or, before that is known, since it ends too early.
            Err(Error::Refused(_)) => break,
            Err(_) => {}
            Ok(records) => panic!("{records:?} of another log"),
        }
    }
    while !bus.ready().is_err_and(|why| why.contains("made anew")) {
        assert!(tokio::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let taken = soon(bus.publish(Topic::Rooms, 0, Bytes::from_static(b"x"))).await;
    assert!(matches!(taken, Err(Error::Unavailable(_))), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_retention_took_is_skipped_by_readers_and_refused_to_checkpoints() {
    let Some(config) = configured() else { return };
    let bus = open(&config).await.expect("opened");
    publish(&*bus, Topic::Rooms, 0, "x", 20).await;
    let mut consumer = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 20 && seen.owned.len() == 4).await;
    consumer.commit(0, 5);
    // A position that goes out of range while it is paused is taken up at the oldest that is kept.
    consumer.pause(0, true);
    publish(&*bus, Topic::Rooms, 0, "y", 20).await;
    delete_before(&config, 30).await;
    assert_eq!(soon(bus.bounds(Topic::Rooms, 0)).await.expect("bounds"), (31, 41));
    consumer.pause(0, false);
    seen.until(&mut *consumer, |_| Start::End, |seen| seen.records[&0].last().is_some_and(|r| r.offset == 40)).await;
    let after: Vec<u64> = seen.records[&0].iter().map(|record| record.offset).filter(|&offset| offset > 20).collect();
    assert_eq!(after, (31..=40).collect::<Vec<_>>());
    soon(consumer.leave()).await;
    let mut reader = soon(bus.read(Topic::Rooms, 0, Start::At(1))).await.expect("a reader");
    assert_eq!(soon(reader.next()).await.expect("records")[0].offset, 31);

    // The group has read up to 5, and what followed is gone.
    let refused = soon(bus.consume(Topic::Rooms, "job")).await.err().expect("refused");
    assert!(matches!(&refused, Error::Refused(why) if why.contains("never read")), "{refused}");
    let mut config = config;
    config.accept_new_log = true;
    let bus = open(&config).await.expect("opened");
    soon(soon(bus.consume(Topic::Rooms, "job")).await.expect("joined").leave()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lag_near_the_retention_is_not_ready() {
    let Some(config) = configured() else { return };
    let bus = open(&config).await.expect("opened");
    let mut consumer = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.owned.len() == 4).await;
    consumer.commit(2, 0);
    soon(consumer.leave()).await;

    // A record as old as 50 of the 60 minutes that are kept: the topic has to take our word for its time.
    let name = format!("{}rooms", config.kafka.topic_prefix);
    let admin = admin(&config);
    let topic = ResourceSpecifier::Topic(&name);
    let described = soon(admin.describe_configs([&topic], &AdminOptions::new())).await.expect("answered");
    let settings = described[0].as_ref().expect("described");
    let id = settings.get("delete.retention.ms").and_then(|entry| entry.value.as_deref()).expect("a log ID");
    let set = AlterConfig::new(topic).set("delete.retention.ms", id).set("message.timestamp.type", "CreateTime");
    soon(admin.alter_configs([&set], &AdminOptions::new())).await.expect("answered")[0].as_ref().expect("set");
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &config.kafka.brokers[0]).create().expect("a producer");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as i64;
    let old = FutureRecord::<(), str>::to(&name).partition(2).payload("old").timestamp(now - 50 * 60_000);
    soon(producer.send(old, DEADLINE)).await.expect("sent");

    let until = tokio::time::Instant::now() + DEADLINE;
    while !bus.ready().is_err_and(|why| why.contains("group job has records in partition 2")) {
        assert!(tokio::time::Instant::now() < until, "{:?}", bus.ready());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The group catches up.
    let mut consumer = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 1).await;
    consumer.commit(2, 1);
    soon(consumer.leave()).await;
    while let Err(why) = bus.ready() {
        assert!(tokio::time::Instant::now() < until, "{why}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What comes of `partition` to `member`, until the record at `last`; `other` is asked, too, as a member must be.
async fn read_on(
    (member, other): (&mut Box<dyn Consumer>, &mut Box<dyn Consumer>),
    partition: u32,
    last: u64,
) -> Vec<u64> {
    let mut offsets = Vec::new();
    while offsets.last() != Some(&last) {
        tokio::select! {
            event = soon(member.next()) => match event.expect("an event") {
                Event::Records(of, records) if of == partition => offsets.extend(records.iter().map(|it| it.offset)),
                Event::Records(..) => {}
                event => panic!("{event:?}: nothing was to move"),
            },
            event = other.next() => drop(event.expect("an event")),
        }
    }
    offsets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_partition_is_read_on_when_the_group_assigns_it_and_not_when_it_was_abandoned() {
    let Some(config) = configured() else { return };
    let bus = open(&config).await.expect("opened");
    for partition in 0..4 {
        publish(&*bus, Topic::Rooms, partition, "x", 10).await;
    }
    let mut silent = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let mut survivor = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let (mut first, mut second) = (Seen::default(), Seen::default());
    let members = [&mut silent, &mut survivor];
    let shared = |a: &Seen, b: &Seen| a.owned.len() == 2 && b.owned.len() == 2;
    Seen::until_both([&mut first, &mut second], members, |_| Start::At(1), shared).await;
    let (kept, abandoned) = (first.owned[0], first.owned[1]);
    assert!(!survivor.adopt(second.owned[0]), "it has that one");
    for partition in [kept, abandoned] {
        assert!(survivor.adopt(partition));
        assert!(!survivor.adopt(partition), "it has it by now");
        soon(survivor.committed(partition)).await.expect("an answer");
    }
    survivor.start(kept, Start::At(3));
    assert_eq!(read_on((&mut survivor, &mut silent), kept, 10).await, (3..=10).collect::<Vec<_>>());
    survivor.start(abandoned, Start::At(9));
    assert_eq!(read_on((&mut survivor, &mut silent), abandoned, 10).await, [9, 10]);
    survivor.abandon(abandoned);
    survivor.commit(kept, 10);

    soon(silent.leave()).await;
    publish(&*bus, Topic::Rooms, kept, "y", 2).await;
    let (mut assigned, mut after) = (Vec::new(), (Vec::new(), Vec::new()));
    while assigned.len() < 2 || after.0.len() < 2 || after.1.len() < 10 {
        match soon(survivor.next()).await.expect("an event") {
            Event::Assigned(partition) => {
                if partition == abandoned {
                    survivor.start(partition, Start::At(1));
                }
                assigned.push(partition);
            }
            Event::Records(partition, records) => {
                let offsets = records.iter().map(|record| record.offset);
                match partition {
                    partition if partition == kept => after.0.extend(offsets),
                    partition if partition == abandoned => after.1.extend(offsets),
                    _ => {}
                }
            }
            Event::Revoked(partition) => panic!("{partition} was revoked"),
        }
    }
    assigned.sort_unstable();
    let mut both = [kept, abandoned];
    both.sort_unstable();
    assert_eq!(assigned, both);
    assert_eq!(after, (vec![11, 12], (1..=10).collect()), "what was being read goes on, the other one begins");
    // It is the group's by now.
    survivor.abandon(kept);
    publish(&*bus, Topic::Rooms, kept, "z", 1).await;
    loop {
        if let Event::Records(partition, records) = soon(survivor.next()).await.expect("an event")
            && partition == kept
        {
            assert_eq!(records[0].offset, 13);
            break;
        }
    }
    soon(survivor.leave()).await;
    let mut next = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *next, |_| Start::End, |seen| seen.owned.len() == 4).await;
    assert_eq!(soon(next.committed(kept)).await.expect("an answer"), 10, "it was committed before it was assigned");
}
