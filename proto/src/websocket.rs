//! WebSocket framing (RFC 6455 sections 5 to 8), both roles. Bytes in any split in, whole messages out; knows no socket.
//! Not the opening handshake ([`crate::http`]). Of extensions permessage-deflate ([`crate::deflate`]), where it was agreed
//! on; else a set RSV bit fails the connection.
//!
//! ```text
//!   bytes ─▶ header, judged as its bytes come ─▶ payload, unmasked in place ─▶ a whole message in the input: borrowed
//!                                                        └ split or fragmented ─▶ Part's buffer ─▶ borrowed from there
//!                                                              either, compressed ─▶ Inflater's ─▶ borrowed from there
//! ```
//!
//! A compressed message is kept compressed until it is whole: what a sender of half a message costs is what it sent, and
//! an inflater, which costs more, is lent for one call.
//!
//! Invariants, each the name of a test:
//! - `an_idle_decoder_owns_nothing`: between messages a [`Decoder`] is 16 bytes and no heap memory.
//! - `rfc6455_10_4_a_length_is_judged_before_anything_is_allocated`: memory grows with what came, never with what was
//!   claimed, and never beyond the limit.
//! - `rfc6455_8_1_utf8_fails_at_the_first_impossible_byte`: across fragments and reads; of a compressed text, at its end.
//! - `rfc7692_6_only_a_messages_first_frame_says_that_it_is_compressed`, and only where that was agreed on.
//! - `rfc6455_5_5_1_nothing_is_read_after_a_close`: nor after a failure.

mod output;
mod utf8;

pub use self::output::{close, encode, encode_deflated, frame, header};
use self::utf8::Utf8;
use crate::deflate::{self, BadMessage, Inflater};

/// Longest payload of a control frame, bytes (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Longest frame header, bytes: two, eight of length, four of mask. A server's own are at most 10.
pub const HEADER_BYTES_MAX: usize = 14;

/// RSV1, which begins a compressed message (RFC 7692 section 6).
const DEFLATED: u8 = 0x40;

/// Which end we are: a server's input must be masked, a client's must not (RFC 6455 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads what a client sent.
    Server,
    /// Reads what a server sent.
    Client,
}

/// RFC 6455 section 5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// The next fragment of a message.
    Continuation = 0,
    /// UTF-8.
    Text = 1,
    /// Any bytes.
    Binary = 2,
    /// The last frame of its sender.
    Close = 8,
    /// Wants a pong of the same payload.
    Ping = 9,
    /// Answers a ping, or comes by itself.
    Pong = 10,
}

impl Opcode {
    fn of(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 >= 8
    }
}

/// A whole message, or a control frame, borrowed from the input or from the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered by a pong of the same payload.
    Ping(&'a [u8]),
    /// Nothing is to be done.
    Pong(&'a [u8]),
    /// The peer sends nothing more; to be answered by a close (of the same code) unless one was sent. Code and reason,
    /// where it gave them.
    Close(Option<(u16, &'a str)>),
}

/// The peer broke the protocol. Its fault, no use retrying: send a close of [`Failure::code`], then close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// One that means nothing here: no extension was agreed on that uses it, or not in this frame.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// 3-7 and 11-15.
    #[error("reserved opcode {0}")]
    ReservedOpcode(u8),
    /// A client's frame without a mask, or a server's with one.
    #[error("a frame is masked that must not be, or is not that must be")]
    Masking,
    /// Control frames come whole.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// Over 125 bytes.
    #[error("a control frame is longer than 125 bytes")]
    LongControl,
    /// The most significant bit of a 64-bit length is set.
    #[error("a frame length of 2^63 or more")]
    Length,
    /// A continuation, and nothing to continue.
    #[error("a continuation of nothing")]
    Continuation,
    /// A new message before the last one's end.
    #[error("a message begins within another")]
    Interrupted,
    /// The message is, or says that it will be, over the limit.
    #[error("the message is longer than the limit")]
    TooLarge,
    /// A text message, or a close reason.
    #[error("text is not UTF-8")]
    Utf8,
    /// A compressed message.
    #[error("a message that cannot be inflated")]
    Deflated,
    /// Of one byte.
    #[error("a close frame's body is one byte")]
    CloseBody,
    /// One that no peer may send (RFC 6455 section 7.4).
    #[error("close code {0} may not be sent")]
    CloseCode(u16),
}

impl From<BadMessage> for Failure {
    fn from(bad: BadMessage) -> Self {
        match bad {
            BadMessage::TooLarge => Self::TooLarge,
            BadMessage::Deflated => Self::Deflated,
        }
    }
}

impl Failure {
    /// The close code to send (RFC 6455 section 7.4.1).
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Utf8 | Self::Deflated => 1007,
            Self::TooLarge => 1009,
            _ => 1002,
        }
    }
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy)]
struct Header {
    fin: bool,
    /// Begins a compressed message.
    deflated: bool,
    opcode: Opcode,
    /// Zero where the role's peer does not mask: unmasking with it changes nothing.
    mask: [u8; 4],
    payload_bytes: u64,
}

