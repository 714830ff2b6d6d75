//! What the viewers saw: of a checked one each message of its room, of every one its bytes; and what that comes to.
//!
//! ```text
//!   Tally, a worker's: ledgers ─▶ Account: what each session got ─▶ all workers' together ─▶ Sums, by class of rooms
//! ```

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::note::Note;
use crate::schedule::Schedule;

/// Longest latency that is told from longer ones, microseconds: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// An empty histogram of microseconds.
pub(crate) fn microseconds() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_US_MAX, DIGITS).expect("the bounds are constants that fit")
}

/// Adds `us` to `histogram`.
pub(crate) fn record(histogram: &mut Histogram<u64>, us: u64) {
    histogram.saturating_record(us.max(1));
}

/// One checked viewer's messages: which have come, and what came last from each publisher.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Bit i: the room's message i has come.
    seen: Vec<u64>,
    /// Number plus one, 0: none yet.
    last: Vec<u32>,
    /// Messages that it was told it missed.
    pub(crate) gaps: u64,
}

impl Ledger {
    pub(crate) fn new(room: u32, schedule: &Schedule) -> Self {
        let messages = schedule.messages_in(room) as usize;
        Self { seen: vec![0; messages.div_ceil(64)], last: vec![0; schedule.publishers as usize], gaps: 0 }
    }

    /// Bytes of a ledger, for a bound on all of them.
    pub(crate) fn bytes(room: u32, schedule: &Schedule) -> u64 {
        u64::from(schedule.messages_in(room)) / 8 + u64::from(schedule.publishers) * 4
    }

    /// How many of the room's messages in `accepted` (a bit for each number) have come.
    fn delivered(&self, room: u32, accepted: &[u64], schedule: &Schedule) -> u64 {
        let of_room = schedule.numbers_of(room).enumerate();
        of_room.filter(|(place, number)| bit(&self.seen, *place) && bit(accepted, *number as usize)).count() as u64
    }
}

/// Whether bit `place` is set.
pub(crate) fn bit(bits: &[u64], place: usize) -> bool {
    bits.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
}

/// Sets bit `place`; whether it was not.
pub(crate) fn set(bits: &mut [u64], place: usize) -> bool {
    let word = &mut bits[place / 64];
    let before = *word;
    *word |= 1 << (place % 64);
    *word != before
}

/// A viewer's place, and what was counted there.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) room: u32,
    pub(crate) server: u32,
    /// Since it was in its room; of a checked one answers to heartbeats are not counted.
    pub(crate) bytes: u64,
    /// Heartbeats of one that is not checked.
    pub(crate) beats: u32,
    /// Of a checked one.
    pub(crate) ledger: Option<Ledger>,
}

/// What a worker's viewers saw.
#[derive(Debug)]
pub(crate) struct Tally {
    /// By class of rooms: microseconds from the intended time to the arrival, each message that is measured once.
    pub(crate) latency: Vec<Histogram<u64>>,
    pub(crate) duplicates: u64,
    /// Messages that came after one that the same publisher had sent later.
    pub(crate) disordered: u64,
    /// Messages of another room or of nobody's: must not be.
    pub(crate) strays: u64,
    /// Sessions that ended before they were ended here, by reason.
    pub(crate) closed: BTreeMap<String, u64>,
    /// When the last message came, [`crate::clock::now_ns`].
    pub(crate) last_ns: u64,
    pub(crate) seats: Vec<Seat>,
    /// Of an answer to a heartbeat, on the wire, by room and server: some dialects say in it how many are there. 0: none
    /// was seen.
    pub(crate) pong_bytes: Vec<u64>,
}

/// What one viewer got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Got {
    room: u32,
    server: u32,
    /// As [`Seat::bytes`].
    bytes: u64,
    beats: u32,
    /// Of a checked one: messages of those that were accepted, and that it was told it missed.
    checked: Option<(u64, u64)>,
}

