//! Bilibili's live dialect (format: compat.md): what stands in the bodies of its packets, and how they are compressed.
//! The frame itself is [`crate::packet`]; which dialect an auth body is of, [`crate::sniff::auth`] tells.
//!
//! ```text
//!   op 7 body ─▶ sniff::auth ─▶ Auth ─▶ channel(room)
//!   client::Message, raw ─▶ danmaku ─▶ JSON of each message of a batch ─▶ Packer, by version ─▶ the same bytes for all
//! ```
//!
//! Invariants, each the name of a test:
//! - `a_batch_is_read_back_in_every_version`.
//! - `an_inflated_body_is_bounded`: [`unpack`] gives up at its limit.
//! - `a_command_passes_through_unchanged`.

use std::io::Read as _;

use flate2::{Compress, Compression, FlushCompress, Status};
use serde_json::{Value, json};

use crate::client;
use crate::members::{BadAuth, Members};
use crate::native::payload_bytes;
use crate::packet::{self, BadPacket, HEADER_BYTES, Packet, operation};

/// The version of replies.
pub const REPLY_VERSION: u16 = 1;

/// The code of an auth that is let in.
pub const CODE_OK: i32 = 0;

/// The code of a bad token; close after it.
pub const CODE_BAD_TOKEN: i32 = -101;

/// How a body of pushes is encoded: what `protover` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum Version {
    /// Each message in a packet of its own.
    #[default]
    Plain = 0,
    /// Packets in a zlib stream.
    Zlib = 2,
    /// Packets in a brotli stream.
    Brotli = 3,
}

/// The body of an operation 7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// The user that it claims to be; empty: none.
    pub uid: String,
    /// `roomid`.
    pub room: u64,
    /// `protover`.
    pub version: Version,
    /// `web`, ...
    pub platform: String,
    /// A token where it is shaped like one, else nothing.
    pub key: String,
}

impl Auth {
    pub(crate) fn read(members: &Members) -> Result<Self, BadAuth> {
        Ok(Self {
            uid: members.user("uid")?,
            room: members.number("roomid")?.ok_or(BadAuth::Member("roomid"))?,
            // Without compression for who asks for a version that we do not know: everyone reads that.
            version: match members.number("protover")? {
                Some(2) => Version::Zlib,
                Some(3) => Version::Brotli,
                _ => Version::Plain,
            },
            platform: members.text("platform")?,
            key: members.text("key")?,
        })
    }

    /// The token to be judged.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        Some(self.key.as_str()).filter(|key| crate::goim::is_token(key))
    }

    /// The room's channel.
    #[must_use]
    pub fn channel(&self) -> String {
        channel(self.room)
    }
}

/// The channel of a room's number.
#[must_use]
pub fn channel(room: u64) -> String {
    format!("room:{room}")
}

