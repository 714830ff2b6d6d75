//! Sending. A round is a bounded piece of work (rule 27): some hundred sends. Sessions that have something of their own share
//! them with the fan-out passes over rooms. Rooms and lanes have turns by deficit round robin, the high lane first.
//!
//! ```text
//!   deliver ─▶ schedule ─▶ pass: encode what gathered, send each member ring[cursor..head] ─▶ pacing delay ─▶ next pass
//!   writable, replies, joins, gaps ─▶ ready ─▶ serve: remainder of a half-sent frame, own output, gaps, all its rooms
//! ```
//!
//! The hot path, the slices of a pass, is in [`batch`](super::batch). A session that has output of its own is *ready* and is
//! served from here. A pass leaves out sessions that are ready or blocked.
//!
//! A pass sends up to the ring's present head. What comes while it is under way is encoded every [`GATHER_MS`] and reaches
//! each member with its next visit. So a message waits for at most one pass.
//!
//! Three things change under load:
//! - A pacing delay follows a pass, in proportion to its sends ([`EngineConfig::pacing_ms_max`]). Below the core's limit messages
//!   gather meanwhile and cost fewer sends. The first message after the delay waits for nothing.
//! - A pass that carries much and takes longer than [`LATE_MS`] shows that the core cannot keep up. Then new messages on the
//!   room's normal lane are shed: not encoded, but counted, and told to everyone by one gap ([`Engine::encode`]). What is
//!   delivered stays fresh, and no session is closed for a slowness that is the core's. The backlog that a standstill left is
//!   no overload ([`stall`](super::stall)). The pass goes round until every member has reached its goal.
//! - A member that takes nothing while the ring runs full is moved to the ring's head. The messages between are a gap.

use proto::client::{ErrorCode, GapReasons};

use super::{
    Engine,
    ahead::go_along,
    config::EngineConfig,
    entry::{HIGH, NORMAL},
    fault::Fault,
    ring::{Missing, SEND_BYTES_MAX},
    room::Feed,
    sender::{Flow, SessionSender, all_of},
    session::{Ending, Slot},
    timing::Timers,
};
use machine::{BATCH_MAX, Key, Next, Outlet};

/// Sends that a room's lane has before the next one's turn: a batch of the driver's.
const QUANTUM: i32 = BATCH_MAX as i32;
/// What comes while a pass is under way is encoded no more often than this, milliseconds. It makes batches of some
/// messages, and is a fraction of the time that a long pass takes.
const GATHER_MS: u64 = 4;
/// A pass that takes longer than this is late, milliseconds, if it also carries more than [`EngineConfig::late_bytes`] to
/// each member. What comes meanwhile waits for it and for the next pass, which should be over within 300. A machine that
/// stands still for 50 ms within a pass is not late: at 90 such a pause shed messages at two thirds of the core's load.
const LATE_MS: u64 = 130;
/// A pass that takes longer than this is late, too, milliseconds, if more gathered meanwhile than one send carries. The next
/// pass would have to go round twice, and fall behind further.
const FULL_MS: u64 = 45;

impl Engine {
    /// A room has new entries: schedules passes over its feeds.
    pub(super) fn news(&mut self, index: usize) {
        let Some(room) = self.rooms.get_mut(index) else { return };
        let fresh = std::mem::take(&mut room.fresh);
        for feed in &mut room.feeds {
            for lane in [HIGH, NORMAL].into_iter().filter(|lane| fresh[*lane]) {
                self.schedule.add(index, feed, lane, self.now.mono_ms);
            }
        }
        self.rooms.mark_dirty(index);
    }

