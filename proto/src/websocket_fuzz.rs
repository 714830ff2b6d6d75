//! Fuzz body of [`crate::websocket`]: frames, whole, broken and cut at will, are decoded at once, in pieces and byte by
//! byte, with the same result and within the limit of memory; tungstenite, given the same stream, agrees.

use std::io::{Cursor, Read, Write};

use tungstenite::protocol::{Role as TheirRole, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use crate::fuzz::{Dice, pieces};
use crate::websocket::{
    CONTROL_BYTES_MAX, Decoder, Event, Failure, Opcode, Role, close, encode, frame, header, unmask,
};

/// An [`Event`] that owns what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owned {
    /// See [`Event::Text`].
    Text(String),
    /// See [`Event::Binary`].
    Binary(Vec<u8>),
    /// See [`Event::Ping`].
    Ping(Vec<u8>),
    /// See [`Event::Pong`].
    Pong(Vec<u8>),
    /// See [`Event::Close`].
    Close(Option<(u16, String)>),
}

impl From<Event<'_>> for Owned {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Text(text) => Self::Text(text.to_owned()),
            Event::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Event::Ping(bytes) => Self::Ping(bytes.to_vec()),
            Event::Pong(bytes) => Self::Pong(bytes.to_vec()),
            Event::Close(close) => Self::Close(close.map(|(code, reason)| (code, reason.to_owned()))),
        }
    }
}

/// What a stream decodes to.
pub type Decoded = (Vec<Owned>, Option<Failure>);

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    let role = dice.pick(&[Role::Server, Role::Client]);
    // Not below a control frame's: tungstenite would refuse those, too.
    let limit = dice.pick(&[125, 126, 1000, 1000, 1000, 1000, 1000, 70_000]);
    let sizes = dice.bytes(4);
    let stream = stream(&mut dice, role, limit);
    let decoded = decode(role, limit, pieces(&stream, &[]));
    assert_eq!(decoded, decode(role, limit, pieces(&stream, sizes)));
    if stream.len() < 1000 {
        assert_eq!(decoded, decode(role, limit, pieces(&stream, &[0])));
    }
    compare(role, limit, &stream, &decoded);
}

/// Frames as the dice fall: mostly such as could follow each other.
fn stream(dice: &mut Dice<'_>, role: Role, limit: u32) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut open = false;
    while !dice.is_empty() && stream.len() < 100_000 {
        if dice.once_in(32) {
            let count = usize::from(dice.byte() % 16);
            stream.extend_from_slice(dice.bytes(count));
            continue;
        }
        if !open && dice.once_in(16) {
            ours(dice, role, &mut stream);
            continue;
        }
        let fin = !dice.once_in(3);
        let expected: &[u8] = if open { &[0, 0, 0, 9, 10] } else { &[1, 1, 2, 9, 10] };
        let opcode = if dice.once_in(24) { dice.byte() & 15 } else { dice.pick(expected) };
        let opcode = if dice.once_in(24) { 8 } else { opcode };
        let control = opcode >= 8;
        let mut payload = if opcode == 8 { close_body(dice) } else { payload(dice, limit) };
        if control && !dice.once_in(16) {
            payload.truncate(CONTROL_BYTES_MAX);
        }
        let fin = fin || (control && !dice.once_in(16));
        if !control {
            open = !fin;
        }
        let reserved = if dice.once_in(48) { dice.byte() & 0x70 } else { 0 };
        stream.push(u8::from(fin) << 7 | reserved | opcode);
        let masked = (role == Role::Server) != dice.once_in(48);
        length(dice, masked, payload.len(), &mut stream);
        if masked {
            let mut mask = [0x5a; 4];
            let drawn = dice.bytes(4);
            mask[..drawn.len()].copy_from_slice(drawn);
            stream.extend_from_slice(&mask);
            unmask(&mut payload, mask);
        }
        let cut = if dice.once_in(48) { payload.len() / 2 } else { payload.len() };
        stream.extend_from_slice(&payload[..cut]);
    }
    stream
}

