//! What of this node is to be written to Routes: sessions by name, numbers by channel, and the lease's own numbers. A
//! table without Routes: `leases` writes it.
//!
//! Who a session is, its core knows, and nobody else: when Routes have lost what they knew, the cores tell it again, a
//! batch whenever the last one is written ([`Registry::more`]). A core tells it among its other changes, in their order,
//! so that nothing is put after it was removed.
//!
//! Invariants, each the name of a test:
//! - `changes_go_out_in_order`, also when writing failed and is tried again;
//! - `everything_can_be_written_anew`: what Routes lost is known here, or by a core.

use std::collections::VecDeque;
use std::net::IpAddr;

use rustc_hash::{FxHashMap, FxHashSet};

use engine::{RouteChange, RouteChanges};
use routes::{By, Change, SessionRoute};

/// Changes that are written in one call.
const BATCH_MAX: usize = 500;
/// Batches that wait to be written. Over it (Routes are away for long) they are forgotten: all that is there is written
/// anew when Routes are back, and what is gone lapses with the node's lease.
const PENDING_MAX: usize = 512;

/// See the module's opening.
#[derive(Debug)]
pub(super) struct Registry {
    /// In order, of [`BATCH_MAX`] at most.
    pending: VecDeque<RouteChanges>,
    /// How far each core has told its sessions anew.
    telling: Vec<Telling>,
    /// Sessions in each channel, by core.
    counts: FxHashMap<String, Vec<u64>>,
    changed: FxHashSet<String>,
    sessions_of: Vec<u64>,
    /// How many cores have a session of each client address.
    addresses: FxHashMap<IpAddr, usize>,
    /// Everything was written since it was last to be written anew.
    written: bool,
}

/// How far a core has told its sessions anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    /// Nothing is to be told, or all is.
    Done,
    /// To be asked for, from this slot on.
    From(u32),
    /// Asked.
    Asked,
    /// Asked, and all is to be told anew after that.
    AskedInVain,
}

impl Registry {
    /// One for this many cores.
    pub(super) fn new(cores: usize) -> Self {
        Self {
            pending: VecDeque::new(),
            telling: vec![Telling::Done; cores],
            counts: FxHashMap::default(),
            changed: FxHashSet::default(),
            sessions_of: Vec::new(),
            addresses: FxHashMap::default(),
            written: false,
        }
    }

