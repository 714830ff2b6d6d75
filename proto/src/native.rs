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
//! - `a_message_that_was_encoded_once_is_not_encoded_again`: [`message_frame`] and [`batch_frame`] give what [`to_binary`]
//!   would.
//! - `an_oversized_frame_is_refused_on_its_length`.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{message, publish};
use crate::json;

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
    /// JSON of the right shape, a member of which has a wrong value. Only the request that it makes is wrong.
    #[error("a wrong value: {why}")]
    Value {
        /// The frame's `request`; 0 where it has none.
        request: u32,
        /// Which value, in serde's words.
        why: serde_json::Error,
    },
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

/// Reads a message of JSON: 64-bit numbers as strings or numbers, bytes as base64, null as absent, unknown members
/// ignored; half a surrogate pair becomes U+FFFD ([`json`]).
///
/// # Errors
/// [`BadFrame::Json`] where it is no JSON object, [`BadFrame::Value`] where it is one, and no such message.
pub fn from_json<M: DeserializeOwned>(text: &str) -> Result<M, BadFrame> {
    let refused = match serde_json::from_str(text) {
        Ok(message) => return Ok(message),
        Err(refused) => refused,
    };
    let text = json::whole_surrogates(text);
    let value: Value = serde_json::from_str(&text).map_err(|_| refused)?;
    if !value.is_object() {
        return Err(BadFrame::Json(serde::de::Error::custom("a frame is a JSON object")));
    }
    let value = json::mapped(value);
    let request = value.get("request").and_then(|request| match request {
        Value::String(digits) => digits.parse().ok(),
        number => number.as_u64(),
    });
    let request = request.and_then(|request| u32::try_from(request).ok()).unwrap_or_default();
    serde_json::from_value(value).map_err(|why| BadFrame::Value { request, why })
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
    field(MESSAGE_FIELD, message, out);
}

/// Appends a `ServerFrame` (protobuf) that pushes a batch of already encoded `client::Message`s.
pub fn batch_frame<'a>(messages: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let mut batch = Vec::new();
    messages.for_each(|message| field(BATCH_MESSAGES_FIELD, message, &mut batch));
    field(BATCH_FIELD, &batch, out);
}

/// `ServerFrame.message`.
const MESSAGE_FIELD: u32 = 16;
/// `ServerFrame.batch`.
const BATCH_FIELD: u32 = 19;
/// `Batch.messages`.
const BATCH_MESSAGES_FIELD: u32 = 1;

