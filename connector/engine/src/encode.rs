//! A message, or a session's own frame, as the exact bytes on the socket: WebSocket header included, so that a ring's
//! bytes go out as they are. Knows no session and no room.
//!
//! Compressed batches are made once a process ([`Compressed`]), and of rooms' messages only, which everyone in the room may
//! read: what is one session's own (a token's owner, a reply) and what is pushed goes uncompressed, so that no secret is
//! ever compressed together with what somebody else wrote (rule 34).
//!
//! Invariants:
//! - Compressed bytes hold nothing of one session (rule 25): what is encoded for a room depends on its entries only.
//! - A frame is never longer than [`FRAME_BYTES_MAX`]: what would be is told as a gap.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use proto::{
    bilibili::{self, Packer, Version},
    client::{self, GapReasons, ServerFrame, server_frame::Body},
    deflate::Deflater,
    goim, native,
    operation::Operations,
    websocket::{self, Opcode},
};

use super::{
    compressed::{BatchKey, Compressed, Made},
    encoding::Encoding,
    entry::Entry,
    event::Push,
    fault::Fault,
    ring::{Count, Missing},
};

/// Longest frame of a ring, bytes: a payload of 64 KiB, of which JSON makes at most six times as much, and its rest.
/// Bounds what is copied out for a session that is half sent.
pub(super) const FRAME_BYTES_MAX: usize = 512 * 1024;

/// A batch is not made longer than this, bytes, unless by one message: who is skipped is skipped by batches.
pub(super) const BATCH_BYTES_MAX: usize = 16 * 1024;

/// A frame of fewer bytes is not compressed: a message of live chat in protobuf, some hundred bytes, does not become
/// shorter (measured: 0.99 times), and costs 22 microseconds to find out; in JSON, some 240 bytes, it becomes 1.1 times,
/// goim's batches of 25 become 2 times shorter (`proto/examples/compression.rs`).
const COMPRESSED_BYTES_MIN: usize = 200;

/// Makes bytes; keeps its buffers and compressors.
#[derive(Debug)]
pub(super) struct Encoder {
    operations: Operations,
    compressed: Arc<Compressed>,
    /// Made when the first batch is to be compressed.
    deflater: Option<Deflater>,
    packer: Packer,
    body: Vec<u8>,
    frame: Vec<u8>,
    fault: Option<Fault>,
}

/// One frame of a ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framed<'a> {
    /// On the socket.
    pub(super) bytes: &'a [u8],
    /// Messages in it; those that a gap tells of, too.
    pub(super) messages: u64,
    /// Those that a gap tells of.
    pub(super) missing: Missing,
    /// Of the last one.
    pub(super) offset: u64,
}

impl Encoder {
    /// For messages whose types go under these operations to goim's viewers.
    #[must_use]
    pub(super) fn new(operations: Operations, compressed: Arc<Compressed>, fault: Option<Fault>) -> Self {
        Self {
            operations,
            compressed,
            deflater: None,
            packer: Packer::default(),
            body: Vec::new(),
            frame: Vec::new(),
            fault,
        }
    }

