//! permessage-deflate: what is compressed, what is not, and who is declined.

use proto::deflate::{Deflater, Inflater};

use proto::RECENT_MESSAGES;

use super::*;

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const NATIVE: &str = "Sec-WebSocket-Protocol: barrage.v1\r\n";

/// A WebSocket after its handshake, and the answer to that.
fn web(bench: &mut Bench, more: &str) -> (Key, String) {
    let key = bench.open().unwrap();
    let _ = bench.say(key, &upgrade("/sub", more));
    (key, String::from_utf8(bench.heard(key)).unwrap())
}

/// What came for a WebSocket: of each message, whether it was compressed, and what it is.
fn messages(bench: &mut Bench, key: Key) -> Vec<(bool, Vec<u8>)> {
    let mut bytes = bench.heard(key);
    let (mut decoder, mut inflater, mut rest) =
        (Decoder::new(Role::Client, 1 << 20), Inflater::default(), &mut bytes[..]);
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let compressed = rest[0] & 0x40 != 0;
        match decoder.next_inflated(&mut inflater, &mut rest) {
            Ok(Some(Event::Binary(bytes))) => messages.push((compressed, bytes.to_vec())),
            Ok(Some(Event::Text(text))) => messages.push((compressed, text.into())),
            other => panic!("{other:?}"),
        }
    }
    messages
}

/// The native frames among them.
fn frames(got: &[(bool, Vec<u8>)]) -> Vec<ServerFrame> {
    got.iter().map(|(_, bytes)| wire::from_binary(bytes).unwrap()).collect()
}

/// The code of the close frame at the end of what came.
fn closed(bytes: &[u8]) -> u16 {
    let close = bytes.iter().rposition(|byte| *byte == 0x88).unwrap();
    u16::from_be_bytes([bytes[close + 2], bytes[close + 3]])
}

/// A native session on a WebSocket that offered compression, in `room:1`.
fn native(bench: &mut Bench) -> Key {
    let key = joined(bench, true, room("room:1"));
    let own = messages(bench, key);
    assert!(own.len() == 2 && own.iter().all(|(compressed, _)| !compressed), "connected, subscribed: {own:?}");
    key
}

/// The same, of who reads batches or does not.
fn joined(bench: &mut Bench, batches: bool, subscribe: client::Subscribe) -> Key {
    let (key, answer) = web(bench, &format!("{NATIVE}{OFFER}"));
    assert!(answer.contains("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover"), "{answer}");
    let channel = subscribe.channel.clone();
    let said = |request, body| {
        let mut bytes = Vec::new();
        wire::to_binary(&ClientFrame { request, body: Some(body) }, &mut bytes);
        masked(Opcode::Binary, &bytes)
    };
    let connect = client::Connect { batches, ..client::Connect::default() };
    let _ = bench.say(key, &said(1, client_frame::Body::Connect(connect)));
    bench.admit();
    // Its own messages may be compressed as well.
    let (mut bytes, mut compressed) = (Vec::new(), Vec::new());
    let body = Some(client_frame::Body::Subscribe(subscribe));
    wire::to_binary(&ClientFrame { request: 2, body }, &mut bytes);
    Deflater::default().deflate(&bytes, &mut compressed);
    let mut subscribe = masked(Opcode::Binary, &compressed);
    subscribe[0] |= 0x40;
    let _ = bench.say(key, &subscribe);
    bench.answer(Answer::Joined(cluster::Joined {}));
    if bench.asks.iter().any(|ask| matches!(ask, CoreRequest::Hold { .. })) {
        bench.hold(&channel, 0, Vec::new());
    }
    key
}