    /// A room's log begins anew: who had not read all of the old one will not (no position could say where he is), and
    /// is told so on both lanes before anything of the new one.
    pub(super) fn restart(&mut self, index: usize, log: std::sync::Arc<str>, before: u64, missed: GapReasons) {
        for feed in 0..self.rooms[index].feeds.len() {
            self.encode(index, feed);
            for lane in [HIGH, NORMAL] {
                let head = self.rooms[index].feeds[feed].lanes[lane].ring.head();
                self.skip_slow(index, feed, lane, head);
            }
        }
        let room = &mut self.rooms[index];
        room.restart(log, before);
        for feed in room.feeds.iter_mut().filter(|feed| feed.encoding.is_native()) {
            for member in &feed.members {
                let backlog = feed.backlog.entry(member.slot).or_default();
                (backlog.inexact, backlog.resume_position) = ([true; 2], before);
                let unread = std::mem::take(&mut backlog.rest).iter().map(|rest| rest.messages).sum::<u64>();
                self.counters.skipped += unread;
                let mut missing = missed;
                missing.slow += unread;
                backlog.add(NORMAL, missing, true);
                self.sessions.ready(member.slot);
            }
        }
        self.counters.missed += missed.total();
    }

    /// Encodes for a feed what it has not encoded, and keeps its rings within their bound. If the pass under way is late,
    /// of what came on the normal lane only how much it was: everyone is told, and the core can catch up.
    pub(super) fn encode(&mut self, index: usize, feed: usize) {
        let now_ms = self.now.mono_ms;
        let Self { sessions, rooms, encoder, counters, stall, .. } = self;
        let room = &mut rooms[index];
        let pass = &room.feeds[feed].lanes[NORMAL];
        let gathered = pass.ring.head() - pass.goal;
        let since_ms = stall.work_ms() - pass.began_ms;
        let late = pass.left > 0
            && !stall.is_backlog()
            && gathered > u64::from(self.config.late_bytes)
            && (since_ms > LATE_MS || (since_ms > FULL_MS && gathered > SEND_BYTES_MAX));
        room.feeds[feed].encoded_ms = now_ms;
        let shed = room.encode(feed, encoder, late);
        counters.shed += shed * room.feeds[feed].members.len() as u64;
        go_along(sessions, (index, room), feed);
        let most = u64::from(self.config.ring_bytes_max);
        for lane in [HIGH, NORMAL] {
            let ring = &self.rooms[index].feeds[feed].lanes[lane].ring;
            if ring.head() - ring.tail() > most {
                self.skip_slow(index, feed, lane, ring.tail_within(most / 8 * 7));
            }
        }
    }

    /// Moves the tail of a ring, and who has not read so far to its head: the messages between are told as missed for its
    /// slowness, and the gaps between for their own reasons.
    fn skip_slow(&mut self, index: usize, feed: usize, lane: usize, tail: u64) {
        let fault = self.config.planted();
        let Feed { encoding, lanes, members, backlog, .. } = &mut self.rooms[index].feeds[feed];
        let ring = &mut lanes[lane].ring;
        let head = ring.count_at(ring.head());
        for member in members.iter_mut().filter(|member| member.cursors[lane] < tail) {
            let cursor = member.cursors[lane];
            let boundary = ring.boundary_after(cursor);
            let slot = &mut self.sessions[member.slot];
            // A session whose buffer has room waits for the core: that does not make it slow.
            let slow = slot.blocked && !slot.woken;
            if let Some(session) = slot.session.as_deref_mut() {
                if slow && session.stays_behind(self.now.mono_ms) {
                    self.endings.too_slow(session.key);
                }
                if boundary != cursor {
                    session.busy_mut().half = None;
                    if fault != Some(Fault::LostRemainder) {
                        session.busy_mut().out.push_remainder(ring.rest(cursor));
                    }
                }
            }
            let skipped = head - ring.count_at(boundary);
            self.counters.skipped += skipped.all - skipped.missing;
            if encoding.is_native() && fault != Some(Fault::UncountedDrop) {
                let backlog = backlog.entry(member.slot).or_default();
                if lane == NORMAL && !backlog.on(NORMAL) {
                    backlog.resume_position = ring.offset_at(boundary);
                }
                let Missing { mut reasons, inexact } = ring.missing_between(boundary, ring.head());
                if fault == Some(Fault::AllCalledSlow) {
                    reasons = GapReasons { slow: skipped.missing, ..GapReasons::default() };
                }
                reasons.slow += skipped.all - skipped.missing;
                backlog.add(lane, reasons, inexact);
            }
            self.sessions.ready(member.slot);
            member.cursors[lane] = ring.head();
            if fault == Some(Fault::WrapOffByOne) {
                member.cursors[lane] += 1;
            }
        }
        ring.trim(tail);
    }

