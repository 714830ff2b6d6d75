//! The pushes' stage: to whoever is online, at most once. Each record's names are looked up in Routes and it goes to the
//! connectors that have the sessions; `all` goes to every connector with its share of the pace.
//!
//! What it is not: ordered against rooms, or stored. A push that cannot be looked up, because Routes do not answer or a
//! connector is registering its sessions anew, is kept for `job.push_keep_s` and looked up again, and what is behind it
//! waits. After that it goes to the sessions that were found, and the others are counted.
//!
//! At most once is held by the checkpoint: it is durable before a push is handed to a connector ([`Action::HandOver`]), so
//! the next owner goes on with exactly what the last one had not handed over.
//!
//! ```text
//!   records ─▶ queue ─▶ LookUp the names of its first ─▶ looked_up ─▶ HandOver ─▶ Push, Command to their connectors
//!                 ▲                                          │ not known yet
//!                 └────────────── a moment later ────────────┘
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

use crate::config::PUSH_KEEP_S_MAX;
use crate::metrics::Metrics;
use crate::partition::{Action, Fit, LookedUp, Outgoing, Stage, Takeover};
use crate::rooms::message;

/// Where nothing was ever committed, reading begins with what came this long before, milliseconds.
const FIRST_READ_MS: i64 = 4_000;
/// A push that waited longer in the bus is dropped: it is for who is online now.
const AGE_MS_MAX: i64 = 30_000;
const _: () = assert!((PUSH_KEEP_S_MAX as i64) * 1000 < AGE_MS_MAX);
/// Records that are kept; at more, reading the partition pauses. What `push_keep_s` of 1,000 pushes a second are.
const KEPT_MAX: usize = 10_000;
/// Records whose names are looked up together: a few scripts of Redis's.
const LOOK_UP_RECORDS_MAX: usize = 500;
/// Before names that are not known yet are looked up again, milliseconds.
const AGAIN_MS: i64 = 300;

/// What the pushes of all partitions share.
#[derive(Debug)]
pub(crate) struct PushesConfig {
    /// How long a push is kept that cannot be looked up, milliseconds.
    pub(crate) keep_ms: i64,
    pub(crate) metrics: Arc<Metrics>,
}

/// A push or a command that was read and not handed over.
struct Kept {
    offset: Offset,
    /// When the bus took it, milliseconds since 1970.
    time_ms: i64,
    record: record::Record,
}

/// What is done about the first of the queue.
enum Step {
    Nothing,
    /// So many of the first are being looked up, by these names.
    LookingUp(usize, Vec<By>),
    /// They are not known; to be looked up again at this time.
    Waiting(i64),
    HandingOver,
}

/// The pushes of one partition.
pub(crate) struct Pushes {
    config: Arc<PushesConfig>,
    committed: Offset,
    assigned_ms: i64,
    queue: VecDeque<Kept>,
    step: Step,
    /// Everything up to here is handed over, or being handed over.
    handed: Offset,
}

impl Stage for Pushes {
    type Config = PushesConfig;

    const TOPIC: cluster::Topic = cluster::Topic::Pushes;
    const BUS_TOPIC: bus::Topic = bus::Topic::Pushes;
    const CLAIMS: bool = false;

    fn new(config: Arc<PushesConfig>, takeover: Takeover) -> Self {
        let Takeover { committed, assigned_ms, .. } = takeover;
        Self { config, committed, assigned_ms, queue: VecDeque::new(), step: Step::Nothing, handed: committed }
    }

    fn start(&self, _now_ms: i64) -> Start {
        match self.committed {
            // By time where nothing was committed: what was pushed before anybody consumed is not for now.
            0 => Start::Since(self.assigned_ms - FIRST_READ_MS),
            committed => Start::At(committed + 1),
        }
    }

    fn record(&mut self, _out: &mut Outgoing, fit: Fit) -> Result<(), String> {
        if !matches!(fit.record.body, Some(RecordBody::Push(_) | RecordBody::Command(_))) {
            return Err("has no body that belongs here".to_owned());
        }
        if fit.now_us / 1000 - fit.time_ms > AGE_MS_MAX {
            self.config.metrics.pushes_late.inc();
        } else {
            self.config.metrics.pushes_kept.inc();
            self.queue.push_back(Kept { offset: fit.offset, time_ms: fit.time_ms, record: fit.record });
        }
        Ok(())
    }

    fn end_of_batch(&mut self, out: &mut Outgoing) {
        if matches!(self.step, Step::Nothing) {
            self.look_up(out);
        }
    }

