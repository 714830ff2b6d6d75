//! The sessions of `idle` and `storm` that one worker process ([`crate::workers`]) holds: one thread, one epoll, as many as
//! a process may have descriptors. Its parent is [`crate::sessions::fleet`]; what they say to each other is [`crate::sessions::order`].
//!
//! ```text
//!   order ─▶ queue, due ─▶ begin ─▶ connecting ─▶ entering ─▶ in its room ─▶ heartbeats in turn ─▶ leave
//!              ▲                          └─ failed: a wait ─┘      └─ closed by the server: told
//!              └──────────────────────────────────┘
//! ```
//!
//! A session in its room is a descriptor and some flags, 32 bytes: it reads into the worker's buffer through the worker's
//! codec, and has a codec of its own only on its way in and while a frame is incomplete. There is no timer for a session:
//! heartbeats pass around the table at the pace that gives each session its turn within its period.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::admission::OTHER_FILES;
use crate::clock::now_ns;
use crate::dial;
use crate::environment::open_files;
use crate::lines::{Lines, write_line};
use crate::sessions::order::{Credential, Order, SessionsPlan, WorkerStatus, marker};
use crate::tally::{microseconds, record};
use crate::wire::{Event, REFUSED, Viewer, Wire};

/// What all sessions of a worker read into, bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Events that are taken at once.
const EVENTS_MAX: usize = 512;
/// Sessions that begin, and heartbeats that are sent, before others have their turn.
const TURN_MAX: usize = 64;
const BEATS_A_TURN: u64 = 64;
/// How often it is looked what is due, milliseconds.
const LOOK_MS: u64 = 20;
/// How often the parent is told, nanoseconds.
const TELL_NS: u64 = 250_000_000;
/// How long a session may be on its way in, nanoseconds.
const ENTERING_NS: u64 = 20_000_000_000;
/// Tries of a session; then it is given up.
const TRIES_MAX: u8 = 8;
/// The event of standard input.
const ORDERS: u64 = u64::MAX;
/// How long a token is good, seconds: longer than any run.
const TOKEN_SECONDS: u64 = 24 * 60 * 60;

/// One session. An idle one owns nothing else.
#[derive(Default)]
struct Session {
    socket: Option<OwnedFd>,
    /// Counts its connections: an event of an older one is stale.
    generation: u32,
    /// On its way in, or in the middle of a frame.
    unfinished: Option<Box<Unfinished>>,
    tries: u8,
    joined: bool,
    /// A heartbeat is not answered yet.
    waiting: bool,
    reached: bool,
}

const _: () = assert!(size_of::<Session>() <= 32);

struct Unfinished {
    wire: Wire,
    /// Since when the session wants to be in its room.
    since_ns: u64,
    /// The connection can be written to when it stands, or when it has room again.
    blocked: bool,
}

pub(crate) struct Crowd {
    plan: SessionsPlan,
    epoll: OwnedFd,
    sessions: Vec<Session>,
    /// The codec of every session between two frames.
    rest: Wire,
    buffer: Vec<u8>,
    marker: String,
    /// Not begun, and at most so many on their way: the first order's.
    queue: VecDeque<u32>,
    at_once: u32,
    /// On their way in, those that began first in front: slot, generation, when. What has arrived is taken out late.
    entering: VecDeque<(u32, u32, u64)>,
    under_way: u32,
    /// When to begin (nanoseconds), which slot, and since when it waits.
    due: BinaryHeap<Reverse<(u64, u32, u64)>>,
    told: WorkerStatus,
    latency: Histogram<u64>,
    told_ns: u64,
    /// Whose heartbeat is next, and how many were due since `beating_ns`.
    next_beat: usize,
    beats: u64,
    beating_ns: u64,
    /// 0: nobody was told yet how often.
    beat_every_ns: u64,
    /// Orders.
    lines: Lines,
    over: bool,
    signing: Option<jsonwebtoken::EncodingKey>,
}

