//! What the two inner parts of a fan-out pass take: the encoder makes a room's frames, the ring keeps them for its
//! readers. `cargo bench -p engine`. Compare numbers of one run with each other only.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::allow_attributes,
    reason = "the engine's files, of which a bench uses a part"
)]

#[path = "../src/compressed.rs"]
mod compressed;
#[path = "../src/encode.rs"]
mod encode;
#[path = "../src/encoding.rs"]
mod encoding;
#[path = "../src/entry.rs"]
mod entry;
#[path = "../src/event.rs"]
mod event;
#[path = "../src/fault.rs"]
mod fault;
#[path = "../src/ring.rs"]
mod ring;
#[path = "../src/route_changes.rs"]
mod route_changes;

use std::sync::Arc;

use prost::Message as _;
use proto::client::{self, message};
use proto::cluster::Item;
use route_changes::RouteChanges;

use compressed::Compressed;
use encode::Encoder;
use encoding::Encoding;
use entry::Entry;
use ring::{Missing, Ring};

fn main() {
    divan::main();
}

const CHANNEL: &str = "room:1000";

/// A chat message of a room, as long as most are.
fn chat(offset: u64) -> Entry {
    let message = client::Message {
        channel: CHANNEL.into(),
        id: "abcdefghijklmnopqrstuv".into(),
        offset,
        time_ms: 1_764_590_000_000,
        sender: Some(client::Sender { uid: "ann".into(), name: "Ann".into() }),
        r#type: "text".into(),
        payload: Some(message::Payload::Text("弹幕 a line of live chat".into())),
        ..client::Message::default()
    };
    let message = message.encode_to_vec().into();
    Entry::Item(Arc::new(Item { channel: CHANNEL.into(), offset, ordinal: offset, message, ..Item::default() }))
}

/// Encodes so many messages at once, which is what gathers between two passes.
fn encode(bencher: divan::Bencher<'_, '_>, encoding: Encoding, messages: u64) {
    let entries: Vec<Entry> = (1..=messages).map(chat).collect();
    let mut encoder = Encoder::new(proto::operation::Operations::default(), Arc::new(Compressed::new(1)), None);
    bencher.counter(divan::counter::ItemsCount::new(messages)).bench_local(|| {
        let mut bytes = 0;
        encoder.entries(encoding, (CHANNEL, "log"), entries.iter().collect(), |frame| bytes += frame.bytes.len());
        assert!(bytes > 0);
        bytes
    });
}

#[divan::bench(args = [1, 16])]
fn encode_native_binary(bencher: divan::Bencher<'_, '_>, messages: u64) {
    encode(bencher, Encoding::NativeBinary, messages);
}

#[divan::bench(args = [1, 16])]
fn encode_native_json(bencher: divan::Bencher<'_, '_>, messages: u64) {
    encode(bencher, Encoding::NativeJson, messages);
}

#[divan::bench(args = [1, 16])]
fn encode_native_deflate(bencher: divan::Bencher<'_, '_>, messages: u64) {
    encode(bencher, Encoding::NativeBinaryDeflate, messages);
}

#[divan::bench(args = [1, 16])]
fn encode_goim(bencher: divan::Bencher<'_, '_>, messages: u64) {
    encode(bencher, Encoding::GoimTcp, messages);
}

#[divan::bench(args = [1, 16])]
fn encode_bilibili(bencher: divan::Bencher<'_, '_>, messages: u64) {
    encode(bencher, Encoding::BilibiliWeb(proto::bilibili::Version::Brotli), messages);
}

/// A frame of a message, as long as most are.
const FRAME: [u8; 123] = [7; 123];

/// One frame comes, and the oldest goes.
#[divan::bench]
fn ring_append_and_trim(bencher: divan::Bencher<'_, '_>) {
    let (mut ring, mut offset) = (Ring::after(0), 0);
    bencher.bench_local(|| {
        offset += 1;
        ring.append(&FRAME, 1, &Missing::default(), offset);
        let keep = ring.tail_within(64 * 1024);
        ring.trim(keep);
        ring.head()
    });
}

/// What a pass asks of a ring for a member that stands so many frames behind its head.
#[divan::bench(args = [1, 16, 400])]
fn ring_piece_for_a_member(bencher: divan::Bencher<'_, '_>, behind: u64) {
    let mut ring = Ring::after(0);
    (1..=500).for_each(|offset| ring.append(&FRAME, 1, &Missing::default(), offset));
    let from = ring.head() - behind * FRAME.len() as u64;
    bencher.bench_local(|| {
        let to = ring.send_end(divan::black_box(from));
        let count = ring.count_at(to) - ring.count_at(from);
        (ring.between(from, to).len(), count.all)
    });
}

/// Where a client stands that resumes at an offset.
#[divan::bench]
fn ring_seek(bencher: divan::Bencher<'_, '_>) {
    let mut ring = Ring::after(0);
    (1..=500).for_each(|offset| ring.append(&FRAME, 1, &Missing::default(), offset));
    bencher.bench_local(|| ring.seek(divan::black_box(250)));
}
