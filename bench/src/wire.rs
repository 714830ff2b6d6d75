//! One viewer's side of a dialect: what it says to be let in and stay, and what a server's bytes tell it. Knows no
//! socket and no clock.
//!
//! ```text
//!   Wire::new ─▶ out: the first bytes     bytes ─▶ Wire::read ─▶ [Event]s, and answers in out
//! ```
//!
//! Messages are what it sees by the million: of a pushed one only the payload is looked for.

use proto::client::{ClientFrame, Connect, Ping, ServerFrame, Subscribe, client_frame, message, server_frame};
use proto::deflate::Inflater;
use proto::packet::{self, Packet, operation};
use proto::websocket::{self, Decoder, Opcode, Role};
use proto::{bilibili, goim, native};

use crate::dialect::Dialect;
use crate::pushed::payload as pushed_payload;

/// Longest frame from a server that is taken, bytes: a batch of goim's packets, or many of a slow viewer's.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Longest answer to the upgrade, bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// The operation of the messages that are pushed: `text` (compat.md).
pub(crate) const OPERATION: i32 = 1000;
/// The masks of a viewer's frames. They keep a browser's script from choosing the bytes on the wire, which nobody does
/// here (RFC 6455 section 10.3).
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// How the reason begins that no retry mends, and one that may be over soon.
pub(crate) const REFUSED: &str = "refused";
const NOT_NOW: &str = "not now";

/// What a server's bytes tell.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// It is in the room.
    Ready,
    /// A message's payload.
    Payload(&'a [u8]),
    /// It is told that it missed so many.
    Gap(u64),
    /// Its heartbeat is answered, by so many bytes on the wire.
    Pong(usize),
    /// It is told that it will not be served, or no longer.
    Ended(String),
}

/// Whom a viewer wants to be.
#[derive(Debug, Clone)]
pub(crate) struct Viewer<'a> {
    pub(crate) dialect: Dialect,
    pub(crate) tcp: bool,
    /// By WebSocket: it offers permessage-deflate, and the server must take it.
    pub(crate) compress: bool,
    /// `host:port`, for the handshake.
    pub(crate) host: &'a str,
    /// IDs of the rooms that it is in, one at least; more are the native dialect's alone.
    pub(crate) rooms: &'a [String],
    pub(crate) token: &'a str,
}

#[derive(Debug)]
pub(crate) struct Wire {
    carrier: Carrier,
    dialect: Dialect,
    compress: bool,
    /// The rooms that it has still to be in before it is ready, the next one last.
    rooms: Vec<String>,
    /// What has come of an answer or of a frame that is not whole (TCP, handshake).
    part: Vec<u8>,
    /// To be sent.
    pub(crate) out: Vec<u8>,
    /// To be sent after the upgrade.
    upgraded: Vec<u8>,
    requests: u32,
    /// Seconds within which the server wants to hear something.
    pub(crate) heartbeat_s: u64,
}

#[derive(Debug)]
enum Carrier {
    Tcp,
    Upgrading,
    WebSocket(Decoder, Option<Box<Inflater>>),
}

/// The extension's name (RFC 7692 section 7).
const DEFLATE: &str = "permessage-deflate";

/// goim's own default is 240 s; sooner does no harm. Bilibili's is 30 s.
const GOIM_HEARTBEAT_SECONDS: u64 = 60;

impl Wire {
    pub(crate) fn new(viewer: &Viewer<'_>) -> Self {
        let mut wire = Self {
            carrier: if viewer.tcp { Carrier::Tcp } else { Carrier::Upgrading },
            dialect: viewer.dialect,
            compress: viewer.compress,
            rooms: viewer.rooms.iter().rev().cloned().collect(),
            part: Vec::new(),
            out: Vec::new(),
            upgraded: Vec::new(),
            requests: 0,
            heartbeat_s: GOIM_HEARTBEAT_SECONDS,
        };
        let upgrade = (!viewer.tcp).then(|| {
            let protocol = match viewer.dialect {
                Dialect::Native => format!("Sec-WebSocket-Protocol: {}\r\n", native::SUBPROTOCOL_BINARY),
                _ => String::new(),
            };
            let offer = if viewer.compress {
                format!(
                    "Sec-WebSocket-Extensions: {DEFLATE}; server_no_context_takeover; client_no_context_takeover\r\n"
                )
            } else {
                String::new()
            };
            format!(
                "GET /sub HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}{offer}\r\n",
                viewer.host
            )
        });
        let room = viewer.rooms.first().map_or("", String::as_str);
        match viewer.dialect {
            Dialect::Native => {
                if viewer.tcp {
                    wire.out.extend_from_slice(native::MAGIC);
                }
                let agent = concat!("barrage-bench/", env!("CARGO_PKG_VERSION")).to_owned();
                let connect = Connect { token: viewer.token.to_owned(), agent, ..Connect::default() };
                wire.ask(client_frame::Body::Connect(connect));
            }
            Dialect::Goim => {
                let auth = serde_json::json!({
                    "mid": 0, "key": "", "token": viewer.token, "room_id": format!("live://{room}"),
                    "platform": "bench", "accepts": [OPERATION],
                });
                wire.packet(operation::AUTH, auth.to_string().as_bytes());
            }
            Dialect::Bilibili | Dialect::BilibiliZlib | Dialect::BilibiliBrotli => {
                let auth = serde_json::json!({
                    "uid": 0, "roomid": room.parse::<u64>().unwrap_or_default(), "key": viewer.token,
                    "protover": viewer.dialect.protover(), "platform": "web", "type": 2,
                });
                wire.packet(operation::AUTH, auth.to_string().as_bytes());
            }
        }
        if let Some(upgrade) = upgrade {
            wire.upgraded = std::mem::replace(&mut wire.out, upgrade.into_bytes());
        }
        wire
    }

