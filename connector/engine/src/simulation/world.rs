//! The world around an engine: clients on a network, logic and the rooms' owners, which answer when they
//! like, a clock that is moved; and what was published, to compare with.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use prost::Message as _;
use proto::{
    client::{self, ErrorCode, GapReasons, client_frame},
    cluster::{self, command_out::Act, gate_reply::Answer, gate_request},
    error::error,
    packet, record,
};

use super::{
    Random,
    client::{Asked, Client, HEARTBEAT, Speaks, Watch},
    net::{Net, Wire},
    owner::{Numbered as _, Owned, Published},
};
use crate::{
    Engine, EngineConfig, RouteChange,
    encode::BATCH_BYTES_MAX,
    event::{CoreRequest, Input, Push},
    fault::Fault,
    session::Session,
};
use machine::{Key, Machine, Now, Reading};

/// A round of a core that is overloaded, milliseconds.
const ROUND_MS: u64 = 40;
/// Clients of one run: few enough that each comes to do something.
const CLIENTS_MAX: usize = 12;

/// What a run saw; and the sum of many.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) received: u64,
    pub(super) batched: u64,
    pub(super) gaps: u64,
    /// Of the gaps that clients were told.
    pub(super) reasons: GapReasons,
    pub(super) skipped: u64,
    pub(super) shed: u64,
    pub(super) resumed: u64,
    pub(super) pushes: u64,
    pub(super) short_writes: u64,
    pub(super) closed: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.batched += other.batched;
        self.gaps += other.gaps;
        self.reasons += other.reasons;
        self.skipped += other.skipped;
        self.shed += other.shed;
        self.resumed += other.resumed;
        self.pushes += other.pushes;
        self.short_writes += other.short_writes;
        self.closed += other.closed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, batched, gaps, reasons, skipped, shed, resumed, pushes, short_writes, closed } = self;
        write!(
            f,
            "{received} messages received, {batched} of them in batches, {gaps} told as missed ({reasons:?}), {skipped} skipped, {shed} shed, \
             {resumed} resumptions, {pushes} pushes, {short_writes} short writes, {closed} sessions closed"
        )
    }
}

/// See the module's opening.
pub(super) struct World {
    pub(super) random: Random,
    pub(super) now: Now,
    pub(super) engine: Engine,
    pub(super) config: Arc<EngineConfig>,
    pub(super) net: Net,
    pub(super) clients: Vec<Client>,
    pub(super) rooms: Vec<Owned>,
    /// To the core, in order.
    pub(super) queue: VecDeque<Input>,
    /// Asked of logic, and not answered.
    pub(super) asked: Vec<(u64, Key, gate_request::Ask)>,
    /// Nothing is lost on the way to the core.
    pub(super) lossless: bool,
    /// Everyone reads.
    pub(super) fast: bool,
    /// Each round takes [`ROUND_MS`].
    pub(super) overloaded: bool,
    pub(super) publishing: bool,
    pub(super) routes: BTreeMap<String, i64>,
    pub(super) published: u64,
    /// Numbers of the messages that came to the core.
    came: BTreeSet<u64>,
}

