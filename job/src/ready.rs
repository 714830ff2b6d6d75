//! Whether job does its work: what `/ready` of the admin address asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Shared by the tasks that know and whoever asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<State>);

#[derive(Debug, Default)]
struct State {
    consuming: AtomicBool,
    /// Partitions that are assigned and not yet read up to their claim.
    behind: AtomicUsize,
}

impl Ready {
    /// It has joined the groups, or has left them.
    pub(crate) fn consuming(&self, consuming: bool) {
        self.0.consuming.store(consuming, Ordering::Relaxed);
    }

    /// So many partitions are being taken over.
    pub(crate) fn rooms(&self, behind: usize) {
        self.0.behind.store(behind, Ordering::Relaxed);
    }

    /// # Errors
    /// What is wanting.
    pub(crate) fn get(&self) -> Result<(), String> {
        match self.0.behind.load(Ordering::Relaxed) {
            _ if !self.0.consuming.load(Ordering::Relaxed) => Err("not consuming".to_owned()),
            0 => Ok(()),
            behind => Err(format!("{behind} partitions are being taken over")),
        }
    }
}
