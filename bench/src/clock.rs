//! The machine's monotonic clock: the same in every process, so that a time that one writes into a message means
//! something to another.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn now_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Processor time of the calling thread so far.
pub(crate) fn thread_cpu() -> Duration {
    Duration::from_nanos(nanoseconds(ClockId::ThreadCPUTime))
}

/// Processor time of this process so far.
pub(crate) fn process_cpu() -> Duration {
    Duration::from_nanos(nanoseconds(ClockId::ProcessCPUTime))
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_processor_time() {
        let (wall, thread, process) = (now_ns(), thread_cpu(), process_cpu());
        while thread_cpu() - thread < Duration::from_millis(2) {}
        assert!(now_ns() - wall >= 2_000_000 && process_cpu() - process >= Duration::from_millis(1));
    }
}