/// What workers' viewers saw, in a form that goes through a pipe.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// As [`Tally`]'s: values and how often.
    latency: Vec<Vec<(u64, u64)>>,
    pub(crate) duplicates: u64,
    pub(crate) disordered: u64,
    pub(crate) strays: u64,
    pub(crate) closed: BTreeMap<String, u64>,
    pub(crate) last_ns: u64,
    pong_bytes: Vec<u64>,
    got: Vec<Got>,
}

/// The place of a room at a server in a list of all.
pub(crate) fn spot(schedule: &Schedule, room: u32, server: u32) -> usize {
    room as usize * schedule.servers as usize + server as usize
}

impl Tally {
    pub(crate) fn new(schedule: &Schedule) -> Self {
        Self {
            latency: schedule.classes().map(|_| microseconds()).collect(),
            duplicates: 0,
            disordered: 0,
            strays: 0,
            closed: BTreeMap::new(),
            last_ns: 0,
            seats: Vec::new(),
            pong_bytes: vec![0; schedule.rooms() as usize * schedule.servers as usize],
        }
    }

    /// A payload came to the viewer of `ledger`, who is in `room`; whether it is a new one of this run.
    pub(crate) fn came(
        &mut self,
        ledger: &mut Ledger,
        room: u32,
        schedule: &Schedule,
        payload: &[u8],
        now_ns: u64,
    ) -> bool {
        let note = Note::read(payload).filter(|note| note.run == schedule.run && note.number < schedule.messages());
        let Some(note) = note.filter(|note| schedule.room_of(note.number) == room) else {
            self.strays += 1;
            return false;
        };
        if !set(&mut ledger.seen, schedule.place_of(note.number) as usize) {
            self.duplicates += 1;
            return false;
        }
        let last = &mut ledger.last[(note.number % schedule.publishers) as usize];
        if note.number < *last {
            self.disordered += 1;
        }
        *last = (*last).max(note.number + 1);
        if schedule.is_measured(note.number) {
            record(&mut self.latency[schedule.class_of_room(room)], now_ns.saturating_sub(note.intended_ns) / 1000);
        }
        self.last_ns = now_ns;
        true
    }

    pub(crate) fn closed(&mut self, reason: String) {
        *self.closed.entry(reason).or_default() += 1;
    }

    /// What it comes to, where the messages in `accepted` (a bit for each number) should have come.
    pub(crate) fn account(self, schedule: &Schedule, accepted: &[u64]) -> Account {
        let counts = |histogram: &Histogram<u64>| {
            let values = histogram.iter_recorded();
            values.map(|value| (value.value_iterated_to(), value.count_since_last_iteration())).collect()
        };
        let got = self.seats.into_iter().map(|Seat { room, server, bytes, beats, ledger }| {
            let checked = ledger.map(|ledger| (ledger.delivered(room, accepted, schedule), ledger.gaps));
            Got { room, server, bytes, beats, checked }
        });
        Account {
            latency: self.latency.iter().map(counts).collect(),
            duplicates: self.duplicates,
            disordered: self.disordered,
            strays: self.strays,
            closed: self.closed,
            last_ns: self.last_ns,
            pong_bytes: self.pong_bytes,
            got: got.collect(),
        }
    }
}

impl Account {
    /// Adds another worker's.
    pub(crate) fn add(&mut self, mut other: Self) {
        if self.latency.is_empty() {
            self.latency.resize(other.latency.len(), Vec::new());
            self.pong_bytes.resize(other.pong_bytes.len(), 0);
        }
        for (ours, theirs) in self.latency.iter_mut().zip(&mut other.latency) {
            ours.append(theirs);
        }
        for (ours, theirs) in self.pong_bytes.iter_mut().zip(other.pong_bytes) {
            *ours = (*ours).max(theirs);
        }
        self.duplicates += other.duplicates;
        self.disordered += other.disordered;
        self.strays += other.strays;
        self.last_ns = self.last_ns.max(other.last_ns);
        self.got.append(&mut other.got);
        for (reason, count) in other.closed {
            *self.closed.entry(reason).or_default() += count;
        }
    }

