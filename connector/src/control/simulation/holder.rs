//! Plays [`super::super::holder::Holder`] against owners that behave as ARCHITECTURE.md says ("Ownership of a partition"), under random
//! schedules: cores come and go, owners change, streams break, queues are reset, paused owners wake up. Whatever
//! happens, each core gets each message of a channel that it holds once and in order, and every hold is answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::cluster::{Deliver, FromOwner, Hold, Item, Own, Release, Reset, from_holder, from_owner};

use super::Random;
use crate::control::holder::{Action, Holder, StreamId};

const SEEDS: u64 = 2000;
const STEPS: usize = 300;
const CORES: usize = 3;
const CHANNELS: [&str; 3] = ["room:1", "room:2", "room:3"];

struct Waiting {
    hold: Hold,
    followed: bool,
}

/// The owner of the one partition since one claim; `job` has the real one.
struct Owner {
    epoch: u64,
    stream: StreamId,
    /// Live when it has read up to here.
    claim: u64,
    begun: bool,
    live: bool,
    progress: u64,
    seq: u64,
    /// Of each channel that the connector holds, its position.
    holding: BTreeMap<String, u64>,
    waiting: Vec<Waiting>,
    collecting: bool,
    out: VecDeque<from_owner::Frame>,
    inbox: VecDeque<from_holder::Frame>,
}

impl Owner {
    fn new(epoch: u64, stream: StreamId, claim: u64) -> Self {
        let mut owner = Self {
            epoch,
            stream,
            claim,
            begun: false,
            live: false,
            progress: 0,
            seq: 0,
            holding: BTreeMap::new(),
            waiting: Vec::new(),
            collecting: true,
            out: VecDeque::new(),
            inbox: VecDeque::new(),
        };
        owner.attach(stream);
        owner
    }

    fn attach(&mut self, stream: StreamId) {
        self.let_go();
        self.stream = stream;
        self.inbox.clear();
        let own = Own { topic: 1, partition: 0, epoch: self.epoch, log: "log".into(), partitions: 1 };
        self.out = VecDeque::from([from_owner::Frame::Own(own)]);
    }

    fn let_go(&mut self) {
        self.holding.clear();
        self.waiting.clear();
        self.collecting = true;
        self.seq = 0;
    }

    fn reset(&mut self) {
        self.let_go();
        self.out.retain(|frame| matches!(frame, from_owner::Frame::Own(_)));
        self.out.push_back(from_owner::Frame::Reset(Reset { topic: 1, partition: 0, epoch: self.epoch }));
    }

    fn take(&mut self, log: &[usize]) {
        match self.inbox.pop_front() {
            Some(from_holder::Frame::Hold(hold)) if hold.epoch == self.epoch => {
                let mut waiting = Waiting { hold, followed: false };
                if self.live {
                    self.answer(waiting, log);
                } else {
                    if self.begun {
                        self.follow(&mut waiting);
                    }
                    self.waiting.push(waiting);
                }
            }
            Some(from_holder::Frame::HoldsDone(done)) if done.epoch == self.epoch => {
                self.collecting = false;
                if !self.begun {
                    self.begun = true;
                    let mut waiting = std::mem::take(&mut self.waiting);
                    waiting.iter_mut().for_each(|waiting| self.follow(waiting));
                    self.waiting = waiting;
                    self.go_live_if_read(log);
                }
            }
            Some(from_holder::Frame::Release(Release { channel, .. })) => {
                self.holding.remove(&channel);
                self.waiting.retain(|waiting| waiting.hold.channel != channel);
            }
            _ => {}
        }
    }

    fn follow(&mut self, waiting: &mut Waiting) {
        let hold = &waiting.hold;
        if !hold.log.is_empty() && hold.offset >= self.progress {
            waiting.followed = true;
            let position = self.holding.entry(hold.channel.clone()).or_insert(hold.offset);
            *position = hold.offset.max(*position);
        }
    }

