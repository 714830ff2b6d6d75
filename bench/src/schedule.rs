//! What is sent when to which room, and who is in it. Pure arithmetic on numbers: sessions, rooms and messages are
//! numbered through all classes of rooms.
//!
//! ```text
//!   class 0: rooms 0..a,  sessions 0..m  in turn over its rooms,  messages 0..x in turn over its rooms, at its rate
//!   class 1: rooms a..b,  sessions m..n,                          messages x..y
//!
//!   first message ── warming ──▶ what is measured ──▶ end       of all classes at the same times
//! ```

use serde::{Deserialize, Serialize};

/// Longest time before anything is measured: where messages are so rare that it would take longer, a part of it has to do.
const WARMING_S_MAX: f64 = 3.0;

/// Rooms of one size and one rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Class {
    pub(crate) rooms: u32,
    /// Sessions of all of them; the first rooms have one more where it does not divide.
    pub(crate) sessions: u32,
    /// Messages a second, to all of them in turn.
    pub(crate) rate: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Placed {
    class: Class,
    messages: u32,
    first_room: u32,
    first_session: u32,
    first_number: u32,
}

/// A run's plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Schedule {
    /// WorkerStatus apart from other runs.
    pub(crate) run: u32,
    /// Number n is sent over connection n mod this.
    pub(crate) publishers: u32,
    /// Servers that share the sessions of each room evenly: what one of them sends to a room need not be, byte for byte, what
    /// another does.
    pub(crate) servers: u32,
    /// What is sent sooner after the first message is not measured, nanoseconds.
    pub(crate) warming_ns: u64,
    classes: Vec<Placed>,
}

impl Schedule {
    /// `classes` has at least one class, with at least one room each, and a session for each room. Each room gets `warming`
    /// messages before the `seconds` that are measured, as far as [`WARMING_S_MAX`] lets it.
    pub(crate) fn new(
        run: u32,
        publishers: u32,
        servers: u32,
        (warming, seconds): (u32, f64),
        classes: &[Class],
    ) -> Self {
        let warming_s = |class: &Class| f64::from(warming) * f64::from(class.rooms) / class.rate;
        let warming_s = classes.iter().map(warming_s).filter(|seconds| seconds.is_finite()).fold(0.0, f64::max);
        let warming_s = warming_s.min(WARMING_S_MAX);
        let seconds = warming_s + seconds;
        let (mut first_room, mut first_session, mut first_number) = (0, 0, 0);
        let place = |class: &Class| {
            let messages = (class.rate * seconds) as u32;
            let placed = Placed { class: class.clone(), messages, first_room, first_session, first_number };
            first_room += class.rooms;
            first_session += class.sessions;
            first_number += messages;
            placed
        };
        let classes = classes.iter().map(place).collect();
        Self { run, publishers, servers, warming_ns: (warming_s * 1e9) as u64, classes }
    }

    fn last(&self) -> &Placed {
        self.classes.last().expect("there is at least one class")
    }

    pub(crate) fn classes(&self) -> impl ExactSizeIterator<Item = &Class> {
        self.classes.iter().map(|placed| &placed.class)
    }

    pub(crate) fn rooms(&self) -> u32 {
        self.last().first_room + self.last().class.rooms
    }

    pub(crate) fn sessions(&self) -> u32 {
        self.last().first_session + self.last().class.sessions
    }

    pub(crate) fn messages(&self) -> u32 {
        self.last().first_number + self.last().messages
    }

    /// The room's ID: digits alone, so that every dialect can name it, and as many for each, so that its messages are
    /// of one length.
    pub(crate) fn room_name(&self, room: u32) -> String {
        format!("{}{room:05}", 10_000_000 + self.run % 90_000_000)
    }

    fn of_room(&self, room: u32) -> &Placed {
        &self.classes[self.class_of_room(room)]
    }

    pub(crate) fn class_of_room(&self, room: u32) -> usize {
        self.classes.partition_point(|placed| placed.first_room <= room) - 1
    }

    fn of_number(&self, number: u32) -> &Placed {
        // Classes without messages begin where the next one does.
        &self.classes[self.classes.partition_point(|placed| placed.first_number <= number) - 1]
    }

