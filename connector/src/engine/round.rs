//! Sending. A round is a bounded piece of work (rule 27): a few hundred sends, shared by sessions with something of
//! their own and by walks over the members of rooms, deficit round robin over rooms and lanes, the high lane first.
//!
//! ```text
//!   news ─▶ schedule ─▶ walk: encode what gathered, then each member: ring[cursor..head] ─▶ rest ─▶ the next walk
//!   writable, replies, joins, gaps ─▶ ready ─▶ serve: the half-sent frame's rest, own output, gaps, all its rooms
//! ```
//!
//! The hot path is [`Engine::stride`]: of a member that has nothing of its own to do it touches the `Member`, the `Slot`
//! and the driver's descriptor, three cache lines, and never the `Session`. So whatever is a session's own makes it
//! *ready* and is sent from there, and a walk leaves out who is ready or blocked.
//!
//! The members of a walk whose turn it is are sent to all together: the driver hands a batch of sends to the kernel with
//! one call ([`Outlet::send_all`]).
//!
//! A walk sends to the ring's head of the moment, not of its beginning: what comes while it is under way is encoded every
//! [`GATHER_MS`] and reaches each member with its next visit. So a message waits for one walk at most.
//!
//! Three things bend under load:
//! - A walk is followed by a rest in proportion to its sends ([`EngineConfig::rest_ms_max`]): below the core's limit
//!   messages gather, and cost fewer sends. A room's first message after a rest waits for nothing.
//! - A walk that takes longer than [`LATE_MS`] though it carries much shows that the core cannot keep up. Then what comes
//!   to the room on the normal lane is not encoded but counted, and told by one gap to everyone ([`Engine::encode`]):
//!   what is delivered stays fresh, and nobody is closed for a slowness that is ours.
//! - Who takes nothing while the ring runs full is skipped to its head.

use std::collections::VecDeque;

use arrayvec::ArrayVec;
use proto::client::{self, ErrorCode, server_frame::Body};

use super::{
    Counters, Engine, Timer,
    ahead::go_along,
    config::{EngineConfig, Fault},
    encode::{Encoder, Encoding},
    ring::{Count, Ring},
    room::{Feed, FeedLane, HIGH, NORMAL, Room},
    session::{Ending, Session, Slot},
    wheel::Wheel,
};
use crate::driver::{BATCH_MAX, Key, Next, Outlet, Sending, Sent};

/// Sends that a room's lane has before the next one's turn: a batch of the driver's.
const QUANTUM: i32 = BATCH_MAX as i32;
/// Members that may be looked at for the price of a send: nothing is due to them.
const LOOKS_PER_SEND: usize = 32;
/// Sends of a ring to a session that is served alone, before the next one's turn.
const SENDS_PER_TURN: usize = 2;
/// What comes while a walk is under way is encoded no more often, milliseconds: batches of some messages, for a fraction
/// of the time that a long walk takes anyway.
const GATHER_MS: u64 = 4;
/// A walk that takes longer is late, milliseconds, if it also carries more than [`EngineConfig::late_bytes`] to each member: three of
/// five thousand sends.
const LATE_MS: u64 = 90;
/// Walks that are due.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    lanes: [VecDeque<Turn>; 2],
    /// Their lane, and when they are due, milliseconds. Only rooms of hundreds of sessions rest: few.
    resting: Vec<(u64, usize, Turn)>,
}

/// A walk over the members of a feed, for one lane.
#[derive(Debug, Clone, Copy)]
struct Turn {
    room: usize,
    encoding: Encoding,
    /// Sends that it has left of its turns; negative: it took more.
    credit: i32,
}

impl Schedule {
    /// Has a feed's lane walked, if it is not to be anyway.
    fn add(&mut self, room: usize, feed: &mut Feed, lane: usize, now_ms: u64) {
        let walked = &mut feed.lanes[lane];
        if !std::mem::replace(&mut walked.queued, true) {
            walked.left = 0;
            self.put(walked.rest_until_ms, lane, Turn { room, encoding: feed.encoding, credit: 0 }, now_ms);
        }
    }

    fn put(&mut self, at_ms: u64, lane: usize, turn: Turn, now_ms: u64) {
        if at_ms > now_ms {
            self.resting.push((at_ms, lane, turn));
        } else {
            self.lanes[lane].push_back(turn);
        }
    }

