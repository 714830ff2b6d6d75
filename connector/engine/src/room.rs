//! A room of one core: its recent messages, and a [`Feed`] for each encoding that a local session speaks.
//!
//! ```text
//!   deliver ─▶ log (canonical, shared by all cores) ─encode─▶ feed's ring of the lane ─cursor─▶ member
//! ```
//!
//! The log is a list of entries with dense numbers. A feed is a reader of it: it has encoded up to some entry, and encodes what
//! has gathered when a fan-out pass over its members begins. So what comes while a pass is under way makes one batch.
//!
//! There is one way for all rooms: a room with a handful of sessions has rings, too. A ring begins at 1 KiB and goes when all is
//! read. A path of their own for small rooms would save less than it costs to have both (rule 26 leaves that open).
//!
//! Invariants:
//! - Offsets in the log rise. An entry that is not above the last one was delivered before, and is dropped.
//! - An entry stays until every feed has encoded it, and as long as it is among the recent ones.
//! - On a member's way through the room no normal message precedes a high one of a lower offset. So one offset, the normal
//!   lane's, says where a client resumes.

use std::{collections::VecDeque, sync::Arc};

use proto::{RECENT_BYTES, RECENT_MESSAGES, client::GapReasons, cluster::Item};
use rustc_hash::FxHashMap;

use super::{
    encode::{BATCH_BYTES_MAX, Encoder},
    encoding::Encoding,
    entry::{Entry, HIGH, NORMAL},
    ring::Ring,
};
use machine::Key;

/// Messages that an idle room keeps, where the core keeps too much (`idle`).
const IDLE_MESSAGES: usize = 4;
/// The same in bytes.
const IDLE_BYTES: usize = 512;

/// Whether the channel's owner has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HoldState {
    /// Not yet: whoever joins waits.
    Requested,
    /// Live messages come.
    Held,
}

/// A session that waits for the room to be held.
#[derive(Debug)]
pub(super) struct Waiter {
    /// The session.
    pub(super) key: Key,
    /// Its [`Joining`](super::session::Joining).
    pub(super) ticket: u64,
    /// To be answered with an error at this time, milliseconds.
    pub(super) until_ms: u64,
    /// How it goes on.
    pub(super) join: Join,
}

/// How a session comes into a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Join {
    /// A native request of this number (0: the platform subscribed the session).
    Subscribe {
        /// The request.
        request: u32,
        /// Recent messages first.
        history: u32,
        /// Go on from here: log ID, offset on each lane.
        resume: Option<(String, [u64; 2])>,
    },
    /// goim's or Bilibili's authentication, or goim's change of room.
    Packet {
        /// The turn in the session's queue of answers.
        turn: u64,
        /// The request's, to be echoed.
        sequence: u32,
        /// The session's authentication: without the room there is no session.
        first: bool,
    },
}

/// See the module's opening.
#[derive(Debug)]
pub(super) struct Room {
    /// The channel's name.
    pub(super) name: Arc<str>,
    /// Whether it is held.
    pub(super) state: HoldState,
    /// The number of the request by which it is held.
    pub(super) ticket: u64,
    /// The log that offsets are of; empty before the first answer.
    pub(super) log: Arc<str>,
    /// Everything up to here is in the log or is told as a gap.
    pub(super) offset: u64,
    /// How far gaps reach, as far as that is known: above `offset` where what is missing was last.
    pub(super) reached: u64,
    /// Recent entries, oldest first; all numbered, the first one `first`.
    entries: VecDeque<Entry>,
    first: u64,
    /// Bytes and messages in `entries`.
    bytes: usize,
    messages: usize,
    /// Offset of the last entry that is no longer there: who resumes from before has a gap.
    pub(super) floor: u64,
    /// A message stands at `floor`, so that who resumes from before lacks at least that one.
    pub(super) floor_is_message: bool,
    /// Encodings in use.
    pub(super) feeds: Vec<Feed>,
    /// Lanes with entries that no pass is scheduled for.
    pub(super) fresh: [bool; 2],
    /// Stands in the engine's list of rooms that may have memory to give back.
    pub(super) dirty: bool,
    /// The stamp that it got when it last became idle (`idle`).
    pub(super) idle_stamp: u64,
    /// What it kept when it was last weighed, bytes.
    pub(super) weighed: usize,
    /// Who waits for [`State::Held`].
    pub(super) waiters: Vec<Waiter>,
    /// Sessions over the whole cluster, as last told.
    pub(super) online: u64,
    /// The number of sessions that was last told to the control thread.
    pub(super) told: u64,
    /// Stands in the engine's list of rooms whose number changed.
    pub(super) changed: bool,
    /// To be given back at this time, if nobody comes; milliseconds.
    pub(super) release_ms: Option<u64>,
}

