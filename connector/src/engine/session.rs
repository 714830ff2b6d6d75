//! A connection and what it has become: sniffed, shaken hands with, authenticated, live, closing.
//!
//! ```text
//!   Wire:   Sniff ─▶ Http ─▶ WebSocket       Phase:  Opening ─▶ Authenticating ─▶ Live ─▶ Closing
//!             └────▶ Tcp
//! ```
//!
//! Bytes in: what is whole is handled where the driver has read it; only what is incomplete, or must wait because the
//! session is not read from now, is kept. Bytes out: [`Out`] for what is this session's own, the rooms' rings for all
//! else. An idle session holds no buffer.

use std::{collections::VecDeque, net::IpAddr};

use bytes::Bytes;
use proto::{bilibili::Version, client::ErrorCode, websocket::Decoder};

use super::{
    encode::Encoding,
    limits::{BEHIND_MS, Bucket, CAUGHT_UP_MS},
};
use crate::driver::Key;

/// An entry of the table of sessions. A walk over a room's members touches nothing else of who has nothing to do.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Of the present or the next user.
    pub(super) generation: u32,
    /// The kernel's buffer is full: nothing is sent before [`crate::driver::Machine::writable`] and its turn.
    pub(super) blocked: bool,
    /// It was `writable` since: what is half sent goes on in its turn.
    pub(super) woken: bool,
    /// Stands in the queue of sessions that have something of their own to do.
    pub(super) queued: bool,
    /// Who.
    pub(super) session: Option<Box<Session>>,
}

/// See the module's opening.
#[derive(Debug)]
pub(super) struct Session {
    /// Its slot and generation.
    pub(super) key: Key,
    /// The client's address: the peer's, or what a listed proxy said.
    pub(super) address: IpAddr,
    /// Whether `address` counts it.
    pub(super) counted: bool,
    /// May begin with a PROXY header.
    pub(super) proxied: bool,
    /// What its bytes are.
    pub(super) wire: Wire,
    /// Who speaks.
    pub(super) dialect: Dialect,
    /// How far it has come.
    pub(super) phase: Phase,
    /// Bytes as they came that could not be handled yet.
    pub(super) inbox: Vec<u8>,
    /// Packets out of a WebSocket message that could not be handled yet: before `inbox`.
    pub(super) carry: Vec<u8>,
    /// The driver was told not to read.
    pub(super) paused: bool,
    /// What is its own.
    pub(super) out: Out,
    /// The room and lane of which a frame is half sent: nothing else may be sent before its rest.
    pub(super) half: Option<(usize, usize)>,
    /// Rooms, and the index among the members of the room's feed.
    pub(super) places: Vec<Place>,
    /// Rooms on the way: asked of logic or of the owner.
    pub(super) joining: Vec<String>,
    /// Requests that logic has not answered.
    pub(super) in_flight: u32,
    /// Its requests.
    pub(super) requests: Bucket,
    /// New rooms that it made.
    pub(super) new_rooms: Bucket,
    /// When it was accepted, when bytes came last, since when nothing could be sent; milliseconds.
    pub(super) born_ms: u64,
    /// See `born_ms`.
    pub(super) heard_ms: u64,
    /// See `born_ms`.
    pub(super) progress_ms: u64,
    /// When it was skipped over first without having caught up since, and when last, milliseconds.
    pub(super) skipped_ms: (u64, u64),
    /// When the wheel looks at it.
    pub(super) wheel_ms: u64,
    /// Who it is, once that is known.
    pub(super) identity: Option<Box<Identity>>,
    /// What only goim's and Bilibili's sessions have.
    pub(super) packets: Option<Box<Packets>>,
}

/// What the bytes of a connection are.
#[derive(Debug)]
pub(super) enum Wire {
    /// Not known yet.
    Sniff,
    /// A WebSocket handshake that is incomplete.
    Http,
    /// WebSocket messages. `None` while its events are being handled.
    WebSocket(Option<Decoder>),
    /// Frames one after another.
    Tcp,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Not known yet.
    Unknown,
    /// Native, in binary or JSON.
    Native {
        /// JSON in WebSocket text.
        json: bool,
    },
    /// goim's or Bilibili's: the authentication tells.
    Packets,
    /// goim.
    Goim,
    /// Bilibili live, with the version of its bodies.
    Bilibili(Version),
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing asked yet.
    Opening,
    /// Logic was asked; nothing else is handled.
    Authenticating,
    /// Authenticated.
    Live,
    /// What is in [`Out`] goes out, then it is closed; at this time at the latest, milliseconds.
    Closing(u64),
}

/// A session in a room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Index of the room.
    pub(super) room: usize,
    /// Index among the members of the feed of the session's encoding.
    pub(super) member: usize,
}

