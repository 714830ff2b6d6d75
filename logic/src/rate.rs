//! Rates of users, guests' addresses and API keys: token buckets in a table that never grows beyond its bound.
//!
//! What it is not: exact over the cluster. Each logic counts what goes through it; a session sticks to one logic.
//!
//! Two halves take turns. A name is looked for in the young half, then in the old one, from which it moves. When a
//! bucket would be full again, or the young half is full, the halves change places and what was old is forgotten. A
//! bucket that was forgotten in time was full, which is what a new one is; only a table run over forgets sooner, in
//! the names' favour.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Most names in each half, about 100 bytes each: 13 MB in all. Over it the oldest half is forgotten early.
const NAMES_MAX: usize = 65_536;

/// A rate for each of many names.
pub(crate) struct Rates {
    per_s: f64,
    burst: f64,
    young: HashMap<String, Bucket>,
    old: HashMap<String, Bucket>,
    turned: Option<Instant>,
}

struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    /// `per_s` a second, `burst` at once.
    pub(crate) fn new(per_s: u32, burst: u32) -> Self {
        let (per_s, burst) = (f64::from(per_s.max(1)), f64::from(burst.max(1)));
        Self { per_s, burst, young: HashMap::new(), old: HashMap::new(), turned: None }
    }

    /// Takes one from `name`'s bucket.
    ///
    /// # Errors
    /// How long until there is one, where there is none.
    pub(crate) fn take(&mut self, name: &str, now: Instant) -> Result<(), Duration> {
        self.turn(now);
        let (per_s, burst) = (self.per_s, self.burst);
        if !self.young.contains_key(name) {
            let bucket = self.old.remove(name).unwrap_or(Bucket { left: burst, at: now });
            self.young.insert(name.to_owned(), bucket);
        }
        let bucket = self.young.get_mut(name).expect("put there above");
        let waited = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + waited * per_s).min(burst);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((1.0 - bucket.left) / per_s))
        }
    }

    fn turn(&mut self, now: Instant) {
        let filled_in = Duration::from_secs_f64(self.burst / self.per_s);
        let turned = *self.turned.get_or_insert(now);
        if self.young.len() >= NAMES_MAX || now.saturating_duration_since(turned) > filled_in {
            self.old = std::mem::take(&mut self.young);
            self.turned = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn honest_traffic_never_meets_the_rate_and_a_flood_does() {
        let (mut rates, start) = (Rates::new(10, 20), Instant::now());
        for message in 0..1_000 {
            rates.take("honest", start + Duration::from_millis(message * 100)).unwrap();
        }
        let passed = (0..1_000).filter(|message| rates.take("flood", start + Duration::from_millis(*message)).is_ok());
        assert_eq!(passed.count(), 20 + 9, "the burst, and what a second brings");
        let then = start + Duration::from_millis(999);
        let wait = rates.take("flood", then).unwrap_err();
        assert!(rates.take("flood", then + wait + Duration::from_micros(1)).is_ok());
    }

    #[test]
    fn a_million_names_take_bounded_memory_and_free_nobody() {
        let (mut rates, start) = (Rates::new(1, 2), Instant::now());
        for name in 0..1_000_000 {
            let now = start + Duration::from_micros(name * 10);
            rates.take(&name.to_string(), now).unwrap();
            assert!(rates.young.len() <= NAMES_MAX && rates.old.len() <= NAMES_MAX);
        }
        let now = start + Duration::from_secs(100);
        let passed = (0..10).filter(|_| rates.take("flood", now).is_ok()).count();
        assert_eq!(passed, 2);
    }
}
