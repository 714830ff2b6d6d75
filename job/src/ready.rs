//! Whether job does its work: what `/ready` of the admin address asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// SharedOutbox by the tasks that know and whoever asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready(Arc<ReadyState>);

#[derive(Debug, Default)]
struct ReadyState {
    consuming: AtomicBool,
    /// Partitions that are assigned and not yet read up to their claim, by topic.
    behind: Mutex<BTreeMap<bus::Topic, usize>>,
    /// Why Routes did not answer the last time.
    routes: Mutex<Option<String>>,
}

impl Ready {
    /// It has joined the groups, or has left them.
    pub(crate) fn consuming(&self, consuming: bool) {
        self.0.consuming.store(consuming, Ordering::Relaxed);
    }

    /// So many partitions of a topic are being taken over.
    pub(crate) fn behind(&self, topic: bus::Topic, behind: usize) {
        self.0.behind.lock().unwrap_or_else(PoisonError::into_inner).insert(topic, behind);
    }

    /// Routes answered, or why not.
    pub(crate) fn routes_are(&self, state: Result<(), String>) {
        *self.0.routes.lock().unwrap_or_else(PoisonError::into_inner) = state.err();
    }

    /// # Errors
    /// Why pushes cannot be looked up.
    pub(crate) fn routes(&self) -> Result<(), String> {
        self.0.routes.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// # Errors
    /// What is wanting.
    pub(crate) fn get(&self) -> Result<(), String> {
        let behind = self.0.behind.lock().unwrap_or_else(PoisonError::into_inner).values().sum::<usize>();
        match behind {
            _ if !self.0.consuming.load(Ordering::Relaxed) => Err("not consuming".to_owned()),
            0 => Ok(()),
            behind => Err(format!("{behind} partitions are being taken over")),
        }
    }
}
