//! The clients of a light load: one publisher, whose lateness is microseconds, and some sessions in one room, all read
//! by one thread. What the publisher does is not slept over in a runtime's timer, which knows milliseconds.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

use super::bare::Beat;
use crate::dialect::Dialect;
use crate::note::Note;
use crate::publish::{Answer, Api};
use crate::tally::{microseconds, record};
use crate::wire::{Event, Viewer, Wire};

/// How long a session may take to enter.
const ENTERING: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// What a session reads at a time, bytes.
const BUFFER_BYTES: usize = 16 * 1024;

/// The sessions.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) dialect: Dialect,
    pub(super) address: SocketAddr,
    /// For the handshake.
    pub(super) host: String,
    pub(super) token: String,
    pub(super) room: String,
    pub(super) sessions: u32,
    pub(super) run: u32,
    pub(super) messages: u32,
    /// The zero of all times.
    pub(super) zero: Instant,
}

/// What is known while it goes on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) entered: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) failure: Mutex<Option<String>>,
}

/// What the sessions saw.
#[derive(Debug)]
pub(super) struct Seen {
    /// By message: how many sessions have it, when the first and when the last got it, nanoseconds since the zero.
    pub(super) messages: Vec<(u32, u64, u64)>,
    pub(super) gaps: u64,
    /// Of a session's messages, those that came after a later one, or again.
    pub(super) disordered: u64,
    /// Sessions that the server ended, by reason.
    pub(super) closed: BTreeMap<String, u64>,
}

