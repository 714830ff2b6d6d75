//! One line on a terminal that says how far a measurement is.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is shown.
const SHOW: Duration = Duration::from_millis(500);

/// One line on a terminal's standard error, written over and over; nothing elsewhere.
pub(crate) struct Progress {
    shown: Mutex<Option<Instant>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { shown: Mutex::new(None) }
    }

    pub(crate) fn show(&self, line: impl FnOnce() -> String) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if std::io::stderr().is_terminal() && shown.is_none_or(|shown| shown.elapsed() >= SHOW) {
            *shown = Some(Instant::now());
            eprint!("\r\x1b[K{}", line());
            // A progress that cannot be shown hinders nothing.
            let _ = std::io::stderr().flush();
        }
    }

    pub(crate) fn clear(&self) {
        if self.shown.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