/// Reads frames of one connection. Feed it with [`Decoder::next`].
#[derive(Debug)]
pub struct Decoder {
    /// What does not lie in the input as a whole; `None` when idle.
    part: Option<Box<Part>>,
    message_bytes_max: u32,
    role: Role,
    /// A close was read, or the peer failed.
    done: bool,
}

/// A message, or a frame, of which some bytes are still to come.
#[derive(Debug, Default)]
struct Part {
    /// A header that is incomplete.
    head: [u8; HEADER_BYTES_MAX],
    head_bytes: usize,
    /// A frame whose payload is incomplete.
    frame: Option<Rest>,
    /// The message whose end has not come: text or binary.
    message: Option<Opcode>,
    /// It is compressed.
    deflated: bool,
    utf8: Utf8,
    /// The message so far, then the control frame within it so far.
    buffer: Vec<u8>,
    message_bytes: usize,
    /// [`Event`]s of it were handed out: to be released on the next call.
    spent: bool,
}

/// What is still to come of a frame.
#[derive(Debug, Clone, Copy)]
struct Rest {
    fin: bool,
    opcode: Opcode,
    /// Turned so that it begins with the next byte's.
    mask: [u8; 4],
    bytes: usize,
}

impl Decoder {
    /// `message_bytes_max` bounds a whole message, all fragments together; over it: [`Failure::TooLarge`].
    #[must_use]
    pub fn new(role: Role, message_bytes_max: u32) -> Self {
        Self { part: None, message_bytes_max, role, done: false }
    }

    /// Takes bytes off `input` up to the end of the next message or control frame; `None` when all are taken. To be
    /// called until `None`: only then is the memory of the last message given back. `input` is unmasked in place.
    ///
    /// ```
    /// use proto::websocket::{Decoder, Event, Role};
    /// let mut decoder = Decoder::new(Role::Client, 4096);
    /// let mut bytes = *b"\x81\x05hello\x89\x00";
    /// let mut input = &mut bytes[..];
    /// assert_eq!(decoder.next(&mut input), Ok(Some(Event::Text("hello"))));
    /// assert_eq!(decoder.next(&mut input), Ok(Some(Event::Ping(b""))));
    /// assert_eq!(decoder.next(&mut input), Ok(None));
    /// ```
    ///
    /// # Errors
    /// [`Failure`] as soon as a byte breaks the protocol; after it, as after a close, the rest is swallowed.
    pub fn next<'a, 'input: 'a>(&'a mut self, input: &mut &'input mut [u8]) -> Result<Option<Event<'a>>, Failure> {
        self.next_with(None, input)
    }