#[test]
fn a_rooms_messages_are_compressed_and_what_is_a_sessions_own_is_not() {
    let mut bench = Bench::new(|_| {});
    let key = native(&mut bench);
    let long = "哈哈哈哈".repeat(30);
    bench.input(Input::Deliver(vec![item(1, &long), item(2, "short")]));
    let push = event::Push { message: message(0, &long).encode_to_vec().into(), raw: "".into(), operation: 0 };
    bench.input(Input::Push(vec![key], Arc::new(push)));
    let got = messages(&mut bench, key);
    assert_eq!(texts(&frames(&got)), [&*long, "short", &*long]);
    // What came together is one frame.
    assert_eq!(got.iter().map(|(compressed, _)| *compressed).collect::<Vec<_>>(), [true, false]);
    // What is short is sent as it is.
    bench.input(Input::Deliver(vec![item(3, "short")]));
    assert!(matches!(&messages(&mut bench, key)[..], [(false, _)]));
}

#[test]
fn who_does_not_read_batches_gets_each_message_by_itself() {
    let mut bench = Bench::new(|_| {});
    let key = joined(&mut bench, false, room("room:1"));
    bench.heard(key);
    let long = "哈哈哈哈".repeat(30);
    bench.input(Input::Deliver(vec![item(1, &long), item(2, "short")]));
    let got = messages(&mut bench, key);
    assert!(got.len() == 2 && got.iter().all(|(compressed, _)| !compressed), "{got:?}");
    assert_eq!(texts(&frames(&got)), [&*long, "short"]);
}

#[test]
fn who_has_some_of_a_batch_gets_the_others_once() {
    let mut bench = Bench::new(|_| {});
    let first = native(&mut bench);
    let numbered = |offset: u64| item(offset, &offset.to_string());
    bench.input(Input::Deliver((1..=6).map(numbered).collect()));
    assert!(
        matches!(&frames(&messages(&mut bench, first))[0].body, Some(Body::Batch(batch)) if batch.messages.len() == 6)
    );
    let history = client::Subscribe { history: 2, ..room("room:1") };
    let position = client::Position { log: "log".into(), normal: 3, high: 3 };
    let resume = client::Subscribe { resume: Some(position), ..room("room:1") };
    for (subscribe, expected) in [(history, &["5", "6"][..]), (resume, &["4", "5", "6"])] {
        let key = joined(&mut bench, true, subscribe);
        let got = frames(&messages(&mut bench, key));
        assert!(matches!(got[1].body, Some(Body::Subscribed(_))) && got.len() == 2 + expected.len(), "{got:?}");
        assert_eq!(texts(&got), expected);
    }
    let deliveries = bench.engine.counters().deliveries;
    assert_eq!(deliveries, 6 + 2 + 3);
    // One that cannot be sent to has it when it can; one that cannot for longer than the room keeps it, hears how many.
    for (more, expected) in [(0, &["5", "6"][..]), (2 * RECENT_MESSAGES as u64, &[])] {
        let mut bench = Bench::new(|_| {});
        native(&mut bench);
        bench.input(Input::Deliver((1..=6).map(numbered).collect()));
        let key = joined(&mut bench, true, room("room:2"));
        bench.heard(key);
        bench.sink.room.insert(key, 0);
        let position = client::Position { log: "log".into(), normal: 4, high: 4 };
        let resume = client::Subscribe { resume: Some(position), ..room("room:1") };
        let mut bytes = Vec::new();
        wire::to_binary(&ClientFrame { request: 3, body: Some(client_frame::Body::Subscribe(resume)) }, &mut bytes);
        let _ = bench.say(key, &masked(Opcode::Binary, &bytes));
        bench.answer(Answer::Joined(cluster::Joined {}));
        for offset in 7..7 + more {
            bench.input(Input::Deliver(vec![numbered(offset)]));
        }
        bench.sink.room.insert(key, usize::MAX);
        bench.engine.writable(bench.now, key);
        bench.round();
        let got = frames(&messages(&mut bench, key));
        assert_eq!(texts(&got)[..expected.len()], *expected);
        let missed = got.iter().filter_map(|frame| match &frame.body {
            Some(Body::Gap(gap)) => Some(gap.count),
            _ => None,
        });
        assert_eq!(missed.sum::<u64>() + texts(&got).len() as u64, 2 + more);
    }
    bench.input(Input::Deliver((7..=8).map(numbered).collect()));
    assert_eq!(texts(&frames(&messages(&mut bench, first))), ["7", "8"]);
    assert_eq!(bench.engine.counters().deliveries, deliveries + 3 * 2);
}

