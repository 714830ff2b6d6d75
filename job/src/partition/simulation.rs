//! Takeovers played through: owners in succession, zombies, connectors that come and go, queues that run over, messages
//! sent twice, under a virtual clock and a random schedule of which a seed reproduces every step.
//!
//! What is checked at the end of a run, for every connector and channel: what it received and the gaps that it was told
//! are exactly the channel's messages, each once and in order; and while nothing was away for longer than messages are
//! kept, no gap was told at all. Faults planted on purpose must be caught.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bus::{Offset, Record, Start};
use prost::Message as _;
use proto::client::GapReasons;
use proto::cluster::{FromOwner, Hold, Topic, from_owner};
use proto::record;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{Action, Owner, OwnerConfig, Stage as _, Takeover};
use crate::frame::Frame;
use crate::metrics::Metrics;
use crate::out::Out;
use crate::outbox::Outbox;
use crate::rooms::{Budget, REPEAT_MS, Rooms, RoomsConfig};

const LOG: &str = "log-1";
const ROOMS: usize = 3;
const AGE_MS: i64 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// A new owner begins at its claim.
    NoReplay,
    /// A new owner reads only what is young enough to be delivered.
    ShortReplay,
    /// An owner does not hear that a queue ran over.
    DeafToOverflow,
    /// A message is lost on the way to the queue.
    LostItem,
    /// A connector takes frames of a lower epoch.
    OldEpochs,
    /// A connector says that it has nothing but the beginning.
    NoPosition,
}

#[derive(Clone, Copy)]
struct Scene {
    seed: u64,
    fault: Option<Fault>,
    /// Outages are short, queues long, and there is no flow cap: no gap may be told.
    calm: bool,
}

/// What a connector was told of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    Message(Offset),
    Gap(u64, bool),
}

#[derive(Debug, Default)]
struct Channel {
    /// `None`: asked for the first time.
    position: Option<Offset>,
    ordinal: (u64, u64),
    hold: u64,
    held: bool,
    /// Where it began, and what came since.
    began: Offset,
    got: Vec<Got>,
}

/// A connector as `connector`'s holder behaves, with one core.
struct Connector {
    name: usize,
    up: bool,
    /// The stream by which the last owner reaches it.
    owner: Option<(usize, u64)>,
    epoch: u64,
    through: Offset,
    seq: u64,
    channels: BTreeMap<String, Channel>,
    holds: u64,
}

enum ToOwner {
    Hold(Hold),
    Done(u64),
    Release(String),
}

/// A stream between a job and a connector.
struct Stream {
    connector: usize,
    outbox: Outbox,
    /// Handed to the network, in order.
    wire: VecDeque<Vec<u8>>,
    back: VecDeque<ToOwner>,
}

struct Job {
    name: String,
    owner: Option<Owner<Rooms>>,
    /// The process stands still until then.
    stopped_until_ms: i64,
    /// The group has given the partition to nobody else: it claims again a second after it has lost it.
    assigned: bool,
    lost_ms: Option<i64>,
    epoch: u64,
    next: usize,
    reading: bool,
    streams: BTreeMap<u64, Stream>,
    /// No longer assigned: nothing is read, what was sent still arrives.
    zombie: bool,
}

struct World {
    scene: Scene,
    random: StdRng,
    now_ms: i64,
    log: Vec<Record>,
    posts: u64,
    sent: Vec<(String, String, i64)>,
    jobs: Vec<Job>,
    connectors: Vec<Connector>,
    streams: u64,
    committed: Offset,
    metrics: Arc<Metrics>,
    queue_max: usize,
    /// Partitions that went back to a job which had stood still.
    taken_back: u64,
}

fn room(number: usize) -> String {
    format!("room:{number}")
}

impl World {
    fn new(scene: Scene) -> Self {
        let connector = |name| Connector {
            name,
            up: true,
            owner: None,
            epoch: 0,
            through: 0,
            seq: 0,
            channels: BTreeMap::new(),
            holds: 0,
        };
        let mut random = StdRng::seed_from_u64(scene.seed);
        let queue_max = if scene.calm { 1 << 20 } else { random.random_range(3_000..15_000) };
        Self {
            scene,
            random,
            now_ms: 1_000_000_000,
            log: Vec::new(),
            posts: 0,
            sent: Vec::new(),
            jobs: Vec::new(),
            connectors: (0..3).map(connector).collect(),
            streams: 0,
            committed: 0,
            metrics: Arc::default(),
            queue_max,
            taken_back: 0,
        }
    }