impl Crowd {
    /// `lines` has what came after the plan.
    ///
    /// # Errors
    /// The machine has too few descriptors, or no epoll, to give.
    pub(crate) fn new(plan: SessionsPlan, lines: Lines) -> io::Result<Self> {
        open_files(u64::from(plan.sessions) + OTHER_FILES)
            .map_err(|limit| io::Error::other(format!("only {limit} open files")))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut sessions = Vec::new();
        sessions.resize_with(plan.sessions as usize, Session::default);
        Ok(Self {
            epoll,
            sessions,
            rest: Wire::at_rest(plan.dialect, plan.tcp),
            buffer: vec![0; BUFFER_BYTES],
            marker: marker(plan.run),
            queue: VecDeque::new(),
            at_once: 0,
            entering: VecDeque::new(),
            under_way: 0,
            due: BinaryHeap::new(),
            told: WorkerStatus::default(),
            latency: microseconds(),
            told_ns: 0,
            next_beat: 0,
            beats: 0,
            beating_ns: 0,
            beat_every_ns: 0,
            lines,
            over: false,
            signing: match &plan.credential {
                Credential::Key { secret, .. } => Some(jsonwebtoken::EncodingKey::from_secret(secret.as_bytes())),
                Credential::Guest | Credential::Token(_) => None,
            },
            plan,
        })
    }