/// A frame of our own encoders.
fn ours(dice: &mut Dice<'_>, role: Role, stream: &mut Vec<u8>) {
    let (opcode, bytes) = (dice.pick(&[Opcode::Binary, Opcode::Text, Opcode::Ping]), usize::from(dice.byte() % 126));
    let payload = vec![b'o'; if opcode == Opcode::Binary { bytes * 999 } else { bytes }];
    match (role, dice.byte() % 8) {
        (Role::Server, _) => frame(true, opcode, Some([1, 2, 3, dice.byte()]), &payload, stream),
        (Role::Client, 0) => close(1000, &"\u{5f39}".repeat(bytes), stream),
        (Role::Client, 1..4) => {
            header(opcode, payload.len(), stream);
            stream.extend_from_slice(&payload);
        }
        (Role::Client, _) => encode(opcode, &payload, stream),
    }
}

fn length(dice: &mut Dice<'_>, masked: bool, bytes: usize, stream: &mut Vec<u8>) {
    let masked = u8::from(masked) << 7;
    // Not the shortest form, now and then: it is not asked of a sender that we read from. Nor a true one.
    let (form, bytes) = match (dice.byte(), bytes) {
        (255, _) => (127, dice.pick(&[u64::MAX, 1 << 63, (1 << 63) - 1, u64::from(u32::MAX), 70_001])),
        (250.., _) => (127, bytes as u64),
        (245.., ..=65535) | (_, 126..=65535) => (126, bytes as u64),
        (_, ..=125) => (bytes as u8, bytes as u64),
        _ => (127, bytes as u64),
    };
    stream.push(masked | form);
    match form {
        126 => stream.extend_from_slice(&(bytes as u16).to_be_bytes()),
        127 => stream.extend_from_slice(&bytes.to_be_bytes()),
        _ => {}
    }
}

/// Pieces of UTF-8, right, wrong, and cut within a character.
const SCRAPS: &[&[u8]] = &[
    b"",
    b"plain",
    "弹幕".as_bytes(),
    "é".as_bytes(),
    "\u{10ffff}".as_bytes(),
    b"sixteen or more bytes of it, and then more than thirty-two",
    b"\xe5\xbc",
    b"\xb9",
    b"\xf0\x9f",
    b"\x98\x80",
    b"\xf0",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc0\xaf",
    b"\xff",
];

fn payload(dice: &mut Dice<'_>, limit: u32) -> Vec<u8> {
    match dice.byte() % 8 {
        0..4 => (0..dice.byte() % 4).flat_map(|_| right_mostly(dice)).copied().collect(),
        4..7 => {
            let count = usize::from(dice.byte() % 64);
            dice.bytes(count).to_vec()
        }
        _ => {
            let limit = limit as usize;
            // Around each border; what is over the limit must not come at all.
            let count = dice.pick(&[125, 126, 127, 65535, 65536, limit - 1, limit, limit + 1]).min(limit + 1);
            vec![dice.pick(b"a\xe5"); count]
        }
    }
}

fn right_mostly(dice: &mut Dice<'_>) -> &'static [u8] {
    if dice.once_in(4) { dice.pick(SCRAPS) } else { dice.pick(&SCRAPS[..9]) }
}

fn close_body(dice: &mut Dice<'_>) -> Vec<u8> {
    let codes = [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000];
    match dice.byte() % 8 {
        0 => Vec::new(),
        1 => vec![3],
        2 => [dice.number().to_be_bytes().as_slice(), right_mostly(dice)].concat(),
        _ => [u16::to_be_bytes(dice.pick(&codes)).as_slice(), right_mostly(dice)].concat(),
    }
}

/// Decodes a stream that comes in pieces.
///
/// # Panics
/// Where the decoder holds more memory than the limit allows, or yields anything after an end.
pub fn decode<'a>(role: Role, limit: u32, pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let mut decoder = Decoder::new(role, limit);
    let (mut events, mut failure) = (Vec::new(), None);
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        loop {
            let ended = failure.is_some() || matches!(events.last(), Some(Owned::Close(_)));
            match decoder.next(&mut input).map(|event| event.map(Owned::from)) {
                Ok(None) => break,
                Ok(Some(event)) if !ended => events.push(event),
                Err(error) if !ended => failure = Some(error),
                after => panic!("{after:?} after {failure:?} {events:?}"),
            }
            assert!(decoder.buffer_bytes() <= limit as usize + CONTROL_BYTES_MAX, "{}", decoder.buffer_bytes());
        }
        assert!(input.is_empty(), "bytes were left");
    }
    (events, failure)
}

