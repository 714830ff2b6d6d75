//! A worker of `fanout`: one thread, the sockets of its viewers on one [`Poller`], and one buffer that all checked ones
//! read into. Its parent is [`crate::fanout::audience`].
//!
//! ```text
//!   connecting ─▶ entering: every byte is read by its Wire ─▶ in its room ┬▶ checked: message by message
//!                                                                         └▶ not: its bytes are counted and thrown away
//! ```
//!
//! Everyone's heartbeats go out; one that is not checked owns no codec and no buffer.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use crate::admission::OTHER_FILES;
use crate::clock::{now_ns, process_cpu};
use crate::dial;
use crate::dialect::Dialect;
use crate::environment::open_files;
use crate::lines::{Lines, write_line};
use crate::reading::{Drain, Poller, Ready};
use crate::schedule::Schedule;
use crate::tally::{Account, Ledger, Seat, Tally, spot};
use crate::wire::{Event, Viewer, Wire};

/// The buffer that all checked viewers of a thread read into, bytes: a round of a fast room.
const BUFFER_BYTES: usize = 256 * 1024;
/// How long one may be on its way in.
pub(crate) const ENTERING: Duration = Duration::from_secs(20);
/// Longest wait for something to come.
const PATIENCE: Duration = Duration::from_millis(20);
/// How often the parent is told.
const TELL: Duration = Duration::from_millis(50);
/// The token of the orders.
const ORDERS: u64 = u64::MAX;
/// Heartbeats go out in so many groups, one after the other: not everyone's at once.
const BEATS: usize = 64;

/// What all viewers have in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cast {
    pub(crate) schedule: Schedule,
    /// One session in so many is checked message by message.
    pub(crate) one_in: u32,
    pub(crate) dialect: Dialect,
    pub(crate) tcp: bool,
    /// They offer permessage-deflate.
    pub(crate) compress: bool,
    /// Where the servers are: as given, what the upgrade names; and what that is.
    pub(crate) servers: Vec<(String, SocketAddr)>,
    pub(crate) token: String,
}

impl Cast {
    /// Who comes into `room` by a server.
    pub(crate) fn wire(&self, room: u32, server: u32) -> Wire {
        Wire::new(&Viewer {
            dialect: self.dialect,
            tcp: self.tcp,
            compress: self.compress,
            host: &self.servers[server as usize].0,
            rooms: &[self.schedule.room_name(room)],
            token: &self.token,
        })
    }
}

/// A worker's part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ViewersPlan {
    pub(crate) cast: Cast,
    /// Its viewers are those whose numbers leave this when they are divided by the number of workers.
    pub(crate) worker: u32,
    pub(crate) workers: u32,
    /// Its viewers that are on their way in at the same time.
    pub(crate) at_once: u32,
    /// It is a process of its own, whose processor time nobody else counts.
    pub(crate) is_process: bool,
}

impl ViewersPlan {
    fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        (self.worker..self.cast.schedule.sessions()).step_by(self.workers as usize)
    }
}

/// What a worker is told, in this order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Everything is published: no more heartbeats, so that at the end each has its answer.
    Rest,
    /// It is over. A bit for each message: whether it was accepted.
    End { accepted: Vec<u64> },
}

/// How a worker stands.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Viewers that are in their room.
    pub(crate) entered: u64,
    /// New messages that have come to checked viewers.
    pub(crate) delivered: u64,
    /// Bytes that have come to all.
    pub(crate) bytes: u64,
    /// Sessions that have ended too early.
    pub(crate) closed: u64,
    /// Why not all could be let in.
    pub(crate) failure: Option<String>,
    /// Processor time of a process of its own so far.
    pub(crate) cpu: Duration,
    /// After the last order.
    pub(crate) account: Option<Account>,
}

/// How a viewer takes what comes.
enum Watch {
    /// It is on its way in.
    Entering(Box<Wire>),
    /// Message by message.
    Checked(Box<(Wire, Ledger)>),
    Counted,
    /// The server ended it.
    Ended,
}

