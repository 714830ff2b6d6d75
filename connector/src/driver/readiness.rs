//! The loop of those drivers whose runtime tells when a socket is ready: `monoio` (epoll) and `glommio` (io_uring's
//! polls). Whose turn it is, what a turn does and how much of it; not how the runtime finds out what is ready: that is
//! its [`Runtime`].
//!
//! ```text
//!  poller ─wakers─▶ events ─▶ turn: reads ▶ accepts ▶ inputs ▶ round ▶ asks ─▶ sleep until an event, an input, wake_ms
//!                              └───────── bounded each (rule 27) ────────┘
//! ```
//!
//! Of a runtime this uses what is cheapest for a great many idle connections: no task and no buffer for any of them, but
//! a waker that notes which connection woke it.
//!
//! Invariants, each held by a test of the conformance suite (`tests/driver.rs`):
//! - a connection without traffic owns no buffer: all read into the core's one;
//! - an event of a connection that is gone never reaches the one that took its slot (`Table` compares generations);
//! - what a peer sent before it closed its half is answered before [`Machine::closed`] tells of it;
//! - a closed connection's last bytes arrive: it lingers until the peer has closed too, so that no RST overtakes them;
//! - without descriptors accepting pauses and goes on; nothing spins.

mod table;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crossbeam::channel::Receiver;

pub(super) use self::table::Stream;
use self::table::{Event, Events, Read, Table};
use super::asking::Asking;
use super::clock::now;
use super::limits::{ACCEPT_PAUSE_MS, ACCEPTS_A_TURN, INPUTS_A_TURN, READ_BUFFER_BYTES, READS_A_TURN, gave_up};
use super::share::{AcceptedSocket, INBOX_MAX};
use super::{Parts, sleep_ms};
use machine::{Machine, Next, Now, Reading};

/// What a driver of this kind is made of.
pub(super) trait Runtime: 'static {
    /// Its connected socket.
    type Stream: Stream;
    /// Its listening socket.
    type Listener: Listen<Self::Stream>;

    /// Runs a core to its end on this thread.
    ///
    /// # Errors
    /// The system gives no poller; `core` was not begun.
    fn run(core: impl Future<Output = ()>) -> io::Result<()>;

    /// Takes a listening socket over, inside of [`Runtime::run`].
    fn listener(socket: TcpListener) -> io::Result<Self::Listener>;

    /// Takes a connected socket over, inside of [`Runtime::run`].
    ///
    /// # Errors
    /// The poller takes no more.
    fn stream(socket: TcpStream) -> io::Result<Self::Stream>;

    /// Waits so long.
    fn sleep(duration: Duration) -> impl Future<Output = ()>;

    /// Lets the poller tell its news, and comes back.
    fn pass() -> impl Future<Output = ()>;
}

/// A listening socket of the runtime's.
pub(super) trait Listen<S> {
    /// What has come in, without waiting. Pending: nobody, and the waker is set. `last`: nobody is wanted after those who
    /// wait already (rule 33).
    fn accept(&mut self, waker: &Waker, last: bool) -> Poll<io::Result<Accepted<S>>>;
}

/// What accepting came to.
pub(super) enum Accepted<S> {
    /// A connection, and where from.
    Connection(S, SocketAddr),
    /// The backlog is drained and the listener is to be dropped.
    Ended,
}

/// Runs a core to its end.
///
/// # Errors
/// The system's, where it gives no poller.
pub(super) fn run<M: Machine, R: Runtime>(parts: Parts<M, impl FnOnce(Now) -> M, impl FnOnce()>) -> io::Result<()> {
    let mut refused = Ok(());
    R::run(async {
        match Loop::<M, R>::new(parts) {
            Ok(this) => this.run().await,
            Err(error) => refused = Err(error),
        }
    })?;
    refused
}

struct Listener<L> {
    /// `None`: closed.
    socket: Option<L>,
    waker: Waker,
    /// May have a connection to accept.
    ready: bool,
    /// Is closed when its backlog is empty (rule 33).
    last: bool,
}

