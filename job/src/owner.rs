//! The owner of one partition of the rooms' topic: a state machine without bus, stream or clock. It is told what
//! happened and asked, by [`Owner::actions`], what to do.
//!
//! ```text
//!   new ─Own to all─▶ Collecting ─all holds, or 2 s─▶ Replaying ─own claim is read─▶ Live
//!                                                       │ records to every holder      │ holds answered,
//!                                                       │ whose position is before     │ records delivered
//!                                    any of them ─▶ Paused (a record newer than this program), Lost (another's claim)
//! ```
//!
//! Invariants (rules 2, 6, 8-12; the simulation in `simulation.rs` checks them):
//! - what a holder receives and what it is told that it misses, together, is the channel's log from its position on,
//!   in order, each message once;
//! - what one owner dropped as repeated, every later one drops: replaying begins [`crate::seen::REPEAT_MS`] before
//!   anything that is still young enough to be delivered;
//! - a record is never lost because it was itself seen before.

mod holds;
mod rooms;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bus::{Offset, Start};
use bytes::Bytes;
use prost::Message as _;
use proto::{client, cluster, native, record};
use rustc_hash::FxHashMap;

use self::holds::Holds;
use crate::item::Encoded;
use crate::metrics::Metrics;
use crate::room::{Gap, Holder, Room, gap_item};
use crate::seen::{Budget, REPEAT_MS, Seen};

/// How long a new owner waits for the connectors that are attached to say what they hold, milliseconds. One that says
/// it later is answered from the recent messages.
pub(crate) const HOLDS_WAIT_MS: i64 = 2000;

/// Between the clocks of the bus and of the owner, milliseconds: so much more is read again.
const CLOCKS_MS: i64 = 10_000;

/// How often a holder that gets nothing is told how far the partition is, milliseconds: its position stays well inside
/// what a new owner reads again.
const THROUGH_MS: i64 = 5_000;
const _: () = assert!(THROUGH_MS * 10 < REPEAT_MS);

/// How often rooms are looked through for what can be let go, milliseconds.
const SWEEP_MS: i64 = 5_000;

/// What holds of every owner of a job.
#[derive(Debug)]
pub(crate) struct Terms {
    /// The job's incarnation.
    pub(crate) owner: String,
    pub(crate) log: Arc<str>,
    pub(crate) partitions: u32,
    pub(crate) age_ms: i64,
    /// 0: no cap.
    pub(crate) per_s_max: u32,
    /// Most bytes of messages in one answer to a hold; what is over it is told as missed.
    pub(crate) answer_bytes_max: usize,
    /// Bytes of recent messages over all partitions.
    pub(crate) recent: Arc<Budget>,
    /// Message IDs over all partitions.
    pub(crate) repeats: Arc<Budget>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What the owner wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Queue this for a connector.
    Send(Holder, Out),
    /// Read the partition from here; what has been read and not yet been given is void.
    Read(Start),
    /// Put the record aside, and go on.
    Letter {
        /// Its place.
        offset: Offset,
        /// Why.
        reason: String,
        /// As it was read.
        record: Bytes,
    },
    /// Stop reading: the record at this offset wants a newer reader.
    Pause(Offset),
    /// Another owns the partition.
    Lost,
}

/// What goes to a connector about the partition, in order.
#[derive(Debug, Clone)]
pub(crate) enum Out {
    Own(cluster::Own),
    Item(Encoded),
    Held(Box<cluster::Held>, Vec<Encoded>),
    /// Everything that the connector holds is complete up to here.
    Through(Offset),
    Disown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Collecting { until_ms: i64 },
    Replaying,
    Live,
    Paused,
    Lost,
}

/// A connector's stream.
#[derive(Default)]
struct Connector {
    /// It has not said `HoldsDone`.
    collecting: bool,
    /// Something went to it since it was last told how far the partition is.
    fed: bool,
    through: Offset,
}