    /// Ends the rests that are over.
    fn wake(&mut self, now_ms: u64) {
        for (_, lane, turn) in self.resting.extract_if(.., |(at_ms, ..)| *at_ms <= now_ms) {
            self.lanes[lane].push_back(turn);
        }
    }

    /// When a rest is over, milliseconds.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        self.resting.iter().map(|(at_ms, ..)| *at_ms).min()
    }

    /// Walks that can go on now.
    fn due(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    /// Walks in it.
    pub(super) fn len(&self) -> usize {
        self.due() + self.resting.len()
    }

    /// Whether a feed's lane is to be walked.
    #[cfg(test)]
    pub(super) fn holds(&self, room: usize, encoding: Encoding, lane: usize) -> bool {
        let resting = self.resting.iter().filter(|(_, of, _)| *of == lane).map(|(.., turn)| turn);
        self.lanes[lane].iter().chain(resting).any(|turn| turn.room == room && turn.encoding == encoding)
    }
}

/// How far sending to a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// All that there was.
    Clear,
    /// Its turn is over, and there is more.
    More,
    /// The kernel takes no more.
    Blocked,
}

/// Sends to one session, and counts.
struct Line<'a, O> {
    outlet: &'a mut O,
    counters: &'a mut Counters,
    key: Key,
    sends: u32,
    /// Bytes that went out.
    took: usize,
}

impl<O: Outlet> Line<'_, O> {
    /// How many bytes the kernel took; all of them, or it is full or gone.
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.sends += 1;
        let sent = self.outlet.send(self.key, bytes);
        let took = self.counters.wrote(&Sending { key: self.key, bytes, sent });
        self.took += took;
        took
    }

    /// The session's own output.
    fn own(&mut self, session: &mut Session) -> Flow {
        let Some(out) = session.own_mut() else { return Flow::Clear };
        while let Some(front) = out.front() {
            let (bytes, took) = (front.len(), self.send(front));
            out.took(took);
            if took < bytes {
                return Flow::Blocked;
            }
        }
        Flow::Clear
    }

    /// The rest of a half-sent frame of a ring.
    fn rest(&mut self, ring: &Ring, cursor: &mut u64) -> Flow {
        let end = ring.boundary_after(*cursor);
        if end == *cursor { Flow::Clear } else { self.piece(ring, cursor, end) }
    }

    /// What a ring has for a member.
    fn ring(&mut self, ring: &Ring, cursor: &mut u64) -> Flow {
        for _ in 0..SENDS_PER_TURN {
            if *cursor >= ring.head() {
                return Flow::Clear;
            }
            if self.piece(ring, cursor, ring.send_end(*cursor)) == Flow::Blocked {
                return Flow::Blocked;
            }
        }
        if *cursor >= ring.head() { Flow::Clear } else { Flow::More }
    }

    fn piece(&mut self, ring: &Ring, cursor: &mut u64, end: u64) -> Flow {
        let (bytes, before) = (ring.between(*cursor, end), ring.count_at(*cursor));
        *cursor += self.send(bytes) as u64;
        self.counters.came(ring.count_at(*cursor) - before);
        if *cursor < end { Flow::Blocked } else { Flow::Clear }
    }
}

impl Counters {
    /// A send: how many bytes the kernel took.
    fn wrote(&mut self, &Sending { bytes, sent, .. }: &Sending<'_>) -> usize {
        // Gone: `closed` follows, and until then it is as good as full.
        let took = match sent {
            Sent::Took(took) => took.min(bytes.len()),
            Sent::Gone => 0,
        };
        self.writes += 1;
        self.bytes_out += took as u64;
        self.short_writes += u64::from(took < bytes.len());
        took
    }

    /// So much of a room was sent whole to a session.
    fn came(&mut self, count: Count) {
        self.deliveries += count.all - count.missing;
    }
}

