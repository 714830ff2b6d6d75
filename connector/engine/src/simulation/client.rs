//! Simulated clients: they decode what they get with the codecs' client side, and check it as it comes.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    bilibili, client,
    client::{ClientFrame, ErrorCode, GapReasons, ServerFrame, client_frame, server_frame},
    deflate::Inflater,
    native, packet,
    websocket::{Decoder, Event, Opcode, Role, frame},
};

use super::Random;

/// What a Bilibili client's heartbeat carries, and gets back behind the reply on a WebSocket.
pub(super) const HEARTBEAT: &[u8] = b"[object Object]";

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    NativeBinary,
    NativeJson,
    NativeTcp,
    GoimWeb,
    GoimTcp,
    BilibiliWeb(u8),
    BilibiliTcp(u8),
}

impl Speaks {
    pub(super) fn random(random: &mut Random) -> Self {
        match random.below(10) {
            0..3 => Self::NativeBinary,
            3 => Self::NativeJson,
            4..6 => Self::NativeTcp,
            6 => Self::GoimWeb,
            7 => Self::GoimTcp,
            8 => Self::BilibiliWeb([0, 2, 3][random.below(3) as usize]),
            _ => Self::BilibiliTcp([0, 2, 3][random.below(3) as usize]),
        }
    }

    pub(super) fn is_native(self) -> bool {
        matches!(self, Self::NativeBinary | Self::NativeJson | Self::NativeTcp)
    }

    fn is_web(self) -> bool {
        !matches!(self, Self::NativeTcp | Self::GoimTcp | Self::BilibiliTcp(_))
    }
}

/// A place in a room's history as the client knows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Watch {
    /// What it has everything after: log, offset on each lane.
    pub(super) base: (String, [u64; 2]),
    /// Numbers of messages that came.
    pub(super) got: BTreeSet<u64>,
    /// Messages that it was told it missed.
    pub(super) gaps: u64,
    /// The same by reason.
    pub(super) reasons: GapReasons,
    /// A gap was not exact.
    pub(super) inexact: bool,
    /// Where it would resume.
    pub(super) position: client::Position,
    /// Subscribed now.
    pub(super) live: bool,
    /// It could not go on where it was: a gap must be told before the next message.
    backlog: bool,
    /// Where it wanted to resume, which could not be, and how many it was told to lack at least from there to `base`.
    pub(super) unresumed: Option<(client::Position, u64)>,
}

impl Watch {
    /// Somebody else has told the client everything up to `offset`.
    pub(super) fn elsewhere(&mut self, offset: u64) {
        let log = std::mem::take(&mut self.position.log);
        self.base = (log.clone(), [offset; 2]);
        self.position = client::Position { log, normal: offset, high: offset };
        (self.got, self.gaps, self.reasons, self.inexact) = (BTreeSet::new(), 0, GapReasons::default(), false);
    }
}

/// One client, over several connections.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) speaks: Speaks,
    /// The room that goim's and Bilibili's clients watch.
    pub(super) room: u64,
    decoder: Option<Decoder>,
    /// Of who offers compression.
    inflater: Option<Inflater>,
    /// Native: it says that it reads batches.
    batches: bool,
    input: Vec<u8>,
    upgraded: bool,
    /// Said to be let in.
    pub(super) admitted: bool,
    /// Requests without a reply.
    pub(super) open: BTreeMap<u32, Asked>,
    next_request: u32,
    pub(super) watches: BTreeMap<String, Watch>,
    /// goim and Bilibili: the last number on each lane.
    last: [u64; 2],
    /// Of them: numbers that came since the authentication.
    pub(super) got: BTreeSet<u64>,
    /// Sequence numbers of packets that must be answered, in this order.
    pub(super) sequences: std::collections::VecDeque<(i32, u32)>,
    /// Said goodbye to.
    pub(super) ended: Option<ErrorCode>,
    /// A close frame came: nothing may follow.
    closed: bool,
    pub(super) received: u64,
    /// Of them, in native batches.
    pub(super) batched: u64,
    pub(super) resumed: u64,
    pub(super) pushes: u64,
    /// Nothing it sends breaks a rule: it must not be closed for one.
    pub(super) errors: Vec<ErrorCode>,
    /// goim, Bilibili: the platform has taken it out of its room, which it is not told.
    pub(super) taken_out: bool,
}

