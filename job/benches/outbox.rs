//! What a message costs in the queue to one connector: queued, put into a frame, encoded for the stream, acknowledged.
//! `cargo bench -p job`. Compare numbers of one run with each other only.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::allow_attributes,
    reason = "job's files, of which a bench uses a part"
)]

#[path = "../src/frame.rs"]
mod frame;
#[path = "../src/item.rs"]
mod item;
#[path = "../src/out.rs"]
mod out;
#[path = "../src/outbox.rs"]
mod outbox;

use proto::cluster::{Item, Own, Topic};

use frame::Frame;
use item::EncodedItem;
use out::Out;
use outbox::Outbox;

fn main() {
    divan::main();
}

const EPOCH: u64 = 1;
const OUTBOX_BYTES_MAX: usize = 64 << 20;

fn items(count: u64) -> Vec<EncodedItem> {
    let item = |offset| Item {
        channel: "room:1000".into(),
        offset,
        ordinal: offset,
        message: vec![7; 123].into(),
        ..Item::default()
    };
    (1..=count).map(|offset| EncodedItem::new(&item(offset))).collect()
}

fn own(partition: u32) -> Own {
    Own { topic: Topic::Rooms.into(), partition, epoch: EPOCH, log: "log".into(), ..Own::default() }
}

/// So many messages of one partition gather while the stream writes, and go out as one frame.
#[divan::bench(args = [1, 16, 256])]
fn one_partition(bencher: divan::Bencher<'_, '_>, messages: u64) {
    let partition = (Topic::Rooms, 0);
    let (items, mut outbox) = (items(messages), Outbox::new(OUTBOX_BYTES_MAX));
    assert!(outbox.push(0, partition, EPOCH, Out::Own(own(0))).is_ok());
    assert!(matches!(outbox.pop(), Some(Frame::Whole(_))));
    let (mut seq, mut bytes) = (0, Vec::new());
    bencher.counter(divan::counter::ItemsCount::new(messages)).bench_local(|| {
        for item in &items {
            assert!(outbox.push(0, partition, EPOCH, Out::Item(item.clone())).is_ok());
        }
        bytes.clear();
        while let Some(frame) = outbox.pop() {
            seq += 1;
            frame.encode(&mut bytes);
        }
        outbox.acked(partition, EPOCH, seq);
        bytes.len()
    });
}

/// The same from 64 partitions in turns.
#[divan::bench]
fn sixty_four_partitions(bencher: divan::Bencher<'_, '_>) {
    let (items, mut outbox) = (items(64), Outbox::new(OUTBOX_BYTES_MAX));
    for partition in 0..64 {
        assert!(outbox.push(0, (Topic::Rooms, partition), EPOCH, Out::Own(own(partition))).is_ok());
    }
    while outbox.pop().is_some() {}
    let (mut seq, mut bytes) = (0, Vec::new());
    bencher.counter(divan::counter::ItemsCount::new(64_u32)).bench_local(|| {
        for (partition, item) in (0..64).zip(&items) {
            assert!(outbox.push(0, (Topic::Rooms, partition), EPOCH, Out::Item(item.clone())).is_ok());
        }
        bytes.clear();
        while let Some(frame) = outbox.pop() {
            frame.encode(&mut bytes);
        }
        seq += 1;
        (0..64).for_each(|partition| outbox.acked((Topic::Rooms, partition), EPOCH, seq));
        bytes.len()
    });
}