/// The owner of one partition since one claim.
pub(crate) struct Owner {
    terms: Arc<Terms>,
    partition: u32,
    epoch: u64,
    /// Handled by an earlier owner up to here, as far as is known.
    committed: Offset,
    state: State,
    /// Everything after this offset is read; `None` before the first record.
    from: Option<Offset>,
    /// It went back once to what no owner has handled.
    rewound: bool,
    /// Read up to here.
    progress: Offset,
    /// The last record and the last ordinal of rooms that were forgotten: what is there again knows nothing up to here.
    forgotten: (Offset, u64),
    connectors: BTreeMap<Holder, Connector>,
    rooms: FxHashMap<String, Room>,
    waiting: Holds,
    /// Rooms with a gap that holders have not been told.
    gapped: BTreeSet<String>,
    seen: Seen,
    through_ms: i64,
    sweep_ms: i64,
    /// When each new message that was read was handed to the bus, microseconds since 1970: for the metric.
    handed_us: Vec<i64>,
    actions: Vec<Action>,
}

impl Owner {
    /// The owner from its claim at offset `epoch` on; `committed` is where the last one was.
    pub(crate) fn new(
        terms: Arc<Terms>,
        partition: u32,
        epoch: u64,
        committed: Offset,
        attached: impl IntoIterator<Item = Holder>,
        now_ms: i64,
    ) -> Self {
        let seen = Seen::new(terms.repeats.clone());
        let mut owner = Self {
            terms,
            partition,
            epoch,
            committed,
            state: State::Collecting { until_ms: now_ms + HOLDS_WAIT_MS },
            from: None,
            rewound: false,
            progress: 0,
            forgotten: (0, 0),
            connectors: BTreeMap::new(),
            rooms: FxHashMap::default(),
            waiting: Holds::default(),
            gapped: BTreeSet::new(),
            seen,
            through_ms: now_ms,
            sweep_ms: now_ms,
            handed_us: Vec::new(),
            actions: Vec::new(),
        };
        for connector in attached {
            owner.attached(connector);
        }
        owner.begin_if_collected(now_ms);
        owner
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Read, and handed on, up to here.
    pub(crate) fn progress(&self) -> Offset {
        self.progress
    }

    pub(crate) fn is_live(&self) -> bool {
        self.state == State::Live
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state == State::Paused
    }

    pub(crate) fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// Takes what is to be done, in order.
    pub(crate) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Takes when each message that was read first here was handed to the bus, microseconds since 1970.
    pub(crate) fn take_handed(&mut self) -> std::vec::Drain<'_, i64> {
        self.handed_us.drain(..)
    }

    /// A connector's stream is up.
    pub(crate) fn attached(&mut self, connector: Holder) {
        self.connectors.insert(connector, Connector { collecting: true, ..Connector::default() });
        let own = cluster::Own {
            topic: cluster::Topic::Rooms.into(),
            partition: self.partition,
            epoch: self.epoch,
            log: self.terms.log.to_string(),
            partitions: self.terms.partitions,
        };
        self.send(connector, Out::Own(own));
    }

    /// A connector's stream has ended.
    pub(crate) fn detached(&mut self, connector: Holder, now_ms: i64) {
        self.connectors.remove(&connector);
        self.let_go(connector);
        self.begin_if_collected(now_ms);
    }

    /// The queue to the connector ran over and was dropped: it holds anew.
    pub(crate) fn overflowed(&mut self, connector: Holder) {
        self.terms.metrics.resets.inc();
        self.let_go(connector);
        if let Some(connector) = self.connectors.get_mut(&connector) {
            connector.collecting = true;
        }
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, now_ms: i64) {
        if let State::Collecting { until_ms } = self.state
            && now_ms >= until_ms
        {
            self.begin(now_ms);
        }
        if self.state == State::Live && now_ms - self.through_ms >= THROUGH_MS {
            self.through_ms = now_ms;
            self.tell_through(|connector, progress| connector.through < progress);
        }
        if now_ms - self.sweep_ms >= SWEEP_MS {
            self.sweep_ms = now_ms;
            self.sweep(now_ms);
        }
        self.terms.metrics.repeats_forgotten.inc_by(self.seen.take_forgotten());
    }

    /// Records of the partition were read, in order, none twice since the last [`Action::Read`].
    pub(crate) fn records(&mut self, now_ms: i64, records: &[bus::Record]) {
        for record in records {
            match self.state {
                State::Replaying | State::Live => {}
                State::Collecting { .. } | State::Paused | State::Lost => return,
            }
            if self.from.is_none() && !self.begin_reading(record.offset) {
                return;
            }
            self.terms.metrics.records.inc();
            self.record(now_ms, record);
            if matches!(self.state, State::Paused | State::Lost) {
                return;
            }
            self.progress = record.offset;
            if self.state == State::Replaying && record.offset >= self.epoch {
                self.tell_gaps();
                self.state = State::Live;
            }
        }
        self.tell_gaps();
        if self.state == State::Live {
            self.tell_through(|connector, _| connector.fed);
        }
    }

