//! Tells an overloaded core from a process that stood still: it was stopped, or had no processor for long.
//!
//! Both show in the same way: a fan-out pass takes long, and much gathers meanwhile. An overloaded core must shed, since the
//! next pass would take longer still. After a standstill nothing needs to be shed, since the backlog comes once.
//!
//! Invariants, each the name of a test:
//! - `a_standstill_is_no_work`: the time of work passes by at most [`STEP_MS`] between two rounds.
//! - `what_gathered_in_a_standstill_is_a_backlog`: for as long as the standstill was, what comes is not overload.

use machine::Next;

/// The most that counts as work between two rounds, milliseconds. A round is some hundred sends, which take 1 to 5.
const STEP_MS: u64 = 50;
/// A round that comes so much later than it was asked for shows a standstill, milliseconds.
const STANDSTILL_MS: u64 = 250;
/// The longest time for which a backlog is excused, milliseconds.
const BACKLOG_MS_MAX: u64 = 60_000;

/// See the module's opening.
#[derive(Debug)]
pub(super) struct Stall {
    /// Time that passed while the core worked, milliseconds.
    work_ms: u64,
    /// When the last round was, and when the next one was to be.
    rounded_ms: u64,
    due_ms: u64,
    /// Until when what gathers is a backlog.
    backlog_until_ms: u64,
}

impl Stall {
    pub(super) fn new(now_ms: u64) -> Self {
        Self { work_ms: 0, rounded_ms: now_ms, due_ms: u64::MAX, backlog_until_ms: 0 }
    }

    /// A round begins.
    pub(super) fn round(&mut self, now_ms: u64) {
        self.work_ms += (now_ms - self.rounded_ms).min(STEP_MS);
        self.rounded_ms = now_ms;
        let late_ms = now_ms.saturating_sub(self.due_ms);
        if late_ms > STANDSTILL_MS {
            self.backlog_until_ms = now_ms + late_ms.min(BACKLOG_MS_MAX);
        }
    }

    /// A round ends, and says when the next one is to be.
    pub(super) fn expect(&mut self, now_ms: u64, next: Next) {
        self.due_ms = if next.again { now_ms } else { next.wake_ms };
    }

    /// The time that passed while the core worked, milliseconds from an arbitrary beginning.
    pub(super) fn work_ms(&self) -> u64 {
        self.work_ms
    }

    /// Whether what gathers is the backlog of a standstill.
    pub(super) fn is_backlog(&self) -> bool {
        self.rounded_ms < self.backlog_until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(again: bool, wake_ms: u64) -> Next {
        Next { again, wake_ms }
    }

    #[test]
    fn a_standstill_is_no_work() {
        let mut stall = Stall::new(1000);
        for now_ms in [1010, 1020, 4020, 4030] {
            stall.round(now_ms);
            stall.expect(now_ms, next(true, 0));
        }
        assert_eq!(stall.work_ms(), 10 + 10 + STEP_MS + 10);
    }

    #[test]
    fn what_gathered_in_a_standstill_is_a_backlog() {
        let mut stall = Stall::new(1000);
        // It sleeps for as long as it was to, and works through rounds that take a while.
        for (now_ms, again) in [(1000, false), (2000, true), (2100, true), (2200, false)] {
            stall.round(now_ms);
            assert!(!stall.is_backlog());
            stall.expect(now_ms, next(again, now_ms + 1000));
        }
        // It was to wake at 3200.
        stall.round(6200);
        assert!(stall.is_backlog());
        stall.expect(6200, next(true, 0));
        stall.round(9100);
        assert!(stall.is_backlog());
        for now_ms in (9100..18_000).step_by(50) {
            stall.round(now_ms);
            stall.expect(now_ms, next(true, 0));
        }
        assert!(!stall.is_backlog());
    }
}