    fn chance(&mut self, of: u32) -> bool {
        self.random.random_range(0..of) == 0
    }

    fn append(&mut self, channel: &str, body: record::record::Body) -> Offset {
        let (min_reader, log) = (1, LOG.to_owned());
        let record = record::Record {
            min_reader,
            log,
            time_ms: self.now_ms,
            channel: channel.into(),
            body: Some(body),
            ..Default::default()
        };
        self.append_bytes(record.encode_to_vec())
    }

    fn append_bytes(&mut self, value: Vec<u8>) -> Offset {
        let offset = self.log.len() as u64 + 1;
        self.log.push(Record { offset, time_ms: self.now_ms, value: value.into() });
        offset
    }

    fn post(&mut self) {
        if self.chance(40) {
            self.append_bytes(vec![0xff; 9]);
            return;
        }
        let again = self.random.random_range(0..12) == 0 && !self.sent.is_empty();
        let (channel, id) = if again {
            // A client tries again while it is connected: within some seconds, or later than promised.
            let at = self.random.random_range(self.sent.len().saturating_sub(40)..self.sent.len());
            let (channel, id, time_ms) = self.sent[at].clone();
            let age_ms = self.now_ms - time_ms;
            if !(0..250_000).contains(&age_ms) && age_ms < REPEAT_MS + 30_000 {
                return;
            }
            (channel, id)
        } else {
            self.posts += 1;
            let channel = room(self.random.random_range(0..ROOMS));
            (channel, format!("message-{}", self.posts))
        };
        self.sent.push((channel.clone(), id.clone(), self.now_ms));
        // A client that tries again sends the same; one in three takes an ID twice for two messages.
        let other = again && self.random.random_range(0..3) == 0;
        let number: usize = id.strip_prefix("message-").and_then(|number| number.parse().ok()).unwrap_or(0);
        let payload = vec![if other { b'y' } else { b'x' }; 1 + number * 37 % 199].into();
        let post = record::Post { id, payload, ..record::Post::default() };
        self.append(&channel, record::record::Body::Post(post));
    }

    /// The group gives the partition to another job.
    fn take_over(&mut self) {
        for job in &mut self.jobs {
            job.assigned = false;
        }
        self.adopt();
    }

    /// Another job claims the partition; the last one keeps it as far as the group is concerned.
    fn adopt(&mut self) {
        for job in &mut self.jobs {
            job.zombie = true;
        }
        let name = format!("job-{}", self.jobs.len());
        let mut streams = BTreeMap::new();
        for connector in 0..self.connectors.len() {
            // One is late now and then: its stream comes up after the takeover began.
            if self.connectors[connector].up && !self.chance(4) {
                self.streams += 1;
                streams.insert(self.streams, self.stream(connector));
            }
        }
        self.jobs.push(Job {
            name,
            owner: None,
            stopped_until_ms: 0,
            // Another's, as long as that one is assigned.
            assigned: !self.jobs.iter().any(|job| job.assigned),
            lost_ms: None,
            epoch: 0,
            next: 0,
            reading: false,
            streams,
            zombie: false,
        });
        self.claim(self.jobs.len() - 1);
    }

    /// A job that stood still, and was overtaken, takes back what the group has never taken from it.
    fn claim_again(&mut self, job: usize) {
        for other in &mut self.jobs {
            other.zombie = true;
        }
        self.jobs[job].zombie = false;
        self.jobs[job].lost_ms = None;
        self.claim(job);
        self.taken_back += 1;
    }