/// What a request was.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    Connect,
    Subscribe(String, Option<client::Position>),
    Unsubscribe(String),
    Other,
}

/// A message's text: which room, which one, on which lane.
pub(super) fn text(room: u64, number: u64, lane: usize, padding: usize) -> String {
    format!("{room}/{number}/{lane}/{}", "x".repeat(padding))
}

fn parse(text: &str) -> Option<(u64, u64, usize)> {
    let mut parts = text.split('/');
    let (room, number, lane) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().filter(|rest| rest.bytes().all(|b| b == b'x')).map(|_| (room, number, lane))
}

impl Client {
    pub(super) fn new(speaks: Speaks, deflates: bool, batches: bool, room: u64) -> Self {
        Self {
            speaks,
            inflater: (deflates && speaks.is_web()).then(Inflater::default),
            batches,
            room,
            decoder: None,
            input: Vec::new(),
            upgraded: false,
            admitted: false,
            open: BTreeMap::new(),
            next_request: 0,
            watches: BTreeMap::new(),
            last: [0; 2],
            got: BTreeSet::new(),
            sequences: std::collections::VecDeque::new(),
            ended: None,
            closed: false,
            received: 0,
            batched: 0,
            resumed: 0,
            pushes: 0,
            errors: Vec::new(),
            taken_out: false,
        }
    }