/// A room in one encoding.
#[derive(Debug)]
pub(super) struct Feed {
    /// The encoding of its frames.
    pub(super) encoding: Encoding,
    /// Entries below this number are in the rings.
    pub(super) encoded: u64,
    /// Since when that is so, milliseconds.
    pub(super) encoded_ms: u64,
    /// [`HIGH`], [`NORMAL`].
    pub(super) lanes: [FeedLane; 2],
    /// Who reads. No order: the last one takes a leaver's place.
    pub(super) members: Vec<Member>,
    /// The backlogs of members, by slot. Such a member is blocked, or its turn is to come.
    pub(super) backlog: FxHashMap<u32, Backlog>,
    /// Of members whose client has more of a lane than the room (`ahead`), by slot: up to where; 0: it has not.
    pub(super) ahead: FxHashMap<u32, [u64; 2]>,
}

/// A lane of a feed.
#[derive(Debug, Default)]
pub(super) struct FeedLane {
    /// The bytes.
    pub(super) ring: Ring,
    /// The number of its turn in the schedule; 0: it stands in none.
    pub(super) turn: u64,
    /// The pass under way: the next member.
    pub(super) at: usize,
    /// Members that it has still to look at.
    pub(super) left: usize,
    /// The ring's head when the pass began. Every member that takes bytes is that far when the pass ends.
    pub(super) goal: u64,
    /// When it began, milliseconds.
    pub(super) began_ms: u64,
    /// Sends that it took.
    pub(super) sends: u32,
    /// A send did not carry somebody to the goal.
    pub(super) short: bool,
    /// It followed another: it goes round from where that ended, so that everyone's turn comes at equal intervals.
    pub(super) follows: bool,
    /// The next one begins no earlier, milliseconds.
    pub(super) paced_until_ms: u64,
}

/// A session's place in a feed, with its cursors: 8 bytes a lane. A fan-out pass touches these one after another, and of a
/// session only its [`super::session::Slot`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// The session's slot.
    pub(super) slot: u32,
    /// Position in each lane's ring.
    pub(super) cursors: [u64; 2],
}

/// What a member has yet to get beside the rings: it lies before its cursors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    /// Of each lane the messages that the ring had no frame of its own for when the member joined: the others of a batch
    /// that it has some of, or what only the log still has.
    pub(super) rest: [Rest; 2],
    /// The gap of each lane that it was not told yet.
    pub(super) missed: [Missed; 2],
    /// Whether there may be more.
    pub(super) inexact: [bool; 2],
    /// The offset up to which it had the normal lane before. A gap on the high lane is told first, and must not promise
    /// more.
    pub(super) resume_position: u64,
}

/// [`GapReasons`] in half the space: a room may have as many of these as it has sessions. A count that does not fit stays
/// at the largest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Missed {
    slow: u32,
    shed: u32,
    capped: u32,
    aged: u32,
    unknown: u32,
}

impl Missed {
    /// `false`: not all of it fits.
    fn add(&mut self, more: &GapReasons) -> bool {
        let GapReasons { slow, shed, capped, aged, unknown } = *more;
        let Self { slow: own_slow, shed: own_shed, capped: own_capped, aged: own_aged, unknown: own_unknown } = self;
        let pairs =
            [(own_slow, slow), (own_shed, shed), (own_capped, capped), (own_aged, aged), (own_unknown, unknown)];
        pairs.into_iter().fold(true, |fits, (own, more)| {
            let sum = u64::from(*own).saturating_add(more);
            *own = u32::try_from(sum).unwrap_or(u32::MAX);
            fits && sum == u64::from(*own)
        })
    }