#[test]
fn cores_send_the_same_compressed_bytes_wherever_they_stand() {
    let shared = Arc::new(Compressed::new(2));
    let mut benches = [0, 1].map(|_| Bench::new(|config| config.compressed = shared.clone()));
    let keys = benches.each_mut().map(native);
    let items = |offsets: std::ops::Range<u64>| offsets.map(|at| item(at, &"666 ".repeat(50))).collect::<Vec<_>>();
    // The second has more of it in one go.
    benches[0].input(Input::Deliver(items(1..4)));
    benches[0].input(Input::Deliver(items(4..7)));
    benches[1].input(Input::Deliver(items(1..7)));
    let [one, other] = [0, 1].map(|at| benches[at].heard(keys[at]));
    assert!(one == other && one.len() < 6 * 100, "{} and {} bytes", one.len(), other.len());
}

#[test]
fn goims_batches_are_compressed_and_its_answers_are_not() {
    let mut bench = Bench::new(|_| {});
    let (key, answer) = web(&mut bench, OFFER);
    assert!(answer.contains("permessage-deflate"), "{answer}");
    let auth = packet_bytes(packet::operation::AUTH, 1, br#"{"mid":7,"room_id":"live://1","accepts":[1000]}"#);
    let _ = bench.say(key, &masked(Opcode::Binary, &auth));
    bench.admit();
    bench.hold("room:1", 0, Vec::new());
    bench.input(Input::Deliver((1..9).map(|offset| item(offset, "前方高能 前方高能")).collect()));
    let got = messages(&mut bench, key);
    let [(false, reply), (true, batch)] = &got[..] else { panic!("{got:?}") };
    assert_eq!(reply.len(), packet::HEADER_BYTES);
    let outer: Vec<_> = packet::in_message(batch, 1 << 20).map(Result::unwrap).collect();
    assert_eq!(packet::in_message(outer[0].body, 1 << 20).count(), 8);
}

#[test]
fn what_is_not_to_be_had_is_declined_and_what_is_no_offer_refused() {
    let mut bench = Bench::new(|config| config.compression = false);
    assert!(!web(&mut bench, OFFER).1.contains("permessage-deflate"));
    let mut bench = Bench::new(|_| {});
    for (offer, taken) in [("permessage-deflate; server_max_window_bits=10", false), ("permessage-deflate", true)] {
        let (_, answer) = web(&mut bench, &format!("Sec-WebSocket-Extensions: {offer}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("permessage-deflate") == taken, "{answer}");
    }
    assert!(web(&mut bench, "Sec-WebSocket-Extensions: ;\r\n").1.starts_with("HTTP/1.1 400 "));
    // Who was declined must not compress.
    let (key, _) = web(&mut bench, NATIVE);
    let mut bytes = masked(Opcode::Binary, b"");
    bytes[0] |= 0x40;
    let _ = bench.say(key, &bytes);
    assert_eq!(closed(&bench.heard(key)), 1002);
}

#[test]
fn a_bomb_is_refused_before_it_is_inflated() {
    let mut bench = Bench::new(|_| {});
    let key = native(&mut bench);
    let mut compressed = Vec::new();
    Deflater::default().deflate(&vec![0; 4 << 20], &mut compressed);
    let mut bytes = masked(Opcode::Binary, &compressed);
    bytes[0] |= 0x40;
    let _ = bench.say(key, &bytes);
    assert_eq!(closed(&bench.heard(key)), 1009);
}

/// Native requests as a client sends them that takes its context over.
struct TakesOver(flate2::Compress, Vec<Vec<u8>>);

impl TakesOver {
    fn new() -> Self {
        Self(flate2::Compress::new_with_window_bits(flate2::Compression::new(9), false, 9), Vec::new())
    }

    fn request(&mut self, request: u32, body: client_frame::Body) -> Vec<u8> {
        let (mut bytes, mut out) = (Vec::new(), Vec::with_capacity(1024));
        wire::to_binary(&ClientFrame { request, body: Some(body) }, &mut bytes);
        self.0.compress_vec(&bytes, &mut out, flate2::FlushCompress::Sync).unwrap();
        out.truncate(out.len() - 4);
        self.1.push(out.clone());
        let mut frame = masked(Opcode::Binary, &out);
        frame[0] |= 0x40;
        frame
    }
}

#[test]
fn a_client_may_refer_back_to_what_it_sent_before() {
    let text = || {
        client_frame::Body::Publish(client::Publish {
            channel: "room:1".into(),
            r#type: "text".into(),
            payload: Some(client::publish::Payload::Text("0123456789 abcdefghijklmnopqrstuvwxyz".into())),
            ..client::Publish::default()
        })
    };
    for offer in ["permessage-deflate", "permessage-deflate; client_max_window_bits"] {
        let mut bench = Bench::new(|_| {});
        let offer = format!("{NATIVE}Sec-WebSocket-Extensions: {offer}\r\n");
        let ((one, answer), (other, _)) = (web(&mut bench, &offer), web(&mut bench, &offer));
        assert!(!answer.contains("client_no_context_takeover"), "nobody offered it: {answer}");
        let mut clients = [(one, TakesOver::new()), (other, TakesOver::new())];
        for (key, client) in &mut clients {
            let connect = client_frame::Body::Connect(client::Connect::default());
            let subscribe = client_frame::Body::Subscribe(room("room:1"));
            // The subscription is looked at before it is handled.
            let both = [client.request(1, connect), client.request(2, subscribe)].concat();
            let _ = bench.say(*key, &both);
            assert_eq!(bench.admit().joins, ["room:1"]);
            bench.answer(Answer::Joined(cluster::Joined {}));
        }
        for request in 3..6 {
            for (key, client) in &mut clients {
                let _ = bench.say(*key, &client.request(request, text()));
            }
        }
        for (key, client) in &clients {
            assert!(client.1[4].len() * 2 < client.1[2].len(), "it refers back: {:?}", client.1);
            let asked = |ask: &&(u64, gate_request::Ask)| {
                matches!(&ask.1, gate_request::Ask::Publish(publish)
                if publish.channel == "room:1" && publish.payload.ends_with(b"xyz"))
            };
            assert_eq!(bench.gate.iter().filter(asked).count(), 6, "{:?}", bench.gate);
            assert!(!bench.sink.closed.contains(key));
        }
        assert!(bench.engine.footprint().windows > 0);
        for (key, _) in clients {
            bench.engine.closed(bench.now, key);
        }
        assert_eq!(bench.engine.footprint().windows, 0);
    }
}

#[test]
fn compression_is_declined_where_no_more_windows_may_be_kept() {
    let mut bench = Bench::new(|config| config.window_bytes_max = 33_000);
    let taken = |bench: &mut Bench, offer: &str| {
        let (key, answer) = web(bench, &format!("{NATIVE}Sec-WebSocket-Extensions: permessage-deflate{offer}\r\n"));
        (key, answer.contains("permessage-deflate"))
    };
    let (first, agreed) = taken(&mut bench, "");
    assert!(agreed);
    assert!(!taken(&mut bench, "").1, "two of 32 KiB are too much");
    assert!(!taken(&mut bench, "; client_max_window_bits").1);
    assert!(taken(&mut bench, "; client_no_context_takeover").1, "it needs none");
    assert_eq!(bench.engine.counters().compression_declined, 2);
    bench.engine.closed(bench.now, first);
    assert!(taken(&mut bench, "; client_max_window_bits").1);
}