struct Session {
    socket: TcpStream,
    number: u32,
    room: u32,
    server: u32,
    watch: Watch,
    /// Since it was in its room.
    bytes: u64,
    /// Heartbeats that were sent since.
    beats: u32,
    /// Not taken by the kernel yet.
    out: Vec<u8>,
}

/// Does what `orders` say, until they end or all is told.
///
/// # Errors
/// Where there is no poller to be had, or the parent is gone. That viewers cannot enter is told.
pub(crate) fn run(plan: ViewersPlan, mut lines: Lines, orders: impl AsFd, mut told: impl Write) -> io::Result<()> {
    let mut numbers = plan.numbers();
    if plan.is_process {
        open_files(plan.numbers().count() as u64 + OTHER_FILES)
            .map_err(|limit| io::Error::other(format!("only {limit} open files")))?;
    }
    rustix::io::ioctl_fionbio(&orders, true)?;
    let mut thread = Thread::new(&plan)?;
    thread.poller.add(&orders, ORDERS)?;
    let (mut ready, mut next) = (Vec::new(), Instant::now());
    loop {
        thread.admit(&mut numbers);
        thread.poller.wait(PATIENCE)?;
        ready.clear();
        ready.extend(thread.poller.ready());
        let mut ordered = false;
        for ready in &ready {
            if ready.token == ORDERS {
                ordered = true;
            } else {
                thread.turn(ready);
            }
        }
        thread.beat();
        if ordered && let Some(accepted) = thread.obey(&mut lines, &orders)? {
            thread.end(&accepted, &mut told)?;
            // Whoever ends before it is ended is missed.
            rustix::io::ioctl_fionbio(&orders, false)?;
            while lines.read(&orders)? > 0 {}
            return Ok(());
        }
        let now = Instant::now();
        if now >= next || thread.seen.failure.is_some() {
            next = now + TELL;
            thread.tell(&mut told)?;
        }
        if thread.seen.failure.is_some() {
            return Ok(());
        }
    }
}

/// When heartbeats go out, and of what bytes they are: the same for every session.
struct Heart {
    beat: Vec<u8>,
    /// Between two groups.
    every: Duration,
    next: Instant,
    group: usize,
}

struct Thread<'a> {
    plan: &'a ViewersPlan,
    poller: Poller,
    drain: Drain,
    buffer: Vec<u8>,
    /// By token.
    sessions: Vec<Session>,
    /// On their way in, with when they set out, the first one first; some may have arrived.
    entering: VecDeque<(usize, Instant)>,
    under_way: u32,
    tally: Tally,
    seen: Seen,
    resting: bool,
    /// `None` until somebody is in.
    heart: Option<Heart>,
}

impl<'a> Thread<'a> {
    fn new(plan: &'a ViewersPlan) -> io::Result<Self> {
        Ok(Self {
            plan,
            poller: Poller::new()?,
            drain: Drain::new(),
            buffer: vec![0; BUFFER_BYTES],
            sessions: Vec::new(),
            entering: VecDeque::new(),
            under_way: 0,
            tally: Tally::new(&plan.cast.schedule),
            seen: Seen::default(),
            resting: false,
            heart: None,
        })
    }

    fn fail(&mut self, reason: String) {
        self.seen.failure.get_or_insert(reason);
    }

