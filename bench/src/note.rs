//! What stands in a message's payload: enough to tell, on its arrival, which one it is and how late it comes.
//!
//! 32 characters of lower-case hex (run, number, intended time), then what somebody says in a chat, others for each message:
//! UTF-8, so that every dialect takes it as text, and what compresses it has as much to do as with chat.

use crate::chat;

/// Shortest payload, bytes.
pub(crate) const NOTE_BYTES: usize = 32;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    /// The run that it is of: another's message is none of ours.
    pub(crate) run: u32,
    /// In the order of intended times, from 0.
    pub(crate) number: u32,
    /// When it was to be sent, nanoseconds since the run's zero.
    pub(crate) intended_ns: u64,
}

impl Note {
    /// The payload: `bytes` long (at least [`NOTE_BYTES`]), what is said drawn out or cut off; or with one message of chat,
    /// as long as it is.
    pub(crate) fn payload(self, bytes: impl Into<Option<usize>>) -> String {
        let mut payload = format!("{:08x}{:08x}{:016x}", self.run, self.number, self.intended_ns);
        let mut say = |number: u64| {
            payload.push(' ');
            payload.push_str(&chat::text(number));
            payload.len()
        };
        let mut number = u64::from(self.number);
        let Some(bytes) = bytes.into() else {
            say(number);
            return payload;
        };
        while say(number) < bytes {
            // Far from the next messages', which say the same otherwise.
            number += 1 << 32;
        }
        payload.truncate(payload.floor_char_boundary(bytes.max(NOTE_BYTES)));
        payload.extend(std::iter::repeat_n(' ', bytes.saturating_sub(payload.len())));
        payload
    }

    /// `None`: not a payload of ours.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (head, _) = payload.split_at_checked(NOTE_BYTES)?;
        let (run, rest) = head.split_at(8);
        let (number, intended) = rest.split_at(8);
        Some(Self { run: hex(run)? as u32, number: hex(number)? as u32, intended_ns: hex(intended)? })
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for bytes in [0, 32, 33, 200] {
            let note = Note { run: 0xdead_beef, number: u32::MAX, intended_ns: 1 << 60 };
            let payload = note.payload(bytes);
            assert_eq!(payload.len(), bytes.max(NOTE_BYTES));
            assert_eq!(Note::read(payload.as_bytes()), Some(note));
        }
        let note = |number| Note { run: 1, number, intended_ns: 5 };
        let said = note(9).payload(None);
        assert_eq!((Note::read(said.as_bytes()), &said[NOTE_BYTES + 1..]), (Some(note(9)), &chat::text(9)[..]));
        // Cut at every byte, in the middle of letters too.
        for bytes in NOTE_BYTES..200 {
            assert!((0..50).all(|number| note(number).payload(bytes).len() == bytes), "{bytes}");
        }
        assert_ne!(note(9).payload(150)[NOTE_BYTES..], note(10).payload(150)[NOTE_BYTES..]);
        assert_eq!(Note::read(b"hello"), None);
        assert_eq!(Note::read(&[b'x'; 64]), None);
    }
}
