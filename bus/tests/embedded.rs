//! What only the embedded bus has: a directory, and one process in it.

mod support;

use bus::{Error, Start, Topic};
use bytes::Bytes;
use std::time::{Duration, Instant};
use support::{Seen, config, publish, soon};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_one_process_s_until_it_stops() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path());
    let stop = CancellationToken::new();
    let bus = bus::open(&config, stop.clone()).await.expect("opened");
    let refused = bus::open(&config, CancellationToken::new()).await.err().expect("refused");
    assert!(matches!(&refused, Error::Refused(why) if why.contains("in use by another process")), "{refused}");
    publish(&*bus, Topic::Rooms, 0, "x", 3).await;
    // Stopping frees it, though `bus` is still held.
    stop.cancel();
    let until = Instant::now() + support::DEADLINE;
    let again = loop {
        match bus::open(&config, CancellationToken::new()).await {
            Ok(bus) => break bus,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    };
    assert_eq!(again.bounds(Topic::Rooms, 0).await.expect("bounds"), (1, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_beyond_the_end_of_the_log_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(directory.path());
    let bus = bus::open(&config, CancellationToken::new()).await.expect("opened");
    let backup = directory.path().join("backup");
    publish(&*bus, Topic::Rooms, 0, "x", 10).await;
    std::fs::create_dir(&backup).expect("a directory");
    let segment = std::path::Path::new("live/00000000000000000001.log");
    std::fs::copy(directory.path().join(segment), backup.join("segment")).expect("copied");
    publish(&*bus, Topic::Rooms, 0, "y", 10).await;
    let mut consumer = bus.consume(Topic::Rooms, "job").await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 20).await;
    consumer.commit(0, 20);
    soon(consumer.leave()).await;
    drop(bus);
    // An operator restores yesterday's log, and today's checkpoints stay.
    std::fs::copy(backup.join("segment"), directory.path().join(segment)).expect("copied");
    let bus = bus::open(&config, CancellationToken::new()).await.expect("opened");
    let refused = bus.consume(Topic::Rooms, "job").await.err().expect("refused");
    assert!(matches!(&refused, Error::Refused(why) if why.contains("beyond the end")), "{refused}");
    drop(bus);
    config.accept_new_log = true;
    let bus = bus::open(&config, CancellationToken::new()).await.expect("opened");
    bus.consume(Topic::Rooms, "job").await.expect("joined");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_longer_in_memory_is_read_from_the_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = config(directory.path());
    let bus = bus::open(&config, CancellationToken::new()).await.expect("opened");
    // 48 MiB: more than is kept in memory.
    let value = Bytes::from(vec![b'x'; 64 << 10]);
    for _ in 0..12 {
        let published = (0..64).map(|partition| bus.publish(Topic::Rooms, partition, value.clone()));
        for result in soon(futures::future::join_all(published)).await {
            result.expect("published");
        }
    }
    let mut consumer = bus.consume(Topic::Rooms, "job").await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 12 * 64).await;
    for records in seen.records.values() {
        assert!(records.iter().map(|record| record.offset).eq(1..=12));
        assert!(records.iter().all(|record| record.value == value));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_delivered_as_soon_as_it_is_durable() {
    let directory = tempfile::tempdir().expect("a directory");
    let bus = bus::open(&config(directory.path()), CancellationToken::new()).await.expect("opened");
    let mut consumer = bus.consume(Topic::Rooms, "job").await.expect("joined");
    let mut seen = Seen::default();
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.owned.len() == 64).await;
    let (mut acknowledged, mut delivered) = (Vec::new(), Vec::new());
    for n in 0..200 {
        let begun = Instant::now();
        let publishing = async {
            bus.publish(Topic::Rooms, n % 64, Bytes::from_static(b"x")).await.expect("published");
            begun.elapsed()
        };
        let reading = async {
            let count = seen.count();
            seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() > count).await;
            begun.elapsed()
        };
        let (acknowledgement, delivery) = tokio::join!(publishing, reading);
        acknowledged.push(acknowledgement);
        delivered.push(delivery);
    }
    acknowledged.sort_unstable();
    delivered.sort_unstable();
    println!("one at a time: acknowledged {:?}, delivered {:?} (median)", acknowledged[100], delivered[100]);
    // Both wait for one sync; a delivery that waited for a timer or another commit would take tens of milliseconds more.
    assert!(delivered[100] < acknowledged[100] + Duration::from_millis(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lag_near_the_retention_is_not_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = config(directory.path());
    config.partitions = 2;
    config.embedded.retention_bytes = 16 << 20;
    let bus = bus::open(&config, CancellationToken::new()).await.expect("opened");
    let mut consumer = bus.consume(Topic::Rooms, "job").await.expect("joined");
    let mut seen = Seen::default();
    let value = Bytes::from(vec![b'x'; 128 << 10]);
    // 13 MiB of 16 MiB.
    for _ in 0..104 {
        soon(bus.publish(Topic::Rooms, 0, value.clone())).await.expect("published");
    }
    seen.until(&mut *consumer, |_| Start::At(1), |seen| seen.count() == 104).await;
    consumer.commit(0, 1);
    let until = Instant::now() + support::DEADLINE;
    while !bus.ready().is_err_and(|why| why.contains("nears bus.embedded.retention_bytes")) {
        assert!(Instant::now() < until, "{:?}", bus.ready());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Publishing goes on for those who catch up, and so does readiness when they have.
    soon(bus.publish(Topic::Rooms, 1, value)).await.expect("published");
    consumer.commit(0, 104);
    while let Err(why) = bus.ready() {
        assert!(Instant::now() < until, "{why}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
