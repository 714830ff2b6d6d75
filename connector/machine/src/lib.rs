//! The contract between a core's machine and its driver. Neither owns it: the engine implements [`Machine`], a driver
//! implements [`Outlet`].
//!
//! ```text
//!   driver ─opened/bytes/writable/closed/input─▶ Machine ─round─▶ Outlet ─▶ driver
//! ```
//!
//! It has no socket, clock or runtime: time comes in as [`Now`], and an address is a plain value.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

/// Most sends that a machine hands over at once ([`Outlet::send_all`]).
pub const BATCH_MAX: usize = 256;

/// A connection as its machine names it. The generation tells a late event of a closed connection from the one that
/// has taken its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Index into the machine's, and the driver's, tables; small numbers are used again first.
    pub slot: u32,
    /// Counts the slot's users.
    pub generation: u32,
}

/// The two clocks, read by the driver once a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Monotonic, milliseconds from an arbitrary beginning: intervals.
    pub mono_ms: u64,
    /// Milliseconds since 1970: what tokens lapse by.
    pub unix_ms: i64,
}

/// What is to become of a connection's reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Reading {
    /// Go on.
    On,
    /// Its machine has enough of it (rule 28): do not read until [`Outlet::read`].
    Paused,
}

/// What became of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// The kernel took this many bytes. Fewer than given: it is full, and [`Machine::writable`] follows.
    Took(usize),
    /// The connection is broken; [`Machine::closed`] follows.
    Gone,
}

/// One of several sends ([`Outlet::send_all`]).
#[derive(Debug, Clone, Copy)]
pub struct Sending<'a> {
    /// To whom.
    pub key: Key,
    /// The bytes to send.
    pub bytes: &'a [u8],
    /// What became of it, afterwards.
    pub sent: Sent,
}

/// When the machine wants its next [`Machine::round`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Next {
    /// At once, after everyone else had a turn: there is more to send.
    pub again: bool,
    /// At this monotonic time at the latest, milliseconds.
    pub wake_ms: u64,
}

/// A protocol without sockets: told what happened, asked what to do. All of it runs on one thread.
pub trait Machine: 'static {
    /// What other threads tell it.
    type Input: Send + 'static;
    /// What it asks of other threads.
    type Request: Send + 'static;

    /// A connection was accepted on the listener of this index, by this core or by one that handed it over. `None`: close
    /// it.
    fn opened(&mut self, now: Now, listener: usize, peer: SocketAddr) -> Option<Key>;

    /// Bytes came; it takes all of them (and may change them in place: unmasking).
    fn bytes(&mut self, now: Now, key: Key, bytes: &mut [u8]) -> Reading;

    /// The kernel has room again after a short send.
    fn writable(&mut self, now: Now, key: Key);

    /// The peer closed, or the connection broke. Not called after [`Outlet::close`].
    fn closed(&mut self, now: Now, key: Key);

    /// Another thread says something.
    fn input(&mut self, now: Now, input: Self::Input);

    /// Sends and closes what is due: a bounded piece of work (rule 27). Also the machine's clock tick.
    fn round(&mut self, now: Now, outlet: &mut impl Outlet) -> Next;

    /// What it asks of other threads; called until `None` after every turn.
    fn next_request(&mut self) -> Option<Self::Request>;

    /// Whether all is closed after it was told to drain: the driver's loop ends.
    fn done(&self) -> bool;
}

/// The driver as the machine sees it in a round.
pub trait Outlet {
    /// Sends without waiting. When it returns, the bytes have been taken or the remainder is told (rule 24).
    fn send(&mut self, key: Key, bytes: &[u8]) -> Sent;

    /// Sends to several, nobody twice, each as [`Outlet::send`] does: with one system call where the driver can.
    fn send_all(&mut self, sends: &mut [Sending<'_>]) {
        send_each(self, sends);
    }

    /// Reads again from a connection, if it was paused.
    fn read(&mut self, key: Key);

    /// Closes: what was sent goes out, nothing more is read, the key is dead. A machine may have given the key's slot
    /// away before it closes it here.
    fn close(&mut self, key: Key);

    /// Accepts no more connections, and takes none from other cores; the backlog is drained (rule 33).
    fn stop_accepting(&mut self);
}

/// [`Outlet::send_all`] by one call after the other.
pub fn send_each(outlet: &mut (impl Outlet + ?Sized), sends: &mut [Sending<'_>]) {
    for sending in sends {
        sending.sent = outlet.send(sending.key, sending.bytes);
    }
}
