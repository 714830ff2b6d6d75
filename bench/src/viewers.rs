//! The viewers of one thread: a task for each on a runtime of one thread, and one buffer that all read into.
//!
//! An idle viewer owns its socket, its codec and its ledger; bytes are read, parsed and counted in one go, and only what
//! is left of a frame is kept.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

use crate::tally::{Ledger, Spread, Tally};
use crate::wire::{Event, Viewer, Wire};

/// The buffer that all viewers of a thread read into, bytes: a round of a fast room.
const BUFFER_BYTES: usize = 256 * 1024;
/// Viewers of one thread that are on their way in at the same time: a server's queue of new connections is often 128.
const ENTERING_MAX: usize = 64;
/// How long one may be on its way in.
const ENTERING: Duration = Duration::from_secs(20);
/// Sessions from one loopback address: the kernel gives about 28,000 ports to connections from one address to another.
const LOOPBACK_SESSIONS: u32 = 20_000;

/// What all viewers have in common.
pub(crate) struct Stage {
    pub(crate) spread: Spread,
    pub(crate) template: Template,
    pub(crate) address: SocketAddr,
    /// The zero of all times.
    pub(crate) zero: Instant,
    pub(crate) stop: CancellationToken,
    /// Viewers that are in their room.
    pub(crate) entered: AtomicU64,
    /// New messages that have come to viewers.
    pub(crate) delivered: AtomicU64,
    /// Sessions that have ended too early.
    pub(crate) closed: AtomicU64,
    /// Why not all could be let in.
    pub(crate) failure: Mutex<Option<String>>,
}

/// A viewer but for its room.
pub(crate) struct Template {
    pub(crate) dialect: crate::Dialect,
    pub(crate) tcp: bool,
    pub(crate) host: String,
    pub(crate) token: String,
    /// By room.
    pub(crate) rooms: Vec<String>,
}

impl Stage {
    pub(crate) fn now_ns(&self) -> u64 {
        self.zero.elapsed().as_nanos() as u64
    }

    fn fail(&self, reason: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.stop.cancel();
    }
}

/// What the viewers of a thread share.
struct Thread {
    buffer: Vec<u8>,
    tally: Tally,
}

/// Runs the viewers `numbers` until the stage stops.
///
/// # Errors
/// Where there is no runtime to be had.
pub(crate) fn run(stage: &Arc<Stage>, numbers: impl Iterator<Item = u32>) -> Result<Tally, std::io::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = Rc::new(RefCell::new(Thread { buffer: vec![0; BUFFER_BYTES], tally: Tally::default() }));
    let entering = Rc::new(Semaphore::new(ENTERING_MAX));
    LocalSet::new().block_on(&runtime, async {
        let mut tasks = JoinSet::new();
        for number in numbers {
            tasks.spawn_local(view(stage.clone(), number, entering.clone(), thread.clone()));
        }
        while tasks.join_next().await.is_some() {}
    });
    Ok(std::mem::take(&mut thread.borrow_mut().tally))
}

/// One viewer's life.
async fn view(stage: Arc<Stage>, number: u32, entering: Rc<Semaphore>, thread: Rc<RefCell<Thread>>) {
    let room = number % stage.spread.rooms;
    let mut session = {
        let _turn = entering.acquire().await;
        if stage.stop.is_cancelled() {
            return;
        }
        let entered = tokio::select! {
            () = stage.stop.cancelled() => return,
            entered = tokio::time::timeout(ENTERING, Session::enter(&stage, number, room, &thread)) => entered,
        };
        match entered {
            Ok(Ok(session)) => session,
            Ok(Err(reason)) => return stage.fail(format!("viewer {number}: {reason}")),
            Err(_) => {
                return stage.fail(format!("viewer {number}: not in its room after {} s", ENTERING.as_secs()));
            }
        }
    };
    stage.entered.fetch_add(1, Ordering::Relaxed);
    let ended = tokio::select! {
        () = stage.stop.cancelled() => None,
        reason = session.watch(&stage, number, &thread) => Some(reason),
    };
    let tally = &mut thread.borrow_mut().tally;
    if let Some(reason) = ended {
        stage.closed.fetch_add(1, Ordering::Relaxed);
        tally.closed(reason);
    }
    tally.ledgers.push(session.ledger);
}

