//! The pushes' topic: to whoever is online, at most once. Each record's names are looked up in Routes and it goes to the
//! connectors that have the sessions; `all` goes to every connector with its share of the pace.
//!
//! What it is not: ordered against rooms, or kept. At most once is held across a takeover without a claim: an owner that
//! died had been silent for the group's session timeout before its partition was assigned anew, so what is younger than
//! [`TAKEOVER_MS`] then was not delivered by it, and what is older and not committed is skipped. Where a partition moves
//! between owners that live, the bus has the first one's commits before the second one has the partition.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{Bus, Consumer, Event, Offset, Start, Topic};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use prost::Message as _;
use proto::cluster::from_owner::Frame as Body;
use proto::cluster::{CommandOut, PushOut, command_out};
use proto::record;
use proto::record::record::Body as RecordBody;
use routes::{By, Routes};
use tokio_util::sync::CancellationToken;

use crate::clock::unix_ms;
use crate::consume::{DRAIN_MAX, dead_letter, publish};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::owner::message;

/// An owner that died read nothing in this time before its partition went to another: under the shortest session timeout
/// by the time between two heartbeats, and by what the clocks of the bus and of job may differ.
const TAKEOVER_MS: i64 = 4_000;
const _: () = assert!(TAKEOVER_MS + 1_000 <= (bus::SESSION_TIMEOUT_MS_MIN - bus::HEARTBEAT_MS_MAX) as i64);
/// A push that waited longer in the bus, or for the routes, is dropped: it is for who is online now.
const AGE_MS_MAX: i64 = 30_000;
/// Before the bus or the routes are asked again after a passing fault.
const RETRY: Duration = Duration::from_millis(300);

pub(crate) struct Pushes {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) routes: Arc<dyn Routes>,
    pub(crate) fleet: Fleet,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Arc<str>,
}

/// A partition that is assigned: what is older and was not committed may have been delivered.
struct Part {
    committed: Offset,
    from_ms: i64,
}

impl Pushes {
    /// Runs until `stop`, then leaves the group.
    ///
    /// # Errors
    /// What the bus refuses for good.
    pub(crate) async fn run(self, mut consumer: Box<dyn Consumer>, stop: CancellationToken) -> Result<(), bus::Error> {
        let mut parts = HashMap::new();
        let mut letters = FuturesUnordered::new();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => break,
                event = consumer.next() => event,
                Some(()) = letters.next() => continue,
            };
            match event {
                Ok(Event::Assigned(partition)) => match consumer.committed(partition).await {
                    Ok(committed) => {
                        parts.insert(partition, Part { committed, from_ms: unix_ms() - TAKEOVER_MS });
                        // By time where nothing was committed: what was pushed before anybody consumed is not for now.
                        let since = Start::Since(unix_ms() - TAKEOVER_MS);
                        consumer.start(partition, if committed > 0 { Start::At(committed + 1) } else { since });
                    }
                    Err(error) => {
                        tracing::warn!(partition, %error, "the pushes' checkpoint cannot be read: only new ones");
                        parts.insert(partition, Part { committed: 0, from_ms: unix_ms() });
                        consumer.start(partition, Start::End);
                    }
                },
                Ok(Event::Revoked(partition)) => drop(parts.remove(&partition)),
                Ok(Event::Records(partition, records)) => {
                    let (Some(part), Some(last)) = (parts.get(&partition), records.last()) else { continue };
                    // Committed before it is handed on: rather lost than twice.
                    consumer.commit(partition, last.offset);
                    let (read, paused) = self.read(partition, part, &records, &mut letters);
                    if paused {
                        consumer.pause(partition, true);
                    }
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = self.hand_on(read) => {}
                    }
                }
                Err(bus::Error::Refused(why)) => {
                    leave(consumer, letters).await;
                    return Err(bus::Error::Refused(why));
                }
                Err(error) => {
                    tracing::warn!(%error, "pushes cannot be read now");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        leave(consumer, letters).await;
        Ok(())
    }

