//! The rooms' stage. It numbers each room's messages, and drops repetitions, messages over the flow cap and messages that
//! are too old. It keeps the recent ones, and hands each message to the connectors that hold the room.
//!
//! Claims, replays and holds are [`crate::partition`]'s.
//!
//! ```text
//!   record ─▶ Seen: a repetition? ─▶ Room: ordinal, flow cap ─▶ age ─▶ every holder before it, and the recent messages
//! ```
//!
//! Invariants: those of `room` and `seen`. A replay begins [`seen::REPEAT_MS`] before any message that is young enough to
//! be delivered. What one owner dropped as repeated, every later owner therefore drops.

mod room;
mod seen;

use std::collections::BTreeSet;
use std::sync::Arc;

use bus::{Offset, Start};
use prost::Message as _;
use proto::channel::{self, Channel};
use proto::{client, cluster, native, record};
use rustc_hash::FxHashMap;

use self::room::{Gap, Holding, Room, gap_item};
use self::seen::{Seen, Verdict};
use crate::item::EncodedItem;
use crate::metrics::Metrics;
use crate::out::Out;
use crate::partition::{Action, Answer, Fit, HolderPosition, Measures, Outgoing, Stage, StreamId, Takeover};

pub(crate) use self::seen::Budget;
#[cfg(test)]
pub(crate) use self::seen::REPEAT_MS;

/// Between the clocks of the bus and of the owner, milliseconds: so much more is read again.
const CLOCKS_MS: i64 = 10_000;

const _: () = assert!(crate::partition::THROUGH_MS * 10 < seen::REPEAT_MS);

/// A room that nobody holds is forgotten this long after its last message, milliseconds: as long as the bus keeps it.
/// Over the budget of recent messages it is forgotten as soon as what it keeps is too old to be delivered.
const ROOM_IDLE_MS: i64 = 60 * 60 * 1000;

/// What the rooms of all partitions share.
#[derive(Debug)]
pub(crate) struct RoomsConfig {
    /// Of the topic.
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

/// The rooms of one partition.
pub(crate) struct Rooms {
    config: Arc<RoomsConfig>,
    partition: u32,
    /// Everything after this offset is read; 0 before the first record.
    from: Offset,
    /// The last record and the last ordinal of rooms that were forgotten: what is there again knows nothing up to here.
    forgotten: (Offset, u64),
    rooms: FxHashMap<String, Room>,
    /// Rooms with a gap that holders have not been told.
    gapped: BTreeSet<String>,
    seen: Seen,
}

impl Stage for Rooms {
    type Config = RoomsConfig;

    const TOPIC: cluster::Topic = cluster::Topic::Rooms;
    const BUS_TOPIC: bus::Topic = bus::Topic::Rooms;
    const CLAIMS: bool = true;

    fn new(config: Arc<RoomsConfig>, takeover: Takeover) -> Self {
        let seen = Seen::new(config.repeats.clone());
        Self {
            config,
            partition: takeover.partition,
            from: 0,
            forgotten: (0, 0),
            rooms: FxHashMap::default(),
            gapped: BTreeSet::new(),
            seen,
        }
    }

    fn start(&self, now_ms: i64) -> Start {
        Start::Since(now_ms - seen::REPEAT_MS - self.config.age_ms - CLOCKS_MS)
    }

    fn begin(&mut self, from: Offset) {
        self.from = from;
        for room in self.rooms.values_mut() {
            room.begin(from);
        }
    }

    fn record(&mut self, out: &mut Outgoing, fit: Fit) -> Result<(), String> {
        match &fit.record.body {
            Some(record::record::Body::Post(_)) if !self.is_ours(&fit.record.channel) => {
                Err(format!("{:?} is no room of this partition", fit.record.channel))
            }
            Some(record::record::Body::Post(_)) => {
                self.post(out, fit);
                Ok(())
            }
            _ => Err("has no body that belongs here".to_owned()),
        }
    }

    /// Tells every holder the gap that no message has told since.
    fn end_of_batch(&mut self, out: &mut Outgoing) {
        for channel in std::mem::take(&mut self.gapped) {
            self.tell_gap(out, &channel, None);
            if let Some(room) = self.rooms.get_mut(&channel) {
                room.close_gap();
            }
        }
    }