    /// The partition is given up: tells every connector.
    pub(crate) fn disown(&mut self) {
        for connector in self.connectors.keys().copied().collect::<Vec<_>>() {
            self.send(connector, Out::Disown);
        }
        self.state = State::Lost;
    }

    fn begin_if_collected(&mut self, now_ms: i64) {
        let collecting = matches!(self.state, State::Collecting { .. });
        if collecting && self.connectors.values().all(|connector| !connector.collecting) {
            self.begin(now_ms);
        }
    }

    fn begin(&mut self, now_ms: i64) {
        self.state = State::Replaying;
        let since_ms = now_ms - REPEAT_MS - self.terms.age_ms - CLOCKS_MS;
        self.actions.push(Action::Read(Start::Since(since_ms)));
    }

    /// The first record tells where reading began. False: it begins anew, further back.
    fn begin_reading(&mut self, first: Offset) -> bool {
        if self.committed > 0 && first > self.committed + 1 && !self.rewound {
            // Nobody has handled what lies between: too old to be delivered, but to be counted and told.
            self.rewound = true;
            self.actions.push(Action::Read(Start::At(self.committed + 1)));
            return false;
        }
        self.from = Some(first - 1);
        self.progress = first - 1;
        for room in self.rooms.values_mut() {
            room.begin(first - 1);
        }
        self.follow_all();
        true
    }

    fn record(&mut self, now_ms: i64, record: &bus::Record) {
        let read = match record::Record::decode(record.value.clone()) {
            Ok(read) => read,
            Err(error) => return self.letter(record, format!("cannot be decoded: {error}")),
        };
        if read.min_reader > proto::RECORD_VERSION {
            self.state = State::Paused;
            self.actions.push(Action::Pause(record.offset));
            return;
        }
        if *read.log != *self.terms.log {
            return self.letter(record, format!("was written to another log, {:?}", read.log));
        }
        match read.body {
            Some(record::record::Body::Claim(claim)) => {
                if record.offset > self.epoch && claim.owner != self.terms.owner {
                    self.state = State::Lost;
                    self.actions.push(Action::Lost);
                }
            }
            Some(record::record::Body::Post(post)) if self.is_ours(&read.channel) => {
                if self.state == State::Live {
                    self.handed_us.push(read.time_ms * 1000 + i64::from(read.handed_us));
                }
                self.post(now_ms, record, &read.channel, read.time_ms, post);
            }
            Some(record::record::Body::Post(_)) => {
                self.letter(record, format!("{:?} is no room of this partition", read.channel));
            }
            _ => self.letter(record, "has no body that belongs here".to_owned()),
        }
    }

    fn post(&mut self, now_ms: i64, record: &bus::Record, channel: &str, time_ms: i64, post: record::Post) {
        let metrics = self.terms.metrics.clone();
        let first_time = record.offset > self.committed;
        if !post.id.is_empty() && self.seen.repeats(channel, &post.id, record.offset, record.time_ms) {
            metrics.repeated.inc_by(u64::from(first_time));
            return;
        }
        let terms = self.terms.clone();
        let room = self.room(channel);
        let (ordinal, over) = room.next(record.offset, record.time_ms, terms.per_s_max);
        let old = now_ms - record.time_ms > terms.age_ms;
        if over {
            metrics.capped.inc_by(u64::from(first_time));
            room.dropped(record.offset, record.time_ms);
        }
        let item = (!over).then(|| item(record.offset, ordinal, channel, time_ms, post));
        let (mut sent, mut missed) = (Vec::new(), false);
        // The same gap for most, if any: encoded once for each that differs.
        let mut after: Vec<(Gap, Encoded)> = Vec::new();
        for holding in room.holders.iter_mut().filter(|holding| holding.position < record.offset) {
            holding.position = record.offset;
            match &item {
                Some(item) if !old => {
                    let gap = std::mem::take(&mut holding.missed);
                    metrics.gaps.inc_by(gap.count());
                    let item = if gap == Gap::default() {
                        item.clone()
                    } else if let Some((_, item)) = after.iter().find(|(missed, _)| *missed == gap) {
                        item.clone()
                    } else {
                        after.push((gap, gap.before(item)));
                        after[after.len() - 1].1.clone()
                    };
                    sent.push((holding.to, item));
                }
                _ => {
                    holding.missed.add(over);
                    missed = true;
                }
            }
        }
        if let Some(item) = item {
            room.keep(record.offset, record.time_ms, item, &terms.recent);
            room.trim(record.time_ms - terms.age_ms, &terms.recent);
        }
        if missed || over {
            metrics.aged.inc_by(u64::from(old && !over && missed));
            self.gapped.insert(channel.to_owned());
        }
        metrics.deliveries.inc_by(sent.len() as u64);
        for (to, item) in sent {
            self.send(to, Out::Item(item));
        }
    }

