//! Everything that happens because time passes.

use proto::client::ErrorCode;

use super::{
    Engine,
    event::CoreRequest,
    identity::Identity,
    session::{Dialect, Ending, Phase, Session},
    wheel::{TICK_MS, Wheel, tick_of},
};
use machine::Key;

/// Interval of the numbers that the control thread is told, milliseconds.
pub(super) const SECOND_MS: u64 = 1000;

/// goim's heartbeat, milliseconds; a session lapses after two missed (compat.md).
const GOIM_HEARTBEAT_MS: u64 = 240_000;
/// Bilibili's silence that closes, milliseconds (compat.md).
const BILIBILI_SILENCE_MS: u64 = 60_000;
/// Who has taken nothing for so long keeps the kernel's memory; before that it may be on its way, milliseconds.
const STUCK_MS: u64 = 1000;
/// Between two looks for addresses that can be forgotten, milliseconds.
const SWEEP_MS: u64 = 60_000;

/// What is due to a session, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deadline {
    /// It says nothing.
    Idle,
    /// It is not authenticated.
    Unauthenticated,
    /// Its token has lapsed, and the leeway, too.
    Expired,
    /// It takes nothing.
    Slow,
    /// Its last words did not go out.
    Close,
}

/// What the wheel has looked at.
#[derive(Debug, Clone, Copy)]
enum Timer {
    /// Whoever has this slot now: an entry of the slot's last session is looked at in vain.
    Session(u32),
    /// Whichever room has this index now.
    Room(u32),
}

/// When what is due by time is looked at.
#[derive(Debug)]
pub(super) struct Timers {
    wheel: Wheel<Timer>,
    /// When the once-a-second work is due, milliseconds.
    second_ms: u64,
    /// When addresses are looked through, milliseconds.
    sweep_ms: u64,
    /// The number of sessions that was last told.
    told_sessions: Option<u64>,
}

impl Timers {
    pub(super) fn new(now_ms: u64) -> Self {
        Self { wheel: Wheel::new(now_ms), second_ms: now_ms + SECOND_MS, sweep_ms: now_ms, told_sessions: None }
    }

    /// Has the wheel look at a session at this time, milliseconds, at the latest.
    pub(super) fn arm(&mut self, session: &mut Session, at_ms: u64) {
        let tick = tick_of(at_ms);
        if tick < session.wheel {
            session.wheel = tick;
            self.wheel.add(tick, Timer::Session(session.key.slot));
        }
    }

    /// Has the wheel look at a room at this time, milliseconds.
    pub(super) fn arm_room(&mut self, index: usize, at_ms: u64) {
        self.wheel.add(tick_of(at_ms), Timer::Room(index as u32));
    }

    /// Entries of the wheel.
    pub(super) fn len(&self) -> usize {
        self.wheel.len()
    }
}

impl Engine {
    /// Has the wheel look at a session at this time, milliseconds, at the latest.
    pub(super) fn arm(&mut self, key: Key, at_ms: u64) {
        let Self { sessions, timers, .. } = self;
        if let Some(session) = sessions.get_mut(key) {
            timers.arm(session, at_ms);
        }
    }

    /// Has the wheel look at a session when something of it is due.
    pub(super) fn rearm(&mut self, key: Key) {
        if let Some((at_ms, _)) = self.next_due(key) {
            self.arm(key, at_ms);
        }
    }