    /// As a client is told.
    pub(super) fn reasons(self) -> GapReasons {
        let Self { slow, shed, capped, aged, unknown } = self;
        GapReasons {
            slow: slow.into(),
            shed: shed.into(),
            capped: capped.into(),
            aged: aged.into(),
            unknown: unknown.into(),
        }
    }
}

/// Messages of a lane for one session: made when it is their turn, of what the room still has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rest {
    /// The offset up to which the session has what came before.
    pub(super) after: u64,
    /// Of the last one.
    pub(super) through: u64,
    /// How many messages.
    pub(super) messages: u64,
}

impl Backlog {
    /// Whether there is a backlog on a lane.
    pub(super) fn on(&self, lane: usize) -> bool {
        self.missed[lane] != Missed::default() || self.inexact[lane] || self.rest[lane].messages > 0
    }

    /// Adds a gap on a lane.
    pub(super) fn add(&mut self, lane: usize, missed: GapReasons, inexact: bool) {
        let fits = self.missed[lane].add(&missed);
        self.inexact[lane] |= inexact || !fits;
    }
}

impl Room {
    /// A room that its owner has been asked for.
    pub(super) fn new(name: Arc<str>, ticket: u64) -> Self {
        Self {
            name,
            state: HoldState::Requested,
            ticket,
            log: "".into(),
            offset: 0,
            reached: 0,
            entries: VecDeque::new(),
            first: 0,
            bytes: 0,
            messages: 0,
            floor: 0,
            floor_is_message: false,
            feeds: Vec::new(),
            fresh: [false; 2],
            dirty: false,
            idle_stamp: 0,
            weighed: 0,
            waiters: Vec::new(),
            online: 0,
            told: 0,
            changed: false,
            release_ms: None,
        }
    }

    /// Local sessions in it.
    pub(super) fn sessions(&self) -> usize {
        self.feeds.iter().map(|feed| feed.members.len()).sum()
    }

    /// The number after the last entry's.
    pub(super) fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Takes an entry, unless it was there before.
    pub(super) fn push(&mut self, entry: Entry) -> bool {
        match &entry {
            Entry::Item(item) if item.offset <= self.offset => return false,
            Entry::Item(item) => self.offset = item.offset,
            // How far a gap reaches is a guess where its messages are unknown: nothing is dropped by it.
            Entry::Gap { offset, .. } => self.reached = self.reached.max(*offset),
        }
        self.bytes += entry.bytes();
        self.messages += usize::from(matches!(entry, Entry::Item(_)));
        self.fresh[entry.lane()] = true;
        self.entries.push_back(entry);
        self.forget();
        true
    }

    /// Begins anew: another log, whose offsets compare with none of before.
    pub(super) fn restart(&mut self, log: Arc<str>, offset: u64) {
        self.log = log;
        (self.offset, self.reached, self.floor) = (offset, offset, offset);
        self.floor_is_message = false;
        self.first = self.end();
        self.entries.clear();
        (self.bytes, self.messages) = (0, 0);
        for feed in &mut self.feeds {
            feed.encoded = self.first;
            feed.ahead.clear();
            feed.lanes.iter_mut().for_each(|lane| lane.ring.rebase(offset));
        }
    }

    /// Whether so much is to be encoded that it cannot wait for a pass. Entries would be kept for that alone.
    pub(super) fn is_behind(&self) -> bool {
        self.messages > RECENT_MESSAGES || self.bytes > RECENT_BYTES
    }

    /// Drops what is no longer recent and what every feed has encoded.
    pub(super) fn forget(&mut self) {
        self.keep(RECENT_MESSAGES, RECENT_BYTES);
    }

    /// Keeps so much, and what a feed has still to encode.
    fn keep(&mut self, messages: usize, bytes: usize) {
        let needed = self.feeds.iter().map(|feed| feed.encoded).min().unwrap_or(u64::MAX);
        while (self.messages > messages || self.bytes > bytes) && self.first < needed {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.first += 1;
            self.bytes -= entry.bytes();
            self.messages -= usize::from(matches!(entry, Entry::Item(_)));
            (self.floor, self.floor_is_message) = (entry.offset(), matches!(entry, Entry::Item(_)));
        }
    }

