//! A core's connections by slot, what is left of closed ones, and their way between the two ways of reading.
//!
//! ```text
//!                 ┌──────────── all read: nothing more now ────────────┐
//!                 ▼                                                    │
//!   accepted ─▶ armed: multishot receive, shared buffers ─┐          plain: recv(2) once a turn, the core's buffer
//!                 │ no traffic: no buffer, no turn        │            ▲   ▲
//!                 └── filled a buffer (loud), ENOBUFS ────┼────────────┘   │ `read`
//!                                                         └─▶ paused ──────┘
//! ```
//!
//! Receiving by multishot has no back-pressure (rule 31): a connection that fills a whole buffer, or finds none, is read
//! from with plain calls, one a turn, until it is empty. Bytes that had been received already when the machine paused a
//! connection are kept for it (`kept`).

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use rustc_hash::FxHashMap;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::super::BatchedSender;
use super::super::limits::{LINGER_MS, LINGERING_MAX};
use super::super::share::Share;
use super::buffers::Buffer;
use super::ring::Ring;
use super::token::{Kind, SLOT_MAX, Token};
use machine::{BATCH_MAX, Key, Outlet, Sending, Sent, send_each};

/// Bytes kept for paused connections of a core; over it a connection that would add to them is broken off. One can have
/// as much as the kernel receives at a stroke, 64 KiB, and only once until it has been read empty.
const KEPT_BYTES_MAX: usize = 64 << 20;

/// Fewer sends than this are plain calls.
const BATCH_MIN: usize = 4;

/// A receive is in flight.
const ARMED: u8 = 1 << 0;
/// Its end has been asked for.
const CANCELLED: u8 = 1 << 1;
/// The machine wants no bytes.
const PAUSED: u8 = 1 << 2;
/// Some are kept for it.
const KEPT: u8 = 1 << 3;
/// A send was short: being told of room is in flight.
const BLOCKED: u8 = 1 << 4;
/// The peer has closed its half, and output waits for room.
const ENDED: u8 = 1 << 5;
/// Broken, the machine is about to be told.
const GONE: u8 = 1 << 6;
/// Closed by the machine: what comes is thrown away until the peer closes, too. Else, out of its slot: displaced.
const LINGERS: u8 = 1 << 7;

/// Twelve bytes, all that an idle connection costs here. The kernel's descriptor is a plain one: one that is registered
/// saves a send the kernel's reference to it, but costs a system call when it comes, and answers no `getpeername` (rule 32).
struct Connection {
    fd: OwnedFd,
    generation: u32,
    flags: u8,
}

const _: () = assert!(size_of::<Option<Connection>>() == 12);

impl Connection {
    fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    fn set(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Says whether any was set.
    fn clear(&mut self, flags: u8) -> bool {
        let was = self.is(flags);
        self.flags &= !flags;
        was
    }

    fn receive(&mut self, ring: &mut Ring, key: Key) {
        self.set(ARMED);
        ring.receive(&self.fd, Token { kind: Kind::Receive, key });
    }

    fn cancel(&mut self, ring: &mut Ring, key: Key) {
        if self.is(ARMED) && !self.is(CANCELLED) {
            self.set(CANCELLED);
            ring.cancel(Token { kind: Kind::Receive, key }, Token { kind: Kind::Cancel, key });
        }
    }

    /// Ends what is in flight, and closes.
    fn release(self, ring: &mut Ring, key: Key) {
        for (flag, kind) in [(ARMED, Kind::Receive), (BLOCKED, Kind::Room)] {
            if self.is(flag) {
                ring.cancel(Token { kind, key }, Token { kind: Kind::Forget, key });
            }
        }
        ring.close(self.fd);
    }
}

/// Where bytes go that came.
pub(super) enum To {
    Machine,
    /// Its machine has paused it.
    Kept,
    Nobody,
}

/// What a plain read came to.
pub(super) enum Read {
    /// This many bytes are in the buffer.
    Bytes(usize),
    /// These had been kept.
    Kept(Vec<u8>),
    /// Nothing for the machine.
    Nothing,
    /// The connection broke.
    Broken,
}

/// The connections of one core.
pub(super) struct Table {
    pub(super) ring: Ring,
    /// Counts those that the machine knows.
    pub(super) share: Share,
    sender: BatchedSender,
    slots: Vec<Option<Connection>>,
    /// Out of their slots: those that linger, and those whose slot the machine gave away before it closed them.
    leaving: FxHashMap<Key, Connection>,
    lingering: usize,
    /// When each that lingers has to go, oldest first; those that went before are still in it.
    deadlines: VecDeque<(u64, Key)>,
    kept: FxHashMap<Key, Vec<u8>>,
    kept_bytes: usize,
    pub(super) now_ms: u64,
    /// Broken in this round.
    pub(super) gone: Vec<Key>,
    /// To be read from with plain calls.
    pub(super) readable: VecDeque<Key>,
    /// Whose peer has closed: the machine is told in the next turn, after it could answer what came before.
    pub(super) ends: Vec<Key>,
    pub(super) stop_accepting: bool,
}

impl Table {
    pub(super) fn new(ring: Ring, sender: BatchedSender, share: Share) -> Self {
        Self {
            ring,
            sender,
            share,
            slots: Vec::new(),
            leaving: FxHashMap::default(),
            lingering: 0,
            deadlines: VecDeque::new(),
            kept: FxHashMap::default(),
            kept_bytes: 0,
            now_ms: 0,
            gone: Vec::new(),
            readable: VecDeque::new(),
            ends: Vec::new(),
            stop_accepting: false,
        }
    }

