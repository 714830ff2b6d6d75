//! Sending to one session by itself: all that it is due, in the order in which it may go. First comes the remainder of a
//! half-sent frame, then the session's own output. Then come its rooms, the high lane before the normal one: of each the
//! session's backlog, then what the ring has. Fan-out passes send to the others ([`super::batch`]).
//!
//! Invariant: nothing goes between the two parts of a frame (rule 23).

use proto::client::{self, GapReasons, server_frame::Body};

use super::{
    Counters,
    encode::Encoder,
    entry::{HIGH, NORMAL},
    ring::Ring,
    room::{Rest, Room},
    room_table::Rooms,
    session::Session,
};
use machine::{Key, Outlet, Sending};

/// Sends of a ring to a session that is served alone, before the next one's turn.
const SENDS_PER_TURN: usize = 2;

/// How far sending to a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// All that there was.
    Clear,
    /// Its turn is over, and there is more.
    More,
    /// The kernel takes no more.
    Blocked,
}

/// Sends to one session, and counts.
pub(super) struct SessionSender<'a, O> {
    pub(super) outlet: &'a mut O,
    pub(super) counters: &'a mut Counters,
    pub(super) key: Key,
    pub(super) sends: u32,
    /// Bytes that went out.
    pub(super) took: usize,
}

impl<O: Outlet> SessionSender<'_, O> {
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
            let (bytes, took) = (front.len(), self.send(&front));
            out.took(took);
            if took < bytes {
                return Flow::Blocked;
            }
        }
        Flow::Clear
    }

    /// The remainder of a half-sent frame of a ring.
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

/// What a member is due on a lane: what it missed, and what the ring has. The session is at a frame's end.
fn member_lane<O: Outlet>(
    line: &mut SessionSender<'_, O>,
    encoder: &mut Encoder,
    session: &mut Session,
    (index, room): (usize, &mut Room),
    (feed, member): (usize, usize),
    lane: usize,
) -> Flow {
    let backlog = room.feeds[feed].backlog.get_mut(&line.key.slot);
    let rest = backlog.map(|backlog| std::mem::take(&mut backlog.rest[lane])).filter(|rest| rest.messages > 0);
    let mut forgotten = 0;
    if let Some(Rest { after, through, messages }) = rest {
        let others = room.items(lane, after, through);
        if others.len() as u64 == messages {
            let (frames, count) = encoder.apart(room.feeds[feed].encoding, (&room.name, &room.log), &others);
            session.busy_mut().out.push(frames);
            line.counters.came(count);
        } else {
            // It was blocked for so long.
            forgotten = messages;
        }
    }
    let (name, log, feed) = (&room.name, &room.log, &mut room.feeds[feed]);
    if !feed.backlog.is_empty()
        && let Some(backlog) = feed.backlog.get_mut(&line.key.slot)
        && (rest.is_some() || backlog.on(lane))
    {
        backlog.add(lane, GapReasons { slow: forgotten, ..GapReasons::default() }, false);
        let (reasons, exact) = (std::mem::take(&mut backlog.missed[lane]).reasons(), !backlog.inexact[lane]);
        backlog.inexact[lane] = false;
        let [high, normal] = feed.position(member);
        if feed.backlog.get(&line.key.slot).is_some_and(|backlog| !backlog.on(HIGH) && !backlog.on(NORMAL)) {
            feed.backlog.remove(&line.key.slot);
        }
        let count = reasons.total();
        if count > 0 || !exact {
            let position = client::Position { log: log.to_string(), normal, high };
            let gap = client::Gap {
                channel: name.to_string(),
                count,
                exact,
                position: Some(position),
                reasons: Some(reasons),
            };
            session.busy_mut().out.push(encoder.own(feed.encoding, 0, Body::Gap(gap)));
        }
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

/// Everything that a session is due: the remainder of a half-sent frame, its own output, the high lanes, the normal ones.
pub(super) fn all_of<O: Outlet>(
    line: &mut SessionSender<'_, O>,
    encoder: &mut Encoder,
    session: &mut Session,
    rooms: &mut Rooms,
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
