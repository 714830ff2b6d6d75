//! One viewer's side of a dialect: what it says to be let in and stay, and what a server's bytes tell it. Knows no
//! socket and no clock.
//!
//! ```text
//!   Wire::new ─▶ out: the first bytes     bytes ─▶ Wire::read ─▶ [Event]s, and answers in out
//! ```
//!
//! Messages are what it sees by the million: of a pushed one only the payload is looked for.

use proto::client::{ClientFrame, Connect, Ping, ServerFrame, Subscribe, client_frame, server_frame};
use proto::deflate::Inflater;
use proto::packet::{self, Packet, operation};
use proto::websocket::{self, Decoder, Opcode, Role};
use proto::{bilibili, goim, native};

use crate::dialect::Dialect;
use crate::pushed::payloads;

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
                let connect = Connect { token: viewer.token.to_owned(), batches: true, ..Connect::default() };
                wire.ask(client_frame::Body::Connect(connect));
                // Behind it, as the web client does: the answers come in order.
                wire.subscribe();
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
        if payloads(frame, |payload| told(Event::Payload(payload))) {
            return Ok(());
        }
        let bytes = self.on_the_wire(frame.len());
        let frame: ServerFrame = native::from_binary(frame).map_err(|bad| bad.to_string())?;
        match frame.body {
            Some(server_frame::Body::Connected(connected)) => {
                self.heartbeat_s = u64::from(connected.heartbeat_s).max(1);
            }
            Some(server_frame::Body::Subscribed(_)) => {
                if self.subscribe() {
                    return Ok(());
                }
                told(Event::Ready);
            }
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
mod tests;