    /// [`Decoder::next`] where permessage-deflate was agreed on: compressed messages are inflated by `inflater`, the
    /// limit being on what they become.
    ///
    /// # Errors
    /// As [`Decoder::next`].
    pub fn next_inflated<'a, 'input: 'a>(
        &'a mut self,
        inflater: &'a mut Inflater,
        input: &mut &'input mut [u8],
    ) -> Result<Option<Event<'a>>, Failure> {
        self.next_with(Some(inflater), input)
    }

    fn next_with<'a, 'input: 'a>(
        &'a mut self,
        inflater: Option<&'a mut Inflater>,
        input: &mut &'input mut [u8],
    ) -> Result<Option<Event<'a>>, Failure> {
        if let Some(part) = &mut self.part
            && part.spent
        {
            part.spent = false;
            part.buffer.truncate(part.message_bytes);
            if part.message.is_none() {
                self.part = None;
            }
        }
        let step = match self.advance(inflater.is_some(), input) {
            Ok(step) => step,
            Err(failure) => return Err(self.fail(failure, input)),
        };
        let (opcode, deflated, payload): (_, _, &'a [u8]) = match step {
            Step::Starved => return Ok(None),
            Step::InInput { opcode, deflated, payload } => (opcode, deflated, payload),
            Step::InPart { opcode, deflated, start } => {
                (opcode, deflated, self.part.as_ref().map_or(&[][..], |part| &part.buffer[start..]))
            }
        };
        let event = match inflater {
            Some(inflater) if deflated => inflater
                .inflate(payload, self.message_bytes_max)
                .map_err(Failure::from)
                .and_then(|payload| event(opcode, payload)),
            _ => event(opcode, payload),
        };
        match event {
            Ok(event) => {
                if matches!(event, Event::Close(_)) {
                    self.done = true;
                    *input = &mut [];
                }
                Ok(Some(event))
            }
            Err(failure) => {
                self.done = true;
                *input = &mut [];
                Err(failure)
            }
        }
    }

    /// What the buffers take, bytes.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.part.as_ref().map_or(0, |part| part.buffer.capacity())
    }

    /// Whether it stands between two frames, and owns no memory.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.part.is_none()
    }

    fn fail(&mut self, failure: Failure, input: &mut &mut [u8]) -> Failure {
        self.done = true;
        self.part = None;
        *input = &mut [];
        failure
    }

    /// Up to the end of what an event is made of.
    fn advance<'input>(&mut self, inflates: bool, input: &mut &'input mut [u8]) -> Result<Step<'input>, Failure> {
        if self.done {
            *input = &mut [];
            return Ok(Step::Starved);
        }
        loop {
            if let Some(part) = &mut self.part
                && let Some(rest) = part.frame
            {
                let taken = rest.bytes.min(input.len());
                let payload = input.split_off_mut(..taken).unwrap_or_default();
                let most = bytes_max(part.deflated, self.message_bytes_max);
                part.take(rest, payload, most)?;
                if taken < rest.bytes {
                    return Ok(Step::Starved);
                }
                if let Some(step) = part.end_frame(rest)? {
                    return Ok(step);
                }
                continue;
            }
            let Some(header) = self.header(inflates, input)? else {
                return Ok(Step::Starved);
            };
            self.judge(&header)?;
            // Judged against a u32: it fits.
            let bytes = header.payload_bytes as usize;
            let in_message = self.part.as_ref().is_some_and(|part| part.message.is_some());
            let whole = header.opcode.is_control() || (header.fin && !in_message);
            if whole && let Some(payload) = input.split_off_mut(..bytes) {
                unmask(payload, header.mask);
                if !in_message {
                    self.part = None;
                }
                return Ok(Step::InInput { opcode: header.opcode, deflated: header.deflated, payload });
            }
            let part = self.part.get_or_insert_default();
            if !header.opcode.is_control() && part.message.is_none() {
                part.message = Some(header.opcode);
                part.deflated = header.deflated;
            }
            part.frame = Some(Rest { fin: header.fin, opcode: header.opcode, mask: header.mask, bytes });
        }
    }

    /// Takes a header off `input`; `None` while it is incomplete, what came of it being kept.
    fn header(&mut self, inflates: bool, input: &mut &mut [u8]) -> Result<Option<Header>, Failure> {
        let kept = self.part.as_ref().map_or(0, |part| part.head_bytes);
        if kept == 0
            && let Some((header, bytes)) = Header::parse(input, self.role, inflates)?
        {
            skip(input, bytes);
            return Ok(Some(header));
        }
        if input.is_empty() {
            return Ok(None);
        }
        let part = self.part.get_or_insert_default();
        let taken = input.len().min(HEADER_BYTES_MAX - kept);
        part.head[kept..kept + taken].copy_from_slice(&input[..taken]);
        match Header::parse(&part.head[..kept + taken], self.role, inflates)? {
            Some((header, bytes)) => {
                part.head_bytes = 0;
                skip(input, bytes - kept);
                Ok(Some(header))
            }
            None => {
                part.head_bytes = kept + taken;
                skip(input, taken);
                Ok(None)
            }
        }
    }

    /// Whether a frame of this header may come now.
    fn judge(&self, header: &Header) -> Result<(), Failure> {
        if header.opcode.is_control() {
            return Ok(());
        }
        let part = self.part.as_ref().filter(|part| part.message.is_some());
        let message = part.map(|part| part.message_bytes);
        match (header.opcode, message) {
            (Opcode::Continuation, None) => return Err(Failure::Continuation),
            (Opcode::Text | Opcode::Binary, Some(_)) => return Err(Failure::Interrupted),
            _ => {}
        }
        let before = if planted!("websocket_limit") { 0 } else { message.unwrap_or(0) };
        let bytes = header.payload_bytes.saturating_add(before as u64);
        let most = bytes_max(header.deflated || part.is_some_and(|part| part.deflated), self.message_bytes_max);
        if bytes > u64::from(most) { Err(Failure::TooLarge) } else { Ok(()) }
    }
}