/// What a member is due on a lane: what it missed, and what the ring has. The session is at a frame's end.
fn member_lane<O: Outlet>(
    line: &mut Line<'_, O>,
    encoder: &mut Encoder,
    session: &mut Session,
    (index, room): (usize, &mut Room),
    (feed, member): (usize, usize),
    lane: usize,
) -> Flow {
    let (name, log, feed) = (&room.name, &room.log, &mut room.feeds[feed]);
    if !feed.owed.is_empty()
        && let Some(owed) = feed.owed.get_mut(&line.key.slot).filter(|owed| owed.on(lane))
    {
        let (count, exact) = (owed.missed[lane], !owed.inexact[lane]);
        (owed.missed[lane], owed.inexact[lane]) = (0, false);
        let [high, normal] = feed.position(member);
        if feed.owed.get(&line.key.slot).is_some_and(|owed| !owed.on(HIGH) && !owed.on(NORMAL)) {
            feed.owed.remove(&line.key.slot);
        }
        let position = client::Position { log: log.to_string(), normal, high };
        let gap = client::Gap { channel: name.to_string(), count: count.into(), exact, position: Some(position) };
        session.busy_mut().out.push(encoder.own(feed.encoding, 0, Body::Gap(gap)));
        if line.own(session) == Flow::Blocked {
            return Flow::Blocked;
        }
    }
    let (ring, cursor) = (&feed.lanes[lane].ring, &mut feed.members[member].cursors[lane]);
    let flow = line.ring(ring, cursor);
    if flow == Flow::Blocked && !ring.rest(*cursor).is_empty() {
        session.busy_mut().half = Some((index, lane));
    }
    flow
}

/// What members who stand at the same place of a ring are sent: nearly all of a walk's do, so that it is searched for once.
#[derive(Debug, Clone, Copy)]
struct Piece {
    from: u64,
    to: u64,
    before: Count,
    count: Count,
}

impl Piece {
    const NONE: Self = Self {
        from: u64::MAX,
        to: u64::MAX,
        before: Count { all: 0, missing: 0 },
        count: Count { all: 0, missing: 0 },
    };

    fn at(ring: &Ring, from: u64) -> Self {
        let (to, before) = (ring.send_end(from), ring.count_at(from));
        Self { from, to, before, count: ring.count_at(to) - before }
    }
}

/// A member whom a stride sends a piece of a lane's ring.
#[derive(Debug, Clone, Copy)]
struct Due {
    member: usize,
    lane: usize,
    piece: Piece,
}

impl Engine {
    /// There is something new in a room.
    pub(super) fn news(&mut self, index: usize) {
        let Some(room) = self.rooms.get_mut(index) else { return };
        let fresh = std::mem::take(&mut room.fresh);
        for feed in &mut room.feeds {
            for lane in [HIGH, NORMAL].into_iter().filter(|lane| fresh[*lane]) {
                self.schedule.add(index, feed, lane, self.now.mono_ms);
            }
        }
        if !std::mem::replace(&mut room.stirred, true) {
            self.stirred.push(index);
        }
    }

