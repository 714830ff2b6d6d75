//! The native protocol's frames (schema: `schema/barrage/client/v1/client.proto`): protobuf, its JSON mapping, and the
//! lengths that frame it on TCP. Generic over the message, so that servers and clients use the same functions.
//!
//! ```text
//!   WebSocket binary ──────────────▶ from_binary ─▶ ClientFrame       ServerFrame ─▶ to_binary ─▶ WebSocket binary
//!   TCP: MAGIC, then unpack ─▶──────────┘                                 └──────▶ begin_frame, to_binary, end_frame
//!   WebSocket text ────────────────▶ from_json                        ServerFrame ─▶ to_json ─▶ WebSocket text
//! ```
//!
//! Invariants, each the name of a test:
//! - `a_message_that_was_encoded_once_is_not_encoded_again`: [`message_frame`] gives what [`to_binary`] would.
//! - `an_oversized_frame_is_refused_on_its_length`.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{message, publish};

/// What a client's TCP connection begins with; frames follow. The server's frames have nothing before them.
pub const MAGIC: &[u8; 4] = b"BRG1";

/// Subprotocol of protobuf in binary messages.
pub const SUBPROTOCOL_BINARY: &str = "barrage.v1";

/// Subprotocol of JSON in text messages.
pub const SUBPROTOCOL_JSON: &str = "barrage.v1.json";

/// Longest frame from a client, bytes: a payload of 4 KiB is up to 24 KiB as JSON, each byte an escape of six; the
/// rest of a frame, a token among it, fits beside it. Over it: [`BadFrame::TooLarge`], close with 1009.
pub const CLIENT_FRAME_BYTES_MAX: usize = 32 * 1024;

/// Bytes of the big-endian length before each frame on TCP.
pub const LENGTH_BYTES: usize = 4;

/// A frame that cannot be read, or be said. The sender's fault, no use retrying.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// On TCP: longer than allowed.
    #[error("a frame of {0} bytes")]
    TooLarge(u32),
    /// Not protobuf of this message.
    #[error("not a frame: {0}")]
    Binary(#[from] prost::DecodeError),
    /// Not JSON of this message; on encoding, an enum's number that this release has no name for.
    #[error("not a frame: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a message of protobuf.
///
/// # Errors
/// [`BadFrame::Binary`].
pub fn from_binary<M: Message + Default>(bytes: &[u8]) -> Result<M, BadFrame> {
    Ok(M::decode(bytes)?)
}

/// Appends a message as protobuf.
pub fn to_binary<M: Message>(message: &M, out: &mut Vec<u8>) {
    message.encode(out).expect("a Vec takes what it is given");
}

/// Reads a message of JSON: 64-bit numbers as strings or numbers, bytes as base64, unknown members ignored.
///
/// # Errors
/// [`BadFrame::Json`].
pub fn from_json<M: DeserializeOwned>(text: &str) -> Result<M, BadFrame> {
    Ok(serde_json::from_str(text)?)
}

/// Appends a message as JSON: 64-bit numbers as strings, bytes as base64. On an error `out` is as it was.
///
/// # Errors
/// [`BadFrame::Json`] where an enum has a number that this release has no name for: from a newer one; leave it out.
pub fn to_json<M: Serialize>(message: &M, out: &mut Vec<u8>) -> Result<(), BadFrame> {
    let start = out.len();
    Ok(serde_json::to_writer(&mut *out, message).inspect_err(|_| out.truncate(start))?)
}

/// Appends a `ServerFrame` (protobuf) that pushes an already encoded `client::Message`.
pub fn message_frame(message: &[u8], out: &mut Vec<u8>) {
    prost::encoding::encode_key(MESSAGE_FIELD, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(message.len() as u64, out);
    out.extend_from_slice(message);
}

/// `ServerFrame.message`.
const MESSAGE_FIELD: u32 = 16;

/// TCP: takes the first frame off `input`, without its length; `None`, and `input` untouched, while it is incomplete.
///
/// # Errors
/// [`BadFrame::TooLarge`] on the length, before anything waits for the frame.
pub fn unpack<'a>(input: &mut &'a [u8], frame_bytes_max: usize) -> Result<Option<&'a [u8]>, BadFrame> {
    let Some(length) = input.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
        return Ok(None);
    };
    if length as usize > frame_bytes_max {
        return Err(BadFrame::TooLarge(length));
    }
    Ok(input.split_off(..LENGTH_BYTES + length as usize).map(|frame| &frame[LENGTH_BYTES..]))
}

/// TCP: leaves room for a frame's length in `out` and says where; encode the frame, then call [`end_frame`] with it.
#[must_use]
pub fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    start
}

/// TCP: writes the length of the frame that began at `start`.
///
/// # Panics
/// Where `start` is not what [`begin_frame`] gave, or the frame is of 4 GiB.
pub fn end_frame(start: usize, out: &mut [u8]) {
    let length = u32::try_from(out.len() - start - LENGTH_BYTES).expect("frames are bounded far below 4 GiB");
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// A message's payload: `text` where it is UTF-8, else `data`.
#[must_use]
pub fn payload(bytes: Bytes) -> message::Payload {
    match simdutf8::basic::from_utf8(&bytes) {
        Ok(text) => message::Payload::Text(text.to_owned()),
        Err(_) => message::Payload::Data(bytes),
    }
}

/// The bytes of a message's payload, whichever way it stands there; empty where there is none.
#[must_use]
pub fn payload_bytes(payload: Option<&message::Payload>) -> &[u8] {
    match payload {
        Some(message::Payload::Text(text)) => text.as_bytes(),
        Some(message::Payload::Data(data)) => data,
        None => &[],
    }
}

/// The bytes of what a client publishes; empty where there is none.
#[must_use]
pub fn published_bytes(payload: Option<publish::Payload>) -> Bytes {
    match payload {
        Some(publish::Payload::Text(text)) => text.into(),
        Some(publish::Payload::Data(data)) => data,
        None => Bytes::new(),
    }
}
