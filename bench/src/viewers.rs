//! The viewers of one thread: their sockets on one [`Poller`], and one buffer that all checked ones read into.
//!
//! ```text
//!   connecting ─▶ entering: every byte is read by its Wire ─▶ in its room ┬▶ checked: message by message
//!                                                                         └▶ not: its bytes are counted and thrown away
//! ```
//!
//! Everyone's heartbeats go out; one that is not checked owns no codec and no buffer.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::clock::now_ns;
use crate::dial;
use crate::reading::{Drain, Poller, Ready};
use crate::schedule::Schedule;
use crate::tally::{Ledger, Seat, Tally};
use crate::wire::{Dialect, Event, Viewer, Wire};

/// The buffer that all checked viewers of a thread read into, bytes: a round of a fast room.
const BUFFER_BYTES: usize = 256 * 1024;
/// Viewers of one thread that are on their way in at the same time: a server's queue of new connections is often 128.
const ENTERING_MAX: usize = 64;
/// How long one may be on its way in.
pub(crate) const ENTERING: Duration = Duration::from_secs(20);
/// Longest wait for something to come: how soon a stop is noticed.
const PATIENCE: Duration = Duration::from_millis(20);
/// Heartbeats go out in so many groups, one after the other: not everyone's at once.
const BEATS: usize = 64;

/// What all viewers have in common.
pub(crate) struct Stage {
    pub(crate) schedule: Schedule,
    /// One session in so many is checked message by message.
    pub(crate) one_in: u32,
    pub(crate) dialect: Dialect,
    pub(crate) tcp: bool,
    /// They offer permessage-deflate.
    pub(crate) compress: bool,
    /// As given: what the upgrade names.
    pub(crate) host: String,
    pub(crate) token: String,
    pub(crate) address: SocketAddr,
    pub(crate) stop: AtomicBool,
    /// Everything is published: no more heartbeats, so that at the end each has its answer.
    pub(crate) resting: AtomicBool,
    /// Viewers that are in their room.
    pub(crate) entered: AtomicU64,
    /// New messages that have come to checked viewers.
    pub(crate) delivered: AtomicU64,
    /// Bytes that have come to all.
    pub(crate) bytes: AtomicU64,
    /// Sessions that have ended too early.
    pub(crate) closed: AtomicU64,
    /// Why not all could be let in.
    pub(crate) failure: Mutex<Option<String>>,
}

impl Stage {
    pub(crate) fn wire(&self, room: u32) -> Wire {
        Wire::new(&Viewer {
            dialect: self.dialect,
            tcp: self.tcp,
            compress: self.compress,
            host: &self.host,
            room: &self.schedule.room_name(room),
            token: &self.token,
        })
    }

    fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.stop.store(true, Ordering::Relaxed);
    }
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
    watch: Watch,
    /// Since it was in its room.
    bytes: u64,
    /// Heartbeats that were sent since.
    beats: u32,
    /// Not taken by the kernel yet.
    out: Vec<u8>,
}

/// Runs the viewers `numbers` until the stage stops.
///
/// # Errors
/// Where there is no poller to be had.
pub(crate) fn run(stage: &Stage, numbers: impl Iterator<Item = u32>) -> io::Result<Tally> {
    let mut numbers = numbers.fuse();
    let mut thread = Thread {
        stage,
        poller: Poller::new()?,
        drain: Drain::new(),
        buffer: vec![0; BUFFER_BYTES],
        sessions: Vec::new(),
        entering: VecDeque::new(),
        under_way: 0,
        tally: Tally::new(&stage.schedule),
        delivered: 0,
        bytes: 0,
        heart: None,
        pong_bytes: vec![0; stage.schedule.rooms() as usize],
    };
    let mut ready = Vec::new();
    while !stage.stop.load(Ordering::Relaxed) {
        thread.admit(&mut numbers);
        thread.poller.wait(PATIENCE)?;
        ready.clear();
        ready.extend(thread.poller.ready());
        for ready in &ready {
            thread.turn(ready);
        }
        thread.beat();
        stage.delivered.fetch_add(std::mem::take(&mut thread.delivered), Ordering::Relaxed);
        stage.bytes.fetch_add(std::mem::take(&mut thread.bytes), Ordering::Relaxed);
    }
    Ok(thread.end())
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
    stage: &'a Stage,
    poller: Poller,
    drain: Drain,
    buffer: Vec<u8>,
    /// By token.
    sessions: Vec<Session>,
    /// On their way in, with when they set out, the first one first; some may have arrived.
    entering: VecDeque<(usize, Instant)>,
    under_way: usize,
    tally: Tally,
    /// Not yet told.
    delivered: u64,
    bytes: u64,
    /// `None` until somebody is in.
    heart: Option<Heart>,
    /// Of an answer to a heartbeat, on the wire, by room: some dialects say in it how many are there. 0: none was seen.
    pong_bytes: Vec<u64>,
}

