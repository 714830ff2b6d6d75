//! What was published lately under which message ID: the same ID with other content is a conflict (README, "Errors").
//!
//! It knows this logic's own publishes only. What another logic took, the room's owner finds, and tells the sender's
//! session (`client.Refused`).
//!
//! Invariant: `what_is_remembered_is_bounded_in_number_and_time`.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use proto::client::Style;

/// How long an ID is remembered at least, where there is room: as long as a repeat has no effect, milliseconds.
const REPEAT_MS: i64 = 5 * 60 * 1000;
/// IDs of a generation, some 40 bytes each; there are two. Over it the older one is forgotten early: then only the owner
/// sees the conflict.
const GENERATION_MAX: usize = 256 * 1024;

/// See the module's opening.
#[derive(Debug)]
pub(crate) struct RecentIds {
    hasher: RandomState,
    generation_max: usize,
    /// Since when, and what: the one that is filled, and the one before.
    newer: (i64, HashMap<String, u64>),
    older: HashMap<String, u64>,
}

impl Default for RecentIds {
    fn default() -> Self {
        Self::new(GENERATION_MAX)
    }
}

impl RecentIds {
    fn new(generation_max: usize) -> Self {
        Self { hasher: RandomState::new(), generation_max, newer: (0, HashMap::new()), older: HashMap::new() }
    }

    /// What content comes down to: type, payload and style, as the owner compares them.
    pub(crate) fn content(&self, kind: &str, payload: &[u8], style: Option<&Style>) -> u64 {
        self.hasher.hash_one((kind, payload, style.map(|style| (style.mode, style.size, style.colour))))
    }

    /// Whether `id` was published with other content.
    pub(crate) fn conflicts(&self, id: &str, content: u64) -> bool {
        let known = self.newer.1.get(id).or_else(|| self.older.get(id));
        known.is_some_and(|known| *known != content)
    }

    /// `id` is in the log, or may be.
    pub(crate) fn remember(&mut self, id: String, content: u64, now_ms: i64) {
        let (since_ms, newer) = &mut self.newer;
        if newer.len() >= self.generation_max || now_ms - *since_ms >= REPEAT_MS {
            self.older = std::mem::take(newer);
            *since_ms = now_ms;
        }
        newer.entry(id).or_insert(content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_id_with_other_content_is_a_conflict() {
        let mut ids = RecentIds::default();
        let style = Style { mode: 1, size: 25, colour: 0xff };
        let first = ids.content("text", b"hi", Some(&style));
        assert!(!ids.conflicts("a", first));
        ids.remember("a".into(), first, 0);
        assert!(!ids.conflicts("a", ids.content("text", b"hi", Some(&style))));
        for (kind, payload, style) in
            [("text", &b"ho"[..], Some(&style)), ("gift", b"hi", Some(&style)), ("text", b"hi", None)]
        {
            assert!(ids.conflicts("a", ids.content(kind, payload, style)), "{kind} {payload:?}");
        }
        // A conflict does not take the first one's place.
        ids.remember("a".into(), ids.content("text", b"ho", None), 1);
        assert!(!ids.conflicts("a", first));
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_time() {
        let mut ids = RecentIds::new(10);
        for number in 0..100 {
            ids.remember(number.to_string(), 1, 1);
            assert!(ids.newer.1.len() + ids.older.len() <= 20);
        }
        assert!(ids.conflicts("99", 2) && !ids.conflicts("1", 2));
        let mut ids = RecentIds::default();
        ids.remember("a".into(), 1, 1000);
        ids.remember("b".into(), 1, 1000 + REPEAT_MS - 1);
        assert!(ids.conflicts("a", 2), "for five minutes at least");
        ids.remember("c".into(), 1, 1000 + 2 * REPEAT_MS);
        ids.remember("d".into(), 1, 1000 + 3 * REPEAT_MS);
        assert!(!ids.conflicts("a", 2), "not for ever");
    }
}