    /// The lane of the entry of this number, where there is one.
    #[cfg(test)]
    pub(super) fn lane_of(&self, number: u64) -> Option<usize> {
        self.entries.get(usize::try_from(number.checked_sub(self.first)?).ok()?).map(Entry::lane)
    }

    /// The number of the oldest entry.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The offset after which the last `count` messages lie.
    pub(super) fn before_last(&self, count: usize) -> u64 {
        let mut messages = self.entries.iter().rev().filter(|entry| matches!(entry, Entry::Item(_)));
        match count.checked_sub(1) {
            None => self.offset,
            Some(last) => match messages.nth(last) {
                // Entries rise, so what is just below it lies before it.
                Some(entry) => entry.offset() - 1,
                None => self.floor,
            },
        }
    }

    /// Messages of `lane` after `after` and up to `through` that the log has, and whether that is all there were. `each` is
    /// what one of them counts as where it does not come; those of gaps keep their reasons.
    pub(super) fn count(&self, lane: usize, after: u64, through: u64, each: GapReasons) -> (GapReasons, bool) {
        let (mut sum, mut all, mut before) = (GapReasons::default(), true, self.floor);
        for entry in &self.entries {
            if entry.lane() == lane && (after + 1..=through).contains(&entry.offset()) {
                match entry {
                    Entry::Item(_) => sum += each,
                    Entry::Gap { reasons, exact, .. } => {
                        // As many of them as there are offsets may lie at or before `after`.
                        sum += reasons.without(after.saturating_sub(before));
                        all &= *exact && before >= after;
                    }
                }
            }
            before = before.max(entry.offset());
        }
        (sum, all)
    }

    /// Why the last `count` messages are missing, as far as the gaps at the end of the log tell.
    pub(super) fn last_missing(&self, count: u64) -> GapReasons {
        let mut all = GapReasons::default();
        for entry in self.entries.iter().rev() {
            let Entry::Gap { reasons, .. } = entry else { break };
            all += **reasons;
        }
        GapReasons::of(count, Some(all.without(all.total().saturating_sub(count))))
    }

    /// Messages of `lane` after `after` and up to `through`.
    pub(super) fn items(&self, lane: usize, after: u64, through: u64) -> Vec<&Entry> {
        let within = |entry: &&Entry| entry.lane() == lane && (after + 1..=through).contains(&entry.offset());
        self.entries.iter().filter(within).filter(|entry| entry.item().is_some()).collect()
    }

    /// The same as a [`Rest`]; `None` where some are missing, or they are more than a batch.
    pub(super) fn rest(&self, lane: usize, after: u64, through: u64) -> Option<Rest> {
        let items = self.items(lane, after, through);
        let messages = items.len() as u64;
        let bytes: usize = items.iter().map(|entry| entry.bytes()).sum();
        let (count, exact) = self.count(lane, after, through, GapReasons::unknown(1));
        let whole = exact && count.total() == messages;
        (whole && bytes <= BATCH_BYTES_MAX).then_some(Rest { after, through, messages })
    }

    /// Encodes for a feed what it has not encoded yet. `thin`: of the normal lane only that so many were missed, and it
    /// returns how many.
    pub(super) fn encode(&mut self, feed: usize, encoder: &mut Encoder, overloaded: bool) -> u64 {
        let feed = &mut self.feeds[feed];
        let from = (feed.encoded.max(self.first) - self.first) as usize;
        feed.encoded = self.first + self.entries.len() as u64;
        if from == self.entries.len() {
            return 0;
        }
        let mut shed = 0;
        for lane in [HIGH, NORMAL] {
            let mut entries: Vec<_> = self.entries.range(from..).filter(|entry| entry.lane() == lane).collect();
            let gap;
            if overloaded && lane == NORMAL && !entries.is_empty() {
                shed = entries.iter().filter(|entry| matches!(entry, Entry::Item(_))).count() as u64;
                gap = Entry::shed(&entries);
                entries = vec![&gap];
            }
            let ring = &mut feed.lanes[lane].ring;
            encoder.entries(feed.encoding, (&self.name, &self.log), entries, |frame| {
                ring.append(frame.bytes, frame.messages, &frame.missing, frame.offset);
            });
        }
        shed
    }

