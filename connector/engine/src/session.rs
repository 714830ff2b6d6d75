//! A connection and what it has become: sniffed, shaken hands with, authenticated, live, closing.
//!
//! ```text
//!   Wire:   Sniff ─▶ Http ─▶ WebSocket       Phase:  Opening ─▶ Authenticating ─▶ Live ─▶ Closing
//!             └────▶ Tcp                                          └─▶ Refused ─────────▲
//! ```
//!
//! Bytes in: what is whole is handled where the driver has read it; only what is incomplete, or must wait because the
//! session is not read from now, is kept. Bytes out: [`Out`] for what is this session's own, the rooms' rings for all
//! else.
//!
//! A core has hundreds of thousands of sessions that do nothing but answer for themselves now and then. So what all of
//! them need is in [`Session`], 128 bytes; what one needs while something of it is under way is in [`Busy`], which comes
//! and goes with that ([`Session::settle`]); what many have in common is theirs together (`shared`).

use std::{
    borrow::Cow,
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use bytes::Bytes;
use proto::{
    bilibili::Version,
    client::{Error, ErrorCode},
    error::{error, row},
    websocket::Decoder,
};

use super::{
    encoding::Encoding,
    identity::Identity,
    limits::{BEHIND_MS, Bucket, CAUGHT_UP_MS, Counted, NEW_ROOMS_PERIOD_MS},
    places::Places,
    windows::Deflate,
};
use machine::Key;

/// An entry of the table of sessions. A fan-out pass over a room's members touches nothing else of who has nothing to do.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Of the present or the next user.
    pub(super) generation: u32,
    /// The kernel's buffer is full: nothing is sent before [`machine::Machine::writable`] and its turn.
    pub(super) blocked: bool,
    /// It was `writable` since: what is half sent goes on in its turn.
    pub(super) woken: bool,
    /// Stands in the queue of sessions that have something of their own to do.
    pub(super) queued: bool,
    /// Is in the batch that is sent next.
    pub(super) sending: bool,
    /// The session in it, if there is one.
    pub(super) session: Option<Box<Session>>,
}

/// See the module's opening.
#[derive(Debug)]
pub(super) struct Session {
    /// Its slot and generation.
    pub(super) key: Key,
    /// The client's address ([`Session::address`]).
    address: Ipv6Addr,
    /// What its bytes are.
    pub(super) wire: Wire,
    /// Rooms, and the index among the members of the room's feed.
    pub(super) places: Places,
    /// Who it is, once that is known.
    pub(super) identity: Option<Identity>,
    /// What only goim's and Bilibili's sessions have.
    pub(super) packets: Option<Box<Packets>>,
    /// What is under way.
    busy: Option<Box<Busy>>,
    /// Its requests.
    pub(super) requests: Bucket,
    /// When bytes came last, milliseconds: the lower half ([`Session::heard_ms`]).
    heard: u32,
    /// When the wheel looks at it: a tick.
    pub(super) wheel: u32,
    /// Who speaks.
    pub(super) dialect: Dialect,
    /// How far it has come.
    pub(super) phase: Phase,
    /// Whether `address` counts it.
    pub(super) counted: Counted,
    /// May begin with a PROXY header.
    pub(super) proxied: bool,
    /// What comes waits in `inbox`. The driver was told not to read, unless logic is asked about it and that is little.
    pub(super) paused: bool,
    /// permessage-deflate was agreed on.
    pub(super) deflate: Deflate,
    /// Native: it reads several messages a frame.
    pub(super) batches: bool,
}

/// The most that a session is while nothing of it is under way, bytes: a size class of the allocator.
const _: () = assert!(size_of::<Session>() <= 128);

/// What a session has while something of it is under way.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Bytes as they came that could not be handled yet.
    pub(super) inbox: Vec<u8>,
    /// Packets out of a WebSocket message that could not be handled yet: before `inbox`.
    pub(super) carry: Vec<u8>,
    /// What is its own.
    pub(super) out: Out,
    /// The room and lane of which a frame is half sent: nothing else may be sent before its rest.
    pub(super) half: Option<(usize, usize)>,
    /// Rooms on the way: asked of logic or of the owner.
    pub(super) joining: Vec<Joining>,
    /// Channels that logic has allowed together with the session; until what came behind its `Connect` has been handled.
    pub(super) allowed: Vec<String>,
    /// Answers in the order of their requests (goim, Bilibili): the first one that is not there holds back the others.
    pub(super) turns: VecDeque<Option<Bytes>>,
    /// Requests that logic has not answered.
    pub(super) in_flight: u32,
    /// New rooms that it made.
    pub(super) new_rooms: Bucket,
    /// Until when it must be live; or, as it is closing, until when what is in `out` may take to go out. Milliseconds.
    pub(super) deadline_ms: u64,
    /// Why it is [`Phase::Refused`].
    pub(super) refused: ErrorCode,
    /// Since when nothing could be sent, milliseconds; 0: it can.
    pub(super) stuck_ms: u64,
    /// When it was skipped over first without having caught up since, and when last, milliseconds.
    skipped_ms: (u64, u64),
}

