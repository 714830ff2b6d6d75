//! What stands in a message's payload: enough to tell, on its arrival, which one it is and how late it comes.
//!
//! 32 characters of lower-case hex (run, number, intended time), then words of chat, others for each message, up to the
//! size asked for: ASCII, so that every dialect takes it as text, and what compresses it has as much to do as with chat.

/// Shortest payload, bytes.
pub(crate) const NOTE_BYTES: usize = 32;

/// What people write below a live stream.
const WORDS: [&str; 64] = [
    "666",
    "hahaha",
    "gg",
    "lol",
    "wow",
    "nice",
    "first",
    "hello",
    "hi",
    "the",
    "a",
    "is",
    "this",
    "what",
    "so",
    "good",
    "best",
    "stream",
    "song",
    "play",
    "again",
    "please",
    "one",
    "more",
    "love",
    "it",
    "you",
    "are",
    "king",
    "queen",
    "from",
    "here",
    "how",
    "old",
    "new",
    "game",
    "win",
    "lost",
    "that",
    "was",
    "close",
    "clutch",
    "pog",
    "233333",
    "awsl",
    "respect",
    "thanks",
    "for",
    "all",
    "everyone",
    "good night",
    "see you",
    "tomorrow",
    "when",
    "next",
    "who",
    "where",
    "why",
    "no",
    "yes",
    "!!!",
    "???",
    "omg",
    "big",
];

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
    /// The payload, `bytes` long (at least [`NOTE_BYTES`]).
    pub(crate) fn payload(self, bytes: usize) -> String {
        let mut payload = format!("{:08x}{:08x}{:016x}", self.run, self.number, self.intended_ns);
        // A linear congruential generator (Knuth's MMIX), so that a message is the same however often it is made.
        let mut state = u64::from(self.run) << 32 | u64::from(self.number);
        while payload.len() < bytes {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            payload.push(' ');
            payload.push_str(WORDS[(state >> 58) as usize]);
        }
        payload.truncate(bytes.max(NOTE_BYTES));
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
        assert_eq!(Note::read(b"hello"), None);
        assert_eq!(Note::read(&[b'x'; 64]), None);
    }
}