    /// One round.
    pub(super) fn serve(&mut self, outlet: &mut impl Outlet) -> Next {
        if self.endings.stops_accepting() {
            outlet.stop_accepting();
        }
        self.drain_on();
        for key in self.endings.take_too_slow() {
            self.end(key, Ending::new(ErrorCode::TooSlow, "reads too slowly, and stays behind"));
        }
        for _ in 0..self.sessions.count_readable() {
            let Some(key) = self.sessions.next_readable() else { break };
            self.read_again(key, outlet);
        }
        self.schedule.wake(self.now.mono_ms);
        let sends = self.config.round_sends as i32;
        let mut left = sends;
        self.pace_alls(&mut left);
        // Whoever has something of his own has half the round at most.
        let mut own = left.max(sends / 2) / 2;
        for _ in 0..self.sessions.count_ready() {
            if own <= 0 {
                break;
            }
            let Some(key) = self.sessions.next_ready() else { break };
            own -= self.serve_session(key, outlet) as i32;
        }
        left = left.max(sends / 2) / 2 + own.max(0);
        // The high lane first, but not alone.
        let mut high = left * 3 / 4;
        self.fan_out(HIGH, &mut high, outlet);
        left = left / 4 + high.max(0);
        self.fan_out(NORMAL, &mut left, outlet);
        self.fan_out(HIGH, &mut left, outlet);
        for key in self.endings.take_dead() {
            outlet.close(key);
        }
        let again = self.sessions.count_ready() > 0 || self.sessions.count_readable() > 0 || self.schedule.due() > 0;
        Next { again, wake_ms: self.wake_ms() }
    }

    fn read_again(&mut self, key: Key, outlet: &mut impl Outlet) {
        self.read_kept(key);
        if let Some(session) = self.session(key).filter(|session| !session.busy().allowed.is_empty()) {
            session.busy_mut().allowed = Vec::new();
        }
        let (in_flight, private_bytes) = (self.config.requests_in_flight, self.config.private_bytes_max);
        if let Some(session) = self.session(key)
            && session.paused
            && !session.is_closing()
            && session.may_read(in_flight, private_bytes)
        {
            session.paused = false;
            outlet.read(key);
        }
        self.settle(key);
    }

    /// A session's turn: all that is its own, then its rooms. How many sends it took.
    fn serve_session(&mut self, key: Key, outlet: &mut impl Outlet) -> u32 {
        let Self { sessions, rooms, encoder, counters, .. } = self;
        let Some(slot) = sessions.slot_of(key) else { return 1 };
        slot.queued = false;
        if slot.blocked && !slot.woken {
            // A fan-out pass has filled the kernel's buffer since it was queued.
            return 1;
        }
        let stuck = std::mem::replace(&mut slot.blocked, false);
        let Some(session) = slot.session.as_deref_mut() else { return 1 };
        let mut line = SessionSender { outlet, counters, key, sends: 0, took: 0 };
        let flow = all_of(&mut line, encoder, session, rooms);
        let (sends, took) = (line.sends, line.took);
        if stuck && flow != Flow::Blocked {
            session.busy_mut().stuck_ms = 0;
        }
        let (closing, clear) = (session.is_closing(), session.busy().out.is_empty());
        match flow {
            Flow::Blocked => {
                let Self { sessions, timers, config, .. } = self;
                block(&mut sessions[key.slot], timers, config, self.now.mono_ms, !stuck || took > 0);
            }
            Flow::More => self.ready(key),
            Flow::Clear if closing && clear => self.kill(key),
            Flow::Clear => {}
        }
        self.maybe_readable(key);
        self.settle(key);
        sends.max(1)
    }

