//! Fuzz body of [`crate::deflate`]: compressed messages, right, broken and bombs, come in any split with the same result
//! and within the limits of memory; miniz_oxide, an inflater of another make, agrees. Offers, right and wrong, are taken
//! as their grammar says.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use crate::deflate::{BadExtensions, Deflater, Inflater, WINDOW_BITS_MAX, WINDOW_BITS_MIN, agree, message_bytes_max};
use crate::fuzz::{Dice, pieces};
use crate::websocket::{CONTROL_BYTES_MAX, Decoder, Failure, Opcode, Role, encode_deflated, frame};
use crate::websocket_fuzz::{Decoded, Owned};

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    match dice.byte() % 4 {
        0 => offers(&mut dice),
        1 => there_and_back(&mut dice),
        _ => stream(&mut dice),
    }
}

/// Decodes a stream that comes in pieces, of a connection on which permessage-deflate was agreed on.
///
/// # Panics
/// Where more memory is held than the limit allows, or bytes are left.
pub fn decode<'a>(role: Role, limit: u32, pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut inflater) = (Decoder::new(role, limit), Inflater::default());
    let (mut events, mut failure) = (Vec::new(), None);
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        loop {
            match decoder.next_inflated(&mut inflater, &mut input).map(|event| event.map(Owned::from)) {
                Ok(None) => break,
                Ok(Some(event)) if failure.is_none() => events.push(event),
                Err(error) if failure.is_none() => failure = Some(error),
                after => panic!("{after:?} after {failure:?} {events:?}"),
            }
            let wire = message_bytes_max(limit) as usize + CONTROL_BYTES_MAX;
            assert!(decoder.buffer_bytes() <= wire, "{}", decoder.buffer_bytes());
            // What it keeps of a longer message before is bounded by the same limit.
            assert!(inflater.buffer_bytes() <= limit as usize + 1, "{}", inflater.buffer_bytes());
        }
        assert!(input.is_empty(), "bytes were left");
    }
    (events, failure)
}

const WORDS: &[&str] = &["弹幕", "哈哈哈哈", "666", " ", "danmaku", "\u{10ffff}", "the same again", "é", "\0"];

fn payload(dice: &mut Dice<'_>) -> Vec<u8> {
    let mut payload = Vec::new();
    for _ in 0..dice.byte() % 32 {
        match dice.byte() % 4 {
            0 => {
                let count = usize::from(dice.byte() % 32);
                payload.extend_from_slice(dice.bytes(count));
            }
            1 => payload.extend(std::iter::repeat_n(dice.byte(), usize::from(dice.number() % 2000))),
            _ => payload.extend_from_slice(dice.pick(WORDS).as_bytes()),
        }
    }
    payload
}

/// What was deflated, by whatever window, is inflated to the same, in fragments and pieces.
fn there_and_back(dice: &mut Dice<'_>) {
    let window_bits = WINDOW_BITS_MIN + dice.byte() % (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1);
    let (mut deflater, mut stream, mut expected) = (Deflater::new(window_bits), Vec::new(), Vec::new());
    while !dice.is_empty() && stream.len() < 100_000 {
        let payload = payload(dice);
        let before = stream.len();
        encode_deflated(Opcode::Binary, &payload, &mut deflater, &mut stream);
        assert!(stream.len() - before <= payload.len() + 10, "nothing grows");
        expected.push(Owned::Binary(payload));
    }
    let sizes = dice.bytes(4);
    assert_eq!(decode(Role::Client, 70_000, pieces(&stream, sizes)), (expected, None));
}

