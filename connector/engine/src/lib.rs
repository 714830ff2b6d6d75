//! The protocol and policy of one core: a state machine that is told what happened and asked what to do. No socket, no
//! clock, no runtime: all of it runs in the simulation under a virtual clock.
//!
//! ```text
//!   bytes ─▶ reading ─▶ dialect ─▶ gate ─Ask::Gate─▶ logic ─Input::Reply─▶ gate ─▶ answer
//!                                    └▶ rooms ─Ask::Hold─▶ owner ─Input::Held─▶ member of a room's feed
//!   Input::Deliver ─▶ rooms ─▶ the room's log ─▶ encode ─▶ ring ─cursor─▶ round ─▶ Outlet::send
//! ```
//!
//! What it is not: it holds no channel by itself (the control thread knows owners and epochs), and it keeps no message
//! beyond a room's recent ones.
//!
//! Invariants, each held by the simulation (`simulation.rs`):
//! - In a room and lane a session gets messages in the order of their offsets; one that it does not get is told in a gap
//!   (native), with the reason, and counted: the reasons of a gap are as many as its messages.
//! - A half-sent frame is followed by nothing but its rest (rule 23).
//! - Every request gets exactly one reply, or the session ends.
//! - What a session holds is bounded; when everyone has gone, everything is given back.
#![forbid(unsafe_code)]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use proto::deflate::Inflater;
use rustc_hash::FxHashMap;
use slab::Slab;

use machine::{Key, Machine, Next, Now, Outlet, Reading};

mod ahead;
mod batch;
mod compressed;
pub mod config;
mod counters;
mod dialect;
mod encode;
mod encoding;
mod ending;
mod entry;
pub mod event;
pub mod fault;
mod gate;
mod identity;
mod limits;
mod line;
mod places;
mod pushes;
mod quiet;
mod reading;
mod ring;
mod room;
mod rooms;
mod round;
mod route_changes;
#[cfg(test)]
mod scenarios;
mod schedule;
mod session;
mod shared;
#[cfg(test)]
mod simulation;
mod stall;
mod timing;
mod wheel;

pub use compressed::Compressed;
pub use config::EngineConfig;
pub use counters::{Counters, Footprint, Sizes};
use encode::Encoder;
use event::{Ask, Input};
use identity::Grant;
use limits::Addresses;
use room::Room;
pub use route_changes::{RouteChange, RouteChanges};
use session::{Counted, Session, Slot};
use shared::Shared;
use wheel::Wheel;

/// Entries of a table or queue of what is under way for which room is kept.
const KEPT: usize = 1024;

/// Connections of a core that are over their address's limit and are told so. Over it: closed without a word.
const OVER_MAX: usize = 256;
/// How long such a connection may take to say what it speaks, milliseconds.
const OVER_MS: u64 = 1000;

/// What the wheel has looked at.
#[derive(Debug, Clone, Copy)]
enum Timer {
    /// Who has this slot: an entry of who had it before is looked at in vain.
    Session(u32),
    Room(u32),
}

/// One core's machine. See the module's opening.
pub struct Engine {
    config: Arc<EngineConfig>,
    core: u16,
    incarnation: Arc<str>,
    now: Now,
    stall: stall::Stall,
    slots: Vec<Slot>,
    /// Slots without a session: small numbers are used again first.
    free: BinaryHeap<Reverse<u32>>,
    /// Those that logic has admitted.
    admitted: u64,
    rooms: Slab<Room>,
    names: FxHashMap<Arc<str>, usize>,
    encoder: Encoder,
    /// Lent to a decoder for one call.
    inflater: Inflater,
    schedule: schedule::Schedule,
    batch: batch::Batch,
    /// Sessions that have something of their own to send or to finish.
    ready: VecDeque<Key>,
    /// Sessions that may be read from again.
    readable: VecDeque<Key>,
    /// They stay behind, and are closed with the next round.
    hopeless: Vec<Key>,
    /// Connections to be closed in the next round; the sessions are gone.
    dead: Vec<Key>,
    alls: VecDeque<pushes::All>,
    wheel: Wheel<Timer>,
    asked: FxHashMap<u64, gate::Asked>,
    next_ask: u64,
    asks: VecDeque<Ask>,
    changes: RouteChanges,
    /// Rooms whose number of sessions is to be told.
    changed: Vec<usize>,
    /// Rooms that may have memory to give back.
    stirred: Vec<usize>,
    /// What rooms keep, and which are quiet.
    quiet: quiet::Quiet,
    addresses: Addresses,
    /// Connections over their address's limit that are about to be told so.
    over: usize,
    grants: Shared<Grant>,
    /// What goim's sessions accept.
    accepts: Shared<[i32]>,
    drain: Option<ending::Drain>,
    /// When the once-a-second work is due, milliseconds.
    second_ms: u64,
    /// When addresses are looked through, milliseconds.
    sweep_ms: u64,
    /// The number of sessions that was last told.
    told_sessions: Option<u64>,
    random: u64,
    /// Pages of unlisted origins since the last one was logged, and when the next one may be, milliseconds.
    origins_refused: u64,
    origins_logged_ms: u64,
    counters: Counters,
}

