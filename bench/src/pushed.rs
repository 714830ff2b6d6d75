//! A pushed message of the native dialect, of which only the payload is looked for: messages are what a viewer sees by the
//! million, and decoding all of one would cost ten times as much.

/// The payload of a `ServerFrame` that is a pushed `Message` (fields 16; 7 and 8 in it), as it stands in the bytes. `None`:
/// something else.
pub(crate) fn payload(frame: &[u8]) -> Option<&[u8]> {
    /// Field 16, length-delimited.
    const MESSAGE: [u8; 2] = [0x82, 0x01];
    let mut input = frame.strip_prefix(&MESSAGE)?;
    let bytes = varint(&mut input)?;
    let mut message = input.split_at_checked(usize::try_from(bytes).ok()?)?.0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => drop(varint(&mut message)?),
            1 => message = message.get(8..)?,
            2 => {
                let bytes = usize::try_from(varint(&mut message)?).ok()?;
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

fn varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *input.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