/// Where the next event lies, or that there is none.
enum Step<'input> {
    Starved,
    InInput {
        opcode: Opcode,
        deflated: bool,
        payload: &'input [u8],
    },
    /// In the part's buffer, from `start` on.
    InPart {
        opcode: Opcode,
        deflated: bool,
        start: usize,
    },
}

/// How long a message may be on the wire.
fn bytes_max(deflated: bool, message_bytes_max: u32) -> u32 {
    if deflated { deflate::message_bytes_max(message_bytes_max) } else { message_bytes_max }
}

impl Part {
    /// Takes the next bytes of a frame.
    fn take(&mut self, rest: Rest, payload: &mut [u8], message_bytes_max: u32) -> Result<(), Failure> {
        unmask(payload, rest.mask);
        let mut mask = rest.mask;
        if !planted!("websocket_mask") {
            mask.rotate_left(payload.len() % 4);
        }
        self.frame = Some(Rest { mask, bytes: rest.bytes - payload.len(), ..rest });
        if !rest.opcode.is_control() && self.message == Some(Opcode::Text) && !self.deflated {
            self.utf8.push(payload)?;
        }
        // Doubling, as a Vec does, but not beyond what may come.
        let need = self.buffer.len() + payload.len();
        if need > self.buffer.capacity() {
            let most = message_bytes_max as usize + CONTROL_BYTES_MAX;
            let room = (self.buffer.capacity() * 2).clamp(need, most.max(need));
            self.buffer.reserve_exact(room - self.buffer.len());
        }
        self.buffer.extend_from_slice(payload);
        Ok(())
    }

