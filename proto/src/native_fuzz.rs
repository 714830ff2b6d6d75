//! Fuzz body of [`crate::native`]: whatever can be read, in protobuf or JSON, can be written in both and read again as
//! the same; on TCP in any split.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{ClientFrame, ServerFrame, message, publish};
use crate::fuzz::{Dice, pieces};
use crate::native::{
    BadFrame, LENGTH_BYTES, begin_frame, end_frame, from_binary, from_json, message_frame, payload, payload_bytes,
    published_bytes, to_binary, to_json, unpack,
};

const LIMIT: usize = 512;

/// The body.
///
/// # Panics
/// Where a property does not hold.
pub fn run(data: &[u8]) {
    let mut dice = Dice::new(data);
    match dice.byte() % 5 {
        4 => payloads(dice.rest()),
        0 => tcp(&mut dice),
        1 => both_ways::<ServerFrame>(dice.rest()),
        2 => both_ways::<ClientFrame>(dice.rest()),
        _ => both_ways::<ClientFrame>(json(&mut dice).as_bytes()),
    }
}

fn payloads(bytes: &[u8]) {
    let payload = payload(Bytes::copy_from_slice(bytes));
    assert_eq!(payload_bytes(Some(&payload)), bytes);
    let published = match payload {
        message::Payload::Text(text) => publish::Payload::Text(text),
        message::Payload::Data(data) => publish::Payload::Data(data),
    };
    assert_eq!(published_bytes(Some(published)), bytes);
    assert!(payload_bytes(None).is_empty() && published_bytes(None).is_empty());
}

fn both_ways<M: Message + Default + Serialize + DeserializeOwned + PartialEq>(bytes: &[u8]) {
    let binary = from_binary::<M>(bytes).ok();
    let json = std::str::from_utf8(bytes).ok().and_then(|text| from_json::<M>(text).ok());
    for message in binary.into_iter().chain(json) {
        let mut again = Vec::new();
        to_binary(&message, &mut again);
        assert!(from_binary::<M>(&again).expect("it was just written") == message);
        let mut text = Vec::new();
        // An enum's number that has no name cannot be said.
        if to_json(&message, &mut text).is_ok() {
            let text = std::str::from_utf8(&text).expect("JSON is UTF-8");
            assert!(from_json::<M>(text).expect("it was just written") == message, "{text}");
        } else {
            assert!(text.is_empty());
        }
    }
}

/// JSON of a client, more or less.
fn json(dice: &mut Dice<'_>) -> String {
    const BODIES: &[&str] = &[
        r#""connect":{"token":"t","device":"d","name":"n","agent":"a"}"#,
        r#""subscribe":{"channel":"room:1","resume":{"log":"l","normal":"18446744073709551615","high":1},"history":200}"#,
        r#""publish":{"channel":"room:1","clientMessageId":"1","type":"text","text":"\u5f39\ud83d\ude00","style":{"mode":1,"size":25,"colour":16777215}}"#,
        r#""publish":{"client_message_id":"1","data":"AQID"}"#,
        r#""publish":{"text":"a","data":"AQID"}"#,
        r#""unsubscribe":{"channel":null}"#,
        r#""refresh":{}"#,
        r#""ping":{}"#,
        r#""later":[{"x":1e400}]"#,
        r#""request":-1"#,
    ];
    let mut text = format!("{{\"request\":{},{}}}", dice.number(), dice.pick(BODIES));
    if dice.once_in(3) {
        let at = usize::from(dice.byte()) % text.len();
        if text.is_char_boundary(at) {
            text.insert(at, char::from(dice.byte()));
        }
    }
    text
}

fn tcp(dice: &mut Dice<'_>) {
    let sizes = dice.bytes(2);
    let mut stream = Vec::new();
    let mut expected = Vec::new();
    let mut refused = None;
    while !dice.is_empty() {
        let kind = dice.byte();
        let bytes = if kind == 255 { LIMIT } else { usize::from(kind % 64) };
        let mut frame = dice.bytes(bytes).to_vec();
        frame.resize(bytes, kind);
        let start = begin_frame(&mut stream);
        if kind.is_multiple_of(2) {
            stream.extend_from_slice(&frame);
        } else {
            let framed = stream.len();
            message_frame(&frame, &mut stream);
            frame = stream[framed..].to_vec();
        }
        end_frame(start, &mut stream);
        if frame.len() > LIMIT {
            refused.get_or_insert(frame.len());
        }
        if refused.is_none() {
            expected.push(frame);
        }
    }
    let cut = if dice.once_in(2) { stream.len() } else { stream.len().saturating_sub(1) };
    let (mut waiting, mut count) = (Vec::new(), 0);
    'stream: for piece in pieces(&stream[..cut], sizes) {
        waiting.extend_from_slice(piece);
        let mut input = &waiting[..];
        loop {
            match unpack(&mut input, LIMIT) {
                Ok(Some(frame)) => {
                    assert_eq!(frame, expected[count]);
                    count += 1;
                }
                Ok(None) => break,
                Err(BadFrame::TooLarge(bytes)) => {
                    assert_eq!((Some(bytes as usize), count), (refused, expected.len()));
                    break 'stream;
                }
                Err(other) => panic!("{other}"),
            }
        }
        waiting = input.to_vec();
        assert!(waiting.len() < LENGTH_BYTES + LIMIT);
    }
    assert!(count >= expected.len().saturating_sub(1), "{count} of {}", expected.len());
}
