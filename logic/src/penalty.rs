//! Mutes and bans: the control topic in memory.
//!
//! Flow: the API publishes a `Penalty` record ─▶ the control topic ─▶ [`Penalties::follow`] of every logic ─▶
//! [`Penalties::check`] before a user is let in, joins or publishes. All of the topic is read before this logic is
//! ready; it is kept longer than the longest penalty, so nothing that still holds can be missing.
//!
//! Invariants:
//! - of two records for the same user, place and kind the one with the higher offset holds, in whatever order this
//!   logic comes to know them (its own are applied as soon as they are durable);
//! - a record that this version must not skip stops the reading and readiness with it, instead of being skipped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bus::{Bus, Offset, Start, Topic};
use prost::Message as _;
use proto::client::{Error, ErrorCode};
use proto::error::error;
use proto::record::penalty::Kind;
use proto::record::{Penalty, Record, record::Body};
use tokio_util::sync::CancellationToken;

/// Longest penalty, seconds: 31 days, one day less than the control topic is kept.
pub const PENALTY_SECONDS_MAX: u32 = 31 * 24 * 3600;

/// Most users under a penalty, about 200 bytes each in every logic. Over it a new one is refused.
pub(crate) const USERS_MAX: usize = 1_000_000;

/// How long until the control topic is read again after a fault.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Everyone who is under something.
pub(crate) struct Penalties {
    users: RwLock<HashMap<String, Vec<Entry>>>,
    reading: Mutex<Reading>,
}

/// One penalty, or what is left of a lifted one until the next sweep.
#[derive(Debug, Clone)]
struct Entry {
    channel: String,
    kind: Kind,
    until_ms: i64,
    reason: String,
    offset: Offset,
}

#[derive(Debug, Clone)]
enum Reading {
    /// Not all of it has been read: nobody is let in yet.
    Catching,
    Following,
    /// For good, until an operator acts.
    Stopped(String),
}

/// One penalty that holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Empty: everywhere.
    pub(crate) channel: String,
    pub(crate) kind: Kind,
    pub(crate) until_ms: i64,
    pub(crate) reason: String,
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Be there.
    Watch,
    /// Publish there.
    Write,
}

impl Penalties {
    pub(crate) fn new() -> Self {
        Self { users: RwLock::default(), reading: Mutex::new(Reading::Catching) }
    }

