//! A core's connections by slot, the ones that linger, and the wakers that tell which of them has news.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Wake, Waker};

use rustc_hash::FxHashMap;

use super::super::WakeUp;
use super::super::limits::{LINGER_MS, LINGERING_MAX};
use super::super::share::Share;
use machine::{Key, Outlet, Sent};

/// A connected socket of the runtime's. Pending: the kernel has nothing (no room), and the waker is set, in place of the
/// one before. An error: the connection is broken.
pub(in super::super) trait Stream: AsRawFd {
    /// One read; 0: the peer closed its half.
    fn receive(&mut self, reader: &Waker, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// One write, that never waits (rule 24).
    fn send(&mut self, writer: &Waker, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Closes our half: what was sent goes out. `false`: there is nobody to wait for.
    fn finish(&mut self) -> bool;
}

/// News from the poller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// There is something to read, or the end of it.
    Read(Key),
    /// There is room again after a short send.
    Write(Key),
    /// The listener of this index has a connection.
    Accept(usize),
}

/// News that the loop has not looked at.
#[derive(Debug)]
pub(super) struct Events {
    /// Only the core's own thread ever takes the lock: the poller wakes there.
    list: Mutex<Vec<Event>>,
    pub(super) wake_up: Arc<WakeUp>,
}

impl Events {
    pub(super) fn new(wake_up: Arc<WakeUp>) -> Self {
        Self { list: Mutex::default(), wake_up }
    }

    pub(super) fn waker(self: &Arc<Self>, event: Event) -> Waker {
        Waker::from(Arc::new(Signal { event, events: self.clone() }))
    }

    /// Changes what has come for `empty`, so that both keep their room.
    pub(super) fn swap(&self, empty: &mut Vec<Event>) {
        std::mem::swap(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner), empty);
    }
}

struct Signal {
    event: Event,
    events: Arc<Events>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.events.list.lock().unwrap_or_else(PoisonError::into_inner).push(self.event);
        self.events.wake_up.wake();
    }
}

/// What a read came to.
pub(super) enum Read {
    /// This many bytes are in the buffer.
    Bytes(usize),
    /// Something came that nobody wants any more.
    Discarded,
    /// Nothing now; its waker is set.
    Nothing,
    /// The peer closed, or the connection broke.
    End,
}

struct Connection<S> {
    stream: S,
    generation: u32,
    reader: Waker,
    /// Set while a send waits for room.
    writer: Option<Waker>,
    paused: bool,
    /// The turn in which the machine was last told of bytes or of room: an end that comes in the same one waits until
    /// that is answered.
    told_in: u64,
    /// The peer has closed its half, and output waits for room.
    ended: bool,
    gone: bool,
}

/// The connections of one core.
pub(super) struct Table<S> {
    pub(super) events: Arc<Events>,
    /// Counts those that the machine knows.
    pub(super) share: Share,
    slots: Vec<Option<Connection<S>>>,
    /// Those whose slot the machine gave away before it closed them: all that can still happen to them is that.
    displaced: FxHashMap<Key, Connection<S>>,
    lingering: FxHashMap<Key, Connection<S>>,
    /// When each that lingers has to go, oldest first; those that went before are still in it.
    deadlines: VecDeque<(u64, Key)>,
    now_ms: u64,
    turn: u64,
    /// Broken in this round.
    pub(super) gone: Vec<Key>,
    /// To be read again after this round.
    pub(super) to_read: Vec<Key>,
    pub(super) stop_accepting: bool,
}

impl<S: Stream> Table<S> {
    pub(super) fn new(events: Arc<Events>, share: Share) -> Self {
        Self {
            events,
            share,
            slots: Vec::new(),
            displaced: FxHashMap::default(),
            lingering: FxHashMap::default(),
            deadlines: VecDeque::new(),
            now_ms: 0,
            turn: 0,
            gone: Vec::new(),
            to_read: Vec::new(),
            stop_accepting: false,
        }
    }

    fn get(&mut self, key: Key) -> Option<&mut Connection<S>> {
        find(&mut self.slots, key)
    }

    /// Takes a connection in; the machine may have given its slot away before it closes the one that was there.
    pub(super) fn insert(&mut self, key: Key, stream: S) {
        self.share.hold();
        let slot = key.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        let before = self.slots[slot].replace(Connection {
            stream,
            generation: key.generation,
            reader: self.events.waker(Event::Read(key)),
            writer: None,
            paused: false,
            told_in: 0,
            ended: false,
            gone: false,
        });
        if let Some(before) = before {
            self.displaced.insert(Key { slot: key.slot, generation: before.generation }, before);
        }
    }