    /// Tells every holder the gap that no message has told since.
    fn tell_gaps(&mut self) {
        for channel in std::mem::take(&mut self.gapped) {
            self.tell_gap(&channel, None);
            if let Some(room) = self.rooms.get_mut(&channel) {
                room.close_gap();
            }
        }
    }

    fn tell_gap(&mut self, channel: &str, only: Option<Holder>) {
        let Some(room) = self.rooms.get_mut(channel) else { return };
        let (last, ordinal) = (room.last(), room.ordinal());
        let mut told = Vec::new();
        for holding in &mut room.holders {
            if holding.missed.count() > 0 && only.is_none_or(|only| only == holding.to) {
                told.push((holding.to, std::mem::take(&mut holding.missed)));
            }
        }
        for (to, missed) in told {
            self.terms.metrics.gaps.inc_by(missed.count());
            self.send(to, Out::Item(gap_item(channel, last, ordinal, missed)));
        }
    }

    fn tell_through(&mut self, whom: impl Fn(&Connector, Offset) -> bool) {
        // What was not said to be held, or not answered, is not complete.
        for (&to, connector) in &mut self.connectors {
            if !connector.collecting && !self.waiting.has(to) && whom(connector, self.progress) {
                (connector.fed, connector.through) = (false, self.progress);
                self.actions.push(Action::Send(to, Out::Through(self.progress)));
            }
        }
    }

    fn send(&mut self, to: Holder, out: Out) {
        if let (Out::Item(_), Some(connector)) = (&out, self.connectors.get_mut(&to)) {
            connector.fed = true;
        }
        self.actions.push(Action::Send(to, out));
    }

