//! Sending. A round is a bounded piece of work (rule 27): a few hundred sends, shared by sessions with something of
//! their own and by walks over the members of rooms, deficit round robin over rooms and lanes, the high lane first.
//!
//! ```text
//!   news ─▶ schedule ─▶ walk: encode what gathered, then each member: own output, gap, ring[cursor..head]
//!   writable, replies, joins ─▶ ready ─▶ serve: the half-sent frame's rest, own output, all its rooms
//! ```

use std::collections::VecDeque;

use proto::client::{self, ErrorCode, server_frame::Body};

use super::{
    Counters, Engine,
    config::Fault,
    encode::{Encoder, Encoding},
    room::{Feed, FeedLane, HIGH, Member, NORMAL, Room},
    session::{Ending, Session},
};
use crate::driver::{Key, Next, Outlet, Sent};

/// Sends that a room's lane has before the next one's turn.
const QUANTUM: i32 = 64;
/// Members that may be looked at for the price of a send: nothing is due to them.
const LOOKS_PER_SEND: usize = 32;
/// Blocks of a ring that a session is sent before the next one's turn.
const BLOCKS_PER_TURN: usize = 2;

/// Walks that are due.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    lanes: [VecDeque<Turn>; 2],
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
    fn add(&mut self, room: usize, feed: &mut Feed, lane: usize) {
        let walked = &mut feed.lanes[lane];
        if !std::mem::replace(&mut walked.queued, true) {
            walked.left = 0;
            self.lanes[lane].push_back(Turn { room, encoding: feed.encoding, credit: 0 });
        }
    }

    /// Walks in it.
    pub(super) fn len(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
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
        self.counters.writes += 1;
        // Gone: `closed` follows, and until then it is as good as full.
        let took = match self.outlet.send(self.key, bytes) {
            Sent::Took(took) => took.min(bytes.len()),
            Sent::Gone => 0,
        };
        self.took += took;
        self.counters.bytes_out += took as u64;
        self.counters.short_writes += u64::from(took < bytes.len());
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
    fn rest(&mut self, lane: &FeedLane, cursor: &mut u64) -> Flow {
        let rest = lane.ring.rest(*cursor);
        if rest.is_empty() {
            return Flow::Clear;
        }
        let (bytes, before) = (rest.len(), lane.ring.messages_at(*cursor));
        let took = self.send(rest);
        *cursor += took as u64;
        self.counters.deliveries += lane.ring.messages_at(*cursor) - before;
        if took < bytes { Flow::Blocked } else { Flow::Clear }
    }

    /// What a ring has for a member.
    fn ring(&mut self, lane: &FeedLane, cursor: &mut u64) -> Flow {
        for _ in 0..BLOCKS_PER_TURN {
            let ready = lane.ring.ready(*cursor);
            if ready.is_empty() {
                return Flow::Clear;
            }
            let (bytes, before) = (ready.len(), lane.ring.messages_at(*cursor));
            let took = self.send(ready);
            *cursor += took as u64;
            self.counters.deliveries += lane.ring.messages_at(*cursor) - before;
            if took < bytes {
                return Flow::Blocked;
            }
        }
        if lane.ring.ready(*cursor).is_empty() { Flow::Clear } else { Flow::More }
    }
}

/// What a member is due on a lane: what it missed, and what the ring has. The session is at a frame's end.
fn member_lane<O: Outlet>(
    line: &mut Line<'_, O>,
    encoder: &mut Encoder,
    session: &mut Session,
    (index, name, log): (usize, &str, &str),
    (encoding, lanes): (Encoding, &[FeedLane; 2]),
    member: &mut Member,
    lane: usize,
) -> Flow {
    if member.missed[lane] > 0 || member.inexact[lane] {
        let (count, exact) = (member.missed[lane], !member.inexact[lane]);
        (member.missed[lane], member.inexact[lane]) = (0, false);
        let [high, normal] = member.position(lanes);
        let position = client::Position { log: log.to_owned(), normal, high };
        let gap = client::Gap { channel: name.to_owned(), count: count.into(), exact, position: Some(position) };
        session.busy_mut().out.push(encoder.own(encoding, 0, Body::Gap(gap)));
        if line.own(session) == Flow::Blocked {
            return Flow::Blocked;
        }
    }
    let flow = line.ring(&lanes[lane], &mut member.cursors[lane]);
    if flow == Flow::Blocked && !lanes[lane].ring.rest(member.cursors[lane]).is_empty() {
        session.busy_mut().half = Some((index, lane));
    }
    flow
}