    /// By class of rooms: microseconds from the intended time to the arrival.
    pub(crate) fn latency(&self) -> Vec<Histogram<u64>> {
        let histogram = |counts: &Vec<(u64, u64)>| {
            let mut histogram = microseconds();
            counts.iter().for_each(|&(value, count)| histogram.saturating_record_n(value, count));
            histogram
        };
        self.latency.iter().map(histogram).collect()
    }

    /// What it comes to, by class of rooms.
    pub(crate) fn sums(&self, schedule: &Schedule, accepted: &[u64]) -> Vec<Sum> {
        let expected: Vec<u64> = (0..schedule.rooms())
            .map(|room| schedule.numbers_of(room).filter(|number| bit(accepted, *number as usize)).count() as u64)
            .collect();
        let mut sums = vec![Sum::default(); schedule.classes().len()];
        // Of each room at each server: what a checked session got that got everything, and what all checked ones got
        // together.
        let spots = expected.len() * schedule.servers as usize;
        let mut whole: Vec<Option<u64>> = vec![None; spots];
        let mut share = vec![(0_u64, 0_u64); spots];
        for got in &self.got {
            let Some((delivered, gaps)) = got.checked else { continue };
            let (room, spot) = (got.room as usize, spot(schedule, got.room, got.server));
            let sum = &mut sums[schedule.class_of_room(got.room)];
            sum.sessions += 1;
            sum.checked += 1;
            sum.bytes += got.bytes;
            sum.expected += expected[room];
            sum.delivered += delivered;
            sum.gaps += gaps;
            sum.untold += (expected[room] - delivered).saturating_sub(gaps);
            if delivered == expected[room] && gaps == 0 {
                whole[spot] = whole[spot].or(Some(got.bytes));
            }
            share[spot].0 += delivered;
            share[spot].1 += got.bytes;
        }
        // Of a room in which no checked session's was seen it is as small as in the others: it is a small one.
        let least = self.pong_bytes.iter().copied().filter(|bytes| *bytes > 0).min().unwrap_or_default();
        for got in self.got.iter().filter(|got| got.checked.is_none()) {
            let (room, spot) = (got.room as usize, spot(schedule, got.room, got.server));
            let pong = self.pong_bytes.get(spot).copied().filter(|bytes| *bytes > 0).unwrap_or(least);
            let bytes = got.bytes.saturating_sub(u64::from(got.beats) * pong);
            let sum = &mut sums[schedule.class_of_room(got.room)];
            sum.sessions += 1;
            sum.bytes += bytes;
            sum.expected += expected[room];
            if whole[spot] == Some(bytes) {
                sum.delivered += expected[room];
                continue;
            }
            sum.unequal += 1;
            let (messages, of) = share[spot];
            let about = u128::from(bytes) * u128::from(messages) / u128::from(of.max(1));
            sum.delivered += (about as u64).min(expected[room]);
        }
        sums
    }
}