    /// Whether `uid` may do that in `channel` (empty: nowhere in particular).
    ///
    /// # Errors
    /// [`ErrorCode::Banned`] or [`ErrorCode::Muted`], with the time left; [`ErrorCode::Unavailable`] while the topic has
    /// not been read.
    pub(crate) fn check(&self, uid: &str, channel: &str, act: Act, now_ms: i64) -> Result<(), Error> {
        if matches!(*self.reading.lock().unwrap_or_else(PoisonError::into_inner), Reading::Catching) {
            return Err(error(ErrorCode::Unavailable, "penalties are still being read: try again"));
        }
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entries) = users.get(uid) else { return Ok(()) };
        let here = entries.iter().filter(|entry| {
            entry.until_ms > now_ms
                && (entry.channel.is_empty() || entry.channel == channel)
                && (entry.kind == Kind::Ban || act == Act::Write)
        });
        // A ban first, then whatever lasts longest.
        let Some(entry) = here.max_by_key(|entry| (entry.kind == Kind::Ban, entry.until_ms)) else { return Ok(()) };
        let (code, what) = match entry.kind {
            Kind::Ban => (ErrorCode::Banned, "banned"),
            Kind::Mute | Kind::Unspecified => (ErrorCode::Muted, "muted"),
        };
        let place = if entry.channel.is_empty() { "everywhere" } else { &entry.channel };
        let mut refused = error(code, format!("{what} ({place}): {}", entry.reason));
        refused.retry_after_ms = u32::try_from(entry.until_ms - now_ms).unwrap_or(u32::MAX);
        Err(refused)
    }

    /// What `uid` is under now, soonest to end first.
    pub(crate) fn of(&self, uid: &str, now_ms: i64) -> Vec<Holding> {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        let entries = users.get(uid).into_iter().flatten().filter(|entry| entry.until_ms > now_ms);
        let mut holding: Vec<_> = entries
            .map(|entry| Holding {
                channel: entry.channel.clone(),
                kind: entry.kind,
                until_ms: entry.until_ms,
                reason: entry.reason.clone(),
            })
            .collect();
        holding.sort_by_key(|one| one.until_ms);
        holding
    }

    /// Users under a penalty, lifted ones included until the next sweep.
    pub(crate) fn users(&self) -> usize {
        self.users.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes what the log has at `offset`.
    pub(crate) fn apply(&self, penalty: Penalty, offset: Offset) {
        let kind = penalty.kind();
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        let entries = users.entry(penalty.uid).or_default();
        let same = |entry: &&mut Entry| entry.channel == penalty.channel && entry.kind == kind;
        match entries.iter_mut().find(same) {
            Some(entry) if entry.offset >= offset => {}
            Some(entry) => {
                (entry.until_ms, entry.reason, entry.offset) = (penalty.until_ms, penalty.reason, offset);
            }
            None => entries.push(Entry {
                channel: penalty.channel,
                kind,
                until_ms: penalty.until_ms,
                reason: penalty.reason,
                offset,
            }),
        }
    }

    /// Forgets what has ended.
    pub(crate) fn sweep(&self, now_ms: i64) {
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, entries| {
            entries.retain(|entry| entry.until_ms > now_ms);
            !entries.is_empty()
        });
    }

    /// Whether everything was read and is being followed, with the reason where not.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match &*self.reading.lock().unwrap_or_else(PoisonError::into_inner) {
            Reading::Following => Ok(()),
            Reading::Catching => Err("the control topic is still being read".to_owned()),
            Reading::Stopped(why) => Err(format!("the control topic cannot be read on: {why}")),
        }
    }

    fn now(&self, reading: Reading) {
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = reading;
    }

    /// Reads the control topic from its beginning, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, bus: Arc<dyn Bus>, stop: CancellationToken) {
        let mut read_up_to = 0;
        loop {
            match stop.run_until_cancelled(self.read(&*bus, &mut read_up_to)).await {
                None => return,
                Some(Ok(never)) => match never {},
                Some(Err(bus::Error::Unavailable(why))) => {
                    tracing::warn!(why, "the control topic cannot be read now");
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "the control topic cannot be read on: penalties are not learned any more");
                    return self.now(Reading::Stopped(error.to_string()));
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(AGAIN_AFTER)).await.is_none() {
                return;
            }
        }
    }

    async fn read(&self, bus: &dyn Bus, read_up_to: &mut Offset) -> Result<std::convert::Infallible, bus::Error> {
        let (first, next) = bus.bounds(Topic::Control, 0).await?;
        // What retention took away is not waited for.
        *read_up_to = first.saturating_sub(1).max(*read_up_to);
        let mut reader = bus.read(Topic::Control, 0, Start::At(*read_up_to + 1)).await?;
        loop {
            if *read_up_to + 1 >= next && self.ready().is_err() {
                tracing::info!(users = self.users(), "penalties read");
                self.now(Reading::Following);
            }
            for record in reader.next().await? {
                self.take(bus, &record)?;
                *read_up_to = record.offset;
            }
        }
    }

    fn take(&self, bus: &dyn Bus, read: &bus::Record) -> Result<(), bus::Error> {
        let offset = read.offset;
        let Ok(record) = Record::decode(read.value.clone()) else {
            tracing::error!(offset, "a record of the control topic is damaged and was passed over");
            return Ok(());
        };
        if record.min_reader > proto::RECORD_VERSION {
            return Err(bus::Error::Refused(format!("record {offset} wants a newer version of this program")));
        }
        if record.log != bus.log(Topic::Control) {
            tracing::error!(offset, log = record.log, "a penalty of another log was passed over");
            return Ok(());
        }
        if let Some(Body::Penalty(penalty)) = record.body {
            self.apply(penalty, offset);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn penalty(channel: &str, kind: Kind, until_ms: i64) -> Penalty {
        Penalty { uid: "7".into(), channel: channel.into(), kind: kind.into(), until_ms, reason: "spam".into() }
    }

    fn following() -> Penalties {
        let penalties = Penalties::new();
        penalties.now(Reading::Following);
        penalties
    }

    fn code(penalties: &Penalties, channel: &str, act: Act, now_ms: i64) -> ErrorCode {
        penalties.check("7", channel, act, now_ms).map_or_else(|refused| refused.code(), |()| ErrorCode::None)
    }

    #[test]
    fn nobody_is_let_in_before_all_was_read() {
        assert_eq!(code(&Penalties::new(), "room:1", Act::Watch, 0), ErrorCode::Unavailable);
    }

    /// A log whose records have all been taken by retention, or none of which was ever written. It takes what comes, and
    /// keeps nothing.
    pub(crate) struct Empty {
        pub(crate) next: Offset,
        pub(crate) ready: Result<(), String>,
    }

    #[async_trait::async_trait]
    impl Bus for Empty {
        fn partitions(&self, _: Topic) -> u32 {
            1
        }

        fn log(&self, _: Topic) -> String {
            "log".to_owned()
        }

        fn publish(
            &self,
            _: Topic,
            _: u32,
            _: bytes::Bytes,
        ) -> futures::future::BoxFuture<'static, Result<Offset, bus::Error>> {
            Box::pin(std::future::ready(Ok(self.next)))
        }

        async fn consume(&self, _: Topic, _: &str) -> Result<Box<dyn bus::Consumer>, bus::Error> {
            Err(bus::Error::Refused("nobody consumes here".to_owned()))
        }

        async fn read(&self, _: Topic, _: u32, _: Start) -> Result<Box<dyn bus::Reader>, bus::Error> {
            struct Silent;
            #[async_trait::async_trait]
            impl bus::Reader for Silent {
                async fn next(&mut self) -> Result<Vec<bus::Record>, bus::Error> {
                    std::future::pending().await
                }
            }
            Ok(Box::new(Silent))
        }

        async fn ends(&self, _: Topic, _: &[u32]) -> Result<Vec<Offset>, bus::Error> {
            unreachable!("nobody asks")
        }

        async fn bounds(&self, _: Topic, _: u32) -> Result<(Offset, Offset), bus::Error> {
            Ok((self.next, self.next))
        }

        fn ready(&self) -> Result<(), String> {
            self.ready.clone()
        }
    }

    #[tokio::test]
    async fn a_log_without_records_is_read_at_once() {
        for next in [1, 50] {
            let (penalties, stop) = (Arc::new(Penalties::new()), CancellationToken::new());
            let bus = Arc::new(Empty { next, ready: Ok(()) });
            let following = tokio::spawn(penalties.clone().follow(bus, stop.clone()));
            let ready = async {
                while penalties.ready().is_err() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), ready).await.expect("nothing to wait for");
            stop.cancel();
            following.await.unwrap();
        }
    }

    #[test]
    fn a_penalty_holds_where_and_as_long_as_it_says() {
        let penalties = following();
        penalties.apply(penalty("room:1", Kind::Mute, 1_000), 1);
        assert_eq!(code(&penalties, "room:1", Act::Write, 999), ErrorCode::Muted);
        assert_eq!(penalties.check("7", "room:1", Act::Write, 600).unwrap_err().retry_after_ms, 400);
        assert_eq!(code(&penalties, "room:1", Act::Watch, 999), ErrorCode::None);
        assert_eq!(code(&penalties, "room:2", Act::Write, 999), ErrorCode::None);
        assert_eq!(code(&penalties, "room:1", Act::Write, 1_000), ErrorCode::None);
        penalties.apply(penalty("", Kind::Ban, 2_000), 2);
        assert_eq!(code(&penalties, "room:2", Act::Watch, 999), ErrorCode::Banned);
        assert_eq!(code(&penalties, "room:1", Act::Write, 999), ErrorCode::Banned);
        penalties.sweep(1_500);
        assert_eq!(penalties.of("7", 1_500).len(), 1);
        penalties.sweep(2_000);
        assert_eq!(penalties.users(), 0);
    }

    #[test]
    fn the_later_record_holds_in_whatever_order_they_come() {
        let penalties = following();
        penalties.apply(penalty("", Kind::Ban, 0), 5);
        penalties.apply(penalty("", Kind::Ban, 9_000), 4);
        assert_eq!(code(&penalties, "room:1", Act::Watch, 1), ErrorCode::None, "lifted at 5");
        penalties.apply(penalty("", Kind::Ban, 9_000), 6);
        assert_eq!(code(&penalties, "room:1", Act::Watch, 1), ErrorCode::Banned);
    }
}