    /// Reads the next record.
    fn read(&mut self, log: &[usize]) {
        let offset = self.progress + 1;
        let Some(channel) = log.get(offset as usize - 1).filter(|_| self.begun).map(|at| CHANNELS[*at]) else { return };
        self.progress = offset;
        let mut items = Vec::new();
        if let Some(position) = self.holding.get_mut(channel).filter(|position| **position < offset) {
            *position = offset;
            items.push(item(channel, offset));
        }
        let through = if self.live && !self.collecting { offset } else { 0 };
        if !items.is_empty() || through > 0 {
            self.seq += 1;
            let deliver = Deliver { epoch: self.epoch, seq: self.seq, items, through, ..Deliver::default() };
            self.out.push_back(from_owner::Frame::Deliver(deliver));
        }
        self.go_live_if_read(log);
    }

    fn go_live_if_read(&mut self, log: &[usize]) {
        if !self.live && self.begun && self.progress >= self.claim {
            self.live = true;
            for waiting in std::mem::take(&mut self.waiting) {
                self.answer(waiting, log);
            }
        }
    }

    fn answer(&mut self, Waiting { hold, followed }: Waiting, log: &[usize]) {
        let after = if followed { self.progress } else { hold.offset };
        let recent =
            records(log, &hold.channel, after, self.progress).map(|offset| item(&hold.channel, offset)).collect();
        let position = self.holding.entry(hold.channel.clone()).or_default();
        *position = self.progress.max(*position);
        self.seq += 1;
        self.out.push_back(from_owner::Frame::Held(proto::cluster::Held {
            topic: 1,
            partition: 0,
            epoch: self.epoch,
            seq: self.seq,
            hold: hold.hold,
            channel: hold.channel,
            log: "log".into(),
            offset: self.progress,
            missed: None,
            recent,
            before: None,
        }));
    }
}

/// A channel's offsets above `after`, up to `until`.
fn records<'a>(log: &'a [usize], channel: &'a str, after: u64, until: u64) -> impl Iterator<Item = u64> + 'a {
    let offsets = log.iter().zip(1_u64..).filter(move |(at, offset)| CHANNELS[**at] == channel && *offset > after);
    offsets.map(|(_, offset)| offset).take_while(move |offset| *offset <= until)
}

fn item(channel: &str, offset: u64) -> Item {
    Item { channel: channel.into(), offset, ordinal: offset, message: "m".into(), ..Item::default() }
}