/// Reads a stream, swallows answers.
struct Wire<'a>(Cursor<&'a [u8]>);

impl Read for Wire<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What tungstenite makes of a stream: its events, and the close code that its error would be sent with.
fn oracle(role: Role, limit: u32, stream: &[u8]) -> (Vec<Owned>, Option<u16>) {
    let theirs = match role {
        Role::Server => TheirRole::Server,
        Role::Client => TheirRole::Client,
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(limit as usize))
        .max_frame_size(Some(limit as usize));
    let mut socket = WebSocket::from_raw_socket(Wire(Cursor::new(stream)), theirs, Some(config));
    let mut events = Vec::new();
    loop {
        events.push(match socket.read() {
            Ok(Message::Text(text)) => Owned::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Owned::Binary(bytes.to_vec()),
            Ok(Message::Ping(bytes)) => Owned::Ping(bytes.to_vec()),
            Ok(Message::Pong(bytes)) => Owned::Pong(bytes.to_vec()),
            Ok(Message::Close(close)) => {
                events.push(Owned::Close(close.map(|close| (close.code.into(), close.reason.to_string()))));
                return (events, None);
            }
            Ok(Message::Frame(_)) => unreachable!("tungstenite never reads raw frames"),
            Err(tungstenite::Error::Utf8(_)) => return (events, Some(1007)),
            Err(tungstenite::Error::Capacity(_)) => return (events, Some(1009)),
            Err(tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                return (events, None);
            }
            Err(tungstenite::Error::Protocol(_)) => return (events, Some(1002)),
            Err(other) => panic!("the oracle: {other}"),
        });
    }
}

/// Wants the same of tungstenite, as far as the two define the same.
fn compare(role: Role, limit: u32, stream: &[u8], (events, failure): &Decoded) {
    // It judges a frame when all of it has come, we as soon as it can only be wrong: so it gets the rest of the frame.
    let mut stream = stream.to_vec();
    if failure.is_some() {
        stream.resize(stream.len() + limit as usize + 16, 0);
    }
    let (mut their_events, their_code) = oracle(role, limit, &stream);
    match (failure, their_code) {
        // It takes a control frame's short length in a long form, which a sender must not use (section 5.2).
        (Some(Failure::LongControl), _) => their_events.truncate(events.len()),
        // It answers a bad close code with one of its own, and reports that as the peer's.
        (Some(Failure::CloseCode(_)), None) => {
            assert_eq!(their_events.pop(), Some(Owned::Close(Some((1002, "Protocol violation".to_owned())))));
        }
        // A close may be wrong in its code and its reason: it names the reason's fault, we the code's.
        (Some(Failure::CloseCode(_)), Some(1007)) => {}
        // The same frame may be too large and wrong in its header: it names the size, we the header's fault.
        (Some(failure), Some(1009)) => assert!(matches!(failure.code(), 1002 | 1009), "{failure}"),
        (failure, code) => assert_eq!(failure.map(Failure::code), code, "{failure:?}"),
    }
    // 1014 was registered with IANA after its list was made.
    if matches!(events.last(), Some(Owned::Close(Some((1014, _))))) {
        assert_eq!(their_events.pop(), Some(Owned::Close(Some((1002, "Protocol violation".to_owned())))));
        their_events.extend(events.last().cloned());
    }
    assert_eq!(events, &their_events);
}
