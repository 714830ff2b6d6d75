//! What servers say, in each dialect and over each carrier.

use proto::client::{Batch, Connected, Gap, Goodbye, Message, Pong, Sender, Subscribed, message};
use proto::deflate::Deflater;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Over {
    Tcp,
    WebSocket,
    Deflate,
}

const KINDS: [(Dialect, Over); 10] = [
    (Dialect::Native, Over::WebSocket),
    (Dialect::Native, Over::Deflate),
    (Dialect::Native, Over::Tcp),
    (Dialect::Goim, Over::WebSocket),
    (Dialect::Goim, Over::Deflate),
    (Dialect::Goim, Over::Tcp),
    (Dialect::Bilibili, Over::Tcp),
    (Dialect::BilibiliZlib, Over::Tcp),
    (Dialect::BilibiliBrotli, Over::Tcp),
    (Dialect::BilibiliBrotli, Over::WebSocket),
];

fn upgraded(over: Over) -> &'static [u8] {
    match over {
        Over::Tcp => b"",
        Over::WebSocket => b"HTTP/1.1 101 Switching Protocols\r\na: b\r\n\r\n",
        Over::Deflate => b"HTTP/1.1 101 S\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
    }
}

fn wire(dialect: Dialect, over: Over) -> Wire {
    let (tcp, compress) = (over == Over::Tcp, over == Over::Deflate);
    Wire::new(&Viewer { dialect, tcp, compress, host: "h:1", rooms: &["r".to_owned()], token: "" })
}

/// A message, as `over` carries what is pushed.
fn carried(over: Over, body: &[u8], out: &mut Vec<u8>) {
    match over {
        Over::Tcp => out.extend_from_slice(body),
        Over::WebSocket => websocket::encode(Opcode::Binary, body, out),
        Over::Deflate => websocket::encode_deflated(Opcode::Binary, body, &mut Deflater::new(15), out),
    }
}

fn message(payload: message::Payload) -> Message {
    Message {
        channel: "room:r".into(),
        id: "i".into(),
        offset: 7,
        time_ms: 1,
        sender: Some(Sender { uid: "u".into(), name: "n".into() }),
        r#type: "text".into(),
        payload: Some(payload),
        ..Message::default()
    }
}

fn text(text: impl Into<String>) -> Message {
    message(message::Payload::Text(text.into()))
}