    /// One that is in its room and between two frames, and offered no compression: whoever is so needs no codec of its own.
    pub(crate) fn at_rest(dialect: Dialect, tcp: bool) -> Self {
        Self {
            carrier: if tcp { Carrier::Tcp } else { Carrier::WebSocket(decoder(), None) },
            dialect,
            compress: false,
            rooms: Vec::new(),
            part: Vec::new(),
            out: Vec::new(),
            upgraded: Vec::new(),
            requests: 0,
            heartbeat_s: GOIM_HEARTBEAT_SECONDS,
        }
    }

    /// Whether [`Wire::at_rest`] could take its place, once it is in its room.
    pub(crate) fn is_at_rest(&self) -> bool {
        let between = match &self.carrier {
            Carrier::Tcp => self.part.is_empty(),
            Carrier::Upgrading => false,
            Carrier::WebSocket(decoder, _) => decoder.is_idle(),
        };
        between && self.out.is_empty() && !self.compress
    }

    /// Says that it is still here.
    pub(crate) fn heartbeat(&mut self) {
        match self.dialect {
            Dialect::Native => self.ask(client_frame::Body::Ping(Ping {})),
            _ => self.packet(operation::HEARTBEAT, b""),
        }
    }

    fn ask(&mut self, body: client_frame::Body) {
        self.requests += 1;
        let frame = ClientFrame { request: self.requests, body: Some(body) };
        if matches!(self.carrier, Carrier::Tcp) {
            let start = native::begin_frame(&mut self.out);
            native::to_binary(&frame, &mut self.out);
            native::end_frame(start, &mut self.out);
        } else {
            let mut bytes = Vec::new();
            native::to_binary(&frame, &mut bytes);
            websocket::frame(true, Opcode::Binary, Some(MASK), &bytes, &mut self.out);
        }
    }

    /// Asks for the next of its rooms; whether there was one.
    fn subscribe(&mut self) -> bool {
        let Some(room) = self.rooms.pop() else { return false };
        let channel = format!("room:{room}");
        self.ask(client_frame::Body::Subscribe(Subscribe { channel, resume: None, history: 0 }));
        true
    }

    fn packet(&mut self, operation: i32, body: &[u8]) {
        self.requests += 1;
        let packet = Packet { version: goim::VERSION, operation, sequence: self.requests, body };
        if matches!(self.carrier, Carrier::Tcp) {
            packet::write(packet, &mut self.out);
        } else {
            let mut bytes = Vec::new();
            packet::write(packet, &mut bytes);
            websocket::frame(true, Opcode::Binary, Some(MASK), &bytes, &mut self.out);
        }
    }