    fn letter(&mut self, record: &bus::Record, reason: String) {
        // An earlier owner has put aside what it handled.
        if record.offset > self.committed {
            self.actions.push(Action::Letter { offset: record.offset, reason, record: record.value.clone() });
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        for room in self.rooms.values_mut() {
            room.clear(&self.terms.recent);
        }
    }
}

/// The message as connectors get it, encoded once for all.
fn item(offset: Offset, ordinal: u64, channel: &str, time_ms: i64, post: record::Post) -> Encoded {
    let lane = post.lane;
    let raw = post.raw.clone();
    let message = message(channel.to_owned(), offset, time_ms, post).encode_to_vec().into();
    Encoded::new(&cluster::Item {
        channel: channel.to_owned(),
        offset,
        ordinal,
        lane,
        message,
        raw,
        missed: 0,
        reasons: None,
    })
}

/// A post as native clients get it.
pub(crate) fn message(channel: String, offset: Offset, time_ms: i64, post: record::Post) -> client::Message {
    client::Message {
        channel,
        id: post.id,
        offset,
        time_ms,
        sender: post.sender,
        r#type: post.r#type,
        payload: Some(native::payload(post.payload)),
        style: post.style,
        lane: post.lane,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::ROOM_BYTES;

    const AGE_MS: i64 = 60_000;

    pub(super) fn owner(recent_bytes_max: usize) -> Owner {
        let terms = Terms {
            owner: "job".into(),
            log: "log".into(),
            partitions: 1,
            age_ms: AGE_MS,
            per_s_max: 0,
            answer_bytes_max: 1 << 20,
            recent: Budget::new(recent_bytes_max),
            repeats: Budget::new(1000),
            metrics: Arc::default(),
        };
        let mut owner = Owner::new(Arc::new(terms), 0, 1, 0, [1], 0);
        owner.holds_done(1, 1, 0);
        let claim = record::record::Body::Claim(record::Claim { owner: "job".into() });
        owner.records(0, &[record(1, 0, "", claim)]);
        assert!(owner.is_live());
        owner
    }

    fn record(offset: Offset, time_ms: i64, channel: &str, body: record::record::Body) -> bus::Record {
        let (log, channel) = ("log".to_owned(), channel.to_owned());
        let record = record::Record { min_reader: 1, log, time_ms, channel, body: Some(body), ..Default::default() };
        bus::Record { offset, time_ms, value: record.encode_to_vec().into() }
    }

    fn post(offset: Offset, time_ms: i64, channel: &str) -> bus::Record {
        record(offset, time_ms, channel, record::record::Body::Post(record::Post::default()))
    }

    /// Holds `channel` from `offset` on, and what it is told that it misses.
    fn hold(owner: &mut Owner, channel: &str, offset: Offset, ordinal: u64) -> Option<cluster::Missed> {
        let (epoch, ordinal_epoch) = (owner.epoch(), if ordinal > 0 { owner.epoch() } else { 0 });
        let (log, channel) = ("log".to_owned(), channel.to_owned());
        let hold = cluster::Hold { epoch, log, channel, offset, ordinal, ordinal_epoch, ..cluster::Hold::default() };
        owner.actions();
        owner.hold(1, hold);
        owner.answer_holds(|_| 1 << 20);
        owner
            .actions()
            .into_iter()
            .find_map(|action| match action {
                Action::Send(_, Out::Held(held, _)) => Some(held.missed),
                _ => None,
            })
            .expect("the hold is answered")
    }

    #[test]
    fn rooms_of_one_message_stay_in_the_budget() {
        const BYTES_MAX: usize = 1000 * 2 * ROOM_BYTES;
        let mut owner = owner(BYTES_MAX);
        hold(&mut owner, "room:held", 1, 0);
        owner.records(0, &[post(2, 0, "room:held")]);
        let mut most = 0;
        // Ten a second, an hour long.
        for number in 0..36_000 {
            let now_ms = number as i64 * 100;
            owner.records(now_ms, &[post(number + 3, now_ms, &format!("room:{number}"))]);
            owner.tick(now_ms);
            owner.actions();
            most = most.max(owner.rooms());
            // What is younger than the age is kept, and what comes until it is looked through again.
            let young = 10 * (AGE_MS + SWEEP_MS) as usize / 1000 * 2 * ROOM_BYTES;
            assert!(owner.terms.recent.used() <= BYTES_MAX + young);
        }
        assert!((1000..4000).contains(&most), "{most}");
        assert!(owner.rooms.contains_key("room:held"));
        let newest = owner.rooms.keys().filter_map(|name| name.strip_prefix("room:")?.parse::<u64>().ok());
        assert!(newest.min().is_some_and(|oldest| oldest > 30_000), "the oldest were forgotten");
        let budget = owner.terms.recent.clone();
        drop(owner);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn who_comes_back_to_a_forgotten_room_is_not_told_a_wrong_number() {
        let mut owner = owner(1);
        let posts: Vec<_> = (2..=11).map(|offset| post(offset, 0, "room:1")).collect();
        owner.records(0, &posts);
        assert_eq!(hold(&mut owner, "room:1", 8, 7), None, "all that it lacks is kept");
        owner.release(1, "room:1");
        owner.tick(2 * AGE_MS);
        assert_eq!(owner.rooms(), 0);
        // It is back with two more, of which the holder, having had the first seven, knows nothing.
        let posts: Vec<_> = (12..=13).map(|offset| post(offset, 2 * AGE_MS, "room:1")).collect();
        owner.records(2 * AGE_MS, &posts);
        assert_eq!(
            hold(&mut owner, "room:1", 8, 7),
            Some(cluster::Missed { count: 0, exact: false, reasons: Some(client::GapReasons::default()) })
        );
        owner.release(1, "room:1");
        assert_eq!(hold(&mut owner, "room:1", 11, 10), None, "it had all when it was forgotten");
    }
}
