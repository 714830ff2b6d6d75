//! What compression gives and costs: bytes and processor time of batches of live chat, by encoding and level.
//!
//! ```sh
//! cargo run --release -p proto --example compression
//! ```
//!
//! Each row: messages in a batch; how many times fewer bytes go on the wire than uncompressed; microseconds to compress
//! a batch once (the fastest of some runs), and that time a delivery, nanoseconds, where 5,000 sessions read it.

use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use proto::bilibili::{self, Packer, Version};
use proto::client::{Batch, Message, Sender, ServerFrame, message::Payload, server_frame::Body};
use proto::deflate::Deflater;
use proto::websocket::{self, Opcode};
use proto::{goim, native};

#[path = "../../bench/src/chat.rs"]
#[expect(unreachable_pub, reason = "it is the bench's module")]
mod chat;

/// Messages that are compressed for one row.
const MESSAGES: usize = 4000;
/// Runs, of which the fastest counts.
const RUNS: usize = 7;
/// The room that a delivery's cost is told for.
const SESSIONS: f64 = 5000.0;

fn message(number: u64) -> Message {
    let (uid, name) = chat::sender(number);
    let drawn = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let id = (0..22_u32).map(|at| letters[(drawn.rotate_left(at * 7) ^ number.rotate_left(at)) as usize % 64] as char);
    Message {
        channel: "room:1000".into(),
        id: id.collect(),
        offset: 1_000_000 + 3 * number,
        time_ms: 1_700_000_000_000 + 7 * number as i64,
        sender: Some(Sender { uid: uid.to_string(), name }),
        r#type: "text".into(),
        payload: Some(Payload::Text(chat::text(number))),
        ..Message::default()
    }
}

/// How a batch's bytes are made, uncompressed: WebSocket messages.
fn plain(encoding: &str, messages: &[Message]) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    match encoding {
        "native" | "json" => {
            let frame = match messages {
                [message] => Body::Message(message.clone()),
                _ => Body::Batch(Batch { messages: messages.to_vec() }),
            };
            let (frame, mut body) = (ServerFrame { request: 0, body: Some(frame) }, Vec::new());
            match encoding {
                "json" => native::to_json(&frame, &mut body).expect("known enums"),
                _ => native::to_binary(&frame, &mut body),
            }
            bodies.push(body);
        }
        "goim" => {
            let (mut pushes, mut body) = (Vec::new(), Vec::new());
            for message in messages {
                goim::push(1000, native::payload_bytes(message.payload.as_ref()), &mut pushes);
            }
            goim::batch(&pushes, &mut body);
            bodies.push(body);
        }
        _ => {
            let mut body = Vec::new();
            let texts = messages.iter().filter_map(|message| bilibili::danmaku(message, b""));
            Packer::default().pack(Version::Plain, texts, &mut body);
            bodies.push(body);
        }
    }
    bodies
}

/// Bytes that go out, and the time to make them.
fn measure(batches: &[Vec<Vec<u8>>], mut compress: impl FnMut(&[u8], &mut Vec<u8>)) -> (usize, Duration) {
    let mut best = (0, Duration::MAX);
    for _ in 0..RUNS {
        let (mut bytes, began) = (0, Instant::now());
        let mut out = Vec::with_capacity(1 << 20);
        for body in batches.iter().flatten() {
            out.clear();
            compress(body, &mut out);
            bytes += out.len();
        }
        best = (bytes, best.1.min(began.elapsed()));
    }
    best
}

fn row(name: &str, size: usize, batches: &[Vec<Vec<u8>>], compress: impl FnMut(&[u8], &mut Vec<u8>)) {
    let before: usize = batches.iter().flatten().map(Vec::len).sum();
    let (after, took) = measure(batches, compress);
    let micros = took.as_secs_f64() * 1e6;
    println!(
        "{name:24} {size:4} {:7.2} {:9.1} {:8.2}",
        before as f64 / after as f64,
        micros / batches.len() as f64,
        micros * 1e3 / MESSAGES as f64 / SESSIONS,
    );
}

fn main() {
    let messages: Vec<_> = (0..MESSAGES as u64).map(message).collect();
    let all: Vec<_> = messages.iter().map(|message| native::payload_bytes(message.payload.as_ref()).len()).collect();
    println!("{} messages, text of {} bytes in the mean", MESSAGES, all.iter().sum::<usize>() / MESSAGES);
    println!("{:24} {:>4} {:>7} {:>9} {:>8}", "", "size", "ratio", "us/batch", "ns/dlv");
    for encoding in ["native", "json", "goim", "bilibili"] {
        for size in [1, 5, 25, 100] {
            let batches: Vec<_> = messages.chunks(size).map(|batch| plain(encoding, batch)).collect();
            let mut deflater = Deflater::default();
            row(&format!("{encoding} as shipped"), size, &batches, |body, out| {
                websocket::encode_deflated(Opcode::Binary, body, &mut deflater, out);
            });
            if size == 1 {
                continue;
            }
            for level in [1, 2, 3, 4, 5, 6, 9] {
                let mut state = Compress::new(Compression::new(level), false);
                row(&format!("{encoding} deflate {level}"), size, &batches, |body, out| {
                    state.reset();
                    state.compress_vec(body, out, FlushCompress::Sync).expect("deflating goes on for ever");
                });
            }
            if encoding == "bilibili" {
                for quality in [0, 1, 2, 3, 4, 5] {
                    let parameters = brotli::enc::BrotliEncoderParams {
                        quality,
                        lgwin: 17,
                        size_hint: batches[0][0].len(),
                        ..Default::default()
                    };
                    row(&format!("{encoding} brotli {quality}"), size, &batches, |mut body, out| {
                        brotli::BrotliCompress(&mut body, out, &parameters).expect("a Vec takes what it is given");
                    });
                }
            }
        }
    }
}
