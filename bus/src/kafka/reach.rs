//! Whether the brokers answer: one state for all clients of the process, told when it changes.
//!
//! What clients notice is only a suspicion: one broker of several may be gone, or an idle connection was closed. The
//! watch asks then ([`Reach::suspected`]), and only its answer changes the state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A notice of the same kind is logged so often at most; those between are counted.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// Kinds of notices that are remembered: librdkafka has a few dozens. More are counted as one.
const KINDS_MAX: usize = 64;

/// What is known of the brokers.
#[derive(Default)]
pub(super) struct Reach {
    /// Whether [`Reach::away`] holds something; for the paths that must be cheap.
    gone: AtomicBool,
    state: Mutex<State>,
    suspected: Notify,
}

#[derive(Default)]
struct State {
    away: Option<Away>,
    /// When the brokers answered again.
    back: Option<Instant>,
    /// When each kind of notice was logged, and how many came since.
    said: HashMap<String, (Instant, u64)>,
}

struct Away {
    since: Instant,
    why: String,
    /// Notices of clients meanwhile.
    notices: u64,
}

impl Reach {
    /// The brokers do not answer.
    pub(super) fn lost(&self, why: &str) {
        let mut state = self.lock();
        match &mut state.away {
            Some(away) => away.why = why.to_owned(),
            None => {
                tracing::warn!(why, "kafka does not answer: asked again until it does");
                state.away = Some(Away { since: Instant::now(), why: why.to_owned(), notices: 0 });
                self.gone.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The brokers answer.
    pub(super) fn back(&self) {
        if !self.gone.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        if let Some(Away { since, notices, .. }) = state.away.take() {
            self.gone.store(false, Ordering::Relaxed);
            state.back = Some(Instant::now());
            state.said.clear();
            tracing::info!(after = ?since.elapsed(), notices, "kafka answers again");
        }
    }

    /// Why the brokers cannot be asked, if so.
    pub(super) fn away(&self) -> Option<String> {
        if !self.gone.load(Ordering::Relaxed) {
            return None;
        }
        self.lock().away.as_ref().map(|away| format!("kafka does not answer: {}", away.why))
    }

    /// For how long the brokers have answered; `None` while they do not.
    pub(super) fn there_for(&self, opened: Instant) -> Option<Duration> {
        let state = self.lock();
        if state.away.is_some() { None } else { Some(state.back.unwrap_or(opened).elapsed()) }
    }

    /// A client noticed something that a broken connection brings. Logged once for each kind; counted while the brokers
    /// are away.
    pub(super) fn notice(&self, kind: &str, text: &str) {
        let now = Instant::now();
        let mut state = self.lock();
        if let Some(away) = &mut state.away {
            away.notices += 1;
            return;
        }
        let kind = if state.said.len() < KINDS_MAX || state.said.contains_key(kind) { kind } else { "other" };
        match state.said.get_mut(kind) {
            Some((at, more)) if now - *at < SAY_EVERY => *more += 1,
            Some(said) => {
                tracing::warn!(kind, text, since_last = said.1, "kafka");
                *said = (now, 0);
            }
            None => {
                tracing::warn!(kind, text, "kafka");
                state.said.insert(kind.to_owned(), (now, 0));
            }
        }
        drop(state);
        self.suspected.notify_one();
    }

    /// Resolves when a client noticed something.
    pub(super) async fn suspected(&self) {
        self.suspected.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this process itself stood still (SIGSTOP, a suspended machine): a member that did may have lost its
/// partitions to others for good, whatever the brokers do.
pub(super) struct Awake {
    last: Mutex<(Instant, Option<Instant>)>,
    /// A silence that a group notices.
    gap: Duration,
}

impl Awake {
    pub(super) fn new(gap: Duration) -> Self {
        Self { last: Mutex::new((Instant::now(), None)), gap }
    }

    /// Called again and again by a task of its own.
    pub(super) fn tick(&self) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now - last.0 > self.gap {
            last.1 = Some(now);
        }
        last.0 = now;
    }

    /// It did nothing for as long as a group waits.
    pub(super) fn stood_still(&self) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(Instant::now());
    }

    /// Whether it stood still within the last `within`.
    pub(super) fn slept(&self, within: Duration) -> bool {
        self.tick();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.1.is_some_and(|at| at.elapsed() < within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_changes_by_the_watch_s_answer_alone() {
        let (reach, opened) = (Reach::default(), Instant::now());
        reach.notice("AllBrokersDown", "1/1 brokers are down");
        assert_eq!(reach.away(), None);
        assert!(reach.there_for(opened).is_some());
        reach.lost("timed out");
        assert_eq!(reach.away().as_deref(), Some("kafka does not answer: timed out"));
        assert_eq!(reach.there_for(opened), None);
        for _ in 0..10 {
            reach.notice("AllBrokersDown", "1/1 brokers are down");
        }
        assert_eq!(reach.lock().away.as_ref().map(|away| away.notices), Some(10));
        reach.back();
        assert_eq!(reach.away(), None);
        assert!(reach.there_for(opened).is_some_and(|there| there <= opened.elapsed()));
    }

    #[test]
    fn a_process_that_stood_still_knows_it_for_a_while() {
        let awake = Awake::new(Duration::from_millis(20));
        awake.tick();
        let awake_long = Awake::new(Duration::from_secs(3600));
        assert!(!awake_long.slept(Duration::from_secs(3600)));
        awake_long.stood_still();
        assert!(awake_long.slept(Duration::from_secs(3600)));
        // The gap is noticed by whoever asks first.
        let mut past = awake.last.lock().unwrap_or_else(PoisonError::into_inner);
        past.0 = Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or(past.0);
        drop(past);
        assert!(awake.slept(Duration::from_secs(3600)));
    }

    #[test]
    fn notices_of_a_kind_are_counted_and_the_kinds_are_bounded() {
        let reach = Reach::default();
        for n in 0..1000 {
            reach.notice("Transport", &format!("after {n} ms"));
            reach.notice(&format!("kind {n}"), "");
        }
        let state = reach.lock();
        assert_eq!(state.said["Transport"].1, 999);
        assert!(state.said.len() <= KINDS_MAX + 1, "{}", state.said.len());
    }
}