    /// Encodes a lane's entries of a room for a ring.
    pub(super) fn entries(
        &mut self,
        encoding: Encoding,
        (channel, log): (&str, &str),
        mut entries: Vec<&Entry>,
        mut emit: impl FnMut(Framed<'_>),
    ) {
        if self.fault == Some(Fault::Reordering)
            && let [.., before, last] = entries.as_mut_slice()
        {
            std::mem::swap(before, last);
        }
        if !encoding.is_compressed() {
            return self.run(encoding, (channel, log), &entries, &mut emit);
        }
        // What is missing is missing on this core: only messages are shared.
        for run in entries.chunk_by(|one, next| one.item().is_some() && next.item().is_some()) {
            let waiting: Vec<_> =
                run.iter().filter_map(|entry| entry.item()).map(|item| (item.offset, item.message.len())).collect();
            if waiting.is_empty() {
                self.run(encoding, (channel, log), run, &mut emit);
                continue;
            }
            let whose = BatchKey { channel, log, lane: run[0].lane(), encoding };
            let mut rest = run;
            for (messages, made) in self.compressed.clone().claim(whose, &waiting, BATCH_BYTES_MAX) {
                let (batch, after) = rest.split_at(messages);
                rest = after;
                let Made { bytes, frames } = made.get_or_init(|| self.make(encoding, (channel, log), batch));
                let mut start = 0;
                for &(end, Count { all: messages, missing }, offset) in frames {
                    // A batch is of messages only: of those in it that cannot be said nobody knows why.
                    let missing = Missing { reasons: GapReasons::unknown(missing), inexact: false };
                    emit(Framed { bytes: &bytes[start..end], messages, missing, offset });
                    start = end;
                }
            }
        }
    }

    /// Some of a room's messages for one session alone ([`super::room::Rest`]).
    pub(super) fn apart(&mut self, encoding: Encoding, whose: (&str, &str), entries: &[&Entry]) -> (Bytes, Count) {
        let (mut bytes, mut count) = (Vec::new(), Count::default());
        self.run(encoding.plain(), whose, entries, &mut |frame| {
            bytes.extend_from_slice(frame.bytes);
            count = Count { all: count.all + frame.messages, missing: count.missing + frame.missing.reasons.total() };
        });
        (bytes.into(), count)
    }

    /// A batch for all cores.
    fn make(&mut self, encoding: Encoding, whose: (&str, &str), batch: &[&Entry]) -> Made {
        let mut made = Made::default();
        self.run(encoding, whose, batch, &mut |frame| {
            made.bytes.extend_from_slice(frame.bytes);
            let count = Count { all: frame.messages, missing: frame.missing.reasons.total() };
            made.frames.push((made.bytes.len(), count, frame.offset));
        });
        made.bytes.shrink_to_fit();
        made
    }

    /// Encodes entries one after another.
    fn run(
        &mut self,
        encoding: Encoding,
        (channel, log): (&str, &str),
        entries: &[&Entry],
        emit: &mut impl FnMut(Framed<'_>),
    ) {
        if encoding.is_native() {
            if !(encoding.is_compressed() && self.native_batch(encoding, entries, emit)) {
                entries.iter().for_each(|entry| self.native(encoding, (channel, log), entry, emit));
            }
            return;
        }
        let mut batch = Batch::default();
        for item in entries.iter().filter_map(|entry| entry.item()) {
            let Ok(message) = client::Message::decode(&item.message[..]) else { continue };
            if batch.bytes > 0 && batch.bytes + item.message.len() > BATCH_BYTES_MAX {
                self.batch(encoding, &mut batch, emit);
            }
            let body = match encoding {
                Encoding::BilibiliWeb(_) | Encoding::BilibiliTcp(_) => bilibili::danmaku(&message, &item.raw),
                _ => Some(goim_body(&message, &item.raw).to_vec()),
            };
            if let Some(body) = body {
                let operation = self.operations.of_type(&message.r#type);
                batch.bytes += body.len();
                batch.offset = item.offset;
                batch.bodies.push((operation, body));
            }
        }
        self.batch(encoding, &mut batch, emit);
    }

    /// Several messages in one frame; `false` where there are not, or it cannot be said.
    fn native_batch(&mut self, encoding: Encoding, entries: &[&Entry], emit: &mut impl FnMut(Framed<'_>)) -> bool {
        let items: Vec<_> = entries.iter().filter_map(|entry| entry.item()).collect();
        let [_, .., last] = &items[..] else { return false };
        self.body.clear();
        if encoding.is_json() {
            let messages = items.iter().map(|item| client::Message::decode(&item.message[..])).collect();
            let Ok(messages) = messages else { return false };
            let frame = ServerFrame { request: 0, body: Some(Body::Batch(client::Batch { messages })) };
            if native::to_json(&frame, &mut self.body).is_err() {
                return false;
            }
        } else {
            native::batch_frame(items.iter().map(|item| &item.message[..]), &mut self.body);
        }
        if self.body.len() + websocket::HEADER_BYTES_MAX > FRAME_BYTES_MAX {
            return false;
        }
        self.envelop_shared(encoding);
        emit(Framed {
            bytes: &self.frame,
            messages: items.len() as u64,
            missing: Missing::default(),
            offset: last.offset,
        });
        true
    }

    fn native(
        &mut self,
        encoding: Encoding,
        (channel, log): (&str, &str),
        entry: &Entry,
        emit: &mut impl FnMut(Framed<'_>),
    ) {
        let (offset, reasons, exact) = match entry {
            Entry::Item(item) => {
                if self.message(encoding, &item.message) {
                    self.envelop_shared(encoding);
                    return emit(Framed {
                        bytes: &self.frame,
                        messages: 1,
                        missing: Missing::default(),
                        offset: item.offset,
                    });
                }
                // It cannot be said in this encoding: none of the reasons.
                (item.offset, GapReasons::unknown(1), true)
            }
            Entry::Gap { offset, reasons, exact } => (*offset, **reasons, *exact),
        };
        let count = reasons.total();
        let position = client::Position { log: log.to_owned(), normal: offset, high: offset };
        let told = match self.fault {
            Some(Fault::UntoldReason) => GapReasons { capped: 0, ..reasons },
            _ => reasons,
        };
        let gap =
            client::Gap { channel: channel.to_owned(), count, exact, position: Some(position), reasons: Some(told) };
        self.server_frame(encoding, &ServerFrame { request: 0, body: Some(Body::Gap(gap)) });
        let missing = Missing { reasons, inexact: !exact };
        emit(Framed { bytes: &self.frame, messages: count, missing, offset });
    }

    /// Makes `body` of an encoded message; `false` where it cannot be said.
    fn message(&mut self, encoding: Encoding, message: &[u8]) -> bool {
        if encoding.is_json() {
            let Ok(message) = client::Message::decode(message) else { return false };
            self.body.clear();
            let frame = ServerFrame { request: 0, body: Some(Body::Message(message)) };
            if native::to_json(&frame, &mut self.body).is_err() {
                return false;
            }
        } else {
            self.body.clear();
            native::message_frame(message, &mut self.body);
        }
        self.body.len() + websocket::HEADER_BYTES_MAX <= FRAME_BYTES_MAX
    }

    /// Makes `frame` of a native frame.
    fn server_frame(&mut self, encoding: Encoding, frame: &ServerFrame) {
        self.body.clear();
        if encoding.is_json() {
            native::to_json(frame, &mut self.body).expect("what we say ourselves has names for its numbers");
        } else {
            native::to_binary(frame, &mut self.body);
        }
        self.envelop(encoding);
    }

    /// Makes `frame` of `body` for all of a room: compressed, where the encoding is.
    fn envelop_shared(&mut self, encoding: Encoding) {
        let opcode = match encoding {
            Encoding::NativeJsonDeflate => Opcode::Text,
            Encoding::NativeBinaryDeflate | Encoding::GoimWebDeflate => Opcode::Binary,
            _ => return self.envelop(encoding),
        };
        if self.body.len() < COMPRESSED_BYTES_MIN {
            return self.envelop(encoding);
        }
        self.frame.clear();
        let deflater = self.deflater.get_or_insert_default();
        websocket::encode_deflated(opcode, &self.body, deflater, &mut self.frame);
    }

    /// Makes `frame` of `body`, as it is.
    fn envelop(&mut self, encoding: Encoding) {
        self.frame.clear();
        match encoding {
            Encoding::NativeTcp => {
                let start = native::begin_frame(&mut self.frame);
                self.frame.extend_from_slice(&self.body);
                native::end_frame(start, &mut self.frame);
            }
            Encoding::NativeJson | Encoding::NativeJsonDeflate => {
                websocket::encode(Opcode::Text, &self.body, &mut self.frame);
            }
            Encoding::NativeBinary
            | Encoding::NativeBinaryDeflate
            | Encoding::GoimWeb
            | Encoding::GoimWebDeflate
            | Encoding::BilibiliWeb(_) => {
                websocket::encode(Opcode::Binary, &self.body, &mut self.frame);
            }
            Encoding::GoimTcp | Encoding::BilibiliTcp(_) => self.frame.extend_from_slice(&self.body),
        }
    }

    fn batch(&mut self, encoding: Encoding, batch: &mut Batch, emit: &mut impl FnMut(Framed<'_>)) {
        let Batch { bodies, offset, .. } = std::mem::take(batch);
        if bodies.is_empty() {
            return;
        }
        let messages = bodies.len() as u64;
        self.body.clear();
        match encoding {
            // Each packet is a frame of its own: a reader may be skipped between any two.
            Encoding::GoimTcp | Encoding::BilibiliTcp(Version::Plain) => {
                for (operation, body) in &bodies {
                    self.body.clear();
                    match encoding {
                        Encoding::GoimTcp => goim::push(*operation, body, &mut self.body),
                        _ => self.packer.pack(Version::Plain, [body], &mut self.body),
                    }
                    emit(Framed { bytes: &self.body, messages: 1, missing: Missing::default(), offset });
                }
                return;
            }
            Encoding::BilibiliWeb(version) | Encoding::BilibiliTcp(version) => {
                self.packer.pack(version, bodies.iter().map(|(_, body)| body), &mut self.body);
            }
            _ => {
                let mut pushes = Vec::new();
                bodies.iter().for_each(|(operation, body)| goim::push(*operation, body, &mut pushes));
                goim::batch(&pushes, &mut self.body);
            }
        }
        self.envelop_shared(encoding);
        emit(Framed { bytes: &self.frame, messages, missing: Missing::default(), offset });
    }

    /// A native frame of one session.
    pub(super) fn own(&mut self, encoding: Encoding, request: u32, body: Body) -> Bytes {
        self.server_frame(encoding, &ServerFrame { request, body: Some(body) });
        Bytes::copy_from_slice(&self.frame)
    }

    /// goim's or Bilibili's packets of one session.
    pub(super) fn packets(&mut self, web: bool, packets: &[u8]) -> Bytes {
        if !web {
            return Bytes::copy_from_slice(packets);
        }
        self.frame.clear();
        websocket::encode(Opcode::Binary, packets, &mut self.frame);
        Bytes::copy_from_slice(&self.frame)
    }

    /// A push; `None` where the dialect cannot say it.
    pub(super) fn push(&mut self, encoding: Encoding, push: &Push) -> Option<Bytes> {
        if encoding.is_native() {
            if !self.message(encoding, &push.message) {
                return None;
            }
            self.envelop(encoding);
            return Some(Bytes::copy_from_slice(&self.frame));
        }
        let message = client::Message::decode(&push.message[..]).ok()?;
        self.body.clear();
        match encoding {
            Encoding::BilibiliWeb(version) | Encoding::BilibiliTcp(version) => {
                let body = bilibili::danmaku(&message, &push.raw)?;
                self.packer.pack(version, [body], &mut self.body);
            }
            _ => {
                let mut pushes = Vec::new();
                goim::push(self.operation(push, &message.r#type), goim_body(&message, &push.raw), &mut pushes);
                if matches!(encoding, Encoding::GoimWeb | Encoding::GoimWebDeflate) {
                    goim::batch(&pushes, &mut self.body);
                } else {
                    self.body = pushes;
                }
            }
        }
        self.envelop(encoding);
        Some(Bytes::copy_from_slice(&self.frame))
    }

    /// The operation that a goim session may have said it accepts.
    pub(super) fn operation_of(&self, push: &Push) -> i32 {
        if push.operation != 0 {
            return push.operation;
        }
        let message = client::Message::decode(&push.message[..]).unwrap_or_default();
        self.operation(push, &message.r#type)
    }

    fn operation(&self, push: &Push, name: &str) -> i32 {
        if push.operation == 0 { self.operations.of_type(name) } else { push.operation }
    }
}

/// Bodies that make one frame.
#[derive(Debug, Default)]
struct Batch {
    bodies: Vec<(i32, Vec<u8>)>,
    bytes: usize,
    offset: u64,
}

/// What goim's viewers get: a goim body as it was, of any other message its payload.
fn goim_body<'a>(message: &'a client::Message, raw: &'a [u8]) -> &'a [u8] {
    if raw.is_empty() { native::payload_bytes(message.payload.as_ref()) } else { raw }
}

/// A WebSocket's pong.
#[must_use]
pub(super) fn pong(payload: &[u8]) -> Bytes {
    let mut frame = Vec::new();
    websocket::encode(Opcode::Pong, payload, &mut frame);
    frame.into()
}

/// A WebSocket's close.
#[must_use]
pub(super) fn close(code: u16, reason: &str) -> Bytes {
    let mut frame = Vec::new();
    websocket::close(code, reason, &mut frame);
    frame.into()
}

/// A push's bytes, made once for each encoding.
#[derive(Debug)]
pub(super) struct Once {
    push: Arc<Push>,
    made: Vec<(Encoding, Option<Bytes>)>,
}

impl Once {
    /// Nothing is encoded yet.
    #[must_use]
    pub(super) fn new(push: Arc<Push>) -> Self {
        Self { push, made: Vec::new() }
    }

    /// Its bytes, shared by all sessions of `encoding`.
    pub(super) fn get(&mut self, encoder: &mut Encoder, encoding: Encoding) -> Option<Bytes> {
        if let Some((_, bytes)) = self.made.iter().find(|(made, _)| *made == encoding) {
            return bytes.clone();
        }
        let bytes = encoder.push(encoding, &self.push);
        self.made.push((encoding, bytes.clone()));
        bytes
    }

    /// See [`Encoder::operation_of`].
    pub(super) fn operation(&self, encoder: &Encoder) -> i32 {
        encoder.operation_of(&self.push)
    }
}