    fn is_ours(&self, channel: &str) -> bool {
        matches!(Channel::parse(channel), Ok(Channel::Room(_)))
            && channel::partition(channel, self.config.partitions) == self.partition
    }

    fn follow(&mut self, to: StreamId, channel: &str, position: Offset) {
        let holding = self.holding(to, channel, position);
        holding.position = holding.position.max(position);
    }

    fn answer(&mut self, channel: &str, place: HolderPosition) -> Answer {
        let bytes_max = self.config.answer_bytes_max;
        self.room(channel).answer(place, bytes_max)
    }

    fn held(&mut self, out: &mut Outgoing, to: StreamId, channel: &str, progress: Offset) {
        self.tell_gap(out, channel, Some(to));
        self.follow(to, channel, progress);
    }

    fn release(&mut self, connector: StreamId, channel: &str) {
        if let Some(room) = self.rooms.get_mut(channel) {
            room.holders.retain(|holding| holding.to != connector);
        }
    }

    fn let_go(&mut self, connector: StreamId) {
        for room in self.rooms.values_mut() {
            room.holders.retain(|holding| holding.to != connector);
        }
    }

    /// Forgets rooms that nobody needs, over the budget those that somebody might still come back to, oldest first, and
    /// what is too old of the others.
    fn sweep(&mut self, now_ms: i64, wanted: &dyn Fn(&str) -> bool) {
        let config = self.config.clone();
        config.metrics.repeats_forgotten.inc_by(self.seen.take_forgotten());
        let (budget, keep_from_ms) = (&config.recent, now_ms - config.age_ms);
        let free = |channel: &str, room: &Room| room.holders.is_empty() && !wanted(channel);
        let forgotten = &mut self.forgotten;
        let mut forget = |room: &mut Room| {
            *forgotten = (forgotten.0.max(room.last()), forgotten.1.max(room.ordinal()));
            room.clear(budget);
        };
        self.rooms.retain(|channel, room| {
            let idle = room.newest_ms().is_none_or(|newest_ms| now_ms - newest_ms > ROOM_IDLE_MS);
            if idle && free(channel, room) {
                forget(room);
                return false;
            }
            true
        });
        if budget.is_over() {
            let old = |(channel, room): (&String, &Room)| {
                let newest_ms = room.newest_ms().filter(|&newest_ms| newest_ms < keep_from_ms)?;
                free(channel, room).then(|| (newest_ms, channel.clone()))
            };
            let mut old: Vec<_> = self.rooms.iter().filter_map(old).collect();
            old.sort_unstable();
            for (_, channel) in old {
                if !budget.is_over() {
                    break;
                }
                if let Some(mut room) = self.rooms.remove(&channel) {
                    forget(&mut room);
                }
            }
            // Else the table stays as large as it ever was.
            if self.rooms.len() < self.rooms.capacity() / 4 {
                self.rooms.shrink_to_fit();
            }
        }
        for room in self.rooms.values_mut() {
            room.trim(keep_from_ms, budget);
        }
    }

    fn measure(&mut self, measures: &mut Measures) {
        measures.rooms += self.rooms.len();
    }

    fn show(config: &RoomsConfig, measures: &Measures) {
        let metrics = &config.metrics;
        metrics.partitions.set(measures.partitions as i64);
        metrics.paused.set(measures.paused as i64);
        metrics.rooms.set(measures.rooms as i64);
        metrics.recent_bytes.set(config.recent.used() as i64);
        metrics.queued_bytes.set(measures.queued_bytes as i64);
        if let Some(lag) = measures.lag {
            metrics.lag.set(lag as i64);
        }
    }
}

impl Rooms {
    fn room(&mut self, channel: &str) -> &mut Room {
        // A room's name is copied only when it is new.
        if !self.rooms.contains_key(channel) {
            let known_from = self.from.max(self.forgotten.0);
            let room = Room::new(channel, known_from, self.forgotten.1, &self.config.recent);
            self.rooms.insert(channel.to_owned(), room);
        }
        self.rooms.get_mut(channel).expect("it was just put there")
    }