    fn get(&mut self, key: Key) -> Option<&mut Connection> {
        find(&mut self.slots, key)
    }

    pub(super) fn insert(&mut self, key: Key, stream: TcpStream) {
        assert!(key.slot <= SLOT_MAX, "the machine gives small slots");
        let slot = key.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        self.share.hold();
        let mut connection = Connection { fd: stream.into(), generation: key.generation, flags: 0 };
        connection.receive(&mut self.ring, key);
        if let Some(before) = self.slots[slot].replace(connection) {
            self.leaving.insert(Key { slot: key.slot, generation: before.generation }, before);
        }
    }

    /// Takes it out, and closes it; `false` if it was gone before.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        if self.get(key).is_none() {
            return false;
        }
        let connection = self.slots[key.slot as usize].take().expect("found");
        self.share.let_go();
        self.forget_kept(key, &connection);
        connection.release(&mut self.ring, key);
        true
    }

    fn forget_kept(&mut self, key: Key, connection: &Connection) {
        if connection.is(KEPT) {
            self.kept_bytes -= self.kept.remove(&key).map_or(0, |bytes| bytes.len());
        }
    }

    pub(super) fn pause(&mut self, key: Key) {
        if let Some(connection) = find(&mut self.slots, key) {
            connection.set(PAUSED);
            connection.cancel(&mut self.ring, key);
        }
    }

    /// Where bytes go that a receive brought.
    pub(super) fn to(&mut self, key: Key) -> To {
        match self.get(key) {
            None => To::Nobody,
            Some(connection) if connection.is(PAUSED | KEPT) => To::Kept,
            Some(_) => To::Machine,
        }
    }

    /// Keeps bytes for when the machine reads on.
    pub(super) fn keep(&mut self, key: Key, buffer: &Buffer) {
        let Some(connection) = find(&mut self.slots, key) else { return };
        let bytes = self.ring.bytes(buffer);
        if self.kept_bytes + bytes.len() > KEPT_BYTES_MAX {
            if !connection.is(GONE) {
                connection.set(GONE);
                self.gone.push(key);
            }
            return;
        }
        connection.set(KEPT);
        self.kept_bytes += bytes.len();
        self.kept.entry(key).or_default().extend_from_slice(bytes);
    }

    /// Goes on after a completion of a receive. `true`: the connection broke, and the machine is to be told.
    pub(super) fn received(&mut self, key: Key, result: i32, more: bool, full: bool) -> bool {
        let here = find(&mut self.slots, key);
        let present = here.is_some();
        let Some(connection) = here.or_else(|| self.leaving.get_mut(&key)) else {
            if more {
                // It was cancelled when it was released, just as it was at work.
                let token = |kind| Token { kind, key };
                self.ring.cancel(token(Kind::Receive), token(Kind::Forget));
            }
            return false;
        };
        if more {
            if full {
                connection.cancel(&mut self.ring, key);
            }
            return false;
        }
        connection.clear(ARMED | CANCELLED);
        let over = match -result {
            ..0 | libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                if !connection.is(PAUSED) && (present || connection.is(LINGERS)) {
                    self.readable.push_back(key);
                }
                return false;
            }
            // What ends a paused connection is found again when it is read from.
            _ if connection.is(PAUSED) => return false,
            error => error,
        };
        match (present, over) {
            (true, 0) => self.ends.push(key),
            (true, _) => return self.remove(key),
            (false, _) => self.release_lingering(key),
        }
        false
    }

    /// The kernel could not cancel a receive: it had just ended, and its completion has been seen, or it was at work.
    pub(super) fn not_cancelled(&mut self, key: Key) {
        let Some(connection) = find(&mut self.slots, key).or_else(|| self.leaving.get_mut(&key)) else { return };
        connection.clear(CANCELLED);
        connection.cancel(&mut self.ring, key);
    }

    /// Whether it was waiting for room, and its machine is to be told.
    pub(super) fn unblock(&mut self, key: Key) -> bool {
        let Some(connection) = self.get(key) else {
            if let Some(connection) = self.leaving.get_mut(&key) {
                connection.clear(BLOCKED);
            }
            return false;
        };
        let waited = connection.clear(BLOCKED);
        if connection.clear(ENDED) {
            self.ends.push(key);
        }
        waited
    }

    /// Whether the machine is to be told of the end now; while output waits for room, it is not.
    pub(super) fn ended(&mut self, key: Key) -> bool {
        match self.get(key) {
            Some(connection) if connection.is(BLOCKED) => {
                connection.set(ENDED);
                false
            }
            _ => self.remove(key),
        }
    }

    /// One plain read of a connection, or of one that lingers under this key.
    pub(super) fn read(&mut self, key: Key, buffer: &mut [u8]) -> Read {
        if let Some(connection) = find(&mut self.slots, key) {
            if connection.is(PAUSED | ARMED | GONE | ENDED) {
                return Read::Nothing;
            }
            if connection.clear(KEPT) {
                let bytes = self.kept.remove(&key).unwrap_or_default();
                self.kept_bytes -= bytes.len();
                return Read::Kept(bytes);
            }
            match receive(connection, buffer) {
                Ok(0) => self.ends.push(key),
                Ok(count) => return Read::Bytes(count),
                Err(Errno::AGAIN) => connection.receive(&mut self.ring, key),
                Err(_) => return Read::Broken,
            }
        } else if let Some(connection) = self.leaving.get_mut(&key).filter(|c| c.is(LINGERS) && !c.is(ARMED)) {
            match receive(connection, buffer) {
                Ok(1..) => self.readable.push_back(key),
                Err(Errno::AGAIN) => connection.receive(&mut self.ring, key),
                Ok(0) | Err(_) => self.release_lingering(key),
            }
        }
        Read::Nothing
    }

    /// After a plain read that the machine has taken: `all` says that it left nothing behind.
    pub(super) fn read_on(&mut self, key: Key, all: bool) {
        match find(&mut self.slots, key) {
            Some(connection) if all => connection.receive(&mut self.ring, key),
            Some(_) => self.readable.push_back(key),
            None => {}
        }
    }

    pub(super) fn lingering(&self) -> usize {
        self.lingering
    }

    fn release_lingering(&mut self, key: Key) {
        if self.leaving.get(&key).is_some_and(|connection| connection.is(LINGERS)) {
            let connection = self.leaving.remove(&key).expect("found");
            self.lingering -= 1;
            connection.release(&mut self.ring, key);
        }
    }

    /// Closes for good what has waited long enough, and says when the next has.
    pub(super) fn close_lingering(&mut self) -> Option<u64> {
        while let Some(&(at_ms, key)) = self.deadlines.front() {
            let waits = self.leaving.get(&key).is_some_and(|connection| connection.is(LINGERS));
            if waits && at_ms > self.now_ms && self.lingering <= LINGERING_MAX {
                return Some(at_ms);
            }
            self.release_lingering(key);
            self.deadlines.pop_front();
        }
        None
    }

    /// Closes all that is left.
    pub(super) fn close_all(&mut self) {
        for (slot, connection) in std::mem::take(&mut self.slots).into_iter().enumerate() {
            let Some(connection) = connection else { continue };
            let key = Key { slot: slot as u32, generation: connection.generation };
            connection.release(&mut self.ring, key);
        }
        for (key, connection) in std::mem::take(&mut self.leaving) {
            connection.release(&mut self.ring, key);
        }
        self.lingering = 0;
    }
}