/// Appends the reply to an auth: [`CODE_OK`], or [`CODE_BAD_TOKEN`], after which is closed.
pub fn auth_reply(sequence: u32, code: i32, out: &mut Vec<u8>) {
    let body = format!(r#"{{"code":{code}}}"#);
    let operation = operation::AUTH_REPLY;
    packet::write(Packet { version: REPLY_VERSION, operation, sequence, body: body.as_bytes() }, out);
}

/// Appends the reply to a heartbeat: the room's popularity, as far as an i32 goes. `echo` stands behind the packet, and
/// the packet's length does not count it. On WebSocket it is the body of the client's heartbeat, as Bilibili's own
/// servers send it (`blive` 0.2.5 fails without it). On TCP it must be empty, since the next packet follows there.
pub fn heartbeat_reply(sequence: u32, popularity: u64, echo: &[u8], out: &mut Vec<u8>) {
    let body = i32::try_from(popularity).unwrap_or(i32::MAX).to_be_bytes();
    let operation = operation::HEARTBEAT_REPLY;
    packet::write(Packet { version: REPLY_VERSION, operation, sequence, body: &body }, out);
    out.extend_from_slice(echo);
}

/// A message as a Bilibili viewer gets it, JSON: `raw` or the payload where that is a command, a `DANMU_MSG` for other
/// text and for whatever text came from goim; `None` for what this dialect cannot say (a gift, an image, bytes).
///
/// `raw` is what a goim push or a Bilibili command carried, empty where that is the payload. A command passes only from
/// the platform itself: a user's could name another user in it, and is shown as that user's own text.
#[must_use]
pub fn danmaku(message: &client::Message, raw: &[u8]) -> Option<Vec<u8>> {
    let payload = payload_bytes(message.payload.as_ref());
    if message.sender.is_none()
        && let Some(command) = [raw, payload].into_iter().find(|bytes| is_command(bytes))
    {
        return Some(command.to_vec());
    }
    let is_text = message.r#type == crate::operation::TEXT || message.r#type.starts_with("goim.");
    if !is_text && raw.is_empty() {
        return None;
    }
    let text = std::str::from_utf8(payload).ok()?;
    let style = message.style.unwrap_or_default();
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let (uid, name) = message.sender.as_ref().map_or(("", ""), |sender| (&sender.uid, &sender.name));
    let checksum = crc32(message.id.as_bytes());
    let danmaku = json!({
        "cmd": "DANMU_MSG",
        "info": [
            [
                0,
                or(style.mode, DEFAULT_MODE),
                or(style.size, DEFAULT_SIZE),
                or(style.colour, DEFAULT_COLOUR),
                message.time_ms,
                checksum >> 1,
                0,
                format!("{:x}", crc32(uid.as_bytes())),
                0, 0, 0, "", 0, "{}", "{}",
                {"extra": "{}", "mode": 0, "show_player_type": 0},
            ],
            text,
            // A viewer expects a number; who has none is nobody.
            [uid.parse::<u64>().unwrap_or(0), name, 0, 0, 0, 10000, 1, ""],
            [],
            // Level and title, which clients index into without asking: nobody's.
            [0, 0, 9_868_950, ">50000", 0],
            ["", ""],
            0,
            0,
            null,
            {"ts": message.time_ms.div_euclid(1000), "ct": format!("{checksum:X}")},
            0,
            0,
            null,
            null,
            0,
            7,
            // The sender's wealth level: `bili-listener` 1.1.8 reads `info[16][0]` without asking.
            [0],
        ],
    });
    Some(danmaku.to_string().into_bytes())
}

/// Flying.
const DEFAULT_MODE: u32 = 1;
/// Bilibili's medium.
const DEFAULT_SIZE: u32 = 25;
/// White.
const DEFAULT_COLOUR: u32 = 0xff_ff_ff;

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Whether `body` is a command: a JSON object with a string `cmd`.
#[must_use]
pub fn is_command(body: &[u8]) -> bool {
    command(body).is_some()
}

fn command(body: &[u8]) -> Option<Value> {
    // Most bodies are plain text: not worth a parser.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice(body).ok().filter(|value: &Value| value.get("cmd").is_some_and(Value::is_string))
}

/// The text of a `DANMU_MSG`, as other viewers are shown it; `None` where `body` is none.
#[must_use]
pub fn text(body: &[u8]) -> Option<String> {
    let command = command(body)?;
    // `DANMU_MSG:4:0:2:2:2:0` is one, too.
    if command["cmd"].as_str()?.split(':').next() != Some("DANMU_MSG") {
        return None;
    }
    command["info"][1].as_str().map(str::to_owned)
}

/// Packs batches; keeps its buffer and zlib's state (some 300 KiB, made when first needed): one serves a thread.
#[derive(Default)]
pub struct Packer {
    zlib: Option<Compress>,
    packets: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    /// Appends a batch of pushes, one JSON each, as a client of this version gets it: the same bytes for all of them.
    ///
    /// # Panics
    /// Where the batch is of 4 GiB.
    pub fn pack<B: AsRef<[u8]>>(&mut self, version: Version, messages: impl IntoIterator<Item = B>, out: &mut Vec<u8>) {
        let plain = if version == Version::Plain { &mut *out } else { &mut self.packets };
        if version != Version::Plain {
            plain.clear();
        }
        for message in messages {
            let body = message.as_ref();
            packet::write(Packet { version: 0, operation: operation::PUSH, sequence: 0, body }, plain);
        }
        if version == Version::Plain || self.packets.is_empty() {
            return;
        }
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        if version == Version::Zlib {
            let zlib = self.zlib.get_or_insert_with(|| Compress::new(Compression::new(ZLIB_LEVEL), true));
            zlib.reset();
            loop {
                out.reserve(self.packets.len() / 2 + 64);
                let rest = &self.packets[zlib.total_in() as usize..];
                match zlib.compress_vec(rest, out, FlushCompress::Finish).expect("deflating goes on for ever") {
                    Status::StreamEnd => break,
                    Status::Ok | Status::BufError => {}
                }
            }
        } else {
            let parameters = brotli::enc::BrotliEncoderParams {
                quality: BROTLI_QUALITY,
                lgwin: BROTLI_WINDOW,
                size_hint: self.packets.len(),
                ..Default::default()
            };
            brotli::BrotliCompress(&mut &self.packets[..], out, &parameters).expect("a Vec takes what it is given");
        }
        let body_bytes = out.len() - start - HEADER_BYTES;
        let header = packet::header(version as u16, operation::PUSH, 0, body_bytes);
        out[start..start + HEADER_BYTES].copy_from_slice(&header);
    }
}

/// Of 1 to 9; see [`crate::deflate`]'s.
const ZLIB_LEVEL: u32 = 6;
/// Of 0 to 11. `proto/examples/compression.rs`, batches of 100: 6.9 times shorter in 195 µs; 4 takes 277 µs for 1% fewer
/// bytes, 2 takes 164 µs for 2% more.
const BROTLI_QUALITY: i32 = 3;
/// Of 10 to 24, the window's bytes as a power of two: a batch is seldom longer, and the encoder's memory follows it.
const BROTLI_WINDOW: i32 = 17;

/// A body of pushes that cannot be read. The sender's fault, no use retrying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Not the stream that the version says.
    #[error("not a compressed body of its version")]
    Stream,
    /// Over the limit once inflated.
    #[error("a body of more than the limit once inflated")]
    TooLarge,
    /// Not whole packets inside.
    #[error("{0}")]
    Packet(#[from] BadPacket),
}

/// A client's side: the JSON of each push in a packet of operation 5. `inflated_bytes_max` bounds what a compressed
/// body becomes; brotli's window may take up to 16 MiB beside it.
///
/// # Errors
/// [`BadBody`].
pub fn unpack(packet: Packet<'_>, inflated_bytes_max: usize) -> Result<Vec<Vec<u8>>, BadBody> {
    let limit = inflated_bytes_max as u64 + 1;
    let mut inflated = Vec::new();
    let read = match packet.version {
        2 => flate2::read::ZlibDecoder::new(packet.body).take(limit).read_to_end(&mut inflated),
        3 => brotli::Decompressor::new(packet.body, 4096).take(limit).read_to_end(&mut inflated),
        _ if packet.body.len() > inflated_bytes_max => return Err(BadBody::TooLarge),
        _ => return Ok(vec![packet.body.to_vec()]),
    };
    if inflated.len() > inflated_bytes_max && !planted!("bilibili_limit") {
        return Err(BadBody::TooLarge);
    }
    read.map_err(|_| BadBody::Stream)?;
    packet::in_message(&inflated, inflated_bytes_max)
        .map(|inner| inner.map(|inner| inner.body.to_vec()).map_err(BadBody::Packet))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Message, Sender, Style, message::Payload};
    use crate::packet::in_message;

    const ALL: [Version; 3] = [Version::Plain, Version::Zlib, Version::Brotli];

    fn chat(text: &str) -> Message {
        Message {
            channel: "room:1000".into(),
            id: "0123456789abcdefghijkl".into(),
            time_ms: 1_700_000_000_123,
            sender: Some(Sender { uid: "42".into(), name: "甲".into() }),
            r#type: "text".into(),
            payload: Some(Payload::Text(text.into())),
            ..Message::default()
        }
    }

    fn json(message: &Message, raw: &[u8]) -> Value {
        serde_json::from_slice(&danmaku(message, raw).expect("sayable")).expect("JSON")
    }

    /// The first `count` of `info[0]`.
    fn first(danmaku: &Value, count: usize) -> Value {
        danmaku["info"][0].as_array().expect("a list")[..count].to_vec().into()
    }

    /// What a client of operation 5 makes of `bytes`.
    fn read(bytes: &[u8]) -> Vec<Vec<u8>> {
        let packets = in_message(bytes, usize::MAX).map(|packet| packet.expect("right"));
        packets.flat_map(|packet| unpack(packet, 1 << 20).expect("right")).collect()
    }

    #[test]
    fn a_message_becomes_a_danmu_msg_that_clients_can_index_into() {
        let message = chat("弹幕 \"quoted\" </script>");
        let danmaku = json(&message, b"");
        assert_eq!(danmaku["cmd"], "DANMU_MSG");
        let info = &danmaku["info"];
        assert_eq!(first(&danmaku, 5), json!([0, 1, 25, 16_777_215, 1_700_000_000_123_i64]));
        assert_eq!(info[1], "弹幕 \"quoted\" </script>");
        assert_eq!(info[2], json!([42, "甲", 0, 0, 0, 10000, 1, ""]));
        assert_eq!(info[9]["ts"], 1_700_000_000);
        assert_eq!(info.as_array().map(Vec::len), Some(17));
        // What blivedm's DanmakuMessage and bili-listener index into without asking.
        assert!(info[0][15].is_object() && info[4][3].is_string() && info[5][1].is_string() && info[7].is_number());
        assert_eq!(info[16][0], 0);
        assert_eq!(super::text(danmaku.to_string().as_bytes()).as_deref(), Some("弹幕 \"quoted\" </script>"));
        let styled = Message { style: Some(Style { mode: 4, size: 18, colour: 0xff }), ..chat("x") };
        assert_eq!(first(&json(&styled, b""), 4), json!([0, 4, 18, 255]));
        let guest = Message { sender: Some(Sender { uid: "guest.1f".into(), name: "乙".into() }), ..chat("x") };
        assert_eq!(json(&guest, b"")["info"][2][0], 0);
        assert_eq!(json(&Message { sender: None, ..chat("x") }, b"")["info"][2][1], "");
    }

    #[test]
    fn a_command_passes_through_unchanged() {
        let gift = r#" {"data":{"n":1.50},"cmd":"SEND_GIFT"}"#;
        let platforms = |text: &str| Message { sender: None, ..chat(text) };
        assert_eq!(danmaku(&platforms(gift), b"").as_deref(), Some(gift.as_bytes()));
        assert_eq!(danmaku(&platforms("its text"), gift.as_bytes()).as_deref(), Some(gift.as_bytes()));
        // Of any type, also one that is not text.
        assert!(danmaku(&Message { r#type: "gift".into(), ..platforms(gift) }, b"").is_some());
        for other in [r#"{"cmd":1}"#, r#"["cmd"]"#, r#"{"cmd":"x""#, "{}"] {
            assert_eq!(json(&chat(other), b"")["info"][1], other);
        }
    }

    #[test]
    fn a_users_command_is_that_users_text() {
        let forged = r#"{"cmd":"DANMU_MSG","info":[[],"hi",[1,"somebody else"]]}"#;
        let shown = json(&chat("hi"), forged.as_bytes());
        assert_eq!((&shown["info"][1], &shown["info"][2]), (&"hi".into(), &json(&chat("hi"), b"")["info"][2]));
        assert_eq!(json(&chat(forged), b"")["info"][1], forged);
    }

    #[test]
    fn what_this_dialect_cannot_say_is_left_out() {
        assert_eq!(danmaku(&Message { r#type: "like".into(), ..chat("1") }, b""), None);
        let bytes = Message { payload: Some(Payload::Data(vec![0xff].into())), ..chat("") };
        assert_eq!(danmaku(&bytes, b""), None);
        // But what came from goim is text, if it is UTF-8.
        assert_eq!(json(&Message { r#type: "goim.1007".into(), ..chat("1") }, b"")["info"][1], "1");
        assert_eq!(json(&Message { r#type: "x".into(), ..chat("1") }, b"a goim body")["info"][1], "1");
    }

    #[test]
    fn the_text_of_a_danmu_msg_is_found() {
        assert_eq!(super::text(br#"{"cmd":"DANMU_MSG:4:0:2","info":[[],"hi"]}"#).as_deref(), Some("hi"));
        for none in [
            r#"{"cmd":"SEND_GIFT","info":[[],"hi"]}"#,
            r#"{"cmd":"DANMU_MSG","info":[[],1]}"#,
            r#"{"cmd":"DANMU_MSG"}"#,
            "hi",
        ] {
            assert_eq!(super::text(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn a_batch_is_read_back_in_every_version() {
        let long = "弹".repeat(40_000);
        for bodies in [vec![], vec!["{}"], vec!["{\"cmd\":\"A\"}", "", "{\"cmd\":\"B\"}", long.as_str()]] {
            for version in ALL {
                let mut out = b"before".to_vec();
                Packer::default().pack(version, &bodies, &mut out);
                assert!(out.starts_with(b"before"));
                assert_eq!(read(&out[6..]), bodies.iter().map(|body| body.as_bytes().to_vec()).collect::<Vec<_>>());
                let outer = in_message(&out[6..], usize::MAX).next().map(|packet| packet.expect("right"));
                assert_eq!(
                    outer.map(|packet| (packet.operation, packet.version)),
                    (!bodies.is_empty()).then_some((5, version as u16))
                );
            }
        }
    }

    #[test]
    fn an_inflated_body_is_bounded() {
        let mut inflated = Vec::new();
        Packer::default().pack(Version::Plain, [vec![b' '; 100_000]], &mut inflated);
        for version in [Version::Zlib, Version::Brotli] {
            let mut out = Vec::new();
            Packer::default().pack(version, [vec![b' '; 100_000]], &mut out);
            assert!(out.len() < 2000, "it compresses: {}", out.len());
            let packet = in_message(&out, usize::MAX).next().expect("one").expect("right");
            assert_eq!(unpack(packet, inflated.len() - 1), Err(BadBody::TooLarge));
            assert_eq!(unpack(packet, inflated.len()).map(|bodies| bodies.len()), Ok(1));
            assert_eq!(unpack(Packet { body: &packet.body[..20], ..packet }, 1 << 20), Err(BadBody::Stream));
        }
    }

    #[test]
    fn replies_are_laid_out_as_clients_read_them() {
        let mut out = Vec::new();
        auth_reply(1, CODE_BAD_TOKEN, &mut out);
        assert_eq!(out, [&[0, 0, 0, 29, 0, 16, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1][..], br#"{"code":-101}"#].concat());
        out.clear();
        let reply = [0, 0, 0, 20, 0, 16, 0, 1, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 1, 2];
        heartbeat_reply(2, 258, b"", &mut out);
        assert_eq!(out, reply);
        out.clear();
        heartbeat_reply(2, 258, b"[object Object]", &mut out);
        assert_eq!(out, [&reply[..], b"[object Object]"].concat());
    }

    #[test]
    fn smoke_of_the_fuzz_body() {
        crate::fuzz::smoke(crate::bilibili_fuzz::run);
    }
}
