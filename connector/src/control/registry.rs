//! What this node has in Routes, and what of it is to be written: sessions by name, numbers by channel, and the lease's
//! own numbers. A table without Routes: `leases` writes it.
//!
//! Invariants, each the name of a test:
//! - `changes_go_out_in_order`, also when writing failed and is tried again;
//! - `everything_can_be_written_anew`: what Routes lost is known here.

use std::collections::VecDeque;
use std::net::IpAddr;

use routes::{By, Change, SessionRoute};
use rustc_hash::{FxHashMap, FxHashSet};

/// Changes that wait to be written. Over it (Routes are away for long) they are forgotten: all that is there is written
/// anew when Routes are back, and what is gone lapses with the node's lease.
const PENDING_MAX: usize = 256 * 1024;

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Registry {
    sessions: FxHashMap<(By, String), SessionRoute>,
    pending: VecDeque<Change>,
    /// Of `sessions`, what is to be put again.
    again: Vec<(By, String)>,
    /// Sessions in each channel, by core.
    counts: FxHashMap<String, Vec<u64>>,
    changed: FxHashSet<String>,
    sessions_of: Vec<u64>,
    /// How many cores have a session of each client address.
    addresses: FxHashMap<IpAddr, usize>,
}

impl Registry {
    /// Sessions came and went.
    pub(super) fn change(&mut self, changes: Vec<Change>) {
        for change in &changes {
            match change {
                Change::Put(by, route) => {
                    self.sessions.insert((by.clone(), route.session.clone()), route.clone());
                }
                Change::Remove(by, route) => {
                    self.sessions.remove(&(by.clone(), route.session.clone()));
                }
            }
        }
        self.pending.extend(changes);
        if self.pending.len() > PENDING_MAX {
            self.pending.clear();
            self.anew();
        }
    }

    /// A core's own numbers of sessions in channels.
    pub(super) fn count(&mut self, core: usize, counts: Vec<(String, u64)>) {
        for (channel, count) in counts {
            let by_core = self.counts.entry(channel.clone()).or_default();
            if by_core.len() <= core {
                by_core.resize(core + 1, 0);
            }
            by_core[core] = count;
            if by_core.iter().all(|count| *count == 0) {
                self.counts.remove(&channel);
            }
            self.changed.insert(channel);
        }
    }

    /// A core's number of sessions, and the addresses that have come and gone there.
    pub(super) fn sessions(&mut self, core: usize, sessions: u64, came: &[IpAddr], went: &[IpAddr]) {
        if self.sessions_of.len() <= core {
            self.sessions_of.resize(core + 1, 0);
        }
        self.sessions_of[core] = sessions;
        for address in came {
            *self.addresses.entry(*address).or_default() += 1;
        }
        for address in went {
            if let Some(cores) = self.addresses.get_mut(address) {
                *cores -= 1;
                if *cores == 0 {
                    self.addresses.remove(address);
                }
            }
        }
    }

    /// Everything is to be written anew. What waits follows it: to put a session twice is harmless.
    pub(super) fn anew(&mut self) {
        self.again = self.sessions.keys().cloned().collect();
        self.changed.extend(self.counts.keys().cloned());
    }

    /// Up to `most` changes, in order.
    pub(super) fn take(&mut self, most: usize) -> Vec<Change> {
        let mut batch = Vec::new();
        // First what was there before the changes that wait.
        while batch.len() < most
            && let Some(key) = self.again.pop()
        {
            if let Some(route) = self.sessions.get(&key) {
                batch.push(Change::Put(key.0, route.clone()));
            }
        }
        let rest = (most - batch.len()).min(self.pending.len());
        batch.extend(self.pending.drain(..rest));
        batch
    }

    /// They could not be written: they go first again.
    pub(super) fn put_back(&mut self, batch: Vec<Change>) {
        for change in batch.into_iter().rev() {
            self.pending.push_front(change);
        }
    }

    /// Up to `most` numbers that have changed.
    pub(super) fn take_counts(&mut self, most: usize) -> Vec<(String, u64)> {
        let channels: Vec<_> = self.changed.iter().take(most).cloned().collect();
        channels
            .into_iter()
            .map(|channel| {
                self.changed.remove(&channel);
                let count = self.counts.get(&channel).map_or(0, |by_core| by_core.iter().sum());
                (channel, count)
            })
            .collect()
    }

    /// They could not be written.
    pub(super) fn put_back_counts(&mut self, counts: Vec<(String, u64)>) {
        self.changed.extend(counts.into_iter().map(|(channel, _)| channel));
    }

    /// Sessions on all cores.
    pub(super) fn session_count(&self) -> u64 {
        self.sessions_of.iter().sum()
    }

    /// A core's share of the sessions.
    pub(super) fn sessions_of(&self, core: usize) -> u64 {
        self.sessions_of.get(core).copied().unwrap_or(0)
    }

    /// Different client addresses.
    pub(super) fn address_count(&self) -> u64 {
        self.addresses.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(session: &str) -> SessionRoute {
        SessionRoute { session: session.into(), device: String::new(), node: "n".into(), incarnation: "i".into() }
    }

    fn put(session: &str) -> Change {
        Change::Put(By::User("u".into()), route(session))
    }

    fn remove(session: &str) -> Change {
        Change::Remove(By::User("u".into()), route(session))
    }

    #[test]
    fn changes_go_out_in_order() {
        let mut registry = Registry::default();
        registry.change(vec![put("a"), put("b"), remove("a")]);
        let batch = registry.take(2);
        assert_eq!(batch, [put("a"), put("b")]);
        registry.put_back(batch);
        registry.change(vec![put("c")]);
        assert_eq!(registry.take(10), [put("a"), put("b"), remove("a"), put("c")]);
        assert!(registry.take(10).is_empty());
    }

    #[test]
    fn everything_can_be_written_anew() {
        let mut registry = Registry::default();
        registry.change(vec![put("a"), put("b"), remove("a")]);
        registry.count(0, vec![("room:1".into(), 3), ("room:2".into(), 1)]);
        registry.count(1, vec![("room:1".into(), 4), ("room:2".into(), 0)]);
        registry.take(10);
        let mut counts = registry.take_counts(10);
        counts.sort();
        assert_eq!(counts, [("room:1".into(), 7), ("room:2".into(), 1)]);
        registry.count(0, vec![("room:2".into(), 0)]);
        assert_eq!(registry.take_counts(10), [("room:2".into(), 0)]);
        assert!(registry.take(10).is_empty() && registry.take_counts(10).is_empty());

        registry.anew();
        // Gone before its turn: not put again.
        registry.change(vec![remove("b"), put("c")]);
        assert_eq!(registry.take(10), [remove("b"), put("c")]);
        assert_eq!(registry.take_counts(10), [("room:1".into(), 7)]);
        registry.anew();
        assert_eq!(registry.take(10), [put("c")]);
    }

    #[test]
    fn an_address_counts_once_however_many_cores_have_it() {
        let mut registry = Registry::default();
        let [a, b]: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        registry.sessions(0, 2, &[a, b], &[]);
        registry.sessions(1, 1, &[a], &[]);
        assert_eq!((registry.session_count(), registry.address_count()), (3, 2));
        registry.sessions(0, 0, &[], &[a, b]);
        assert_eq!((registry.session_count(), registry.address_count()), (1, 1));
    }
}
