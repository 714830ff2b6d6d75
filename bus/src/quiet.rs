//! When a group's checkpoints are written: in a quiet period. Written while messages are under way they would hold those
//! up: their syncs wait in the file system's one journal, their requests in the broker's queues. Messages that come at
//! equal intervals would meet that again and again.

use std::time::{Duration, Instant};

/// A pause in the changes, and time for what changed last to reach everyone.
const PAUSE: Duration = Duration::from_millis(20);
/// Shortest time from one writing to the next.
const EVERY: Duration = Duration::from_millis(200);
/// Without a pause it is written after this all the same: what a crash makes a group read again.
const LATE_MAX: Duration = Duration::from_secs(1);
const _: () = assert!(PAUSE.as_nanos() < EVERY.as_nanos() && EVERY.as_nanos() < LATE_MAX.as_nanos());

/// What there is to write, as far as time is concerned.
#[derive(Debug, Default)]
pub(crate) struct QuietPeriod {
    /// The first and the last change that are not written.
    changed: Option<(Instant, Instant)>,
    written: Option<Instant>,
}

impl QuietPeriod {
    /// Something has changed. Whether it is the first since the last writing: later ones only put that off.
    pub(crate) fn change(&mut self, now: Instant) -> bool {
        let first = self.changed.map(|(first, _)| first);
        self.changed = Some((first.unwrap_or(now), now));
        first.is_none()
    }

    /// When it is to be written; `None`: there is nothing.
    pub(crate) fn due(&self) -> Option<Instant> {
        let (first, last) = self.changed?;
        let next = self.written.map_or(first, |written| written + EVERY);
        Some((last + PAUSE).max(next).min(first + LATE_MAX))
    }

    /// It is being written: what changes from now on is not in it.
    pub(crate) fn take(&mut self, now: Instant) {
        (self.changed, self.written) = (None, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_written_in_the_pauses_between_them() {
        let (zero, ms) = (Instant::now(), Duration::from_millis);
        let mut quiet = QuietPeriod::default();
        assert_eq!(quiet.due(), None);
        let mut written = Vec::new();
        for at in (0..10_000).map(|at| zero + ms(at)) {
            if (at - zero).as_millis().is_multiple_of(100) {
                quiet.change(at);
            }
            if quiet.due().is_some_and(|due| due <= at) {
                quiet.take(at);
                written.push((at - zero).as_millis());
            }
        }
        assert!(written.iter().all(|at| at % 100 == 20), "{written:?}");
        assert_eq!(written.len(), 50, "no more often than every 200 ms");
    }

    #[test]
    fn without_a_pause_they_are_written_all_the_same() {
        let (zero, ms) = (Instant::now(), Duration::from_millis);
        let mut quiet = QuietPeriod::default();
        assert!(quiet.change(zero));
        assert!((1..2_000).all(|at| !quiet.change(zero + ms(at))));
        assert_eq!(quiet.due(), Some(zero + LATE_MAX));
        quiet.take(zero + LATE_MAX);
        assert_eq!(quiet.due(), None);
        // Soon after: not before the shortest time is over.
        assert!(quiet.change(zero + LATE_MAX + ms(1)));
        assert_eq!(quiet.due(), Some(zero + LATE_MAX + EVERY));
    }
}
