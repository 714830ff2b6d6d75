//! Accepting: the ring tells when a listener has connections, `accept4` takes them in batches.
//!
//! A multishot accept would give no peer's address, and the machine needs it; asking for it later is a call a connection,
//! as many as this makes (rule 32).
//!
//! Invariants:
//! - without descriptors or memory accepting pauses, and nothing is polled meanwhile;
//! - a listener is closed when its backlog is empty (rule 33), and no request holds it.

use std::io::ErrorKind;
use std::net::TcpListener;

use super::super::limits::{ACCEPT_PAUSE_MS, ACCEPTS_A_TURN, gave_up};
use super::super::share::AcceptedSocket;
use super::ring::Ring;
use super::table::Table;
use super::token::{Kind, Token};

struct Listener {
    /// `None`: closed.
    socket: Option<TcpListener>,
    /// The ring polls it.
    armed: bool,
    /// May have a connection to accept.
    ready: bool,
    /// Is closed when its backlog is empty.
    last: bool,
}

/// The listeners of one core.
pub(super) struct Accepting {
    listeners: Vec<Listener>,
    at_ms: u64,
    /// Said once, not at every try.
    failed: bool,
}

impl Accepting {
    pub(super) fn new(listeners: Vec<TcpListener>) -> Self {
        let ready = |socket| Listener { socket: Some(socket), armed: false, ready: true, last: false };
        Self { listeners: listeners.into_iter().map(ready).collect(), at_ms: 0, failed: false }
    }

    /// The ring's news of the listener of this index.
    pub(super) fn polled(&mut self, index: usize) {
        let listener = &mut self.listeners[index];
        (listener.armed, listener.ready) = (false, true);
    }

    /// Accepts what waits, a bounded number of each listener; `open` has those that stay with this core.
    pub(super) fn accept(&mut self, now_ms: u64, table: &mut Table, mut open: impl FnMut(&mut Table, AcceptedSocket)) {
        if now_ms < self.at_ms {
            return;
        }
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            for _ in 0..ACCEPTS_A_TURN {
                let Some(socket) = listener.socket.as_ref().filter(|_| listener.ready) else { break };
                match socket.accept() {
                    Ok((stream, peer)) => {
                        self.failed = false;
                        let accepted = AcceptedSocket { stream, listener: index, peer };
                        let stays = match table.share.elsewhere() {
                            Some(core) => table.share.hand(core, accepted).err(),
                            None => Some(accepted),
                        };
                        if let Some(accepted) = stays {
                            open(table, accepted);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        listener.ready = false;
                        match listener.last {
                            true => listener.socket = None,
                            false => {
                                listener.armed = true;
                                table.ring.poll(socket, libc::POLLIN, Token::of(Kind::Accept, index));
                            }
                        }
                    }
                    Err(error) if gave_up(&error) => {}
                    Err(error) => {
                        if !std::mem::replace(&mut self.failed, true) {
                            tracing::warn!(%error, retry_ms = ACCEPT_PAUSE_MS, "cannot accept connections now");
                        }
                        self.at_ms = now_ms + ACCEPT_PAUSE_MS;
                        return;
                    }
                }
            }
        }
    }

    /// When to accept, if a listener may have more.
    pub(super) fn due_ms(&self) -> Option<u64> {
        let waits = self.listeners.iter().any(|listener| listener.ready && listener.socket.is_some());
        waits.then_some(self.at_ms)
    }

    /// Closes each when its backlog is empty.
    pub(super) fn stop(&mut self, ring: &mut Ring) {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            if !std::mem::replace(&mut listener.last, true) && listener.armed {
                // It is looked at once more when that has ended.
                ring.cancel(Token::of(Kind::Accept, index), Token::of(Kind::Forget, index));
            }
        }
    }

    /// Closes all, whatever waits in their backlogs.
    pub(super) fn close(&mut self, ring: &mut Ring) {
        self.stop(ring);
        for listener in &mut self.listeners {
            if let Some(socket) = listener.socket.take() {
                ring.close(socket.into());
            }
        }
    }
}