    /// Does what `orders` say until they end.
    ///
    /// # Errors
    /// The parent is gone, or says what is no order. What befalls sessions is told.
    pub(crate) fn run(mut self, orders: impl AsFd, mut told: impl Write) -> io::Result<()> {
        epoll::add(&self.epoll, &orders, epoll::EventData::new_u64(ORDERS), epoll::EventFlags::IN)?;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        self.orders()?;
        while !self.over {
            let busy = !self.queue.is_empty() && self.under_way < self.at_once;
            let wait = Duration::from_millis(if busy { 0 } else { LOOK_MS });
            let wait = Timespec::try_from(wait).expect("some milliseconds");
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    ORDERS => {
                        // Without a parent there is nothing left to do.
                        self.over |= self.lines.read(&orders)? == 0;
                        self.orders()?;
                    }
                    data => self.happened(data as u32, (data >> 32) as u32, event.flags),
                }
            }
            self.begin_some();
            self.expire();
            self.beat();
            self.tell(&mut told)?;
        }
        Ok(())
    }

    fn orders(&mut self) -> io::Result<()> {
        while let Some(order) = self.lines.next()? {
            self.told.orders += 1;
            self.told.done_ns = None;
            self.told.given_up = 0;
            self.told.entering_us.clear();
            self.latency.reset();
            self.sessions.iter_mut().for_each(|session| session.tries = 0);
            match order {
                Order::Enter { at_once } => {
                    self.at_once = at_once;
                    let missing = |slot: &u32| self.sessions[*slot as usize].socket.is_none();
                    self.queue = (0..self.plan.sessions).filter(missing).collect();
                }
                Order::Leave => self.leave(),
                Order::Return => {
                    let now = now_ns();
                    for slot in 0..self.plan.sessions {
                        if self.sessions[slot as usize].socket.is_none() {
                            let wait_ms = self.plan.backoff.wait_ms(0, rand::random());
                            let at_ns = now + wait_ms * 1_000_000;
                            self.due.push(Reverse((at_ns, slot, at_ns)));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.queue.clear();
        self.due.clear();
        self.entering.clear();
        (self.under_way, self.told.joined, self.told.reached) = (0, 0, 0);
        for session in &mut self.sessions {
            *session = Session { generation: session.generation, ..Session::default() };
        }
    }

    /// Begins what is due and what there is room for.
    fn begin_some(&mut self) {
        let mut turn = TURN_MAX;
        while turn > 0
            && self.under_way < self.at_once
            && let Some(slot) = self.queue.pop_front()
        {
            turn -= 1;
            self.begin(slot, now_ns());
        }
        let now = now_ns();
        while turn > 0
            && let Some(&Reverse((at_ns, slot, since_ns))) = self.due.peek()
            && at_ns <= now
        {
            turn -= 1;
            self.due.pop();
            self.begin(slot, since_ns);
        }
    }

    fn begin(&mut self, slot: u32, since_ns: u64) {
        let number = self.plan.first + slot;
        let server = self.plan.connect[number as usize % self.plan.connect.len()];
        let wire = Wire::new(&Viewer {
            dialect: self.plan.dialect,
            tcp: self.plan.tcp,
            compress: false,
            host: &self.plan.host,
            rooms: &self.plan.rooms_of(number),
            token: &self.token(number),
        });
        let session = &mut self.sessions[slot as usize];
        session.generation = session.generation.wrapping_add(1);
        session.unfinished = Some(Box::new(Unfinished { wire, since_ns, blocked: false }));
        self.entering.push_back((slot, session.generation, now_ns()));
        self.under_way += 1;
        match dial::begin(server, number) {
            Ok(socket) => {
                session.socket = Some(socket.into());
                // On loopback the connection often stands already.
                if let Err(reason) = self.flush(slot, true) {
                    self.failed(slot, reason);
                }
            }
            Err(error) => self.failed(slot, error.to_string()),
        }
    }

    fn token(&self, number: u32) -> String {
        let (kid, signing) = match (&self.plan.credential, &self.signing) {
            (Credential::Key { kid, .. }, Some(signing)) => (kid, signing),
            (Credential::Token(token), _) => return token.clone(),
            _ => return String::new(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = serde_json::json!({
            "sub": format!("bench-{:08x}-{number}", self.plan.run), "exp": now + TOKEN_SECONDS,
        });
        let header = jsonwebtoken::Header { kid: Some(kid.clone()), ..jsonwebtoken::Header::default() };
        jsonwebtoken::encode(&header, &claims, signing).unwrap_or_default()
    }

    /// epoll has told something of a connection.
    fn happened(&mut self, slot: u32, generation: u32, flags: epoll::EventFlags) {
        let Some(session) = self.sessions.get(slot as usize) else { return };
        if session.generation != generation || session.socket.is_none() {
            return;
        }
        let can_write = flags.contains(epoll::EventFlags::OUT);
        let done = if can_write { self.flush(slot, false) } else { Ok(()) };
        let broken = epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        let done = done.and_then(|()| if flags.intersects(broken) { self.read(slot) } else { Ok(()) });
        if let Err(reason) = done {
            self.failed(slot, reason);
        }
    }

    /// Takes what has come, and answers it.
    fn read(&mut self, slot: u32) -> Result<(), String> {
        let session = &mut self.sessions[slot as usize];
        let Some(socket) = &session.socket else { return Ok(()) };
        let read = match recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err("connection closed".into()),
            Ok((read, _)) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let (mut ready, mut answered, mut reached, mut ended) = (false, 0, false, None);
        let wire = session.unfinished.as_deref_mut().map_or(&mut self.rest, |unfinished| &mut unfinished.wire);
        let marker = self.marker.as_bytes();
        let told = wire.read(&mut self.buffer[..read], &mut |event| match event {
            Event::Ready => ready = true,
            Event::Pong(_) => answered += 1,
            Event::Payload(payload) => reached |= payload.windows(marker.len()).any(|window| window == marker),
            Event::Gap(_) => {}
            Event::Ended(reason) => drop(ended.get_or_insert(reason)),
        });
        let heartbeat_s = wire.heartbeat_s;
        told?;
        if let Some(reason) = ended {
            return Err(reason);
        }
        if ready && !session.joined {
            session.joined = true;
            self.told.joined += 1;
            self.under_way -= 1;
            let now = now_ns();
            let since_ns = session.unfinished.as_ref().map_or(now, |unfinished| unfinished.since_ns);
            record(&mut self.latency, now.saturating_sub(since_ns) / 1000);
            let every_ms = self.plan.heartbeat_ms.unwrap_or(heartbeat_s * 750);
            if self.beat_every_ns == 0 {
                (self.beat_every_ns, self.beating_ns) = (every_ms.max(1) * 1_000_000, now);
            }
        }
        if answered > 0 && std::mem::take(&mut session.waiting) {
            self.told.answered += 1;
        }
        if reached && !std::mem::replace(&mut session.reached, true) {
            self.told.reached += 1;
            self.told.reached_ns = now_ns();
        }
        self.flush(slot, false)
    }

    /// Sends what is to be sent, as far as it goes. `fresh`: epoll does not know the connection yet.
    fn flush(&mut self, slot: u32, fresh: bool) -> Result<(), String> {
        let session = &mut self.sessions[slot as usize];
        let Some(socket) = &session.socket else { return Ok(()) };
        let wire = session.unfinished.as_deref_mut().map_or(&mut self.rest, |unfinished| &mut unfinished.wire);
        while !wire.out.is_empty() {
            match send(socket, &wire.out, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(wire.out.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        let blocked = !wire.out.is_empty();
        if session.unfinished.is_none() && !self.rest.is_at_rest() {
            let wire = std::mem::replace(&mut self.rest, Wire::at_rest(self.plan.dialect, self.plan.tcp));
            session.unfinished = Some(Box::new(Unfinished { wire, since_ns: 0, blocked: false }));
        }
        let was_blocked =
            session.unfinished.as_mut().is_some_and(|unfinished| std::mem::replace(&mut unfinished.blocked, blocked));
        if fresh || blocked != was_blocked {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, blocked);
            let data = epoll::EventData::new_u64(u64::from(session.generation) << 32 | u64::from(slot));
            let told = if fresh {
                epoll::add(&self.epoll, socket, data, flags)
            } else {
                epoll::modify(&self.epoll, socket, data, flags)
            };
            told.map_err(|error| error.to_string())?;
        }
        if session.joined && session.unfinished.as_ref().is_some_and(|unfinished| unfinished.wire.is_at_rest()) {
            session.unfinished = None;
        }
        Ok(())
    }

    /// A session is not to be had, or no longer.
    fn failed(&mut self, slot: u32, reason: String) {
        let hopeless = reason.starts_with(REFUSED);
        *self.told.reasons.entry(reason).or_default() += 1;
        let session = &mut self.sessions[slot as usize];
        session.socket = None;
        let since_ns = session.unfinished.take().map_or(0, |unfinished| unfinished.since_ns);
        session.waiting = false;
        if std::mem::take(&mut session.joined) {
            self.told.closed += 1;
            self.told.joined -= 1;
            return;
        }
        self.under_way -= 1;
        session.tries += 1;
        if hopeless || session.tries >= TRIES_MAX {
            self.told.given_up += 1;
        } else {
            let wait_ms = self.plan.backoff.wait_ms(session.tries.into(), rand::random());
            self.due.push(Reverse((now_ns() + wait_ms * 1_000_000, slot, since_ns)));
        }
    }

    /// Gives up who is on its way for too long.
    fn expire(&mut self) {
        let now = now_ns();
        while let Some(&(slot, generation, began_ns)) = self.entering.front() {
            let session = &self.sessions[slot as usize];
            let on_its_way = session.generation == generation && session.socket.is_some() && !session.joined;
            if on_its_way && now.saturating_sub(began_ns) < ENTERING_NS {
                return;
            }
            self.entering.pop_front();
            if on_its_way {
                self.failed(slot, format!("not in its room after {} s", ENTERING_NS / 1_000_000_000));
            }
        }
    }

    /// Sends the heartbeats that are due.
    fn beat(&mut self) {
        if self.beat_every_ns == 0 {
            return;
        }
        let passed_ns = u128::from(now_ns().saturating_sub(self.beating_ns));
        let due = (passed_ns * self.sessions.len() as u128 / u128::from(self.beat_every_ns)) as u64;
        let turn = due.saturating_sub(self.beats).min(BEATS_A_TURN);
        for _ in 0..turn {
            self.beats += 1;
            let slot = self.next_beat;
            self.next_beat = (slot + 1) % self.sessions.len();
            let session = &mut self.sessions[slot];
            if !session.joined {
                continue;
            }
            self.told.heartbeats += 1;
            self.told.unanswered += u64::from(std::mem::replace(&mut session.waiting, true));
            session.unfinished.as_deref_mut().map_or(&mut self.rest, |unfinished| &mut unfinished.wire).heartbeat();
            if let Err(reason) = self.flush(slot as u32, false) {
                self.failed(slot as u32, reason);
            }
        }
    }

    /// Tells the parent, now and then and when an order is done.
    fn tell(&mut self, out: &mut impl Write) -> io::Result<()> {
        let now = now_ns();
        let at_rest = self.queue.is_empty() && self.due.is_empty() && self.under_way == 0;
        let done = self.told.orders > 0 && self.told.done_ns.is_none() && at_rest;
        if done {
            self.told.done_ns = Some(now);
            let values = self.latency.iter_recorded();
            self.told.entering_us =
                values.map(|value| (value.value_iterated_to(), value.count_since_last_iteration())).collect();
        }
        if !done && now.saturating_sub(self.told_ns) < TELL_NS {
            return Ok(());
        }
        self.told_ns = now;
        write_line(out, &self.told)?;
        self.told.entering_us.clear();
        Ok(())
    }
}