    fn claim(&mut self, job: usize) {
        let owner = self.jobs[job].name.clone();
        let epoch = self.append("", record::record::Body::Claim(record::Claim { owner: owner.clone() }));
        let metrics = self.metrics.clone();
        let config = Arc::new(OwnerConfig { owner, log: LOG.into(), partitions: 1, metrics: metrics.clone() });
        let rooms = Arc::new(RoomsConfig {
            partitions: 1,
            age_ms: AGE_MS,
            per_s_max: if self.scene.calm { 0 } else { 20 },
            answer_bytes_max: self.queue_max / 4,
            recent: Budget::new(1 << 20),
            repeats: Budget::new(100_000),
            metrics,
        });
        let attached: Vec<_> = self.jobs[job].streams.keys().copied().collect();
        let takeover = Takeover { partition: 0, committed: self.committed, assigned_ms: self.now_ms };
        let owner = Owner::new(config, Rooms::new(rooms, takeover), takeover, epoch, attached, self.now_ms);
        let this = &mut self.jobs[job];
        (this.owner, this.epoch, this.next, this.reading) = (Some(owner), epoch, 0, false);
        self.act(job);
    }

    fn stream(&self, connector: usize) -> Stream {
        let outbox = Outbox::new(self.queue_max);
        Stream { connector, outbox, wire: VecDeque::new(), back: VecDeque::new() }
    }

    fn act(&mut self, job: usize) {
        let Some(owner) = &mut self.jobs[job].owner else { return };
        let actions = owner.actions();
        let mut over = Vec::new();
        let mut lost = false;
        for action in actions {
            match action {
                Action::Send(to, out) => {
                    let lose = self.scene.fault == Some(Fault::LostItem)
                        && matches!(out, Out::Item(_))
                        && self.random.random_range(0..200) == 0;
                    let epoch = self.jobs[job].epoch;
                    let Some(stream) = self.jobs[job].streams.get_mut(&to).filter(|_| !over.contains(&to)) else {
                        continue;
                    };
                    if !lose && stream.outbox.push(1, (Topic::Rooms, 0), epoch, out).is_err() {
                        over.push(to);
                    }
                }
                Action::Read(start) => {
                    let epoch = self.jobs[job].epoch as usize;
                    let since = |time_ms| self.log.partition_point(|record| record.time_ms < time_ms);
                    self.jobs[job].next = match (start, self.scene.fault) {
                        (_, Some(Fault::NoReplay)) => epoch - 1,
                        (Start::Since(_), Some(Fault::ShortReplay)) => since(self.now_ms - AGE_MS),
                        (Start::Since(time_ms), _) => since(time_ms),
                        (Start::At(offset), _) => offset as usize - 1,
                        (Start::End, _) => unreachable!("an owner never skips"),
                    };
                    self.jobs[job].reading = true;
                }
                Action::DeadLetter { .. } => {}
                Action::Pause(_) => unreachable!("no record here wants another reader"),
                Action::Lost => lost = true,
                Action::Refuse(..) => {}
                other => unreachable!("rooms ask for no {other:?}"),
            }
        }
        let owner = self.jobs[job].owner.as_mut().expect("it was there above");
        if self.scene.fault != Some(Fault::DeafToOverflow) {
            over.into_iter().for_each(|to| owner.overflowed(to));
        }
        if lost {
            // As the consumer does: it gives up in words, and forgets.
            owner.disown();
            let said = owner.actions();
            let this = &mut self.jobs[job];
            for action in said {
                if let Action::Send(to, out) = action
                    && let Some(stream) = this.streams.get_mut(&to)
                {
                    _ = stream.outbox.push(1, (Topic::Rooms, 0), this.epoch, out);
                }
            }
            (this.owner, this.lost_ms) = (None, this.assigned.then_some(self.now_ms));
        }
    }

