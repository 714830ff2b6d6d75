//! What a session costs in heap memory, and what a delivery allocates: the engine under a counting allocator, without
//! sockets. A driver's, the control thread's and the routes' parts are theirs; BENCHMARKS.md has the whole process.
//!
//! What is asserted is the sum of the live allocations' sizes, tables that have grown by doubling among them, so that it
//! does not depend on the machine. A session that has done all that sessions do (handshake, token, room, heartbeats, a
//! message) and is idle again must have given back all but what it needs.

use std::alloc::System;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use engine::event::{CoreRequest, Held, Input};
use engine::{Compressed, Engine, EngineConfig};
use machine::{Key, Machine, Now, Outlet, Sent};
use prost::Message as _;
use proto::client::{self, client_frame::Body};
use proto::cluster::{Admitted, Item, Joined, gate_reply::Answer, gate_request};
use proto::packet::{self, Packet, operation};
use proto::websocket::{self, Opcode};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The allocator counts for the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes that are allocated now.
fn live() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// Allocations so far; growing one counts, too.
fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

/// A network that takes everything.
struct Sink;

impl Outlet for Sink {
    fn send(&mut self, _: Key, bytes: &[u8]) -> Sent {
        Sent::Took(bytes.len())
    }

    fn read(&mut self, _: Key) {}

    fn close(&mut self, key: Key) {
        panic!("{key:?} is closed");
    }

    fn stop_accepting(&mut self) {}
}

/// The engine between clients that do as they are told and a cluster that agrees to everything.
struct Host {
    engine: Engine,
    now: Now,
    rooms: usize,
}

/// A core of a connector as shipped.
fn config() -> EngineConfig {
    EngineConfig {
        proxies: Vec::new(),
        operations: Default::default(),
        compression: true,
        window_bytes_max: 1 << 30,
        compressed: Arc::new(Compressed::new(1)),
        origins: Vec::new(),
        names: Vec::new(),
        sessions_max: 1_000_000,
        connections_per_address: 0,
        limit_loopback: false,
        auth_deadline_ms: 5000,
        heartbeat_s: 30,
        requests_per_s: 20,
        requests_in_flight: 16,
        payload_bytes_max: 4096,
        rooms_per_session: 16,
        new_rooms_per_session: 30,
        new_rooms_per_address: 0,
        ring_bytes_max: 256 * 1024,
        recent_bytes_max: 256 << 20,
        private_bytes_max: 64 * 1024,
        slow_close_s: 30,
        socket_bytes: 128 * 1024,
        stuck_bytes_max: 1 << 30,
        token_leeway_s: 30,
        room_linger_s: 10,
        round_sends: 512,
        pacing_ms_max: 0,
        late_bytes: 32 * 1024,
        sends_per_ms: 180,
        drain_delay_max_ms: 10_000,
    }
}

impl Host {
    fn new(rooms: usize) -> Self {
        Self::with(config(), rooms)
    }

    fn with(config: EngineConfig, rooms: usize) -> Self {
        let now = Now { mono_ms: 5_000, unix_ms: 1_700_000_000_000 };
        Self { engine: Engine::new(Arc::new(config), 0, "abcdefghijklm".into(), now), now, rooms }
    }

    fn open(&mut self) -> Key {
        self.engine.opened(self.now, 0, SocketAddr::from((Ipv4Addr::LOCALHOST, 4000))).expect("there is room")
    }

    fn say(&mut self, key: Key, mut bytes: Vec<u8>) {
        let _ = self.engine.bytes(self.now, key, &mut bytes);
        self.round();
    }

    /// Rounds, and what the cluster says to what is asked, until nothing is to be done.
    fn round(&mut self) {
        loop {
            let next = self.engine.round(self.now, &mut Sink);
            let mut inputs = Vec::new();
            while let Some(ask) = self.engine.next_request() {
                inputs.extend(Self::answer(ask));
            }
            if inputs.is_empty() && !next.again {
                return;
            }
            inputs.into_iter().for_each(|input| self.engine.input(self.now, input));
        }
    }