struct Loop<M: Machine, R: Runtime> {
    machine: M,
    table: Table<R::Stream>,
    listeners: Vec<Listener<R::Listener>>,
    inputs: Receiver<M::Input>,
    asking: Asking<M::Request>,
    /// Empty between turns: its room is used again.
    news: Vec<Event>,
    /// Connections that have something to read, or may.
    readable: VecDeque<machine::Key>,
    accept_at_ms: u64,
    /// Said once, not at every try.
    accept_failed: bool,
    /// The machine is done: who still comes is closed.
    ending: bool,
    buffer: Box<[u8]>,
}

impl<M: Machine, R: Runtime> Loop<M, R> {
    fn new(parts: Parts<M, impl FnOnce(Now) -> M, impl FnOnce()>) -> io::Result<Self> {
        let events = Arc::new(Events::new(parts.wake_up));
        let listener = |(index, socket)| {
            let waker = events.waker(Event::Accept(index));
            Ok(Listener { socket: Some(R::listener(socket)?), waker, ready: true, last: false })
        };
        let listeners = parts.intake.sockets.into_iter().enumerate().map(listener).collect::<io::Result<_>>()?;
        let this = Self {
            listeners,
            table: Table::new(events, parts.intake.share),
            machine: (parts.make)(now()),
            inputs: parts.inputs,
            asking: parts.asking,
            news: Vec::new(),
            readable: VecDeque::new(),
            accept_at_ms: 0,
            accept_failed: false,
            ending: false,
            buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
        };
        this.table.share.open();
        (parts.begun)();
        Ok(this)
    }

    async fn run(mut self) {
        loop {
            let mut next = self.turn();
            if self.machine.done() {
                if !std::mem::replace(&mut self.ending, true) {
                    self.end_listeners();
                    next.again = true;
                }
                // What was closed last may still be on its way.
                if self.table.lingering() == 0 && self.listeners.iter().all(|listener| listener.socket.is_none()) {
                    // The waker belongs to this thread's executor, which ends now.
                    drop(self.table.events.wake_up.sleeper.take());
                    return;
                }
            }
            self.wait(next).await;
        }
    }

    /// Everyone's turn, bounded.
    fn turn(&mut self) -> Next {
        let now = now();
        self.table.turn(now.mono_ms);
        self.table.events.wake_up.answer();
        self.sort_events(now);
        self.read(now);
        self.accept(now);
        self.adopt(now);
        for _ in 0..INPUTS_A_TURN {
            let Ok(input) = self.inputs.try_recv() else { break };
            self.machine.input(now, input);
        }
        let mut next = self.machine.round(now, &mut self.table);
        next.again |= self.after_round(now);
        self.asking.ask(&mut self.machine);

        for at_ms in [self.table.close_lingering(), self.asking.due_ms(now.mono_ms)].into_iter().flatten() {
            next.wake_ms = next.wake_ms.min(at_ms);
        }
        if self.listeners.iter().any(|listener| listener.ready && listener.socket.is_some()) {
            next.wake_ms = next.wake_ms.min(self.accept_at_ms);
        }
        next.again |= !self.readable.is_empty() || !self.inputs.is_empty();
        next
    }

    fn sort_events(&mut self, now: Now) {
        let mut news = std::mem::take(&mut self.news);
        self.table.events.swap(&mut news);
        for event in news.drain(..) {
            match event {
                Event::Read(key) => self.readable.push_back(key),
                Event::Write(key) => {
                    if self.table.unblock(key) {
                        self.machine.writable(now, key);
                    }
                }
                Event::Accept(index) => self.listeners[index].ready = true,
            }
        }
        self.news = news;
    }

    fn read(&mut self, now: Now) {
        for _ in 0..READS_A_TURN.min(self.readable.len()) {
            let Some(key) = self.readable.pop_front() else { break };
            match self.table.read(key, &mut self.buffer) {
                Read::Bytes(count) => {
                    match self.machine.bytes(now, key, &mut self.buffer[..count]) {
                        Reading::On => self.readable.push_back(key),
                        Reading::Paused => self.table.pause(key),
                    };
                }
                Read::Discarded => self.readable.push_back(key),
                Read::Nothing => {}
                Read::End => {
                    if self.table.remove(key) {
                        self.machine.closed(now, key);
                    }
                }
            }
        }
    }

