//! A machine that does what a test tells it, and tells the test what it sees.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::driver::{Balance, CoreHandle, Intake, Kind, Listeners, Port, Setup, SocketOptions, spawn};
use crossbeam::channel::{Receiver, Sender, bounded};
use machine::{Key, Machine, Next, Now, Outlet, Reading, Sending, Sent};
use slab::Slab;

/// A step that takes longer has failed: generous, since the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The core's queue.
pub(crate) const INPUTS_MAX: usize = 16;

/// Makes the machine forget a connection at once, and close it in its next round.
pub(crate) const LAST_WORDS: &[u8] = b"last words";

/// To the machine.
#[derive(Debug)]
pub(crate) enum Tell {
    Send(Key, Vec<u8>),
    /// To every connection.
    SendAll(Vec<u8>),
    /// After what is to be sent.
    Close(Key),
    Pause(Key),
    Resume(Key),
    Report(u32),
    /// Says that it has begun, then holds the core up until the receiver's other end is dropped.
    Stall(Sender<()>, Receiver<()>),
    Drain,
}

/// From the machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Opened(Key, usize, SocketAddr),
    Bytes(Key, usize),
    Blocked(Key),
    Paused(Key),
    Closed(Key),
    Told(u32),
}

struct Connection {
    generation: u32,
    output: VecDeque<u8>,
    paused: bool,
    resume: bool,
    closing: bool,
}

/// Echoes; sends, closes and pauses as told.
#[derive(Default)]
pub(crate) struct Probe {
    connections: Slab<Connection>,
    generation: u32,
    due: Vec<Key>,
    dead: Vec<Key>,
    seen: VecDeque<Seen>,
    draining: bool,
}

impl Probe {
    fn get(&mut self, key: Key) -> &mut Connection {
        let connection = self.connections.get_mut(key.slot as usize).expect("an event of a connection that is gone");
        assert_eq!(connection.generation, key.generation, "an event of a connection that had this slot before");
        connection
    }

    fn find(&mut self, key: Key) -> Option<&mut Connection> {
        self.connections.get_mut(key.slot as usize).filter(|connection| connection.generation == key.generation)
    }
}

impl Machine for Probe {
    type Input = Tell;
    type Request = Seen;

    fn opened(&mut self, _: Now, listener: usize, peer: SocketAddr) -> Option<Key> {
        self.generation += 1;
        let (generation, output) = (self.generation, VecDeque::new());
        let connection = Connection { generation, output, paused: false, resume: false, closing: false };
        let key = Key { slot: self.connections.insert(connection) as u32, generation };
        self.seen.push_back(Seen::Opened(key, listener, peer));
        Some(key)
    }

    fn bytes(&mut self, _: Now, key: Key, bytes: &mut [u8]) -> Reading {
        if bytes == LAST_WORDS {
            self.get(key);
            self.connections.remove(key.slot as usize);
            self.dead.push(key);
            return Reading::On;
        }
        let connection = self.get(key);
        connection.output.extend(&*bytes);
        let reading = if connection.paused { Reading::Paused } else { Reading::On };
        self.due.push(key);
        self.seen.push_back(Seen::Bytes(key, bytes.len()));
        reading
    }

    fn writable(&mut self, _: Now, key: Key) {
        self.get(key);
        self.due.push(key);
    }

    fn closed(&mut self, _: Now, key: Key) {
        self.get(key);
        self.connections.remove(key.slot as usize);
        self.seen.push_back(Seen::Closed(key));
    }

    fn input(&mut self, _: Now, input: Tell) {
        match input {
            Tell::Send(key, bytes) => {
                self.get(key).output.extend(bytes);
                self.due.push(key);
            }
            Tell::SendAll(bytes) => {
                for (slot, connection) in &mut self.connections {
                    connection.output.extend(&bytes);
                    self.due.push(Key { slot: slot as u32, generation: connection.generation });
                }
            }
            Tell::Close(key) => {
                self.get(key).closing = true;
                self.due.push(key);
            }
            Tell::Pause(key) => {
                self.get(key).paused = true;
                self.seen.push_back(Seen::Paused(key));
            }
            Tell::Resume(key) => {
                let connection = self.get(key);
                (connection.paused, connection.resume) = (false, true);
                self.due.push(key);
            }
            Tell::Report(number) => self.seen.push_back(Seen::Told(number)),
            Tell::Stall(begun, until) => {
                begun.send(()).expect("the test waits for it");
                assert!(until.recv().is_err());
            }
            Tell::Drain => self.draining = true,
        }
    }

    fn round(&mut self, now: Now, outlet: &mut impl Outlet) -> Next {
        let mut due = std::mem::take(&mut self.due);
        due.sort_unstable();
        due.dedup();
        due.retain(|key| self.find(*key).is_some());
        for key in &due {
            if std::mem::take(&mut self.get(*key).resume) {
                outlet.read(*key);
            }
            self.get(*key).output.make_contiguous();
        }
        let sending = |key: &Key| {
            let (bytes, _) = self.connections[key.slot as usize].output.as_slices();
            Sending { key: *key, bytes, sent: Sent::Took(0) }
        };
        let mut sends: Vec<_> = due.iter().map(sending).collect();
        outlet.send_all(&mut sends);
        let sent: Vec<_> = sends.iter().map(|sending| (sending.key, sending.sent)).collect();
        for (key, sent) in sent {
            let connection = self.get(key);
            match sent {
                Sent::Took(count) => {
                    connection.output.drain(..count);
                    let blocked = !connection.output.is_empty();
                    if !blocked && connection.closing {
                        outlet.close(key);
                        self.connections.remove(key.slot as usize);
                    }
                    if blocked {
                        self.seen.push_back(Seen::Blocked(key));
                    }
                }
                Sent::Gone => assert_eq!(outlet.send(key, b"more"), Sent::Gone),
            }
        }
        for key in self.dead.drain(..) {
            outlet.close(key);
        }
        if self.draining {
            outlet.stop_accepting();
            for (slot, connection) in &self.connections {
                outlet.close(Key { slot: slot as u32, generation: connection.generation });
            }
            self.connections.clear();
        }
        Next { again: false, wake_ms: now.mono_ms + 60_000 }
    }