struct World {
    random: Random,
    holder: Holder,
    /// The channel of each record; offsets begin at 1.
    log: Vec<usize>,
    owner: Option<Owner>,
    /// Owners that do not know that they are none.
    paused: Vec<Owner>,
    epoch: u64,
    last_stream: StreamId,
    /// What each core holds, and up to where it has everything; `None`: not answered.
    cores: BTreeMap<(usize, &'static str), Option<u64>>,
    /// What happened, to tell a short run from one that tried nothing.
    seen: BTreeSet<&'static str>,
}

impl World {
    fn new(random: Random) -> Self {
        Self {
            random,
            holder: Holder::default(),
            log: Vec::new(),
            owner: None,
            paused: Vec::new(),
            epoch: 0,
            last_stream: 0,
            cores: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    fn step(&mut self) {
        let channel = self.random.below(CHANNELS.len());
        let core = (self.random.below(CORES), CHANNELS[channel]);
        match self.random.below(100) {
            0..15 => self.log.push(channel),
            15..24 if !self.cores.contains_key(&core) => {
                self.cores.insert(core, None);
                self.holder.hold(core.0, core.1, 0);
            }
            24..30 if self.cores.remove(&core).is_some() => self.holder.release(core.0, core.1),
            30..50 => self.deliver(false),
            50..64 => self.on_owner(Owner::take),
            64..86 => self.on_owner(Owner::read),
            86..88 => {
                self.epoch += 1;
                self.last_stream += 1;
                let owner = Owner::new(self.epoch, self.last_stream, self.log.len() as u64);
                self.paused.extend(self.owner.replace(owner));
            }
            88..90 => {
                if let Some(owner) = &mut self.owner {
                    owner.reset();
                    self.seen.insert("reset");
                }
            }
            90..92 => {
                if let Some(owner) = &mut self.owner {
                    self.last_stream += 1;
                    let old = owner.stream;
                    owner.attach(self.last_stream);
                    self.holder.detached(old);
                    self.seen.insert("broken stream");
                }
            }
            _ => self.deliver(true),
        }
        self.act();
    }

    fn on_owner(&mut self, act: impl Fn(&mut Owner, &[usize])) {
        let at = self.random.below(self.paused.len() + 1);
        if let Some(owner) = self.paused.get_mut(at).or(self.owner.as_mut()) {
            act(owner, &self.log);
        }
    }

    /// A frame arrives: of the owner, or of one that is none any more.
    fn deliver(&mut self, paused: bool) {
        let at = self.random.below(self.paused.len().max(1));
        let owner = if paused { self.paused.get_mut(at) } else { self.owner.as_mut() };
        if let Some(owner) = owner
            && let Some(frame) = owner.out.pop_front()
        {
            let stream = owner.stream;
            self.holder.frame(stream, FromOwner { frame: Some(frame) });
        }
    }

    fn act(&mut self) {
        for action in self.holder.actions() {
            match action {
                Action::Send(stream, frame) => {
                    let mut owners = self.paused.iter_mut().chain(self.owner.as_mut());
                    if let Some(owner) = owners.find(|owner| owner.stream == stream) {
                        owner.inbox.push_back(frame);
                    }
                }
                Action::Ack(..) => {}
                Action::Held(core, held) => {
                    let channel = CHANNELS.into_iter().find(|channel| *channel == held.channel).expect("asked for");
                    let had = self.cores.get_mut(&(core, channel)).expect("the core has the channel");
                    let recent: Vec<_> = held.recent.iter().map(|item| item.offset).collect();
                    let want: Vec<_> = records(&self.log, channel, had.unwrap_or(0), held.offset).collect();
                    assert_eq!(recent, want, "core {core}, {channel}, which had {had:?}");
                    self.seen.insert(if had.is_some() { "re-held" } else { "held" });
                    *had = Some(held.offset.max(had.unwrap_or(0)));
                }
                Action::Deliver(core, items) => {
                    for item in items {
                        let channel = CHANNELS.into_iter().find(|channel| *channel == item.channel).expect("asked for");
                        let had = self.cores.get_mut(&(core, channel)).expect("the core has the channel");
                        let last = had.expect("nothing is delivered before the answer");
                        let next = records(&self.log, channel, last, u64::MAX).next();
                        assert_eq!(next, Some(item.offset), "core {core}, {channel}, which had {last}");
                        *had = Some(item.offset);
                        self.seen.insert("delivered");
                    }
                }
                Action::Break(_, reason) => panic!("{reason}"),
            }
        }
    }

    /// Nothing more happens but what is under way.
    fn settle(&mut self) {
        if self.owner.is_none() {
            return;
        }
        for _ in 0..100_000 {
            let Some(owner) = &mut self.owner else { return };
            let busy = !owner.out.is_empty() || !owner.inbox.is_empty() || owner.progress < self.log.len() as u64;
            if !busy {
                break;
            }
            owner.take(&self.log);
            owner.read(&self.log);
            self.deliver(false);
            self.act();
        }
        for (&(core, channel), had) in &self.cores {
            let had = had.unwrap_or_else(|| panic!("core {core} waits for {channel} for ever"));
            assert_eq!(records(&self.log, channel, had, u64::MAX).next(), None, "core {core} misses some of {channel}");
        }
    }
}

#[test]
fn every_core_gets_every_message_once_and_in_order_whatever_happens() {
    let run = |random| {
        let mut world = World::new(random);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.seen
    };
    super::run(SEEDS, run, &["held", "re-held", "delivered", "reset", "broken stream"]);
}