    /// A room's log begins anew: who had not read all of the old one will not (no position could say where he is), and
    /// is told so on both lanes before anything of the new one.
    pub(super) fn restart(&mut self, index: usize, log: std::sync::Arc<str>, before: u64, missed: u64) {
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
                let owed = feed.owed.entry(member.slot).or_default();
                (owed.inexact, owed.stood) = ([true; 2], before);
                owed.add(NORMAL, missed, true);
                line_up(&mut self.slots[member.slot as usize], member.slot, &mut self.ready);
            }
        }
        self.counters.missed += missed;
    }

    /// Encodes for a feed what it has not encoded, and keeps its rings within their bound. If the walk under way is late,
    /// of what came on the normal lane only how much it was: everyone is told, and the core can catch up.
    pub(super) fn encode(&mut self, index: usize, feed: usize) {
        let now_ms = self.now.mono_ms;
        let Self { slots, rooms, encoder, counters, .. } = self;
        let room = &mut rooms[index];
        let walked = &room.feeds[feed].lanes[NORMAL];
        let gathered = walked.ring.head() - walked.goal;
        let late =
            walked.left > 0 && now_ms - walked.began_ms > LATE_MS && gathered > u64::from(self.config.late_bytes);
        room.feeds[feed].encoded_ms = now_ms;
        let thinned = room.encode(feed, encoder, late);
        counters.shed += thinned * room.feeds[feed].members.len() as u64;
        go_along(slots, (index, room), feed);
        let most = u64::from(self.config.ring_bytes_max);
        for lane in [HIGH, NORMAL] {
            let ring = &self.rooms[index].feeds[feed].lanes[lane].ring;
            if ring.head() - ring.tail() > most {
                self.skip_slow(index, feed, lane, ring.tail_within(most / 8 * 7));
            }
        }
    }

    /// Moves the tail of a ring, and who has not read so far to its head.
    fn skip_slow(&mut self, index: usize, feed: usize, lane: usize, tail: u64) {
        let fault = self.config.planted();
        let Feed { encoding, lanes, members, owed, .. } = &mut self.rooms[index].feeds[feed];
        let FeedLane { ring, inexact_at, .. } = &mut lanes[lane];
        let head = ring.count_at(ring.head());
        for member in members.iter_mut().filter(|member| member.cursors[lane] < tail) {
            let cursor = member.cursors[lane];
            let boundary = ring.boundary_after(cursor);
            let slot = &mut self.slots[member.slot as usize];
            // Whose buffer has room waits for us: that does not make him slow.
            let slow = slot.blocked && !slot.woken;
            if let Some(session) = slot.session.as_deref_mut() {
                if slow && session.stays_behind(self.now.mono_ms) {
                    self.hopeless.push(session.key);
                }
                if boundary != cursor {
                    session.busy_mut().half = None;
                    if fault != Some(Fault::LostRemainder) {
                        session.busy_mut().out.push_rest(ring.rest(cursor));
                    }
                }
            }
            let skipped = head - ring.count_at(boundary);
            self.counters.skipped += skipped.all - skipped.missing;
            if encoding.is_native() && fault != Some(Fault::UncountedDrop) {
                let owed = owed.entry(member.slot).or_default();
                if lane == NORMAL && !owed.on(NORMAL) {
                    owed.stood = ring.offset_at(boundary);
                }
                owed.add(lane, skipped.all, *inexact_at > boundary);
            }
            line_up(slot, member.slot, &mut self.ready);
            member.cursors[lane] = ring.head();
            if fault == Some(Fault::WrapOffByOne) {
                member.cursors[lane] += 1;
            }
        }
        ring.trim(tail);
    }

    /// One round.
    pub(super) fn serve(&mut self, outlet: &mut impl Outlet) -> Next {
        if let Some(drain) = &mut self.drain
            && !std::mem::replace(&mut drain.stopped, true)
        {
            outlet.stop_accepting();
        }
        self.drain_on();
        for key in std::mem::take(&mut self.hopeless) {
            self.end(key, Ending::new(ErrorCode::TooSlow, "reads too slowly, and stays behind"));
        }
        for _ in 0..self.readable.len() {
            let Some(key) = self.readable.pop_front() else { break };
            self.read_again(key, outlet);
        }
        self.schedule.wake(self.now.mono_ms);
        let sends = self.config.round_sends as i32;
        let mut left = sends;
        self.pace_alls(&mut left);
        // Whoever has something of his own has half the round at most.
        let mut own = left.max(sends / 2) / 2;
        for _ in 0..self.ready.len() {
            if own <= 0 {
                break;
            }
            let Some(key) = self.ready.pop_front() else { break };
            own -= self.serve_session(key, outlet) as i32;
        }
        left = left.max(sends / 2) / 2 + own.max(0);
        // The high lane first, but not alone.
        let mut high = left * 3 / 4;
        self.walk(HIGH, &mut high, outlet);
        left = left / 4 + high.max(0);
        self.walk(NORMAL, &mut left, outlet);
        self.walk(HIGH, &mut left, outlet);
        for key in std::mem::take(&mut self.dead) {
            outlet.close(key);
        }
        let again = !self.ready.is_empty() || !self.readable.is_empty() || self.schedule.due() > 0;
        Next { again, wake_ms: self.wake_ms() }
    }

    fn read_again(&mut self, key: Key, outlet: &mut impl Outlet) {
        self.read_kept(key);
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
        let Self { slots, rooms, encoder, counters, .. } = self;
        let Some(slot) = slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation) else {
            return 1;
        };
        slot.queued = false;
        if slot.blocked && !slot.woken {
            // A walk has filled the kernel's buffer since it was queued.
            return 1;
        }
        let stuck = std::mem::replace(&mut slot.blocked, false);
        let Some(session) = slot.session.as_deref_mut() else { return 1 };
        let mut line = Line { outlet, counters, key, sends: 0, took: 0 };
        let flow = all_of(&mut line, encoder, session, rooms);
        let (sends, took) = (line.sends, line.took);
        if stuck && flow != Flow::Blocked {
            session.busy_mut().stuck_ms = 0;
        }
        let (closing, clear) = (session.is_closing(), session.busy().out.is_empty());
        match flow {
            Flow::Blocked => {
                let Self { slots, wheel, config, .. } = self;
                block(&mut slots[key.slot as usize], wheel, config, self.now.mono_ms, !stuck || took > 0);
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
    fn walk(&mut self, lane: usize, left: &mut i32, outlet: &mut impl Outlet) {
        while *left > 0 {
            let Some(mut turn) = self.schedule.lanes[lane].pop_front() else { return };
            let feed = self.rooms.get(turn.room).and_then(|room| room.feed(turn.encoding));
            let Some(feed) = feed.filter(|feed| self.rooms[turn.room].feeds[*feed].lanes[lane].queued) else {
                continue;
            };
            turn.credit = (turn.credit + QUANTUM).min(QUANTUM);
            let given = turn.credit.min(*left);
            let (took, over) = self.walk_on((turn.room, feed, lane), given, outlet);
            *left -= took;
            turn.credit -= took;
            let walked = &self.rooms[turn.room].feeds[feed].lanes[lane];
            if walked.queued {
                let at_ms = if over { walked.rest_until_ms } else { 0 };
                self.schedule.put(at_ms, lane, turn, self.now.mono_ms);
            }
        }
    }

    /// Goes on with a walk. How many sends it took, and whether it is over: then it may be queued for the next one.
    fn walk_on(
        &mut self,
        (index, at, lane): (usize, usize, usize),
        sends: i32,
        outlet: &mut impl Outlet,
    ) -> (i32, bool) {
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
            let (members, walked) = (feed.members.len(), &mut feed.lanes[lane]);
            if walked.ring.head() != walked.goal {
                (walked.left, walked.goal) = (members, walked.ring.head());
                (walked.began_ms, walked.sends) = (now_ms, 0);
            }
            if !walked.follows {
                // Not always the same ones first.
                walked.at = (walked.at + 1 + members / 8) % members.max(1);
            }
        }
        let took = self.stride((index, at, lane), sends, outlet);
        let over = self.rooms[index].feeds[at].lanes[lane].left == 0;
        if over {
            self.end_walk(index, at, lane);
        }
        (took, over)
    }

    /// Sends to the members whose turn it is, all together. How many sends it took, looks reckoned in.
    fn stride(&mut self, (index, feed, lane): (usize, usize, usize), sends: i32, outlet: &mut impl Outlet) -> i32 {
        let Self { slots, rooms, counters, ready, wheel, config, .. } = self;
        let Feed { lanes, members, .. } = &mut rooms[index].feeds[feed];
        let heads = [lanes[HIGH].ring.head(), lanes[NORMAL].ring.head()];
        let mut pieces = [Piece::NONE; 2];
        let (mut at, mut left) = (lanes[lane].at, lanes[lane].left.min(members.len()));
        let (mut due, mut looks) = (ArrayVec::<Due, BATCH_MAX>::new(), 0);
        let mut sending = ArrayVec::<Sending<'_>, BATCH_MAX>::new();
        let most = BATCH_MAX.min(usize::try_from(sends).unwrap_or(0));
        while left > 0 && most > due.len() + looks / LOOKS_PER_SEND {
            at = if at < members.len() { at } else { 0 };
            let (member, cursors) = (at, members[at].cursors);
            (at, left, looks) = (at + 1, left - 1, looks + 1);
            let Some(lane) = (HIGH..=lane).find(|lane| cursors[*lane] < heads[*lane]) else { continue };
            let slot = members[member].slot;
            let Slot { generation, blocked, queued, .. } = slots[slot as usize];
            if blocked || queued {
                continue;
            }
            let (ring, cursor) = (&lanes[lane].ring, cursors[lane]);
            if pieces[lane].from != cursor {
                pieces[lane] = Piece::at(ring, cursor);
            }
            let bytes = ring.between(cursor, pieces[lane].to);
            sending.push(Sending { key: Key { slot, generation }, bytes, sent: Sent::Took(0) });
            due.push(Due { member, lane, piece: pieces[lane] });
        }
        outlet.send_all(&mut sending);
        for (due, sending) in due.iter().zip(&sending) {
            let Piece { to, before, count, .. } = due.piece;
            let (member, ring) = (&mut members[due.member], &lanes[due.lane].ring);
            let slot = &mut slots[member.slot as usize];
            let cursor = &mut member.cursors[due.lane];
            *cursor += counters.wrote(sending) as u64;
            if *cursor < to {
                counters.came(ring.count_at(*cursor) - before);
                block(slot, wheel, config, self.now.mono_ms, true);
                if let Some(session) = slot.session.as_deref_mut().filter(|_| !ring.rest(*cursor).is_empty()) {
                    session.busy_mut().half = Some((index, due.lane));
                }
                continue;
            }
            counters.came(count);
            // The rest of it in its own turn; so what is normal comes after all that is high.
            if (HIGH..=lane).any(|lane| member.cursors[lane] < heads[lane]) {
                line_up(slot, member.slot, ready);
            }
        }
        drop(sending);
        let took = due.len() as i32;
        let walked = &mut lanes[lane];
        (walked.at, walked.left) = (at, left);
        walked.sends += took as u32;
        took + (looks / LOOKS_PER_SEND) as i32
    }

    /// All members have been looked at. Drops what all of them have, and has the next walk follow after a rest if there
    /// is more for them by now.
    fn end_walk(&mut self, index: usize, feed: usize, lane: usize) {
        let room = &mut self.rooms[index];
        let (floor, end) = (room.floor, room.end());
        let feed = &mut room.feeds[feed];
        feed.trim(lane, floor);
        let walked = &mut feed.lanes[lane];
        if lane == NORMAL {
            let rest_ms = u64::from(walked.sends / self.config.sends_per_ms.max(1));
            walked.rest_until_ms = self.now.mono_ms + rest_ms.min(u64::from(self.config.rest_ms_max));
        }
        walked.sends = 0;
        walked.queued = walked.ring.head() != walked.goal || feed.encoded < end;
        walked.follows = walked.queued;
    }
}

