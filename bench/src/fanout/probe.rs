//! Beside a fan-out: are heartbeats and joins still answered? Two sessions in the first room that the sums do not know:
//! one that sends heartbeats, and one that comes, joins and goes, over and over. Each has its times, and counts from
//! them whatever became of the one before.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::dial;
use crate::fanout::viewers::Cast;
use crate::tally::{microseconds, record};
use crate::wire::{Event, Wire};

/// Between two heartbeats, and between two joins: honest clients' requests, far under every limit.
const EVERY: Duration = Duration::from_millis(200);
/// An answer that takes longer counts as none, and the connection is made anew.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is read at a time, bytes: what else comes to the room comes here too.
const BUFFER_BYTES: usize = 64 * 1024;

/// What one kind of asking came to.
#[derive(Debug)]
pub(crate) struct Probed {
    /// Microseconds from the intended time to the answer.
    pub(crate) answered: Histogram<u64>,
    /// Not answered, or refused.
    pub(crate) failed: u64,
}

struct Session {
    stream: TcpStream,
    wire: Wire,
    buffer: Vec<u8>,
}

impl Session {
    fn enter(cast: &Cast, number: u32) -> Result<Self, String> {
        let told = |error: std::io::Error| error.to_string();
        let socket = dial::connect(cast.servers[0].1, number).map_err(told)?;
        socket.set_nonblocking(false).map_err(told)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).map_err(told)?;
        let mut session = Self { stream, wire: cast.wire(0, 0), buffer: vec![0; BUFFER_BYTES] };
        session.until(|event| matches!(event, Event::Ready))?;
        Ok(session)
    }

    fn heartbeat(&mut self) -> Result<(), String> {
        self.wire.heartbeat();
        self.until(|event| matches!(event, Event::Pong(_)))
    }

    /// Sends what is to be sent and reads until it is answered.
    fn until(&mut self, is_answer: impl Fn(&Event<'_>) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let (mut answered, mut ended) = (false, None);
        while !answered {
            let out = std::mem::take(&mut self.wire.out);
            self.stream.write_all(&out).map_err(|error| error.to_string())?;
            let read = self.stream.read(&mut self.buffer).map_err(|error| error.to_string())?;
            if read == 0 || Instant::now() > deadline {
                return Err("no answer".into());
            }
            self.wire.read(&mut self.buffer[..read], &mut |event| {
                answered |= is_answer(&event);
                if let Event::Ended(reason) = event {
                    ended.get_or_insert(reason);
                }
            })?;
            if let Some(reason) = ended.take() {
                return Err(reason);
            }
        }
        Ok(())
    }
}

/// Asks until it is to stop; `ask` says whether it was answered.
fn ask(stop: &AtomicBool, mut ask: impl FnMut() -> bool) -> Probed {
    let mut probed = Probed { answered: microseconds(), failed: 0 };
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if ask() {
            record(&mut probed.answered, due.elapsed().as_micros() as u64);
        } else if !stop.load(Ordering::Relaxed) {
            probed.failed += 1;
        }
        due += EVERY;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    probed
}

/// Heartbeats of one session that stays, or comes again.
pub(crate) fn heartbeats(cast: &Cast, stop: &AtomicBool) -> Probed {
    let mut session = None;
    ask(stop, || {
        if session.is_none() {
            session = Session::enter(cast, cast.schedule.sessions()).ok();
        }
        let answered = session.as_mut().is_some_and(|session| session.heartbeat().is_ok());
        if !answered {
            session = None;
        }
        answered
    })
}

/// Sessions that come, join and go.
pub(crate) fn joins(cast: &Cast, stop: &AtomicBool) -> Probed {
    ask(stop, || Session::enter(cast, cast.schedule.sessions() + 1).is_ok())
}