    fn next_request(&mut self) -> Option<Seen> {
        self.seen.pop_front()
    }

    fn done(&self) -> bool {
        self.draining && self.connections.is_empty()
    }
}

/// One core with a probe.
pub(crate) struct Server {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) port: Port<Tell>,
    core: CoreHandle<Tell>,
    seen: Receiver<Seen>,
}

impl Server {
    pub(crate) fn start(kind: Kind) -> Self {
        Self::start_on(kind, &["127.0.0.1:0".parse().unwrap()])
    }

    pub(crate) fn start_on(kind: Kind, addresses: &[SocketAddr]) -> Self {
        let (sender, seen) = bounded(100_000);
        Self::start_with(kind, addresses, seen, move |ask| sender.try_send(ask).err().map(|error| error.into_inner()))
    }

    /// Nobody listens to what it sees.
    pub(crate) fn start_quiet(kind: Kind) -> Self {
        Self::start_with(kind, &["127.0.0.1:0".parse().unwrap()], bounded(0).1, |_| None)
    }

    /// Every ask is given back so many times before it is taken.
    pub(crate) fn start_refusing(kind: Kind, times: u32) -> Self {
        let (sender, seen) = bounded(1000);
        let mut refused = 0;
        Self::start_with(kind, &["127.0.0.1:0".parse().unwrap()], seen, move |ask| {
            refused += 1;
            if refused % (times + 1) != 0 {
                return Some(ask);
            }
            sender.try_send(ask).err().map(|error| error.into_inner())
        })
    }

    fn start_with(
        kind: Kind,
        addresses: &[SocketAddr],
        seen: Receiver<Seen>,
        asks: impl FnMut(Seen) -> Option<Seen> + Send + 'static,
    ) -> Self {
        let mut listeners = Listeners::bind(addresses, 1, &SocketOptions::default()).unwrap();
        Self::start_core(kind, listeners.cores.remove(0), listeners.addresses, seen, asks)
    }

    fn start_core(
        kind: Kind,
        intake: Intake,
        addresses: Vec<SocketAddr>,
        seen: Receiver<Seen>,
        asks: impl FnMut(Seen) -> Option<Seen> + Send + 'static,
    ) -> Self {
        let setup = Setup { name: "probe".into(), intake, inputs_max: INPUTS_MAX, asks: Box::new(each(asks)) };
        let core = spawn(kind.choose().unwrap().0, setup, |_| Probe::default()).unwrap();
        Self { addresses, port: core.port(), core, seen }
    }

    /// Two cores that share an address. The kernel gives every connection to the first.
    pub(crate) fn start_two(kind: Kind) -> ([Self; 2], Arc<Balance>) {
        let address = "127.0.0.1:0".parse().unwrap();
        let Listeners { addresses, mut cores, balance } =
            Listeners::bind(&[address], 2, &SocketOptions::default()).unwrap();
        cores[1].sockets.clear();
        let mut start = || {
            let (sender, seen) = bounded(100_000);
            let asks = move |ask| sender.try_send(ask).err().map(|error| error.into_inner());
            Self::start_core(kind, cores.remove(0), addresses.clone(), seen, asks)
        };
        ([start(), start()], balance)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addresses[0]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn tell(&self, tell: Tell) {
        let (begun, mut tell) = (Instant::now(), Some(tell));
        while let Some(again) = tell.take() {
            assert!(begun.elapsed() < PATIENCE, "the core takes nothing");
            tell = self.port.tell(again).err();
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).unwrap()
    }

    /// What it has said and nobody has looked at.
    pub(crate) fn said(&self) -> Vec<Seen> {
        self.seen.try_iter().collect()
    }

    /// Skips everything before it.
    pub(crate) fn wait_for(&self, mut is: impl FnMut(&Seen) -> bool) {
        while !is(&self.seen()) {}
    }

    pub(crate) fn opened(&self) -> Key {
        loop {
            if let Seen::Opened(key, ..) = self.seen() {
                return key;
            }
        }
    }

    /// Waits for its end, and looks at everything that it said.
    pub(crate) fn join_after(self, mut look: impl FnMut(Seen)) {
        self.core.join();
        self.seen.try_iter().for_each(&mut look);
    }

    /// Waits for its end.
    pub(crate) fn join(self) {
        self.core.join();
    }

    pub(crate) fn stop(self) {
        self.tell(Tell::Drain);
        self.join();
    }
}

/// Takes asks one by one, until one is given back.
fn each(mut take: impl FnMut(Seen) -> Option<Seen>) -> impl FnMut(Vec<Seen>) -> Vec<Seen> {
    move |asks| {
        let mut asks = asks.into_iter();
        let refused = asks.by_ref().find_map(&mut take);
        refused.into_iter().chain(asks).collect()
    }
}