    /// A batch of records, frames from connectors and the time, to the owner of `job`.
    fn run_job(&mut self, job: usize) {
        let now_ms = self.now_ms;
        let most = self.random.random_range(1..if self.scene.calm { 400 } else { 40 });
        let this = &mut self.jobs[job];
        let Some(owner) = &mut this.owner else { return };
        let ids: Vec<u64> = this.streams.keys().copied().collect();
        for id in ids {
            let stream = this.streams.get_mut(&id).expect("listed above");
            for frame in stream.back.drain(..) {
                match frame {
                    ToOwner::Hold(hold) => owner.hold(id, hold),
                    ToOwner::Done(epoch) => owner.holds_done(id, epoch, now_ms),
                    ToOwner::Release(channel) => owner.release(id, &channel),
                }
            }
        }
        self.act(job);
        let this = &mut self.jobs[job];
        if let Some(owner) = &mut this.owner {
            owner.tick(now_ms);
        }
        self.act(job);
        let this = &mut self.jobs[job];
        if let Some(owner) = &mut this.owner {
            owner.answer_holds(|to| this.streams.get(&to).map_or(0, |stream| stream.outbox.room()));
        }
        self.act(job);
        let this = &mut self.jobs[job];
        // A paused owner that wakes up reads on before it learns that it has lost the partition.
        if let Some(owner) = this.owner.as_mut().filter(|_| this.reading) {
            let end = (this.next + most).min(self.log.len());
            let batch = &self.log[this.next.min(end)..end];
            this.next = end;
            if !batch.is_empty() {
                owner.records(now_ms * 1000, batch);
                // A job that has been overtaken commits what it has read, too, until the group takes the partition away.
                if owner.is_live() && (!this.zombie || this.assigned) {
                    self.committed = owner.progress();
                }
            }
            self.act(job);
        }
    }

    /// FrameCodec of one stream travel to its connector.
    fn run_stream(&mut self, job: usize, id: u64, all: bool) {
        let most = if all { usize::MAX } else { self.random.random_range(1..6) };
        let this = &mut self.jobs[job];
        let epoch = this.epoch;
        let Some(stream) = this.streams.get_mut(&id) else { return };
        while let Some(frame) = stream.outbox.pop() {
            let ack = match &frame {
                Frame::Deliver { seq, .. } => Some(*seq),
                Frame::Held(held, _) => Some(held.seq),
                Frame::Whole(_) => None,
            };
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            stream.wire.push_back(bytes);
            if let Some(seq) = ack {
                stream.outbox.acked((Topic::Rooms, 0), epoch, seq);
            }
            if stream.wire.len() >= most {
                break;
            }
        }
        for _ in 0..most {
            let Some(bytes) = stream.wire.pop_front() else { break };
            let connector = &mut self.connectors[stream.connector];
            let frame = FromOwner::decode(&bytes[..]).expect("an owner's frame").frame.expect("a frame has a body");
            connector.frame((job, id), frame, self.scene.fault, &mut stream.back);
        }
    }

    fn cut(&mut self, job: usize, id: u64) {
        let now_ms = self.now_ms;
        let this = &mut self.jobs[job];
        let Some(stream) = this.streams.remove(&id) else { return };
        if let Some(owner) = &mut this.owner {
            owner.detached(id, now_ms);
        }
        let connector = &mut self.connectors[stream.connector];
        if connector.owner == Some((job, id)) {
            connector.owner = None;
        }
        self.act(job);
    }

    fn attach_missing(&mut self) {
        let Some(job) = self.jobs.iter().rposition(|job| !job.zombie) else { return };
        for connector in 0..self.connectors.len() {
            let attached = self.jobs[job].streams.values().any(|stream| stream.connector == connector);
            if self.connectors[connector].up && !attached && self.jobs[job].owner.is_some() {
                self.streams += 1;
                let (id, stream) = (self.streams, self.stream(connector));
                self.jobs[job].streams.insert(id, stream);
                self.jobs[job].owner.as_mut().expect("looked at above").attached(id);
                self.act(job);
            }
        }
    }

    /// The jobs' process is gone, with what it had not sent.
    fn kill(&mut self, job: usize) {
        for id in self.jobs[job].streams.keys().copied().collect::<Vec<_>>() {
            self.cut(job, id);
        }
        self.jobs[job].owner = None;
        self.jobs[job].assigned = false;
    }