    fn looked_up(&mut self, out: &mut Outgoing, now_ms: i64, found: Option<LookedUp>) {
        let Step::LookingUp(count, names) = std::mem::replace(&mut self.step, Step::Nothing) else { return };
        let (whole, answered) = (found.as_ref().is_some_and(|found| found.whole), found.is_some());
        let sessions = found.map(|found| found.sessions).unwrap_or_default();
        let found: HashMap<By, Vec<String>> = names.into_iter().zip(sessions).collect();
        let keep_ms = self.config.keep_ms;
        let known = |kept: &Kept| whole || now_ms - kept.time_ms >= keep_ms || wanted(&kept.record).is_empty();
        let ready = self.queue.iter().take(count).take_while(|kept| known(kept)).count();
        if ready == 0 {
            self.step = Step::Waiting(now_ms + AGAIN_MS);
            return;
        }
        let ready: Vec<Kept> = self.queue.drain(..ready).collect();
        if !whole {
            let lost = ready.iter().flat_map(|kept| wanted(&kept.record));
            let lost = lost.filter(|name| found.get(name).is_none_or(Vec::is_empty)).count() as u64;
            let metrics = &self.config.metrics;
            if answered { &metrics.pushes_routes_incomplete } else { &metrics.pushes_routes_away }.inc_by(lost);
        }
        self.hand_over(out, ready, &found);
    }

    fn handed_over(&mut self, out: &mut Outgoing) {
        self.step = Step::Nothing;
        self.look_up(out);
    }

    fn tick(&mut self, out: &mut Outgoing, now_ms: i64) {
        if matches!(self.step, Step::Waiting(until_ms) if until_ms <= now_ms) {
            self.look_up(out);
        }
    }

    /// While something waits or is being handed over, the checkpoint is what that has asked for.
    fn done(&self, progress: Offset) -> Offset {
        let idle = self.queue.is_empty() && matches!(self.step, Step::Nothing);
        if idle { progress } else { self.committed.max(self.handed_durably()) }
    }

    fn is_full(&self) -> bool {
        self.queue.len() > KEPT_MAX
    }
}

impl Drop for Pushes {
    fn drop(&mut self) {
        self.config.metrics.pushes_kept.dec_by(self.queue.len() as i64);
    }
}

impl Pushes {
    /// What an earlier [`Action::HandOver`] has committed. The last one's is not known to be durable.
    fn handed_durably(&self) -> Offset {
        match self.step {
            Step::HandingOver => 0,
            _ => self.handed,
        }
    }

    /// One look into Routes for the first of the queue.
    fn look_up(&mut self, out: &mut Outgoing) {
        let count = self.queue.len().min(LOOK_UP_RECORDS_MAX);
        let first = self.queue.iter().take(count);
        let mut names: Vec<By> = first.flat_map(|kept| wanted(&kept.record)).collect();
        names.sort_unstable();
        names.dedup();
        if count == 0 {
            self.step = Step::Nothing;
        } else if names.is_empty() {
            let ready = self.queue.drain(..count).collect();
            self.hand_over(out, ready, &HashMap::new());
        } else {
            out.act(Action::LookUp(names.clone()));
            self.step = Step::LookingUp(count, names);
        }
    }

