//! The pushes' stage: to whoever is online, at most once. Each record's names are looked up in Routes and it goes to the
//! connectors that have the sessions; `all` goes to every connector with its share of the pace.
//!
//! What it is not: ordered against rooms, or kept. At most once is held across a takeover without a claim: an owner that
//! died had been silent for the group's session timeout before its partition was assigned anew, so what is younger than
//! [`TAKEOVER_MS`] then was not delivered by it, and what is older and not committed is skipped. Where a partition moves
//! between owners that live, the bus has the first one's commits before the second one has the partition.
//!
//! ```text
//!   records ─▶ a batch ─▶ LookUp its names ─▶ looked_up ─▶ Push, Command to each session's connector
//!                          batches behind it wait, so that the order stays
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bus::{Offset, Start};
use prost::Message as _;
use proto::cluster::from_owner::Frame as Body;
use proto::cluster::{self, CommandOut, PushOut, command_out};
use proto::record;
use proto::record::record::Body as RecordBody;
use routes::By;

use crate::metrics::Metrics;
use crate::partition::{Action, Fit, Outgoing, Stage, Takeover};
use crate::rooms::message;

/// An owner that died read nothing in this time before its partition went to another: under the shortest session timeout
/// by the time between two heartbeats, and by what the clocks of the bus and of job may differ.
const TAKEOVER_MS: i64 = 4_000;
const _: () = assert!(TAKEOVER_MS + 1_000 <= (bus::SESSION_TIMEOUT_MS_MIN - bus::HEARTBEAT_MS_MAX) as i64);
/// A push that waited longer in the bus is dropped: it is for who is online now.
const AGE_MS_MAX: i64 = 30_000;
/// Records that wait for Routes; at more, reading the partition pauses.
const WAITING_MAX: usize = 2_000;

/// What the pushes of all partitions share.
#[derive(Debug)]
pub(crate) struct PushesConfig {
    pub(crate) metrics: Arc<Metrics>,
}

/// The pushes of one partition.
pub(crate) struct Pushes {
    config: Arc<PushesConfig>,
    /// What is older and was not committed may have been delivered.
    committed: Offset,
    from_ms: i64,
    /// Read since the last batch ended.
    read: Vec<record::Record>,
    /// Batches whose names are being looked up, each with them, in order.
    waiting: VecDeque<(Vec<By>, Vec<record::Record>)>,
}

impl Stage for Pushes {
    type Config = PushesConfig;

    const TOPIC: cluster::Topic = cluster::Topic::Pushes;
    const BUS_TOPIC: bus::Topic = bus::Topic::Pushes;
    const CLAIMS: bool = false;

    fn new(config: Arc<PushesConfig>, takeover: Takeover) -> Self {
        let from_ms = takeover.assigned_ms - TAKEOVER_MS;
        Self { config, committed: takeover.committed, from_ms, read: Vec::new(), waiting: VecDeque::new() }
    }

    fn start(&self, _now_ms: i64) -> Start {
        match self.committed {
            // By time where nothing was committed: what was pushed before anybody consumed is not for now.
            0 => Start::Since(self.from_ms),
            committed => Start::At(committed + 1),
        }
    }

    fn record(&mut self, _out: &mut Outgoing, fit: Fit) -> Result<(), String> {
        if !matches!(fit.record.body, Some(RecordBody::Push(_) | RecordBody::Command(_))) {
            return Err("has no body that belongs here".to_owned());
        }
        if fit.time_ms < self.from_ms && fit.first_time {
            self.config.metrics.pushes_skipped.inc();
        } else if fit.now_us / 1000 - fit.time_ms > AGE_MS_MAX {
            self.config.metrics.pushes_dropped.inc();
        } else {
            self.read.push(fit.record);
        }
        Ok(())
    }

    /// One look into Routes for all of a batch.
    fn end_of_batch(&mut self, out: &mut Outgoing) {
        if self.read.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.read);
        let mut names: Vec<By> = batch.iter().flat_map(wanted).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() && self.waiting.is_empty() {
            return hand_on(out, batch, &HashMap::new());
        }
        // One is asked at a time: answers may overtake each other.
        if self.waiting.is_empty() {
            out.act(Action::LookUp(names.clone()));
        }
        self.waiting.push_back((names, batch));
    }

    fn looked_up(&mut self, out: &mut Outgoing, found: Option<Vec<Vec<String>>>) {
        let Some((names, batch)) = self.waiting.pop_front() else { return };
        let found = found.unwrap_or_else(|| {
            self.config.metrics.pushes_dropped.inc_by(names.len() as u64);
            Vec::new()
        });
        hand_on(out, batch, &names.into_iter().zip(found).collect());
        if let Some((names, _)) = self.waiting.front() {
            out.act(Action::LookUp(names.clone()));
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.iter().map(|(_, batch)| batch.len()).sum::<usize>() > WAITING_MAX
    }
}

/// Hands a batch on, in order.
fn hand_on(out: &mut Outgoing, batch: Vec<record::Record>, found: &HashMap<By, Vec<String>>) {
    for record in batch {
        match record.body {
            Some(RecordBody::Push(body)) => push(out, body, record.time_ms, found),
            Some(RecordBody::Command(body)) => command(out, body, found),
            _ => unreachable!("only these were read"),
        }
    }
}

fn push(out: &mut Outgoing, push: record::Push, time_ms: i64, found: &HashMap<By, Vec<String>>) {
    use record::push::To;
    let post = push.post.unwrap_or_default();
    let (raw, operation) = (post.raw.clone(), push.operation);
    let push_out = |message: &bytes::Bytes, sessions| PushOut {
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
                deal(out, sessions, |sessions| Body::Push(push_out(&message, sessions)));
            }
        }
        // Whose a session is, its connector knows, which names the channel.
        Some(To::Sessions(sessions)) => {
            let message = encoded(String::new());
            deal(out, sessions.names, |sessions| Body::Push(push_out(&message, sessions)));
        }
        Some(To::Keys(keys)) => {
            let message = encoded(String::new());
            let sessions = keys.names.into_iter().filter_map(|key| found.get(&By::Key(key))).flatten().cloned();
            deal(out, sessions.collect(), |sessions| Body::Push(push_out(&message, sessions)));
        }
        Some(To::All(everyone)) => {
            let message = encoded("all".to_owned());
            let sessions_per_s = everyone.sessions_per_s;
            out.act(Action::PushAll(PushOut { all: true, sessions_per_s, ..push_out(&message, Vec::new()) }));
        }
        None => {}
    }
}

fn command(out: &mut Outgoing, command: record::Command, found: &HashMap<By, Vec<String>>) {
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
    deal(out, sessions, |sessions| Body::Command(CommandOut { sessions, act: Some(act.clone()) }));
}

/// Deals sessions out to the connectors that they live on.
fn deal(out: &mut Outgoing, sessions: Vec<String>, body: impl Fn(Vec<String>) -> Body) {
    let mut dealt: HashMap<String, Vec<String>> = HashMap::new();
    for session in sessions {
        if let Some(incarnation) = routes::incarnation_of(&session) {
            dealt.entry(incarnation.to_owned()).or_default().push(session);
        }
    }
    for (incarnation, sessions) in dealt {
        out.act(Action::Push(incarnation, body(sessions)));
    }
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
