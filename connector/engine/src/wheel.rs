//! A coarse timing wheel: one entry a session or room, never a timer each.
//!
//! An entry is a hint, not a deadline: when it comes up, its owner looks whether something is due, and if not makes
//! another. So a deadline that moves away costs nothing, and one that moves nearer is one more entry.

/// Resolution, milliseconds: deadlines are seconds.
pub(super) const TICK_MS: u64 = 128;
/// Ticks of one turn: 65 s. What lies beyond goes round again.
const TICKS: u32 = 512;

/// The first tick that is not before this time: 17 years of them.
pub(super) fn tick_of(at_ms: u64) -> u32 {
    u32::try_from(at_ms.div_ceil(TICK_MS)).unwrap_or(u32::MAX).min(u32::MAX - 1)
}

/// See the module's opening.
#[derive(Debug)]
pub(super) struct Wheel<T> {
    /// Each with its tick.
    buckets: Vec<Vec<(u32, T)>>,
    /// The tick that is looked at next.
    next: u32,
    entries: usize,
}

impl<T> Wheel<T> {
    /// An empty one.
    #[must_use]
    pub(super) fn new(now_ms: u64) -> Self {
        Self { buckets: (0..TICKS).map(|_| Vec::new()).collect(), next: tick_of(now_ms + 1), entries: 0 }
    }

    /// Has `entry` come up at this tick, or at the next one.
    pub(super) fn add(&mut self, tick: u32, entry: T) {
        let at = tick.clamp(self.next, self.next + TICKS - 1);
        let bucket = &mut self.buckets[(at % TICKS) as usize];
        if bucket.len() == bucket.capacity() {
            // An entry for each session: doubling would cost them half as much again.
            bucket.reserve_exact((bucket.len() / 8).max(4));
        }
        bucket.push((tick, entry));
        self.entries += 1;
    }

    /// The entries of the next tick that has come, if one has.
    pub(super) fn due(&mut self, now_ms: u64) -> Option<Vec<T>> {
        while u64::from(self.next) <= now_ms / TICK_MS {
            let bucket = std::mem::take(&mut self.buckets[(self.next % TICKS) as usize]);
            let now = self.next;
            self.next += 1;
            self.entries -= bucket.len();
            let mut due = Vec::with_capacity(bucket.len());
            for (tick, entry) in bucket {
                if tick <= now {
                    due.push(entry);
                } else {
                    self.add(tick, entry);
                }
            }
            if !due.is_empty() {
                return Some(due);
            }
        }
        None
    }

    /// When the next tick is, milliseconds.
    #[must_use]
    pub(super) fn next_ms(&self) -> u64 {
        u64::from(self.next) * TICK_MS
    }

    /// Entries in it.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_up_once_and_in_time() {
        let mut wheel = Wheel::new(1000);
        let deadlines = [1001, 1500, 1500, 5000, 60_000, 1_000_000];
        deadlines.iter().for_each(|at| wheel.add(tick_of(*at), *at));
        let mut seen = Vec::new();
        for now in (1000..2_000_000).step_by(50) {
            while let Some(bucket) = wheel.due(now) {
                for at in bucket {
                    assert!(at <= now && now - at <= TICK_MS + 50, "{at} at {now}");
                    seen.push(at);
                }
            }
        }
        assert_eq!((seen.as_slice(), wheel.len()), (&deadlines[..], 0));
    }
}