    /// Takes what came, in any split.
    ///
    /// # Errors
    /// What is wrong with it: not this dialect.
    pub(crate) fn read(&mut self, bytes: &mut [u8], told: &mut impl FnMut(Event<'_>)) -> Result<(), String> {
        if matches!(self.carrier, Carrier::Upgrading) {
            self.part.extend_from_slice(bytes);
            let Some(end) = self.part.windows(4).position(|window| window == b"\r\n\r\n") else {
                let long = self.part.len() > ANSWER_BYTES_MAX;
                return if long { Err("the answer to the upgrade does not end".into()) } else { Ok(()) };
            };
            if !self.part.starts_with(b"HTTP/1.1 101 ") {
                let answer = String::from_utf8_lossy(&self.part[..end]);
                return Err(format!("the upgrade was refused: {}", answer.lines().next().unwrap_or_default()));
            }
            let compressed = self.part[..end].windows(DEFLATE.len()).any(|window| window == DEFLATE.as_bytes());
            if compressed != self.compress {
                return Err(format!("the server's answer to the upgrade has {DEFLATE}: {compressed}"));
            }
            self.out.append(&mut self.upgraded);
            self.carrier = Carrier::WebSocket(decoder(), compressed.then(Box::default));
            let mut rest = std::mem::take(&mut self.part).split_off(end + 4);
            return self.read(&mut rest, told);
        }
        if matches!(self.carrier, Carrier::Tcp) {
            if self.part.is_empty() {
                let left = self.frames(bytes, told)?;
                self.part.extend_from_slice(&bytes[bytes.len() - left..]);
            } else {
                let mut part = std::mem::take(&mut self.part);
                part.extend_from_slice(bytes);
                let left = self.frames(&part, told)?;
                part.drain(..part.len() - left);
                self.part = part;
            }
            return Ok(());
        }
        self.messages(bytes, told)
    }

    /// WebSocket: a whole frame, or some of goim's packets, stand in a message.
    fn messages(&mut self, mut bytes: &mut [u8], told: &mut impl FnMut(Event<'_>)) -> Result<(), String> {
        // Taken out while it lends its events.
        let Carrier::WebSocket(mut decoder, mut inflater) = std::mem::replace(&mut self.carrier, Carrier::Upgrading)
        else {
            return Err("there was no upgrade".into());
        };
        let mut result = Ok(());
        loop {
            let next = match &mut inflater {
                Some(inflater) => decoder.next_inflated(inflater, &mut bytes),
                None => decoder.next(&mut bytes),
            };
            match next {
                Ok(Some(websocket::Event::Binary(message))) => result = self.message(message, told),
                Ok(Some(websocket::Event::Ping(payload))) => {
                    websocket::frame(true, Opcode::Pong, Some(MASK), payload, &mut self.out);
                }
                Ok(Some(websocket::Event::Close(why))) => {
                    let why = why.map_or_else(|| "no code".to_owned(), |(code, reason)| format!("{code} {reason}"));
                    told(Event::Ended(format!("close frame: {}", why.trim_end())));
                }
                Ok(Some(websocket::Event::Text(_) | websocket::Event::Pong(_))) => {}
                Ok(None) => break,
                Err(failure) => result = Err(failure.to_string()),
            }
            if result.is_err() {
                break;
            }
        }
        self.carrier = Carrier::WebSocket(decoder, inflater);
        result
    }

    fn message(&mut self, message: &[u8], told: &mut impl FnMut(Event<'_>)) -> Result<(), String> {
        match self.dialect {
            Dialect::Native => self.server_frame(message, told),
            _ => packet::in_message(message, FRAME_BYTES_MAX)
                .try_for_each(|packet| self.server_packet(packet.map_err(|bad| bad.to_string())?, told)),
        }
    }

    /// TCP: takes the whole frames off `bytes`; how many bytes are left.
    fn frames(&mut self, bytes: &[u8], told: &mut impl FnMut(Event<'_>)) -> Result<usize, String> {
        let mut input = bytes;
        loop {
            match self.dialect {
                Dialect::Native => match native::unpack(&mut input, FRAME_BYTES_MAX) {
                    Ok(Some(frame)) => self.server_frame(frame, told)?,
                    Ok(None) => return Ok(input.len()),
                    Err(bad) => return Err(bad.to_string()),
                },
                _ => match packet::unpack(&mut input, FRAME_BYTES_MAX).map_err(|bad| bad.to_string())? {
                    Some(packet) => self.server_packet(packet, told)?,
                    None => return Ok(input.len()),
                },
            }
        }
    }

    /// Bytes of a frame with what carries it.
    fn on_the_wire(&self, bytes: usize) -> usize {
        match (&self.carrier, self.dialect) {
            (Carrier::Tcp, Dialect::Native) => bytes + native::LENGTH_BYTES,
            (Carrier::Tcp, _) => bytes,
            // RFC 6455 section 5.2: 2, with a longer length 4 or 10.
            _ => {
                bytes
                    + if bytes < 126 {
                        2
                    } else if bytes < 65_536 {
                        4
                    } else {
                        10
                    }
            }
        }
    }

    fn server_frame(&mut self, frame: &[u8], told: &mut impl FnMut(Event<'_>)) -> Result<(), String> {
        if let Some(payload) = pushed_payload(frame) {
            told(Event::Payload(payload));
            return Ok(());
        }
        let bytes = self.on_the_wire(frame.len());
        let frame: ServerFrame = native::from_binary(frame).map_err(|bad| bad.to_string())?;
        match frame.body {
            Some(server_frame::Body::Connected(connected)) => {
                self.heartbeat_s = u64::from(connected.heartbeat_s).max(1);
                self.subscribe();
            }
            Some(server_frame::Body::Subscribed(_)) => {
                if self.subscribe() {
                    return Ok(());
                }
                told(Event::Ready);
            }
            Some(server_frame::Body::Message(message)) => match message.payload {
                Some(message::Payload::Text(text)) => told(Event::Payload(text.as_bytes())),
                Some(message::Payload::Data(data)) => told(Event::Payload(&data)),
                None => {}
            },
            Some(server_frame::Body::Gap(gap)) => told(Event::Gap(gap.count)),
            Some(server_frame::Body::Pong(_)) => told(Event::Pong(bytes)),
            Some(server_frame::Body::Error(error)) => {
                let kind = if error.retry { NOT_NOW } else { REFUSED };
                told(Event::Ended(format!("{kind}: {}", error.message)));
            }
            Some(server_frame::Body::Goodbye(goodbye)) => told(Event::Ended(format!("goodbye: {}", goodbye.reason))),
            _ => {}
        }
        Ok(())
    }

    fn server_packet(&self, packet: Packet<'_>, told: &mut impl FnMut(Event<'_>)) -> Result<(), String> {
        let bilibili = self.dialect.protover().is_some();
        match packet.operation {
            operation::PUSH if bilibili => {
                for body in bilibili::unpack(packet, FRAME_BYTES_MAX).map_err(|bad| bad.to_string())? {
                    if let Some(text) = bilibili::text(&body) {
                        told(Event::Payload(text.as_bytes()));
                    }
                }
            }
            OPERATION if !bilibili => told(Event::Payload(packet.body)),
            operation::RAW if !bilibili => {
                for inner in packet::in_message(packet.body, FRAME_BYTES_MAX) {
                    let inner = inner.map_err(|bad| bad.to_string())?;
                    if inner.operation == OPERATION {
                        told(Event::Payload(inner.body));
                    }
                }
            }
            operation::AUTH_REPLY if bilibili && !packet.body.ends_with(b":0}") => {
                told(Event::Ended(format!("refused: {}", String::from_utf8_lossy(packet.body))));
            }
            operation::AUTH_REPLY => told(Event::Ready),
            operation::HEARTBEAT_REPLY => {
                told(Event::Pong(self.on_the_wire(packet::HEADER_BYTES + packet.body.len())));
            }
            _ => {}
        }
        Ok(())
    }
}

fn decoder() -> Decoder {
    Decoder::new(Role::Client, FRAME_BYTES_MAX as u32)
}

#[cfg(test)]
mod tests {
    use proto::client::{Connected, Gap, Goodbye, Message, Pong, Sender, Subscribed};
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

    fn message(payload: message::Payload) -> server_frame::Body {
        server_frame::Body::Message(Message {
            channel: "room:r".into(),
            id: "i".into(),
            offset: 7,
            time_ms: 1,
            sender: Some(Sender { uid: "u".into(), name: "n".into() }),
            r#type: "text".into(),
            payload: Some(payload),
            ..Message::default()
        })
    }

    /// What a server says from the beginning on, in each dialect, and what a viewer is to be told of it.
    fn said(dialect: Dialect, over: Over) -> (Vec<u8>, Vec<String>) {
        let tcp = over == Over::Tcp;
        let mut out = upgraded(over).to_vec();
        let mut bodies: Vec<Vec<u8>> = Vec::new();
        match dialect {
            Dialect::Native => {
                let text = |text: String| message(message::Payload::Text(text));
                for body in [
                    server_frame::Body::Connected(Connected { heartbeat_s: 7, ..Connected::default() }),
                    server_frame::Body::Subscribed(Subscribed::default()),
                    text("one".into()),
                    message(message::Payload::Data(b"\xfftwo"[..].into())),
                    server_frame::Body::Gap(Gap { count: 5, ..Gap::default() }),
                    server_frame::Body::Pong(Pong::default()),
                    text("3".repeat(70_000)),
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
                bilibili::heartbeat_reply(2, 1, &mut packets);
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
        for payload in [message::Payload::Text("hello".into()), message::Payload::Data(b"\x00\xff"[..].into())] {
            let mut bytes = Vec::new();
            let body = Some(message(payload.clone()));
            native::to_binary(&ServerFrame { request: 0, body }, &mut bytes);
            let expected = match &payload {
                message::Payload::Text(text) => text.as_bytes(),
                message::Payload::Data(data) => data,
            };
            assert_eq!(pushed_payload(&bytes), Some(expected));
            for cut in 0..bytes.len() {
                let _never_panics = pushed_payload(&bytes[..cut]);
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
}