    fn step(&mut self) {
        let calm = self.scene.calm;
        self.now_ms += match self.random.random_range(0..100) {
            0..90 => self.random.random_range(1..200),
            90..98 => self.random.random_range(200..2_000),
            _ if calm => self.random.random_range(1..4_000),
            _ => self.random.random_range(1..40_000),
        };
        match self.random.random_range(0..100) {
            0..55 => (0..self.random.random_range(1..6)).for_each(|_| self.post()),
            55..60 => self.join_or_leave(),
            60..62 if self.random.random_range(0..3) == 0 => self.take_over(),
            62..64 if self.random.random_range(0..3) == 0 => {
                let job = self.jobs.len() - 1;
                self.kill(job);
                self.take_over();
            }
            64 => {
                // It stands still, longer or shorter than the others wait, and another takes over. (Once at a time.)
                let live = self.jobs.iter().rposition(|job| !job.zombie && job.owner.is_some());
                let stopped = self.jobs.iter().any(|job| job.stopped_until_ms > self.now_ms);
                if let Some(job) = live.filter(|_| !stopped) {
                    self.jobs[job].stopped_until_ms = self.now_ms + self.random.random_range(300..8_000);
                    self.adopt();
                }
            }
            65 => {
                let job = self.jobs.len() - 1;
                if let Some(&id) = self.jobs[job].streams.keys().next() {
                    self.cut(job, id);
                }
            }
            66..70 => self.attach_missing(),
            // A stream that broke comes up again soon.
            70..90 if calm => self.attach_missing(),
            _ => {}
        }
        for job in 0..self.jobs.len() {
            if self.jobs[job].stopped_until_ms > self.now_ms {
                continue;
            }
            let lost_ms = self.jobs[job].lost_ms.filter(|_| self.jobs[job].assigned);
            if lost_ms.is_some_and(|lost_ms| self.now_ms - lost_ms > 1_000) {
                self.claim_again(job);
            }
            // Who was overtaken and goes on soon reads that it was.
            let lazy = if self.jobs[job].zombie && !self.jobs[job].assigned { 8 } else { 2 };
            if self.chance(lazy) {
                self.run_job(job);
            }
            for id in self.jobs[job].streams.keys().copied().collect::<Vec<_>>() {
                if self.chance(lazy) {
                    self.run_stream(job, id, false);
                }
            }
        }
        if self.jobs.iter().all(|job| job.zombie || job.owner.is_none()) {
            self.take_over();
        }
    }

    fn join_or_leave(&mut self) {
        let at = self.random.random_range(0..self.connectors.len());
        let channel = room(self.random.random_range(0..ROOMS));
        let connector = &mut self.connectors[at];
        let back =
            connector.owner.and_then(|(job, id)| self.jobs[job].streams.get_mut(&id)).map(|stream| &mut stream.back);
        if connector.channels.contains_key(&channel) {
            // Leaves seldom, and not at all while its answer is due.
            if connector.channels[&channel].held && self.random.random_range(0..6) == 0 {
                let left = connector.channels.remove(&channel).expect("looked at above");
                if let Some(back) = back {
                    back.push_back(ToOwner::Release(channel.clone()));
                }
                self.check(&channel, at, &left, None);
            }
        } else {
            connector.channels.insert(channel.clone(), Channel::default());
            if let (Some(back), epoch) = (back, connector.epoch) {
                back.push_back(connector.ask(&channel, epoch, None));
            }
        }
    }

    /// Everything comes to rest; then every channel is checked to the log's end.
    fn settle(&mut self) {
        for _ in 0..400 {
            self.now_ms += 100;
            self.attach_missing();
            for job in 0..self.jobs.len() {
                self.run_job(job);
                for id in self.jobs[job].streams.keys().copied().collect::<Vec<_>>() {
                    self.run_stream(job, id, true);
                }
            }
            if self.jobs.iter().all(|job| job.zombie || job.owner.is_none()) {
                self.take_over();
            }
        }
        let end = self.log.len() as u64;
        for at in 0..self.connectors.len() {
            for (channel, state) in &self.connectors[at].channels {
                assert!(state.held, "seed {}: connector {at} has no answer for {channel}", self.scene.seed);
                self.check(channel, at, state, Some(end));
            }
        }
    }