/// Messages whose payload may be anything that begins, or not, as a stream of DEFLATE.
fn stream(dice: &mut Dice<'_>) {
    let limit = dice.pick(&[125, 1000, 1000, 70_000]);
    let sizes = dice.bytes(4);
    let (mut deflater, mut stream, mut messages) = (Deflater::default(), Vec::new(), Vec::new());
    while !dice.is_empty() && stream.len() < 50_000 {
        let mut payload = Vec::new();
        match dice.byte() % 8 {
            // Small enough on the wire, and not inflated.
            0 => deflater.deflate(&vec![dice.byte(); 40 * usize::from(dice.number() % 4000)], &mut payload),
            1 => payload.extend_from_slice(dice.pick(SCRAPS)),
            2 => {
                for _ in 0..dice.byte() % 40 {
                    payload.extend_from_slice(dice.pick(SCRAPS));
                }
            }
            3 => {
                let count = usize::from(dice.byte());
                payload.extend_from_slice(dice.bytes(count));
            }
            _ => deflater.deflate(&self::payload(dice), &mut payload),
        }
        if dice.once_in(4) {
            let at = usize::from(dice.number()) % (payload.len() + 1);
            match dice.byte() % 4 {
                0 => payload.truncate(at),
                1 => payload.extend_from_slice(dice.bytes(8)),
                _ => {
                    if let Some(byte) = payload.get_mut(at) {
                        *byte ^= dice.byte();
                    }
                }
            }
        }
        let opcode = dice.pick(&[Opcode::Text, Opcode::Binary]);
        let (mut next, mut rest, mut reserved) = (opcode, &payload[..], 0x40);
        let mut push = |fin, next, part: &[u8], reserved| {
            let start = stream.len();
            frame(fin, next, Some([7, 8, 9, 1]), part, &mut stream);
            stream[start] |= reserved;
        };
        for _ in 0..dice.byte() % 3 {
            let (part, after) = rest.split_at(usize::from(dice.number()) % (rest.len() + 1));
            push(false, next, part, reserved);
            // A control frame is never compressed, and a continuation does not say it again.
            push(true, Opcode::Ping, b"between", if dice.once_in(64) { 0x40 } else { 0 });
            (next, rest, reserved) = (Opcode::Continuation, after, if dice.once_in(64) { 0x40 } else { 0 });
        }
        push(true, next, rest, reserved);
        messages.push((opcode, payload));
    }
    let decoded = decode(Role::Server, limit, pieces(&stream, &[]));
    assert_eq!(decoded, decode(Role::Server, limit, pieces(&stream, sizes)));
    let data = decoded.0.iter().filter(|event| !matches!(event, Owned::Ping(_)));
    let mut compared = 0;
    for (event, (opcode, payload)) in data.zip(&messages) {
        let bytes = match (event, opcode) {
            (Owned::Text(text), Opcode::Text) => text.as_bytes(),
            (Owned::Binary(bytes), Opcode::Binary) => bytes,
            other => panic!("{other:?}"),
        };
        assert!(bytes.len() <= limit as usize, "{} bytes are over the limit", bytes.len());
        if let Some(theirs) = oracle(payload, limit) {
            assert!(theirs == bytes, "inflated otherwise");
        }
        compared += 1;
    }
    if let Some(Failure::TooLarge | Failure::Deflated) = decoded.1
        && let Some((_, payload)) = messages.get(compared)
        && payload.len() <= message_bytes_max(limit) as usize
    {
        let theirs = oracle(payload, limit).filter(|bytes| bytes.len() <= limit as usize);
        assert_eq!(theirs, None, "{:?}, and it can be inflated", decoded.1);
    }
}

/// Pieces of DEFLATE: empty blocks, stored, fixed and last ones, ends, what is none.
const SCRAPS: &[&[u8]] = &[
    &[0],
    &[0, 0, 0, 0xff, 0xff],
    &[1, 0, 0, 0xff, 0xff],
    &[0, 3, 0, 0xfc, 0xff, b'a', b'b', b'c'],
    &[1, 3, 0, 0xfc, 0xff, b'x', b'y', b'z'],
    &[0, 3, 0, 0xfc, 0xfe, b'a'],
    &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
    &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
    &[0xf2, 0x00, 0x11, 0x00, 0x00],
    &[3, 0],
    &[2],
    &[6],
    &[0xff],
];