    fn next_due(&self, key: Key) -> Option<(u64, Deadline)> {
        let session = self.sessions.get(key)?;
        let slot = &self.sessions[key.slot];
        if session.is_closing() {
            return Some((session.busy().deadline_ms, Deadline::Close));
        }
        let slow = slot.blocked.then(|| session.busy().stuck_ms + u64::from(self.config.slow_close_s) * 1000);
        let opening = (session.phase != Phase::Live).then(|| session.busy().deadline_ms);
        let expired = session.identity.as_ref().and_then(Identity::expires_at_ms).map(|at_ms| {
            let until = at_ms + i64::from(self.config.token_leeway_s) * 1000 - self.now.unix_ms;
            self.now.mono_ms + u64::try_from(until).unwrap_or(0)
        });
        [
            Some((session.heard_ms(self.now.mono_ms) + self.silence_ms(session), Deadline::Idle)),
            opening.map(|at_ms| (at_ms, Deadline::Unauthenticated)),
            expired.map(|at_ms| (at_ms, Deadline::Expired)),
            slow.map(|at_ms| (at_ms, Deadline::Slow)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// How long a session may say nothing, milliseconds.
    fn silence_ms(&self, session: &Session) -> u64 {
        match session.dialect {
            Dialect::Goim => 2 * GOIM_HEARTBEAT_MS,
            Dialect::Bilibili(_) => BILIBILI_SILENCE_MS,
            _ => 2000 * u64::from(self.config.heartbeat_s),
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self) {
        while let Some(entries) = self.timers.wheel.due(self.now.mono_ms) {
            for entry in entries {
                match entry {
                    Timer::Session(slot) => self.session_due(slot),
                    Timer::Room(index) => self.room_due(index as usize),
                }
            }
        }
        if self.now.mono_ms >= self.timers.second_ms {
            self.timers.second_ms = self.now.mono_ms + SECOND_MS;
            self.tell();
        }
        self.rooms.shrink_idle(self.config.recent_bytes_max);
    }

    fn session_due(&mut self, slot: u32) {
        let now_ms = self.now.mono_ms;
        let Some(session) = self.sessions.at_mut(slot) else { return };
        // Another entry was made for an earlier time, and has taken this one's place; or this one was of the slot's last
        // user.
        if u64::from(session.wheel) * TICK_MS > now_ms {
            return;
        }
        session.wheel = u32::MAX;
        session.settle(now_ms);
        let key = session.key;
        let (phase, refused) = (session.phase, session.busy().refused);
        let Some((at_ms, due)) = self.next_due(key) else { return };
        if at_ms > now_ms {
            return self.arm(key, at_ms);
        }
        let (code, reason) = match due {
            Deadline::Close => return self.kill(key),
            Deadline::Idle => (ErrorCode::Idle, "no heartbeat"),
            Deadline::Unauthenticated if phase == Phase::Refused => (refused, "the authentication was refused"),
            Deadline::Unauthenticated if phase == Phase::Authenticating => {
                (ErrorCode::Unavailable, "logic did not answer: try again")
            }
            Deadline::Unauthenticated => (ErrorCode::Unauthenticated, "not authenticated in time"),
            Deadline::Expired => (ErrorCode::TokenExpired, "the token has lapsed"),
            Deadline::Slow => (ErrorCode::TooSlow, "nothing was read for too long"),
        };
        self.end(key, Ending::new(code, reason));
    }

    /// What the control thread is told once a second.
    fn tell(&mut self) {
        let changed = self.rooms.changed();
        let counts: Vec<_> = changed.into_iter().filter_map(|index| self.tell_count(index)).collect();
        if !counts.is_empty() {
            self.requests.push(CoreRequest::Counts(counts));
        }
        let (came, went) = self.limits.changes();
        let sessions = self.sessions.admitted();
        if self.timers.told_sessions.replace(sessions) != Some(sessions) || !came.is_empty() || !went.is_empty() {
            self.requests.push(CoreRequest::Sessions { sessions, came, went });
        }
        self.rooms.settle();
        self.close_the_slowest();
        self.shrink();
        if self.now.mono_ms >= self.timers.sweep_ms {
            self.timers.sweep_ms = self.now.mono_ms + SWEEP_MS;
            self.limits.sweep(self.now.mono_ms);
        }
    }

    /// Keeps what the kernel holds for clients that take nothing within its budget (rule 29): over it, who has taken
    /// nothing for longest goes first.
    fn close_the_slowest(&mut self) {
        let stuck = self.sessions.slots().iter().filter(|slot| slot.blocked).filter_map(|slot| slot.session.as_deref());
        let mut stuck: Vec<(u64, Key)> = stuck
            .filter(|session| !session.is_closing())
            .map(|session| (session.busy().stuck_ms, session.key))
            .filter(|(stuck_ms, _)| stuck_ms + STUCK_MS <= self.now.mono_ms)
            .collect();
        let most = self.config.stuck_bytes_max / u64::from(self.config.socket_bytes.max(1));
        let over = stuck.len().saturating_sub(usize::try_from(most).unwrap_or(usize::MAX));
        if over == 0 {
            return;
        }
        stuck.sort_unstable();
        for &(_, key) in &stuck[..over] {
            self.end(key, Ending::new(ErrorCode::TooSlow, "too many clients read nothing"));
        }
    }

    /// When something is due by time, milliseconds.
    pub(super) fn wake_ms(&self) -> u64 {
        let wheel = if self.timers.len() > 0 { self.timers.wheel.next_ms() } else { u64::MAX };
        let dozing_ms = self.rooms.is_over(self.config.recent_bytes_max).then_some(self.now.mono_ms + 1);
        let at = [self.drain_ms(), self.alls_ms(), self.schedule.wake_ms(), dozing_ms];
        at.into_iter().flatten().chain([self.timers.second_ms, wheel]).min().unwrap_or(self.timers.second_ms)
    }
}
