//! Messages outside of any room: to some sessions, or to all of this core at a pace.

use std::{collections::VecDeque, sync::Arc};

use super::{
    Engine,
    encode::Once,
    encoding::Encoding,
    event::Push,
    session::{Dialect, Phase},
};
use machine::Key;

/// Pushes to all that may wait for the one under way. Over it: dropped, and counted.
const ALLS_MAX: usize = 64;

/// A push to all: a pass over the sessions, of which those that come meanwhile are part if their slot is still ahead.
#[derive(Debug)]
struct PushToAll {
    once: Once,
    operation: i32,
    /// 0: as fast as it goes.
    sessions_per_s: u32,
    next: usize,
    began_ms: Option<u64>,
    done: u64,
}

/// Pushes to all sessions that are under way, the oldest first.
#[derive(Debug, Default)]
pub(super) struct PushesToAll(VecDeque<PushToAll>);

impl PushesToAll {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Engine {
    /// To these sessions.
    pub(super) fn push(&mut self, keys: &[Key], push: Arc<Push>) {
        let mut once = Once::new(push);
        let operation = once.operation(&self.encoder);
        for &key in keys {
            self.push_one(key, &mut once, operation);
        }
    }

    /// To every session.
    pub(super) fn push_all(&mut self, push: Arc<Push>, sessions_per_s: u32) {
        if self.to_all.0.len() >= ALLS_MAX {
            self.counters.push_drops += self.sessions.admitted();
            return;
        }
        let once = Once::new(push);
        let operation = once.operation(&self.encoder);
        self.to_all.0.push_back(PushToAll { once, operation, sessions_per_s, next: 0, began_ms: None, done: 0 });
    }

    /// Goes on with pushing to all, as far as its pace and the round's sends go.
    pub(super) fn pace_alls(&mut self, left: &mut i32) {
        let now_ms = self.now.mono_ms;
        let mut sends = *left / 4;
        while let Some(mut all) = self.to_all.0.pop_front() {
            let began_ms = *all.began_ms.get_or_insert(now_ms);
            let due = match u64::from(all.sessions_per_s) {
                0 => u64::MAX,
                rate => 1 + (now_ms - began_ms) * rate / 1000,
            };
            while sends > 0 && all.done < due && all.next < self.sessions.slots().len() {
                let key = self.sessions.at(all.next).map(|session| (session.key, session.phase));
                all.next += 1;
                if let Some((key, Phase::Live)) = key {
                    self.push_one(key, &mut all.once, all.operation);
                    all.done += 1;
                    sends -= 1;
                    *left -= 1;
                }
            }
            if all.next < self.sessions.slots().len() {
                self.to_all.0.push_front(all);
                return;
            }
        }
    }

    /// When the push to all that is under way goes on, milliseconds.
    pub(super) fn alls_ms(&self) -> Option<u64> {
        self.to_all.0.front().map(|all| match all.sessions_per_s {
            0 => self.now.mono_ms,
            rate => self.now.mono_ms + (1000 / u64::from(rate)).clamp(1, 100),
        })
    }

    fn push_one(&mut self, key: Key, once: &mut Once, operation: i32) {
        let Some(session) = self.session(key).filter(|session| session.phase == Phase::Live) else {
            self.counters.push_drops += 1;
            return;
        };
        let accepts = session.dialect != Dialect::Goim
            || session.packets.as_ref().is_some_and(|packets| packets.accepts.contains(&operation));
        let encoding: Option<Encoding> = session.encoding().filter(|_| accepts);
        match encoding.and_then(|encoding| once.get(&mut self.encoder, encoding)) {
            Some(frame) => {
                self.counters.pushed += 1;
                self.own(key, frame);
            }
            None => self.counters.push_drops += 1,
        }
    }
}
