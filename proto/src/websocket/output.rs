//! Frames that we send: appended to a buffer that is the caller's, a server's unmasked.

use super::{CONTROL_BYTES_MAX, DEFLATED, HEADER_BYTES_MAX, Opcode, may_be_sent, unmask};
use crate::deflate::Deflater;

/// Appends the header of a server's unfragmented frame, whose payload of `payload_bytes` follows.
pub fn header(opcode: Opcode, payload_bytes: usize, out: &mut Vec<u8>) {
    head(true, opcode, false, payload_bytes, out);
}

fn head(fin: bool, opcode: Opcode, masked: bool, payload_bytes: usize, out: &mut Vec<u8>) {
    out.push(u8::from(fin) << 7 | opcode as u8);
    let masked = u8::from(masked) << 7;
    if payload_bytes <= 125 {
        out.push(masked | payload_bytes as u8);
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        out.push(masked | 126);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(masked | 127);
        out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
    }
}

/// Appends a server's unfragmented frame. A control frame's payload must not be over [`CONTROL_BYTES_MAX`].
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    frame(true, opcode, None, payload, out);
}

/// Appends a server's text or binary message where permessage-deflate was agreed on: compressed, where that is shorter.
pub fn encode_deflated(opcode: Opcode, payload: &[u8], deflater: &mut Deflater, out: &mut Vec<u8>) {
    debug_assert!(!opcode.is_control());
    let start = out.len();
    // A header's length follows from what it stands before: room for the longest, filled in from its end.
    let room = [0; HEADER_BYTES_MAX];
    out.extend_from_slice(&room);
    deflater.deflate(payload, out);
    let bytes = out.len() - start - room.len();
    if bytes >= payload.len() {
        out.truncate(start);
        return encode(opcode, payload, out);
    }
    let mut head_of = Vec::with_capacity(HEADER_BYTES_MAX);
    header(opcode, bytes, &mut head_of);
    head_of[0] |= DEFLATED;
    out.drain(start..start + room.len() - head_of.len());
    out[start..start + head_of.len()].copy_from_slice(&head_of);
}

/// Appends any frame: a fragment where not `fin`, a client's with its `mask` (which must not be guessable by whoever
/// chose the payload: RFC 6455 section 10.3).
pub fn frame(fin: bool, opcode: Opcode, mask: Option<[u8; 4]>, payload: &[u8], out: &mut Vec<u8>) {
    debug_assert!(!opcode.is_control() || (fin && payload.len() <= CONTROL_BYTES_MAX));
    out.reserve(HEADER_BYTES_MAX + payload.len());
    head(fin, opcode, mask.is_some(), payload.len(), out);
    out.extend_from_slice(mask.as_ref().map_or(&[], |mask| &mask[..]));
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        unmask(&mut out[start..], mask);
    }
}

/// Appends a server's close frame; of `reason`, what fits.
pub fn close(code: u16, reason: &str, out: &mut Vec<u8>) {
    debug_assert!(may_be_sent(code));
    let reason = &reason.as_bytes()[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    header(Opcode::Close, 2 + reason.len(), out);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason);
}
