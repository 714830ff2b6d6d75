//! Pushed messages of the native dialect, of which only the payload is looked for: messages are what a viewer sees by the
//! million, and decoding all of one would cost ten times as much.

use prost::encoding::decode_varint;

/// `ServerFrame.message` (16) and `ServerFrame.batch` (19), length-delimited.
const MESSAGE: [u8; 2] = [0x82, 0x01];
const BATCH: [u8; 2] = [0x9a, 0x01];
/// `Batch.messages` (1), length-delimited.
const OF_BATCH: [u8; 1] = [0x0a];

/// Tells the payloads, as they stand in the bytes, of a `ServerFrame` that pushes one `Message` or a batch of them; one
/// without a payload is passed over. `false`: it is something else, or does not make sense.
pub(crate) fn payloads<'a>(frame: &'a [u8], mut told: impl FnMut(&'a [u8])) -> bool {
    if let Some((message, _)) = field(&MESSAGE, frame) {
        payload(message).into_iter().for_each(told);
        return true;
    }
    let Some((mut batch, _)) = field(&BATCH, frame) else { return false };
    while let Some((message, rest)) = field(&OF_BATCH, batch) {
        payload(message).into_iter().for_each(&mut told);
        batch = rest;
    }
    batch.is_empty()
}

/// What a field's key is followed by at the beginning of `bytes`, and what comes after it.
fn field<'a>(key: &[u8], bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let mut input = bytes.strip_prefix(key)?;
    let length = decode_varint(&mut input).ok()?;
    input.split_at_checked(usize::try_from(length).ok()?)
}

/// The payload of a `Message` (fields 7 and 8).
fn payload(mut message: &[u8]) -> Option<&[u8]> {
    while !message.is_empty() {
        let key = decode_varint(&mut message).ok()?;
        match key & 7 {
            0 => drop(decode_varint(&mut message).ok()?),
            1 => message = message.get(8..)?,
            2 => {
                let bytes = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
                let (value, rest) = message.split_at_checked(bytes)?;
                if matches!(key >> 3, 7 | 8) {
                    return Some(value);
                }
                message = rest;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    None
}
