//! The two clocks, read once a turn. All cores count from the same beginning.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime};

use machine::Now;

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

pub(super) fn now() -> Now {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now { mono_ms: BEGINNING.elapsed().as_millis() as u64, unix_ms: unix.as_millis() as i64 }
}