/// What the viewers of a class of rooms got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) sessions: u64,
    /// Of these, checked message by message.
    pub(crate) checked: u64,
    pub(crate) bytes: u64,
    /// Accepted messages times the viewers of their rooms.
    pub(crate) expected: u64,
    /// Of a session that is not checked: everything, if it got as many bytes as a checked one that got everything; else
    /// as many messages as its bytes are worth.
    pub(crate) delivered: u64,
    /// That checked viewers were told they missed.
    pub(crate) gaps: u64,
    /// That checked viewers missed without being told.
    pub(crate) untold: u64,
    /// Sessions not checked that got other bytes than a checked one that got everything, or had none to compare with.
    pub(crate) unequal: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Class;

    fn schedule() -> Schedule {
        Schedule::new(7, 4, 1, (0, 1.0), &[Class { rooms: 2, sessions: 4, rate: 100.0 }])
    }

    fn came(tally: &mut Tally, ledger: &mut Ledger, number: u32) -> bool {
        let note = Note { run: 7, number, intended_ns: u64::from(number) * 1_000_000 };
        tally.came(ledger, 1, &schedule(), note.payload(40).as_bytes(), 500_000_000)
    }

    fn fresh() -> (Tally, Ledger) {
        (Tally::new(&schedule()), Ledger::new(1, &schedule()))
    }

    #[test]
    fn disorder_is_judged_for_each_publisher() {
        let (mut tally, mut ledger) = fresh();
        // 1, 5, 9 are of publisher 1; 3, 7 of publisher 3.
        for number in [1, 7, 9, 3, 5] {
            assert!(came(&mut tally, &mut ledger, number));
        }
        assert_eq!((tally.disordered, tally.duplicates, tally.strays), (2, 0, 0));
    }

    #[test]
    fn duplicates_and_strays_are_not_deliveries() {
        let (mut tally, mut ledger) = fresh();
        assert!(came(&mut tally, &mut ledger, 1));
        assert!(!came(&mut tally, &mut ledger, 1));
        assert!(!came(&mut tally, &mut ledger, 2), "of the other room");
        assert!(!tally.came(&mut ledger, 1, &schedule(), b"hello", 0));
        let other = Note { run: 8, number: 3, intended_ns: 0 }.payload(0);
        assert!(!tally.came(&mut ledger, 1, &schedule(), other.as_bytes(), 0));
        assert_eq!((tally.duplicates, tally.strays, tally.latency[0].len()), (1, 3, 1));
    }

    #[test]
    fn what_was_not_accepted_is_not_counted_as_delivered() {
        let (mut tally, mut ledger) = fresh();
        for number in [1, 3, 99] {
            came(&mut tally, &mut ledger, number);
        }
        let mut accepted = vec![0; 2];
        for number in [0, 1, 2, 5, 99] {
            set(&mut accepted, number);
        }
        ledger.gaps = 1;
        tally.seats.push(Seat { room: 1, server: 0, bytes: 10, beats: 0, ledger: Some(ledger) });
        let sum = tally.account(&schedule(), &accepted).sums(&schedule(), &accepted).remove(0);
        assert_eq!((sum.expected, sum.delivered, sum.gaps, sum.untold), (3, 2, 1, 0));
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        let (mut tally, mut ledger) = fresh();
        came(&mut tally, &mut ledger, 99);
        assert!(tally.latency[0].max().abs_diff(401_000) < 1_000, "{}", tally.latency[0].max());
    }

    #[test]
    fn a_session_that_is_not_checked_is_held_against_one_that_is() {
        let (mut tally, mut ledger) = fresh();
        let mut accepted = vec![0; 2];
        for number in (1..100).step_by(2) {
            came(&mut tally, &mut ledger, number);
            set(&mut accepted, number as usize);
        }
        let counted = |bytes, beats| Seat { room: 1, server: 0, bytes, beats, ledger: None };
        tally.seats.push(Seat { ledger: Some(ledger), ..counted(5000, 0) });
        tally.pong_bytes[1] = 7;
        // Another worker has nobody who is checked.
        let mut other = fresh().0;
        other.seats.extend([(5000, 0), (4014, 2), (6000, 0)].map(|(bytes, beats)| counted(bytes, beats)));
        let mut account = Account::default();
        for tally in [tally, other] {
            let of_worker = tally.account(&schedule(), &accepted);
            let line = serde_json::to_string(&of_worker).unwrap();
            assert_eq!(serde_json::from_str::<Account>(&line).unwrap(), of_worker);
            account.add(of_worker);
        }
        assert_eq!((account.latency()[0].len(), account.latency()[0].max() / 1000), (50, 499));
        let sum = account.sums(&schedule(), &accepted).remove(0);
        assert_eq!((sum.expected, sum.delivered, sum.unequal), (200, 50 + 50 + 40 + 50, 2));
        assert_eq!((sum.sessions, sum.checked, sum.bytes, sum.untold), (4, 1, 20_000, 0));
    }
}