    /// Hands the first of the queue over, in order.
    fn hand_over(&mut self, out: &mut Outgoing, ready: Vec<Kept>, found: &HashMap<By, Vec<String>>) {
        self.config.metrics.pushes_kept.dec_by(ready.len() as i64);
        let through = ready.last().map_or(self.handed, |kept| kept.offset);
        let mut handed = Outgoing::default();
        for Kept { record, .. } in ready {
            match record.body {
                Some(RecordBody::Push(body)) => push(&mut handed, body, record.time_ms, found),
                Some(RecordBody::Command(body)) => command(&mut handed, body, found),
                _ => unreachable!("only these were read"),
            }
        }
        (self.step, self.handed) = (Step::HandingOver, through);
        out.act(Action::HandOver(through, handed.take()));
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP_MS: i64 = 10_000;

    fn stage() -> Pushes {
        let config = PushesConfig { keep_ms: KEEP_MS, metrics: Arc::default() };
        Pushes::new(Arc::new(config), Takeover { partition: 0, committed: 6, assigned_ms: 0 })
    }

    /// A push to a user, which the bus took at `offset` and at that many milliseconds.
    fn read(stage: &mut Pushes, out: &mut Outgoing, offset: Offset, user: &str) {
        let to = record::push::To::Users(record::Names { names: vec![user.to_owned()] });
        let body = Some(RecordBody::Push(record::Push { to: Some(to), post: None, operation: 0 }));
        let time_ms = offset as i64;
        let record = record::Record { time_ms, body, ..record::Record::default() };
        let fit = Fit { offset, time_ms, now_us: time_ms * 1000, first_time: true, live: true, record };
        stage.record(out, fit).expect("it belongs here");
        stage.end_of_batch(out);
    }

    fn found(sessions: &[&[&str]], whole: bool) -> Option<LookedUp> {
        let names = |names: &&[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Some(LookedUp { sessions: sessions.iter().map(names).collect(), whole })
    }

    /// What it wants done, in words.
    fn wants(out: &mut Outgoing) -> Vec<String> {
        let say = |action: &Action| match action {
            Action::LookUp(names) => format!("look up {}", names.len()),
            Action::HandOver(through, actions) => {
                let whom = |action: &Action| if let Action::Push(to, _) = action { to.clone() } else { "?".to_owned() };
                format!("hand over to {through}: {}", actions.iter().map(whom).collect::<Vec<_>>().join(" "))
            }
            other => format!("{other:?}"),
        };
        std::mem::take(out).take().iter().map(say).collect()
    }

    #[test]
    fn a_push_is_kept_until_routes_are_whole_and_what_is_behind_it_waits() {
        let (mut stage, mut out) = (stage(), Outgoing::default());
        read(&mut stage, &mut out, 7, "away");
        read(&mut stage, &mut out, 8, "here");
        assert_eq!(wants(&mut out), ["look up 1"]);
        stage.looked_up(&mut out, 100, None);
        assert_eq!((wants(&mut out), stage.done(8)), (vec![], 6));
        stage.tick(&mut out, 200);
        assert!(wants(&mut out).is_empty(), "not all the time");
        stage.tick(&mut out, 400);
        assert_eq!(wants(&mut out), ["look up 2"]);
        // One connector is registering its sessions: nobody's, or nobody's yet.
        stage.looked_up(&mut out, 500, found(&[&[], &["b.0.1.1"]], false));
        assert_eq!((wants(&mut out), stage.done(8)), (vec![], 6));
        stage.tick(&mut out, 800);
        assert_eq!(wants(&mut out), ["look up 2"]);
        stage.looked_up(&mut out, 900, found(&[&["a.0.1.1"], &["b.0.1.1"]], true));
        assert_eq!(wants(&mut out), ["hand over to 8: a b"]);
        assert_eq!(stage.done(8), 6, "not before its checkpoint is durable");
        stage.handed_over(&mut out);
        assert_eq!((wants(&mut out), stage.done(9)), (vec![], 9));
        let metrics = &stage.config.metrics;
        assert_eq!((metrics.pushes_routes_away.get(), metrics.pushes_routes_incomplete.get()), (0, 0));
        assert_eq!(metrics.pushes_kept.get(), 0);
    }

    #[test]
    fn beyond_its_time_a_push_goes_to_whom_was_found_and_the_rest_is_counted_by_reason() {
        let (mut stage, mut out) = (stage(), Outgoing::default());
        read(&mut stage, &mut out, 7, "nobody");
        stage.looked_up(&mut out, KEEP_MS + 6, None);
        stage.tick(&mut out, KEEP_MS + 1_000);
        stage.looked_up(&mut out, KEEP_MS + 1_000, None);
        assert_eq!(wants(&mut out), ["look up 1", "look up 1", "hand over to 7: "]);
        stage.handed_over(&mut out);
        read(&mut stage, &mut out, 8, "nobody");
        read(&mut stage, &mut out, 9, "here");
        stage.looked_up(&mut out, KEEP_MS + 8, found(&[&[]], false));
        assert_eq!(wants(&mut out), ["look up 1", "hand over to 8: "]);
        stage.handed_over(&mut out);
        stage.looked_up(&mut out, KEEP_MS + 9, found(&[&["a.0.1.1"]], false));
        assert_eq!(wants(&mut out), ["look up 1", "hand over to 9: a"]);
        let metrics = &stage.config.metrics;
        assert_eq!((metrics.pushes_routes_away.get(), metrics.pushes_routes_incomplete.get()), (1, 1));
    }

    #[test]
    fn nobody_is_an_answer_where_routes_are_whole() {
        let (mut stage, mut out) = (stage(), Outgoing::default());
        read(&mut stage, &mut out, 7, "nobody");
        stage.looked_up(&mut out, 8, found(&[&[]], true));
        assert_eq!(wants(&mut out), ["look up 1", "hand over to 7: "]);
    }
}