/// One coming into a room. A room can have two of a session: the client's, and the platform's; and a ban ends those that
/// are under way, not a later one.
#[derive(Debug)]
pub(super) struct Joining {
    /// The question's number, to logic or to the owner.
    pub(super) ticket: u64,
    /// The room.
    pub(super) channel: String,
    /// Why it was taken out before logic answered: what the client is told then.
    pub(super) out: Option<Removal>,
}

/// Why the platform takes a session out of a room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    /// As the error table has it.
    pub(super) reason: ErrorCode,
    /// When the client may subscribe again, milliseconds from now. 0: not known.
    pub(super) retry_after_ms: u32,
}

impl Removal {
    /// The answer to a request to come into the room.
    pub(super) fn error(self) -> Error {
        Error { retry_after_ms: self.retry_after_ms, ..error(self.reason, row(self.reason).meaning) }
    }
}

/// Nothing is under way.
static IDLE: Busy = Busy {
    inbox: Vec::new(),
    carry: Vec::new(),
    out: Out { queue: VecDeque::new(), sent: 0, bytes: 0 },
    half: None,
    joining: Vec::new(),
    allowed: Vec::new(),
    turns: VecDeque::new(),
    in_flight: 0,
    new_rooms: Bucket::NEW,
    deadline_ms: 0,
    refused: ErrorCode::None,
    stuck_ms: 0,
    skipped_ms: (0, 0),
};

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
    /// It was refused and told so. It is closed at [`Busy::deadline_ms`], and nothing of it is handled until then.
    Refused,
    /// Authenticated.
    Live,
    /// What is in [`Out`] goes out, then it is closed; at [`Busy::deadline_ms`] at the latest.
    Closing,
}

/// What only goim's and Bilibili's sessions have.
#[derive(Debug)]
pub(super) struct Packets {
    /// goim's session key; empty: the session's ID.
    pub(super) key: Box<str>,
    /// Operations whose pushes by key and to all it wants (goim).
    pub(super) accepts: Arc<[i32]>,
    /// The room that is its own: what op 4 publishes to, what heartbeats count.
    pub(super) room: Option<Arc<str>>,
    /// The number of the first of [`Busy::turns`].
    pub(super) first_turn: u64,
    /// A change of room is under way: what follows waits for it.
    pub(super) moving: bool,
}

const _: () = assert!(size_of::<Packets>() <= 64);

impl Session {
    /// A connection that was just accepted, to be live until a deadline, milliseconds.
    pub(super) fn new(key: Key, address: IpAddr, now_ms: u64, deadline_ms: u64) -> Self {
        let mut session = Self {
            key,
            address: Ipv6Addr::UNSPECIFIED,
            wire: Wire::Sniff,
            places: Places::None,
            identity: None,
            packets: None,
            busy: Some(Box::new(Busy { deadline_ms, ..Busy::default() })),
            requests: Bucket::default(),
            heard: now_ms as u32,
            wheel: u32::MAX,
            dialect: Dialect::Unknown,
            phase: Phase::Opening,
            counted: Counted::No,
            proxied: false,
            paused: false,
            deflate: Deflate::default(),
            batches: false,
        };
        session.comes_from(address);
        session
    }

    /// The client's address: the peer's, or what a listed proxy said.
    pub(super) fn address(&self) -> IpAddr {
        IpAddr::V6(self.address).to_canonical()
    }

    /// See [`Session::address`].
    pub(super) fn comes_from(&mut self, address: IpAddr) {
        self.address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
    }

    /// Bytes came.
    pub(super) fn hear(&mut self, now_ms: u64) {
        self.heard = now_ms as u32;
    }