impl World {
    /// One run.
    ///
    /// # Panics
    /// Where an invariant does not hold.
    pub(super) fn run(seed: u64, fault: Option<Fault>) -> Tally {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let config = Arc::new(EngineConfig {
            ring_bytes_max: [2048, 8192, 65536][random.below(3) as usize],
            recent_bytes_max: [0, 20_000, 1 << 20][(seed / 9 % 3) as usize],
            private_bytes_max: [2048, 65536][random.below(2) as usize],
            round_sends: [4, 64, 256][random.below(3) as usize],
            pacing_ms_max: [0, 10, 100][(seed % 3) as usize],
            late_bytes: [200, 2048, 32_768][(seed / 3 % 3) as usize],
            requests_in_flight: 1 + random.below(6) as u32,
            rooms_per_session: 1 + random.below(3) as u32,
            requests_per_s: [5, 1000][random.below(2) as usize],
            fault,
            ..EngineConfig::small()
        });
        let now = Now { mono_ms: 1_000_000 + random.below(100_000), unix_ms: 1_700_000_000_000 };
        let mut world = Self {
            engine: Engine::new(config.clone(), 3, "abcdefghijklm".into(), now),
            net: Net { random: random.next(), accepting: true, ..Net::default() },
            clients: Vec::new(),
            rooms: (0..1 + random.below(3))
                .map(|id| Owned { name: format!("room:{id}"), log: 1, offset: random.below(50), ..Owned::default() })
                .collect(),
            queue: VecDeque::new(),
            asked: Vec::new(),
            lossless: random.one_in(2),
            fast: random.one_in(3),
            overloaded: random.one_in(2),
            publishing: true,
            routes: BTreeMap::new(),
            published: 0,
            came: BTreeSet::new(),
            random,
            now,
            config,
        };
        let steps = 200 + world.random.below(400);
        for _ in 0..steps {
            world.step();
            world.limits();
        }
        world.settle();
        world.compare();
        let tally = world.tally();
        if world.random.one_in(4) {
            world.drain();
        }
        world.empty();
        tally
    }

