//! How sessions end: told why, taken out of everything, flushed, closed. And how all of them end: draining.

use proto::{
    client::{ErrorCode, Goodbye, server_frame::Body},
    error::row,
};

use super::{
    Engine, encode,
    fault::Fault,
    session::{Ending, Phase, Wire},
};
use machine::{Key, Now};

/// How long a closing session's last bytes may take to go out, milliseconds. Then it is closed without.
pub(super) const CLOSE_MS: u64 = 2000;

/// Of the time that a draining node has, the part in which it tells its sessions, in percent; in the rest the last of
/// them flush.
const DRAIN_PERCENT: u64 = 80;

/// Sessions that a draining core tells a millisecond at least. A core admits 20,000 a second, so that a fifth of it
/// elsewhere takes them; only a larger node needs its time.
const DRAIN_PER_MS: u64 = 4;

/// How many of `sessions` are told `passed_ms` after a drain began, so that all are when `window_ms` have passed.
fn told_by(sessions: u64, passed_ms: u64, window_ms: u64) -> u64 {
    if passed_ms >= window_ms {
        return u64::MAX;
    }
    (sessions * passed_ms / window_ms).max((passed_ms + 1) * DRAIN_PER_MS)
}

/// A drain under way.
#[derive(Debug)]
pub(super) struct Drain {
    began_ms: u64,
    /// When all are told, when all is closed; milliseconds.
    told_ms: u64,
    until_ms: u64,
    /// Sessions at the beginning.
    sessions: u64,
    ended: u64,
    /// The next slot to be told.
    next: usize,
    /// The driver was told to accept no more.
    stopped: bool,
}

/// Sessions that end with the next round, and the end of all of them.
#[derive(Debug, Default)]
pub(super) struct Endings {
    /// Sessions that read too slowly for too long.
    too_slow: Vec<Key>,
    /// Connections to be closed; the sessions are gone.
    dead: Vec<Key>,
    drain: Option<Drain>,
}

impl Endings {
    /// Whether this node goes away.
    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether the driver is to be told now to accept no more: once in a drain.
    pub(super) fn stops_accepting(&mut self) -> bool {
        self.drain.as_mut().is_some_and(|drain| !std::mem::replace(&mut drain.stopped, true))
    }

    /// A session is to end, since it stays behind.
    pub(super) fn too_slow(&mut self, key: Key) {
        self.too_slow.push(key);
    }

    /// Takes the sessions that stay behind.
    pub(super) fn take_too_slow(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.too_slow)
    }

    /// Takes the connections to be closed.
    pub(super) fn take_dead(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.dead)
    }

    /// Whether no connection is left to be closed.
    pub(super) fn is_closed(&self) -> bool {
        self.dead.is_empty()
    }

    /// How many are to end.
    pub(super) fn len(&self) -> usize {
        self.too_slow.len() + self.dead.len()
    }
}

impl Engine {
    /// Ends a session: says why in its dialect, takes it out of everything, and closes when that has gone out.
    pub(super) fn end(&mut self, key: Key, ending: Ending) {
        let Some(session) = self.session(key).filter(|session| !session.is_closing()) else { return };
        let encoding = session.encoding();
        let web = matches!(session.wire, Wire::WebSocket(_));
        let row = row(ending.code);
        self.counters.closed[ending.code as usize] += 1;
        self.depart(key);
        if let Some(encoding) = encoding.filter(|encoding| encoding.is_native()) {
            let body = Body::Goodbye(Goodbye {
                code: ending.code.into(),
                reason: ending.reason.clone(),
                retry: row.retry,
                delay_ms: ending.delay_ms,
            });
            let goodbye = self.encoder.own(encoding, 0, body);
            self.last_words(key, goodbye);
        }
        if web {
            self.last_words(key, encode::close(ending.close_code.unwrap_or(row.close_code), &ending.reason));
        }
        self.close_when_flushed(key);
    }

    /// The peer says goodbye: answered, then closed.
    pub(super) fn part(&mut self, key: Key, code: u16) {
        if self.session(key).is_none_or(|session| session.is_closing()) {
            return;
        }
        self.counters.left += 1;
        self.depart(key);
        self.last_words(key, encode::close(code, ""));
        self.close_when_flushed(key);
    }

    /// Past every bound: it is closing.
    fn last_words(&mut self, key: Key, frame: bytes::Bytes) {
        if let Some(session) = self.session(key) {
            session.busy_mut().out.push(frame);
        }
    }

    fn close_when_flushed(&mut self, key: Key) {
        let until_ms = self.now.mono_ms + CLOSE_MS;
        let Some(session) = self.session(key) else { return };
        session.phase = Phase::Closing;
        let busy = session.busy_mut();
        (busy.deadline_ms, busy.inbox, busy.carry) = (until_ms, Vec::new(), Vec::new());
        self.arm(key, until_ms);
        self.ready(key);
    }