/// What miniz_oxide makes of a message; `None` where it makes nothing of it, or more than the limit.
fn oracle(message: &[u8], limit: u32) -> Option<Vec<u8>> {
    let input = [message, &[0, 0, 0xff, 0xff]].concat();
    // All of it lies in one buffer, so that a stream after the first finds what is before it.
    let mut out = vec![0; limit as usize + 1];
    let (mut rest, mut at) = (&input[..], 0);
    let mut state = DecompressorOxide::new();
    for _ in 0..16 {
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
        let (status, read, wrote) = decompress(&mut state, rest, &mut out, at, flags);
        rest = &rest[read..];
        at += wrote;
        match status {
            TINFLStatus::Done => {
                state = DecompressorOxide::new();
                if rest.is_empty() {
                    break;
                }
            }
            TINFLStatus::NeedsMoreInput => break,
            _ => return None,
        }
    }
    if !rest.is_empty() || at > limit as usize {
        return None;
    }
    out.truncate(at);
    Some(out)
}

/// Offers and their parts. Of each, what comes first is right.
const NAMES: &[&str] = &["permessage-deflate", "Permessage-DEFLATE", "x-webkit-deflate-frame", "mux", ""];
const PARAMETERS: &[&str] = &[
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits=15",
    "client_max_window_bits",
    "client_max_window_bits=9",
    "server_max_window_bits=8",
    "server_max_window_bits=\"10\"",
    "server_max_window_bits",
    "server_max_window_bits=08",
    "server_max_window_bits=16",
    "server_no_context_takeover=1",
    "client_max_window_bits=\"1",
    "=",
    "",
    "é",
    "unknown=1",
];

fn offers(dice: &mut Dice<'_>) {
    let mut values = Vec::new();
    for _ in 0..1 + dice.byte() % 2 {
        let mut value = String::new();
        for _ in 0..dice.byte() % 4 {
            value.push_str(if dice.once_in(2) { NAMES[0] } else { dice.pick(NAMES) });
            for _ in 0..dice.byte() % 4 {
                value.push_str(dice.pick(&["; ", ";", " ; ", "\t;\t"]));
                value.push_str(if dice.once_in(2) { dice.pick(&PARAMETERS[..4]) } else { dice.pick(PARAMETERS) });
            }
            value.push_str(dice.pick(&[", ", ",", " ,, ", ""]));
        }
        if dice.once_in(8) {
            value = String::from_utf8_lossy(dice.bytes(16)).into_owned();
        }
        values.push(value);
    }
    let values: Vec<_> = values.iter().map(String::as_str).collect();
    let window_bits_min = dice.pick(&[WINDOW_BITS_MIN, WINDOW_BITS_MAX]);
    let window_bytes_max = dice.pick(&[0, 512, 32_768]);
    match agree(&values, window_bits_min, window_bytes_max) {
        Ok(Some(agreed)) => {
            assert!((window_bits_min..=WINDOW_BITS_MAX).contains(&agreed.window_bits()));
            // What is answered was offered; and would be taken, were it an offer.
            let (answer, offered) = (agreed.to_string(), values.concat().to_ascii_lowercase());
            let window_bytes = agreed.window().map_or(0, |window| window.bytes_max());
            assert!(window_bytes <= window_bytes_max, "{answer}");
            for parameter in [
                "permessage-deflate",
                "client_no_context_takeover",
                "server_max_window_bits",
                "client_max_window_bits",
            ] {
                assert!(!answer.contains(parameter) || offered.contains(parameter), "{answer}");
            }
            assert_eq!(agree(&[&answer], window_bits_min, window_bytes_max), Ok(Some(agreed)));
        }
        Ok(None) => {}
        Err(failure) => assert_eq!(failure, BadExtensions),
    }
}
