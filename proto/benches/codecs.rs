//! What a codec takes for one message: `cargo bench -p proto`. Compare numbers of one run with each other only.

use proto::client::{ClientFrame, Publish, client_frame, publish};
use proto::deflate::{Deflater, Inflater};
use proto::websocket::{Decoder, Event, Opcode, Role, frame};
use proto::{json, native, packet};

fn main() {
    divan::main();
}

/// A chat message of a client, as long as most are.
fn chat() -> ClientFrame {
    let payload = Some(publish::Payload::Text("弹幕 a line of live chat".into()));
    let publish =
        Publish { channel: "room:1000".into(), client_message_id: "a-1".into(), payload, ..Publish::default() };
    ClientFrame { request: 7, body: Some(client_frame::Body::Publish(publish)) }
}

fn chat_json() -> String {
    let mut out = Vec::new();
    native::to_json(&chat(), &mut out).expect("it has no enum");
    String::from_utf8(out).expect("JSON is UTF-8")
}

fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame(true, opcode, Some([1, 2, 3, 4]), payload, &mut out);
    out
}

#[divan::bench]
fn native_from_binary(bencher: divan::Bencher<'_, '_>) {
    let mut bytes = Vec::new();
    native::to_binary(&chat(), &mut bytes);
    bencher.bench(|| native::from_binary::<ClientFrame>(divan::black_box(&bytes)));
}

#[divan::bench]
fn native_from_json(bencher: divan::Bencher<'_, '_>) {
    let text = chat_json();
    bencher.bench(|| native::from_json::<ClientFrame>(divan::black_box(&text)));
}

/// What the mapping allows and serde refuses at first: read twice.
#[divan::bench]
fn native_from_json_with_a_null(bencher: divan::Bencher<'_, '_>) {
    let text = chat_json().replace("\"request\":7", "\"request\":7.0");
    bencher.bench(|| native::from_json::<ClientFrame>(divan::black_box(&text)));
}

#[divan::bench]
fn json_whole_surrogates(bencher: divan::Bencher<'_, '_>) {
    let text = chat_json();
    bencher.bench(|| json::whole_surrogates(divan::black_box(&text)).len());
}

#[divan::bench(args = [16, 125, 4096])]
fn websocket_decode(bencher: divan::Bencher<'_, '_>, bytes: usize) {
    let input = masked(Opcode::Binary, &vec![7; bytes]);
    let mut decoder = Decoder::new(Role::Server, 64 * 1024);
    bencher.with_inputs(|| input.clone()).bench_local_refs(|input| {
        let mut rest = &mut input[..];
        match decoder.next(&mut rest) {
            Ok(Some(Event::Binary(payload))) => payload.len(),
            other => panic!("{other:?}"),
        }
    });
}

#[divan::bench]
fn packet_unpack(bencher: divan::Bencher<'_, '_>) {
    let mut bytes = Vec::new();
    let (version, operation, sequence) = (1, packet::operation::SEND, 1);
    packet::write(packet::Packet { version, operation, sequence, body: b"a line of live chat" }, &mut bytes);
    bencher.bench(|| {
        let mut rest = divan::black_box(&bytes[..]);
        packet::unpack(&mut rest, packet::PACKET_BYTES_MAX).map(|packet| packet.map(|packet| packet.body.len()))
    });
}

/// A batch of a hundred chat messages, as a room's ring has them.
#[divan::bench]
fn deflate_a_batch(bencher: divan::Bencher<'_, '_>) {
    let batch: Vec<u8> = (0..100).flat_map(|number| format!("{number} {}", chat_json()).into_bytes()).collect();
    let (mut deflater, mut out) = (Deflater::default(), Vec::new());
    bencher.bench_local(|| {
        out.clear();
        deflater.deflate(divan::black_box(&batch), &mut out);
        out.len()
    });
}

#[divan::bench]
fn websocket_inflate_a_message(bencher: divan::Bencher<'_, '_>) {
    let mut deflated = Vec::new();
    Deflater::default().deflate(chat_json().as_bytes(), &mut deflated);
    let mut input = masked(Opcode::Text, &deflated);
    // The frame's first reserved bit says that it is compressed (RFC 7692, section 6).
    input[0] |= 0x40;
    let (mut decoder, mut inflater) = (Decoder::new(Role::Server, 64 * 1024), Inflater::default());
    bencher.with_inputs(|| input.clone()).bench_local_refs(|input| {
        let mut rest = &mut input[..];
        match decoder.next_inflated(&mut inflater, &mut rest) {
            Ok(Some(Event::Text(text))) => text.len(),
            other => panic!("{other:?}"),
        }
    });
}
