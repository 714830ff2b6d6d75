//! What a worker of `idle` and `storm` is told, and what it tells, a line each ([`crate::workers`]).
//!
//! ```text
//!   fleet ─SessionsPlan, then Orders─▶ worker          worker ─WorkerStatus, some times a second and when an order is done─▶ fleet
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::dialect::Dialect;

/// The first line: which sessions are this worker's, and what they say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionsPlan {
    /// The number of its first session among all.
    pub(crate) first: u32,
    /// How many it has.
    pub(crate) sessions: u32,
    /// All rooms, and how many of them each session is in ([`SessionsPlan::rooms_of`]).
    pub(crate) rooms: u32,
    pub(crate) rooms_each: u32,
    /// Tells this run's rooms and users from others'.
    pub(crate) run: u32,
    /// Session n connects to place n modulo their number.
    pub(crate) connect: Vec<SocketAddr>,
    /// `host:port`, for the upgrade.
    pub(crate) host: String,
    pub(crate) dialect: Dialect,
    pub(crate) tcp: bool,
    pub(crate) credential: Credential,
    /// Between two heartbeats of a session, milliseconds; `None`: three quarters of what the server wants.
    pub(crate) heartbeat_ms: Option<u64>,
    pub(crate) backoff: Backoff,
}

impl SessionsPlan {
    /// The IDs of a session's rooms: those that follow the one before's, around all of them.
    pub(crate) fn rooms_of(&self, session: u32) -> Vec<String> {
        let first = u64::from(session) * u64::from(self.rooms_each);
        let numbers = first..first + u64::from(self.rooms_each);
        numbers.map(|number| room(self.run, (number % u64::from(self.rooms.max(1))) as u32)).collect()
    }
}

/// How the sessions show who they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Credential {
    /// They do not.
    Guest,
    /// All by the same token.
    Token(String),
    /// Each by a token of its own user, signed here (HS256).
    Key { kid: String, secret: String },
}

/// Before a session tries again: at most `base_ms` times `factor` to the power of its failures, of which the share
/// `jitter` is random (`web/client/backoff.ts`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    pub(crate) base_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) factor: f64,
    pub(crate) jitter: f64,
}

/// The client library's own.
pub(crate) const BACKOFF: Backoff = Backoff { base_ms: 500.0, max_ms: 30_000.0, factor: 1.8, jitter: 0.5 };

impl Backoff {
    /// How long to wait after so many failures. `random` is in 0..1.
    pub(crate) fn wait_ms(&self, failures: u32, random: f64) -> u64 {
        let full = (self.base_ms * self.factor.powi(failures.min(64) as i32)).min(self.max_ms);
        (full * (1.0 - self.jitter * random)) as u64
    }
}

/// A further line.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// All sessions that are not in their rooms go in, `at_once` being on their way at any time.
    Enter { at_once: u32 },
    /// All drop.
    Leave,
    /// All come back, each after its own backoff.
    Return,
}

/// How a worker stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerStatus {
    /// Orders that it has got.
    pub(crate) orders: u32,
    /// When the last one was done, CLOCK_MONOTONIC; `None`: it is not.
    pub(crate) done_ns: Option<u64>,
    /// Sessions that are in their rooms.
    pub(crate) joined: u64,
    /// Sessions that tried too often.
    pub(crate) given_up: u64,
    /// Sessions that were in their rooms and that the server ended.
    pub(crate) closed: u64,
    /// Tries that failed and sessions that were ended, by reason.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Heartbeats sent, answered, and not answered before the next was due.
    pub(crate) heartbeats: u64,
    pub(crate) answered: u64,
    pub(crate) unanswered: u64,
    /// Sessions that got the run's push, and when the last did, CLOCK_MONOTONIC.
    pub(crate) reached: u64,
    pub(crate) reached_ns: u64,
    /// With `done_ns`: microseconds until a session was in its room, as value and count, since the order.
    pub(crate) entering_us: Vec<(u64, u64)>,
}

impl WorkerStatus {
    /// Adds another worker's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.done_ns = self.done_ns.max(other.done_ns);
        self.joined += other.joined;
        self.given_up += other.given_up;
        self.closed += other.closed;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.heartbeats += other.heartbeats;
        self.answered += other.answered;
        self.unanswered += other.unanswered;
        self.reached += other.reached;
        self.reached_ns = self.reached_ns.max(other.reached_ns);
        self.entering_us.extend_from_slice(&other.entering_us);
    }

    /// The distribution of `entering_us`.
    pub(crate) fn entering(&self) -> Histogram<u64> {
        let mut histogram = crate::tally::microseconds();
        for &(value, count) in &self.entering_us {
            histogram.saturating_record_n(value, count);
        }
        histogram
    }
}

/// What the run's push carries: no other message of a server begins so.
pub(crate) fn marker(run: u32) -> String {
    format!("barrage-bench-{run:08x}")
}

/// The ID of a room of the run: digits alone, so that every dialect can name it.
pub(crate) fn room(run: u32, number: u32) -> String {
    format!("{}{number:07}", 10_000_000 + run % 90_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_and_orders_and_what_is_told_survive_the_pipe() {
        let plan = SessionsPlan {
            first: 20_000,
            sessions: 10,
            rooms: 3,
            rooms_each: 2,
            run: 0xdead_beef,
            connect: vec!["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()],
            host: "h:1".into(),
            dialect: Dialect::Goim,
            tcp: true,
            credential: Credential::Key { kid: "k".into(), secret: "s\n\"".into() },
            heartbeat_ms: Some(1000),
            backoff: BACKOFF,
        };
        let line = serde_json::to_string(&plan).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<SessionsPlan>(&line).unwrap(), plan);
        for order in [Order::Enter { at_once: 7 }, Order::Leave, Order::Return] {
            let line = serde_json::to_string(&order).unwrap();
            assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
        }
        let told =
            WorkerStatus { reasons: [("a".into(), 2)].into(), entering_us: vec![(5, 2)], ..WorkerStatus::default() };
        let line = serde_json::to_string(&told).unwrap();
        let mut sum: WorkerStatus = serde_json::from_str(&line).unwrap();
        assert_eq!(sum, told);
        sum.add(&told);
        assert_eq!((sum.reasons["a"], sum.entering().len(), sum.entering().max()), (4, 4, 5));
    }

    #[test]
    fn sessions_go_around_all_rooms() {
        let line = r#"{"first":0,"sessions":9,"rooms":5,"rooms_each":2,"run":0,"connect":[],"host":"","dialect":"native",
            "tcp":false,"credential":"Guest","heartbeat_ms":null,
            "backoff":{"base_ms":1,"max_ms":1,"factor":1,"jitter":0}}"#;
        let plan: SessionsPlan = serde_json::from_str(line).unwrap();
        let of = |session| plan.rooms_of(session);
        assert_eq!(of(0), [room(0, 0), room(0, 1)]);
        assert_eq!(of(2), [room(0, 4), room(0, 0)]);
        assert_eq!(of(u32::MAX).len(), 2);
    }

    #[test]
    fn waits_grow_up_to_the_most_and_are_spread() {
        let waits: Vec<u64> = [0, 1, 2, 9, 1000].iter().map(|&failures| BACKOFF.wait_ms(failures, 0.0)).collect();
        assert_eq!(waits, [500, 900, 1620, 30_000, 30_000]);
        assert_eq!(BACKOFF.wait_ms(0, 1.0), 250);
    }
}
