//! Which logic is asked what: a session's requests go to one logic, in order, while its stream stands. A table without
//! streams: `logics` has those.
//!
//! A session's logic is chosen by rendezvous hashing among the streams that stand, so that nothing is kept for a session
//! that asks nothing; while it has a request under way its next one follows on the same stream, whatever comes up
//! meanwhile.
//!
//! Invariants, each the name of a test:
//! - `a_session_stays_with_its_logic_while_the_stream_stands`.
//! - `every_request_is_answered_once`: by its logic, or by [`Gate::down`].

use std::hash::{Hash as _, Hasher as _};

use rustc_hash::{FxHashMap, FxHasher};

use machine::Key;

/// Requests under way on one stream; over it a request is answered as if no logic could be reached. Some 1 KiB each.
pub(super) const IN_FLIGHT_MAX: usize = 16 * 1024;

/// Requests under way for which room is kept.
const KEPT: usize = 1024;

/// A stream to a logic, numbered as it came up.
pub(super) type LogicId = u64;

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// The engine of this core, by this number of its own.
    Core(usize, u64),
    /// The control thread itself, which does not wait for the answer.
    Control,
}

/// See the module's opening.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Streams that stand, with what is under way on each.
    logics: FxHashMap<LogicId, usize>,
    asked: FxHashMap<u64, Asked>,
    /// Sessions with requests under way: where, and how many.
    sessions: FxHashMap<(usize, Key), (LogicId, usize)>,
    last_id: u64,
}

#[derive(Debug)]
struct Asked {
    by: Asker,
    logic: LogicId,
    session: Option<(usize, Key)>,
}

impl Gate {
    /// A stream stands.
    pub(super) fn up(&mut self, logic: LogicId) {
        self.logics.insert(logic, 0);
    }

    /// A stream broke. Who waits for an answer that will not come.
    pub(super) fn down(&mut self, logic: LogicId) -> Vec<Asker> {
        self.logics.remove(&logic);
        self.sessions.retain(|_, (of, _)| *of != logic);
        self.asked.extract_if(|_, asked| asked.logic == logic).map(|(_, asked)| asked.by).collect()
    }

    /// Where a request goes, and by which number. `None`: nowhere.
    pub(super) fn ask(&mut self, by: Asker, session: Option<(usize, Key)>) -> Option<(LogicId, u64)> {
        let sticky = session.and_then(|session| self.sessions.get(&session)).map(|&(logic, _)| logic);
        let logic = match sticky {
            Some(logic) => logic,
            None => self.logics.keys().copied().max_by_key(|&logic| weight(logic, session))?,
        };
        let under_way = self.logics.get_mut(&logic).filter(|under_way| **under_way < IN_FLIGHT_MAX)?;
        *under_way += 1;
        if let Some(session) = session {
            self.sessions.entry(session).or_insert((logic, 0)).1 += 1;
        }
        self.last_id += 1;
        self.asked.insert(self.last_id, Asked { by, logic, session });
        Some((logic, self.last_id))
    }

    /// An answer came. `None`: to nothing that this logic was asked.
    pub(super) fn answered(&mut self, logic: LogicId, id: u64) -> Option<Asker> {
        if self.asked.get(&id).is_none_or(|asked| asked.logic != logic) {
            return None;
        }
        let asked = self.asked.remove(&id)?;
        if let Some(under_way) = self.logics.get_mut(&logic) {
            *under_way -= 1;
        }
        if let Some(session) = asked.session
            && let Some((_, requests)) = self.sessions.get_mut(&session)
        {
            *requests -= 1;
            if *requests == 0 {
                self.sessions.remove(&session);
            }
        }
        Some(asked.by)
    }

    /// Gives back what a storm of requests has left.
    pub(super) fn shrink(&mut self) {
        if self.asked.capacity() > KEPT && self.asked.len() < self.asked.capacity() / 4 {
            self.asked.shrink_to(KEPT);
            self.sessions.shrink_to(KEPT);
        }
    }

    /// Streams that stand.
    pub(super) fn logics(&self) -> usize {
        self.logics.len()
    }

    /// Requests under way.
    pub(super) fn in_flight(&self) -> usize {
        self.asked.len()
    }
}

fn weight(logic: LogicId, session: Option<(usize, Key)>) -> u64 {
    let mut hasher = FxHasher::default();
    (session, logic).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(slot: u32) -> Option<(usize, Key)> {
        Some((0, Key { slot, generation: 1 }))
    }

    #[test]
    fn a_session_stays_with_its_logic_while_the_stream_stands() {
        let mut gate = Gate::default();
        assert_eq!(gate.ask(Asker::Core(0, 1), key(1)), None);
        gate.up(1);
        gate.up(2);
        let mut used = [0; 3];
        for slot in 0..1000 {
            let (logic, first) = gate.ask(Asker::Core(0, 1), key(slot)).unwrap();
            assert_eq!(gate.ask(Asker::Core(0, 2), key(slot)).unwrap().0, logic);
            gate.answered(logic, first).unwrap();
            used[logic as usize] += 1;
            // One more is under way: a new stream, even one that would be chosen, does not get the next.
            gate.up(3);
            assert_eq!(gate.ask(Asker::Core(0, 3), key(slot)).unwrap().0, logic);
            gate.down(3);
        }
        assert!(used[1] > 300 && used[2] > 300, "{used:?}");
    }

    #[test]
    fn every_request_is_answered_once() {
        let mut gate = Gate::default();
        gate.up(1);
        let ids: Vec<_> = (0..3).map(|id| gate.ask(Asker::Core(4, id), key(1)).unwrap().1).collect();
        assert_eq!(gate.answered(2, ids[0]), None, "by another logic");
        assert_eq!(gate.answered(1, ids[0]), Some(Asker::Core(4, 0)));
        assert_eq!(gate.answered(1, ids[0]), None, "twice");
        let mut left = gate.down(1);
        left.sort_by_key(|asker| format!("{asker:?}"));
        assert_eq!(left, [Asker::Core(4, 1), Asker::Core(4, 2)]);
        assert_eq!(gate.answered(1, ids[1]), None);
        assert_eq!((gate.in_flight(), gate.sessions.len()), (0, 0));
    }

    #[test]
    fn requests_under_way_are_bounded() {
        let mut gate = Gate::default();
        gate.up(1);
        for id in 0..IN_FLIGHT_MAX as u64 {
            gate.ask(Asker::Core(0, id), key(id as u32)).unwrap();
        }
        assert_eq!(gate.ask(Asker::Core(0, 0), key(0)), None);
        assert_eq!(gate.answered(1, 7), Some(Asker::Core(0, 6)));
        assert!(gate.ask(Asker::Control, None).is_some());
    }
}