impl Thread<'_> {
    /// Sends the next viewers on their way.
    fn admit(&mut self, numbers: &mut impl Iterator<Item = u32>) {
        while self.under_way < ENTERING_MAX
            && let Some(number) = numbers.next()
        {
            let address = self.stage.address;
            let socket = match dial::begin(address, number) {
                Ok(socket) => TcpStream::from(socket),
                Err(error) => return self.stage.fail(format!("viewer {number}: {address}: {error}")),
            };
            let token = self.sessions.len();
            if let Err(error) = self.poller.add(&socket, token as u64) {
                return self.stage.fail(format!("viewer {number}: {error}"));
            }
            let room = self.stage.schedule.room_of_session(number);
            let watch = Watch::Entering(Box::new(self.stage.wire(room)));
            self.sessions.push(Session { socket, number, room, watch, bytes: 0, beats: 0, out: Vec::new() });
            self.entering.push_back((token, Instant::now()));
            self.under_way += 1;
        }
        while let Some((token, since)) = self.entering.front() {
            let session = &self.sessions[*token];
            if matches!(session.watch, Watch::Entering(_)) {
                if since.elapsed() > ENTERING {
                    let seconds = ENTERING.as_secs();
                    self.stage.fail(format!("viewer {}: not in its room after {seconds} s", session.number));
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
                self.stage.fail(format!("viewer {}: {}: {reason}", session.number, self.stage.address));
            }
            Watch::Checked(checked) => self.leave(token, Some(checked.1), reason),
            Watch::Counted => self.leave(token, None, reason),
        }
    }

    fn leave(&mut self, token: usize, ledger: Option<Ledger>, reason: String) {
        let session = &self.sessions[token];
        self.stage.closed.fetch_add(1, Ordering::Relaxed);
        self.tally.closed(reason);
        self.tally.seats.push(Seat { room: session.room, bytes: session.bytes, ledger });
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
                self.bytes += taken;
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
                    let (tally, schedule, room) = (&mut self.tally, &self.stage.schedule, session.room);
                    let (pong, delivered) = (&mut self.pong_bytes[room as usize], &mut self.delivered);
                    let mut ponged = 0;
                    self.bytes += read as u64;
                    wire.read(&mut self.buffer[..read], &mut |event| match event {
                        Event::Payload(payload) => {
                            *delivered += u64::from(tally.came(ledger, room, schedule, payload, now_ns));
                        }
                        Event::Gap(count) => ledger.gaps += count,
                        Event::Pong(bytes) => {
                            *pong = bytes as u64;
                            ponged += bytes as u64;
                        }
                        Event::Ended(reason) => drop(ended.get_or_insert(reason)),
                        Event::Ready => {}
                    })?;
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
        if self.stage.schedule.is_checked(session.number, self.stage.one_in) {
            let ledger = Ledger::new(session.room, &self.stage.schedule);
            session.watch = Watch::Checked(Box::new((*wire, ledger)));
        }
        self.under_way -= 1;
        self.stage.entered.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends the heartbeats that are due.
    fn beat(&mut self) {
        let Some(heart) = self.heart.as_mut().filter(|_| !self.stage.resting.load(Ordering::Relaxed)) else { return };
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

    fn end(mut self) -> Tally {
        // Of a room in which no checked session's was seen it is as small as in the others: it is a small one.
        let least = self.pong_bytes.iter().copied().filter(|bytes| *bytes > 0).min().unwrap_or_default();
        for session in self.sessions {
            let (bytes, ledger) = match session.watch {
                Watch::Checked(checked) => (session.bytes, Some(checked.1)),
                Watch::Counted => {
                    let pong = match self.pong_bytes[session.room as usize] {
                        0 => least,
                        bytes => bytes,
                    };
                    (session.bytes.saturating_sub(u64::from(session.beats) * pong), None)
                }
                Watch::Entering(_) | Watch::Ended => continue,
            };
            self.tally.seats.push(Seat { room: session.room, bytes, ledger });
        }
        self.tally
    }
}

impl Session {
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