    /// Takes a session out of its rooms, the routes and the numbers.
    fn depart(&mut self, key: Key) {
        let leaked = self.config.planted() == Some(Fault::LeakedSession) && key.slot % 16 == 7;
        while let Some(place) = self.session(key).and_then(|session| session.places.last().copied()) {
            if leaked {
                break;
            }
            self.leave_room(key, place.room());
        }
        let joining =
            self.session(key).map(|session| std::mem::take(&mut session.busy_mut().joining)).unwrap_or_default();
        for joining in joining {
            if let Some(index) = self.rooms.find(&joining.channel) {
                self.rooms[index].waiters.retain(|waiter| waiter.key != key);
                self.linger(index);
            }
        }
        let Some(session) = self.session(key) else { return };
        let (packets, address) = (session.packets.take(), session.address());
        let identity = session.identity.take();
        if let Some(identity) = &identity {
            self.change(key, identity, packets.as_deref(), true);
        }
        if let Some(packets) = packets {
            self.sessions.accepts.give_back(packets.accepts);
        }
        let Some(identity) = identity else { return };
        self.sessions.grants.give_back(identity.grant);
        self.sessions.dismiss();
        self.limits.dismiss(address);
    }

    /// Forgets a session whose connection is gone.
    pub(super) fn forget(&mut self, key: Key) {
        self.depart(key);
        let now_ms = self.now.mono_ms;
        let Some(session) = self.session(key) else { return };
        let (counted, address, deflate) = (session.counted, session.address(), session.deflate);
        self.limits.disconnect(now_ms, address, counted);
        self.windows.release(key.slot, deflate);
        self.sessions.close(key);
    }

    /// Closes a session's connection without further ado.
    pub(super) fn kill(&mut self, key: Key) {
        if self.session(key).is_some() {
            self.forget(key);
            self.endings.dead.push(key);
        }
    }

    /// Begins to drain.
    pub(super) fn start_drain(&mut self, within_ms: u64) {
        if self.endings.is_draining() {
            return;
        }
        let Now { mono_ms, .. } = self.now;
        self.endings.drain = Some(Drain {
            began_ms: mono_ms,
            told_ms: mono_ms + within_ms * DRAIN_PERCENT / 100,
            until_ms: mono_ms + within_ms,
            sessions: self.sessions.connections() as u64,
            ended: 0,
            next: 0,
            stopped: false,
        });
    }

    /// The next steps of draining: as many sessions are told as the time that has passed is of all the time.
    pub(super) fn drain_on(&mut self) {
        let now_ms = self.now.mono_ms;
        loop {
            let Some(drain) = &mut self.endings.drain else { return };
            // Clients come back as far apart as they were told, or a little more: who waits longer misses more.
            let delay_max = u64::from(self.config.drain_delay_max_ms).min(drain.sessions / DRAIN_PER_MS);
            let due = told_by(drain.sessions, now_ms - drain.began_ms, (drain.told_ms - drain.began_ms).max(1));
            if drain.next >= self.sessions.slots().len() || (drain.ended >= due && now_ms < drain.until_ms) {
                break;
            }
            let slot = drain.next;
            drain.next += 1;
            let Some(key) = self.sessions.at(slot).map(|session| session.key) else { continue };
            drain.ended += 1;
            let mut ending = Ending::new(ErrorCode::Draining, "this node goes away: connect to another");
            ending.delay_ms = self.random(delay_max + 1) as u32;
            self.end(key, ending);
        }
        if self.endings.drain.as_ref().is_some_and(|drain| now_ms >= drain.until_ms) {
            let left: Vec<_> = self.sessions.iter().map(|session| session.key).collect();
            left.into_iter().for_each(|key| self.kill(key));
        }
    }

    /// When draining goes on, milliseconds.
    pub(super) fn drain_ms(&self) -> Option<u64> {
        self.endings.drain.as_ref().map(|drain| {
            let next_ms = self.now.mono_ms + 1;
            if drain.next < self.sessions.slots().len() { next_ms } else { drain.until_ms.max(next_ms) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_node_tells_its_sessions_at_once_and_a_large_one_takes_its_time() {
        assert!(told_by(1, 0, 24_000) >= 1);
        assert!(told_by(20, 5, 24_000) >= 20);
        let large = 1_000_000;
        assert_eq!(told_by(large, 12_000, 24_000), large / 2);
        assert!(told_by(large, 24_000, 24_000) >= large);
        let told: Vec<_> = (0..24_000).map(|passed_ms| told_by(large, passed_ms, 24_000)).collect();
        assert!(told.is_sorted() && told.windows(2).all(|two| two[1] - two[0] <= 50), "evenly");
    }
}