    /// What was received and told against the log.
    fn check(&self, channel: &str, at: usize, state: &Channel, end: Option<Offset>) {
        let Scene { seed, calm, .. } = self.scene;
        let Some(position) = state.position else { return };
        let end = end.unwrap_or(position);
        let (mut first, mut messages): (HashMap<String, i64>, VecDeque<Offset>) = Default::default();
        for record in &self.log {
            let Ok(read) = record::Record::decode(record.value.clone()) else { continue };
            let Some(record::record::Body::Post(post)) = read.body else { continue };
            let again = first.get(&post.id).is_some_and(|first| record.time_ms - first < REPEAT_MS);
            if !again {
                first.insert(post.id, record.time_ms);
                if read.channel == channel && record.offset > state.began && record.offset <= end {
                    messages.push_back(record.offset);
                }
            }
        }
        let what = || {
            let jobs = self.jobs.iter().enumerate().map(|(at, job)| {
                let owner = job.owner.as_ref().map(|owner| (owner.is_live(), owner.progress()));
                let streams: Vec<_> = job.streams.iter().map(|(id, stream)| (*id, stream.connector)).collect();
                format!(
                    "\n  job {at} epoch {} (live, read to) {owner:?} zombie {} streams {streams:?}",
                    job.epoch, job.zombie
                )
            });
            let jobs: String = jobs.collect();
            let Connector { epoch, owner, through, .. } = &self.connectors[at];
            let now = format!(
                "epoch {epoch} owner {owner:?} through {through} position {position}, log's end {}",
                self.log.len()
            );
            format!("seed {seed}: connector {at}, {channel} from {} on; {now}{jobs}\n", state.began)
        };
        let (mut gap, mut exact) = (0, true);
        for got in &state.got {
            match *got {
                Got::Gap(count, is_exact) => {
                    assert!(!calm, "{}: a gap of {count} that need not be", what());
                    (gap, exact) = (gap + count, exact && is_exact);
                }
                Got::Message(offset) => {
                    let place = messages.iter().position(|&message| message == offset);
                    let place = place.unwrap_or_else(|| panic!("{}: {offset} twice or out of order", what()));
                    assert!(
                        place as u64 >= gap && (!exact || place as u64 == gap),
                        "{}: before {offset} {place} are missing, {gap} were told",
                        what()
                    );
                    messages.drain(..=place);
                    (gap, exact) = (0, true);
                }
            }
        }
        let rest = messages.len() as u64;
        assert!(rest >= gap && (!exact || rest == gap), "{}: at the end {rest} are missing, {gap} were told", what());
    }
}

impl Connector {
    fn ask(&mut self, channel: &str, epoch: u64, fault: Option<Fault>) -> ToOwner {
        self.holds += 1;
        let through = self.through;
        let state = self.channels.get_mut(channel).expect("it is asked for");
        state.hold = self.holds;
        let mut hold = Hold {
            topic: Topic::Rooms.into(),
            partition: 0,
            epoch,
            hold: self.holds,
            channel: channel.to_owned(),
            recent: 5,
            ordinal: state.ordinal.1,
            ordinal_epoch: state.ordinal.0,
            ..Hold::default()
        };
        if let Some(position) = state.position {
            (hold.log, hold.offset) = (LOG.to_owned(), if state.held { position.max(through) } else { position });
            if fault == Some(Fault::NoPosition) {
                hold.offset = 0;
            }
        }
        ToOwner::Hold(hold)
    }

    fn hold_all(&mut self, epoch: u64, fault: Option<Fault>, back: &mut VecDeque<ToOwner>) {
        for channel in self.channels.keys().cloned().collect::<Vec<_>>() {
            let hold = self.ask(&channel, epoch, fault);
            back.push_back(hold);
        }
        back.push_back(ToOwner::Done(epoch));
    }

    fn frame(
        &mut self,
        from: (usize, u64),
        frame: from_owner::Frame,
        fault: Option<Fault>,
        back: &mut VecDeque<ToOwner>,
    ) {
        use from_owner::Frame as Body;
        let ours = |epoch: u64, this: &Self| {
            fault == Some(Fault::OldEpochs) || (epoch == this.epoch && this.owner == Some(from))
        };
        match frame {
            Body::Own(own) if own.epoch >= self.epoch || fault == Some(Fault::OldEpochs) => {
                (self.epoch, self.owner, self.seq) = (own.epoch, Some(from), 0);
                self.hold_all(own.epoch, fault, back);
            }
            Body::Reset(reset) if ours(reset.epoch, self) => {
                self.seq = 0;
                self.hold_all(reset.epoch, fault, back);
            }
            Body::Disown(disown) if ours(disown.epoch, self) => self.owner = None,
            Body::Deliver(deliver) if ours(deliver.epoch, self) => {
                self.number(deliver.seq, fault);
                for item in deliver.items {
                    self.item(item, deliver.epoch, fault);
                }
                self.through = self.through.max(deliver.through);
            }
            Body::Held(held) if ours(held.epoch, self) => {
                self.number(held.seq, fault);
                let Some(state) = self.channels.get_mut(&held.channel).filter(|state| state.hold == held.hold) else {
                    return;
                };
                if !state.held {
                    state.held = true;
                    let first = held.recent.first().map(|item| item.offset - 1);
                    state.began = first.unwrap_or(held.offset);
                    state.position = Some(state.began);
                } else if let Some(missed) = held.missed {
                    assert_eq!(missed.count, told(missed.reasons));
                    state.got.push(Got::Gap(missed.count, missed.exact));
                }
                for item in held.recent {
                    self.item(item, held.epoch, fault);
                }
                let state = self.channels.get_mut(&held.channel).expect("it was there above");
                state.position = state.position.max(Some(held.offset));
            }
            _ => {}
        }
    }