    pub(crate) fn room_of_session(&self, session: u32) -> u32 {
        let placed = &self.classes[self.classes.partition_point(|placed| placed.first_session <= session) - 1];
        placed.first_room + (session - placed.first_session) % placed.class.rooms
    }

    pub(crate) fn sessions_in(&self, room: u32) -> u32 {
        let placed = self.of_room(room);
        let Class { rooms, sessions, .. } = placed.class;
        sessions / rooms + u32::from(room - placed.first_room < sessions % rooms)
    }

    /// Of a session among its room's.
    fn seat_of(&self, session: u32) -> u32 {
        let placed = self.of_room(self.room_of_session(session));
        (session - placed.first_session) / placed.class.rooms
    }

    /// Which of the servers a session is at.
    pub(crate) fn server_of(&self, session: u32) -> u32 {
        (self.seat_of(session) + self.room_of_session(session)) % self.servers
    }

    /// Whether one session in `one_in` of each room at each server, and at least one, is this one: spread evenly over the
    /// order in which they come.
    pub(crate) fn is_checked(&self, session: u32, one_in: u32) -> bool {
        let (sessions, seat) = (self.sessions_in(self.room_of_session(session)), self.seat_of(session));
        let here = (sessions - seat % self.servers).div_ceil(self.servers);
        let one_in = one_in.clamp(1, here);
        seat / self.servers % one_in == one_in / 2
    }

    pub(crate) fn room_of(&self, number: u32) -> u32 {
        let placed = self.of_number(number);
        placed.first_room + (number - placed.first_number) % placed.class.rooms
    }

    /// Of a message among its room's.
    pub(crate) fn place_of(&self, number: u32) -> u32 {
        let placed = self.of_number(number);
        (number - placed.first_number) / placed.class.rooms
    }

    /// The messages of a room, in their order.
    pub(crate) fn numbers_of(&self, room: u32) -> impl Iterator<Item = u32> {
        let placed = self.of_room(room);
        let first = placed.first_number + (room - placed.first_room);
        (first..placed.first_number + placed.messages).step_by(placed.class.rooms as usize)
    }

    pub(crate) fn messages_in(&self, room: u32) -> u32 {
        let placed = self.of_room(room);
        let (all, place) = (placed.messages, room - placed.first_room);
        all / placed.class.rooms + u32::from(place < all % placed.class.rooms)
    }

    /// When it is to be sent, nanoseconds after the first one.
    pub(crate) fn after_ns(&self, number: u32) -> u64 {
        let placed = self.of_number(number);
        (f64::from(number - placed.first_number) * 1e9 / placed.class.rate) as u64
    }

    /// Whether it is sent late enough to be measured.
    pub(crate) fn is_measured(&self, number: u32) -> bool {
        self.after_ns(number) >= self.warming_ns
    }

    /// Of all deliveries, those of messages that are measured.
    pub(crate) fn measured_share(&self) -> f64 {
        let (mut all, mut measured) = (0.0, 0.0);
        for Placed { class, messages, first_number, .. } in &self.classes {
            let of_a_message = f64::from(class.sessions) / f64::from(class.rooms);
            let numbers = *first_number..first_number + messages;
            all += f64::from(*messages) * of_a_message;
            measured += numbers.filter(|number| self.is_measured(*number)).count() as f64 * of_a_message;
        }
        measured / all
    }

    /// All messages in the order of their times.
    pub(crate) fn in_time(&self) -> InTime<'_> {
        InTime { schedule: self, next: self.classes.iter().map(|placed| placed.first_number).collect() }
    }
}

/// See [`Schedule::in_time`].
pub(crate) struct InTime<'a> {
    schedule: &'a Schedule,
    /// Of each class.
    next: Vec<u32>,
}