    /// What there is of orders; the messages that were accepted, when it is over.
    fn obey(&mut self, lines: &mut Lines, orders: impl AsFd) -> io::Result<Option<Vec<u64>>> {
        loop {
            match lines.read(&orders) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        while let Some(order) = lines.next()? {
            match order {
                Order::Rest => self.resting = true,
                Order::End { accepted } => return Ok(Some(accepted)),
            }
        }
        Ok(None)
    }

    fn tell(&mut self, told: &mut impl Write) -> io::Result<()> {
        if self.plan.is_process {
            self.seen.cpu = process_cpu();
        }
        write_line(told, &self.seen)
    }

    /// Sends the next viewers on their way.
    fn admit(&mut self, numbers: &mut impl Iterator<Item = u32>) {
        let schedule = &self.plan.cast.schedule;
        while self.under_way < self.plan.at_once
            && let Some(number) = numbers.next()
        {
            let (room, server) = (schedule.room_of_session(number), schedule.server_of(number));
            let address = self.plan.cast.servers[server as usize].1;
            let socket = match dial::begin(address, number) {
                Ok(socket) => TcpStream::from(socket),
                Err(error) => return self.fail(format!("viewer {number}: {address}: {error}")),
            };
            let token = self.sessions.len();
            if let Err(error) = self.poller.add(&socket, token as u64) {
                return self.fail(format!("viewer {number}: {error}"));
            }
            let watch = Watch::Entering(Box::new(self.plan.cast.wire(room, server)));
            self.sessions.push(Session { socket, number, room, server, watch, bytes: 0, beats: 0, out: Vec::new() });
            self.entering.push_back((token, Instant::now()));
            self.under_way += 1;
        }
        while let Some((token, since)) = self.entering.front() {
            let session = &self.sessions[*token];
            if matches!(session.watch, Watch::Entering(_)) {
                if since.elapsed() > ENTERING {
                    let (number, seconds) = (session.number, ENTERING.as_secs());
                    self.fail(format!("viewer {number}: not in its room after {seconds} s"));
                }
                break;
            }
            self.entering.pop_front();
        }
    }

    /// Something happened to a session.
    fn turn(&mut self, ready: &Ready) {
        let token = ready.token as usize;
        let done = if ready.readable { self.read(token) } else { Ok(()) };
        let done = done.and_then(|()| if ready.writable { self.sessions[token].flush() } else { Ok(()) });
        if let Err(reason) = done {
            self.ended(token, reason);
        }
    }

    fn ended(&mut self, token: usize, reason: String) {
        let session = &mut self.sessions[token];
        match std::mem::replace(&mut session.watch, Watch::Ended) {
            Watch::Ended => {}
            Watch::Entering(_) => {
                let (number, address) = (session.number, self.plan.cast.servers[session.server as usize].1);
                self.fail(format!("viewer {number}: {address}: {reason}"));
            }
            Watch::Checked(checked) => self.leave(token, Some(checked.1), reason),
            Watch::Counted => self.leave(token, None, reason),
        }
    }

    fn leave(&mut self, token: usize, ledger: Option<Ledger>, reason: String) {
        let session = &self.sessions[token];
        self.seen.closed += 1;
        self.tally.closed(reason);
        self.tally.seats.push(session.seat(ledger));
        // Nothing more is told of it; its descriptor goes with the thread.
        drop(session.socket.shutdown(std::net::Shutdown::Both));
    }

    fn read(&mut self, token: usize) -> Result<(), String> {
        let session = &mut self.sessions[token];
        match &mut session.watch {
            Watch::Ended => return Ok(()),
            Watch::Counted => {
                let taken = self.drain.all(&session.socket).map_err(|error| gone(&error))? as u64;
                session.bytes += taken;
                self.seen.bytes += taken;
                return Ok(());
            }
            Watch::Entering(_) | Watch::Checked(_) => {}
        }
        loop {
            let session = &mut self.sessions[token];
            let read = match recv(&session.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(gone(&io::ErrorKind::UnexpectedEof.into())),
                Ok((_, read)) => read,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(error) => return Err(gone(&error.into())),
            };
            let now_ns = now_ns();
            let whole = read < BUFFER_BYTES;
            let (mut ended, mut entered) = (None, false);
            match &mut session.watch {
                Watch::Entering(wire) => {
                    wire.read(&mut self.buffer[..read], &mut |event| match event {
                        Event::Ready => entered = true,
                        Event::Ended(reason) => drop(ended.get_or_insert(reason)),
                        Event::Payload(_) | Event::Gap(_) | Event::Pong(_) => {}
                    })?;
                    session.out.append(&mut wire.out);
                }
                Watch::Checked(checked) => {
                    let (wire, ledger) = &mut **checked;
                    let (tally, schedule, room) = (&mut self.tally, &self.plan.cast.schedule, session.room);
                    let (mut pong, mut ponged) = (0, 0);
                    let delivered = &mut self.seen.delivered;
                    self.seen.bytes += read as u64;
                    wire.read(&mut self.buffer[..read], &mut |event| match event {
                        Event::Payload(payload) => {
                            *delivered += u64::from(tally.came(ledger, room, schedule, payload, now_ns));
                        }
                        Event::Gap(count) => ledger.gaps += count,
                        Event::Pong(bytes) => {
                            pong = bytes as u64;
                            ponged += pong;
                        }
                        Event::Ended(reason) => drop(ended.get_or_insert(reason)),
                        Event::Ready => {}
                    })?;
                    if pong > 0 {
                        self.tally.pong_bytes[spot(schedule, room, session.server)] = pong;
                    }
                    // The head of an answer may have come with the read before.
                    session.bytes = (session.bytes + read as u64).saturating_sub(ponged);
                    session.out.append(&mut wire.out);
                }
                Watch::Counted | Watch::Ended => return Ok(()),
            }
            if let Some(reason) = ended {
                return Err(reason);
            }
            session.flush()?;
            if entered {
                self.entered(token);
                if matches!(self.sessions[token].watch, Watch::Counted) {
                    return Ok(());
                }
            }
            if whole {
                return Ok(());
            }
        }
    }

    /// A viewer is in its room.
    fn entered(&mut self, token: usize) {
        let session = &mut self.sessions[token];
        let Watch::Entering(mut wire) = std::mem::replace(&mut session.watch, Watch::Counted) else { return };
        if self.heart.is_none() {
            wire.heartbeat();
            let beat = std::mem::take(&mut wire.out);
            // Twice within what the server allows.
            let every = Duration::from_millis((wire.heartbeat_s * 500).max(500)) / BEATS as u32;
            self.heart = Some(Heart { beat, every, next: Instant::now() + every, group: 0 });
        }
        let Cast { schedule, one_in, .. } = &self.plan.cast;
        if schedule.is_checked(session.number, *one_in) {
            let ledger = Ledger::new(session.room, schedule);
            session.watch = Watch::Checked(Box::new((*wire, ledger)));
        }
        self.under_way -= 1;
        self.seen.entered += 1;
    }

    /// Sends the heartbeats that are due.
    fn beat(&mut self) {
        let Some(heart) = self.heart.as_mut().filter(|_| !self.resting) else { return };
        if Instant::now() < heart.next {
            return;
        }
        heart.next += heart.every;
        let group = heart.group;
        heart.group = (group + 1) % BEATS;
        let mut broken = Vec::new();
        for (token, session) in self.sessions.iter_mut().enumerate().skip(group).step_by(BEATS) {
            if matches!(session.watch, Watch::Checked(_) | Watch::Counted) {
                session.out.extend_from_slice(&heart.beat);
                session.beats += 1;
                if let Err(reason) = session.flush() {
                    broken.push((token, reason));
                }
            }
        }
        for (token, reason) in broken {
            self.ended(token, reason);
        }
    }

    /// Tells what it came to.
    fn end(mut self, accepted: &[u64], told: &mut impl Write) -> io::Result<()> {
        for mut session in std::mem::take(&mut self.sessions) {
            let ledger = match std::mem::replace(&mut session.watch, Watch::Ended) {
                Watch::Checked(checked) => Some(checked.1),
                Watch::Counted => None,
                Watch::Entering(_) | Watch::Ended => continue,
            };
            self.tally.seats.push(session.seat(ledger));
        }
        let schedule = &self.plan.cast.schedule;
        let tally = std::mem::replace(&mut self.tally, Tally::new(schedule));
        self.seen.account = Some(tally.account(schedule, accepted));
        self.tell(told)
    }
}

impl Session {
    fn seat(&self, ledger: Option<Ledger>) -> Seat {
        let Self { room, server, bytes, beats, .. } = *self;
        Seat { room, server, bytes, beats, ledger }
    }

    /// Sends what is to be sent, as far as the kernel has room; the rest when it can be written to again.
    fn flush(&mut self) -> Result<(), String> {
        if let Watch::Entering(wire) = &mut self.watch {
            self.out.append(&mut wire.out);
        }
        while !self.out.is_empty() {
            match send(&self.socket, &self.out, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(gone(&error.into())),
            }
        }
        // An idle viewer owns no buffer.
        self.out = Vec::new();
        Ok(())
    }
}

fn gone(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof { "connection closed".into() } else { error.to_string() }
}
