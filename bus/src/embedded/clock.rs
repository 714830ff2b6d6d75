//! The log's time: the wall clock's, but it never goes back, and never stands still.
//!
//! Job counts by it (the flow cap's second, a message's age, what is repeated): where the wall clock is set back, records
//! that all carried the last time before would keep such a second from ending for as long as the wall clock takes to
//! catch up. So meanwhile it goes on as the monotonic clock does.

use std::time::{Instant, SystemTime};

/// What it last said, and when.
#[derive(Debug)]
pub(super) struct Clock {
    begun: Instant,
    said: Reading,
}

/// The log's time, milliseconds since 1970, at a monotonic time, milliseconds.
#[derive(Debug, Clone, Copy)]
struct Reading {
    time_ms: i64,
    mono_ms: i64,
}

impl Reading {
    fn next(self, wall_ms: i64, mono_ms: i64) -> Self {
        let gone_on_ms = self.time_ms + (mono_ms - self.mono_ms);
        Self { time_ms: wall_ms.max(gone_on_ms), mono_ms }
    }
}

impl Clock {
    /// Nothing before `newest_ms`, which a log has already.
    pub(super) fn new(newest_ms: i64) -> Self {
        Self { begun: Instant::now(), said: Reading { time_ms: wall_ms().max(newest_ms), mono_ms: 0 } }
    }

    /// The time now, milliseconds since 1970.
    pub(super) fn now_ms(&mut self) -> i64 {
        self.said = self.said.next(wall_ms(), self.begun.elapsed().as_millis() as i64);
        self.said.time_ms
    }
}

/// The wall clock, milliseconds since 1970.
pub(super) fn wall_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_back_neither_turns_nor_stops_the_log_s_time() {
        let mut said = Reading { time_ms: 100_000, mono_ms: 0 };
        let mut times = Vec::new();
        // Set back by 60 s after the second reading; it has caught up at the last.
        for (wall_ms, mono_ms) in [(100_500, 500), (101_000, 1000), (41_500, 1500), (42_000, 2000), (103_000, 2500)] {
            said = said.next(wall_ms, mono_ms);
            times.push(said.time_ms);
        }
        assert_eq!(times, [100_500, 101_000, 101_500, 102_000, 103_000]);
    }

    #[test]
    fn it_begins_no_earlier_than_what_is_there() {
        let newest_ms = wall_ms() + 3_600_000;
        let mut clock = Clock::new(newest_ms);
        let first = clock.now_ms();
        assert!(first >= newest_ms);
        let begun = Instant::now();
        while clock.now_ms() == first {
            assert!(begun.elapsed().as_secs() < 30, "it stands still");
        }
    }
}