impl Iterator for InTime<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let classes = self.schedule.classes.iter().zip(&mut self.next);
        let due = classes.filter(|(placed, next)| **next < placed.first_number + placed.messages);
        let (_, next) = due.min_by_key(|(_, next)| self.schedule.after_ns(**next))?;
        *next += 1;
        Some(*next - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        let class = |rooms, sessions, rate| Class { rooms, sessions, rate };
        Schedule::new(7, 4, 1, (0, 2.0), &[class(1, 100, 50.0), class(10, 25, 5.0), class(3, 3, 0.1)])
    }

    #[test]
    fn everyone_and_everything_has_one_room() {
        let schedule = schedule();
        assert_eq!((schedule.rooms(), schedule.sessions(), schedule.messages()), (14, 128, 110));
        let mut sessions = [0; 14];
        (0..128).for_each(|session| sessions[schedule.room_of_session(session) as usize] += 1);
        for room in 0..14 {
            assert_eq!(sessions[room as usize], schedule.sessions_in(room), "{room}");
            let numbers: Vec<u32> = schedule.numbers_of(room).collect();
            assert_eq!(numbers.len() as u32, schedule.messages_in(room), "{room}");
            for (place, number) in numbers.into_iter().enumerate() {
                assert_eq!((schedule.room_of(number), schedule.place_of(number)), (room, place as u32));
            }
        }
        assert_eq!(sessions[..3], [100, 3, 3]);
        assert_eq!((0..14).map(|room| schedule.class_of_room(room)).collect::<Vec<_>>()[9..13], [1, 1, 2, 2]);
    }

    #[test]
    fn every_room_has_one_who_is_checked() {
        let schedule = schedule();
        for one_in in [1, 2, 10, 1000] {
            let mut checked = vec![0; 14];
            for session in (0..128).filter(|session| schedule.is_checked(*session, one_in)) {
                checked[schedule.room_of_session(session) as usize] += 1;
            }
            assert!(checked.iter().all(|count| *count > 0), "{one_in}: {checked:?}");
            assert_eq!(checked[0], (100 / one_in).max(1));
        }
    }

    #[test]
    fn servers_share_each_room_and_have_one_who_is_checked_of_each() {
        let schedule = Schedule { servers: 2, ..schedule() };
        let (mut sessions, mut checked) = ([[0; 2]; 14], [[0; 2]; 14]);
        for session in 0..128 {
            let at = (schedule.room_of_session(session) as usize, schedule.server_of(session) as usize);
            sessions[at.0][at.1] += 1;
            checked[at.0][at.1] += u32::from(schedule.is_checked(session, 20));
        }
        assert_eq!((sessions[0], sessions[1], sessions[13]), ([50, 50], [1, 2], [0, 1]));
        assert_eq!(checked[0], [2, 2]);
        for (sessions, checked) in sessions.iter().flatten().zip(checked.iter().flatten()) {
            assert_eq!(*sessions > 0, *checked > 0, "{sessions} {checked}");
        }
    }

    #[test]
    fn every_room_is_warm_before_anything_is_measured() {
        let class = |rooms, rate| Class { rooms, sessions: 10 * rooms, rate };
        let schedule = Schedule::new(7, 1, 1, (5, 2.0), &[class(1, 50.0), class(10, 25.0)]);
        // The small rooms' five take 2 s.
        assert_eq!((schedule.warming_ns, schedule.messages()), (2_000_000_000, 200 + 100));
        for room in 0..schedule.rooms() {
            let (warming, measured): (Vec<u32>, Vec<u32>) =
                schedule.numbers_of(room).partition(|number| !schedule.is_measured(*number));
            assert!(
                warming.len() >= 5 && measured.len() >= 5 && warming.iter().max() < measured.iter().min(),
                "{room}"
            );
        }
        assert!((schedule.measured_share() - 0.5).abs() < 1e-9);
        // Messages too rare to wait for.
        assert_eq!(Schedule::new(7, 1, 1, (5, 2.0), &[class(1, 0.5), class(1, 0.0)]).warming_ns, 3_000_000_000);
    }

    #[test]
    fn messages_come_in_the_order_of_their_times() {
        let schedule = schedule();
        let times: Vec<u64> = schedule.in_time().map(|number| schedule.after_ns(number)).collect();
        assert!(times.len() == 110 && times.is_sorted());
        assert_eq!(times[109], 1_980_000_000);
    }

    #[test]
    fn names_are_of_one_length() {
        for run in [0, 1, u32::MAX] {
            let schedule = Schedule { run, ..schedule() };
            assert!(schedule.room_name(0).len() == 13 && schedule.room_name(99_999).len() == 13);
        }
    }
}
