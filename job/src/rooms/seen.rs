//! Which messages of a partition have been seen in the last five minutes, so that one sent again has one effect.
//!
//! The sender is not looked at: a message ID already binds channel, sender and client message ID (rule 15). Time is the
//! log's, one clock for all logics. A replay therefore drops the same records.
//!
//! Invariants:
//! - A record is never a repetition of itself, however often its offset is read.
//! - Memory is bounded by a [`Budget`] that all partitions share. What is forgotten early is counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bus::Offset;
use proto::record::Post;
use rustc_hash::FxHashMap;
use siphasher::sip128::{Hasher128 as _, SipHasher13};

/// A message sent again within this time of its first copy is dropped, milliseconds: what the API promises.
pub(crate) const REPEAT_MS: i64 = 5 * 60 * 1000;

/// A partition keeps this many whatever the others use, so that a busy one cannot blind a quiet one.
const IDS_MIN: usize = 1000;

/// What several owners share: a number of bytes or of entries.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    pub(crate) fn take(&self, amount: usize) {
        self.used.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, amount: usize) {
        self.used.fetch_sub(amount, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.used() > self.max
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// How a message relates to the first one of its ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the first one.
    New,
    /// The first one has the same content.
    Repeated,
    /// The first one has other content.
    Conflicting,
}

/// The first message of an ID.
struct First {
    offset: Offset,
    time_ms: i64,
    /// A hash of its content, keyed as IDs are.
    content: u64,
}

/// The message IDs of one partition.
pub(crate) struct Seen {
    /// A new key for each owner, so that nobody can choose IDs that collide.
    hasher: SipHasher13,
    first: FxHashMap<u128, First>,
    order: VecDeque<(u128, Offset, i64)>,
    budget: Arc<Budget>,
    forgotten: u64,
}

impl Seen {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        let hasher = SipHasher13::new_with_keys(rand::random(), rand::random());
        Self { hasher, first: FxHashMap::default(), order: VecDeque::new(), budget, forgotten: 0 }
    }

    /// Whether the record at `offset` repeats an earlier one; if not, it is remembered as the first of its ID.
    pub(crate) fn see(&mut self, channel: &str, post: &Post, offset: Offset, time_ms: i64) -> Verdict {
        let (key, content) = (self.key(channel, &post.id), self.content(post));
        if let Some(first) = self.first.get(&key)
            && time_ms - first.time_ms < REPEAT_MS
        {
            return match () {
                () if first.offset >= offset => Verdict::New,
                () if first.content == content => Verdict::Repeated,
                () => Verdict::Conflicting,
            };
        }
        self.first.insert(key, First { offset, time_ms, content });
        self.order.push_back((key, offset, time_ms));
        self.budget.take(1);
        self.forget(time_ms);
        Verdict::New
    }

    /// How many were forgotten before their time since the last call.
    pub(crate) fn take_forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }

    fn forget(&mut self, now_ms: i64) {
        while let Some(&(key, offset, time_ms)) = self.order.front() {
            let early = now_ms - time_ms < REPEAT_MS;
            if early && (!self.budget.is_over() || self.order.len() <= IDS_MIN) {
                break;
            }
            self.forgotten += u64::from(early);
            self.order.pop_front();
            self.budget.give_back(1);
            // An ID that came again after its time has a later entry, which stays.
            if self.first.get(&key).is_some_and(|first| first.offset == offset) {
                self.first.remove(&key);
            }
        }
    }

    /// What a sender means by "the same message": payload, type and style.
    fn content(&self, post: &Post) -> u64 {
        use std::hash::Hasher as _;
        let style = post.style.unwrap_or_default();
        let mut hasher = self.hasher;
        for number in [style.mode, style.size, style.colour] {
            hasher.write_u32(number);
        }
        // No type has this byte.
        hasher.write(post.r#type.as_bytes());
        hasher.write_u8(0xff);
        hasher.write(&post.payload);
        hasher.finish()
    }

    fn key(&self, channel: &str, id: &str) -> u128 {
        use std::hash::Hasher as _;
        let mut hasher = self.hasher;
        hasher.write(channel.as_bytes());
        // No channel's name has this byte: (`a`, `bc`) is not (`ab`, `c`).
        hasher.write_u8(0xff);
        hasher.write(id.as_bytes());
        hasher.finish128().as_u128()
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.budget.give_back(self.order.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(id: &str, payload: &'static str) -> Post {
        Post { id: id.to_owned(), payload: payload.into(), ..Post::default() }
    }

    #[test]
    fn other_content_under_the_same_id_is_a_conflict() {
        use proto::client::Style;
        let mut seen = Seen::new(Budget::new(1_000_000));
        let first = post("a", "one");
        assert_eq!(seen.see("room:1", &first, 1, 0), Verdict::New);
        assert_eq!(seen.see("room:1", &first, 2, 1), Verdict::Repeated);
        let style = Some(Style { colour: 1, ..Style::default() });
        for other in
            [post("a", "two"), Post { r#type: "gift".into(), ..first.clone() }, Post { style, ..first.clone() }]
        {
            assert_eq!(seen.see("room:1", &other, 3, 2), Verdict::Conflicting);
        }
        assert_eq!(seen.see("room:1", &first, 4, 3), Verdict::Repeated, "the first one stands");
        assert_eq!(seen.see("room:1", &first, 1, 0), Verdict::New, "read again at the same offset");
        assert_eq!(seen.see("room:1", &Post { style: Some(Style::default()), ..first }, 5, 4), Verdict::Repeated);
    }

    #[test]
    fn a_repetition_is_one_for_five_minutes_and_never_of_itself() {
        let mut seen = Seen::new(Budget::new(1_000_000));
        assert_eq!(seen.see("room:1", &post("a", ""), 1, 0), Verdict::New);
        assert_eq!(seen.see("room:1", &post("a", ""), 1, 0), Verdict::New, "read again at the same offset");
        assert_eq!(seen.see("room:2", &post("a", ""), 2, 0), Verdict::New, "another room's");
        assert_eq!(seen.see("room:1", &post("a", ""), 3, REPEAT_MS - 1), Verdict::Repeated);
        assert_eq!(seen.see("room:1", &post("a", ""), 4, REPEAT_MS), Verdict::New, "its time is over");
        assert_eq!(
            seen.see("room:1", &post("a", ""), 5, REPEAT_MS + 1),
            Verdict::Repeated,
            "counted from the new first one"
        );
    }

    #[test]
    fn memory_stays_in_the_budget_and_what_is_forgotten_early_is_counted() {
        let budget = Budget::new(5_000);
        let mut seen = Seen::new(budget.clone());
        for i in 0..20_000 {
            assert_eq!(seen.see("room:1", &post(&i.to_string(), ""), i + 1, 0), Verdict::New);
        }
        assert_eq!(budget.used(), 5_000);
        assert_eq!(seen.take_forgotten(), 15_000);
        let sight = seen.see("room:1", &post("last", ""), 20_001, REPEAT_MS);
        assert_eq!(sight, Verdict::New, "five minutes later all the rest has gone");
        assert_eq!(budget.used(), 1);
        drop(seen);
        assert_eq!(budget.used(), 0);
    }
}