    /// A connection is there: what it says first, and (native) whether it asks for its rooms `at_once`.
    pub(super) fn hello(&mut self, at_once: bool) -> Vec<u8> {
        self.decoder = self.speaks.is_web().then(|| Decoder::new(Role::Client, 1 << 20));
        (self.upgraded, self.admitted, self.closed) = (!self.speaks.is_web(), false, false);
        self.taken_out = false;
        (self.input, self.ended, self.last) = (Vec::new(), None, [0; 2]);
        (self.open, self.sequences, self.got) = Default::default();
        self.watches.values_mut().for_each(|watch| watch.live = false);
        let mut out = Vec::new();
        if self.speaks.is_web() {
            let subprotocol = match self.speaks {
                Speaks::NativeBinary => "Sec-WebSocket-Protocol: barrage.v1\r\n",
                Speaks::NativeJson => "Sec-WebSocket-Protocol: barrage.v1.json\r\n",
                _ => "",
            };
            let head = "GET /sub HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
            let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
            let offer = match self.inflater {
                Some(_) => "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n",
                None => "",
            };
            out.extend_from_slice(format!("{head}{key}{subprotocol}{offer}\r\n").as_bytes());
        } else if self.speaks == Speaks::NativeTcp {
            out.extend_from_slice(native::MAGIC);
        }
        let first = match self.speaks {
            Speaks::GoimWeb | Speaks::GoimTcp => {
                let body = format!(r#"{{"mid":1,"room_id":"live://{}","accepts":[1000]}}"#, self.room);
                self.packet(packet::operation::AUTH, body.as_bytes())
            }
            Speaks::BilibiliWeb(version) | Speaks::BilibiliTcp(version) => {
                let body = format!(r#"{{"uid":0,"roomid":{},"protover":{version}}}"#, self.room);
                self.packet(packet::operation::AUTH, body.as_bytes())
            }
            _ => {
                let connect = client::Connect { batches: self.batches, ..client::Connect::default() };
                self.request(client_frame::Body::Connect(connect), Asked::Connect)
            }
        };
        out.extend(first);
        if at_once && self.speaks.is_native() {
            let mut rooms: Vec<_> =
                self.watches.iter().map(|(room, watch)| (room.clone(), Some(watch.position.clone()))).collect();
            if rooms.is_empty() {
                rooms.push((format!("room:{}", self.room), None));
            }
            for (channel, resume) in rooms {
                let subscribe = client::Subscribe { channel: channel.clone(), resume: resume.clone(), history: 0 };
                out.extend(self.request(client_frame::Body::Subscribe(subscribe), Asked::Subscribe(channel, resume)));
            }
        }
        out
    }

    /// A packet that has an answer.
    pub(super) fn packet(&mut self, operation: i32, body: &[u8]) -> Vec<u8> {
        self.next_request += 1;
        let answer = match operation {
            packet::operation::AUTH | packet::operation::HEARTBEAT => operation + 1,
            packet::operation::CHANGE_ROOM | packet::operation::SUBSCRIBE | packet::operation::UNSUBSCRIBE => {
                operation + 1
            }
            _ => operation,
        };
        self.sequences.push_back((answer, self.next_request));
        let mut bytes = Vec::new();
        let sequence = self.next_request;
        packet::write(packet::Packet { version: 1, operation, sequence, body }, &mut bytes);
        self.envelop(Opcode::Binary, bytes)
    }

    /// A native request.
    pub(super) fn request(&mut self, body: client_frame::Body, asked: Asked) -> Vec<u8> {
        self.next_request += 1;
        self.open.insert(self.next_request, asked);
        let frame = ClientFrame { request: self.next_request, body: Some(body) };
        let mut bytes = Vec::new();
        match self.speaks {
            Speaks::NativeJson => {
                native::to_json(&frame, &mut bytes).unwrap();
                self.envelop(Opcode::Text, bytes)
            }
            Speaks::NativeTcp => {
                let start = native::begin_frame(&mut bytes);
                native::to_binary(&frame, &mut bytes);
                native::end_frame(start, &mut bytes);
                bytes
            }
            _ => {
                native::to_binary(&frame, &mut bytes);
                self.envelop(Opcode::Binary, bytes)
            }
        }
    }

    fn envelop(&self, opcode: Opcode, bytes: Vec<u8>) -> Vec<u8> {
        if !self.speaks.is_web() {
            return bytes;
        }
        let mut out = Vec::new();
        frame(true, opcode, Some([1, 2, 3, 4]), &bytes, &mut out);
        out
    }

    /// A WebSocket's ping.
    pub(super) fn web_ping(&self) -> Option<Vec<u8>> {
        self.speaks.is_web().then(|| self.envelop(Opcode::Ping, b"?".to_vec()))
    }

    /// Bytes came.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        if !self.upgraded {
            let Some(end) = self.input.windows(4).position(|window| window == b"\r\n\r\n") else { return };
            assert!(self.input.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&self.input));
            self.input.drain(..end + 4);
            self.upgraded = true;
        }
        let mut input = std::mem::take(&mut self.input);
        if let Some(mut decoder) = self.decoder.take() {
            let mut rest = &mut input[..];
            loop {
                let mut inflater = self.inflater.take();
                let event = match &mut inflater {
                    Some(inflater) => decoder.next_inflated(inflater, &mut rest),
                    None => decoder.next(&mut rest),
                };
                match event {
                    Ok(None) => {
                        self.inflater = inflater;
                        break;
                    }
                    Ok(Some(event)) => self.event(event),
                    Err(failure) => panic!("{:?} got bytes that are no frame: {failure}", self.speaks),
                }
                self.inflater = inflater;
            }
            self.decoder = Some(decoder);
            return;
        }
        let mut rest = &input[..];
        if self.speaks == Speaks::NativeTcp {
            while let Some(frame) = native::unpack(&mut rest, 1 << 20).expect("a frame's length") {
                self.frame(native::from_binary(frame).expect("a frame"));
            }
        } else {
            while let Some(packet) = packet::unpack(&mut rest, 1 << 20).expect("a packet's header") {
                self.packet_came(packet);
            }
        }
        self.input = rest.to_vec();
    }

    fn event(&mut self, event: Event<'_>) {
        assert!(!self.closed, "nothing follows a close");
        match event {
            Event::Text(text) => {
                assert_eq!(self.speaks, Speaks::NativeJson);
                self.frame(native::from_json(text).expect("a frame"));
            }
            Event::Binary(bytes) if self.speaks == Speaks::NativeBinary => {
                self.frame(native::from_binary(bytes).expect("a frame"));
            }
            Event::Binary(bytes) => {
                let beat = bytes.get(8..12) == Some(&packet::operation::HEARTBEAT_REPLY.to_be_bytes());
                let bytes = match self.speaks {
                    Speaks::BilibiliWeb(_) if beat => bytes.strip_suffix(HEARTBEAT).expect("its own body behind"),
                    _ => bytes,
                };
                let packets: Vec<_> =
                    packet::in_message(bytes, 1 << 20).collect::<Result<_, _>>().expect("whole packets");
                packets.into_iter().for_each(|packet| self.packet_came(packet));
            }
            Event::Close(code) => {
                assert!(code.is_some());
                self.closed = true;
            }
            Event::Ping(_) => panic!("the server sends no ping"),
            Event::Pong(payload) => assert_eq!(payload, b"?"),
        }
    }

    fn packet_came(&mut self, packet: packet::Packet<'_>) {
        let is_goim = matches!(self.speaks, Speaks::GoimWeb | Speaks::GoimTcp);
        match packet.operation {
            packet::operation::RAW if self.speaks == Speaks::GoimWeb => {
                for inner in packet::in_message(packet.body, 1 << 20) {
                    let inner = inner.expect("whole packets");
                    assert_eq!(inner.operation, 1000);
                    self.message(std::str::from_utf8(inner.body).expect("text"));
                }
            }
            1000 if self.speaks == Speaks::GoimTcp => self.message(std::str::from_utf8(packet.body).expect("text")),
            packet::operation::PUSH if !is_goim => {
                for json in bilibili::unpack(packet, 1 << 20).expect("a body") {
                    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
                    self.message(json["info"][1].as_str().expect("a danmaku"));
                }
            }
            operation => {
                let (answer, sequence) = self.sequences.pop_front().expect("an answer to something");
                assert_eq!((operation, packet.sequence), (answer, sequence), "in the order of the requests");
                if operation == packet::operation::AUTH_REPLY {
                    assert!(is_goim || packet.body == br#"{"code":0}"# || packet.body == br#"{"code":-101}"#);
                    self.admitted = is_goim || packet.body == br#"{"code":0}"#;
                }
            }
        }
    }

    /// goim, Bilibili: a message of the room, or a push.
    fn message(&mut self, said: &str) {
        if said == "push" {
            self.pushes += 1;
            return;
        }
        let (room, number, lane) = parse(said).expect("one of ours");
        assert!(self.admitted, "a message before the session was let in");
        assert_eq!(room, self.room);
        assert!(number > self.last[lane], "{:?}: {number} after {}", self.speaks, self.last[lane]);
        self.last[lane] = number;
        assert!(self.got.insert(number));
        self.received += 1;
    }

    fn frame(&mut self, frame: ServerFrame) {
        assert!(self.ended.is_none(), "nothing follows a goodbye: {frame:?}");
        let asked = if frame.request == 0 {
            None
        } else {
            Some(self.open.remove(&frame.request).unwrap_or_else(|| panic!("a second reply: {frame:?}")))
        };
        match frame.body.expect("a body") {
            server_frame::Body::Connected(_) => {
                assert_eq!(asked, Some(Asked::Connect));
                self.admitted = true;
            }
            server_frame::Body::Subscribed(subscribed) => self.subscribed(asked, subscribed),
            server_frame::Body::Unsubscribed(unsubscribed) => {
                match asked {
                    Some(asked) => assert_eq!(asked, Asked::Unsubscribe(unsubscribed.channel.clone())),
                    None => assert!(matches!(unsubscribed.reason(), ErrorCode::Kicked | ErrorCode::Banned)),
                }
                self.watches.remove(&unsubscribed.channel).expect("a subscription");
            }
            server_frame::Body::Message(message) => self.native_message(message),
            server_frame::Body::Batch(batch) => {
                assert!(self.batches && self.speaks.is_web() && batch.messages.len() > 1, "{batch:?}");
                self.batched += batch.messages.len() as u64;
                batch.messages.into_iter().for_each(|message| self.native_message(message));
            }
            server_frame::Body::Gap(gap) => {
                let watch = self.watches.get_mut(&gap.channel).filter(|watch| watch.live).expect("a subscription");
                let reasons = gap.reasons.expect("each gap tells its reasons");
                assert_eq!(reasons.total(), gap.count, "{reasons:?}");
                match &mut watch.unresumed {
                    // It lies before `base`.
                    Some((_, lacks)) if watch.backlog => *lacks = gap.count,
                    _ => {
                        watch.gaps += gap.count;
                        watch.reasons += reasons;
                    }
                }
                watch.inexact |= !gap.exact;
                watch.backlog = false;
                let position = gap.position.expect("a position");
                if position.log == watch.position.log {
                    watch.position.normal = watch.position.normal.max(position.normal);
                    watch.position.high = watch.position.high.max(position.high);
                } else {
                    assert!(!gap.exact, "another log is an explicit gap");
                    watch.position = position;
                }
            }
            server_frame::Body::Goodbye(goodbye) => {
                self.ended = Some(ErrorCode::try_from(goodbye.code).expect("a code"));
            }
            server_frame::Body::Error(error) => {
                let code = ErrorCode::try_from(error.code).expect("a code");
                assert!(asked.is_some() && code != ErrorCode::None && code != ErrorCode::Internal, "{error:?}");
                self.errors.push(code);
            }
            server_frame::Body::Refused(_) => panic!("nothing was accepted"),
            server_frame::Body::Published(_) | server_frame::Body::Pong(_) | server_frame::Body::Refreshed(_) => {
                assert_eq!(asked, Some(Asked::Other));
            }
        }
    }

    fn subscribed(&mut self, asked: Option<Asked>, subscribed: client::Subscribed) {
        let position = subscribed.position.expect("a position");
        let resume = match asked {
            Some(Asked::Subscribe(channel, resume)) => {
                assert_eq!(channel, subscribed.channel);
                resume
            }
            None => None,
            other => panic!("{other:?} is answered by a subscription"),
        };
        // Who resumes may have more of the high lane than of the other, and never less.
        let fresh = Watch {
            base: (position.log.clone(), [position.high.max(position.normal), position.normal]),
            position: position.clone(),
            live: true,
            ..Watch::default()
        };
        let watch = self.watches.entry(subscribed.channel).or_insert_with(|| fresh.clone());
        if watch.live && *watch != fresh {
            // Subscribed to what it is subscribed to: nothing changes.
            return;
        }
        match resume {
            Some(resume) if *watch != fresh => {
                self.resumed += 1;
                watch.live = true;
                if resume.log == position.log && resume.normal == position.normal {
                    watch.position.high = watch.position.high.max(position.high);
                } else {
                    assert!(resume.log != position.log || position.normal > resume.normal, "{resume:?} {position:?}");
                    // What came before was checked as it came; from here on it is counted anew.
                    *watch = Watch { backlog: true, unresumed: Some((resume, 0)), ..fresh };
                }
            }
            _ => *watch = fresh,
        }
    }

    fn native_message(&mut self, message: client::Message) {
        let Some(client::message::Payload::Text(said)) = message.payload else { panic!("not text") };
        if said == "push" {
            self.pushes += 1;
            return;
        }
        let (_, number, lane) = parse(&said).expect("one of ours");
        let watch = self.watches.get_mut(&message.channel).filter(|watch| watch.live).expect("a subscription");
        assert_eq!(said.split('/').next(), message.channel.strip_prefix("room:"));
        let normal = watch.position.normal;
        assert!(lane == 1 || message.offset > normal, "{said}: the high lane is first, and normal was at {normal}");
        let at = if lane == 0 { &mut watch.position.high } else { &mut watch.position.normal };
        assert!(!watch.backlog, "{said}: a gap is to be told first");
        assert!(message.offset > *at, "{} {said} after {at}", message.offset);
        *at = message.offset;
        assert!(watch.got.insert(number), "{said} came twice");
        self.received += 1;
    }
}