/// Takes note of what a send of so many bytes came to: how many were taken, or the negative number of an error.
fn sent_to(
    slots: &mut [Option<Connection>],
    ring: &mut Ring,
    gone: &mut Vec<Key>,
    (key, bytes): (Key, usize),
    result: i32,
) -> Sent {
    let connection = find(slots, key).expect("it was sent to");
    let took = match result {
        0.. => result as usize,
        _ if [-libc::EAGAIN, -libc::EINTR].contains(&result) => 0,
        _ => {
            connection.set(GONE);
            gone.push(key);
            return Sent::Gone;
        }
    };
    if took < bytes {
        // The kernel looks first whether there is room now: none that comes in between is missed.
        connection.set(BLOCKED);
        ring.poll(&connection.fd, libc::POLLOUT, Token { kind: Kind::Room, key });
    }
    Sent::Took(took)
}

/// Its descriptor, if it can be sent to; else what became of that.
fn sendable(slots: &[Option<Connection>], key: Key) -> Result<BorrowedFd<'_>, Sent> {
    let connection = slots.get(key.slot as usize).and_then(Option::as_ref);
    match connection.filter(|connection| connection.generation == key.generation && !connection.is(GONE)) {
        Some(connection) if connection.is(BLOCKED) => Err(Sent::Took(0)),
        Some(connection) => Ok(connection.fd.as_fd()),
        None => Err(Sent::Gone),
    }
}