    /// When bytes came last, milliseconds: within the last 49 days, which is all that is asked.
    pub(super) fn heard_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(u64::from((now_ms as u32).wrapping_sub(self.heard)))
    }

    /// What is under way.
    pub(super) fn busy(&self) -> &Busy {
        self.busy.as_deref().unwrap_or(&IDLE)
    }

    /// The same, to be changed.
    pub(super) fn busy_mut(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// Its own output, where there is some.
    pub(super) fn own_mut(&mut self) -> Option<&mut Out> {
        self.busy.as_deref_mut().map(|busy| &mut busy.out).filter(|out| !out.is_empty())
    }

    /// Gives back what it holds for what is under way, if nothing is.
    pub(super) fn settle(&mut self, now_ms: u64) {
        if self.phase == Phase::Live && self.busy.as_ref().is_some_and(|busy| busy.is_over(now_ms)) {
            self.busy = None;
        }
    }

    /// It is skipped over at `now_ms`: whether that has gone on for too long.
    pub(super) fn stays_behind(&mut self, now_ms: u64) -> bool {
        let (first_ms, last_ms) = &mut self.busy_mut().skipped_ms;
        if now_ms.saturating_sub(*last_ms) > CAUGHT_UP_MS {
            *first_ms = now_ms;
        }
        *last_ms = now_ms;
        now_ms - *first_ms >= BEHIND_MS
    }

    /// Its bytes' form, once the dialect is known.
    pub(super) fn encoding(&self) -> Option<Encoding> {
        let web = matches!(self.wire, Wire::WebSocket(_));
        let batches = self.deflate.is_agreed() && self.batches;
        Some(match (self.dialect, web) {
            (Dialect::Native { json: true }, _) if batches => Encoding::NativeJsonDeflate,
            (Dialect::Native { json: true }, _) => Encoding::NativeJson,
            (Dialect::Native { json: false }, true) if batches => Encoding::NativeBinaryDeflate,
            (Dialect::Native { json: false }, true) => Encoding::NativeBinary,
            (Dialect::Native { json: false }, false) => Encoding::NativeTcp,
            (Dialect::Goim, true) if self.deflate.is_agreed() => Encoding::GoimWebDeflate,
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
            && self.busy.as_ref().is_none_or(|busy| {
                busy.in_flight < in_flight_max
                    && busy.turns.len() < in_flight_max as usize
                    && busy.out.bytes() <= private_bytes_max as usize / 2
            })
            && self.packets.as_ref().is_none_or(|packets| !packets.moving)
    }

    /// Whether it is in its last phase.
    pub(super) fn is_closing(&self) -> bool {
        self.phase == Phase::Closing
    }

    /// Bytes of heap that it holds for what is under way.
    pub(super) fn buffers(&self) -> usize {
        self.busy
            .as_ref()
            .map_or(0, |busy| size_of::<Busy>() + busy.inbox.capacity() + busy.carry.capacity() + busy.out.bytes())
    }
}

impl Busy {
    /// Whether none of it means anything any more.
    fn is_over(&self, now_ms: u64) -> bool {
        self.inbox.is_empty()
            && self.carry.is_empty()
            && self.out.is_empty()
            && self.half.is_none()
            && self.joining.is_empty()
            && self.allowed.is_empty()
            && self.turns.is_empty()
            && self.in_flight == 0
            && self.stuck_ms == 0
            && self.new_rooms.is_rested(now_ms, NEW_ROOMS_PERIOD_MS)
            && (self.skipped_ms.1 == 0 || now_ms.saturating_sub(self.skipped_ms.1) > CAUGHT_UP_MS)
    }
}

/// Own frames that are copied together to go out with one send, bytes: a few of the short ones that answers are.
const GATHERED_BYTES_MAX: usize = 4096;

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

    /// Puts the remainder of a half-sent frame before everything.
    pub(super) fn push_remainder(&mut self, rest: &[u8]) {
        debug_assert_eq!(self.sent, 0, "two frames cannot be half sent");
        if !rest.is_empty() {
            self.bytes += rest.len();
            self.queue.push_front(Bytes::copy_from_slice(rest));
        }
    }

    /// What goes out next: a frame, or as many short ones as one send carries.
    pub(super) fn front(&self) -> Option<Cow<'_, [u8]>> {
        let front = &self.queue.front()?[self.sent..];
        if self.queue.get(1).is_none_or(|next| front.len() + next.len() > GATHERED_BYTES_MAX) {
            return Some(front.into());
        }
        let mut gathered = front.to_vec();
        for frame in self.queue.iter().skip(1) {
            if gathered.len() + frame.len() > GATHERED_BYTES_MAX {
                break;
            }
            gathered.extend_from_slice(frame);
        }
        Some(gathered.into())
    }

    /// So many bytes went out.
    pub(super) fn took(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.sent += bytes;
        while let Some(frame) = self.queue.front()
            && frame.len() <= self.sent
        {
            self.sent -= frame.len();
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_beyond_the_end_of_the_clock_s_lower_half() {
        let key = Key { slot: 0, generation: 0 };
        let mut session = Session::new(key, [10, 0, 0, 1].into(), 0, 0);
        assert_eq!(session.address(), IpAddr::from([10, 0, 0, 1]));
        for now_ms in [5_u64, u64::from(u32::MAX) - 100, 1 << 33] {
            session.hear(now_ms);
            assert_eq!(session.heard_ms(now_ms), now_ms);
            assert_eq!(session.heard_ms(now_ms + 480_000), now_ms);
        }
    }
}