    /// Sessions came and went, or are told anew.
    pub(super) fn change(&mut self, changes: &RouteChanges) {
        for change in changes.iter() {
            if self.pending.back().is_none_or(|batch| batch.len() == BATCH_MAX) {
                self.pending.push_back(RouteChanges::default());
            }
            if let Some(batch) = self.pending.back_mut() {
                batch.push(change);
            }
        }
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

    /// Everything is to be written anew, as soon as what waits is.
    pub(super) fn anew(&mut self) {
        self.written = false;
        for core in &mut self.telling {
            *core = match *core {
                Telling::Done | Telling::From(_) => Telling::From(0),
                Telling::Asked | Telling::AskedInVain => Telling::AskedInVain,
            };
        }
        self.changed.extend(self.counts.keys().cloned());
    }

    /// Nothing is being written now. `true` if by that everything is written that was to be written anew.
    pub(super) fn idle(&mut self) -> bool {
        let told = self.telling.iter().all(|telling| *telling == Telling::Done);
        let now = told && self.pending.is_empty() && !self.written;
        self.written |= now;
        now
    }

    /// Whether Routes have all that there is, but for what has just come.
    pub(super) fn is_written(&self) -> bool {
        self.written
    }

    /// The changes that are to be written next, in order.
    pub(super) fn take(&mut self) -> RouteChanges {
        self.pending.pop_front().unwrap_or_default()
    }

    /// The cores that are to be asked to tell their sessions anew, and from which slot on: none before all that waits is
    /// written.
    pub(super) fn more(&mut self) -> Vec<(usize, u32)> {
        let mut asked = Vec::new();
        for (core, telling) in self.telling.iter_mut().enumerate().filter(|_| self.pending.is_empty()) {
            if let Telling::From(slot) = *telling {
                *telling = Telling::Asked;
                asked.push((core, slot));
            }
        }
        asked
    }

    /// A core has told what it was asked for.
    pub(super) fn told(&mut self, core: usize, next: Option<u32>) {
        let Some(telling) = self.telling.get_mut(core) else { return };
        *telling = match *telling {
            Telling::Asked => next.map_or(Telling::Done, Telling::From),
            Telling::AskedInVain => Telling::From(0),
            telling => telling,
        };
    }

    /// They could not be written: they go first again.
    pub(super) fn put_back(&mut self, batch: RouteChanges) {
        self.pending.push_front(batch);
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

/// A core's change as Routes take it, from a node in an incarnation.
pub(super) fn change_of(change: RouteChange<'_>, node: &str, incarnation: &str) -> Change {
    let RouteChange { gone, by_key, name, session, device } = change;
    let route = SessionRoute {
        session: session.to_owned(),
        device: device.to_owned(),
        node: node.to_owned(),
        incarnation: incarnation.to_owned(),
    };
    let by = if by_key { By::Key(name.to_owned()) } else { By::User(name.to_owned()) };
    if gone { Change::Remove(by, route) } else { Change::Put(by, route) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of sessions that came, by their IDs.
    fn puts<'a>(sessions: impl IntoIterator<Item = &'a str>) -> RouteChanges {
        let mut changes = RouteChanges::default();
        for session in sessions {
            changes.push(RouteChange { gone: false, by_key: false, name: "u", session, device: "" });
        }
        changes
    }

    fn sessions(changes: &RouteChanges) -> Vec<String> {
        changes.iter().map(|change| change.session.to_owned()).collect()
    }

    #[test]
    fn changes_go_out_in_order() {
        let mut registry = Registry::new(1);
        let all: Vec<String> = (0..2 * BATCH_MAX + 3).map(|session| session.to_string()).collect();
        let (first, rest) = all.split_at(BATCH_MAX + 1);
        registry.change(&puts(first.iter().map(String::as_str)));
        let batch = registry.take();
        assert_eq!(sessions(&batch), all[..BATCH_MAX]);
        registry.put_back(batch);
        for one in rest {
            registry.change(&puts([one.as_str()]));
        }
        for batch in all.chunks(BATCH_MAX) {
            assert_eq!(sessions(&registry.take()), batch);
        }
        assert!(registry.take().is_empty());
    }

    #[test]
    fn a_change_becomes_one_of_routes() {
        let change = |gone, by_key, name, device| RouteChange { gone, by_key, name, session: "i.1.ff.7", device };
        let route = |device: &str| SessionRoute {
            session: "i.1.ff.7".into(),
            device: device.into(),
            node: "node".into(),
            incarnation: "i".into(),
        };
        for (change, expected) in [
            (change(false, false, "ann 安", "phone"), Change::Put(By::User("ann 安".into()), route("phone"))),
            (change(false, true, "k-1", ""), Change::Put(By::Key("k-1".into()), route(""))),
            (change(true, false, "bo", "tv"), Change::Remove(By::User("bo".into()), route("tv"))),
        ] {
            assert_eq!(change_of(change, "node", "i"), expected);
        }
    }

    #[test]
    fn everything_can_be_written_anew() {
        let mut registry = Registry::new(2);
        registry.change(&puts(["a", "b"]));
        registry.count(0, vec![("room:1".into(), 3), ("room:2".into(), 1)]);
        registry.count(1, vec![("room:1".into(), 4), ("room:2".into(), 0)]);
        registry.take();
        let mut counts = registry.take_counts(10);
        counts.sort();
        assert_eq!(counts, [("room:1".into(), 7), ("room:2".into(), 1)]);
        registry.count(0, vec![("room:2".into(), 0)]);
        assert_eq!(registry.take_counts(10), [("room:2".into(), 0)]);
        assert!(registry.take().is_empty() && registry.take_counts(10).is_empty() && registry.more().is_empty());

        registry.change(&puts(["c"]));
        registry.anew();
        assert_eq!(registry.take_counts(10), [("room:1".into(), 7)]);
        assert!(registry.more().is_empty(), "first what waits");
        assert_eq!(sessions(&registry.take()), ["c"]);
        assert_eq!(registry.more(), [(0, 0), (1, 0)]);
        assert!(registry.more().is_empty(), "once");
        registry.told(0, Some(500));
        registry.told(1, None);
        assert_eq!(registry.more(), [(0, 500)]);
        // Lost again: the core that is telling begins anew after it has answered.
        registry.anew();
        assert_eq!(registry.more(), [(1, 0)]);
        registry.told(0, None);
        assert_eq!(registry.more(), [(0, 0)]);
        registry.told(0, None);
        registry.told(1, None);
        assert!(registry.more().is_empty());
    }

    #[test]
    fn what_waits_is_bounded_and_told_anew() {
        let mut registry = Registry::new(1);
        for _ in 0..PENDING_MAX {
            registry.change(&puts(["a"; BATCH_MAX]));
        }
        assert_eq!((registry.pending.len(), registry.more()), (PENDING_MAX, vec![]));
        registry.change(&puts(["a"]));
        assert!(registry.take().is_empty());
        assert_eq!(registry.more(), [(0, 0)]);
    }

    #[test]
    fn an_address_counts_once_however_many_cores_have_it() {
        let mut registry = Registry::new(2);
        let [a, b]: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        registry.sessions(0, 2, &[a, b], &[]);
        registry.sessions(1, 1, &[a], &[]);
        assert_eq!((registry.session_count(), registry.address_count()), (3, 2));
        registry.sessions(0, 0, &[], &[a, b]);
        assert_eq!((registry.session_count(), registry.address_count()), (1, 1));
    }
}