/// Runs the sessions until `stop`.
///
/// # Errors
/// Where there is no runtime to be had.
pub(super) fn watch(room: &Room, progress: &Arc<Progress>, stop: &CancellationToken) -> std::io::Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen =
        Seen { messages: vec![(0, 0, 0); room.messages as usize], gaps: 0, disordered: 0, closed: BTreeMap::new() };
    let seen = Rc::new(RefCell::new(seen));
    LocalSet::new().block_on(&runtime, async {
        let mut tasks = JoinSet::new();
        for _ in 0..room.sessions {
            let (room, progress, seen, stop) = (room.clone(), progress.clone(), seen.clone(), stop.clone());
            tasks.spawn_local(async move {
                let mut session = Session { room, progress, seen, next: 0, ready: false };
                let Some(Err(reason)) = stop.run_until_cancelled(session.live()).await else { return };
                *session.seen.borrow_mut().closed.entry(reason.clone()).or_default() += 1;
                if !session.ready {
                    session.progress.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    });
    Ok(Rc::into_inner(seen).expect("the tasks that shared it have ended").into_inner())
}

struct Session {
    room: Room,
    progress: Arc<Progress>,
    seen: Rc<RefCell<Seen>>,
    /// After the last message that came.
    next: u32,
    ready: bool,
}

impl Session {
    /// Until the server ends it.
    async fn live(&mut self) -> Result<(), String> {
        let told = |error: std::io::Error| error.to_string();
        let Room { dialect, address, host, token, room, .. } = self.room.clone();
        let mut wire =
            Wire::new(&Viewer { dialect, tcp: false, compress: false, host: &host, rooms: &[room], token: &token });
        let mut stream = TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
        stream.set_nodelay(true).map_err(told)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let late = tokio::time::Instant::now() + ENTERING;
        let mut heartbeat = late;
        loop {
            if !wire.out.is_empty() {
                stream.write_all(&std::mem::take(&mut wire.out)).await.map_err(told)?;
            }
            tokio::select! {
                read = stream.read(&mut buffer) => match read.map_err(told)? {
                    0 => return Err("connection closed".into()),
                    read => self.read(&mut wire, &mut buffer[..read])?,
                },
                () = tokio::time::sleep_until(heartbeat) => {
                    if !self.ready {
                        return Err(format!("not in its room after {} s", ENTERING.as_secs()));
                    }
                    wire.heartbeat();
                    // Twice within what the server allows.
                    heartbeat = tokio::time::Instant::now() + Duration::from_millis((wire.heartbeat_s * 500).max(500));
                }
            }
            if self.ready && heartbeat == late {
                heartbeat = tokio::time::Instant::now() + Duration::from_millis((wire.heartbeat_s * 500).max(500));
            }
        }
    }

    fn read(&mut self, wire: &mut Wire, bytes: &mut [u8]) -> Result<(), String> {
        let now_ns = self.room.zero.elapsed().as_nanos() as u64;
        let mut ended = None;
        let mut seen = self.seen.borrow_mut();
        wire.read(bytes, &mut |event| match event {
            Event::Ready if !self.ready => {
                self.ready = true;
                self.progress.entered.fetch_add(1, Ordering::Relaxed);
            }
            Event::Ready | Event::Pong(_) => {}
            Event::Payload(payload) => {
                let Some(note) = Note::read(payload).filter(|note| note.run == self.room.run) else { return };
                let Some(message) = seen.messages.get_mut(note.number as usize) else { return };
                message.0 += 1;
                message.1 = if message.1 == 0 { now_ns } else { message.1 };
                message.2 = now_ns;
                seen.disordered += u64::from(note.number < self.next);
                self.next = self.next.max(note.number + 1);
                self.progress.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Event::Gap(count) => seen.gaps += count,
            Event::Ended(reason) => drop(ended.get_or_insert(reason)),
        })?;
        ended.map_or(Ok(()), Err)
    }
}

/// What the publisher saw.
#[derive(Debug)]
pub(super) struct Sent {
    /// By message: accepted.
    pub(super) accepted: Vec<bool>,
    pub(super) failed: BTreeMap<String, u64>,
    /// Microseconds from the intended time to the sending.
    pub(super) lag: Histogram<u64>,
    /// Microseconds from the intended time to the answer.
    pub(super) answered: Histogram<u64>,
}

/// What messages are published, and where.
#[derive(Debug, Clone)]
pub(super) struct Publisher {
    pub(super) room: Room,
    pub(super) api: Api,
    /// Of a payload.
    pub(super) bytes: usize,
}

impl Publisher {
    /// Appends the request of a message.
    fn request(&self, number: u32, due: Instant, out: &mut Vec<u8>) {
        let Room { run, zero, room, .. } = &self.room;
        let payload = Note { run: *run, number, intended_ns: (due - *zero).as_nanos() as u64 }.payload(self.bytes);
        self.api.request(room, payload, out);
    }
}

/// Publishes at each beat over one connection; the first message has the number `from`.
pub(super) fn publish(publisher: &Publisher, beat: Beat, from: u32) -> std::io::Result<Sent> {
    let dialect = publisher.api.dialect;
    let mut out = std::net::TcpStream::connect(&publisher.api.host)?;
    out.set_nodelay(true)?;
    let mut back = out.try_clone()?;
    back.set_read_timeout(Some(ANSWER))?;
    let (asked, waiting) = mpsc::sync_channel::<(u32, Instant)>(beat.count as usize);
    let answers = thread::spawn(move || {
        let mut sent = Sent {
            accepted: vec![false; beat.count as usize],
            failed: BTreeMap::new(),
            lag: microseconds(),
            answered: microseconds(),
        };
        let mut input = Vec::new();
        for (number, due) in waiting {
            match answer(&mut back, &mut input, dialect) {
                Ok(()) => {
                    sent.accepted[number as usize] = true;
                    record(&mut sent.answered, due.elapsed().as_micros() as u64);
                }
                Err(reason) => *sent.failed.entry(reason).or_default() += 1,
            }
        }
        sent
    });
    let mut lag = microseconds();
    let mut bytes = Vec::new();
    let mut failed = None;
    for number in 0..beat.count {
        bytes.clear();
        publisher.request(from + number, beat.due(number), &mut bytes);
        let due = beat.wait(number);
        record(&mut lag, due.elapsed().as_micros() as u64);
        let queued = asked.send((number, due)).is_ok();
        if let Some(error) = out.write_all(&bytes).err().filter(|_| queued) {
            failed = Some(error);
            break;
        }
    }
    drop(asked);
    let mut sent = answers.join().map_err(|_| std::io::Error::other("the thread of answers panicked"))?;
    sent.lag = lag;
    if let Some(error) = failed {
        sent.failed.insert(error.to_string(), 1);
    }
    Ok(sent)
}

/// Takes the next answer off the connection.
fn answer(from: &mut std::net::TcpStream, input: &mut Vec<u8>, dialect: Dialect) -> Result<(), String> {
    loop {
        if let Some((answer, bytes)) = Answer::read(input)? {
            let accepted = answer.accepted(dialect);
            input.drain(..bytes);
            return accepted;
        }
        let mut buffer = [0; 4096];
        match from.read(&mut buffer).map_err(|error| error.to_string())? {
            0 => return Err("the server closed the connection".into()),
            read => input.extend_from_slice(&buffer[..read]),
        }
    }
}