    fn answer(ask: CoreRequest) -> Option<Input> {
        match ask {
            CoreRequest::Gate { id, session, ask } => {
                let answer = match ask {
                    gate_request::Ask::Authenticate(_) => {
                        let uid = format!("user-{:07}", session.slot);
                        Answer::Admitted(Admitted {
                            name: uid.clone(),
                            uid,
                            expires_at_ms: 1_700_086_400_000,
                            subscribe: vec!["room:*".into()],
                            publish: vec!["room:*".into()],
                            ..Admitted::default()
                        })
                    }
                    _ => Answer::Joined(Joined {}),
                };
                Some(Input::Reply { id, answer })
            }
            CoreRequest::Hold { channel, ticket, .. } => Some(Input::Held(Held {
                channel,
                ticket,
                log: "log".into(),
                offset: 0,
                missed: None,
                recent: Vec::new(),
                before: None,
            })),
            _ => None,
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now.mono_ms += 100;
            self.now.unix_ms += 100;
            self.round();
        }
    }

    fn room(&self, nth: usize) -> String {
        format!("room:{}", nth % self.rooms)
    }

    fn native(&mut self, nth: usize) -> Key {
        self.web(nth, false)
    }

    /// One that reads batches, compressed, or not.
    fn web(&mut self, nth: usize, compressed: bool) -> Key {
        let (key, room) = (self.open(), self.room(nth));
        let offer = if compressed { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        self.say(
            key,
            format!(
                "GET /sub HTTP/1.1\r\nHost: live.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                 Sec-WebSocket-Protocol: barrage.v1\r\n{offer}\r\n"
            )
            .into_bytes(),
        );
        let connect = client::Connect { token: "a.b.c".repeat(60), batches: compressed, ..Default::default() };
        self.say(key, native(1, Body::Connect(connect)));
        self.say(key, native(2, Body::Subscribe(client::Subscribe { channel: room, ..Default::default() })));
        key
    }

    fn goim(&mut self, nth: usize) -> Key {
        let (key, room) = (self.open(), nth % self.rooms);
        let token = "a.b.c".repeat(60);
        let auth = format!(r#"{{"mid":{nth},"token":"{token}","room_id":"live://{room}","accepts":[1000,1001,1002]}}"#);
        self.say(key, goim(operation::AUTH, auth.as_bytes()));
        key
    }

    /// Everyone's heartbeats for two minutes, and a message to each room.
    fn live(&mut self, keys: &[Key], beat: &[u8]) {
        for offset in 1..=4 {
            for &key in keys {
                self.say(key, beat.to_vec());
            }
            for room in 0..self.rooms {
                let item = item(&self.room(room), offset);
                self.engine.input(self.now, Input::Deliver(vec![item]));
            }
            self.pass(25_000);
        }
        // What is forgotten, is forgotten by now.
        self.pass(1_000);
    }
}

fn native(request: u32, body: Body) -> Vec<u8> {
    let (mut frame, mut bytes) = (Vec::new(), Vec::new());
    proto::native::to_binary(&client::ClientFrame { request, body: Some(body) }, &mut frame);
    websocket::frame(true, Opcode::Binary, Some([1, 2, 3, 4]), &frame, &mut bytes);
    bytes
}

fn goim(operation: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet::write(Packet { version: 1, operation, sequence: 1, body }, &mut bytes);
    bytes
}

fn item(channel: &str, offset: u64) -> Arc<Item> {
    item_of(channel, offset, "the message that everyone reads")
}

fn item_of(channel: &str, offset: u64, text: &str) -> Arc<Item> {
    let message = client::Message {
        channel: channel.into(),
        id: format!("{offset:022}"),
        offset,
        r#type: "text".into(),
        payload: Some(client::message::Payload::Text(text.into())),
        ..Default::default()
    };
    Arc::new(Item { channel: channel.into(), offset, message: message.encode_to_vec().into(), ..Item::default() })
}

/// Live bytes a session after `sessions` of them came into `rooms` and were idle for a while.
fn bytes_a_session(sessions: usize, rooms: usize, come: impl Fn(&mut Host, usize) -> Key, beat: &[u8]) -> isize {
    let mut host = Host::new(rooms);
    // The rooms themselves are not the sessions'.
    let first: Vec<_> = (0..rooms).map(|nth| come(&mut host, nth)).collect();
    host.live(&first, beat);
    let before = live();
    let mut keys: Vec<_> = first;
    keys.extend((rooms..rooms + sessions).map(|nth| come(&mut host, nth)));
    host.live(&keys, beat);
    (live() - before - (keys.capacity() * size_of::<Key>()) as isize) / sessions as isize
}

#[test]
fn an_idle_session_costs_little() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let ping = native(3, Body::Ping(client::Ping {}));
    let native = bytes_a_session(20_000, 10, Host::native, &ping);
    let goim = bytes_a_session(20_000, 10, Host::goim, &goim(operation::HEARTBEAT, b""));
    println!("bytes a session in the engine: native {native}, goim {goim}");
    assert!(native <= 208 && goim <= 272, "native {native}, goim {goim}");
}

/// Rooms of [`bytes_a_room`].
const ROOMS: usize = 1_000;
/// What a core may keep of recent messages, for so many rooms as large as for 100,000 as shipped.
const RECENT_BYTES: usize = (256 << 20) / 100_000 * ROOMS;

/// Live bytes a room of three sessions, before its first message, and when so many messages (in bursts, each of so many
/// bytes of text) were read some seconds ago. The sessions' places in it are included.
fn bytes_a_room(messages: u64, text_bytes: usize, compressed: bool) -> (isize, isize) {
    const SESSIONS: usize = 200;
    const ROOMS_EACH: usize = 15;
    const BURSTS: u64 = 5;
    let mut host = Host::with(EngineConfig { recent_bytes_max: RECENT_BYTES, ..config() }, ROOMS);
    let keys: Vec<_> = (0..SESSIONS).map(|_| host.web(0, compressed)).collect();
    // The core's one compressor is no room's.
    let first = (1..=2).map(|offset| item_of("room:0", offset, &"x".repeat(500))).collect();
    host.engine.input(host.now, Input::Deliver(first));
    host.pass(2_000);
    let before = live();
    for place in 0..ROOMS_EACH {
        for (nth, &key) in keys.iter().enumerate() {
            let channel = host.room(nth * ROOMS_EACH + place);
            host.say(key, native(3, Body::Subscribe(client::Subscribe { channel, ..Default::default() })));
        }
        host.pass(200);
    }
    host.pass(5_000);
    let empty = (live() - before) / ROOMS as isize;
    for burst in 0..BURSTS {
        for room in 0..ROOMS {
            let offsets = burst * messages / BURSTS + 1..=(burst + 1) * messages / BURSTS;
            let items = offsets.map(|offset| item_of(&host.room(room), offset, &"x".repeat(text_bytes))).collect();
            host.engine.input(host.now, Input::Deliver(items));
        }
        host.pass(100);
    }
    assert!(host.engine.counters().deliveries >= 3 * messages * ROOMS as u64);
    host.pass(5_000);
    (empty, (live() - before) / ROOMS as isize)
}

#[test]
fn a_quiet_room_costs_little() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for compressed in [false, true] {
        for (messages, text_bytes) in [(5, 30), (100, 30), (300, 500)] {
            let (empty, quiet) = bytes_a_room(messages, text_bytes, compressed);
            let case = format!("{messages} of {text_bytes} bytes, compressed: {compressed}");
            println!("bytes a room: {empty} before its first message, {quiet} after {case}");
            assert!(empty <= 1024 && quiet <= 4096, "{empty}, {quiet} after {case}");
        }
    }
}

#[test]
fn a_delivery_allocates_nothing() {
    const SESSIONS: usize = 5_000;
    const MESSAGES: u64 = 200;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut host = Host::new(1);
    for nth in 0..SESSIONS {
        host.native(nth);
    }
    let publish = |host: &mut Host, offset: u64| {
        let item = item("room:0", offset);
        let before = allocations();
        host.engine.input(host.now, Input::Deliver(vec![item]));
        while host.engine.round(host.now, &mut Sink).again {}
        host.now.mono_ms += 5;
        allocations() - before
    };
    let _: usize = (1..=MESSAGES).map(|offset| publish(&mut host, offset)).sum();
    let made: usize = (MESSAGES + 1..=2 * MESSAGES).map(|offset| publish(&mut host, offset)).sum();
    let delivered = host.engine.counters().deliveries;
    println!("{made} allocations for {MESSAGES} messages of {SESSIONS} deliveries each");
    assert_eq!(delivered, 2 * MESSAGES * SESSIONS as u64);
    assert!(made as u64 <= 8 * MESSAGES, "{made} allocations");
}