    /// The frame's payload is complete: the event that it ends, if any.
    fn end_frame(&mut self, rest: Rest) -> Result<Option<Step<'static>>, Failure> {
        self.frame = None;
        if rest.opcode.is_control() {
            self.spent = true;
            return Ok(Some(Step::InPart { opcode: rest.opcode, deflated: false, start: self.message_bytes }));
        }
        self.message_bytes = self.buffer.len();
        if !rest.fin {
            return Ok(None);
        }
        self.utf8.end()?;
        self.spent = true;
        let deflated = std::mem::take(&mut self.deflated);
        Ok(self.message.take().map(|opcode| Step::InPart { opcode, deflated, start: 0 }))
    }
}

fn skip(input: &mut &mut [u8], bytes: usize) {
    *input = &mut std::mem::take(input)[bytes..];
}

fn event(opcode: Opcode, payload: &[u8]) -> Result<Event<'_>, Failure> {
    Ok(match opcode {
        Opcode::Text => Event::Text(text(payload)?),
        Opcode::Binary | Opcode::Continuation => Event::Binary(payload),
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        Opcode::Close => Event::Close(match payload {
            [] => None,
            [_] => return Err(Failure::CloseBody),
            [high, low, reason @ ..] => {
                let code = u16::from_be_bytes([*high, *low]);
                if !may_be_sent(code) {
                    return Err(Failure::CloseCode(code));
                }
                Some((code, text(reason)?))
            }
        }),
    })
}

fn text(bytes: &[u8]) -> Result<&str, Failure> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| Failure::Utf8)
}

/// Whether a close frame may carry `code`: RFC 6455 section 7.4, and the IANA registry's 1012 to 1014.
#[must_use]
pub fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

impl Header {
    /// Judges what is there of a header, and reads it when it is whole.
    fn parse(bytes: &[u8], role: Role, inflates: bool) -> Result<Option<(Self, usize)>, Failure> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let (fin, deflated, bits) = (first & 0x80 != 0, first & DEFLATED != 0, first & 0x0f);
        if first & 0x30 != 0 || (deflated && !inflates) {
            return Err(Failure::ReservedBits);
        }
        let opcode = Opcode::of(bits).ok_or(Failure::ReservedOpcode(bits))?;
        if deflated && !matches!(opcode, Opcode::Text | Opcode::Binary) {
            return Err(Failure::ReservedBits);
        }
        if opcode.is_control() && !fin {
            return Err(Failure::FragmentedControl);
        }
        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        if (second & 0x80 != 0) != (role == Role::Server) {
            return Err(Failure::Masking);
        }
        let short = second & 0x7f;
        if opcode.is_control() && usize::from(short) > CONTROL_BYTES_MAX {
            return Err(Failure::LongControl);
        }
        let (payload_bytes, at) = match short {
            126 => match bytes[2..].first_chunk() {
                Some(length) => (u64::from(u16::from_be_bytes(*length)), 4),
                None => return Ok(None),
            },
            127 => match bytes[2..].first_chunk() {
                Some(length) => (u64::from_be_bytes(*length), 10),
                None => return Ok(None),
            },
            _ => (u64::from(short), 2),
        };
        if payload_bytes >> 63 != 0 {
            return Err(Failure::Length);
        }
        if role == Role::Client {
            return Ok(Some((Self { fin, deflated, opcode, mask: [0; 4], payload_bytes }, at)));
        }
        Ok(bytes[at..].first_chunk().map(|mask| (Self { fin, deflated, opcode, mask: *mask, payload_bytes }, at + 4)))
    }
}

/// Exclusive or with the mask, 32 bytes at a time (RFC 6455 section 5.3); its own inverse.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide: [u8; 32] = std::array::from_fn(|at| mask[at % 4]);
    let (chunks, rest) = payload.as_chunks_mut::<32>();
    for chunk in chunks {
        for (byte, key) in chunk.iter_mut().zip(wide) {
            *byte ^= key;
        }
    }
    for (byte, key) in rest.iter_mut().zip(wide) {
        *byte ^= key;
    }
}