    fn tally(&self) -> Tally {
        let counters = self.engine.counters();
        let watches = || self.clients.iter().flat_map(|client| client.watches.values());
        Tally {
            received: self.clients.iter().map(|client| client.received).sum(),
            gaps: watches().map(|watch| watch.gaps).sum(),
            reasons: watches().fold(GapReasons::default(), |mut sum, watch| {
                sum += watch.reasons;
                sum
            }),
            skipped: counters.skipped,
            shed: counters.shed,
            batched: self.clients.iter().map(|client| client.batched).sum(),
            resumed: self.clients.iter().map(|client| client.resumed).sum(),
            pushes: self.clients.iter().map(|client| client.pushes).sum(),
            short_writes: counters.short_writes,
            closed: counters.closed.iter().sum(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..20 => self.publish(),
            20..28 => self.open(),
            28..46 => self.speak(),
            46..60 => self.flow(),
            60..70 => self.pass(1 + self.random.clone().below(6) as usize),
            70..80 => self.answer(),
            80..90 => self.round(),
            90..92 => self.push(),
            92 if self.random.one_in(3) => self.command(),
            92..96 => self.leave(),
            96 => self.owner_news(),
            97 if !self.lossless => self.lose(),
            _ => {
                // A core that is busy all the time stands still for no longer than a scheduler lets it.
                let ms = [1, 20, 200, 1500][self.random.below(if self.overloaded { 3 } else { 4 }) as usize];
                self.wait(ms);
            }
        }
    }

    fn wait(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms as i64;
    }

    fn open(&mut self) {
        if !self.net.accepting {
            return self.round();
        }
        // One that was away comes back, or another one comes.
        let present: Vec<_> = self.net.wires.values().filter(|wire| wire.open).map(|wire| wire.client).collect();
        let away: Vec<_> = (0..self.clients.len()).filter(|client| !present.contains(client)).collect();
        let many = self.clients.len() >= CLIENTS_MAX;
        if many && away.is_empty() {
            return self.round();
        }
        let client = if !away.is_empty() && (many || !self.random.one_in(4)) {
            away[self.random.below(away.len() as u64) as usize]
        } else {
            let (speaks, room) = (Speaks::random(&mut self.random), self.random.below(self.rooms.len() as u64));
            let (deflates, batches) = (self.random.one_in(2), !self.random.one_in(4));
            self.clients.push(Client::new(speaks, deflates, batches, room));
            self.clients.len() - 1
        };
        self.connect(client);
    }

    fn connect(&mut self, client: usize) {
        let peer = SocketAddr::from(([10, 0, 0, (client % 3) as u8], 1000));
        let Some(key) = self.engine.opened(self.now, 0, peer) else { return };
        let slow = !self.fast && self.random.one_in(3);
        let room = if slow { 64 + self.random.below(2000) } else { 65536 } as usize;
        // What was still on its way over the last one does not arrive.
        self.net.wires.retain(|_, wire| wire.client != client);
        let at_once = self.random.one_in(2);
        let up = self.clients[client].hello(at_once);
        let wire = Wire { client, up, down: VecDeque::new(), room, full: false, paused: false, slow, open: true };
        assert!(self.net.wires.insert(key, wire).is_none_or(|wire| !wire.open), "a key is given twice");
    }

    /// A client asks for something.
    fn speak(&mut self) {
        let Some(key) = self.any_wire() else { return };
        let wire = self.net.wires.get_mut(&key).expect("it was found");
        let client = &mut self.clients[wire.client];
        if !client.admitted || client.ended.is_some() {
            return;
        }
        if self.random.one_in(12)
            && let Some(ping) = client.web_ping()
        {
            wire.up.extend(ping);
            return;
        }
        let mut room = format!("room:{}", self.random.below(self.rooms.len() as u64));
        if let Some((left, _)) = client.watches.iter().find(|(_, watch)| !watch.live) {
            room.clone_from(left);
        }
        let bytes = if client.speaks.is_native() {
            let (body, asked) = match self.random.below(8) {
                0..5 => {
                    let asked = |asked: &Asked| matches!(asked, Asked::Subscribe(asked, _) if *asked == room);
                    if self.random.one_in(2)
                        && !client.open.values().any(asked)
                        && let Some(watch) = client.watches.get_mut(&room).filter(|watch| !watch.live)
                        && let Some(owned) = self.rooms.iter().find(|owned| owned.name == room)
                        && watch.position.log == format!("log{}", owned.log)
                        && watch.position.normal.max(watch.position.high) <= owned.offset
                    {
                        // It was on another connector meanwhile, which has told it all there is.
                        watch.elsewhere(owned.offset);
                    }
                    let known = client.watches.get(&room).filter(|watch| !watch.live);
                    let resume = known.map(|watch| watch.position.clone());
                    let history = self.random.below(12) as u32;
                    let subscribe = client::Subscribe { channel: room.clone(), resume: resume.clone(), history };
                    (client_frame::Body::Subscribe(subscribe), Asked::Subscribe(room, resume))
                }
                5 => {
                    let unsubscribe = client::Unsubscribe { channel: room.clone() };
                    (client_frame::Body::Unsubscribe(unsubscribe), Asked::Unsubscribe(room))
                }
                6 => (client_frame::Body::Ping(client::Ping {}), Asked::Other),
                _ => {
                    let publish = client::Publish { channel: room, r#type: "text".into(), ..Default::default() };
                    (client_frame::Body::Publish(publish), Asked::Other)
                }
            };
            client.request(body, asked)
        } else if matches!(client.speaks, Speaks::GoimWeb | Speaks::GoimTcp) {
            match self.random.below(3) {
                0 => client.packet(packet::operation::HEARTBEAT, b""),
                1 => client.packet(packet::operation::SEND, b"hello"),
                _ => client.packet(packet::operation::SUBSCRIBE, b"1000,1001"),
            }
        } else {
            client.packet(packet::operation::HEARTBEAT, HEARTBEAT)
        };
        wire.up.extend(bytes);
    }

    fn any_wire(&mut self) -> Option<Key> {
        let keys: Vec<_> = self.net.wires.iter().filter(|(_, wire)| wire.open).map(|(key, _)| *key).collect();
        (!keys.is_empty()).then(|| keys[self.random.below(keys.len() as u64) as usize])
    }

    /// Bytes flow, both ways, in pieces of any size.
    fn flow(&mut self) {
        let keys: Vec<_> = self.net.wires.keys().copied().collect();
        for key in keys {
            let part = match self.random.below(4) {
                0 => 1 + self.random.below(40) as usize,
                1 => 0,
                _ => usize::MAX,
            };
            self.flow_up(key, part);
            let wire = &self.net.wires[&key];
            if wire.slow && !self.random.one_in(6) {
                continue;
            }
            let part = if wire.slow { self.random.below(1500) as usize } else { part };
            self.flow_down(key, part);
        }
    }

    fn flow_up(&mut self, key: Key, most: usize) {
        let wire = self.net.wires.get_mut(&key).expect("it was found");
        if !wire.open || wire.paused || wire.up.is_empty() {
            return;
        }
        let part = most.min(wire.up.len());
        let mut bytes: Vec<u8> = wire.up.drain(..part).collect();
        if bytes.is_empty() {
            return;
        }
        let reading = self.engine.bytes(self.now, key, &mut bytes);
        self.net.wires.get_mut(&key).expect("it was found").paused = reading == Reading::Paused;
    }

    fn flow_down(&mut self, key: Key, most: usize) {
        let wire = self.net.wires.get_mut(&key).expect("it was found");
        let part = most.min(wire.down.len());
        let bytes: Vec<u8> = wire.down.drain(..part).collect();
        if !bytes.is_empty() {
            self.clients[wire.client].take(&bytes);
        }
        if wire.open && wire.full && part > 0 {
            wire.full = false;
            self.engine.writable(self.now, key);
        }
        if !wire.open && wire.down.is_empty() {
            self.net.wires.remove(&key);
        }
    }

    /// What waits for the core comes to it.
    fn pass(&mut self, most: usize) {
        for _ in 0..most {
            let Some(input) = self.queue.pop_front() else { break };
            let items = match &input {
                Input::Deliver(items) => &items[..],
                Input::Held(held) => &held.recent[..],
                _ => &[],
            };
            self.came.extend(items.iter().map(|item| item.message_number()));
            self.engine.input(self.now, input);
        }
    }

    /// Logic answers something, in any order.
    fn answer(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let at = self.random.below(self.asked.len() as u64) as usize;
        let (id, _, ask) = self.asked.swap_remove(at);
        let fails = self.publishing && self.random.one_in(25);
        let answer = match ask {
            _ if fails => {
                let codes = [ErrorCode::Unavailable, ErrorCode::Banned, ErrorCode::Unauthenticated, ErrorCode::Muted];
                Answer::Error(error(codes[self.random.below(4) as usize], "no"))
            }
            gate_request::Ask::Authenticate(ask) => Answer::Admitted(cluster::Admitted {
                uid: format!("u{}", ask.session),
                subscribe: vec!["room:*".into()],
                publish: vec!["room:*".into()],
                joined: ask.joins.into_iter().filter(|_| !self.random.one_in(4)).collect(),
                expires_at_ms: if self.random.one_in(20) { self.now.unix_ms + 20_000 } else { 0 },
                ..Default::default()
            }),
            gate_request::Ask::Join(_) => Answer::Joined(cluster::Joined {}),
            gate_request::Ask::Publish(_) => Answer::Published(cluster::Published { id: "1".into() }),
            gate_request::Ask::Displace(_) => unreachable!("a core displaces nobody"),
        };
        self.engine.input(self.now, Input::Reply { id, answer });
    }

    fn push(&mut self) {
        let message = client::Message {
            channel: "all".into(),
            r#type: "text".into(),
            payload: Some(client::message::Payload::Text("push".into())),
            ..Default::default()
        };
        let push = Arc::new(Push { message: message.encode_to_vec().into(), raw: bytes::Bytes::new(), operation: 0 });
        let input = match self.any_wire() {
            Some(key) if self.random.one_in(2) => Input::Push(vec![key], push),
            _ => Input::PushAll(push, [0, 50][self.random.below(2) as usize]),
        };
        self.engine.input(self.now, input);
    }

    /// A client goes away, or is cut off.
    fn leave(&mut self) {
        if let Some(key) = self.any_wire() {
            self.cut(key);
        }
    }

    fn cut(&mut self, key: Key) {
        if self.net.wires.remove(&key).is_some_and(|wire| wire.open) {
            self.engine.closed(self.now, key);
        }
    }

    fn command(&mut self) {
        let Some(key) = self.any_wire() else { return };
        let room = format!("room:{}", self.random.below(self.rooms.len() as u64));
        let names = record::Names { names: vec![room] };
        let act = match self.random.below(4) {
            0 => Act::Kick(record::Kick { code: ErrorCode::Kicked.into(), reason: "enough".into() }),
            1 => {
                self.clients[self.net.wires[&key].client].taken_out = true;
                let reason = if self.random.one_in(3) { ErrorCode::Banned } else { ErrorCode::None };
                Act::Unsubscribe(record::Leave { channels: names.names, reason: reason.into(), until_ms: 0 })
            }
            _ if self.clients[self.net.wires[&key].client].speaks.is_native() => Act::Subscribe(names),
            _ => return,
        };
        self.engine.input(self.now, Input::Command(vec![key], Arc::new(act)));
    }

    fn round(&mut self) {
        if self.overloaded {
            self.wait(ROUND_MS);
        }
        let next = self.engine.round(self.now, &mut self.net);
        assert!(next.wake_ms > self.now.mono_ms.saturating_sub(1));
        for key in std::mem::take(&mut self.net.breaking) {
            self.cut(key);
        }
        while let Some(ask) = self.engine.next_request() {
            match ask {
                CoreRequest::OriginRefused { origin, .. } => panic!("nobody sends an origin, but {origin}"),
                CoreRequest::Gate { id, session, ask } => self.asked.push((id, session, ask)),
                CoreRequest::Hold { channel, ticket } => self.hold(&channel, ticket),
                CoreRequest::Release { channel } => {
                    let owned = self.rooms.iter_mut().find(|owned| owned.name == channel).expect("a room of ours");
                    owned.held = false;
                }
                CoreRequest::Routes(changes) => {
                    for RouteChange { gone, by_key, name, .. } in changes.iter() {
                        *self.routes.entry(format!("{by_key} {name}")).or_default() += if gone { -1 } else { 1 };
                    }
                }
                CoreRequest::Told { .. } | CoreRequest::Counts(_) | CoreRequest::Sessions { .. } => {}
            }
        }
    }

    /// No session is past its limits.
    fn limits(&self) {
        let config = &self.config;
        for session in self.engine.sessions.iter() {
            // Beside its own there may be a half-sent frame's remainder.
            let most = config.private_bytes_max as usize + 2 * BATCH_BYTES_MAX;
            assert!(session.busy().out.bytes() <= most || session.is_closing(), "{} bytes", session.busy().out.bytes());
            assert!(session.busy().in_flight <= config.requests_in_flight);
            assert!(session.places.len() + session.busy().joining.len() <= config.rooms_per_session as usize + 3);
            assert!(session.busy().inbox.len() + session.busy().carry.len() <= 128 * 1024);
        }
        // What is a session's own goes out in its own turn: a pass over a room leaves it alone.
        for slot in self.engine.sessions.slots().iter().filter(|slot| !slot.queued && !slot.blocked) {
            let idle = |session: &Session| session.busy().out.is_empty() && session.busy().half.is_none();
            assert!(slot.session.as_deref().is_none_or(idle), "{:?} is left lying", slot.session);
        }
        for (_, room) in self.engine.rooms.iter() {
            for feed in &room.feeds {
                for slot in feed.backlog.keys().map(|slot| &self.engine.sessions[*slot]) {
                    assert!(slot.queued || slot.blocked, "nobody tells what was missed");
                }
            }
            for lane in room.feeds.iter().flat_map(|feed| &feed.lanes) {
                assert!(lane.ring.head() - lane.ring.tail() <= u64::from(config.ring_bytes_max) + 65536);
            }
        }
        self.nobody_is_forgotten();
    }

    /// What a member has not been sent goes out in a pass, in its own turn, or when it can be written to. Nothing else
    /// comes back to it.
    fn nobody_is_forgotten(&self) {
        for (index, room) in self.engine.rooms.iter() {
            let feeds = room.feeds.iter().flat_map(|feed| feed.lanes.iter().enumerate().map(move |lane| (feed, lane)));
            for (feed, (at, lane)) in feeds {
                let what = (index, &room.name, feed.encoding, at);
                if lane.turn > 0 {
                    assert_eq!(self.engine.schedule.turns(lane.turn), 1, "{what:?} is pass once a turn");
                    continue;
                }
                let head = lane.ring.head();
                for member in feed.members.iter().filter(|member| member.cursors[at] < head) {
                    let slot = &self.engine.sessions[member.slot];
                    assert!(slot.queued || slot.blocked, "{what:?}: {member:?} is forgotten, {head} is the head");
                }
                let waits = (feed.encoded..room.end()).find(|number| room.lane_of(*number) == Some(at));
                assert_eq!(waits, None, "{what:?}: not encoded, and never pass");
            }
        }
    }

    /// Nothing new; everything that is on its way arrives.
    fn settle(&mut self) {
        self.publishing = false;
        for room in 0..self.rooms.len() {
            if self.rooms[room].held {
                let owned = &mut self.rooms[room];
                let reasons = owned.untold();
                if reasons.total() > 0 {
                    self.queue.push_back(Input::Missed { channel: owned.name.clone(), reasons });
                }
            }
        }
        // 200 turns for what is under way, more only for who reads little at a time and pushes at a pace.
        for turn in 0..5000 {
            let done = self.engine.footprint().queued == 0 && self.net.wires.values().all(|wire| wire.down.is_empty());
            if turn > 200 && done {
                break;
            }
            self.pass(usize::MAX);
            while !self.asked.is_empty() {
                self.answer();
            }
            self.round();
            let keys: Vec<_> = self.net.wires.keys().copied().collect();
            for key in keys {
                self.flow_up(key, usize::MAX);
                self.flow_down(key, usize::MAX);
            }
            self.wait(20);
        }
        let footprint = self.engine.footprint();
        assert!(self.queue.is_empty() && self.asked.is_empty() && footprint.asked == 0, "{footprint:?}");
        let engine = &self.engine;
        assert_eq!(footprint.queued, 0, "left to do: {:?} {:?} {:?}", engine.sessions, engine.schedule, engine.to_all);
        // Everyone reads, so nobody is behind.
        for feed in engine.rooms.iter().flat_map(|(_, room)| &room.feeds) {
            let heads = [0, 1].map(|lane| feed.lanes[lane].ring.head());
            assert!(feed.members.iter().all(|member| member.cursors == heads), "{heads:?}: {:?}", feed.members);
            assert!(feed.backlog.is_empty(), "not told: {:?}", feed.backlog);
        }
    }

    /// What each got, with what there was.
    fn compare(&self) {
        let counters = self.engine.counters();
        for wire in self.net.wires.values().filter(|wire| wire.open) {
            let client = &self.clients[wire.client];
            if client.ended.is_some() || !client.admitted {
                continue;
            }
            assert!(client.open.is_empty(), "{:?} without a reply", client.open);
            assert!(client.sequences.is_empty(), "{:?} without an answer", client.sequences);
            for (channel, watch) in client.watches.iter().filter(|(_, watch)| watch.live) {
                let owned = self.rooms.iter().find(|owned| owned.name == *channel).expect("a room of ours");
                let (log, offsets) = (&watch.base.0, watch.base.1);
                let later = |it: &&Published| {
                    if it.log == *log {
                        it.offset > offsets[it.lane]
                    } else {
                        it.log[3..].parse::<u64>().ok() > log[3..].parse().ok()
                    }
                };
                let numbers: BTreeSet<u64> =
                    owned.all.iter().filter(later).map(|it| it.item.message_number()).collect();
                assert!(watch.got.is_subset(&numbers), "{channel}: more than there was");
                // Of what never came to the core it knows the number, not where and on which lane each was. What was lost
                // right behind where the client begins may be before that for the core; what was on the high lane, of
                // which the client has seen more, between.
                let never = |it: &&Published| it.log == *log && !self.came.contains(&it.item.message_number());
                let (low, high) = (offsets[0].min(offsets[1]), offsets[0].max(offsets[1]));
                let behind = owned.all.iter().filter(|it| it.log == *log && it.offset > low).take_while(never).count();
                let between = owned.all.iter().filter(never).filter(|it| it.offset > low && it.offset <= high).count();
                let (told, there) = (watch.got.len() as u64 + watch.gaps, numbers.len() as u64);
                let lost: Vec<_> = numbers.difference(&watch.got).collect();
                let least = if watch.inexact { 0 } else { there.saturating_sub(behind as u64) };
                assert!(
                    (least..=there + between as u64).contains(&told),
                    "{channel}: {} told, lost {lost:?}, {watch:?}",
                    watch.gaps
                );
                self.compare_reasons(owned, watch, &lost);
                if let Some((resume, told)) = &watch.unresumed
                    && resume.log == *log
                {
                    let between = resume.normal.max(resume.high) + 1..=offsets[1];
                    let lacks = owned.all.iter().filter(|it| it.log == *log && between.contains(&it.offset)).count();
                    assert!(*told <= lacks as u64, "{channel}: {told} told from {resume:?}, {lacks} lacked, {watch:?}");
                }
            }
            // Others are told nothing: where nothing was dropped they have everything since they came.
            if !client.speaks.is_native() && counters.skipped + counters.shed + counters.missed == 0 && self.lossless {
                let room = &self.rooms[client.room as usize];
                if let Some(first) = client.got.first() {
                    let since = |it: &&Published| it.item.message_number() >= *first;
                    for lane in 0..2 {
                        let there: Vec<_> = room.all.iter().filter(since).filter(|it| it.lane == lane).collect();
                        let missing: Vec<_> = there
                            .iter()
                            .map(|it| it.item.message_number())
                            .filter(|number| !client.got.contains(number))
                            .collect();
                        let in_room = self.engine.rooms.iter().any(|(_, it)| *it.name == *room.name);
                        assert!(missing.is_empty() || !in_room || client.taken_out, "{missing:?} did not come");
                    }
                }
            }
        }
    }

    /// What a client was told, with what became of the messages: only one that came to the core can be skipped or shed by
    /// it, and no more are capped or aged than the owner withheld.
    fn compare_reasons(&self, owned: &Owned, watch: &Watch, lost: &[&u64]) {
        let GapReasons { slow, shed, capped, aged, unknown } = watch.reasons;
        let told = watch.got.len() as u64 + slow + shed + capped + aged + unknown;
        assert_eq!(told, watch.got.len() as u64 + watch.gaps, "{watch:?}");
        let here = lost.iter().filter(|number| self.came.contains(number)).count() as u64;
        assert!(slow + shed <= here, "{}: {here} of {lost:?} came to the core, {watch:?}", owned.name);
        let (log, [high, normal]) = (&watch.base.0, watch.base.1);
        let mut withheld = GapReasons::default();
        // A gap is of both lanes: of what is high, it may tell some of before the client began.
        for it in owned.all.iter().filter(|it| it.log != *log || it.offset > high.min(normal)) {
            withheld += it.withheld;
        }
        assert!(capped <= withheld.capped && aged <= withheld.aged, "{}: {withheld:?}, {watch:?}", owned.name);
    }

    /// The node goes away: everyone is told, and gone in time.
    fn drain(&mut self) {
        self.engine.input(self.now, Input::Drain { within_ms: 5000 });
        for _ in 0..80 {
            self.wait(100);
            self.round();
            self.flow();
        }
        assert!(self.engine.done(), "{:?}", self.engine.footprint());
        assert!(!self.net.accepting);
        assert!(self.engine.opened(self.now, 0, SocketAddr::from(([10, 0, 0, 9], 1))).is_none());
    }

    /// Everyone leaves: all is given back.
    fn empty(&mut self) {
        let keys: Vec<_> = self.net.wires.keys().copied().collect();
        keys.into_iter().for_each(|key| self.cut(key));
        while !self.asked.is_empty() {
            self.answer();
        }
        for _ in 0..150 {
            self.pass(usize::MAX);
            self.round();
            // Beyond the longest deadline, goim's silence.
            self.wait(5000);
        }
        assert_eq!(self.engine.footprint(), crate::Footprint::default());
        assert!(self.routes.values().all(|count| *count == 0), "{:?}", self.routes);
        assert!(self.rooms.iter().all(|owned| !owned.held), "every hold is released");
    }
}