    /// What is to be handed on, and whether a record that wants a newer reader pauses the partition.
    fn read(
        &self,
        partition: u32,
        part: &Part,
        records: &[bus::Record],
        letters: &mut FuturesUnordered<BoxFuture<'static, ()>>,
    ) -> (Vec<record::Record>, bool) {
        let mut read = Vec::with_capacity(records.len());
        for record in records {
            self.metrics.records.inc();
            let reason = match record::Record::decode(record.value.clone()) {
                Ok(newer) if newer.min_reader > proto::RECORD_VERSION => {
                    tracing::error!(partition, record.offset, "a push is newer than this program: paused");
                    return (read, true);
                }
                Ok(other) if *other.log != *self.log => format!("was written to another log, {:?}", other.log),
                Ok(fits) if matches!(fits.body, Some(RecordBody::Push(_) | RecordBody::Command(_))) => {
                    if record.time_ms < part.from_ms && record.offset > part.committed {
                        self.metrics.pushes_skipped.inc();
                    } else if unix_ms() - record.time_ms > AGE_MS_MAX {
                        self.metrics.pushes_dropped.inc();
                    } else {
                        read.push(fits);
                    }
                    continue;
                }
                Ok(_) => "has no body that belongs here".to_owned(),
                Err(error) => format!("cannot be decoded: {error}"),
            };
            tracing::error!(partition, record.offset, reason, "a push cannot be read: put aside as a dead letter");
            self.metrics.dead_letters.inc();
            let value = dead_letter(Topic::Pushes, partition, record.offset, &self.log, &reason, &record.value);
            let bus = self.bus.clone();
            letters.push(async move { _ = publish(&*bus, Topic::DeadLetters, 0, value).await }.boxed());
        }
        (read, false)
    }

    /// Hands a batch on, in order, after one look into the routes for all of it.
    async fn hand_on(&self, batch: Vec<record::Record>) {
        let mut names: Vec<By> = batch.iter().flat_map(wanted).collect();
        names.sort_unstable();
        names.dedup();
        let found = if names.is_empty() { Vec::new() } else { self.find(&names).await };
        let found: HashMap<By, Vec<String>> = names.into_iter().zip(found).collect();
        for record in batch {
            match record.body {
                Some(RecordBody::Push(push)) => self.push(push, record.time_ms, &found),
                Some(RecordBody::Command(command)) => self.command(command, &found),
                _ => unreachable!("only these were read"),
            }
        }
    }

    /// The sessions under each name; none where the routes stay away for too long.
    async fn find(&self, names: &[By]) -> Vec<Vec<String>> {
        let until = Instant::now() + Duration::from_millis(AGE_MS_MAX.unsigned_abs());
        loop {
            match self.routes.find(names).await {
                Ok(found) => {
                    let sessions = |routes: Vec<routes::SessionRoute>| routes.into_iter().map(|it| it.session);
                    return found.into_iter().map(|routes| sessions(routes).collect()).collect();
                }
                Err(error) if Instant::now() < until => {
                    tracing::warn!(%error, "sessions to push to cannot be found now");
                    tokio::time::sleep(RETRY).await;
                }
                Err(_) => {
                    self.metrics.pushes_dropped.inc_by(names.len() as u64);
                    return vec![Vec::new(); names.len()];
                }
            }
        }
    }

    fn push(&self, push: record::Push, time_ms: i64, found: &HashMap<By, Vec<String>>) {
        use record::push::To;
        let post = push.post.unwrap_or_default();
        let (raw, operation) = (post.raw.clone(), push.operation);
        let out = |message: &bytes::Bytes, sessions| PushOut {
            sessions,
            message: message.clone(),
            raw: raw.clone(),
            operation,
            ..PushOut::default()
        };
        // Not kept, so at no offset.
        let encoded = |channel: String| message(channel, 0, time_ms, post.clone()).encode_to_vec().into();
        match push.to {
            Some(To::Users(users)) => {
                for uid in users.names {
                    let message = encoded(format!("user:{uid}"));
                    let sessions = found.get(&By::User(uid)).cloned().unwrap_or_default();
                    self.deal(sessions, |sessions| Body::Push(out(&message, sessions)));
                }
            }
            // Whose a session is, its connector knows, which names the channel.
            Some(To::Sessions(sessions)) => {
                let message = encoded(String::new());
                self.deal(sessions.names, |sessions| Body::Push(out(&message, sessions)));
            }
            Some(To::Keys(keys)) => {
                let message = encoded(String::new());
                let sessions = keys.names.into_iter().filter_map(|key| found.get(&By::Key(key))).flatten().cloned();
                self.deal(sessions.collect(), |sessions| Body::Push(out(&message, sessions)));
            }
            Some(To::All(everyone)) => {
                let message = encoded("all".to_owned());
                let connectors = self.fleet.all();
                let sessions: Vec<u64> = connectors.iter().map(|(_, sessions)| *sessions).collect();
                for ((attachment, _), share) in connectors.iter().zip(shares(everyone.sessions_per_s, &sessions)) {
                    let out = PushOut { all: true, sessions_per_s: share, ..out(&message, Vec::new()) };
                    self.send(attachment, Body::Push(out));
                }
            }
            None => {}
        }
    }

