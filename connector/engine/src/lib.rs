//! The protocol and policy of one core: a state machine that is told what happened and asked what to do. No socket, no
//! clock, no runtime: all of it runs in the simulation under a virtual clock.
//!
//! ```text
//!   bytes ─▶ reading ─▶ dialect ─▶ gate ─CoreRequest::Gate─▶ logic ─Input::Reply─▶ gate ─▶ answer
//!                                    └▶ rooms ─CoreRequest::Hold─▶ owner ─Input::Held─▶ member of a room's feed
//!   Input::Deliver ─▶ rooms ─▶ the room's log ─▶ encode ─▶ ring ─cursor─▶ round ─▶ Outlet::send
//! ```
//!
//! What it is not: it holds no channel by itself (the control thread knows owners and epochs), and it keeps no message
//! beyond a room's recent ones.
//!
//! Invariants, each held by the simulation (`simulation.rs`):
//! - In a room and lane a session gets messages in the order of their offsets; one that it does not get is told in a gap
//!   (native), with the reason, and counted: the reasons of a gap are as many as its messages.
//! - A half-sent frame is followed by nothing but its remainder (rule 23).
//! - Every request gets exactly one reply, or the session ends.
//! - What a session holds is bounded; when everyone has gone, everything is given back.
#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use proto::deflate::Inflater;

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
mod idle;
mod limits;
mod places;
mod pushes;
mod reading;
mod requests;
mod ring;
mod room;
mod room_table;
mod rooms;
mod round;
mod route_changes;
#[cfg(test)]
mod scenarios;
mod schedule;
mod sender;
mod session;
mod session_table;
mod shared;
#[cfg(test)]
mod simulation;
mod stall;
mod timing;
mod wheel;
mod windows;

use batch::Batch;
pub use compressed::Compressed;
pub use config::EngineConfig;
pub use counters::{Counters, Footprint, Sizes};
use encode::Encoder;
use ending::Endings;
use event::{CoreRequest, Input};
use limits::{Counted, Limits};
use pushes::PushesToAll;
use requests::Requests;
use room_table::Rooms;
pub use route_changes::{RouteChange, RouteChanges};
use schedule::Schedule;
use session::Session;
use session_table::Sessions;
use stall::Stall;
use timing::Timers;
use windows::Windows;

/// Entries of a table or queue of what is under way for which room is kept.
const KEPT: usize = 1024;

/// How long a connection over its address's limit may take to say what it speaks, milliseconds.
const OVER_MS: u64 = 1000;

/// One core's machine. See the module's opening.
pub struct Engine {
    config: Arc<EngineConfig>,
    core: u16,
    incarnation: Arc<str>,
    now: Now,
    stall: Stall,
    random: u64,
    encoder: Encoder,
    /// Lent to a decoder for one call.
    inflater: Inflater,
    sessions: Sessions,
    rooms: Rooms,
    schedule: Schedule,
    batch: Batch,
    to_all: PushesToAll,
    requests: Requests,
    limits: Limits,
    timers: Timers,
    endings: Endings,
    windows: Windows,
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
            stall: Stall::new(now.mono_ms),
            random: seed | 1,
            sessions: Sessions::default(),
            rooms: Rooms::default(),
            schedule: Schedule::default(),
            batch: Batch::default(),
            to_all: PushesToAll::default(),
            requests: Requests::default(),
            limits: Limits::default(),
            timers: Timers::new(now.mono_ms),
            endings: Endings::default(),
            windows: Windows::default(),
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
        Sizes {
            connections: self.sessions.connections(),
            sessions: self.sessions.admitted() as usize,
            rooms: self.rooms.len(),
        }
    }

    /// What is held now: all zeros when everyone has gone and the rooms have lingered.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint {
            connections: self.sessions.connections(),
            sessions: self.sessions.admitted() as usize,
            buffers: self.sessions.iter().map(Session::buffers).sum::<usize>() + self.windows.bytes(),
            rooms: self.rooms.len(),
            members: self.rooms.iter().map(|(_, room)| room.sessions()).sum(),
            room_bytes: self.rooms.iter().map(|(_, room)| room.footprint()).sum(),
            recent_bytes: self.rooms.kept(),
            asked: self.requests.pending(),
            queued: self.sessions.count_ready()
                + self.sessions.count_readable()
                + self.schedule.len()
                + self.to_all.len()
                + self.endings.len(),
            timers: self.timers.len(),
            windows: self.windows.reserved(),
            addresses: self.limits.addresses(),
            shared: self.sessions.grants.len() + self.sessions.accepts.len(),
        }
    }

    fn session(&mut self, key: Key) -> Option<&mut Session> {
        self.sessions.get_mut(key)
    }

    /// Gives back what a storm of connections has left in tables and queues that are nearly empty now.
    fn shrink(&mut self) {
        self.requests.shrink();
        self.sessions.shrink();
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
        if self.sessions.slot_of(key).is_some() {
            self.sessions.ready(key.slot);
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
    type Request = CoreRequest;

    fn opened(&mut self, now: Now, _listener: usize, peer: SocketAddr) -> Option<Key> {
        self.now = now;
        let address = peer.ip().to_canonical();
        let proxied = self.config.proxies.iter().any(|net| net.contains(address));
        let full = self.sessions.connections() >= self.config.sessions_max as usize;
        let counted = match self.endings.is_draining() || full {
            true => None,
            false if proxied => Some(Counted::No),
            false => self.connect(address),
        };
        let Some(counted) = counted else {
            self.counters.refused += 1;
            return None;
        };
        let deadline_ms = now.mono_ms + if counted == Counted::Over { OVER_MS } else { self.config.auth_deadline_ms };
        let key = self.sessions.open(|key| {
            let mut session = Session::new(key, address, now.mono_ms, deadline_ms);
            (session.counted, session.proxied) = (counted, proxied);
            session
        });
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
        self.sessions.writable(key);
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

    fn next_request(&mut self) -> Option<CoreRequest> {
        self.requests.next()
    }

    fn done(&self) -> bool {
        self.endings.is_draining() && self.sessions.connections() == 0 && self.endings.is_closed()
    }
}

impl Engine {
    /// Counts a connection of `address`; `None` if it is to be closed without a word.
    fn connect(&mut self, address: IpAddr) -> Option<Counted> {
        let counted = self.limits.connect(&self.config, address);
        self.counters.refused += u64::from(counted == Some(Counted::Over));
        counted
    }
}