    fn number(&mut self, seq: u64, fault: Option<Fault>) {
        if fault != Some(Fault::OldEpochs) {
            assert_eq!(seq, self.seq + 1, "connector {}: the sequence is dense", self.name);
        }
        self.seq = seq;
    }

    fn item(&mut self, item: proto::cluster::Item, epoch: u64, fault: Option<Fault>) {
        let Some(state) = self.channels.get_mut(&item.channel).filter(|state| state.held) else { return };
        // An owner must not rely on being filtered here: what is known already is an error, but for gaps.
        if fault.is_none() && !item.message.is_empty() {
            assert!(Some(item.offset) > state.position, "connector {}: {} came again", self.name, item.offset);
        }
        state.position = state.position.max(Some(item.offset));
        state.ordinal = (epoch, item.ordinal);
        if item.missed > 0 {
            assert_eq!(item.missed, told(item.reasons));
            state.got.push(Got::Gap(item.missed, true));
        }
        if !item.message.is_empty() {
            state.got.push(Got::Message(item.offset));
        }
    }
}

/// How many messages the reasons of a gap are for, together.
fn told(reasons: Option<GapReasons>) -> u64 {
    let GapReasons { slow, shed, capped, aged, unknown } = reasons.expect("every gap has its reasons");
    assert_eq!(slow + shed, 0, "only an engine knows of these");
    capped + aged + unknown
}

fn run(scene: Scene, steps: usize) -> World {
    let mut world = World::new(scene);
    world.take_over();
    (0..steps).for_each(|_| world.step());
    world.settle();
    world
}

#[test]
fn no_takeover_loses_repeats_or_reorders_a_message() {
    let seeds = std::env::var("BARRAGE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(150);
    let (mut gaps, mut resets, mut repeated, mut conflicts, mut claims, mut taken_back) = (0, 0, 0, 0, 0, 0);
    for seed in 0..seeds {
        let world = run(Scene { seed, fault: None, calm: false }, 600);
        gaps += world.metrics.gaps.get();
        resets += world.metrics.resets.get();
        repeated += world.metrics.repeated.get();
        conflicts += world.metrics.conflicts.get();
        claims += world.jobs.len();
        taken_back += world.taken_back;
    }
    // The schedules do reach what they are for.
    assert!(
        gaps > seeds
            && resets > seeds / 2
            && repeated > seeds
            && conflicts > seeds / 4
            && taken_back > seeds / 2
            && claims as u64 > 2 * seeds,
        "{gaps} {resets} {repeated} {conflicts} {claims} {taken_back}"
    );
}

#[test]
fn short_outages_leave_no_gap_at_all() {
    for seed in 0..100 {
        run(Scene { seed, fault: None, calm: true }, 600);
    }
}

#[test]
fn planted_faults_are_caught() {
    use Fault::{DeafToOverflow, LostItem, NoPosition, NoReplay, OldEpochs, ShortReplay};
    for fault in [NoReplay, ShortReplay, DeafToOverflow, LostItem, OldEpochs, NoPosition] {
        let caught = |seed| {
            let play = move || drop(run(Scene { seed, fault: Some(fault), calm: false }, 600));
            std::panic::catch_unwind(play).is_err()
        };
        assert!((0..200).any(caught), "{fault:?} went unnoticed");
    }
}