    fn accept(&mut self, now: Now) {
        if now.mono_ms < self.accept_at_ms {
            return;
        }
        for index in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_A_TURN {
                let listener = &mut self.listeners[index];
                let Some(socket) = listener.socket.as_mut().filter(|_| listener.ready) else { break };
                match socket.accept(&listener.waker, listener.last) {
                    Poll::Pending => listener.ready = false,
                    Poll::Ready(Ok(Accepted::Ended)) => listener.socket = None,
                    Poll::Ready(Ok(Accepted::Connection(..))) if self.ending => {}
                    Poll::Ready(Ok(Accepted::Connection(stream, peer))) => {
                        self.accept_failed = false;
                        match self.table.share.elsewhere() {
                            Some(core) if self.hand(core, &stream, index, peer) => {}
                            _ => self.open(now, index, stream, peer),
                        }
                    }
                    Poll::Ready(Err(error)) if gave_up(&error) => {}
                    Poll::Ready(Err(error)) => {
                        if !std::mem::replace(&mut self.accept_failed, true) {
                            tracing::warn!(%error, retry_ms = ACCEPT_PAUSE_MS, "cannot accept connections now");
                        }
                        self.accept_at_ms = now.mono_ms + ACCEPT_PAUSE_MS;
                        return;
                    }
                }
            }
        }
    }

    fn open(&mut self, now: Now, listener: usize, stream: R::Stream, peer: SocketAddr) {
        if let Some(key) = self.machine.opened(now, listener, peer) {
            self.table.insert(key, stream);
            self.readable.push_back(key);
        }
    }

    /// Hands a connection to the core `to`, under a descriptor that this one's runtime does not know; `false`: it stays.
    #[expect(unsafe_code, reason = "the runtimes' sockets show their descriptors as numbers only")]
    fn hand(&self, to: usize, stream: &R::Stream, listener: usize, peer: SocketAddr) -> bool {
        // SAFETY: `stream` keeps the descriptor open for longer than it is borrowed here.
        let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
        let Ok(fd) = fd.try_clone_to_owned() else { return false };
        self.table.share.hand(to, AcceptedSocket { stream: fd.into(), listener, peer }).is_ok()
    }

    /// Opens those that other cores have handed over; says whether there were any.
    fn adopt(&mut self, now: Now) -> bool {
        let mut any = false;
        for _ in 0..INBOX_MAX {
            let Some(AcceptedSocket { stream, listener, peer }) = self.table.share.take() else { break };
            match R::stream(stream) {
                Ok(stream) => {
                    any = true;
                    self.open(now, listener, stream, peer);
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.accept_failed, true) {
                        tracing::warn!(%error, "cannot serve connections that other cores accepted");
                    }
                }
            }
        }
        any
    }

    /// Does what the machine could only note in its round; says whether it gave the machine more to do.
    fn after_round(&mut self, now: Now) -> bool {
        while let Some(key) = self.table.gone.pop() {
            if self.table.remove(key) {
                self.machine.closed(now, key);
            }
        }
        self.readable.extend(self.table.to_read.drain(..));
        if std::mem::take(&mut self.table.stop_accepting) {
            self.end_listeners();
            self.table.share.close();
            return self.adopt(now);
        }
        false
    }

    fn end_listeners(&mut self) {
        for listener in &mut self.listeners {
            listener.ready |= !std::mem::replace(&mut listener.last, true);
        }
    }

    /// Until there is something to do. `again` only lets the poller tell its news first.
    async fn wait(&mut self, next: Next) {
        let Self { table, .. } = self;
        let wake_up = &table.events.wake_up;
        let sleep_ms = sleep_ms(next, now().mono_ms);
        if sleep_ms == 0 {
            return R::pass().await;
        }
        let mut sleep = pin!(R::sleep(Duration::from_millis(sleep_ms)));
        std::future::poll_fn(|context| {
            wake_up.sleeper.register(context.waker());
            if wake_up.woken.load(std::sync::atomic::Ordering::Acquire) {
                return Poll::Ready(());
            }
            sleep.as_mut().poll(context)
        })
        .await;
    }
}
