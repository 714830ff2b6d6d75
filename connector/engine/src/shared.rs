//! What many sessions have in common, kept once: what a platform's tokens allow, what its clients accept.
//!
//! Invariant: `what_nobody_has_is_forgotten`.

use std::{borrow::Borrow, hash::Hash, sync::Arc};

use rustc_hash::FxHashSet;

/// Values that are equal are one.
#[derive(Debug)]
pub(super) struct Shared<T: ?Sized>(FxHashSet<Arc<T>>);

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self(FxHashSet::default())
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The one that is equal to `value`.
    pub(super) fn take(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.0.get(value.borrow()) {
            return known.clone();
        }
        let new = value.into();
        self.0.insert(new.clone());
        new
    }

    /// One who had it needs it no more.
    pub(super) fn give_back(&mut self, value: Arc<T>) {
        // Here, and in the table.
        if Arc::strong_count(&value) == 2 {
            self.0.remove(&value);
        }
    }

    /// Different values.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_is_forgotten() {
        let mut shared = Shared::<[i32]>::default();
        let (one, again, other) = (shared.take(vec![1, 2]), shared.take(vec![1, 2]), shared.take(vec![]));
        assert!(Arc::ptr_eq(&one, &again) && !Arc::ptr_eq(&one, &other) && shared.len() == 2);
        shared.give_back(one);
        assert_eq!(shared.len(), 2);
        shared.give_back(again);
        shared.give_back(other);
        assert_eq!(shared.len(), 0);
    }
}