impl Outlet for Table {
    fn send(&mut self, key: Key, bytes: &[u8]) -> Sent {
        let Self { slots, ring, gone, .. } = self;
        match sendable(slots, key) {
            Ok(socket) => {
                let sent = retry_on_intr(|| send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL));
                let result = sent.map_or_else(|error| -error.raw_os_error(), |took| took as i32);
                sent_to(slots, ring, gone, (key, bytes.len()), result)
            }
            Err(sent) => sent,
        }
    }

    fn send_all(&mut self, sends: &mut [Sending<'_>]) {
        if sends.len() < BATCH_MIN {
            return send_each(self, sends);
        }
        let Self { slots, ring, sender, gone, .. } = self;
        for sends in sends.chunks_mut(BATCH_MAX) {
            let (mut open, mut sockets) = (ArrayVec::<_, BATCH_MAX>::new(), ArrayVec::<_, BATCH_MAX>::new());
            for (index, sending) in sends.iter_mut().enumerate() {
                match sendable(slots, sending.key) {
                    Ok(socket) => {
                        open.push(index);
                        sockets.push(socket);
                    }
                    Err(sent) => sending.sent = sent,
                }
            }
            let results = sender.send(sockets.into_iter().zip(open.iter().map(|index| sends[*index].bytes)));
            for (&index, &result) in open.iter().zip(results) {
                let sending = &mut sends[index];
                sending.sent = sent_to(slots, ring, gone, (sending.key, sending.bytes.len()), result);
            }
        }
    }

    fn read(&mut self, key: Key) {
        if let Some(connection) = find(&mut self.slots, key)
            && connection.clear(PAUSED)
            && !connection.is(ARMED)
        {
            self.readable.push_back(key);
        }
    }

    fn close(&mut self, key: Key) {
        let closed = match self.get(key) {
            Some(_) => self.slots[key.slot as usize].take(),
            None => match self.leaving.get(&key) {
                Some(connection) if !connection.is(LINGERS) => self.leaving.remove(&key),
                _ => None,
            },
        };
        let Some(mut connection) = closed else { return };
        self.share.let_go();
        self.forget_kept(key, &connection);
        let shut = shutdown(&connection.fd, Shutdown::Write);
        if connection.is(GONE | ENDED) || shut.is_err() {
            return connection.release(&mut self.ring, key);
        }
        connection.clear(PAUSED | KEPT);
        connection.set(LINGERS);
        if !connection.is(ARMED) {
            self.readable.push_back(key);
        }
        self.leaving.insert(key, connection);
        self.lingering += 1;
        self.deadlines.push_back((self.now_ms + LINGER_MS, key));
    }

    fn stop_accepting(&mut self) {
        self.stop_accepting = true;
    }
}

fn find(slots: &mut [Option<Connection>], key: Key) -> Option<&mut Connection> {
    slots.get_mut(key.slot as usize)?.as_mut().filter(|connection| connection.generation == key.generation)
}

/// One read that does not wait.
fn receive(connection: &Connection, buffer: &mut [u8]) -> Result<usize, Errno> {
    retry_on_intr(|| recv(&connection.fd, &mut *buffer, RecvFlags::DONTWAIT)).map(|(count, _)| count)
}