/// Has the next round look at what a session has of its own to send. A blocked one comes up by itself.
pub(super) fn line_up(slot: &mut Slot, index: u32, ready: &mut VecDeque<Key>) {
    if !slot.queued && !slot.blocked {
        slot.queued = true;
        ready.push_back(Key { slot: index, generation: slot.generation });
    }
}

/// The kernel takes no more for a session: it comes up by `writable`, or is closed when that does not come.
fn block(slot: &mut Slot, wheel: &mut Wheel<Timer>, config: &EngineConfig, now_ms: u64, progress: bool) {
    (slot.blocked, slot.woken) = (true, false);
    if let Some(session) = slot.session.as_deref_mut() {
        if progress {
            session.busy_mut().stuck_ms = now_ms;
        }
        session.arm(wheel, session.busy().stuck_ms + u64::from(config.slow_close_s) * 1000);
    }
}

/// Everything that a session is due: the rest of a half-sent frame, its own output, the high lanes, the normal ones.
fn all_of<O: Outlet>(
    line: &mut Line<'_, O>,
    encoder: &mut Encoder,
    session: &mut Session,
    rooms: &mut slab::Slab<Room>,
) -> Flow {
    let Some(encoding) = session.encoding() else { return line.own(session) };
    if let Some((index, lane)) = session.busy().half {
        let place = session.places.iter().find(|place| place.room() == index).copied();
        if let (Some(place), Some(room)) = (place, rooms.get_mut(index))
            && let Some(feed) = room.feed(encoding)
        {
            let feed = &mut room.feeds[feed];
            if line.rest(&feed.lanes[lane].ring, &mut feed.members[place.member()].cursors[lane]) == Flow::Blocked {
                return Flow::Blocked;
            }
        }
        session.busy_mut().half = None;
    }
    if line.own(session) == Flow::Blocked {
        return Flow::Blocked;
    }
    let mut more = false;
    for lane in [HIGH, NORMAL] {
        for at in 0..session.places.len() {
            let place = session.places[at];
            let Some(room) = rooms.get_mut(place.room()) else { continue };
            let Some(feed) = room.feed(encoding) else { continue };
            match member_lane(line, encoder, session, (place.room(), room), (feed, place.member()), lane) {
                Flow::Clear => {}
                // What is normal waits for what is high.
                Flow::More => more = true,
                Flow::Blocked => return Flow::Blocked,
            }
        }
        if more {
            return Flow::More;
        }
    }
    Flow::Clear
}
