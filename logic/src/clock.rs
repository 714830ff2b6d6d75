//! The wall clock, read at the edge of this crate only: everything inside takes the time as an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Microseconds since then, a time in milliseconds since 1970; 0 where the clock was set back meanwhile.
pub(crate) fn us_since(then_ms: i64) -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = Duration::from_millis(then_ms.max(0) as u64);
    u32::try_from(now.saturating_sub(then).as_micros()).unwrap_or(0)
}