    fn command(&self, command: record::Command, found: &HashMap<By, Vec<String>>) {
        use record::command::{Act, To};
        let act = match command.act {
            Some(Act::Kick(kick)) => command_out::Act::Kick(kick),
            Some(Act::Subscribe(names)) => command_out::Act::Subscribe(names),
            Some(Act::Unsubscribe(leave)) => command_out::Act::Unsubscribe(leave),
            None => return,
        };
        let by = |name: By| found.get(&name).cloned().unwrap_or_default();
        let sessions = match command.to {
            Some(To::Users(users)) => users.names.into_iter().flat_map(|uid| by(By::User(uid))).collect(),
            Some(To::Keys(keys)) => keys.names.into_iter().flat_map(|key| by(By::Key(key))).collect(),
            Some(To::Sessions(sessions)) => sessions.names,
            None => return,
        };
        self.deal(sessions, |sessions| Body::Command(CommandOut { sessions, act: Some(act.clone()) }));
    }

    /// Deals sessions out to the connectors that they live on. One of an unknown connector has gone, or goes unheard:
    /// at most once.
    fn deal(&self, sessions: Vec<String>, body: impl Fn(Vec<String>) -> Body) {
        let mut dealt: HashMap<&str, Vec<String>> = HashMap::new();
        for session in &sessions {
            if let Some(incarnation) = routes::incarnation_of(session) {
                dealt.entry(incarnation).or_default().push(session.clone());
            }
        }
        for (incarnation, sessions) in dealt {
            if let Some(attachment) = self.fleet.find(incarnation) {
                self.send(&attachment, body(sessions));
            }
        }
    }

    fn send(&self, attachment: &crate::link::Attachment, body: Body) {
        let bytes = match &body {
            Body::Push(push) => push.encoded_len(),
            Body::Command(command) => command.encoded_len(),
            _ => 0,
        };
        let taken = attachment.outbox.with(|outbox| {
            let taken = outbox.push_out(body, bytes);
            outbox.wake();
            taken
        });
        match taken {
            true => self.metrics.pushes.inc(),
            false => self.metrics.pushes_dropped.inc(),
        };
    }
}

/// Leaves the group after the dead letters under way: their records are committed, so nobody puts them aside again.
async fn leave(consumer: Box<dyn Consumer>, mut letters: FuturesUnordered<BoxFuture<'static, ()>>) {
    let durable = async { while letters.next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_MAX, durable).await.is_err() {
        tracing::error!("the bus did not take the last dead letters of pushes: they are lost");
    }
    consumer.leave().await;
}

/// The names of a record that have to be looked up.
fn wanted(record: &record::Record) -> Vec<By> {
    use record::{command, push};
    let users = |names: &record::Names| names.names.iter().cloned().map(By::User).collect();
    let keys = |names: &record::Names| names.names.iter().cloned().map(By::Key).collect();
    match &record.body {
        Some(RecordBody::Push(record::Push { to: Some(push::To::Users(names)), .. })) => users(names),
        Some(RecordBody::Push(record::Push { to: Some(push::To::Keys(names)), .. })) => keys(names),
        Some(RecordBody::Command(record::Command { to: Some(command::To::Users(names)), .. })) => users(names),
        Some(RecordBody::Command(record::Command { to: Some(command::To::Keys(names)), .. })) => keys(names),
        _ => Vec::new(),
    }
}

/// Each connector's share of a pace by its sessions, at least 1 a second; 0 is no pace. Without a session anywhere they
/// share alike (leases are some seconds old).
fn shares(per_s: u32, sessions: &[u64]) -> Vec<u32> {
    let total: u64 = sessions.iter().sum();
    let share = |&own: &u64| match (per_s, total) {
        (0, _) => 0,
        (_, 0) => (per_s / sessions.len().max(1) as u32).max(1),
        _ => u32::try_from((u128::from(per_s) * u128::from(own)).div_ceil(u128::from(total))).unwrap_or(per_s).max(1),
    };
    sessions.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn a_pace_is_shared_by_sessions() {
        assert_eq!(shares(0, &[5, 0]), [0, 0]);
        assert_eq!(shares(1000, &[300, 100, 0]), [750, 250, 1]);
        assert_eq!(shares(1000, &[0, 0]), [500, 500]);
        assert_eq!(shares(u32::MAX, &[u64::MAX / 2, 1]), [u32::MAX, 1]);
        assert!(shares(7, &[]).is_empty());
    }
}