struct Session {
    stream: TcpStream,
    wire: Wire,
    ledger: Ledger,
    ready: bool,
}

impl Session {
    /// Connects and goes into the room.
    async fn enter(stage: &Stage, number: u32, room: u32, thread: &RefCell<Thread>) -> Result<Self, String> {
        let template = &stage.template;
        let viewer = Viewer {
            dialect: template.dialect,
            tcp: template.tcp,
            host: &template.host,
            room: &template.rooms[room as usize],
            token: &template.token,
        };
        let stream = connect(stage.address, number).await.map_err(|error| format!("{}: {error}", stage.address))?;
        let ledger = Ledger::new(room, &stage.spread);
        let mut session = Self { stream, wire: Wire::new(&viewer), ledger, ready: false };
        while !session.ready {
            session.write().await?;
            session.stream.readable().await.map_err(|error| error.to_string())?;
            session.read(stage, thread)?;
        }
        session.write().await?;
        Ok(session)
    }

    /// Takes what comes, until the server ends it; why.
    async fn watch(&mut self, stage: &Stage, number: u32, thread: &RefCell<Thread>) -> String {
        // Twice within what the server allows, and not all viewers at once.
        let half = Duration::from_millis((self.wire.heartbeat_s * 500).max(500));
        let mut heartbeat = tokio::time::interval_at((Instant::now() + half * (number % 64) / 64).into(), half);
        loop {
            tokio::select! {
                readable = self.stream.readable() => {
                    let read = readable.map_err(|error| error.to_string()).and_then(|()| self.read(stage, thread));
                    if let Err(reason) = read {
                        return reason;
                    }
                }
                _ = heartbeat.tick() => self.wire.heartbeat(),
            }
            if !self.wire.out.is_empty()
                && let Err(reason) = self.write().await
            {
                return reason;
            }
        }
    }

    /// Reads until there is nothing more, or a buffer full: then it is the others' turn.
    fn read(&mut self, stage: &Stage, thread: &RefCell<Thread>) -> Result<(), String> {
        let Thread { buffer, tally } = &mut *thread.borrow_mut();
        let read = match self.stream.try_read(buffer) {
            Ok(0) => return Err("connection closed".into()),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let now_ns = stage.now_ns();
        let (mut delivered, mut ended) = (0, None);
        let (ledger, ready) = (&mut self.ledger, &mut self.ready);
        let read = self.wire.read(&mut buffer[..read], &mut |event| match event {
            Event::Payload(payload) => delivered += u64::from(tally.came(ledger, &stage.spread, payload, now_ns)),
            Event::Gap(count) => tally.gaps += count,
            Event::Ready => *ready = true,
            Event::Ended(reason) => drop(ended.get_or_insert(reason)),
        });
        if delivered > 0 {
            stage.delivered.fetch_add(delivered, Ordering::Relaxed);
        }
        match ended {
            Some(reason) => Err(reason),
            None => read,
        }
    }

    async fn write(&mut self) -> Result<(), String> {
        while !self.wire.out.is_empty() {
            self.stream.ready(Interest::WRITABLE).await.map_err(|error| error.to_string())?;
            match self.stream.try_write(&self.wire.out) {
                Ok(written) => drop(self.wire.out.drain(..written)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        // An idle viewer owns no buffer.
        self.wire.out = Vec::new();
        Ok(())
    }
}

async fn connect(address: SocketAddr, number: u32) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) && number >= LOOPBACK_SESSIONS {
        let from = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number / LOOPBACK_SESSIONS);
        socket.bind((from, 0).into())?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