    /// Walks over the members of rooms, as long as there are sends `left`.
    fn fan_out(&mut self, lane: usize, left: &mut i32, outlet: &mut impl Outlet) {
        while *left > 0 {
            let Some(mut turn) = self.schedule.next(lane) else {
                // Walks that are not over come up again when their members in the batch have been sent to.
                if self.send_batch(lane, outlet) {
                    continue;
                }
                return;
            };
            let feed = self.rooms.get(turn.room).and_then(|room| room.feed(turn.encoding));
            let due = |feed: &usize| self.rooms[turn.room].feeds[*feed].lanes[lane].turn == turn.number;
            let Some(feed) = feed.filter(due) else { continue };
            if turn.credit <= 0 {
                turn.credit += QUANTUM;
            }
            self.begin_pass(turn.room, feed, lane);
            let (took, full) = self.slice(turn, (feed, lane), turn.credit.min(*left));
            *left -= took;
            if full {
                self.send_batch(lane, outlet);
            }
        }
        self.send_batch(lane, outlet);
    }

    /// Encodes what gathered: before the first slice of a pass, and now and then while it is under way.
    fn begin_pass(&mut self, index: usize, at: usize, lane: usize) {
        let now_ms = self.now.mono_ms;
        let room = &self.rooms[index];
        let (end, feed) = (room.end(), &room.feeds[at]);
        let begins = feed.lanes[lane].left == 0;
        if begins || (feed.encoded < end && now_ms - feed.encoded_ms >= GATHER_MS) {
            self.encode(index, at);
            self.rooms[index].forget();
        }
        if begins {
            let feed = &mut self.rooms[index].feeds[at];
            let (members, pass) = (feed.members.len(), &mut feed.lanes[lane]);
            if pass.ring.head() != pass.goal {
                (pass.left, pass.goal) = (members, pass.ring.head());
                (pass.began_ms, pass.sends) = (self.stall.work_ms(), 0);
            }
            if !pass.follows {
                // Not always the same ones first.
                pass.at = (pass.at + 1 + members / 8) % members.max(1);
            }
        }
    }

    /// All members have been visited. Drops what all of them have. Where a send did not carry a member to the goal, the pass
    /// goes round again. Where there is more by now, the next pass follows after a pacing delay.
    pub(super) fn end_pass(&mut self, index: usize, feed: usize, lane: usize) {
        let room = &mut self.rooms[index];
        let (floor, end) = (room.floor, room.end());
        let feed = &mut room.feeds[feed];
        feed.trim(lane, Some(floor));
        let (members, pass) = (feed.members.len(), &mut feed.lanes[lane]);
        if std::mem::take(&mut pass.short) {
            pass.left = members;
            return;
        }
        if lane == NORMAL {
            let pacing_ms = u64::from(pass.sends / self.config.sends_per_ms.max(1));
            pass.paced_until_ms = self.now.mono_ms + pacing_ms.min(u64::from(self.config.pacing_ms_max));
        }
        pass.sends = 0;
        pass.follows = pass.ring.head() != pass.goal || feed.encoded < end;
        if !pass.follows {
            pass.turn = 0;
        }
    }
}

/// The kernel takes no more for a session: it comes up by `writable`, or is closed when that does not come.
pub(super) fn block(slot: &mut Slot, timers: &mut Timers, config: &EngineConfig, now_ms: u64, progress: bool) {
    (slot.blocked, slot.woken) = (true, false);
    if let Some(session) = slot.session.as_deref_mut() {
        if progress {
            session.busy_mut().stuck_ms = now_ms;
        }
        timers.arm(session, session.busy().stuck_ms + u64::from(config.slow_close_s) * 1000);
    }
}