    fn holding(&mut self, to: StreamId, channel: &str, position: Offset) -> &mut Holding {
        let holders = &mut self.room(channel).holders;
        let at = holders.iter().position(|holding| holding.to == to).unwrap_or_else(|| {
            // In most rooms of a small cluster there are one or two.
            holders.reserve_exact(1);
            holders.push(Holding { to, position, missed: Gap::default() });
            holders.len() - 1
        });
        &mut holders[at]
    }

    fn post(&mut self, out: &mut Outgoing, fit: Fit) {
        let Fit { offset, time_ms: log_ms, now_us, first_time, live, record } = fit;
        let Some(record::record::Body::Post(post)) = record.body else { return };
        let (channel, config) = (record.channel.as_str(), self.config.clone());
        let metrics = &config.metrics;
        if live {
            let handed_us = record.time_ms * 1000 + i64::from(record.handed_us);
            metrics.bus.observe((now_us - handed_us).max(0) as f64 / 1e6);
        }
        let sight = if post.id.is_empty() { Verdict::New } else { self.seen.see(channel, &post, offset, log_ms) };
        match sight {
            Verdict::New => {}
            Verdict::Repeated => {
                metrics.repeated.inc_by(u64::from(first_time));
                return;
            }
            Verdict::Conflicting => {
                metrics.conflicts.inc_by(u64::from(first_time));
                if first_time && !post.session.is_empty() {
                    let code = client::ErrorCode::Conflict.into();
                    let (id, client_message_id) = (post.id, post.client_message_id);
                    let refused = client::Refused { channel: channel.to_owned(), id, client_message_id, code };
                    out.act(Action::Refuse(post.session, refused));
                }
                return;
            }
        }
        let room = self.room(channel);
        let (ordinal, over) = room.next(offset, log_ms, config.per_s_max);
        let old = now_us / 1000 - log_ms > config.age_ms;
        if over {
            metrics.capped.inc_by(u64::from(first_time));
            room.dropped(offset, log_ms);
        }
        let item = (!over).then(|| item(offset, ordinal, channel, record.time_ms, post));
        let (mut sent, mut missed) = (0, false);
        // The same gap for most, if any: encoded once for each that differs.
        let mut after: Vec<(Gap, EncodedItem)> = Vec::new();
        for holding in room.holders.iter_mut().filter(|holding| holding.position < offset) {
            holding.position = offset;
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
                    sent += 1;
                    out.send(holding.to, Out::Item(item));
                }
                _ => {
                    holding.missed.add(over);
                    missed = true;
                }
            }
        }
        if let Some(item) = item {
            room.keep(offset, log_ms, item, &config.recent);
            room.trim(log_ms - config.age_ms, &config.recent);
        }
        if missed || over {
            metrics.aged.inc_by(u64::from(old && !over && missed));
            self.gapped.insert(channel.to_owned());
        }
        metrics.deliveries.inc_by(sent);
    }

    fn tell_gap(&mut self, out: &mut Outgoing, channel: &str, only: Option<StreamId>) {
        let Some(room) = self.rooms.get_mut(channel) else { return };
        let (last, ordinal) = (room.last(), room.ordinal());
        for holding in &mut room.holders {
            if holding.missed.count() > 0 && only.is_none_or(|only| only == holding.to) {
                let missed = std::mem::take(&mut holding.missed);
                self.config.metrics.gaps.inc_by(missed.count());
                out.send(holding.to, Out::Item(gap_item(channel, last, ordinal, missed)));
            }
        }
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        for room in self.rooms.values_mut() {
            room.clear(&self.config.recent);
        }
    }
}