    /// Takes it out; `false` if it was gone before.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        let was = self.get(key).is_some() && self.slots[key.slot as usize].take().is_some();
        if was {
            self.share.let_go();
        }
        was
    }

    pub(super) fn pause(&mut self, key: Key) {
        if let Some(connection) = self.get(key) {
            connection.paused = true;
        }
    }

    /// Begins a turn.
    pub(super) fn turn(&mut self, now_ms: u64) {
        self.turn += 1;
        self.now_ms = now_ms;
    }

    /// Whether it was waiting for room.
    pub(super) fn unblock(&mut self, key: Key) -> bool {
        let turn = self.turn;
        let Some(connection) = self.get(key) else { return false };
        connection.told_in = turn;
        let (waited, ended) = (connection.writer.take().is_some(), connection.ended);
        if ended {
            self.to_read.push(key);
        }
        waited
    }

    /// One read of the connection, or of one that lingers under this key.
    pub(super) fn read(&mut self, key: Key, buffer: &mut [u8]) -> Read {
        let turn = self.turn;
        if let Some(connection) = self.get(key) {
            if connection.paused {
                return Read::Nothing;
            }
            return match connection.stream.receive(&connection.reader, buffer) {
                Poll::Pending => Read::Nothing,
                Poll::Ready(Ok(0)) if connection.told_in == turn => {
                    self.to_read.push(key);
                    Read::Nothing
                }
                Poll::Ready(Ok(0)) if connection.writer.is_some() => {
                    connection.ended = true;
                    Read::Nothing
                }
                Poll::Ready(Ok(0) | Err(_)) => Read::End,
                Poll::Ready(Ok(count)) => {
                    connection.told_in = turn;
                    Read::Bytes(count)
                }
            };
        }
        if let Some(connection) = self.lingering.get_mut(&key) {
            match connection.stream.receive(&connection.reader, buffer) {
                Poll::Pending => return Read::Nothing,
                Poll::Ready(Ok(1..)) => return Read::Discarded,
                Poll::Ready(Ok(0) | Err(_)) => drop(self.lingering.remove(&key)),
            }
        }
        Read::Nothing
    }

    pub(super) fn lingering(&self) -> usize {
        self.lingering.len()
    }

    /// Closes for good what has waited long enough, and says when the next has.
    pub(super) fn close_lingering(&mut self) -> Option<u64> {
        while let Some(&(at_ms, key)) = self.deadlines.front() {
            let waits = self.lingering.contains_key(&key);
            if waits && at_ms > self.now_ms && self.lingering.len() <= LINGERING_MAX {
                return Some(at_ms);
            }
            self.lingering.remove(&key);
            self.deadlines.pop_front();
        }
        None
    }
}

impl<S: Stream> Outlet for Table<S> {
    fn send(&mut self, key: Key, bytes: &[u8]) -> Sent {
        let Some(connection) = find(&mut self.slots, key).filter(|connection| !connection.gone) else {
            return Sent::Gone;
        };
        if connection.writer.is_some() {
            return Sent::Took(0);
        }
        let mut took = 0;
        let mut writer = None;
        // A short send is followed by one that finds the kernel full: only that one makes the poller tell of room again.
        // The waker is made when it is needed, and then set by a last try.
        while took < bytes.len() {
            match connection.stream.send(writer.as_ref().unwrap_or(Waker::noop()), &bytes[took..]) {
                Poll::Ready(Ok(count)) => took += count,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(_)) => {
                    connection.gone = true;
                    self.gone.push(key);
                    return Sent::Gone;
                }
                Poll::Pending if writer.is_none() => writer = Some(self.events.waker(Event::Write(key))),
                Poll::Pending => {
                    connection.writer = writer;
                    break;
                }
            }
        }
        Sent::Took(took)
    }

    fn read(&mut self, key: Key) {
        if self.get(key).is_some_and(|connection| std::mem::take(&mut connection.paused)) {
            self.to_read.push(key);
        }
    }

    fn close(&mut self, key: Key) {
        let closed = match self.get(key) {
            Some(_) => self.slots[key.slot as usize].take(),
            None => self.displaced.remove(&key),
        };
        let Some(mut connection) = closed else { return };
        self.share.let_go();
        let finished = connection.stream.finish();
        if connection.gone || connection.ended || !finished {
            return;
        }
        self.lingering.insert(key, connection);
        self.deadlines.push_back((self.now_ms + LINGER_MS, key));
        self.to_read.push(key);
    }

    fn stop_accepting(&mut self) {
        self.stop_accepting = true;
    }
}

fn find<S>(slots: &mut [Option<Connection<S>>], key: Key) -> Option<&mut Connection<S>> {
    let connection = slots.get_mut(key.slot as usize)?.as_mut()?;
    (connection.generation == key.generation).then_some(connection)
}