impl Engine {
    /// There is something new in a room.
    pub(super) fn news(&mut self, index: usize) {
        let Some(room) = self.rooms.get_mut(index) else { return };
        let (first, end) = (room.first(), room.end());
        for at in 0..room.feeds.len() {
            let from = room.feeds[at].encoded.max(first);
            let mut due = [false; 2];
            room.entries(from).for_each(|entry| due[entry.lane()] = true);
            let feed = &mut room.feeds[at];
            for (lane, due) in due.into_iter().enumerate() {
                let behind = due || (from == end && feed.lanes[lane].ring.head() != feed.lanes[lane].goal);
                if behind {
                    self.schedule.add(index, feed, lane);
                }
            }
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
            for member in &mut feed.members {
                (member.inexact, member.stood) = ([true; 2], before);
                member.missed[NORMAL] = member.missed[NORMAL].saturating_add(missed.min(u64::from(u32::MAX)) as u32);
            }
            [HIGH, NORMAL].into_iter().for_each(|lane| self.schedule.add(index, feed, lane));
        }
        self.counters.missed += missed;
    }

    /// Encodes for a feed what it has not encoded, and keeps its rings within their bound.
    pub(super) fn encode(&mut self, index: usize, feed: usize) {
        let Self { rooms, encoder, .. } = self;
        let room = &mut rooms[index];
        room.encode(feed, encoder);
        let most = u64::from(self.config.ring_bytes_max);
        for lane in [HIGH, NORMAL] {
            let ring = &self.rooms[index].feeds[feed].lanes[lane].ring;
            if ring.head() - ring.tail() > most {
                self.skip_slow(index, feed, lane, ring.tail_within(most));
            }
        }
    }

    /// Moves the tail of a ring, and who has not read so far to its head.
    fn skip_slow(&mut self, index: usize, feed: usize, lane: usize, tail: u64) {
        let fault = self.config.planted();
        let feed = &mut self.rooms[index].feeds[feed];
        let is_native = feed.encoding.is_native();
        let FeedLane { ring, inexact_at, .. } = &mut feed.lanes[lane];
        for member in feed.members.iter_mut().filter(|member| member.cursors[lane] < tail) {
            let cursor = member.cursors[lane];
            let boundary = ring.boundary_after(cursor);
            if let Some(session) = self.slots[member.slot as usize].session.as_deref_mut() {
                if session.stays_behind(self.now.mono_ms) {
                    self.hopeless.push(session.key);
                }
                if boundary != cursor {
                    session.busy_mut().half = None;
                    if fault != Some(Fault::LostRemainder) {
                        session.busy_mut().out.push_rest(ring.rest(cursor));
                    }
                }
            }
            let skipped = ring.messages_at(ring.head()) - ring.messages_at(boundary);
            self.counters.skipped += skipped;
            if lane == NORMAL && member.missed[NORMAL] == 0 && !member.inexact[NORMAL] {
                member.stood = ring.offset_at(boundary);
            }
            if is_native && fault != Some(Fault::UncountedDrop) {
                let missed = u64::from(member.missed[lane]) + skipped;
                member.missed[lane] = u32::try_from(missed).unwrap_or(u32::MAX);
                member.inexact[lane] |= *inexact_at > boundary || missed > u64::from(u32::MAX);
            }
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
        let again = !self.ready.is_empty() || !self.readable.is_empty() || self.schedule.len() > 0;
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
            Flow::Blocked => self.blocked(key, !stuck || took > 0),
            Flow::More => self.ready(key),
            Flow::Clear if closing && clear => self.kill(key),
            Flow::Clear => {}
        }
        self.maybe_readable(key);
        self.settle(key);
        sends.max(1)
    }

