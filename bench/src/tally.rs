//! What the viewers saw: each viewer's ledger of its room's messages, and a thread's sums.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::note::Note;

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

/// How messages are spread: number n goes to room n mod `rooms`, over HTTP connection n mod `publishers`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) run: u32,
    pub(crate) messages: u32,
    pub(crate) rooms: u32,
    pub(crate) publishers: u32,
}

/// One viewer's messages: which have come, and what came last from each publisher.
#[derive(Debug)]
pub(crate) struct Ledger {
    room: u32,
    /// Bit i: the room's message i has come.
    seen: Vec<u64>,
    /// Number plus one, 0: none yet.
    last: Vec<u32>,
}

impl Ledger {
    pub(crate) fn new(room: u32, spread: &Spread) -> Self {
        let messages = (spread.messages / spread.rooms) as usize + 1;
        Self { room, seen: vec![0; messages.div_ceil(64)], last: vec![0; spread.publishers as usize] }
    }

    /// Bytes of a ledger, for a bound on all of them.
    pub(crate) fn bytes(spread: &Spread) -> u64 {
        u64::from(spread.messages / spread.rooms) / 8 + u64::from(spread.publishers) * 4
    }

    /// Which of the room's messages in `accepted` (a bit for each number) have come.
    pub(crate) fn delivered(&self, accepted: &[u64], spread: &Spread) -> u64 {
        let of_room = (self.room..spread.messages).step_by(spread.rooms as usize).enumerate();
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

/// What a thread's viewers saw.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Microseconds from the intended time to the arrival, each message once.
    pub(crate) latency: Histogram<u64>,
    pub(crate) duplicates: u64,
    /// Messages that came after one that the same publisher had sent later.
    pub(crate) disordered: u64,
    /// Messages of another room or of nobody's: must not be.
    pub(crate) strays: u64,
    /// Messages that viewers were told they missed.
    pub(crate) gaps: u64,
    /// Sessions that ended before they were ended here, by reason.
    pub(crate) closed: BTreeMap<String, u64>,
    /// When the last message came, nanoseconds since the run's zero.
    pub(crate) last_ns: u64,
    pub(crate) ledgers: Vec<Ledger>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            latency: microseconds(),
            duplicates: 0,
            disordered: 0,
            strays: 0,
            gaps: 0,
            closed: BTreeMap::new(),
            last_ns: 0,
            ledgers: Vec::new(),
        }
    }
}

impl Tally {
    /// A payload came to the viewer of `ledger`; whether it is a new one of this run.
    pub(crate) fn came(&mut self, ledger: &mut Ledger, spread: &Spread, payload: &[u8], now_ns: u64) -> bool {
        let note = Note::read(payload).filter(|note| note.run == spread.run && note.number < spread.messages);
        let Some(note) = note.filter(|note| note.number % spread.rooms == ledger.room) else {
            self.strays += 1;
            return false;
        };
        if !set(&mut ledger.seen, (note.number / spread.rooms) as usize) {
            self.duplicates += 1;
            return false;
        }
        let last = &mut ledger.last[(note.number % spread.publishers) as usize];
        if note.number < *last {
            self.disordered += 1;
        }
        *last = (*last).max(note.number + 1);
        record(&mut self.latency, now_ns.saturating_sub(note.intended_ns) / 1000);
        self.last_ns = now_ns;
        true
    }

    pub(crate) fn closed(&mut self, reason: String) {
        *self.closed.entry(reason).or_default() += 1;
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        self.latency.add(&other.latency).expect("both have the same bounds");
        self.duplicates += other.duplicates;
        self.disordered += other.disordered;
        self.strays += other.strays;
        self.gaps += other.gaps;
        self.last_ns = self.last_ns.max(other.last_ns);
        self.ledgers.append(&mut other.ledgers);
        for (reason, count) in other.closed {
            *self.closed.entry(reason).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPREAD: Spread = Spread { run: 7, messages: 100, rooms: 2, publishers: 4 };

    fn came(tally: &mut Tally, ledger: &mut Ledger, number: u32) -> bool {
        let note = Note { run: 7, number, intended_ns: u64::from(number) * 1_000_000 };
        tally.came(ledger, &SPREAD, note.payload(40).as_bytes(), 500_000_000)
    }

    #[test]
    fn disorder_is_judged_for_each_publisher() {
        let (mut tally, mut ledger) = (Tally::default(), Ledger::new(1, &SPREAD));
        // 1, 5, 9 are of publisher 1; 3, 7 of publisher 3.
        for number in [1, 7, 9, 3, 5] {
            assert!(came(&mut tally, &mut ledger, number));
        }
        assert_eq!((tally.disordered, tally.duplicates, tally.strays), (2, 0, 0));
    }

    #[test]
    fn duplicates_and_strays_are_not_deliveries() {
        let (mut tally, mut ledger) = (Tally::default(), Ledger::new(1, &SPREAD));
        assert!(came(&mut tally, &mut ledger, 1));
        assert!(!came(&mut tally, &mut ledger, 1));
        assert!(!came(&mut tally, &mut ledger, 2), "of the other room");
        assert!(!tally.came(&mut ledger, &SPREAD, b"hello", 0));
        assert!(!tally.came(&mut ledger, &SPREAD, Note { run: 8, number: 3, intended_ns: 0 }.payload(0).as_bytes(), 0));
        assert_eq!((tally.duplicates, tally.strays, tally.latency.len()), (1, 3, 1));
    }

    #[test]
    fn what_was_not_accepted_is_not_counted_as_delivered() {
        let (mut tally, mut ledger) = (Tally::default(), Ledger::new(1, &SPREAD));
        for number in [1, 3, 99] {
            came(&mut tally, &mut ledger, number);
        }
        let mut accepted = vec![0; 2];
        for number in [0, 1, 2, 5, 99] {
            set(&mut accepted, number);
        }
        assert_eq!(ledger.delivered(&accepted, &SPREAD), 2);
    }

    #[test]
    fn latency_counts_from_the_intended_time() {
        let (mut tally, mut ledger) = (Tally::default(), Ledger::new(1, &SPREAD));
        came(&mut tally, &mut ledger, 99);
        assert!(tally.latency.max().abs_diff(401_000) < 1_000, "{}", tally.latency.max());
    }
}