impl Engine {
    /// The machine of core number `core` of the connector's start `incarnation`.
    #[must_use]
    pub fn new(config: Arc<EngineConfig>, core: u16, incarnation: Arc<str>, now: Now) -> Self {
        // Jitter needs no secret: it must differ between nodes and cores only.
        let seed = incarnation.bytes().fold(0xcbf2_9ce4_8422_2325_u64 ^ u64::from(core), |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        Self {
            encoder: Encoder::new(config.operations.clone(), config.compressed.clone(), config.planted()),
            inflater: Inflater::default(),
            config,
            core,
            incarnation,
            now,
            stall: stall::Stall::new(now.mono_ms),
            slots: Vec::new(),
            free: BinaryHeap::new(),
            admitted: 0,
            rooms: Slab::new(),
            names: FxHashMap::default(),
            schedule: schedule::Schedule::default(),
            batch: batch::Batch::default(),
            ready: VecDeque::new(),
            readable: VecDeque::new(),
            hopeless: Vec::new(),
            dead: Vec::new(),
            alls: VecDeque::new(),
            wheel: Wheel::new(now.mono_ms),
            asked: FxHashMap::default(),
            next_ask: 1,
            asks: VecDeque::new(),
            changes: RouteChanges::default(),
            changed: Vec::new(),
            stirred: Vec::new(),
            quiet: quiet::Quiet::default(),
            addresses: Addresses::default(),
            over: 0,
            grants: Shared::default(),
            accepts: Shared::default(),
            drain: None,
            second_ms: now.mono_ms + timing::SECOND_MS,
            sweep_ms: now.mono_ms,
            told_sessions: None,
            random: seed | 1,
            origins_refused: 0,
            origins_logged_ms: 0,
            counters: Counters::default(),
        }
    }

    /// What happened since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How much there is now; unlike [`Engine::footprint`] it looks at nobody.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let connections = self.slots.len() - self.free.len();
        Sizes { connections, sessions: self.admitted as usize, rooms: self.rooms.len() }
    }

    /// What is held now: all zeros when everyone has gone and the rooms have lingered.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let sessions = self.slots.iter().filter_map(|slot| slot.session.as_deref());
        Footprint {
            connections: self.slots.len() - self.free.len(),
            sessions: self.admitted as usize,
            buffers: sessions.clone().map(Session::buffers).sum(),
            rooms: self.rooms.len(),
            members: self.rooms.iter().map(|(_, room)| room.sessions()).sum(),
            room_bytes: self.rooms.iter().map(|(_, room)| room.footprint()).sum(),
            recent_bytes: self.quiet.kept(),
            asked: self.asked.len(),
            queued: self.ready.len()
                + self.readable.len()
                + self.hopeless.len()
                + self.schedule.len()
                + self.dead.len()
                + self.alls.len(),
            timers: self.wheel.len(),
            addresses: self.addresses.len(),
            shared: self.grants.len() + self.accepts.len(),
        }
    }

    fn session(&mut self, key: Key) -> Option<&mut Session> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.session.as_deref_mut().filter(|session| session.key == key)
    }

    /// Gives back what a storm of connections has left in tables and queues that are nearly empty now.
    fn shrink(&mut self) {
        if self.asked.capacity() > KEPT && self.asked.len() < self.asked.capacity() / 4 {
            self.asked.shrink_to(KEPT);
        }
        for queue in [&mut self.ready, &mut self.readable] {
            if queue.capacity() > KEPT && queue.len() < queue.capacity() / 4 {
                queue.shrink_to(KEPT);
            }
        }
        if self.asks.capacity() > KEPT && self.asks.len() < self.asks.capacity() / 4 {
            self.asks.shrink_to(KEPT);
        }
    }

    /// Gives back what a session holds for what is under way, if nothing is.
    fn settle(&mut self, key: Key) {
        let now_ms = self.now.mono_ms;
        if let Some(session) = self.session(key) {
            session.settle(now_ms);
        }
    }

    /// Has the next round look at what `key` has of its own to send. A blocked one comes up by itself.
    fn ready(&mut self, key: Key) {
        if let Some(slot) = self.slots.get_mut(key.slot as usize)
            && slot.generation == key.generation
        {
            slot.line_up(key.slot, &mut self.ready);
        }
    }

    /// xorshift64: uniform below `bound`.
    fn random(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }
}