    /// The kernel takes no more for a session: it comes up by `writable`, or is closed when that does not come.
    fn blocked(&mut self, key: Key, progress: bool) {
        let now_ms = self.now.mono_ms;
        let slow_ms = u64::from(self.config.slow_close_s) * 1000;
        let slot = &mut self.slots[key.slot as usize];
        (slot.blocked, slot.woken) = (true, false);
        if let Some(session) = slot.session.as_deref_mut() {
            if progress {
                session.busy_mut().stuck_ms = now_ms;
            }
            let at_ms = session.busy().stuck_ms + slow_ms;
            self.arm(key, at_ms);
        }
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
            if !over {
                self.schedule.lanes[lane].push_back(turn);
            }
        }
    }

    /// Goes on with a walk. How many sends it took, and whether it is over.
    fn walk_on(
        &mut self,
        (index, feed, lane): (usize, usize, usize),
        sends: i32,
        outlet: &mut impl Outlet,
    ) -> (i32, bool) {
        let walked = &self.rooms[index].feeds[feed].lanes[lane];
        if walked.left == 0 {
            self.encode(index, feed);
            self.rooms[index].forget();
            let feed = &mut self.rooms[index].feeds[feed];
            let (members, walked) = (feed.members.len(), &mut feed.lanes[lane]);
            (walked.left, walked.goal) = (members, walked.ring.head());
            // Not always the same ones first.
            walked.at = (walked.at + 1 + members / 8) % members.max(1);
        }
        let (mut took, mut looks) = (0, 0);
        loop {
            let feed = &mut self.rooms[index].feeds[feed];
            let (members, walked) = (feed.members.len(), &mut feed.lanes[lane]);
            if walked.left == 0 || members == 0 {
                break;
            }
            if took + (looks / LOOKS_PER_SEND) as i32 >= sends {
                return (took + (looks / LOOKS_PER_SEND) as i32, false);
            }
            let at = walked.at % members;
            (walked.at, walked.left) = (at + 1, walked.left - 1);
            let encoding = feed.encoding;
            looks += 1;
            took += self.visit((index, encoding), lane, at, outlet) as i32;
        }
        let over = self.end_walk(index, feed, lane);
        (took + (looks / LOOKS_PER_SEND) as i32, over)
    }

    /// Looks at a member. How many sends it took.
    fn visit(&mut self, (index, encoding): (usize, Encoding), lane: usize, at: usize, outlet: &mut impl Outlet) -> u32 {
        let Self { slots, rooms, encoder, counters, .. } = self;
        let room = &mut rooms[index];
        let Some(feed) = room.feed(encoding) else { return 0 };
        let Room { feeds, name, log, .. } = room;
        let feed = &mut feeds[feed];
        let member = &mut feed.members[at];
        let due = |member: &Member, lane: usize| {
            member.cursors[lane] != feed.lanes[lane].ring.head() || member.missed[lane] > 0 || member.inexact[lane]
        };
        let slot = &mut slots[member.slot as usize];
        if slot.blocked || !(due(member, lane) || (lane == NORMAL && due(member, HIGH))) {
            return 0;
        }
        let Some(session) = slot.session.as_deref_mut() else { return 0 };
        let key = session.key;
        let mut line = Line { outlet, counters, key, sends: 0, took: 0 };
        let mut flow = line.own(session);
        for lane in HIGH..=lane {
            if flow == Flow::Clear {
                let whose = (index, &**name, &**log);
                flow = member_lane(&mut line, encoder, session, whose, (encoding, &feed.lanes), member, lane);
            }
        }
        let sends = line.sends;
        match flow {
            Flow::Blocked => self.blocked(key, true),
            Flow::More => self.ready(key),
            Flow::Clear => {}
        }
        sends
    }

    /// All members have been looked at. Drops what all of them have; `false` if there is more for them by now.
    fn end_walk(&mut self, index: usize, feed: usize, lane: usize) -> bool {
        let room = &mut self.rooms[index];
        let (floor, end) = (room.floor, room.end());
        let feed = &mut room.feeds[feed];
        let keep = feed.members.iter().map(|member| member.cursors[lane]).min().unwrap_or(u64::MAX);
        let walked = &mut feed.lanes[lane];
        // Native clients may ask for what is recent.
        let recent = if feed.encoding.is_native() { walked.ring.seek(floor) } else { u64::MAX };
        walked.ring.trim(keep.min(recent).min(walked.ring.head()));
        walked.left = 0;
        let more = walked.ring.head() != walked.goal || feed.encoded < end;
        walked.queued = more;
        !more
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
            let cursor = &mut feed.members[place.member()].cursors[lane];
            if line.rest(&feed.lanes[lane], cursor) == Flow::Blocked {
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
            let Room { feeds, name, log, .. } = room;
            let feed = &mut feeds[feed];
            let (member, whose) = (&mut feed.members[place.member()], (place.room(), &**name, &**log));
            match member_lane(line, encoder, session, whose, (encoding, &feed.lanes), member, lane) {
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
