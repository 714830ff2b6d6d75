//! The driver on io_uring: one ring a core.
//!
//! ```text
//!  ring ─completions─▶ turn: ends ▶ completions ▶ reads ▶ accepts ▶ inputs ▶ round ▶ asks ─▶ enter: hand requests over,
//!                              └────────────── bounded each (rule 27) ──────────────┘      wait for news or wake_ms
//! ```
//!
//! Sends to the members of a room are handed over in batches, from the machine's own bytes, in a ring in which nothing
//! else is asked ([`BatchedSender`]); fewer than four are plain calls. Either way a send is over when it returns (rule 24).
//!
//! Invariants, each held by a test of the conformance suite (`tests/driver.rs`):
//! - a connection without traffic owns no buffer, and twelve bytes here;
//! - an event of a connection that is gone never reaches the one that took its slot ([`token`], rule 32), and every
//!   buffer is given back, whoever it was for;
//! - what a peer sent before it closed its half is answered before [`Machine::closed`] tells of it;
//! - a closed connection's last bytes arrive: it lingers until the peer has closed too, so that no RST overtakes them;
//! - one that floods takes no one's buffers ([`table`], rule 31); when there are none, nothing is lost and nothing spins;
//! - without descriptors accepting pauses and goes on.

mod accepting;
mod buffers;
mod ring;
mod table;
mod token;
mod wake_up;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use self::accepting::Accepting;
use self::ring::{Completion, Ring};
use self::table::{Read, Table, To};
use self::token::{Kind, Token};
use self::wake_up::WakeUpDescriptor;
use super::asking::Asking;
use super::clock::now;
use super::limits::{INPUTS_A_TURN, READ_BUFFER_BYTES, READS_A_TURN};
use super::share::INBOX_MAX;
use super::{BatchedSender, Parts, WakeUp, sleep_ms};
use machine::{Key, Machine, Next, Now, Reading};

/// Completions in a turn: each brings at most a shared buffer.
const COMPLETIONS_A_TURN: usize = 256;
/// How long the kernel has to end what was cancelled when a core ends. Over it the buffers stay mapped.
const END_MS: u128 = 1_000;
/// How long the try at the start may take.
const TRY_MS: u128 = 1_000;

/// Whether this kernel lets this process have what the driver needs: a ring with its flags and buffers, and bytes that
/// arrive through them.
///
/// # Errors
/// What it refuses.
pub(super) fn attempt() -> io::Result<()> {
    // A thread of its own: the kernel interrupts a thread's later system calls to take a ring down that it had made.
    let tried = std::thread::Builder::new().name("uring-attempt".into()).spawn(attempt_here)?.join();
    tried.unwrap_or_else(|_| Err(io::Error::other("the attempt panicked")))
}

