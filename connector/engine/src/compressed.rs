//! Compressed batches that the cores of a process share (rule 26): what is costly to make is made once, by the core that
//! needs it first. Not a ring: a core copies a batch into its own, and this forgets it soon after.
//!
//! ```text
//!   a core's entries ─▶ claim: from the first offset on, which batch? ─▶ Made, a cell ─▶ filled by whoever is first
//! ```
//!
//! Cores gather on their own, so two of them seldom have the same messages waiting. What makes their batches the same is
//! that whoever begins one decides how far it goes, and that a batch of one's own stops where another core's begins.
//! A core that lacks the end of a batch (it is still in its queue, or was dropped) makes its own, and meets the others at
//! the next beginning.
//!
//! Invariants, each the name of a test:
//! - `what_one_core_made_another_takes`: also where the second has more waiting.
//! - `a_core_that_lacks_a_batchs_end_makes_its_own_and_meets_the_others_again`.
//! - `only_the_newest_batches_are_kept`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use rustc_hash::FxHashMap;

use super::{encoding::Encoding, ring::Count};

/// Batches that are kept: of each room that is busy now, the last ones of each encoding. The cores take them within
/// milliseconds of each other; one that comes later makes its own. At 16 KiB before compression: a few MiB.
const BATCHES_MAX: usize = 1024;

/// See the module's opening.
#[derive(Debug)]
pub struct Compressed {
    /// With nobody to share with, nothing is kept.
    alone: bool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    rooms: FxHashMap<Arc<str>, Vec<LaneBatches>>,
    /// BatchKey oldest batch goes next.
    order: VecDeque<(Arc<str>, usize, Encoding)>,
}

/// The batches of a room's lane in one encoding, oldest first.
#[derive(Debug)]
struct LaneBatches {
    lane: usize,
    encoding: Encoding,
    batches: VecDeque<SharedBatch>,
}

/// Messages of a log, named by their offsets: the same ones wherever they are the same.
#[derive(Debug)]
struct SharedBatch {
    log: Arc<str>,
    first: u64,
    last: u64,
    messages: usize,
    made: Arc<OnceLock<Made>>,
}

/// A batch's frames.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// One after another.
    pub(super) bytes: Vec<u8>,
    /// Of each: where it ends, its messages, the offset of the last.
    pub(super) frames: Vec<(usize, Count, u64)>,
}

/// A part of what a core has waiting, and its batch: to be filled where it is empty.
pub(super) type Claim = (usize, Arc<OnceLock<Made>>);

/// BatchKey batches are meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchKey<'a> {
    pub(super) channel: &'a str,
    pub(super) log: &'a str,
    pub(super) lane: usize,
    pub(super) encoding: Encoding,
}

impl Compressed {
    /// For as many cores.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self { alone: cores < 2, kept: Mutex::default() }
    }

    /// Parts what waits (offset and bytes of each message, in order) into batches of at most `bytes_max`, unless of one
    /// message. The lock is held for looking up only; whoever finds an empty cell under way waits for one compression.
    pub(super) fn claim(&self, whose: BatchKey<'_>, waiting: &[(u64, usize)], bytes_max: usize) -> Vec<Claim> {
        let (mut claims, mut at) = (Vec::new(), 0);
        let mut kept = (!self.alone).then(|| self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        while at < waiting.len() {
            let rest = &waiting[at..];
            let (mut bytes, mut end) = (rest[0].1, 1);
            while end < rest.len() && bytes + rest[end].1 <= bytes_max {
                bytes += rest[end].1;
                end += 1;
            }
            let (messages, made) = match kept.as_deref_mut() {
                None => (end, Arc::default()),
                Some(kept) => kept.claim(whose, rest, end),
            };
            claims.push((messages, made));
            at += messages;
        }
        claims
    }
}

impl Kept {
    /// The batch that begins with the first of `rest`, of which at most `end` make one.
    fn claim(&mut self, whose: BatchKey<'_>, rest: &[(u64, usize)], mut end: usize) -> Claim {
        let BatchKey { channel, log, lane, encoding } = whose;
        let name = match self.rooms.get_key_value(channel) {
            Some((name, _)) => name.clone(),
            None => channel.into(),
        };
        let lines = self.rooms.entry(name.clone()).or_default();
        let is_it = |line: &LaneBatches| line.lane == lane && line.encoding == encoding;
        let index = lines.iter().position(is_it).unwrap_or_else(|| {
            lines.push(LaneBatches { lane, encoding, batches: VecDeque::new() });
            lines.len() - 1
        });
        let batches = &mut lines[index].batches;
        let first = rest[0].0;
        let mut theirs = false;
        for batch in batches.iter().filter(|batch| *batch.log == *log) {
            let at = |offset: u64| rest.binary_search_by_key(&offset, |(offset, _)| *offset);
            if batch.first == first {
                if at(batch.last) == Ok(batch.messages - 1) {
                    return (batch.messages, batch.made.clone());
                }
                theirs = true;
            } else if batch.first > first
                && let Ok(begins) = at(batch.first)
            {
                end = end.min(begins);
            }
        }
        let made = Arc::<OnceLock<Made>>::default();
        if !theirs {
            let log = batches.back().map(|batch| &batch.log).filter(|kept| ***kept == *log).cloned();
            let log = log.unwrap_or_else(|| whose.log.into());
            batches.push_back(SharedBatch { log, first, last: rest[end - 1].0, messages: end, made: made.clone() });
            self.order.push_back((name, lane, encoding));
            self.trim();
        }
        (end, made)
    }

