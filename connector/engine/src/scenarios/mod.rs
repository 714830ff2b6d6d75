//! What each dialect and each limit promises, one scenario a promise, under a clock that the test moves. What holds
//! whatever the schedule is the simulation's.

mod batches;
mod compression;
mod gaps;
mod limits;
mod native;
mod packets;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use prost::Message as _;
use proto::{
    client::{self, ClientFrame, ServerFrame, client_frame, server_frame::Body},
    cluster::{self, gate_reply::Answer, gate_request},
    native as wire,
    packet::{self, Packet},
    websocket::{Decoder, Event, Opcode, Role, frame},
};

use super::{
    Compressed, Engine, EngineConfig,
    event::{self, CoreRequest, Held, Input},
};
use machine::{Key, Machine, Now, Outlet, Reading, Sending, Sent, send_each};

/// How long `Bench::take_out` takes a session out for, milliseconds.
const TAKEN_OUT_MS: i64 = 60_000;

/// A network that takes what it is given, unless it is told to take only so much.
#[derive(Default)]
struct Sink {
    out: BTreeMap<Key, Vec<u8>>,
    room: BTreeMap<Key, usize>,
    closed: Vec<Key>,
    read: Vec<Key>,
    /// Calls of [`Outlet::send`].
    sends: usize,
    /// Of each call of [`Outlet::send_all`], to whom.
    calls: Vec<Vec<Key>>,
}

impl Outlet for Sink {
    fn send(&mut self, key: Key, bytes: &[u8]) -> Sent {
        self.sends += 1;
        let room = self.room.entry(key).or_insert(usize::MAX);
        let took = bytes.len().min(*room);
        *room -= took;
        self.out.entry(key).or_default().extend_from_slice(&bytes[..took]);
        Sent::Took(took)
    }

    fn send_all(&mut self, sends: &mut [Sending<'_>]) {
        self.calls.push(sends.iter().map(|sending| sending.key).collect());
        send_each(self, sends);
    }

    fn read(&mut self, key: Key) {
        self.read.push(key);
    }

    fn close(&mut self, key: Key) {
        self.closed.push(key);
    }

    fn stop_accepting(&mut self) {}
}

struct Bench {
    engine: Engine,
    now: Now,
    sink: Sink,
    /// Asked of logic, in order.
    gate: Vec<(u64, gate_request::Ask)>,
    asks: Vec<CoreRequest>,
    next_request: u32,
}

const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 4000);

impl Bench {
    fn new(change: impl FnOnce(&mut EngineConfig)) -> Self {
        let mut config = EngineConfig::small();
        change(&mut config);
        let now = Now { mono_ms: 50_000, unix_ms: 1_700_000_000_000 };
        Self {
            engine: Engine::new(Arc::new(config), 1, "incarnation".into(), now),
            now,
            sink: Sink::default(),
            gate: Vec::new(),
            asks: Vec::new(),
            next_request: 0,
        }
    }

    fn open(&mut self) -> Option<Key> {
        self.engine.opened(self.now, 0, SocketAddr::from(PEER))
    }

    /// Bytes of a client, and a round.
    fn say(&mut self, key: Key, bytes: &[u8]) -> Reading {
        let reading = self.engine.bytes(self.now, key, &mut bytes.to_vec());
        self.round();
        reading
    }