fn attempt_here() -> io::Result<()> {
    let mut ring = Ring::new()?;
    let (ours, mut theirs) = UnixStream::pair()?;
    ring.receive(&ours, Token::of(Kind::Receive, 0));
    theirs.write_all(b"?")?;
    let (begun, mut list, mut came) = (Instant::now(), Vec::new(), false);
    let mut theirs = Some(theirs);
    while ring.in_flight() > 0 {
        if begun.elapsed().as_millis() > TRY_MS {
            return Err(io::ErrorKind::TimedOut.into());
        }
        ring.enter(Duration::from_millis(10))?;
        ring.completions(COMPLETIONS_A_TURN, &mut list);
        for completion in list.drain(..) {
            if completion.result < 0 {
                return Err(io::Error::from_raw_os_error(-completion.result));
            }
            if let Some(buffer) = completion.buffer {
                came |= ring.bytes(&buffer) == b"?";
                ring.give_back(buffer);
                // Ends the receive.
                theirs = None;
            }
        }
    }
    drop(theirs);
    if came { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Runs a core to its end.
///
/// # Errors
/// The system's, where it gives no ring.
pub(super) fn run<M: Machine>(parts: Parts<M, impl FnOnce(Now) -> M, impl FnOnce()>) -> io::Result<()> {
    let (mut ring, sender, descriptor) = (Ring::new()?, BatchedSender::new()?, WakeUpDescriptor::new()?);
    descriptor.arm(&mut ring);
    let this = Loop {
        machine: (parts.make)(now()),
        table: Table::new(ring, sender, parts.intake.share),
        accepting: Accepting::new(parts.intake.sockets),
        inputs: parts.inputs,
        wake_up: parts.wake_up,
        waker: descriptor.waker(),
        descriptor,
        asking: parts.asking,
        completions: Vec::with_capacity(COMPLETIONS_A_TURN),
        buffer: vec![0; READ_BUFFER_BYTES].into_boxed_slice(),
    };
    this.table.share.open();
    (parts.begun)();
    this.run();
    Ok(())
}

struct Loop<M: Machine> {
    machine: M,
    table: Table,
    accepting: Accepting,
    inputs: Receiver<M::Input>,
    wake_up: Arc<WakeUp>,
    descriptor: Arc<WakeUpDescriptor>,
    /// Writes to the descriptor.
    waker: Waker,
    asking: Asking<M::Request>,
    /// Empty between turns: its room is used again.
    completions: Vec<Completion>,
    buffer: Box<[u8]>,
}

impl<M: Machine> Loop<M> {
    fn run(mut self) {
        loop {
            let next = self.turn();
            if self.machine.done() {
                // What was closed last may still be on its way.
                self.accepting.close(&mut self.table.ring);
                if self.table.lingering() == 0 {
                    return self.end();
                }
            }
            self.wait(next);
        }
    }

    /// Everyone's turn, bounded.
    fn turn(&mut self) -> Next {
        let now = now();
        self.table.now_ms = now.mono_ms;
        self.wake_up.answer();
        self.tell_ends(now);
        let mut again = self.complete(now);
        self.read(now);
        let machine = &mut self.machine;
        self.accepting.accept(now.mono_ms, &mut self.table, |table, accepted| {
            if let Some(key) = machine.opened(now, accepted.listener, accepted.peer) {
                table.insert(key, accepted.stream);
            }
        });
        self.adopt(now);
        for _ in 0..INPUTS_A_TURN {
            let Ok(input) = self.inputs.try_recv() else { break };
            self.machine.input(now, input);
        }
        let mut next = self.machine.round(now, &mut self.table);
        again |= self.after_round(now);
        self.asking.ask(&mut self.machine);

        let due = [self.table.close_lingering(), self.asking.due_ms(now.mono_ms), self.accepting.due_ms()];
        for at_ms in due.into_iter().flatten() {
            next.wake_ms = next.wake_ms.min(at_ms);
        }
        again |= !self.table.readable.is_empty() || !self.table.ends.is_empty() || !self.inputs.is_empty();
        next.again |= again;
        next
    }

    /// Those whose peer had closed by the last turn: what came before is answered now, as far as it fits.
    fn tell_ends(&mut self, now: Now) {
        let mut ends = std::mem::take(&mut self.table.ends);
        for key in ends.drain(..) {
            if self.table.ended(key) {
                self.machine.closed(now, key);
            }
        }
        self.table.ends = ends;
    }

    /// Takes note of what the ring has to tell, and says whether it has more.
    fn complete(&mut self, now: Now) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let again = self.table.ring.completions(COMPLETIONS_A_TURN, &mut completions);
        for completion in completions.drain(..) {
            let Token { kind, key } = completion.token;
            match kind {
                Kind::Receive => self.received(now, key, completion),
                Kind::Room => {
                    if self.table.unblock(key) {
                        self.machine.writable(now, key);
                    }
                }
                Kind::Accept => self.accepting.polled(key.slot as usize),
                Kind::WakeUp if !completion.more => self.descriptor.arm(&mut self.table.ring),
                Kind::Cancel if completion.result < 0 => self.table.not_cancelled(key),
                Kind::WakeUp | Kind::Cancel | Kind::Forget => {}
            }
        }
        self.completions = completions;
        again
    }

    fn received(&mut self, now: Now, key: Key, completion: Completion) {
        let Completion { result, more, buffer, .. } = completion;
        let mut full = false;
        if let Some(buffer) = buffer {
            full = buffer.is_full();
            match self.table.to(key) {
                To::Machine => {
                    if self.machine.bytes(now, key, self.table.ring.bytes(&buffer)) == Reading::Paused {
                        self.table.pause(key);
                    }
                }
                To::Kept => self.table.keep(key, &buffer),
                To::Nobody => {}
            }
            self.table.ring.give_back(buffer);
        }
        if self.table.received(key, result, more, full) {
            self.machine.closed(now, key);
        }
    }

    /// The plain reads: of those that flood, or that found no buffer.
    fn read(&mut self, now: Now) {
        for _ in 0..READS_A_TURN.min(self.table.readable.len()) {
            let Some(key) = self.table.readable.pop_front() else { break };
            let (reading, all) = match self.table.read(key, &mut self.buffer) {
                Read::Bytes(count) => {
                    (self.machine.bytes(now, key, &mut self.buffer[..count]), count < self.buffer.len())
                }
                Read::Kept(mut bytes) => (self.machine.bytes(now, key, &mut bytes), false),
                Read::Nothing => continue,
                Read::Broken => {
                    if self.table.remove(key) {
                        self.machine.closed(now, key);
                    }
                    continue;
                }
            };
            match reading {
                Reading::On => self.table.read_on(key, all),
                Reading::Paused => self.table.pause(key),
            }
        }
    }

    /// Opens those that other cores have handed over; says whether there were any.
    fn adopt(&mut self, now: Now) -> bool {
        let mut any = false;
        for _ in 0..INBOX_MAX {
            let Some(accepted) = self.table.share.take() else { break };
            any = true;
            if let Some(key) = self.machine.opened(now, accepted.listener, accepted.peer) {
                self.table.insert(key, accepted.stream);
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
        if std::mem::take(&mut self.table.stop_accepting) {
            self.accepting.stop(&mut self.table.ring);
            self.table.share.close();
            return self.adopt(now);
        }
        false
    }

    /// Until there is something to do. `again` only lets the ring tell its news first.
    fn wait(&mut self, next: Next) {
        let sleep_ms = sleep_ms(next, now().mono_ms);
        if sleep_ms == 0 {
            return self.enter(Duration::ZERO);
        }
        self.wake_up.sleeper.register(&self.waker);
        let woken = self.wake_up.woken.load(Ordering::Acquire);
        self.enter(if woken { Duration::ZERO } else { Duration::from_millis(sleep_ms) });
        // Awake, it is told without a system call.
        drop(self.wake_up.sleeper.take());
    }

    fn enter(&mut self, wait: Duration) {
        if let Err(error) = self.table.ring.enter(wait) {
            panic!("io_uring serves no more: {error}");
        }
    }

    /// Waits until the kernel has let go of everything.
    fn end(mut self) {
        self.table.close_all();
        self.table.ring.cancel(wake_up::TOKEN, Token::of(Kind::Forget, 0));
        let begun = Instant::now();
        while self.table.ring.in_flight() > 0 && begun.elapsed().as_millis() < END_MS {
            self.enter(Duration::from_millis(10));
            self.table.ring.completions(COMPLETIONS_A_TURN, &mut self.completions);
            self.completions.clear();
        }
    }
}