/// Who a session is, as logic said.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    /// Its ID.
    pub(super) session: String,
    /// The user.
    pub(super) uid: String,
    /// Shown as.
    pub(super) name: String,
    /// Which of the user's devices.
    pub(super) device: String,
    /// Not by a token.
    pub(super) guest: bool,
    /// 0: never.
    pub(super) expires_at_ms: i64,
    /// Patterns of channels.
    pub(super) subscribe: Vec<String>,
    /// Patterns of channels.
    pub(super) publish: Vec<String>,
}

/// What only goim's and Bilibili's sessions have.
#[derive(Debug, Default)]
pub(super) struct Packets {
    /// goim's session key.
    pub(super) key: String,
    /// Operations whose pushes by key and to all it wants (goim).
    pub(super) accepts: Vec<i32>,
    /// The room that is its own: what op 4 publishes to, what heartbeats count.
    pub(super) room: Option<String>,
    /// The number of the first of `turns`.
    pub(super) first_turn: u64,
    /// Answers in the order of their requests: the first one that is not there holds back the others.
    pub(super) turns: VecDeque<Option<Bytes>>,
    /// A change of room is under way: what follows waits for it.
    pub(super) moving: bool,
}

impl Session {
    /// It is skipped over at `now_ms`: whether that has gone on for too long.
    pub(super) fn stays_behind(&mut self, now_ms: u64) -> bool {
        let (first_ms, last_ms) = &mut self.skipped_ms;
        if now_ms.saturating_sub(*last_ms) > CAUGHT_UP_MS {
            *first_ms = now_ms;
        }
        *last_ms = now_ms;
        now_ms - *first_ms >= BEHIND_MS
    }

    /// Its bytes' form, once the dialect is known.
    pub(super) fn encoding(&self) -> Option<Encoding> {
        let web = matches!(self.wire, Wire::WebSocket(_));
        Some(match (self.dialect, web) {
            (Dialect::Native { json: true }, _) => Encoding::NativeJson,
            (Dialect::Native { json: false }, true) => Encoding::NativeBinary,
            (Dialect::Native { json: false }, false) => Encoding::NativeTcp,
            (Dialect::Goim, true) => Encoding::GoimWeb,
            (Dialect::Goim, false) => Encoding::GoimTcp,
            (Dialect::Bilibili(version), true) => Encoding::BilibiliWeb(version),
            (Dialect::Bilibili(version), false) => Encoding::BilibiliTcp(version),
            (Dialect::Unknown | Dialect::Packets, _) => return None,
        })
    }

    /// Whether its requests may be handled now.
    pub(super) fn may_read(&self, in_flight_max: u32, private_bytes_max: u32) -> bool {
        matches!(self.phase, Phase::Opening | Phase::Live)
            && self.in_flight < in_flight_max
            && self.out.bytes() <= private_bytes_max as usize / 2
            && self
                .packets
                .as_ref()
                .is_none_or(|packets| !packets.moving && packets.turns.len() < in_flight_max as usize)
    }

    /// Whether it is in its last phase.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// Bytes of heap that it holds for reading and writing.
    pub(super) fn buffers(&self) -> usize {
        self.inbox.capacity() + self.carry.capacity() + self.out.bytes()
    }
}

/// Output that is one session's own: whole frames, sent between two frames of a ring, in order.
#[derive(Debug, Default)]
pub(super) struct Out {
    queue: VecDeque<Bytes>,
    /// Of the first one.
    sent: usize,
    bytes: usize,
}

impl Out {
    /// Appends a frame.
    pub(super) fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        if !frame.is_empty() {
            self.queue.push_back(frame);
        }
    }

    /// Puts the rest of a half-sent frame before everything.
    pub(super) fn push_rest(&mut self, rest: &[u8]) {
        debug_assert_eq!(self.sent, 0, "two frames cannot be half sent");
        if !rest.is_empty() {
            self.bytes += rest.len();
            self.queue.push_front(Bytes::copy_from_slice(rest));
        }
    }

    /// What goes out next.
    pub(super) fn front(&self) -> Option<&[u8]> {
        self.queue.front().map(|frame| &frame[self.sent..])
    }

    /// So many bytes of the front went out.
    pub(super) fn took(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.sent += bytes;
        if self.queue.front().is_some_and(|frame| frame.len() == self.sent) {
            self.queue.pop_front();
            self.sent = 0;
            if self.queue.is_empty() {
                self.queue = VecDeque::new();
            }
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// Why a session ends.
#[derive(Debug, Clone)]
pub(super) struct Ending {
    /// As the error table has it.
    pub(super) code: ErrorCode,
    /// For a developer.
    pub(super) reason: String,
    /// Come again after this long, milliseconds (native).
    pub(super) delay_ms: u32,
    /// The WebSocket's close code, where the protocol itself knows a nearer one than the code's row.
    pub(super) close_code: Option<u16>,
}

impl Ending {
    /// One that says nothing of coming again beyond what the code says.
    pub(super) fn new(code: ErrorCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), delay_ms: 0, close_code: None }
    }
}