/// What a server says from the beginning on, in each dialect, and what a viewer is to be told of it.
fn said(dialect: Dialect, over: Over) -> (Vec<u8>, Vec<String>) {
    let tcp = over == Over::Tcp;
    let mut out = upgraded(over).to_vec();
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    match dialect {
        Dialect::Native => {
            for body in [
                server_frame::Body::Connected(Connected { heartbeat_s: 7, ..Connected::default() }),
                server_frame::Body::Subscribed(Subscribed::default()),
                server_frame::Body::Message(text("one")),
                server_frame::Body::Message(message(message::Payload::Data(b"\xfftwo"[..].into()))),
                server_frame::Body::Gap(Gap { count: 5, ..Gap::default() }),
                server_frame::Body::Pong(Pong::default()),
                server_frame::Body::Batch(Batch { messages: vec![text("3".repeat(70_000)), text("four")] }),
                server_frame::Body::Goodbye(Goodbye { reason: "bye".into(), ..Goodbye::default() }),
            ] {
                let mut bytes = Vec::new();
                native::to_binary(&ServerFrame { request: 0, body: Some(body) }, &mut bytes);
                bodies.push(bytes);
            }
            for body in &bodies {
                if tcp {
                    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
                }
                carried(over, body, &mut out);
            }
        }
        Dialect::Bilibili | Dialect::BilibiliZlib | Dialect::BilibiliBrotli => {
            let chat = |text: &str| {
                let payload = Some(message::Payload::Text(text.into()));
                let message =
                    Message { channel: "room:1".into(), r#type: "text".into(), payload, ..Message::default() };
                bilibili::danmaku(&message, b"").unwrap()
            };
            let version = match dialect {
                Dialect::BilibiliZlib => bilibili::Version::Zlib,
                Dialect::BilibiliBrotli => bilibili::Version::Brotli,
                _ => bilibili::Version::Plain,
            };
            let (mut packer, mut packets) = (bilibili::Packer::default(), Vec::new());
            bilibili::auth_reply(1, bilibili::CODE_OK, &mut packets);
            bilibili::heartbeat_reply(2, 1, b"", &mut packets);
            packer.pack(version, [chat("one")], &mut packets);
            let gift = br#"{"cmd":"SEND_GIFT","data":{}}"#.to_vec();
            packer.pack(version, [chat("two"), gift, chat(&"3".repeat(70_000))], &mut packets);
            carried(over, &packets, &mut out);
        }
        Dialect::Goim => {
            let long = vec![b'3'; 70_000];
            let mut inner = Vec::new();
            goim::push(OPERATION, b"\xfftwo", &mut inner);
            goim::push(OPERATION + 1, b"not ours", &mut inner);
            goim::push(OPERATION, &long, &mut inner);
            let mut packets = Vec::new();
            goim::auth_reply(1, &mut packets);
            goim::heartbeat_reply(2, 1, &mut packets);
            goim::push(OPERATION, b"one", &mut packets);
            if tcp {
                packets.extend_from_slice(&inner);
            } else {
                goim::batch(&inner, &mut packets);
            }
            carried(over, &packets, &mut out);
        }
    }
    if !tcp {
        websocket::encode(Opcode::Ping, b"still?", &mut out);
        websocket::close(4015, "draining", &mut out);
    }
    let native = dialect == Dialect::Native;
    // Bilibili's are JSON, which takes only UTF-8.
    let two = if dialect.protover().is_some() { &b"two"[..] } else { &b"\xfftwo"[..] };
    let (two, three) = (format!("{two:?}"), format!("{:?}", vec![b'3'; 70_000]));
    let mut told = vec!["ready".to_owned()];
    told.extend((!native).then(|| "pong".to_owned()));
    told.extend([format!("{:?}", &b"one"[..]), two]);
    told.extend(native.then(|| ["gap 5", "pong"].map(ToOwned::to_owned)).into_iter().flatten());
    told.push(three);
    told.extend(native.then(|| format!("{:?}", b"four")));
    told.extend(native.then(|| "ended goodbye: bye".to_owned()));
    told.extend((!tcp).then(|| "ended close frame: 4015 draining".to_owned()));
    (out, told)
}

#[test]
fn any_split_of_the_bytes_tells_the_same() {
    for (dialect, over) in KINDS {
        let (bytes, expected) = said(dialect, over);
        for piece in [1, 2, 3, 7, 100, 65_536, usize::MAX] {
            let mut wire = wire(dialect, over);
            let mut told = Vec::new();
            for piece in bytes.clone().chunks_mut(piece) {
                let mut tell = |event: Event<'_>| {
                    told.push(match event {
                        Event::Ready => "ready".to_owned(),
                        Event::Payload(payload) => format!("{payload:?}"),
                        Event::Gap(count) => format!("gap {count}"),
                        Event::Pong(_) => "pong".to_owned(),
                        Event::Ended(why) => format!("ended {why}"),
                    });
                };
                wire.read(piece, &mut tell).unwrap();
            }
            assert!(told == expected, "{dialect:?} {over:?} {piece}: {told:.200?}");
            if dialect == Dialect::Native {
                assert_eq!(wire.heartbeat_s, 7);
            }
        }
    }
}

