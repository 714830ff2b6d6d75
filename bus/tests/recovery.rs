//! Kafka is away and comes back: publishing, a group's member and a reader go on by themselves.
//!
//! Each test measures the time from the moment when a fresh client is served again, and prints it.

mod support;

use bus::{Bus, Consumer, Error, Event, Start, Topic};
use bytes::Bytes;
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::Offset;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::kafka::Cluster;
use support::{DEADLINE, Seen, soon};
use tokio_util::sync::CancellationToken;

/// Far above what is measured (seconds): a test, not a benchmark.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
const PARTITIONS: u32 = 4;

/// What was acknowledged (offset) and read, by one task each.
#[derive(Default)]
struct Flow {
    acknowledged: Mutex<Vec<(u32, u64, Instant)>>,
    /// Highest number that the member, and the reader of partition 0, got.
    member: AtomicU64,
    reader: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    /// Partitions that the member was told to have lost.
    revoked: AtomicU64,
    stop: AtomicBool,
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).expect("text").parse().expect("a number")
}

async fn publish(bus: Arc<dyn Bus>, flow: Arc<Flow>) {
    let mut under_way = Vec::new();
    for n in 1u64.. {
        if flow.stop.load(Ordering::Relaxed) {
            break;
        }
        let (flow, partition) = (flow.clone(), (n % u64::from(PARTITIONS)) as u32);
        // As logic does: nothing is accepted from outside while the bus is not ready.
        if bus.ready().is_err() {
            flow.refused.fetch_add(1, Ordering::Relaxed);
        } else {
            let taken = bus.publish(Topic::Rooms, partition, Bytes::from(n.to_string()));
            under_way.push(tokio::spawn(async move {
                match taken.await {
                    Ok(_) => flow.acknowledged.lock().expect("whole").push((partition, n, Instant::now())),
                    Err(Error::Unavailable(_)) => drop(flow.refused.fetch_add(1, Ordering::Relaxed)),
                    Err(Error::Unknown(_)) => drop(flow.unknown.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => panic!("{error}"),
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for one in under_way {
        one.await.expect("a publish");
    }
}

/// Reads as job does: from its last position after each assignment. Every record once, in order.
async fn consume(mut consumer: Box<dyn Consumer>, flow: Arc<Flow>) -> Vec<Vec<(u64, u64)>> {
    let mut seen = vec![Vec::<(u64, u64)>::new(); PARTITIONS as usize];
    while !flow.stop.load(Ordering::Relaxed) {
        match tokio::time::timeout(Duration::from_millis(100), consumer.next()).await {
            Ok(Ok(Event::Assigned(partition))) => {
                let last = seen[partition as usize].last().map_or(0, |last| last.0);
                consumer.start(partition, Start::At(last + 1));
            }
            Ok(Ok(Event::Revoked(_))) => drop(flow.revoked.fetch_add(1, Ordering::Relaxed)),
            Ok(Ok(Event::Records(partition, records))) => {
                let seen = &mut seen[partition as usize];
                for record in &records {
                    assert_eq!(record.offset, seen.last().map_or(0, |last| last.0) + 1, "partition {partition}");
                    seen.push((record.offset, number(&record.value)));
                    flow.member.fetch_max(number(&record.value), Ordering::Relaxed);
                }
                consumer.commit(partition, records[records.len() - 1].offset);
            }
            Ok(Err(Error::Unavailable(_))) | Err(_) => {}
            Ok(Err(error)) => panic!("{error}"),
        }
    }
    soon(consumer.leave()).await;
    seen
}

/// Waits until a client that is made now is served: the topic has its leaders.
fn served(brokers: &str, topic: &str) -> Instant {
    let until = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < until, "a fresh client is served within the deadline");
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).set("log_level", "0").create().expect("a client");
        if let Ok(metadata) = client.fetch_metadata(Some(topic), Duration::from_millis(500))
            && metadata.topics().iter().flat_map(|topic| topic.partitions()).filter(|p| p.leader() >= 0).count()
                == PARTITIONS as usize
        {
            return Instant::now();
        }
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) -> Instant {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < RECOVERY_MAX, "not within {RECOVERY_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Instant::now()
}

/// Publishes and reads through `fault`, which returns when it has asked the broker to come back.
async fn goes_on(name: &str, fault: impl FnOnce(&Cluster) + Send + 'static) {
    let Some(cluster) = support::kafka::start(name, 1) else { return };
    let mut config = cluster.config();
    config.partitions = PARTITIONS;
    let bus = soon(bus::open(&config, CancellationToken::new())).await.expect("opened");
    let flow = Arc::new(Flow::default());
    let mut consumer = soon(bus.consume(Topic::Rooms, "job")).await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.owned.len() == PARTITIONS as usize).await;
    let mut reader = soon(bus.read(Topic::Rooms, 0, Start::At(1))).await.expect("a reader");
    let reading = tokio::spawn({
        let flow = flow.clone();
        async move {
            let mut next = 1;
            while !flow.stop.load(Ordering::Relaxed) {
                match tokio::time::timeout(Duration::from_millis(100), reader.next()).await {
                    Ok(Ok(records)) => {
                        for record in records {
                            assert_eq!(record.offset, next, "the reader skips nothing");
                            next += 1;
                            flow.reader.fetch_max(number(&record.value), Ordering::Relaxed);
                        }
                    }
                    Ok(Err(Error::Unavailable(_))) | Err(_) => {}
                    Ok(Err(error)) => panic!("{error}"),
                }
            }
        }
    });
    let consuming = tokio::spawn(consume(consumer, flow.clone()));
    let publishing = tokio::spawn(publish(bus.clone(), flow.clone()));
    until("records flow", || flow.member.load(Ordering::Relaxed) > 50 && flow.reader.load(Ordering::Relaxed) > 50)
        .await;

    let (brokers, topic) = (config.kafka.brokers.join(","), format!("{}rooms", config.kafka.topic_prefix));
    let (back, cluster) = tokio::task::spawn_blocking(move || {
        fault(&cluster);
        (served(&brokers, &topic), cluster)
    })
    .await
    .expect("back");
    let accepted = |since: Instant| {
        let acknowledged = flow.acknowledged.lock().expect("whole");
        acknowledged.iter().find(|one| one.2 > since).map(|one| one.1)
    };
    let ready = until("the bus is ready", || bus.ready().is_ok()).await;
    let took = until("a record is accepted", || accepted(back.max(ready)).is_some()).await;
    let first = accepted(back.max(ready)).expect("there is one");
    let read = until("the reader goes on", || flow.reader.load(Ordering::Relaxed) > first + 8).await;
    let delivered = until("the member goes on", || flow.member.load(Ordering::Relaxed) > first + 8).await;
    let after = |at: Instant| at.saturating_duration_since(back);
    println!(
        "{name}: ready {:?}, accepted {:?}, read {:?}, delivered {:?} after the return; {} refused, {} unknown, {} revoked",
        after(ready),
        after(took),
        after(read),
        after(delivered),
        flow.refused.load(Ordering::Relaxed),
        flow.unknown.load(Ordering::Relaxed),
        flow.revoked.load(Ordering::Relaxed),
    );
    // Everything that was acknowledged comes to the member, once.
    let last = |partition: u32| {
        let acknowledged = flow.acknowledged.lock().expect("whole");
        acknowledged.iter().filter(|one| one.0 == partition).map(|one| one.1).max()
    };
    until("all of it is read", || {
        (0..PARTITIONS).filter_map(last).max() <= Some(flow.member.load(Ordering::Relaxed) + 20)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let cut = Instant::now() - Duration::from_millis(800);
    flow.stop.store(true, Ordering::Relaxed);
    let seen = soon(consuming).await.expect("the member's task");
    soon(publishing).await.expect("the publisher's task");
    soon(reading).await.expect("the reader's task");
    for (partition, number, at) in flow.acknowledged.lock().expect("whole").iter() {
        let there = seen[*partition as usize].iter().filter(|one| one.1 == *number).count();
        assert!(there == 1 || (*at > cut && there == 0), "{number} came {there} times");
    }
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_on_after_a_broker_was_killed_and_started_again() {
    goes_on("killed", |cluster| {
        cluster.kill(1);
        std::thread::sleep(Duration::from_secs(12));
        cluster.restart_without_waiting();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_on_after_a_broker_stood_still() {
    goes_on("stopped", |cluster| {
        cluster.stop(1);
        std::thread::sleep(Duration::from_secs(20));
        cluster.go(1);
    })
    .await;
}

/// A member of two that reads pushes: each begins behind the last commit.
async fn take_pushes(mut consumer: Box<dyn Consumer>, flow: Arc<Flow>, seen: Arc<Mutex<Vec<u64>>>) {
    while !flow.stop.load(Ordering::Relaxed) {
        match tokio::time::timeout(Duration::from_millis(100), consumer.next()).await {
            Ok(Ok(Event::Assigned(partition))) => match soon(consumer.committed(partition)).await.expect("answered") {
                0 => consumer.start(partition, Start::At(1)),
                committed => consumer.start(partition, Start::At(committed + 1)),
            },
            Ok(Ok(Event::Revoked(_))) => drop(flow.revoked.fetch_add(1, Ordering::Relaxed)),
            Ok(Ok(Event::Records(partition, records))) => {
                seen.lock().expect("whole").extend(records.iter().map(|record| number(&record.value)));
                consumer.commit(partition, records[records.len() - 1].offset);
            }
            Ok(Err(Error::Unavailable(_))) | Err(_) => {}
            Ok(Err(error)) => panic!("{error}"),
        }
    }
    soon(consumer.leave()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_change_hands_after_an_outage_are_read_once() {
    let Some(cluster) = support::kafka::start("hands", 1) else { return };
    let mut config = cluster.config();
    config.partitions = PARTITIONS;
    let bus = soon(bus::open(&config, CancellationToken::new())).await.expect("opened");
    let (flow, seen) = (Arc::new(Flow::default()), Arc::new(Mutex::new(Vec::new())));
    let mut members = Vec::new();
    for _ in 0..2 {
        let consumer = soon(bus.consume(Topic::Pushes, "job")).await.expect("joined");
        members.push(tokio::spawn(take_pushes(consumer, flow.clone(), seen.clone())));
    }
    let sent = |first: u64| {
        let bus = bus.clone();
        async move {
            for n in first..first + 100 {
                let taken = bus.publish(Topic::Pushes, (n % u64::from(PARTITIONS)) as u32, Bytes::from(n.to_string()));
                soon(taken).await.expect("published");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let all = async |count: usize| until("all is read", || seen.lock().expect("whole").len() >= count).await;
    sent(1).await;
    all(100).await;
    // What was read is committed, too: nothing of it is to come again.
    let (brokers, pushes) = (config.kafka.brokers.join(","), format!("{}pushes", config.kafka.topic_prefix));
    let group: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("group.id", format!("{pushes}.job"))
        .create()
        .expect("a client");
    until("all is committed", || {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(&pushes, 0, PARTITIONS as i32 - 1);
        let committed = group.committed_offsets(partitions, DEADLINE).expect("answered");
        committed.elements().iter().all(|element| element.offset() == Offset::Offset(25))
    })
    .await;
    drop(group);
    let topic = format!("{}rooms", config.kafka.topic_prefix);
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.kill(1);
        // Longer than the session timeout: both members lose their partitions.
        std::thread::sleep(Duration::from_secs(9));
        cluster.restart_without_waiting();
        served(&brokers, &topic);
        cluster
    })
    .await
    .expect("back");
    until("the bus is ready", || bus.ready().is_ok()).await;
    // While the group deals anew, and after.
    for batch in 1..6 {
        sent(1 + 100 * batch).await;
    }
    all(600).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    flow.stop.store(true, Ordering::Relaxed);
    for member in members {
        soon(member).await.expect("a member's task");
    }
    let mut seen = std::mem::take(&mut *seen.lock().expect("whole"));
    seen.sort_unstable();
    let doubled: Vec<u64> = seen.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    assert_eq!(doubled, Vec::<u64>::new(), "{} partitions were revoked", flow.revoked.load(Ordering::Relaxed));
    assert!(seen.iter().copied().eq(1..=600));
    drop(cluster);
}