/// Appends a field of bytes.
fn field(number: u32, value: &[u8], out: &mut Vec<u8>) {
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// TCP: takes the first frame off `input`, without its length; `None`, and `input` untouched, while it is incomplete.
///
/// # Errors
/// [`BadFrame::TooLarge`] on the length, before anything waits for the frame.
pub fn unpack<'a>(input: &mut &'a [u8], frame_bytes_max: usize) -> Result<Option<&'a [u8]>, BadFrame> {
    let Some(length) = input.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
        return Ok(None);
    };
    if length as usize > frame_bytes_max && !planted!("native_limit") {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::{Batch, ClientFrame, Message as Chat, Publish, ServerFrame, client_frame, server_frame};

    /// Names of the cases: protobuf's conformance suite, `json` category, for the kinds of fields that clients send.
    #[test]
    fn the_json_mapping_is_read_as_protobuf_demands() {
        let publish = |members: &str| format!(r#"{{"request":3,"publish":{{"channel":"room:1",{members}}}}}"#);
        let size = |size: &str| publish(&format!(r#""text":"x","style":{{"size":{size}}}"#));
        let text = publish(r#""text":"x""#);
        for (name, json, as_if) in [
            ("Uint32FieldMaxFloatValue", size("4294967295.0"), size("4294967295")),
            ("Int32FieldFloatTrailingZero", size("50.000"), size("50")),
            ("Int32FieldExponentialFormat", size("5e1"), size("50")),
            ("Int32FieldString", size(r#""50""#), size("50")),
            (
                "AllFieldAcceptNull",
                publish(r#""text":"x","type":null,"style":null,"clientMessageId":null"#),
                text.clone(),
            ),
            ("OneofFieldNullFirst", publish(r#""data":null,"text":"x""#), text.clone()),
            ("OneofFieldNullSecond", publish(r#""text":"x","data":null"#), text.clone()),
            (
                "OriginalProtoFieldName",
                publish(r#""text":"x","client_message_id":"a""#),
                publish(r#""text":"x","clientMessageId":"a""#),
            ),
            ("IgnoreUnknownJsonObject", publish(r#""text":"x","later":{"a":[1.5,null]}"#), text.clone()),
            ("BytesFieldBase64Url", publish(r#""data":"-_8""#), publish(r#""data":"+/8=""#)),
            (
                "a body that is null beside another",
                r#"{"request":3,"ping":null,"subscribe":{"channel":"room:1"}}"#.into(),
                r#"{"request":3,"subscribe":{"channel":"room:1"}}"#.into(),
            ),
        ] {
            let read = from_json::<ClientFrame>(&json).unwrap_or_else(|error| panic!("{name}: {json}: {error}"));
            assert_eq!(read, from_json::<ClientFrame>(&as_if).unwrap(), "{name}");
        }
        for (name, json) in [
            ("Uint32FieldNotInteger", size("0.5")),
            ("Uint32FieldTooLarge", size("4294967296")),
            ("Uint32FieldNegative", size("-1")),
            ("Uint32FieldNotNumber", size(r#""x3x3""#)),
            ("OneofFieldDuplicate", publish(r#""text":"x","data":"eA==""#)),
            ("StringFieldNotAString", publish(r#""text":12345"#)),
            ("BytesFieldInvalidBase64Characters", publish(r#""data":"-_=!""#)),
        ] {
            match from_json::<ClientFrame>(&json) {
                Err(BadFrame::Value { request, .. }) => assert_eq!(request, 3, "{name}"),
                other => panic!("{name}: {json}: {other:?}"),
            }
        }
        for text in ["", "{", "[]", "null", "12", "\"a\"", "{\"request\":3"] {
            assert!(matches!(from_json::<ClientFrame>(text), Err(BadFrame::Json(_))), "{text}");
        }
    }

    fn chat(payload: &[u8]) -> Chat {
        Chat {
            channel: "room:1000".into(),
            id: "abc".into(),
            offset: u64::MAX,
            time_ms: 1_700_000_000_000,
            r#type: "text".into(),
            payload: Some(super::payload(Bytes::copy_from_slice(payload))),
            ..Chat::default()
        }
    }

    fn push(message: Chat) -> ServerFrame {
        ServerFrame { request: 0, body: Some(server_frame::Body::Message(message)) }
    }

    #[test]
    fn a_message_that_was_encoded_once_is_not_encoded_again() {
        for length in [0, 1, 100, 127, 128, 20_000] {
            let message = chat(&vec![b'x'; length]);
            let (mut framed, mut encoded) = (Vec::new(), Vec::new());
            message_frame(&message.encode_to_vec(), &mut framed);
            to_binary(&push(message), &mut encoded);
            assert_eq!(framed, encoded);
        }
        let messages = [0, 100, 20_000].map(|length| chat(&vec![b'x'; length]));
        let each = messages.each_ref().map(|message| message.encode_to_vec());
        let (mut framed, mut encoded) = (Vec::new(), Vec::new());
        batch_frame(each.iter().map(|message| &message[..]), &mut framed);
        let body = Some(server_frame::Body::Batch(Batch { messages: messages.into() }));
        to_binary(&ServerFrame { request: 0, body }, &mut encoded);
        assert_eq!(framed, encoded);
    }

    #[test]
    fn json_says_ids_as_strings_and_payloads_as_text_or_base64() {
        let mut out = Vec::new();
        to_json(&push(chat("弹幕".as_bytes())), &mut out).expect("sayable");
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(text.contains(r#""offset":"18446744073709551615""#) && text.contains(r#""text":"弹幕""#), "{text}");
        let mut out = Vec::new();
        to_json(&push(chat(b"\xff\xfe")), &mut out).expect("sayable");
        assert!(String::from_utf8_lossy(&out).contains(r#""data":"//4=""#));
    }

    #[test]
    fn json_ignores_members_of_a_newer_release_and_leaves_out_its_enums() {
        let frame = from_json::<ClientFrame>(r#"{"request":1,"publish":{"channel":"room:1","text":"x","later":[1]}}"#)
            .expect("readable");
        let Some(client_frame::Body::Publish(publish)) = frame.body else { panic!("{frame:?}") };
        assert_eq!(published_bytes(publish.payload), "x");
        let mut out = b"before".to_vec();
        let newer = Chat { lane: 77, ..Chat::default() };
        assert!(matches!(to_json(&push(newer), &mut out), Err(BadFrame::Json(_))));
        assert_eq!(out, b"before");
    }

    #[test]
    fn the_longest_payload_of_a_client_fits_a_frame_in_every_way_of_writing_it() {
        let worst = format!(r#"{{"request":1,"publish":{{"text":"{}"}}}}"#, "\\u0001".repeat(4096));
        assert!(worst.len() + 2048 < CLIENT_FRAME_BYTES_MAX);
        let frame: ClientFrame = from_json(&worst).expect("readable");
        let Some(client_frame::Body::Publish(Publish { payload, .. })) = frame.body else { panic!() };
        assert_eq!(published_bytes(payload).len(), 4096);
    }

    #[test]
    fn an_oversized_frame_is_refused_on_its_length() {
        let mut input = &[0, 0, 0x80, 1][..];
        assert!(matches!(unpack(&mut input, CLIENT_FRAME_BYTES_MAX), Err(BadFrame::TooLarge(0x8001))));
        let mut input = &[0, 0, 0x80, 0, 1, 2][..];
        assert!(matches!(unpack(&mut input, CLIENT_FRAME_BYTES_MAX), Ok(None)));
        assert_eq!(input.len(), 6);
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let deep = format!(r#"{{"later":{}"#, "[".repeat(10_000));
        assert!(matches!(from_json::<ClientFrame>(&deep), Err(BadFrame::Json(_))));
    }

    #[test]
    fn smoke_of_the_fuzz_body() {
        crate::fuzz::smoke(crate::native_fuzz::run);
    }

    proptest! {
        #[test]
        fn frames_on_tcp_come_out_as_they_went_in(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..8), cut: prop::sample::Index) {
            let mut stream = Vec::new();
            for frame in &frames {
                let start = begin_frame(&mut stream);
                stream.extend_from_slice(frame);
                end_frame(start, &mut stream);
            }
            let mut read = Vec::new();
            let cut = cut.index(stream.len() + 1);
            let mut waiting = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                waiting.extend_from_slice(piece);
                let mut input = &waiting[..];
                while let Some(frame) = unpack(&mut input, 100).expect("within the limit") {
                    read.push(frame.to_vec());
                }
                waiting = input.to_vec();
            }
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn a_payload_is_text_where_it_is_utf8(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let payload = payload(Bytes::copy_from_slice(&bytes));
            prop_assert_eq!(payload_bytes(Some(&payload)), &bytes[..]);
            prop_assert_eq!(matches!(payload, message::Payload::Text(_)), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
