//! A pushed message of the native dialect, of which only the payload is looked for: messages are what a viewer sees by the
//! million, and decoding all of one would cost ten times as much.

use prost::encoding::decode_varint;

/// The payload of a `ServerFrame` that is a pushed `Message` (fields 16; 7 and 8 in it), as it stands in the bytes. `None`:
/// something else.
pub(crate) fn payload(frame: &[u8]) -> Option<&[u8]> {
    /// Field 16, length-delimited.
    const MESSAGE: [u8; 2] = [0x82, 0x01];
    let mut input = frame.strip_prefix(&MESSAGE)?;
    let bytes = decode_varint(&mut input).ok()?;
    let mut message = input.split_at_checked(usize::try_from(bytes).ok()?)?.0;
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