#[test]
fn an_answer_to_a_heartbeat_is_told_with_its_bytes_on_the_wire() {
    for (dialect, over) in KINDS {
        let mut wire = wire(dialect, over);
        let tcp = over == Over::Tcp;
        if !tcp {
            wire.read(&mut upgraded(over).to_vec(), &mut |_| ()).unwrap();
        }
        let (mut body, mut out) = (Vec::new(), Vec::new());
        if dialect == Dialect::Native {
            let pong = Pong { time_ms: 1 << 40, ..Pong::default() };
            native::to_binary(&ServerFrame { request: 3, body: Some(server_frame::Body::Pong(pong)) }, &mut body);
        } else {
            goim::heartbeat_reply(1, 5, &mut body);
        }
        match (tcp, dialect) {
            (true, Dialect::Native) => {
                let start = native::begin_frame(&mut out);
                out.extend_from_slice(&body);
                native::end_frame(start, &mut out);
            }
            (true, _) => out = body,
            _ => websocket::encode(Opcode::Binary, &body, &mut out),
        }
        let (length, mut told) = (out.len(), None);
        let mut tell = |event: Event<'_>| {
            if let Event::Pong(bytes) = event {
                told = Some(bytes);
            }
        };
        wire.read(&mut out, &mut tell).unwrap();
        assert_eq!(told, Some(length), "{dialect:?} {over:?}");
    }
}

#[test]
fn a_wire_at_rest_goes_on_where_another_left_off() {
    for (dialect, over) in KINDS.into_iter().filter(|(_, over)| *over != Over::Deflate) {
        let tcp = over == Over::Tcp;
        let (bytes, expected) = said(dialect, over);
        let (mut own, mut told, mut changes) = (wire(dialect, over), 0, 0);
        own.out.clear();
        for byte in bytes {
            own.read(&mut [byte], &mut |_| told += 1).unwrap();
            own.out.clear();
            if told > 0 && own.is_at_rest() {
                own = Wire::at_rest(dialect, tcp);
                changes += 1;
            }
        }
        assert!(told == expected.len() && changes >= 2, "{dialect:?} {over:?}: {told} events, {changes} changes");
    }
}

#[test]
fn the_short_way_to_a_payload_is_the_long_way() {
    let data = message(message::Payload::Data(b"\x00\xff"[..].into()));
    let without = Message { payload: None, ..text("") };
    for (body, expected) in [
        (server_frame::Body::Message(text("hello")), vec![&b"hello"[..]]),
        (server_frame::Body::Message(data.clone()), vec![b"\x00\xff"]),
        (server_frame::Body::Message(without.clone()), vec![]),
        (server_frame::Body::Batch(Batch { messages: vec![text("a"), without, data] }), vec![b"a", b"\x00\xff"]),
    ] {
        let (mut bytes, mut told) = (Vec::new(), Vec::new());
        native::to_binary(&ServerFrame { request: 0, body: Some(body) }, &mut bytes);
        assert!(payloads(&bytes, |payload| told.push(payload)));
        assert_eq!(told, expected);
        for cut in 0..bytes.len() {
            let _never_panics = payloads(&bytes[..cut], |_| ());
        }
    }
}

#[test]
fn nothing_follows_the_upgrade_before_its_answer() {
    let mut wire = wire(Dialect::Goim, Over::WebSocket);
    assert!(wire.out.ends_with(b"\r\n\r\n"));
    wire.out.clear();
    wire.read(&mut b"HTTP/1.1 101 S\r\n\r\n".to_vec(), &mut |_| ()).unwrap();
    assert!(!wire.out.is_empty());
}

#[test]
fn compression_that_was_offered_must_be_taken_and_no_other() {
    for (over, answered) in [(Over::Deflate, Over::WebSocket), (Over::WebSocket, Over::Deflate)] {
        let refused = wire(Dialect::Goim, over).read(&mut upgraded(answered).to_vec(), &mut |_| ());
        assert!(refused.unwrap_err().contains(DEFLATE));
    }
}

#[test]
fn a_refused_upgrade_says_why() {
    let mut wire = wire(Dialect::Native, Over::WebSocket);
    let refused = wire.read(&mut b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec(), &mut |_| ());
    assert_eq!(refused, Err("the upgrade was refused: HTTP/1.1 403 Forbidden".into()));
}