    fn round(&mut self) {
        while self.engine.round(self.now, &mut self.sink).again {
            self.collect();
        }
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(ask) = self.engine.next_request() {
            match ask {
                CoreRequest::Gate { id, ask, .. } => self.gate.push((id, ask)),
                ask => self.asks.push(ask),
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now.mono_ms += 100;
            self.now.unix_ms += 100;
            self.round();
        }
    }

    fn input(&mut self, input: Input) {
        self.engine.input(self.now, input);
        self.round();
    }

    /// Answers the oldest question to logic.
    fn answer(&mut self, answer: Answer) -> gate_request::Ask {
        let (id, ask) = self.gate.remove(0);
        self.input(Input::Reply { id, answer });
        ask
    }

    fn admit(&mut self) -> cluster::Authenticate {
        match self.answer(Answer::Admitted(admitted())) {
            gate_request::Ask::Authenticate(ask) => ask,
            other => panic!("{other:?}"),
        }
    }

    /// The owner answers the hold of a room.
    fn hold(&mut self, channel: &str, offset: u64, recent: Vec<Arc<cluster::Item>>) {
        let at = self
            .asks
            .iter()
            .position(|ask| matches!(ask, CoreRequest::Hold { channel: asked, .. } if asked == channel));
        let CoreRequest::Hold { ticket, .. } = self.asks.remove(at.expect("a hold")) else { panic!("a hold") };
        self.input(Input::Held(Held {
            channel: channel.into(),
            ticket,
            log: "log".into(),
            offset,
            missed: None,
            recent,
            before: None,
        }));
    }

    /// The platform takes a session out of `room:1` for [`TAKEN_OUT_MS`].
    fn take_out(&mut self, key: Key, reason: client::ErrorCode) {
        let (channels, until_ms) = (vec!["room:1".into()], self.now.unix_ms + TAKEN_OUT_MS);
        let leave = proto::record::Leave { channels, reason: reason.into(), until_ms };
        self.input(Input::Command(vec![key], Arc::new(cluster::command_out::Act::Unsubscribe(leave))));
    }

    /// What came for a connection since the last call.
    fn heard(&mut self, key: Key) -> Vec<u8> {
        self.sink.out.remove(&key).unwrap_or_default()
    }

    fn frames(&mut self, key: Key) -> Vec<ServerFrame> {
        let bytes = self.heard(key);
        let mut rest = &bytes[..];
        std::iter::from_fn(|| wire::unpack(&mut rest, 1 << 20).unwrap())
            .map(|frame| wire::from_binary(frame).unwrap())
            .collect()
    }

    fn packets(&mut self, key: Key) -> Vec<(i32, u32, Vec<u8>)> {
        let bytes = self.heard(key);
        packet::in_message(&bytes, 1 << 20)
            .map(|packet| packet.unwrap())
            .map(|packet| (packet.operation, packet.sequence, packet.body.to_vec()))
            .collect()
    }

    /// Asks in the native protocol over TCP.
    fn request(&mut self, key: Key, body: client_frame::Body) -> u32 {
        self.next_request += 1;
        let bytes = native_bytes(self.next_request, body);
        let _ = self.say(key, &bytes);
        self.next_request
    }

    /// A native session over TCP.
    fn native(&mut self) -> Key {
        let key = self.open().unwrap();
        let _ = self.say(key, wire::MAGIC);
        self.request(key, client_frame::Body::Connect(client::Connect::default()));
        self.admit();
        assert!(matches!(self.frames(key)[0].body, Some(Body::Connected(_))));
        key
    }

    fn subscribe(&mut self, key: Key, subscribe: client::Subscribe) -> u32 {
        let request = self.request(key, client_frame::Body::Subscribe(subscribe));
        self.answer(Answer::Joined(cluster::Joined {}));
        request
    }

    /// A native session in `room:1`, which is held.
    fn viewer(&mut self) -> Key {
        let key = self.native();
        self.subscribe(key, room("room:1"));
        if self.asks.iter().any(|ask| matches!(ask, CoreRequest::Hold { .. })) {
            self.hold("room:1", 0, Vec::new());
        }
        assert!(matches!(self.frames(key)[0].body, Some(Body::Subscribed(_))));
        key
    }

    fn packet_client(&mut self, auth: &str) -> Key {
        let key = self.open().unwrap();
        let _ = self.say(key, &packet_bytes(packet::operation::AUTH, 1, auth.as_bytes()));
        key
    }

    /// A session of goim's in `live://1`.
    fn goim(&mut self) -> Key {
        let key = self.packet_client(r#"{"mid":7,"room_id":"live://1","accepts":[1000]}"#);
        self.admit();
        if self.asks.iter().any(|ask| matches!(ask, CoreRequest::Hold { .. })) {
            self.hold("room:1", 0, Vec::new());
        }
        assert_eq!(self.packets(key), [(packet::operation::AUTH_REPLY, 1, Vec::new())]);
        key
    }
}

fn admitted() -> cluster::Admitted {
    cluster::Admitted {
        uid: "ann".into(),
        subscribe: vec!["room:*".into()],
        publish: vec!["room:*".into()],
        ..Default::default()
    }
}

fn room(channel: &str) -> client::Subscribe {
    client::Subscribe { channel: channel.into(), ..Default::default() }
}

fn native_bytes(request: u32, body: client_frame::Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    let start = wire::begin_frame(&mut bytes);
    wire::to_binary(&ClientFrame { request, body: Some(body) }, &mut bytes);
    wire::end_frame(start, &mut bytes);
    bytes
}

fn packet_bytes(operation: i32, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet::write(Packet { version: 1, operation, sequence, body }, &mut bytes);
    bytes
}

fn message(offset: u64, text: &str) -> client::Message {
    client::Message {
        channel: "room:1".into(),
        id: offset.to_string(),
        offset,
        r#type: "text".into(),
        payload: Some(client::message::Payload::Text(text.into())),
        ..Default::default()
    }
}

fn item(offset: u64, text: &str) -> Arc<cluster::Item> {
    item_of("room:1", offset, text)
}

fn item_of(channel: &str, offset: u64, text: &str) -> Arc<cluster::Item> {
    let message = client::Message { channel: channel.into(), ..message(offset, text) }.encode_to_vec().into();
    Arc::new(cluster::Item { channel: channel.into(), offset, message, ..Default::default() })
}

fn texts(frames: &[ServerFrame]) -> Vec<String> {
    frames
        .iter()
        .flat_map(|frame| match &frame.body {
            Some(Body::Message(message)) => std::slice::from_ref(message),
            Some(Body::Batch(batch)) => &batch.messages,
            _ => &[],
        })
        .filter_map(|message| match &message.payload {
            Some(client::message::Payload::Text(text)) => Some(text.clone()),
            _ => None,
        })
        .collect()
}

fn goodbye(frames: &[ServerFrame]) -> Option<client::ErrorCode> {
    frames.iter().find_map(|frame| match &frame.body {
        Some(Body::Goodbye(goodbye)) => client::ErrorCode::try_from(goodbye.code).ok(),
        _ => None,
    })
}

fn upgrade(path: &str, more: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
    .into_bytes()
}

/// The close code at the end of what a WebSocket got after its handshake.
fn close_code(bytes: &[u8]) -> Option<u16> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(0, |end| end + 4);
    let (mut decoder, mut bytes) = (Decoder::new(Role::Client, 1 << 20), bytes[end..].to_vec());
    let mut rest = &mut bytes[..];
    let mut code = None;
    while let Ok(Some(event)) = decoder.next(&mut rest) {
        if let Event::Close(said) = event {
            code = said.map(|(code, _)| code);
        }
    }
    code
}

fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame(true, opcode, Some([9, 8, 7, 6]), payload, &mut bytes);
    bytes
}