    fn trim(&mut self) {
        while self.order.len() > BATCHES_MAX {
            let Some((name, lane, encoding)) = self.order.pop_front() else { return };
            let Some(lines) = self.rooms.get_mut(&name) else { continue };
            if let Some(at) = lines.iter().position(|line| line.lane == lane && line.encoding == encoding) {
                lines[at].batches.pop_front();
                if lines[at].batches.is_empty() {
                    lines.swap_remove(at);
                }
            }
            if lines.is_empty() {
                self.rooms.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(channel: &str) -> BatchKey<'_> {
        BatchKey { channel, log: "log", lane: 0, encoding: Encoding::GoimWebDeflate }
    }

    /// Claims what waits and says how it was parted, and how many of the batches were still to be made.
    fn claim(shared: &Compressed, offsets: std::ops::Range<u64>) -> (Vec<usize>, usize) {
        let waiting: Vec<_> = offsets.map(|offset| (offset * 10, 1)).collect();
        let claims = shared.claim(whose("room:1"), &waiting, 100);
        let mut to_make = 0;
        for (_, made) in &claims {
            made.get_or_init(|| {
                to_make += 1;
                Made::default()
            });
        }
        (claims.into_iter().map(|(messages, _)| messages).collect(), to_make)
    }

    #[test]
    fn what_one_core_made_another_takes() {
        let shared = Compressed::new(2);
        assert_eq!(claim(&shared, 1..5), (vec![4], 1));
        assert_eq!(claim(&shared, 1..5), (vec![4], 0));
        // A second has more waiting: it takes what there is, and goes on.
        assert_eq!(claim(&shared, 1..9), (vec![4, 4], 1));
        assert_eq!(claim(&shared, 5..12), (vec![4, 3], 1));
        // Long ones are parted the same everywhere.
        assert_eq!(claim(&shared, 20..250), (vec![100, 100, 30], 3));
        assert_eq!(claim(&shared, 20..250), (vec![100, 100, 30], 0));
        // Another log's, lane's, or encoding's are not the same.
        let waiting = [(10, 1), (20, 1)];
        for other in [
            BatchKey { log: "other", ..whose("room:1") },
            BatchKey { lane: 1, ..whose("room:1") },
            BatchKey { encoding: Encoding::NativeJsonDeflate, ..whose("room:1") },
            whose("room:2"),
        ] {
            let claims = shared.claim(other, &waiting, 100);
            assert!(claims.len() == 1 && claims[0].1.get().is_none(), "{other:?}");
        }
    }

    #[test]
    fn a_core_that_lacks_a_batchs_end_makes_its_own_and_meets_the_others_again() {
        let shared = Compressed::new(2);
        assert_eq!(claim(&shared, 1..9), (vec![8], 1));
        // Two of the eight are still to come to this core.
        assert_eq!(claim(&shared, 1..7), (vec![6], 1));
        // The first core goes on from 9; the second from 7, up to there, and then with it.
        assert_eq!(claim(&shared, 9..15), (vec![6], 1));
        assert_eq!(claim(&shared, 7..15), (vec![2, 6], 1));
        assert_eq!(claim(&shared, 15..20), (vec![5], 1));
        assert_eq!(claim(&shared, 15..20), (vec![5], 0));
    }

    #[test]
    fn only_the_newest_batches_are_kept() {
        let shared = Compressed::new(2);
        for room in 0..3 * BATCHES_MAX {
            shared.claim(whose(&format!("room:{room}")), &[(10, 1)], 100);
        }
        let kept = shared.kept.lock().unwrap();
        assert_eq!((kept.rooms.len(), kept.order.len()), (BATCHES_MAX, BATCHES_MAX));
        drop(kept);
        let alone = Compressed::new(1);
        assert_eq!(claim(&alone, 1..5), (vec![4], 1));
        assert_eq!(claim(&alone, 1..5), (vec![4], 1));
        assert!(alone.kept.lock().unwrap().rooms.is_empty());
    }
}