/// The message as connectors get it, encoded once for all.
fn item(offset: Offset, ordinal: u64, channel: &str, time_ms: i64, post: record::Post) -> EncodedItem {
    let lane = post.lane;
    let raw = post.raw.clone();
    let message = message(channel.to_owned(), offset, time_ms, post).encode_to_vec().into();
    EncodedItem::new(&cluster::Item {
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
pub(crate) mod tests {
    use super::room::ROOM_BYTES;
    use super::*;
    use crate::partition::{Owner, OwnerConfig, SWEEP_MS};

    const AGE_MS: i64 = 60_000;

    /// An owner of the only partition, live, with one connector.
    pub(crate) fn owner(recent_bytes_max: usize) -> Owner<Rooms> {
        let (log, metrics) = ("log".into(), Arc::<Metrics>::default());
        let config = OwnerConfig { owner: "job".into(), log, partitions: 1, metrics: metrics.clone() };
        let rooms = RoomsConfig {
            partitions: 1,
            age_ms: AGE_MS,
            per_s_max: 0,
            answer_bytes_max: 1 << 20,
            recent: Budget::new(recent_bytes_max),
            repeats: Budget::new(1000),
            metrics,
        };
        let takeover = Takeover { partition: 0, committed: 0, assigned_ms: 0 };
        let stage = Rooms::new(Arc::new(rooms), takeover);
        let mut owner = Owner::new(Arc::new(config), stage, takeover, 1, [1], 0);
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
    fn hold(owner: &mut Owner<Rooms>, channel: &str, offset: Offset, ordinal: u64) -> Option<cluster::Missed> {
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
    fn who_sends_another_payload_under_the_same_id_is_told() {
        let mut owner = owner(1 << 20);
        let post = |payload: &'static str, session: &str| {
            let (id, client_message_id) = ("id".to_owned(), "mine".to_owned());
            let (payload, session) = (payload.into(), session.to_owned());
            record::record::Body::Post(record::Post { id, client_message_id, payload, session, ..Default::default() })
        };
        let sent = [("one", "a"), ("one", "a"), ("two", "b"), ("two", ""), ("one", "b")];
        let records = sent.iter().zip(2..).map(|((text, from), at)| record(at, 0, "room:1", post(text, from)));
        owner.records(0, &records.collect::<Vec<_>>());
        let refused = owner.actions().into_iter().filter_map(|action| match action {
            Action::Refuse(session, refused) => Some((session, refused)),
            _ => None,
        });
        let told = client::Refused {
            channel: "room:1".into(),
            id: "id".into(),
            client_message_id: "mine".into(),
            code: client::ErrorCode::Conflict.into(),
        };
        assert_eq!(refused.collect::<Vec<_>>(), [("b".to_owned(), told)]);
        let metrics = owner.stage().config.metrics.clone();
        assert_eq!((metrics.repeated.get(), metrics.conflicts.get()), (2, 2));
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
            owner.records(now_ms * 1000, &[post(number + 3, now_ms, &format!("room:{number}"))]);
            owner.tick(now_ms);
            owner.actions();
            most = most.max(owner.stage().rooms.len());
            // What is younger than the age is kept, and what comes until it is looked through again.
            let young = 10 * (AGE_MS + SWEEP_MS) as usize / 1000 * 2 * ROOM_BYTES;
            assert!(owner.stage().config.recent.used() <= BYTES_MAX + young);
        }
        assert!((1000..4000).contains(&most), "{most}");
        assert!(owner.stage().rooms.contains_key("room:held"));
        let newest = owner.stage().rooms.keys().filter_map(|name| name.strip_prefix("room:")?.parse::<u64>().ok());
        assert!(newest.min().is_some_and(|oldest| oldest > 30_000), "the oldest were forgotten");
        let budget = owner.stage().config.recent.clone();
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
        assert_eq!(owner.stage().rooms.len(), 0);
        // It is back with two more, of which the holder, having had the first seven, knows nothing.
        let posts: Vec<_> = (12..=13).map(|offset| post(offset, 2 * AGE_MS, "room:1")).collect();
        owner.records(2 * AGE_MS * 1000, &posts);
        assert_eq!(
            hold(&mut owner, "room:1", 8, 7),
            Some(cluster::Missed { count: 0, exact: false, reasons: Some(client::GapReasons::default()) })
        );
        owner.release(1, "room:1");
        assert_eq!(hold(&mut owner, "room:1", 11, 10), None, "it had all when it was forgotten");
    }
}