impl Machine for Engine {
    type Input = Input;
    type Ask = Ask;

    fn opened(&mut self, now: Now, _listener: usize, peer: SocketAddr) -> Option<Key> {
        self.now = now;
        let address = peer.ip().to_canonical();
        let proxied = self.config.proxies.iter().any(|net| net.contains(address));
        let full = self.slots.len() - self.free.len() >= self.config.sessions_max as usize;
        let counted = match self.drain.is_some() || full {
            true => None,
            false if proxied => Some(Counted::No),
            false => self.connect(address),
        };
        let Some(counted) = counted else {
            self.counters.refused += 1;
            return None;
        };
        let slot = match self.free.pop() {
            Some(Reverse(slot)) => slot,
            None => {
                self.slots.push(Slot::default());
                (self.slots.len() - 1) as u32
            }
        };
        let entry = &mut self.slots[slot as usize];
        let key = Key { slot, generation: entry.generation };
        let deadline_ms = now.mono_ms + if counted == Counted::Over { OVER_MS } else { self.config.auth_deadline_ms };
        let mut session = Box::new(Session::new(key, address, now.mono_ms, deadline_ms));
        (session.counted, session.proxied) = (counted, proxied);
        entry.session = Some(session);
        self.counters.accepted += 1;
        self.arm(key, deadline_ms);
        Some(key)
    }

    fn bytes(&mut self, now: Now, key: Key, bytes: &mut [u8]) -> Reading {
        self.now = now;
        self.take(key, bytes)
    }

    fn writable(&mut self, now: Now, key: Key) {
        self.now = now;
        // It stays blocked until its turn: a walk must not get ahead of a half-sent frame.
        if self.session(key).is_some() {
            let slot = &mut self.slots[key.slot as usize];
            slot.woken = true;
            if !std::mem::replace(&mut slot.queued, true) {
                self.ready.push_back(key);
            }
        }
    }

    fn closed(&mut self, now: Now, key: Key) {
        self.now = now;
        if self.session(key).is_some() {
            self.counters.left += 1;
            self.forget(key);
        }
    }

    fn input(&mut self, now: Now, input: Input) {
        self.now = now;
        match input {
            Input::Deliver(items) => self.deliver(&items),
            Input::Held(held) => self.held(held),
            Input::Missed { channel, reasons } => self.missed(&channel, reasons),
            Input::Reply { id, answer } => self.answered(id, answer),
            Input::Push(keys, push) => self.push(&keys, push),
            Input::PushAll(push, per_s) => self.push_all(push, per_s),
            Input::Command(keys, act) => self.command(&keys, &act),
            Input::Online(numbers) => self.online(&numbers),
            Input::Routes { from } => self.tell_routes(from),
            Input::Drain { within_ms } => self.start_drain(within_ms),
        }
    }

    fn round(&mut self, now: Now, outlet: &mut impl Outlet) -> Next {
        self.now = now;
        self.stall.round(now.mono_ms);
        self.tick();
        let next = self.serve(outlet);
        self.stall.expect(now.mono_ms, next);
        next
    }

    fn ask(&mut self) -> Option<Ask> {
        if !self.changes.is_empty() {
            return Some(Ask::Routes(std::mem::take(&mut self.changes)));
        }
        self.asks.pop_front()
    }

    fn done(&self) -> bool {
        self.drain.is_some() && self.slots.len() == self.free.len() && self.dead.is_empty()
    }
}

impl Engine {
    /// Whether `address` is one whose connections are counted.
    fn limits(&self, address: IpAddr) -> bool {
        self.config.limit_loopback || !address.is_loopback()
    }

    /// Counts a connection of `address`; `None` if it is to be closed without a word.
    fn connect(&mut self, address: IpAddr) -> Option<Counted> {
        if !self.limits(address) {
            return Some(Counted::No);
        }
        if self.addresses.connect(address, self.config.connections_per_address) {
            return Some(Counted::Yes);
        }
        if self.over >= OVER_MAX {
            return None;
        }
        self.over += 1;
        self.counters.refused += 1;
        Some(Counted::Over)
    }
}