    /// The index of the feed of `encoding`.
    pub(super) fn feed(&self, encoding: Encoding) -> Option<usize> {
        self.feeds.iter().position(|feed| feed.encoding == encoding)
    }

    /// Gives back what was not needed since the last time; whether there may be more to give back the next time.
    pub(super) fn shrink(&mut self) -> bool {
        // What came last was kept until it was encoded.
        self.forget();
        let mut more = false;
        for feed in &mut self.feeds {
            for lane in [HIGH, NORMAL] {
                feed.trim(lane, Some(self.floor));
                more |= feed.lanes[lane].ring.shrink();
            }
        }
        more
    }

    /// Keeps the last few messages only, and no memory beyond. `false`: a member who has not read them keeps more.
    pub(super) fn shrink_idle(&mut self) -> bool {
        self.keep(IDLE_MESSAGES, IDLE_BYTES);
        self.entries.shrink_to_fit();
        let mut all = true;
        for feed in &mut self.feeds {
            for lane in [HIGH, NORMAL] {
                // Of a batch, only what is in it of the last few would be needed: that is in the log.
                all &= feed.trim(lane, (!feed.encoding.is_compressed()).then_some(self.floor));
                feed.lanes[lane].ring.fit();
            }
        }
        all
    }

    /// Bytes that the log and the rings hold.
    pub(super) fn footprint(&self) -> usize {
        let entry = size_of::<Item>() + 2 * size_of::<usize>() + self.name.len();
        let rings = self.feeds.iter().flat_map(|feed| &feed.lanes);
        self.bytes
            + self.entries.len() * entry
            + self.entries.capacity() * size_of::<Entry>()
            + rings.map(|lane| lane.ring.footprint() + lane.ring.index_bytes()).sum::<usize>()
    }
}

impl Feed {
    /// One without members, that has still to encode from entry `from` on; `offset` lies before that.
    pub(super) fn new(encoding: Encoding, from: u64, offset: u64) -> Self {
        let lane = || FeedLane { ring: Ring::after(offset), ..FeedLane::default() };
        Self {
            encoding,
            encoded: from,
            encoded_ms: 0,
            lanes: [lane(), lane()],
            members: Vec::new(),
            backlog: FxHashMap::default(),
            ahead: FxHashMap::default(),
        }
    }

    /// Drops from a ring what all members have and nobody may ask for: native clients may ask for what is recent, which
    /// begins after `floor`, and is to be had from the ring if there is one. `false`: a member has not read all of it.
    pub(super) fn trim(&mut self, lane: usize, floor: Option<u64>) -> bool {
        let ring = &mut self.lanes[lane].ring;
        let recent = floor.filter(|_| self.encoding.is_native()).map_or(ring.head(), |floor| ring.seek(floor));
        if recent <= ring.tail() {
            return true;
        }
        let read = self.members.iter().map(|member| member.cursors[lane]).min().unwrap_or(u64::MAX);
        ring.trim(read.min(recent));
        read >= recent
    }

    /// The offset on each lane that a member has everything up to, sent or told.
    pub(super) fn position(&self, member: usize) -> [u64; 2] {
        let member = &self.members[member];
        let backlog = self.backlog.get(&member.slot);
        let of = |lane: usize| match backlog.map(|backlog| &backlog.rest[lane]) {
            Some(rest) if rest.messages > 0 => rest.after,
            _ => {
                // Of a frame that is half sent, the rest goes before whatever this is told in.
                let ring = &self.lanes[lane].ring;
                ring.offset_at(ring.boundary_after(member.cursors[lane]))
            }
        };
        let resume_position = backlog.filter(|backlog| backlog.on(NORMAL)).map(|backlog| backlog.resume_position);
        let [high, normal] = self.ahead.get(&member.slot).copied().unwrap_or_default();
        [of(HIGH).max(high), resume_position.unwrap_or_else(|| of(NORMAL)).max(normal)]
    }
}
