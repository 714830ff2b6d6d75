//! Fifty times `kill -9` of a process that publishes and consumes: what it was told is durable is there.

mod support;

use bus::{Bus, Event, Start, Topic};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::soon;
use tokio_util::sync::CancellationToken;

/// Where the child finds its log; set for the child only.
const CHILD: &str = "BARRAGE_TEST_KILLED_CHILD";
const KILLS: u32 = 50;
const PARTITIONS: u32 = 4;

async fn open(dir: &std::path::Path) -> Arc<dyn Bus> {
    let mut config = support::config(dir);
    config.partitions = PARTITIONS;
    // Segments of 2 MiB, so that some are begun under load.
    config.embedded.retention_bytes = 16 << 20;
    bus::open(&config, CancellationToken::new()).await.expect("opened")
}

/// Tells the parent; without one, ends.
fn say(line: &str) {
    if std::io::stdout().write_all(line.as_bytes()).is_err() {
        std::process::exit(1);
    }
}

/// Publishes without end, says what was acknowledged and what was committed, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that the test below kills"]
async fn child() {
    let dir = std::env::var_os(CHILD).expect("run by the test below");
    let bus = open(dir.as_ref()).await;
    for writer in 0..8u32 {
        let bus = bus.clone();
        tokio::spawn(async move {
            let partition = writer % PARTITIONS;
            for n in 0u64.. {
                let value = format!("{}.{writer}.{n}.{}", std::process::id(), "x".repeat((n * 37 % 2000) as usize));
                let offset = bus.publish(Topic::Rooms, partition, Bytes::from(value.clone())).await.expect("published");
                // One write a line: a killed process leaves at most the last one short.
                let line = format!("ack {partition} {offset} {}\n", crc32c::crc32c(value.as_bytes()));
                say(&line);
            }
        });
    }
    let mut consumer = bus.consume(Topic::Rooms, "job").await.expect("joined");
    loop {
        match consumer.next().await.expect("an event") {
            Event::Assigned(partition) => {
                let committed = consumer.committed(partition).await.expect("committed");
                say(&format!("from {partition} {committed}\n"));
                consumer.start(partition, Start::At(committed + 1));
            }
            Event::Revoked(partition) => panic!("{partition} is revoked"),
            Event::Records(partition, records) => {
                consumer.commit(partition, records[records.len() - 1].offset);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_fifty_kills() {
    let directory = tempfile::tempdir().expect("a directory");
    let dir = directory.path().join("bus");
    let mut committed = BTreeMap::<u32, u64>::new();
    let mut acknowledged = 0;
    let mut moved = 0;
    for kill in 0..KILLS {
        let mut process = Command::new(std::env::current_exe().expect("this binary"))
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, &dir)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut acks = Vec::new();
        let mut take = |line: String, acks: &mut Vec<(u32, u64, u32)>| {
            // The test harness prints the test's name before the first line.
            let words: Vec<&str> = line.split("... ").last().expect("a part").split(' ').collect();
            match words[..] {
                ["ack", partition, offset, crc] => {
                    acks.push((
                        partition.parse().expect("u32"),
                        offset.parse().expect("u64"),
                        crc.parse().expect("u32"),
                    ));
                }
                ["from", partition, offset] => {
                    let (partition, offset) = (partition.parse().expect("u32"), offset.parse().expect("u64"));
                    let before = committed.insert(partition, offset).unwrap_or(0);
                    assert!(offset >= before, "the checkpoint of {partition} went from {before} back to {offset}");
                    moved += u32::from(offset > before);
                }
                _ => {}
            }
        };
        while acks.is_empty() {
            take(lines.next().expect("the child publishes").expect("a line"), &mut acks);
        }
        // From "in the first batch" to "long under load, segments begun, checkpoints written".
        std::thread::sleep(Duration::from_micros(rand::random_range(0..if kill % 5 == 0 { 600_000 } else { 30_000 })));
        process.kill().expect("killed");
        // A line that was cut short has no end; `lines` would give it all the same.
        let mut rest: Vec<String> = lines.map(|line| line.expect("a line")).collect();
        rest.pop();
        rest.into_iter().for_each(|line| take(line, &mut acks));
        process.wait().expect("reaped");

        let bus = open(&dir).await;
        let mut log = BTreeMap::<u32, BTreeMap<u64, u32>>::new();
        let mut firsts = BTreeMap::new();
        for partition in 0..PARTITIONS {
            let (first, next) = bus.bounds(Topic::Rooms, partition).await.expect("bounds");
            firsts.insert(partition, first);
            let mut reader = bus.read(Topic::Rooms, partition, Start::At(first)).await.expect("a reader");
            let mut at = first;
            let mut last = BTreeMap::<(u32, u32), u64>::new();
            while at < next {
                for record in soon(reader.next()).await.expect("records") {
                    assert_eq!(record.offset, at, "a gap in {partition}");
                    at += 1;
                    let text = String::from_utf8(record.value.to_vec()).expect("text");
                    let mut words = text.split('.');
                    let mut number = || words.next().expect("a number").parse::<u64>().expect("a number");
                    let (process, writer, n) = (number() as u32, number() as u32, number());
                    if let Some(last) = last.insert((process, writer), n) {
                        assert_eq!(n, last + 1, "writer {writer}'s records are not in its order");
                    }
                    log.entry(partition).or_default().insert(record.offset, crc32c::crc32c(&record.value));
                }
            }
        }
        for (partition, offset, crc) in &acks {
            if *offset < firsts[partition] {
                continue;
            }
            let there = log.get(partition).and_then(|records| records.get(offset));
            assert_eq!(there, Some(crc), "kill {kill}: {offset} of {partition} was acknowledged");
        }
        acknowledged += acks.len();
    }
    println!("{KILLS} kills, {acknowledged} acknowledged records, none lost; checkpoints moved on {moved} times");
    assert!(moved > 0);
}
